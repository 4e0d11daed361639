"""Text conditioning of HunyuanVideo-1.5: Qwen2.5-VL states of the prompt and ByT5 states of the text in quotes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.api import BenchError, Conditioning

SKIPPED_LAYERS = 2
"""The states are `hidden_states[-3]`, before the last two layers, as in Tencent's sampler and diffusers' pipeline."""
MAX_TEXT_TOKENS = 1000
MAX_GLYPH_TOKENS = 256


def system_message() -> str:
    """The fixed system message, read from the installed diffusers pipeline. Its repeated blanks matter."""
    from diffusers import HunyuanVideo15Pipeline

    default = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
    return str(default)


def quoted_text(prompt: str) -> str | None:
    """Input of the glyph encoder: each quoted text once, or None if the prompt has no quotes."""
    from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import extract_glyph_texts

    quoted: str | None = extract_glyph_texts(prompt)
    return quoted


@dataclass(frozen=True, eq=False)
class TextEncoders:
    """Both encoders with their tokenizers. States hold valid tokens only: no padding, no mask."""

    encoder: Any
    tokenizer: Any
    glyph_encoder: Any
    glyph_tokenizer: Any

    @cached_property
    def message(self) -> str:
        return system_message()

    def _chat(self, prompt: str) -> str:
        turns = [{"role": "system", "content": self.message}, {"role": "user", "content": prompt or " "}]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    @cached_property
    def crop(self) -> int:
        """Tokens before the prompt (system turn and user marker): 108 under the official tokenizer."""
        marker = "0MARK0"
        before, match, _ = self._chat(marker).partition(marker)
        if not match:
            raise BenchError(
                "the text tokenizer's chat template drops the user's text: use the checkpoint's own tokenizer folder."
            )
        return len(self.tokenizer(before, add_special_tokens=False).input_ids)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt, encoded alone: they do not depend on the batch.

        The stream "glyph" has the states of the glyph encoder, of length 0 where a prompt quotes no text.
        """
        text, glyph = [], []
        for prompt in prompts:
            self._refuse_special(prompt)
            ids = self.tokenizer(self._chat(prompt), add_special_tokens=False, return_tensors="pt").input_ids
            if ids.shape[1] > self.crop + MAX_TEXT_TOKENS:
                raise BenchError(
                    f"prompt {prompt[:40]!r} has {ids.shape[1] - self.crop} tokens, "
                    f"the model accepts {MAX_TEXT_TOKENS}: shorten it."
                )
            states = self.encoder(input_ids=ids.to(self.encoder.device), output_hidden_states=True).hidden_states
            text.append(states[-(SKIPPED_LAYERS + 1)][0, self.crop :])
            glyph.append(self._glyph(prompt))
        return Conditioning(text, {"glyph": glyph})

    def _refuse_special(self, prompt: str) -> None:
        special = [token for token in self.tokenizer.all_special_tokens if token in prompt]
        if special:
            raise BenchError(
                f"prompt {prompt[:60]!r} holds the special token {special[0]!r}, which breaks the chat: remove it."
            )

    def _glyph(self, prompt: str) -> Tensor:
        quoted = quoted_text(prompt)
        if quoted is None:
            encoder = self.glyph_encoder
            return torch.zeros(0, encoder.config.d_model, dtype=encoder.dtype, device=encoder.device)
        tokens = self.glyph_tokenizer(quoted, max_length=MAX_GLYPH_TOKENS, truncation=True, return_tensors="pt")
        ids = tokens.input_ids.to(self.glyph_encoder.device)
        states: Tensor = self.glyph_encoder(input_ids=ids, attention_mask=torch.ones_like(ids).float())[0][0]
        return states
