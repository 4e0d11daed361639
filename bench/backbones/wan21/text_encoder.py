"""Text conditioning of Wan2.1: UMT5 states of the cleaned prompt."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ftfy
import torch
from torch import Tensor

from bench.api import BenchError, Conditioning


def clean(prompt: str) -> str:
    """The prompt as the released pipeline reads it: broken UTF-8 and HTML entities resolved, white space single."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text.strip()).strip()


@dataclass(frozen=True, eq=False)
class UMT5:
    """The encoder with its tokenizer. States hold valid tokens only: no padding, no mask."""

    encoder: Any
    tokenizer: Any
    """`tokenizers.Tokenizer`, as tokenizer.json has it. transformers 5 would build another one from the vocabulary."""
    longest: int
    """Tokens that a prompt may have, with the final </s>."""

    @cached_property
    def _special(self) -> list[str]:
        """Added tokens, which a prompt may not contain."""
        return [token.content for _, token in sorted(self.tokenizer.get_added_tokens_decoder().items())]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States [tokens, d] of each prompt, encoded alone: they do not depend on the batch."""
        return Conditioning([self._states(prompt) for prompt in prompts])

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the cleaned prompt, with the final </s>."""
        text = clean(prompt)
        special = [token for token in self._special if token in text]
        if special:
            raise BenchError(
                f"prompt {prompt[:60]!r} holds the special token {special[0]!r} of the tokenizer: remove it."
            )
        ids: list[int] = self.tokenizer.encode(text).ids
        if len(ids) > self.longest:
            raise BenchError(
                f"prompt {prompt[:40]!r} has {len(ids)} tokens, the model accepts {self.longest}: shorten it."
            )
        return ids

    def _states(self, prompt: str) -> Tensor:
        ids = torch.tensor([self.ids(prompt)], device=self.encoder.device)
        states: Tensor = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return states[0]
