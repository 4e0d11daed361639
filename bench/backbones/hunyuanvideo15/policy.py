"""What is trained of the transformer, and its references: LoRA adapters on one frozen base, or all weights.

The last block's text output goes nowhere, so what only makes it (`dead_ends`) never gets a gradient. Full training
leaves these weights out. LoRA keeps its matrices there, so that an adapter has the same layers in every block: those
of `to_add_out` and `ff_context` get none (None), those of `add_q_proj` get zeros; the velocity depends on neither.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.api import BenchError
from bench.backbones.hunyuanvideo15 import fsdp as shards

POLICY = "policy"
_ATTENTION = r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_FEED_FORWARD = r"(ff|ff_context)\.net\.(0\.proj|2)"
LORA_TARGETS = {"attention": _ATTENTION, "attention+ff": f"({_ATTENTION}|{_FEED_FORWARD})"}
"""Layers of the joint blocks, both streams.

Bare names such as `to_q` would also hit the text refiner, hence the pattern.
"""
UNTRAINED = ("image_embedder.", "context_embedder_2.")
"""Streams that text to video without quoted text leaves empty: image features and glyphs."""


def gradient_free_layers(transformer: Any) -> re.Pattern[str]:
    """Names of the last block's weights that make its text output only, which nothing reads."""
    last = len(transformer.transformer_blocks) - 1
    return re.compile(rf"transformer_blocks\.{last}\.(attn\.(add_q_proj|norm_added_q|to_add_out)|ff_context)\.")


class Policy(Protocol):
    """The trained weights and their references; the backbone hands these calls of the harness on."""

    def reset(self, rng: torch.Generator) -> None: ...
    def parameters(self) -> list[torch.nn.Parameter]: ...
    def refresh_anchor(self, name: str) -> None: ...
    def as_anchor(self, name: str) -> AbstractContextManager[None]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def settings(self) -> dict[str, Any]: ...


