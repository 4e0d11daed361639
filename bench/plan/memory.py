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
from collections.abc import Mapping
from dataclasses import dataclass

from bench.algorithm.forward import keeps_old
from bench.algorithm.kl import has_kl_terms
from bench.algorithm.rollout import needs_old_mean
from bench.api import ForwardMethod, Method, ModelCost
from bench.core.parallelism import Shard
from bench.plan.hardware import CPU, Hardware
from bench.suite.prepared import PreparedRow, PreparedSuite

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
FLOAT = DTYPE_BYTES["float32"]
ADAM_BYTES = 4 * FLOAT
"""Per trained parameter in float32: weight, gradient and AdamW's two moments."""
WORKSPACE_BYTES, FIXED = 60_000 / 2048, 0.6e9
"""Bytes of a forward pass's largest buffers, per token and unit of width, and bytes of the GPU's context."""
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
    """Feature maps of the VAE's decoder, and the VAE itself where it waits on the CPU (`idle_models: cpu`)."""
    encode: float = 0.0
    """Text encoders that encode all prompts and leave before the other models come (`text_encoders: released`)."""
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
        }

    @property
    def peak(self) -> float:
        return max(self.encode, self.loading, self.weights + self.trained + max(self.phases.values()))


def activation_bytes(
    units: float, layers: int, *, branches: int, checkpoint_bytes: int | None, block_bytes: float
) -> float:
    """Bytes stored for the backward pass of `branches` forward passes over `units` each: tokens times the width.

    `layers`: blocks of the transformer. `checkpoint_bytes`: with gradient checkpointing, bytes that each block stores
    per token and unit of width; None without. `block_bytes`: of one block's activations, per token and unit of width.
    """
    if checkpoint_bytes is None:
        return branches * units * layers * block_bytes
    return units * (branches * layers * checkpoint_bytes + block_bytes)


def workspace_bytes(units: float) -> float:
    """Bytes of a forward pass's buffers over `units`, tokens times the width, and of the GPU's context."""
    return units * WORKSPACE_BYTES + FIXED


def transformer_bytes(model: ModelCost) -> tuple[float, float]:
    """Bytes of the transformer's weights outside of the blocks, and of all blocks; a LoRA is not counted."""
    dtype_bytes, blocks = DTYPE_BYTES[model.dtype], model.layers * model.block_parameters
    stored = blocks * dtype_bytes if model.quantized_block is None else model.layers * model.quantized_block
    return (model.parameters - blocks) * dtype_bytes, stored


def gathered_bytes(model: ModelCost, shard: Shard | None) -> tuple[float, float]:
    """Bytes on one GPU beside its shards, in a pass without gradients and in training.

    They are gathered weights, and in training also complete gradients.
    """
    if shard is None:
        return 0.0, 0.0
    adapter, (rest_bytes, block_bytes) = model.adapter_parameters, transformer_bytes(model)
    blocks, share = model.layers * model.block_parameters, GROUPS_AT_ONCE / model.layers
    rest = model.parameters - blocks
    inference = rest_bytes + block_bytes * share + adapter * share * FLOAT
    gradients = FLOAT * (adapter * share if adapter else rest + blocks * share)
    training = inference if shard == "full" else rest_bytes + block_bytes + adapter * FLOAT
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
        networks, stored = zip(*map(_anchors, prepared.rows), strict=True)
        probed = prepared.suite.probe_every > 0 and any(has_kl_terms(row.kl_policy) for row in prepared.rows)
        return cls(max(networks), max(stored), probed)


def _anchors(row: PreparedRow) -> tuple[int, int]:
    """Anchors of a row that cost a forward pass, and those of them that are copies of the policy."""
    if isinstance(row.method, ForwardMethod):
        return len({*row.method.references, row.method.rollout_policy} - {"policy"}), int(keeps_old(row.method))
    rules = [rule for rule in row.kl_policy.anchors().values() if rule.network]
    return len(rules), sum(rule.every is not None for rule in rules)


def _stored_latents(row: PreparedRow, train_steps: int) -> int:
    """Tensors of the latents' shape that a row keeps per sample: the final one, and those of each trained step."""
    if not isinstance(row.method, Method):  # a forward method makes its points in the update
        return 1
    return 1 + train_steps * (2 + _anchors(row)[0] + needs_old_mean(row.method))


