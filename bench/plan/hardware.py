"""GPUs that a suite may run on: peak, memory, and the throughput that a plan assumes for a whole run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bench.core.errors import BenchError
from bench.core.parallelism import Shard

GPUS = {
    "h100": ({"bfloat16": 989.0, "float32": 67.0}, 80.0),
    "h800": ({"bfloat16": 989.0, "float32": 67.0}, 80.0),
    "h200": ({"bfloat16": 989.0, "float32": 67.0}, 141.0),
    "a100": ({"bfloat16": 312.0, "float32": 19.5}, 80.0),
    "l40s": ({"bfloat16": 362.0, "float32": 91.6}, 48.0),
    "rtx4090": ({"bfloat16": 165.2, "float32": 82.6}, 24.0),
}
"""Dense peak in TFLOP/s by type, and memory in GB, from NVIDIA's data sheets (SXM if there are several versions).
float32 is without TF32, which torch does not use for matrix products by default."""
CPU = "cpu"
"""In place of a GPU's name, where the models run on the host."""
NODE = 8
"""GPUs of one node in a plan's command line."""
UTILISATION = ((9_540, 0.30), (33_390, 0.40))
"""Latent tokens and the assumed share of the peak over a whole run: interpolated in between, constant beyond.

Measured by us on one H100 80 GB (torch 2.11, random weights, no attention mask, bf16): one forward pass at 480x848x21
took 0.31 s = 300 TFLOP/s = 30 %, at 480x848x81 1.63 s = 417 TFLOP/s = 42 %.
For other GPUs and for float32 the same shares are assumed.
"""


@dataclass(frozen=True)
class Hardware:
    """GPUs of one run, and how they share it."""

    gpu: str
    """A name in `GPUS`, `CPU`, or a name for printing if `tflops` is set."""
    gpus: int
    memory_gb: float
    """Memory of one GPU in 10^9 bytes."""
    tflops: float | None = None
    """Achieved TFLOP/s of one GPU; None: the assumed share of its peak."""
    context: int = 1
    """Degree of context parallelism: GPUs that share the tokens of one sample."""
    shard: Shard | None = None
    """How the weights are sharded over all GPUs (`bench.plan.memory`); None: each GPU holds all of them."""

    @property
    def groups(self) -> int:
        """Data-parallel groups. Each computes whole micro-batches of samples and of held-out videos."""
        return self.gpus // self.context

    @property
    def nodes(self) -> int:
        """Nodes of at most `NODE` GPUs, with equally many GPUs each."""
        return next(n for n in range(1, self.gpus + 1) if self.gpus % n == 0 and self.gpus // n <= NODE)

    def throughput(self, latents: int, dtype: str = "bfloat16") -> tuple[float, str]:
        """FLOP/s of one GPU with samples of `latents` latent tokens, and the number's origin in words."""
        if self.tflops is not None:
            return self.tflops * 1e12, f"{self.tflops:g} TFLOP/s per GPU, from --tflops"
        (few, low), (many, high) = UTILISATION
        share = low + (high - low) * min(max((latents - few) / (many - few), 0.0), 1.0)
        peak = GPUS[self.gpu][0][dtype]
        kind = "bf16" if dtype == "bfloat16" else dtype
        text = (
            f"{share * peak:.0f} TFLOP/s per GPU: {share:.0%} of {self.gpu}'s dense {kind} peak of {peak:g}, assumed"
        )
        return share * peak * 1e12, text


def gpu_hardware(
    gpu: str = "h100",
    gpus: int = 1,
    memory_gb: float | None = None,
    tflops: float | None = None,
    context: int = 1,
    shard: Shard | None = None,
) -> Hardware:
    """Hardware from the options of `bench plan`; `BenchError` if they do not fit each other."""
    if gpu not in GPUS:
        raise BenchError(
            f"--gpu {gpu} is not in the table ({', '.join(GPUS)}): choose one of these, and set --tflops and "
            "--gpu-memory for another GPU."
        )
    if gpus < 1 or context < 1 or gpus % context:
        raise BenchError(
            f"--gpus {gpus} and --context-parallel {context}: give at least 1 of each, "
            "and a degree that divides the number of GPUs."
        )
    if shard and gpus == 1:
        raise BenchError(f"--shard {shard} shards one run's weights over several GPUs: give --gpus 2 or more.")
    for name, value in (("--gpu-memory", memory_gb), ("--tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise BenchError(f"{name} is {value}: give a finite number above 0.")
    return Hardware(gpu, gpus, memory_gb or GPUS[gpu][1], tflops, context=context, shard=shard)
