"""HunyuanVideo-1.5 as a backbone: nano and full size, LoRA or all weights, one process or several."""

from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15

__all__ = ["HunyuanVideo15"]
