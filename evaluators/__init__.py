"""Evaluators of videos: VideoReward (VQ, MQ, TA), CLIPScore, PickScore, HPSv2, detectors, and the reader of files."""
