"""VideoAlign's VideoReward: visual quality (VQ), motion quality (MQ) and text alignment (TA) of a video."""

from evaluators.videoalign.scorer import VideoAlign

__all__ = ["VideoAlign"]