class LoRAPolicy:
    """LoRA adapters in float32 on one frozen base: the policy and one for each stored anchor; the base is the rest."""

    def __init__(self, transformer: Any, device: torch.device, rank: int, alpha: int, targets: str):
        if targets not in LORA_TARGETS:
            raise BenchError(f"lora_targets is {targets!r}: choose one of {', '.join(LORA_TARGETS)}.")
        self.transformer, self.device = transformer, device
        self._lora: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "pattern": LORA_TARGETS[targets]}
        self._add(POLICY)

    def settings(self) -> dict[str, Any]:
        """Rank, alpha and the pattern of the layers, for the fingerprint and for `bench export`."""
        return dict(self._lora)

    def _add(self, name: str) -> None:
        """An adapter equal to the base; `reset` and `refresh_anchor` give it its weights."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self._lora["r"],
            lora_alpha=self._lora["lora_alpha"],
            target_modules=rf"transformer_blocks\.\d+\.{self._lora['pattern']}",
            init_lora_weights=True,
        )
        # peft draws from the global generator (`reset` overwrites what it drew) and warns of any second adapter
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
            self.transformer.add_adapter(config, adapter_name=name)
        for parameter in self.adapter(name).values():
            # peft makes them in the base's dtype; bfloat16 would lose updates
            parameter.data = parameter.data.to(self.device, torch.float32)
        if name != POLICY:
            self.transformer.set_adapter(POLICY)

    def reset(self, rng: torch.Generator) -> None:
        """Fresh policy from `rng` only: B zero, A uniform as in peft (Kaiming, a = sqrt 5: bound 1 / sqrt(inputs))."""
        with torch.no_grad():
            for name, parameter in self.adapter(POLICY).items():
                if "lora_A" in name:
                    bound = 1 / math.sqrt(parameter.shape[1])
                    drawn = (torch.rand(parameter.shape, generator=rng) * 2 - 1) * bound
                    parameter.copy_(shards.part_of(drawn, parameter))
                else:
                    parameter.zero_()

    def adapter(self, name: str) -> dict[str, torch.nn.Parameter]:
        """Weights of one adapter by their name without the adapter's own."""
        mark = f".{name}."
        return {
            key.replace(mark, "."): p
            for key, p in self.transformer.named_parameters()
            if "lora_" in key and mark in key
        }

    def adapters(self) -> list[str]:
        """Names of all adapters, the policy first."""
        return list(self.transformer.peft_config)

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained: the policy's LoRA weights, in a fixed order."""
        return list(self.adapter(POLICY).values())

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which comes into being on its first refresh."""
        if name not in self.adapters():
            self._add(name)
        with torch.no_grad():
            for anchor, policy in zip(self.adapter(name).values(), self.parameters(), strict=True):
                anchor.copy_(shards.full_tensor(policy))

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        Switches attributes only, so `requires_grad` of the policy stays as it is (peft's own switch clears it,
        and a backward pass after it would silently give the policy no gradient).
        """
        from peft.tuners.lora import LoraLayer

        layers = [module for module in self.transformer.modules() if isinstance(module, LoraLayer)]
        stored = name in self.adapters()
        before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
        for layer in layers:
            if stored:
                layer._active_adapter = [name]
            else:
                layer._disable_adapters = True
        try:
            with torch.no_grad():
                yield
        finally:
            for layer, (active, disabled) in zip(layers, before, strict=True):
                layer._active_adapter, layer._disable_adapters = active, disabled

    def state_dict(self) -> dict[str, Tensor]:
        """All adapters, as "<adapter>:<weight>"."""
        return {f"{name}:{key}": shards.stored(p) for name in self.adapters() for key, p in self.adapter(name).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The adapters of `state` and no others; other ranks or layers are refused, and nothing is changed."""
        own = {key: p.shape for key, p in self.adapter(POLICY).items()}
        names = list(dict.fromkeys(key.partition(":")[0] for key in state))
        wanted = {f"{name}:{key}": shape for name in names for key, shape in own.items()}
        if {key: tensor.shape for key, tensor in state.items()} != wanted or POLICY not in names:
            ranks = sorted({len(tensor) for key, tensor in state.items() if "lora_A" in key})
            there = f"rank {', '.join(map(str, ranks))}" if ranks else "no LoRA weights"
            raise BenchError(
                f"a stored policy has other LoRA weights than this suite's backbone ({there} there, rank "
                f"{self._lora['r']} here): give backbone.train the lora_rank and lora_targets it was trained with."
            )
        for name in set(self.adapters()) - set(names):
            self.transformer.delete_adapters(name)
        for name in names:
            if name not in self.adapters():
                self._add(name)
        with torch.no_grad():
            for name in names:
                for key, parameter in self.adapter(name).items():
                    parameter.copy_(shards.part_of(state[f"{name}:{key}"], parameter))


class FullPolicy:
    """All of the transformer's weights except `UNTRAINED` and `dead_ends`; anchors and the base are copies of them.

    `anchor_device` holds the copies; a reference's weights then visit the transformer's device while it runs.
    """

    def __init__(self, transformer: Any, anchor_device: torch.device):
        if transformer.dtype != torch.float32:
            raise BenchError(
                f"backbone.train.lora_rank 0 trains all weights, and {str(transformer.dtype).removeprefix('torch.')} "
                "weights lose small updates to rounding: set backbone.train.dtype to float32."
            )
        dead = gradient_free_layers(transformer)
        self._trained = {
            name: p
            for name, p in transformer.named_parameters()
            if not name.startswith(UNTRAINED) and not dead.match(name)
        }
        for p in self._trained.values():
            p.requires_grad_(True)
        self._transformer, self._anchor_device = transformer, anchor_device
        self._base = self._copy()
        self._anchors: dict[str, dict[str, Tensor]] = {}

    def settings(self) -> dict[str, Any]:
        return {"r": 0, "untrained": [*UNTRAINED, "last block's text output"]}

    def _copy(self) -> dict[str, Tensor]:
        """Of what this process holds of the weights."""
        return {name: shards.local(p).to(self._anchor_device, copy=True) for name, p in self._trained.items()}

    def reset(self, rng: torch.Generator) -> None:
        """The base again; nothing is drawn from `rng`."""
        self._set(self._base)

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        shards.release(self._transformer)
        with torch.no_grad():
            for name, p in self._trained.items():
                shards.local(p).copy_(weights[name])

    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained, in a fixed order."""
        return list(self._trained.values())

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`."""
        self._anchors[name] = self._copy()

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        """Run with the weights of a copy: the base ("fixed", or an anchor never refreshed) or a stored policy.

        The policy's own tensors are put aside, not overwritten: a graph made before still gives exact gradients.
        """
        weights = self._anchors.get(name, self._base)
        how = self._exchanged if shards.is_sharded(self._transformer) else self._replaced
        with how(weights), torch.no_grad():
            yield

    @contextmanager
    def _replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        before = {key: p.data for key, p in self._trained.items()}
        try:
            for key, p in self._trained.items():
                p.data = weights[key].to(p.device)
            yield
        finally:
            for key, p in self._trained.items():
                p.data = before[key]

    @contextmanager
    def _exchanged(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Exchange numbers with the copy and back: FSDP2 gathers from memory of its own, and for each pass anew."""
        done: list[str] = []

        def exchange(key: str) -> None:
            here, there = shards.local(self._trained[key]), weights[key]
            kept = here.to(there.device, copy=True)
            here.copy_(there)
            there.copy_(kept)

        shards.release(self._transformer)
        try:
            for key in self._trained:
                exchange(key)
                done.append(key)
            yield
        finally:
            shards.release(self._transformer)
            for key in done:
                exchange(key)

    def state_dict(self) -> dict[str, Tensor]:
        """The policy and all stored anchors, as "<name>:<weight>"."""
        found = {f"{POLICY}:{key}": shards.stored(p) for key, p in self._trained.items()}
        for name, weights in self._anchors.items():
            for key, copy in weights.items():
                found[f"{name}:{key}"] = shards.stored(shards.shard_like(copy, self._trained[key]))
        return found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The policy and the anchors of `state`; other weights are refused, and nothing is changed."""
        names = list(dict.fromkeys(key.partition(":")[0] for key in state))
        wanted = {f"{name}:{key}": p.shape for name in names for key, p in self._trained.items()}
        if {key: tensor.shape for key, tensor in state.items()} != wanted or POLICY not in names:
            raise BenchError(
                "a stored policy has other weights than this suite's backbone, which trains all (lora_rank 0): "
                "give backbone.train the lora_rank that it was trained with."
            )

        def mine(name: str) -> dict[str, Tensor]:
            return {key: shards.local(shards.part_of(state[f"{name}:{key}"], p)) for key, p in self._trained.items()}

        shards.release(self._transformer)
        with torch.no_grad():
            for key, p in self._trained.items():  # one at a time: parts of all would be held twice
                shards.local(p).copy_(shards.local(shards.part_of(state[f"{POLICY}:{key}"], p)))
        self._anchors = {
            name: {key: copy.to(self._anchor_device, copy=True) for key, copy in mine(name).items()}
            for name in names
            if name != POLICY
        }
