"""CLIP models for the frame-wise evaluators: transformers and open_clip layouts, frames, prompts."""