PROGRAM = 1.2e9
"""Bytes of a process on the host with torch, diffusers and transformers, and without a large model: the peak of the
stored base run of nano, whose models take megabytes."""


def host_peak(host: Mapping[str, float]) -> float:
    """Peak bytes of one process on the host. `host`: the second result of `memory_use`."""
    resident = host["models"] + host["anchors"] + host["trajectories"] + host["videos"]
    return host["program"] + max(host["loading"], resident)


def memory_use(prepared: PreparedSuite, model: ModelCost, hardware: Hardware) -> tuple[Memory, dict[str, float]]:
    """Bytes on one GPU, and bytes of host memory of one process.

    The latter are "program", "loading" (a part of the model passes through the host to the GPU; 0 on a CPU), "models"
    (on a CPU all that a GPU would hold, else an idle VAE), "trajectories", "videos" (of an update, and the last
    micro-batch once more) and "anchors"; `host_peak` has their sum. Evaluators are not counted.
    """
    suite, budget = prepared.suite, prepared.suite.budget
    dtype_bytes, anchors = DTYPE_BYTES[model.dtype], Anchors.from_suite(prepared)
    shards = hardware.gpus if hardware.shard else 1
    trained = (model.adapter_parameters or model.parameters) / shards
    transformer = sum(transformer_bytes(model))
    base = 0.0 if model.full else transformer / shards
    copy = (model.adapter_parameters or trained) * FLOAT  # the anchors of an adapter are not sharded
    copies = anchors.stored + model.full  # training all weights needs a copy of the base too
    gathered, gathered_training = gathered_bytes(model, hardware.shard)
    text = model.text_parameters * dtype_bytes
    batch = min(budget.micro_batch, budget.prompts * budget.group_size)  # processes share whole micro-batches
    tokens = batch * (model.latents / hardware.context + model.text)  # context parallelism does not split the text
    guided = budget.guidance != 1
    joint = guided and model.joint_branches
    units = tokens * model.width * (2 if joint else 1)
    vae, on_cpu = model.vae_parameters * FLOAT, hardware.gpu == CPU
    idle = model.idle_vae and not on_cpu
    memory = Memory(
        weights=base + vae * (not idle) + text * model.resident_text,
        trained=trained * ADAM_BYTES + copies * model.copies_on_gpu * copy,
        activations=activation_bytes(
            units,
            model.layers,
            branches=2 if guided and suite.trains_uncond and not joint else 1,
            checkpoint_bytes=dtype_bytes if model.gradient_checkpointing else None,
            block_bytes=model.block_bytes,
        ),
        workspace=workspace_bytes(units),
        # the gradient before the step; with a KL probe also the KL's sum and its new part
        gradients=trained * FLOAT * (3 if anchors.probed else 1),
        # the gradient before the step, what the step added, and a flat all-reduce of it between unsharded GPUs
        step=trained * FLOAT * (3 if hardware.gpus > shards else 2),
        # shards swap with their copy in place
        visiting=copy * (anchors.networks > 0 and not model.copies_on_gpu and shards == 1),
        decode=model.decode_bytes * min(model.decode_batch, batch) + vae * idle,
        encode=0.0 if model.resident_text else text + FIXED,
        gathered=gathered,
        gathered_training=gathered_training,
        loading=transformer + vae * (not idle),
    )
    samples = budget.prompts * budget.group_size / hardware.groups
    latent_bytes = math.prod(model.latent_shape) * FLOAT
    stored = max(_stored_latents(row, budget.train_steps) for row in prepared.rows)
    host = {
        "program": PROGRAM,
        "loading": 0.0 if on_cpu else max(model.parameters, model.text_parameters) * dtype_bytes,
        "models": memory.peak - FIXED if on_cpu else vae * idle,
        "trajectories": samples * latent_bytes * stored,
        "videos": (samples + batch) * 3.0 * math.prod(model.size) * FLOAT,
        "anchors": 0.0 if model.copies_on_gpu else copies * copy,
    }
    return memory, host
