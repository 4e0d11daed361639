"""GPUs a suite may run on: peak, memory, and the pace that a whole run is assumed to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.core.errors import BenchError

if TYPE_CHECKING:
    from bench.core.parallelism import Shard


GPUS = {
    "h100": ({"bfloat16": 989.0, "float32": 67.0}, 80.0),
    "h800": ({"bfloat16": 989.0, "float32": 67.0}, 80.0),
    "h200": ({"bfloat16": 989.0, "float32": 67.0}, 141.0),
    "a100": ({"bfloat16": 312.0, "float32": 19.5}, 80.0),
    "l40s": ({"bfloat16": 362.0, "float32": 91.6}, 48.0),
}
"""Dense peak in TFLOP/s by the numbers' type, and memory in GB, from NVIDIA's data sheets (SXM where there are
several). float32 is without TF32, which torch leaves off for matrix products."""
NODE = 8
"""GPUs of one node, as a plan's command line assumes."""
UTILISATION = ((9_540, 0.30), (33_390, 0.40))
"""Latent tokens and the share of the peak that a whole run is assumed to reach, interpolated and held at the ends.

Measured by us on one H100 80 GB (torch 2.11, random weights, no attention mask, bf16): one forward pass at 480x848x21
took 0.31 s = 300 TFLOP/s = 30 %, at 480x848x81 1.63 s = 417 TFLOP/s = 42 %.
Other GPUs and float32: assumed to be alike.
"""


@dataclass(frozen=True)
class Hardware:
    """Where the suite would run. `context`: GPUs that share one sample's tokens.

    `shard`: how the weights are spread over all GPUs, see `bench.plan.memory`; None: each GPU holds them all.
    """

    gpu: str
    gpus: int
    memory_gb: float
    tflops: float | None = None
    """Achieved TFLOP/s of one GPU; None: the assumed share of its peak."""
    context: int = 1
    shard: Shard | None = None

    @property
    def groups(self) -> int:
        """Data-parallel groups: each takes whole micro-batches of a round and whole batches of held-out videos."""
        return self.gpus // self.context

    @property
    def nodes(self) -> int:
        """Nodes of at most `NODE` GPUs, equally many each."""
        return next(n for n in range(1, self.gpus + 1) if self.gpus % n == 0 and self.gpus // n <= NODE)

    def pace(self, latents: int, dtype: str = "bfloat16") -> tuple[float, str]:
        """FLOP/s of one GPU, and where the number comes from."""
        if self.tflops is not None:
            return self.tflops * 1e12, f"{self.tflops:g} TFLOP/s per GPU, as given"
        (few, low), (many, high) = UTILISATION
        share = low + (high - low) * min(max((latents - few) / (many - few), 0.0), 1.0)
        peak = GPUS[self.gpu][0][dtype]
        kind = "bf16" if dtype == "bfloat16" else dtype
        text = f"{share * peak:.0f} TFLOP/s per GPU: {share:.0%} of {self.gpu}'s dense {kind} peak of {peak:g}"
        text += ", assumed"
        return share * peak * 1e12, text


def gpu_hardware(
    gpu: str = "h100",
    gpus: int = 1,
    memory_gb: float | None = None,
    tflops: float | None = None,
    context: int = 1,
    shard: Shard | None = None,
) -> Hardware:
    """A machine from the command line's words, or one sentence on what is wrong with them."""
    if gpu not in GPUS:
        raise BenchError(f"--gpu {gpu} is not in the table ({', '.join(GPUS)}): give --tflops and --gpu-memory too.")
    if gpus < 1 or context < 1 or gpus % context:
        raise BenchError(
            f"--gpus {gpus} and --context-parallel {context}: give at least 1 of each, "
            "and a degree that divides the number of GPUs."
        )
    if shard and gpus == 1:
        raise BenchError(f"--shard {shard} spreads one run's weights over several GPUs: give --gpus 2 or more.")
    for name, value in (("--gpu-memory", memory_gb), ("--tflops", tflops)):
        if value is not None and not 0 < value < math.inf:
            raise BenchError(f"{name} is {value}: give a finite number above 0.")
    return Hardware(gpu, gpus, memory_gb or GPUS[gpu][1], tflops, context, shard)
