"""HunyuanVideo-1.5 as a backbone: nano and full size, LoRA or all weights, one process or several."""

from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.options import HunyuanOptions

__all__ = ["HunyuanOptions", "HunyuanVideo15"]
