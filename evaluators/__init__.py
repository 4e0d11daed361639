"""Scorers of videos: VideoReward (VQ, MQ, TA), CLIPScore and PickScore, and the reader of video files."""
