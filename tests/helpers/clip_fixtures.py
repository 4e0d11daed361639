"""The stored images, numbers and tolerances that the tests of the image scorers share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.paths import FIXTURES_ROOT

FIXTURES = FIXTURES_ROOT / "clip"
HF_EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected_hf.json").read_text(encoding="utf-8"))
OPEN_EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected_openclip.json").read_text(encoding="utf-8"))
# The originals ran with other versions of torch; a tensor-based image processor misses by 0.01 in raw PickScore.
COSINE, RAW, PIXEL, BATCH = 1e-5, 1e-3, 1e-6, 5e-6


def images() -> list[Tensor]:
    """The fixture images as videos of one frame, [1, 3, 1, h, w] in [0, 1]; both files name the same images."""
    arrays = [np.array(Image.open(FIXTURES / "images" / name).convert("RGB")) for name in HF_EXPECTED["images"]]
    return [torch.from_numpy(array).permute(2, 0, 1)[None, :, None].float() / 255 for array in arrays]


def noise(b: int = 3, f: int = 13, side: int = 16) -> Tensor:
    """Videos of random pixels, always the same."""
    return torch.rand(b, 3, f, side, side, generator=torch.Generator().manual_seed(0))
