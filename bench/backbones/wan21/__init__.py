"""Wan2.1 text to video as a backbone: 1.3B and 14B, LoRA or all weights, one process or several."""

from bench.backbones.wan21.backbone import Wan21
from bench.backbones.wan21.options import WanOptions

__all__ = ["Wan21", "WanOptions"]
