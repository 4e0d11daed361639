"""A reference benchmark for reinforcement learning on video generators: GRPO variants under one budget."""

__version__ = "0.1.0"
