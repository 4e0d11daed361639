"""Memory of one GPU and of one process's host during a run: what is held all the time, and what each phase adds.

Without sharding every GPU holds the whole model, its gradients and its optimizer states. With it ("full", "grads";
`Shard`) each holds 1 / gpus of the transformer's weights, of the trained weights' gradients and AdamW
states, and of the copies of all weights; the VAE, the text encoders and the anchors of a LoRA stay whole, and loading
puts the whole transformer on the GPU first. FSDP2 (torch's `fully_shard`, one group per joint block and one for the
rest) gathers a group before it is used. With `reshard_after_forward=True`, "full", it frees the group after its
forward and gathers it again for its backward pass, one group ahead of the work; with False, "grads", whole weights
stay on the GPU until the backward pass (rollouts, which have none, are dealt with as in "full"). A group's gradient is
whole until it is reduced and scattered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.algorithm.kl import kl_policy
from bench.plan import flops
from bench.plan.hardware import Hardware
from bench.plan.workload import Model
from bench.suite.schema import Experiment, resolve

FLOAT = flops.DTYPE_BYTES["float32"]
ADAM_BYTES = 4 * FLOAT
"""Per trained parameter in float32: weight, gradient and AdamW's two moments."""
BLOCK_BYTES = {2: 141_000 / 2048, 4: 184_000 / 2048}
"""Activations of one joint block per token and per unit of width, by the bytes of the base's numbers.

Measured on a CPU at width 2048 for float32 LoRA weights on a bfloat16 base without autocast: 141 kB per token. With
everything in bfloat16 it is 92 kB, of which float32 takes twice as much.
"""
WORKSPACE_BYTES, FIXED = 60_000 / 2048, 0.6e9
"""Largest buffers of a forward pass, per token and unit of width, and what the GPU's context takes."""
VAE_MAPS = 3
"""Feature maps at full resolution that a decoder holds at once: a convolution's input, its padded copy, its output."""
GROUPS_AT_ONCE = 2
"""Whole blocks on a GPU with "full" sharding: the one at work and the next one, which FSDP2 gathers meanwhile; of
gradients, the one that a backward pass fills and the one that is being reduced."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU: what stays, then what single phases add."""

    weights: float
    """Frozen: the base of a LoRA, the VAE, and text encoders that are resident."""
    trained: float
    """Trained weights in float32 with gradients and optimizer states, and anchors stored beside them."""
    activations: float = 0.0
    """Of the training step: checkpoints or all blocks, and the block at work."""
    workspace: float = 0.0
    """Of every forward pass, the GPU's context included."""
    gradients: float = 0.0
    """Copies of the gradient that the update keeps during a backward pass, for its logs."""
    step: float = 0.0
    """Copies of the gradient after it."""
    visiting: float = 0.0
    """Weights of an anchor that waits on the CPU, while it runs."""
    decode: float = 0.0
    """Feature maps of the VAE's decoder."""
    encode: float = 0.0
    """Text encoders that are loaded for new prompts only."""
    gathered: float = 0.0
    """Whole weights of blocks that sharding gathers for a pass without gradients; 0 without sharding."""
    gathered_training: float = 0.0
    """Whole weights and gradients while a step trains; 0 without sharding."""
    loading: float = 0.0
    """The whole transformer and the VAE, before anything else is there."""

    @property
    def phases(self) -> dict[str, float]:
        """What each phase adds to what stays; they follow each other."""
        return {
            "rollout": self.workspace + self.visiting + self.gathered,
            "training": self.activations + self.workspace + self.gradients + self.gathered_training,
            "optimizer step": self.step + FIXED,
            "decoding": self.decode + FIXED,
            "encoding prompts": self.encode + FIXED,
        }

    @property
    def peak(self) -> float:
        return max(self.loading, self.weights + self.trained + max(self.phases.values()))


# single terms -------------------------------------------------------------------------------------------------
def activation_bytes(
    model: flops.Transformer, tokens: float, branches: int, checkpointing: bool, item: int, block: float
) -> float:
    """Bytes kept for the backward pass of `branches` forward passes over `tokens` tokens each.

    `item`: bytes of a checkpointed number, of which each block keeps one per token and unit of width. `block`: bytes
    of one joint block per token and unit of width.
    """
    if not checkpointing:
        return branches * tokens * model.num_layers * model.width * block
    return tokens * model.width * (branches * model.num_layers * item + block)


def workspace_bytes(model: flops.Transformer, tokens: float) -> float:
    return tokens * model.width * WORKSPACE_BYTES + FIXED


def decode_bytes(
    vae: Mapping[str, Any], size: Sequence[int], batch: int, tile: tuple[int, int] | None = None
) -> float:
    """A lower bound on what a float32 decoder holds: `VAE_MAPS` maps of its last stage at full resolution."""
    frames, height, width = size
    if tile is not None:
        height, width = min(height, tile[0]), min(width, tile[1])
    return VAE_MAPS * float(vae["block_out_channels"][0]) * batch * frames * height * width * FLOAT


