"""Input of the CLIP evaluators: which frames of a video, their preprocessing, and the tokens of a prompt.

None of the original image models defines a protocol for videos. Programs that use them take the first frame, or the
mean over all. The protocol here, for CLIPScore, PickScore and HPSv2, is the mean over 8 uniformly spaced frames, both
ends included, each scored (all frames if the video is shorter; an image is a video of one frame).

For CLIPScore and PickScore, images are resized by PIL, as in the original processors. Newer processors, on tensors,
differ by up to one grey level, which changes a PickScore by about 0.01.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, pad

from bench.api import BenchError, read_json

FRAMES = 8
"""Frames scored per video."""
PROTOCOL = f"{FRAMES} uniform frames, both ends included, each scored; mean"
BICUBIC = 3
"""PIL's number for bicubic, as in the settings of a processor."""


@dataclass(frozen=True)
class ImageRule:
    """Resize the shortest side to `size`, crop the central square of `crop` pixels, normalise by `mean` and `std`."""

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
        top, left = self._offset(height - self.crop), self._offset(width - self.crop)
        return image[top : top + self.crop, left : left + self.crop]

    def _offset(self, spare: int) -> int:
        """First pixel of the crop, of `spare` pixels to remove; transformers rounds down."""
        return spare // 2


class TorchvisionRule(ImageRule):
    """The same as in torchvision, for the programs of OpenAI and open_clip: half a pixel of crop rounds to even."""

    def constants(self) -> dict[str, str]:
        return {**super().constants(), "crop_offset": "half to even", "protocol": PROTOCOL}

    def _offset(self, spare: int) -> int:
        return round(spare / 2)


class LetterboxRule(ImageRule):
    """HPSv2's preprocessing: resize the longer side to `size` and pad with black; nothing is cropped.

    The resize is bicubic on float pixels in [0, 1], not clamped. The original uses torchvision's default for
    antialiasing, which is off before version 0.17 and on since; here it is always on.
    """

    def constants(self) -> dict[str, str]:
        resize = {"resize": "letterbox, tensor bicubic, antialias", "protocol": PROTOCOL}
        return {name: value for name, value in super().constants().items() if name != "crop"} | resize

    def pixels(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 size size"]:
        """Normalised pixels of frames, each centred on black."""
        height, width = frames.shape[-2:]
        scale = self.size / max(height, width)
        new = round(height * scale), round(width * scale)
        if 0 in new:
            raise BenchError(f"frames of {height} x {width} shrink to nothing: pass videos of a usual shape.")
        images = frames.cpu().float() / 255
        if new != (height, width):
            images = interpolate(images, new, mode="bicubic", align_corners=False, antialias=True)
        top, left = (self.size - new[0]) // 2, (self.size - new[1]) // 2
        images = pad(images, (left, self.size - new[1] - left, top, self.size - new[0] - top))
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (images - mean) / std


def read_image_rule(folder: Path, image_size: int) -> ImageRule:
    """The rule of a CLIP processor's image settings; another kind of preprocessing is an error."""
    config, path = _image_settings(folder)
    steps = ("do_resize", "do_center_crop", "do_normalize")
    if (
        not all(config.get(step) for step in steps)
        or config.get("resample") != BICUBIC
        or config.get("do_rescale") is False
    ):
        raise BenchError(
            f"{path} has other steps than bicubic resize, centre crop and normalisation: use a CLIP processor."
        )
    try:
        size, crop = _side(config["size"], "shortest_edge"), _side(config["crop_size"], "height")
        mean, std = config["image_mean"], config["image_std"]
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path} lacks a valid {error}: use a CLIP processor.") from None
    if crop != image_size or size < crop:
        raise BenchError(
            f"{path} crops images to {crop} pixels, and the model needs {image_size}: use the processor of this model."
        )
    if not three_numbers(mean) or not three_numbers(std) or min(std) <= 0:
        raise BenchError(f"{path} needs an image_mean and a positive image_std of 3 numbers: use a CLIP processor.")
    return ImageRule(size, crop, tuple(mean), tuple(std))


def three_numbers(value: Any) -> bool:
    """Whether a value of a JSON file is a list of three finite numbers."""
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    return numbers and len(value) == 3


def _image_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """The settings, and their file: preprocessor_config.json, or processor_config.json as transformers 5 writes it."""
    path, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if path.is_file() or not newer.is_file():
        return read_json(path), path
    config = read_json(newer).get("image_processor")
    if not isinstance(config, dict):
        raise BenchError(f"{newer} has no image_processor: use a CLIP processor.")
    return config, newer


def _side(value: Any, key: str) -> int:
    """A size, which older files write as a number and newer files as a mapping."""
    return int(value[key] if isinstance(value, dict) else value)


class ClipText:
    """CLIP's tokenizer: a prompt is cut to the context length and keeps its end token."""

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
        self._special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        self.context = context

    def ids(self, prompt: str) -> tuple[list[int], int]:
        """Token ids with start and end token, and their number before the cut."""
        special = next((token for token in self._special if token in prompt), None)
        if special is not None:
            raise BenchError(
                f"prompt {prompt[:60]!r} holds CLIP's special token {special!r}, which would end the text: reword it."
            )
        ids = list(self._tokenizer.encode(prompt).ids)
        return ids if len(ids) <= self.context else [*ids[: self.context - 1], ids[-1]], len(ids)

    def batch(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b l"], list[int]]:
        """Ids padded with the end token, and the number of tokens of each prompt before the cut.

        Attention is causal, so the padding needs no mask.
        """
        rows = [self.ids(prompt) for prompt in prompts]
        length = max(len(ids) for ids, _ in rows)
        return torch.tensor([ids + ids[-1:] * (length - len(ids)) for ids, _ in rows]), [count for _, count in rows]
