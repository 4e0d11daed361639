"""Input of VideoReward: which frames, their size, their patches, and the evaluation text.

The rules are those of the model's training code (KlingTeam/VideoAlign and the qwen-vl-utils of its pins).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from string import Formatter

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from bench.api import BenchError
from evaluators.common import CLIP_MEAN, CLIP_STD

PATCH, TEMPORAL, MERGE = 14, 2, 2
FACTOR = PATCH * MERGE
"""A frame's sides are multiples of this: one merged token covers 28 x 28 pixels and two frames."""
MIN_FRAME_PIXELS = 128 * FACTOR * FACTOR
"""Smallest area of a frame in pixels: smaller ones are enlarged (the default of Qwen's video reader)."""
MIN_FRAMES, MAX_FRAMES, MAX_ASPECT = 4, 768, 200

REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
VIDEO_TOKEN = "<|video_pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
FIELDS = ("text_prompt", "prompt")


def frame_count(total: int, fps: float, sample_fps: float | None, num_frames: int | None) -> int:
    """Number of sampled frames: even, about `sample_fps` per second, at least 4 if the video has as many.

    `num_frames` replaces the rate. The upper limit is applied after the lower one. The number of pairs is rounded half
    to even (2.5 pairs are 2 pairs).
    """
    if num_frames is not None:
        count = TEMPORAL * round(num_frames / TEMPORAL)
    else:
        assert sample_fps is not None
        most = min(MAX_FRAMES, total) // TEMPORAL * TEMPORAL
        count = TEMPORAL * round(min(max(total / fps * sample_fps, MIN_FRAMES), most) / TEMPORAL)
        count = min(count, total)
    if not TEMPORAL <= count <= total:
        raise BenchError(
            f"VideoReward would sample {count} of {total} frames: it needs at least {TEMPORAL} frames per video "
            "(an image cannot be scored) and no more than the video has."
        )
    return count


def frame_size(height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width after resizing: multiples of 28, area within the limits, aspect ratio nearly kept."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BenchError(
            f"a frame of {height} x {width} pixels is too narrow: aspect ratios up to {MAX_ASPECT} are supported."
        )
    new_height, new_width = (max(FACTOR, FACTOR * round(side / FACTOR)) for side in (height, width))
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height, new_width = (FACTOR * math.floor(side / shrink / FACTOR) for side in (height, width))
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height, new_width = (FACTOR * math.ceil(side * grow / FACTOR) for side in (height, width))
    if not (new_height and new_width):
        raise BenchError(
            f"a frame of {height} x {width} pixels shrinks to nothing at {max_pixels} pixels: raise max_frame_pixels."
        )
    return new_height, new_width