def gathered_bytes(net: flops.Transformer, lora: int, item: int, where: Hardware) -> tuple[float, float]:
    """Whole weights on one GPU beside its shards in a pass without gradients; weights and gradients in training.

    `lora`: trained parameters beside a frozen base; 0 where all weights train. `item`: bytes of a base's number.
    """
    if where.shard is None:
        return 0.0, 0.0
    blocks, at_once = net.num_layers * net.block_parameters, GROUPS_AT_ONCE / net.num_layers
    rest = net.parameters - blocks
    passing = (rest + blocks * at_once) * item + lora * at_once * FLOAT
    gradients = FLOAT * (lora * at_once if lora else rest + blocks * at_once)
    kept = passing if where.shard == "full" else net.parameters * item + lora * FLOAT
    return passing, kept + gradients


@dataclass(frozen=True)
class Anchors:
    """The most that a row of the suite has of each kind."""

    networks: int
    """Anchors that cost a forward pass."""
    stored: int
    """Those that are copies of the policy."""
    probed: bool
    """Whether some row's gradient is split into the KL's part and the rest."""

    @classmethod
    def of(cls, exp: Experiment) -> Anchors:
        policies = [kl_policy(row.kl_spec.name, **row.kl_spec.params) for row in exp.rows]
        rules = [[rule for rule in policy.anchors().values() if rule.network] for policy in policies]
        return cls(
            max(map(len, rules)),
            max(sum(rule.every is not None for rule in row) for row in rules),
            exp.probe_every > 0 and any(policy.term_weights() for policy in policies),
        )


# all of it ----------------------------------------------------------------------------------------------------
def memory_use(exp: Experiment, found: Model, where: Hardware) -> tuple[Memory, dict[str, float]]:
    """Bytes on one GPU, and bytes of host memory of one process: {"trajectories", "videos", "anchors"}."""
    net, settings, budget = found.transformer, found.settings, exp.budget
    item, anchors = flops.DTYPE_BYTES[settings["dtype"]], Anchors.of(exp)
    parts = where.gpus if where.shard else 1
    lora = 0 if found.full else net.lora_parameters(settings["lora_rank"], settings["lora_targets"])
    trained = (lora or net.parameters) / parts
    base = 0.0 if found.full else net.parameters * item / parts
    copy = (lora or trained) * FLOAT  # a LoRA's anchors stay whole
    copies = anchors.stored + found.full  # full fine-tuning keeps a copy of the base too
    beside = not found.full or settings["anchors_on"] == "model"
    passing, training = gathered_bytes(net, lora, item, where)
    vae, text = side_parameters(exp)
    resident = settings["text_encoders"] == "resident"
    batch = min(budget.micro_batch, budget.prompts * budget.group_size)  # processes share whole micro-batches
    tokens = batch * (found.latents / where.context + found.text)  # the text is whole on each process
    branches = 2 if budget.guidance != 1 and exp.trains_uncond else 1
    used = Memory(
        weights=base + vae * FLOAT + text * item * resident,
        trained=trained * ADAM_BYTES + copies * beside * copy,
        activations=activation_bytes(net, tokens, branches, found.checkpointing, item, BLOCK_BYTES[item]),
        workspace=workspace_bytes(net, tokens),
        gradients=trained * FLOAT * (3 if anchors.probed else 1),  # the sum before a step; the KL's sum, its new part
        step=trained * FLOAT * (3 if where.gpus > parts else 2),  # that sum, what the step added, its flat all-reduce
        visiting=copy * (anchors.networks > 0 and not beside and parts == 1),  # shards change places with the copy's
        decode=decode_bytes(found.vae, found.size, min(int(settings["decode_batch"]), batch), found.tile),
        encode=0.0 if resident else text * item,
        gathered=passing,
        gathered_training=training,
        loading=net.parameters * item + vae * FLOAT,
    )
    each = budget.prompts * budget.group_size / where.groups
    host = {
        "trajectories": each * math.prod(found.latent_shape) * FLOAT * budget.train_steps * (2 + anchors.networks),
        "videos": each * 3.0 * math.prod(found.size) * FLOAT,
        "anchors": 0.0 if beside else copies * copy,
    }
    return used, host


def side_parameters(exp: Experiment) -> tuple[float, float]:
    """Parameters of the VAE and of both text encoders: from the folder's files, or the released ones'."""
    folder = resolve(exp.backbone.checkpoint)
    if not (folder / "vae" / "config.json").is_file():
        return flops.VAE_PARAMETERS, flops.TEXT_PARAMETERS
    text = sum(flops.stored_parameters(folder / part) for part in ("text_encoder", "text_encoder_2"))
    return flops.stored_parameters(folder / "vae"), text
