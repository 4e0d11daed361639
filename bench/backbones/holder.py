"""The policy of a backbone: what the harness asks of it goes on to the trained weights, their anchors and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones import fsdp
from bench.backbones.export import exported_files
from bench.backbones.lora_files import read_lora, running_lora


class Policy(Protocol):
    """The trained weights and their references. The backbone forwards the harness's calls to it."""

    def reset(self, rng: torch.Generator) -> None: ...
    def parameters(self) -> list[torch.nn.Parameter]: ...
    def refresh_anchor(self, name: str) -> None: ...
    def blend_anchor(self, name: str, decay: float) -> None: ...
    def as_anchor(self, name: str) -> AbstractContextManager[None]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def settings(self) -> dict[str, Any]: ...


class HoldsPolicy:
    """A backbone whose trained weights and anchors are a `Policy`."""

    blocks: ClassVar[str]
    """Name of the transformer's list of blocks."""
    lora_prefix: ClassVar[str] = ""
    """Start of the keys of an exported LoRA."""

    folder: Path
    device: torch.device
    transformer: Any
    policy: Policy
    lora_in_base_dtype: bool
    """Whether products of a LoRA are computed in the type of the base."""

    def reset(self, rng: torch.Generator) -> None:
        """A fresh policy, equal to the base, drawn from `rng` only."""
        self.policy.reset(rng)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights, in a fixed order."""
        return self.policy.parameters()

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which the first refresh creates."""
        self.policy.refresh_anchor(name)

    def blend_anchor(self, name: str, decay: float) -> None:
        """Make each weight of the anchor decay * anchor + (1 - decay) * policy."""
        self.policy.blend_anchor(name, decay)

    def as_anchor(self, name: str) -> AbstractContextManager[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        It changes neither a graph recorded before nor a backward pass after it.
        """
        return self.policy.as_anchor(name)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and its stored anchors, as "<name>:<weight>"."""
        return self.policy.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the policy and the anchors of `state`, bit for bit; `BenchError` for other weights."""
        self.policy.load_state_dict(state)

    def stored(self, tensor: Tensor) -> Tensor:
        """A full copy of a tensor that is sharded as the weights are: on process 0, elsewhere without data (meta)."""
        return fsdp.stored(tensor)

    def part_of(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's shard of `whole`, sharded as the weight `like` is."""
        return fsdp.part_of(whole, like)

    @classmethod
    def export_policy(
        cls, policy: Mapping[str, Tensor], fingerprint: Mapping[str, str], checkpoint: Path | None
    ) -> dict[str, bytes]:
        """Files for diffusers and peft (`export`)."""
        settings = json.loads(fingerprint.get("settings", "{}"))
        if "r" not in settings or checkpoint is None:
            raise BenchError("its record contains no LoRA rank, so its policy cannot be exported.")
        return exported_files(policy, settings, checkpoint, cls.blocks, cls.lora_prefix)

    @classmethod
    def check_policy_file(cls, path: Path, checkpoint: Path | None) -> Mapping[str, Any]:
        """Layout, layers, ranks and alphas of a LoRA of another program (`bench.backbones.lora_files`)."""
        assert checkpoint is not None, "the class needs one, so that a suite without it is refused before"
        return read_lora(path, checkpoint / "transformer").facts()

    def as_policy_file(self, path: Path) -> AbstractContextManager[None]:
        """Run with a LoRA of another program, in float32, in place of the policy."""
        return running_lora(
            self.transformer, self.device, read_lora(path, self.folder / "transformer"), self.lora_in_base_dtype
        )
