"""The trained weights of a transformer and their references: LoRA adapters on one frozen base, or all weights.

Shared by the backbones: each says which layers have a LoRA, or which weights train.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.api import POLICY_PREFIX, BenchError
from bench.backbones import fsdp
from bench.backbones.lora_products import use_input_dtype

POLICY = POLICY_PREFIX.removesuffix(":")


class LoRAPolicy:
    """LoRA adapters in float32 on one frozen base: one for the policy and one for each stored anchor.

    `alpha`: the adapters' output is multiplied by alpha / rank. `blocks`: name of the transformer's list of blocks.
    `pattern`: regular expression of the layers' names in a block. `in_base_dtype`: compute the adapters' products in
    the type of the base (`lora_products`).
    """

    def __init__(
        self,
        transformer: Any,
        device: torch.device,
        *,
        rank: int,
        alpha: int,
        blocks: str,
        pattern: str,
        in_base_dtype: bool = False,
    ):
        self.transformer, self.device, self._blocks = transformer, device, blocks
        self._in_base_dtype = in_base_dtype
        self._lora: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "pattern": pattern}
        self._add(POLICY)

    def settings(self) -> dict[str, Any]:
        """Rank, alpha and the layers' pattern, for the fingerprint and for `bench export`."""
        return dict(self._lora)

    def _add(self, name: str) -> None:
        """Add an adapter that changes nothing yet; `reset` and `refresh_anchor` set its weights."""
        from peft import LoraConfig

        config = LoraConfig(
            r=self._lora["r"],
            lora_alpha=self._lora["lora_alpha"],
            target_modules=rf"{self._blocks}\.\d+\.{self._lora['pattern']}",
            init_lora_weights=True,
        )
        # peft draws from the global generator (`reset` overwrites the result) and warns about a second adapter
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute", UserWarning)
            self.transformer.add_adapter(config, adapter_name=name)
        for parameter in self.adapter(name).values():
            # peft creates them in the base's dtype; bfloat16 would lose small updates
            parameter.data = parameter.data.to(self.device, torch.float32)
        if self._in_base_dtype:
            use_input_dtype(self.transformer, name)
        if name != POLICY:
            self.transformer.set_adapter(POLICY)

    def reset(self, rng: torch.Generator) -> None:
        """A fresh policy from `rng`: B zero, A uniform as in peft (Kaiming, a = sqrt 5, bound 1 / sqrt(inputs))."""
        with torch.no_grad():
            for name, parameter in self.adapter(POLICY).items():
                if "lora_A" in name:
                    bound = 1 / math.sqrt(parameter.shape[1])
                    drawn = (torch.rand(parameter.shape, generator=rng) * 2 - 1) * bound
                    parameter.copy_(fsdp.part_of(drawn, parameter))
                else:
                    parameter.zero_()

    def adapter(self, name: str) -> dict[str, torch.nn.Parameter]:
        """Weights of one adapter by name, without the adapter's name in it."""
        infix = f".{name}."
        return {
            key.replace(infix, "."): p
            for key, p in self.transformer.named_parameters()
            if "lora_" in key and infix in key
        }

    def adapters(self) -> list[str]:
        """Names of all adapters, the policy first."""
        return list(self.transformer.peft_config)

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights, in a fixed order: the policy's LoRA."""
        return list(self.adapter(POLICY).values())

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`, which the first refresh creates."""
        if name not in self.adapters():
            self._add(name)
        with torch.no_grad():
            for anchor, policy in zip(self.adapter(name).values(), self.parameters(), strict=True):
                anchor.copy_(fsdp.full_tensor(policy))

    def blend_anchor(self, name: str, decay: float) -> None:
        """Make the adapter of the anchor decay * anchor + (1 - decay) * policy."""
        with torch.no_grad():
            for anchor, policy in zip(self.adapter(name).values(), self.parameters(), strict=True):
                anchor.mul_(decay).add_(fsdp.full_tensor(policy), alpha=1 - decay)

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        """Run as a frozen reference: the base ("fixed", or an anchor never refreshed) or a stored copy of the policy.

        Only attributes of the layers change. peft's own switch clears `requires_grad` of the policy, so that a later
        backward pass would silently leave the policy without a gradient.
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
        """Full copies of all adapters' weights, as "<adapter>:<weight>"."""
        return {f"{name}:{key}": fsdp.stored(p) for name in self.adapters() for key, p in self.adapter(name).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the adapters of `state` and delete others; `BenchError`, and no change, for another rank or layers."""
        shapes = {key: p.shape for key, p in self.adapter(POLICY).items()}
        names = list(dict.fromkeys(key.partition(":")[0] for key in state))
        expected = {f"{name}:{key}": shape for name in names for key, shape in shapes.items()}
        if {key: tensor.shape for key, tensor in state.items()} != expected or POLICY not in names:
            ranks = sorted({len(tensor) for key, tensor in state.items() if "lora_A" in key})
            rank = f"rank {', '.join(map(str, ranks))}" if ranks else "no LoRA weights"
            raise BenchError(
                f"a stored policy has other LoRA weights than this suite's backbone ({rank}, the suite has rank "
                f"{self._lora['r']}): give backbone.train the lora_rank and lora_targets it was trained with."
            )
        for name in set(self.adapters()) - set(names):
            self.transformer.delete_adapters(name)
        for name in names:
            if name not in self.adapters():
                self._add(name)
        with torch.no_grad():
            for name in names:
                for key, parameter in self.adapter(name).items():
                    parameter.copy_(fsdp.part_of(state[f"{name}:{key}"], parameter))


class FullPolicy:
    """Weights of a float32 transformer; anchors are copies of them.

    `trained`: the weights that train, by name. `untrained`: the others in words, for the fingerprint. `anchor_device`
    stores the copies, the base's too; they are copied to the transformer's device while they run.
    """

    def __init__(
        self,
        transformer: Any,
        anchor_device: torch.device,
        trained: Mapping[str, torch.nn.Parameter],
        untrained: Sequence[str] = (),
    ):
        self._trained, self._untrained = dict(trained), list(untrained)
        for p in self._trained.values():
            p.requires_grad_(True)
        self._transformer, self._anchor_device = transformer, anchor_device
        self._base = self._copy()
        self._anchors: dict[str, dict[str, Tensor]] = {}

    def settings(self) -> dict[str, Any]:
        return {"r": 0, "untrained": self._untrained}

    def _copy(self) -> dict[str, Tensor]:
        """Copies of the trained weights, or of this process's shards of them."""
        return {name: fsdp.local(p).to(self._anchor_device, copy=True) for name, p in self._trained.items()}

    def reset(self, rng: torch.Generator) -> None:
        """Back to the base; nothing is drawn from `rng`."""
        self._set(self._base)

    def _set(self, weights: Mapping[str, Tensor]) -> None:
        fsdp.release(self._transformer)
        with torch.no_grad():
            for name, p in self._trained.items():
                fsdp.local(p).copy_(weights[name])

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained weights, in a fixed order."""
        return list(self._trained.values())

    def refresh_anchor(self, name: str) -> None:
        """Copy the policy into the anchor `name`."""
        self._anchors[name] = self._copy()

    def blend_anchor(self, name: str, decay: float) -> None:
        """Make the copy decay * copy + (1 - decay) * policy; each process does so with its shards."""
        with torch.no_grad():
            for key, copy in self._anchors[name].items():
                copy.mul_(decay).add_(fsdp.local(self._trained[key]).to(copy.device), alpha=1 - decay)

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        """Run with the weights of a copy: the base ("fixed", or an anchor never refreshed) or a stored policy.

        The policy's tensors are not overwritten: a graph recorded before still gives exact gradients.
        """
        weights = self._anchors.get(name, self._base)
        swapped = self._exchanged if fsdp.is_sharded(self._transformer) else self._replaced
        with swapped(weights), torch.no_grad():
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
        """Exchange values with the copy, and back afterwards: FSDP2 gathers from its own memory in each pass."""
        done: list[str] = []

        def exchange(key: str) -> None:
            current, copy = fsdp.local(self._trained[key]), weights[key]
            saved = current.to(copy.device, copy=True)
            current.copy_(copy)
            copy.copy_(saved)

        fsdp.release(self._transformer)
        try:
            for key in self._trained:
                exchange(key)
                done.append(key)
            yield
        finally:
            fsdp.release(self._transformer)
            for key in done:
                exchange(key)

    def state_dict(self) -> dict[str, Tensor]:
        """Full copies of the policy and of all stored anchors, as "<name>:<weight>"."""
        state = {f"{POLICY}:{key}": fsdp.stored(p) for key, p in self._trained.items()}
        for name, weights in self._anchors.items():
            for key, copy in weights.items():
                state[f"{name}:{key}"] = fsdp.stored(fsdp.shard_like(copy, self._trained[key]))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the policy and the anchors of `state`; `BenchError`, and no change, for other weights."""
        names = list(dict.fromkeys(key.partition(":")[0] for key in state))
        expected = {f"{name}:{key}": p.shape for name in names for key, p in self._trained.items()}
        if {key: tensor.shape for key, tensor in state.items()} != expected or POLICY not in names:
            raise BenchError(
                "a stored policy has other weights than this suite's backbone, which trains all (lora_rank 0): "
                "give backbone.train the lora_rank that it was trained with."
            )

        def shards(name: str) -> dict[str, Tensor]:
            return {key: fsdp.local(fsdp.part_of(state[f"{name}:{key}"], p)) for key, p in self._trained.items()}

        fsdp.release(self._transformer)
        with torch.no_grad():
            for key, p in self._trained.items():  # one at a time: all shards at once would double the memory
                fsdp.local(p).copy_(fsdp.local(fsdp.part_of(state[f"{POLICY}:{key}"], p)))
        self._anchors = {
            name: {key: copy.to(self._anchor_device, copy=True) for key, copy in shards(name).items()}
            for name in names
            if name != POLICY
        }
