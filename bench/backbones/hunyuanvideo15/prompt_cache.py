"""States of prompts, each encoded once: the text encoders may leave memory in between, and a file may keep the states.

At full size the encoders hold 7.3e9 parameters, nearly as many as the transformer, and are needed for seconds only.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.backbones.hunyuanvideo15.text_encoders import TextEncoders

EMPTY = ""
"""The unconditional branch's prompt."""


class PromptStates:
    """Prompt to its text states [length, dim] and glyph states [length, dim], kept from the first call on.

    `keep` holds the encoders in memory from the start. Otherwise they are loaded for prompts that are new, encode
    these and the empty prompt together, and are freed; the states then wait in CPU memory. `cache` is a folder of
    files, one for each list of new prompts under one `key` (fingerprint of the encoders and their dtype).
    """

    def __init__(self, load: Callable[[], TextEncoders], keep: bool, cache: Path | None, key: Callable[[], str]):
        self._load, self._keep, self._cache, self._key = load, keep, cache, key
        self._encoders = load() if keep else None
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def encoders(self) -> TextEncoders:
        """Both encoders, loaded now if they are not in memory."""
        return self._encoders if self._encoders is not None else self._load()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt alone, so they depend on nothing else in the batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new and not self._keep and EMPTY not in self._known:
            new = list(dict.fromkeys([*new, EMPTY]))
        if new:
            found = self._stored(new)
            self._known |= dict(zip(new, zip(found.text, found.glyph, strict=True), strict=True))
        pairs = [self._known[prompt] for prompt in prompts]
        return Conditioning([text for text, _ in pairs], [glyph for _, glyph in pairs])

    def _stored(self, prompts: list[str]) -> Conditioning:
        """From the cache's file of exactly these prompts, which is written if there is none."""
        if self._cache is None:
            return self._fresh(prompts)
        names = json.dumps({"encoders": self._key(), "prompts": prompts})
        path = self._cache / f"prompts-{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors"
        if path.is_file():
            return _read(path, names, len(prompts))
        states = self._fresh(prompts)
        _write(path, names, states)
        return states

    def _fresh(self, prompts: list[str]) -> Conditioning:
        if self._encoders is not None:
            return self._encoders.encode(prompts)
        encoders = self._load()
        text, glyph = encoders.encode(prompts)
        states = Conditioning([state.cpu() for state in text], [state.cpu() for state in glyph])
        del encoders, text, glyph
        gc.collect()  # modules refer to themselves: memory comes back now, not at some later collection
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return states


def _read(path: Path, names: str, count: int) -> Conditioning:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get("names")
            kinds = ([file.get_tensor(f"{kind}.{i}") for i in range(count)] for kind in ("text", "glyph"))
            text, glyph = kinds
    except (OSError, SafetensorError) as cause:
        raise BenchError(f"prompt states {path} cannot be read ({cause}): delete the file.") from cause
    if stored != names:
        raise BenchError(f"prompt states {path} belong to other prompts or encoders: delete the file.")
    return Conditioning(text, glyph)


def _write(path: Path, names: str, states: Conditioning) -> None:
    """Written aside and renamed, so that a reader sees a whole file or none."""
    from safetensors.torch import save_file

    tensors = {
        f"{kind}.{i}": state.contiguous()
        for kind, rows in (("text", states.text), ("glyph", states.glyph))
        for i, state in enumerate(rows)
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # a pid may be another node's too
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"format": "pt", "names": names})
        os.replace(temporary, path)
    except OSError as cause:
        raise BenchError(
            f"prompt states {path} cannot be written ({cause.strerror}): choose another backbone.train.text_cache."
        ) from cause
    finally:
        temporary.unlink(missing_ok=True)
