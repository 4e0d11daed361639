"""What CLIP-type scorers share: which frames of a video, how they become pixels, how a prompt becomes tokens.

None of the original image scorers defines a protocol for videos. Ours: 8 uniformly spaced frames (fewer if the video
is shorter; an image is a video of one frame), score each, take the mean.

Images are resized by PIL, as the original processors did: newer tensor-based processors differ by up to one grey
level, which moves a PickScore by about 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from bench.api import BenchError
from evaluators.common import read_json

#: Frames scored per video.
FRAMES = 8
#: PIL's number for bicubic, as preprocessor_config.json writes it.
BICUBIC = 3


@dataclass(frozen=True)
class ImageRule:
    """Shortest side to `size`, central square of `crop`, CLIP's mean and standard deviation."""

    size: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def constants(self) -> dict[str, str]:
        """For the fingerprint."""
        return {name: str(value) for name, value in asdict(self).items()} | {
            "resize": "PIL bicubic",
            "frames": str(FRAMES),
        }

    def pixels(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 crop crop"]:
        """Normalised pixels of frames."""
        images = torch.from_numpy(
            np.stack([self._square(image) for image in frames.permute(0, 2, 3, 1).cpu().numpy()])
        )
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def _square(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        height, width = image.shape[:2]
        short, long = min(height, width), max(height, width)
        if short != self.size:
            other = int(self.size * long / short)
            width, height = (self.size, other) if width <= height else (other, self.size)
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return image[top : top + self.crop, left : left + self.crop]


def read_image_rule(folder: Path, image_size: int) -> ImageRule:
    """`preprocessor_config.json` of a CLIP processor, refused where it asks for another kind of preprocessing."""
    path = folder / "preprocessor_config.json"
    config = read_json(path)
    steps = ("do_resize", "do_center_crop", "do_normalize")
    if (
        not all(config.get(step) for step in steps)
        or config.get("resample") != BICUBIC
        or config.get("do_rescale") is False
    ):
        raise BenchError(
            f"{path} asks for other steps than bicubic resize, centre crop and normalisation: use a CLIP processor."
        )
    try:
        size, crop = _side(config["size"], "shortest_edge"), _side(config["crop_size"], "height")
        rule = ImageRule(size, crop, tuple(config["image_mean"]), tuple(config["image_std"]))
    except (KeyError, TypeError) as error:
        raise BenchError(f"{path} lacks {error}: use a CLIP processor.") from None
    if crop != image_size or size < crop or len(rule.mean) != 3 or len(rule.std) != 3:
        raise BenchError(
            f"{path} makes images of {crop} pixels, the model takes {image_size}: use the processor of this model."
        )
    return rule


def _side(value: Any, key: str) -> int:
    """A size as older (a number) and newer (a mapping) files write it."""
    return int(value[key] if isinstance(value, dict) else value)


class ClipText:
    """CLIP's tokenizer: prompts are cut to the context length, the end token kept."""

    def __init__(self, folder: Path, context: int):
        """`context`: the text model's number of positions, 77 in CLIP."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BenchError(f"tokenizer file {path} is missing: use a complete CLIP processor folder.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BenchError(f"tokenizer file {path} cannot be read ({error}): fetch it again.") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._context = context

    def ids(self, prompt: str) -> tuple[list[int], bool]:
        """Token ids with start and end token, and whether the prompt was cut."""
        ids = list(self._tokenizer.encode(prompt).ids)
        if len(ids) <= self._context:
            return ids, False
        return [*ids[: self._context - 1], ids[-1]], True

    def batch(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b l"], list[bool]]:
        """Ids padded with the end token, and whether each prompt was cut; attention is causal and needs no mask."""
        rows = [self.ids(prompt) for prompt in prompts]
        length = max(len(ids) for ids, _ in rows)
        return torch.tensor([ids + ids[-1:] * (length - len(ids)) for ids, _ in rows]), [cut for _, cut in rows]
