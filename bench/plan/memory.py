"""Memory of one GPU, and of one process on the host, during a run: a constant part, and what each phase adds.

Without sharding every GPU holds the whole model, its gradients and its optimizer states. With sharding ("full" or
"grads", see `Shard`) each GPU holds 1 / gpus of the transformer's weights, of the trained weights' gradients and AdamW
states, and of the copies of all weights. The VAE, the text encoders and the anchors of a LoRA are not sharded, and
loading puts the whole transformer on the GPU first.

FSDP2 (torch's `fully_shard`, one group per joint block and one for the rest) gathers a group before it is used. With
`reshard_after_forward=True` ("full") it frees the group after its forward pass and gathers it again for its backward
pass, one group ahead. With False ("grads") gathered weights stay on the GPU until the backward pass; rollouts, which
have none, run as in "full". A group's gradient is complete on each GPU until it is reduced and scattered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.core.parallelism import Shard
from bench.plan import flops
from bench.plan.hardware import Hardware
from bench.plan.workload import Model
from bench.suite.prepared import PreparedSuite

FLOAT = flops.DTYPE_BYTES["float32"]
ADAM_BYTES = 4 * FLOAT
"""Per trained parameter in float32: weight, gradient and AdamW's two moments."""
BLOCK_BYTES = {2: 141_000 / 2048, 4: 184_000 / 2048}
"""Activations of one joint block in bytes per token and unit of width, by the bytes of the base's dtype.

Measured on a CPU at width 2048 for float32 LoRA weights on a bfloat16 base without autocast: 141 kB per token. With
everything in bfloat16 it is 92 kB; in float32 twice that, 184 kB.
"""
WORKSPACE_BYTES, FIXED = 60_000 / 2048, 0.6e9
"""Bytes of a forward pass's largest buffers, per token and unit of width, and bytes of the GPU's context."""
VAE_MAPS = 3
"""Full-resolution feature maps that a decoder holds at once: a convolution's input, its padded copy, its output."""
GROUPS_AT_ONCE = 2
"""Gathered blocks on a GPU with "full" sharding: the running one and the next one. Of gradients: the one that the
backward pass computes and the one that is being reduced."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU: a constant part (`weights`, `trained`), then what each phase adds."""

    weights: float
    """Frozen weights: the base of a LoRA, the VAE, and resident text encoders."""
    trained: float
    """Trained weights in float32 with gradients and optimizer states, and anchors on the same device."""
    activations: float = 0.0
    """Of a training step: checkpoints or all blocks, and the running block."""
    workspace: float = 0.0
    """Buffers of a forward pass, and the GPU's context."""
    gradients: float = 0.0
    """Copies of the gradient during a backward pass, for the update's logs."""
    step: float = 0.0
    """Copies of the gradient after the backward pass."""
    visiting: float = 0.0
    """Weights of a running anchor that is stored on the CPU."""
    decode: float = 0.0
    """Feature maps of the VAE's decoder."""
    encode: float = 0.0
    """Text encoders that are loaded for new prompts only (`text_encoders: released`)."""
    gathered: float = 0.0
    """Weights that sharding gathers for a pass without gradients; 0 without sharding."""
    gathered_training: float = 0.0
    """Gathered weights and complete gradients during a training step; 0 without sharding."""
    loading: float = 0.0
    """The whole transformer and the VAE, at the start."""

    @property
    def phases(self) -> dict[str, float]:
        """What each phase adds to the constant part; phases follow each other."""
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


def activation_bytes(
    transformer: flops.Transformer,
    tokens: float,
    *,
    branches: int,
    checkpoint_bytes: int | None,
    block_bytes: float,
) -> float:
    """Bytes stored for the backward pass of `branches` forward passes over `tokens` tokens each.

    `checkpoint_bytes`: with gradient checkpointing, bytes that each block stores per token and unit of width; None
    without. `block_bytes`: bytes of one joint block's activations per token and unit of width.
    """
    if checkpoint_bytes is None:
        return branches * tokens * transformer.num_layers * transformer.width * block_bytes
    return tokens * transformer.width * (branches * transformer.num_layers * checkpoint_bytes + block_bytes)


def workspace_bytes(transformer: flops.Transformer, tokens: float) -> float:
    """Bytes of a forward pass's buffers over `tokens` tokens, and of the GPU's context."""
    return tokens * transformer.width * WORKSPACE_BYTES + FIXED


def decode_bytes(
    vae: Mapping[str, Any], size: Sequence[int], batch: int, tile: tuple[int, int] | None = None
) -> float:
    """A lower bound on a float32 decoder's memory: `VAE_MAPS` maps of its last stage at full resolution.

    `size`: frames, height and width in pixels; `batch`: videos at once; `tile`: height and width of a tile.
    """
    frames, height, width = size
    if tile is not None:
        height, width = min(height, tile[0]), min(width, tile[1])
    return VAE_MAPS * float(vae["block_out_channels"][0]) * batch * frames * height * width * FLOAT