def resize(frames: UInt8[Tensor, "n 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "n 3 H W"]:
    """Bicubic with antialiasing, rounded back to 256 levels (torchvision's resize of uint8 tensors)."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    return interpolate(frames.float(), size, mode="bicubic", antialias=True).clamp(0, 255).round().to(torch.uint8)


def patches(frames: UInt8[Tensor, "b n 3 H W"]) -> Float[Tensor, "b p 1176"]:
    """Normalised pixels in Qwen2-VL's order: frame pairs, then 2 x 2 blocks of 14 x 14 patches; n is even."""
    b, n, _, height, width = frames.shape
    mean, std = (frames.new_tensor(c, dtype=torch.float32).view(3, 1, 1) for c in (CLIP_MEAN, CLIP_STD))
    pixels = (frames.float() / 255 - mean) / std
    rows, columns = height // FACTOR, width // FACTOR
    pixels = pixels.view(b, n // TEMPORAL, TEMPORAL, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    pixels = pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return pixels.reshape(b, n // TEMPORAL * rows * columns * MERGE**2, 3 * TEMPORAL * PATCH**2)


class Text:
    """The evaluation text around a prompt, as token ids.

    `tokenizer.json` is read without change, so ids do not depend on how a library version rebuilds the tokenizer.
    """

    def __init__(self, template: str, tokenizer_file: Path, template_file: Path):
        """`template`: text with one field for the prompt; `template_file`: its file, for messages."""
        from tokenizers import AddedToken, Tokenizer

        if not tokenizer_file.is_file():
            raise BenchError(f"tokenizer file {tokenizer_file} is missing: add the checkpoint's tokenizer folder.")
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # the library raises bare Exception
            raise BenchError(f"tokenizer file {tokenizer_file} cannot be read ({error}): fetch it again.") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in REWARD_TOKENS])
        self.added = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]
        self.template, self.field = template, _field(template, template_file)
        missing = [token for token in (VIDEO_TOKEN, *CHAT_TOKENS) if token not in self.added]
        if missing:
            raise BenchError(f"tokenizer file {tokenizer_file} has no token {missing[0]}: use a Qwen2-VL tokenizer.")
        self.video_id, *self.reward_ids = (self._id(token) for token in (VIDEO_TOKEN, *REWARD_TOKENS))
        self._ids = lru_cache(maxsize=4096)(self._encode)

    def _id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        assert number is not None
        if number >= self.size:
            raise BenchError(
                f"token {token} has the id {number} and the tokenizer {self.size} tokens, so the token has no "
                "embedding: use the tokenizer that came with the checkpoint."
            )
        return int(number)

    @property
    def size(self) -> int:
        """Number of tokens, the added ones included."""
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def chat(self, prompt: str) -> str:
        """Qwen's chat format: default system message, one user turn with the video and the text, an open answer."""
        return (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|vision_start|>{VIDEO_TOKEN}<|vision_end|>{self.template.format(**{self.field: prompt})}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def ids(self, prompt: str) -> list[int]:
        """Token ids with a single token for the video."""
        return list(self._ids(prompt))

    def _encode(self, prompt: str) -> tuple[int, ...]:
        inside = next((token for token in self.added if token in prompt), None)
        if inside is not None:
            raise BenchError(
                f"the prompt {prompt!r} contains the special token {inside}, which changes what is scored: remove it."
            )
        ids = tuple(self.tokenizer.encode(self.chat(prompt)).ids)
        counts = [ids.count(token) for token in (*self.reward_ids, self.video_id)]
        if counts != [1, 1, 1, 1]:
            raise BenchError(
                f"the evaluation text has {counts[:3]} of the tokens {', '.join(REWARD_TOKENS)} and {counts[3]} "
                "video tokens: change the template so that each occurs once."
            )
        return ids

    def batch(self, prompts: Sequence[str], video_tokens: int) -> tuple[Int[Tensor, "b l"], Int[Tensor, "b 3"]]:
        """Ids with `video_tokens` tokens per video, padded on the right, and the positions of VQ, MQ and TA.

        Attention is causal and every reward token precedes the padding, so the padding needs no mask.
        """
        rows = []
        for prompt in prompts:
            ids = self.ids(prompt)
            at = ids.index(self.video_id)
            rows.append([*ids[:at], *[self.video_id] * video_tokens, *ids[at + 1 :]])
        length = max(len(row) for row in rows)
        positions = [[row.index(token) for token in self.reward_ids] for row in rows]
        pad = next(i for i in range(self.size) if i != self.video_id and i not in self.reward_ids)
        return torch.tensor([row + [pad] * (length - len(row)) for row in rows]), torch.tensor(positions)


def read_template(path: Path) -> str:
    """The template byte for byte: blanks are not stripped. A byte-order mark or carriage returns are an error.

    They come from an editor or a checkout under Windows, and would change the scores.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise BenchError(
            f"prompt template {path} is missing: store the text that the checkpoint was trained with there, "
            "or name its file with prompt_template=."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"prompt template {path} cannot be read as UTF-8 ({error}): fetch it again.") from None
    for character, name in (("\ufeff", "a byte-order mark"), ("\r", "carriage returns"), ("\0", "a NUL character")):
        if character in text:
            raise BenchError(
                f"prompt template {path} holds {name}, which would change the scores: fetch it again, or save it as "
                "plain UTF-8 with newlines."
            )
    return text


def _field(template: str, file: Path) -> str:
    """Name of the template's only field, which must be between MQ and TA, so that VQ and MQ do not depend on it."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise BenchError(
            f"prompt template {file} is not a format string ({error}): double its literal braces."
        ) from None
    fields = [name for _, name, _, _ in parts if name is not None]
    altered = [name for _, name, layout, conversion in parts if layout or conversion]
    if len(fields) != 1 or fields[0] not in FIELDS or altered:
        raise BenchError(f"prompt template {file} has the fields {fields}: it needs exactly one, {{text_prompt}}.")
    vq, mq, ta = (template.find(token) for token in REWARD_TOKENS)
    counts = [template.count(token) for token in REWARD_TOKENS]
    if counts != [1, 1, 1] or not vq < mq < template.find("{" + fields[0]) < ta:
        raise BenchError(
            f"prompt template {file} is out of order: it must contain {REWARD_TOKENS[0]}, {REWARD_TOKENS[1]}, "
            f"{{{fields[0]}}} and {REWARD_TOKENS[2]}, once each and in this order."
        )
    return fields[0]
