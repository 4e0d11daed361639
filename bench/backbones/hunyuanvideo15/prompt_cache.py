"""Text states of prompts, each computed once: in memory, and in files if the suite sets a cache.

At full size the text encoders have 7.3e9 parameters, nearly as many as the transformer, and run for seconds only, so
they may be freed after use.
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
    """Text states [length, dim] and glyph states [length, dim] by prompt, stored from the first call on.

    With `keep`, the encoders stay in memory from the start. Otherwise they are loaded for new prompts, encode these
    and the empty prompt, and are freed; the states are then stored on the CPU. `cache` is a folder with one file for
    each list of new prompts and each `key` (fingerprint of the encoders and their dtype).
    """

    def __init__(self, load: Callable[[], TextEncoders], keep: bool, cache: Path | None, key: Callable[[], str]):
        self._load, self._keep, self._cache, self._key = load, keep, cache, key
        self._encoders = load() if keep else None
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    @property
    def encoders(self) -> TextEncoders:
        """Both encoders; loaded for this call if they are not resident."""
        return self._encoders if self._encoders is not None else self._load()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt, encoded alone: they do not depend on the batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new and not self._keep and EMPTY not in self._known:
            new = list(dict.fromkeys([*new, EMPTY]))
        if new:
            states = self._stored(new)
            self._known |= dict(zip(new, zip(states.text, states.more["glyph"], strict=True), strict=True))
        pairs = [self._known[prompt] for prompt in prompts]
        return Conditioning([text for text, _ in pairs], {"glyph": [glyph for _, glyph in pairs]})

    def _stored(self, prompts: list[str]) -> Conditioning:
        """From the cache's file of exactly these prompts, which is written if it does not exist."""
        if self._cache is None:
            return self._encoded(prompts)
        names = json.dumps({"encoders": self._key(), "prompts": prompts})
        path = self._cache / f"prompts-{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors"
        if path.is_file():
            return _read(path, names, len(prompts))
        states = self._encoded(prompts)
        _write(path, names, states)
        return states

    def _encoded(self, prompts: list[str]) -> Conditioning:
        if self._encoders is not None:
            return self._encoders.encode(prompts)
        encoders = self._load()
        encoded = encoders.encode(prompts)
        glyph = [state.cpu() for state in encoded.more["glyph"]]
        states = Conditioning([state.cpu() for state in encoded.text], {"glyph": glyph})
        del encoders, encoded
        gc.collect()  # modules are in reference cycles: without this, memory is freed at some later collection
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
    return Conditioning(text, {"glyph": glyph})


def _write(path: Path, names: str, states: Conditioning) -> None:
    """Write a temporary file and rename it, so that a reader never opens an incomplete one."""
    from safetensors.torch import save_file

    tensors = {
        f"{kind}.{i}": state.contiguous()
        for kind, rows in (("text", states.text), ("glyph", states.more["glyph"]))
        for i, state in enumerate(rows)
    }
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # a process id is not unique over nodes
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
