"""Text states of prompts, each computed once: in memory, and in files if the suite sets a cache.

Shared by the backbones. At full size text encoders have nearly as many parameters as the transformer or more, and run
for seconds only, so they may be freed after use.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from bench.api import BenchError, Conditioning

TEXT = "text"
"""Name of the stream `Conditioning.text` in a file; those of `Conditioning.more` have their own."""


class Encoders(Protocol):
    """The text encoders of a model, with their tokenizers."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt, encoded alone."""
        ...


Loaded = TypeVar("Loaded", bound=Encoders)


class PromptStates(Generic[Loaded]):
    """The conditioning of prompts, stored from the first call on.

    With `keep`, the encoders stay in memory from the start. Otherwise they are loaded for new prompts, encode these
    and `unconditional`, the prompt of the unconditional branch, and are freed; the states are then stored on the CPU.
    `cache` is a folder with one file for each list of new prompts and each `key` (fingerprint of the encoders and
    their dtype).
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        *,
        unconditional: str,
        keep: bool,
        cache: Path | None,
        key: Callable[[], str],
    ):
        self._load, self._unconditional = load, unconditional
        self._keep, self._cache, self._key = keep, cache, key
        self._encoders = load() if keep else None
        self._known: dict[str, dict[str, Tensor]] = {}

    @property
    def encoders(self) -> Loaded:
        """The encoders; loaded for this call if they are not resident."""
        return self._encoders if self._encoders is not None else self._load()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States of each prompt, encoded alone: they do not depend on the batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new and not self._keep and self._unconditional not in self._known:
            new = list(dict.fromkeys([*new, self._unconditional]))
        if new:
            streams = _streams(self._stored(new))
            for i, prompt in enumerate(new):
                self._known[prompt] = {name: states[i] for name, states in streams.items()}
        return _conditioning([self._known[prompt] for prompt in prompts])

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
        more = {name: [state.cpu() for state in states] for name, states in encoded.more.items()}
        states = Conditioning([state.cpu() for state in encoded.text], more)
        del encoders, encoded
        gc.collect()  # modules are in reference cycles: without this, memory is freed at some later collection
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return states


def _streams(states: Conditioning) -> dict[str, list[Tensor]]:
    """All streams by name."""
    return {TEXT: states.text, **states.more}


def _conditioning(rows: Sequence[Mapping[str, Tensor]]) -> Conditioning:
    """The conditioning of prompts from their streams by name."""
    names = [name for name in (rows[0] if rows else ()) if name != TEXT]
    return Conditioning([row[TEXT] for row in rows], {name: [row[name] for row in rows] for name in names})


def _read(path: Path, names: str, count: int) -> Conditioning:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get("names")
            streams = [TEXT, *sorted({key.rpartition(".")[0] for key in file.keys()} - {TEXT})]  # noqa: SIM118
            rows = [{name: file.get_tensor(f"{name}.{i}") for name in streams} for i in range(count)]
    except (OSError, SafetensorError) as cause:
        raise BenchError(f"prompt states {path} cannot be read ({cause}): delete the file.") from cause
    if stored != names:
        raise BenchError(f"prompt states {path} belong to other prompts or encoders: delete the file.")
    return _conditioning(rows)


def _write(path: Path, names: str, states: Conditioning) -> None:
    """Write a temporary file and rename it, so that a reader never opens an incomplete one."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{i}": state.contiguous() for name, rows in _streams(states).items() for i, state in enumerate(rows)
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