def gathered_bytes(
    transformer: flops.Transformer, lora: int, dtype_bytes: int, shard: Shard | None
) -> tuple[float, float]:
    """Bytes on one GPU beside its shards, in a pass without gradients and in training.

    They are gathered weights, and in training also complete gradients.
    `lora`: trained parameters beside a frozen base; 0 if all weights train. `dtype_bytes`: of the base's dtype.
    """
    if shard is None:
        return 0.0, 0.0
    blocks = transformer.num_layers * transformer.block_parameters
    share = GROUPS_AT_ONCE / transformer.num_layers
    rest = transformer.parameters - blocks
    inference = (rest + blocks * share) * dtype_bytes + lora * share * FLOAT
    gradients = FLOAT * (lora * share if lora else rest + blocks * share)
    training = inference if shard == "full" else transformer.parameters * dtype_bytes + lora * FLOAT
    return inference, training + gradients


@dataclass(frozen=True)
class Anchors:
    """Anchors of the suite's rows: the maximum over the rows."""

    networks: int
    """Anchors that cost a forward pass."""
    stored: int
    """Those that are copies of the policy."""
    probed: bool
    """Whether the gradient of some row is split into the KL term's part and the rest (KL probe)."""

    @classmethod
    def from_suite(cls, prepared: PreparedSuite) -> Anchors:
        policies = [row.kl_policy for row in prepared.rows]
        rules = [[rule for rule in policy.anchors().values() if rule.network] for policy in policies]
        return cls(
            max(map(len, rules)),
            max(sum(rule.every is not None for rule in row) for row in rules),
            prepared.suite.probe_every > 0 and any(policy.term_weights() for policy in policies),
        )


def memory_use(prepared: PreparedSuite, model: Model, hardware: Hardware) -> tuple[Memory, dict[str, float]]:
    """Bytes on one GPU, and bytes of host memory of one process: {"trajectories", "videos", "anchors"}."""
    suite = prepared.suite
    transformer, options, budget = model.transformer, model.options, suite.budget
    dtype_bytes, anchors = flops.DTYPE_BYTES[options.dtype], Anchors.from_suite(prepared)
    shards = hardware.gpus if hardware.shard else 1
    lora = 0 if model.full else transformer.lora_parameters(options.lora_rank, options.lora_targets)
    trained = (lora or transformer.parameters) / shards
    base = 0.0 if model.full else transformer.parameters * dtype_bytes / shards
    copy = (lora or trained) * FLOAT  # anchors of a LoRA are not sharded
    copies = anchors.stored + model.full  # training all weights needs a copy of the base too
    on_gpu = not model.full or options.anchors_on == "model"
    gathered, gathered_training = gathered_bytes(transformer, lora, dtype_bytes, hardware.shard)
    vae, text = side_parameters(prepared)
    resident = options.text_encoders == "resident"
    batch = min(budget.micro_batch, budget.prompts * budget.group_size)  # processes share whole micro-batches
    tokens = batch * (model.latents / hardware.context + model.text)  # context parallelism does not split the text
    memory = Memory(
        weights=base + vae * FLOAT + text * dtype_bytes * resident,
        trained=trained * ADAM_BYTES + copies * on_gpu * copy,
        activations=activation_bytes(
            transformer,
            tokens,
            branches=2 if budget.guidance != 1 and suite.trains_uncond else 1,
            checkpoint_bytes=dtype_bytes if options.gradient_checkpointing else None,
            block_bytes=BLOCK_BYTES[dtype_bytes],
        ),
        workspace=workspace_bytes(transformer, tokens),
        # the gradient before the step; with a KL probe also the KL's sum and its new part
        gradients=trained * FLOAT * (3 if anchors.probed else 1),
        # the gradient before the step, what the step added, and a flat all-reduce of it between unsharded GPUs
        step=trained * FLOAT * (3 if hardware.gpus > shards else 2),
        visiting=copy * (anchors.networks > 0 and not on_gpu and shards == 1),  # shards swap with their copy in place
        decode=decode_bytes(model.vae, model.size, min(options.decode_batch, batch), model.tile),
        encode=0.0 if resident else text * dtype_bytes,
        gathered=gathered,
        gathered_training=gathered_training,
        loading=transformer.parameters * dtype_bytes + vae * FLOAT,
    )
    samples = budget.prompts * budget.group_size / hardware.groups
    latent_bytes = math.prod(model.latent_shape) * FLOAT
    host = {
        "trajectories": samples * latent_bytes * budget.train_steps * (2 + anchors.networks),
        "videos": samples * 3.0 * math.prod(model.size) * FLOAT,
        "anchors": 0.0 if on_gpu else copies * copy,
    }
    return memory, host


def side_parameters(prepared: PreparedSuite) -> tuple[float, float]:
    """Parameters of the VAE and of both text encoders: of the folder's files, or the released numbers."""
    folder = prepared.checkpoints["backbone"].path
    if not (folder / "vae" / "config.json").is_file():
        return flops.VAE_PARAMETERS, flops.TEXT_PARAMETERS
    text = sum(flops.stored_parameters(folder / part) for part in ("text_encoder", "text_encoder_2"))
    return flops.stored_parameters(folder / "vae"), text
