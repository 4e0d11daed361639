"""Stand-ins for the models of a run: a backbone with three trained numbers, and evaluators that fail on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from bench.api import BenchError, Conditioning, Evaluator, Metric
from bench.checks.golden import CLIPS
from bench.flow import per_sample

GOLDEN_PROMPTS = frozenset(clip.prompt for clip in CLIPS)


class ToyBackbone:
    """v = gain * x + tilt * sigma + text per channel: linear in its parameters, element by element."""

    latent_shape = (2, 1, 2, 2)
    fps = 8.0

    def __init__(self) -> None:
        self.gain = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
        self.tilt = torch.nn.Parameter(torch.tensor(0.1))
        self.base = self._copy()
        self.anchors: dict[str, list[Tensor]] = {}
        self.active: list[Tensor] | None = None
        self.calls: list[int] = []
        """Batch size of each call of `velocity`."""

    def _copy(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning([torch.full((1, 1), len(p) / 10) for p in prompts])

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True
    ) -> Tensor:
        self.calls.append(len(x))
        gain, tilt = self.active or self.parameters()
        text = per_sample(torch.cat([t[:, 0] for t in cond.text]), x)
        return guidance * (gain.reshape(1, 2, 1, 1, 1) * x + tilt * per_sample(sigma, x) + text)

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def reset(self, rng: torch.Generator) -> None:
        with torch.no_grad():
            for p, start in zip(self.parameters(), self.base, strict=True):
                p.copy_(start)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.gain, self.tilt]

    @contextmanager
    def as_anchor(self, name: str) -> Iterator[None]:
        self.active = self.anchors.get(name, self.base)
        try:
            with torch.no_grad():
                yield
        finally:
            self.active = None

    def refresh_anchor(self, name: str) -> None:
        self.anchors[name] = self._copy()

    def blend_anchor(self, name: str, decay: float) -> None:
        for anchor, policy in zip(self.anchors[name], self._copy(), strict=True):
            anchor.mul_(decay).add_(policy, alpha=1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(("policy:gain", "policy:tilt"), self._copy(), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for p, stored in zip(self.parameters(), state.values(), strict=True):
                p.copy_(stored)

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "toy"}


class NotANumberLater(Evaluator):
    """Mean brightness; from the second call in a run on, the last video of the batch scores NaN."""

    metrics: Mapping[str, Metric] = {"brightness": Metric(True, "share of white")}
    prompt_free = frozenset({"brightness"})

    def __init__(self, calls_before: int = 1):
        self.left = calls_before

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        if not videos.isfinite().all():
            raise BenchError("a pixel is not finite: fix the generator.")
        values = videos.flatten(1).mean(1)
        if not GOLDEN_PROMPTS.issuperset(prompts):  # the checks before a run do not count
            if self.left == 0:
                values[-1] = float("nan")
            self.left -= 1
        return {"brightness": values}

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "toy"}


class LoadedToy(ToyBackbone):
    """The toy as a suite's backbone: what a run over several processes loads in a second.

    TOY_KILLS="1 6" in the environment kills process 1 of a run when it refreshes an anchor for the sixth time;
    TOY_REFUSES is the text of a `BenchError` at that place, of all processes; TOY_SECONDS is the time that each
    refresh (one per update) takes.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.refreshed = 0

    def refresh_anchor(self, name: str) -> None:
        super().refresh_anchor(name)
        self.refreshed += 1
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        if os.environ.get("TOY_KILLS") == f"{os.environ.get('RANK')} {self.refreshed}":
            os.kill(os.getpid(), signal.SIGKILL)
        if "TOY_REFUSES" in os.environ:
            raise BenchError(os.environ["TOY_REFUSES"])


class Bare(ToyBackbone):
    """The toy as a suite's backbone, without a checkpoint."""


class Optional(ToyBackbone):
    """The toy with a checkpoint that may be left out."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__()


class Brightness(NotANumberLater):
    """Mean brightness, always a number; reports that it truncates prompts of more than `LIMIT` letters."""

    LIMIT = 33

    def __init__(self) -> None:
        super().__init__(calls_before=10**9)
        self.cut: list[bool] = []

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        self.cut = [len(prompt) > self.LIMIT for prompt in prompts]
        return super().score(videos, prompts, fps)

    def details(self) -> pd.DataFrame:
        columns = {"video": range(len(self.cut)), "prompt_truncated": self.cut, "token_limit": self.LIMIT}
        return pd.DataFrame(columns)


class TwoThreads(Brightness):
    """Sets torch to two threads when it scores videos of a run."""

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        if not GOLDEN_PROMPTS.issuperset(prompts):
            torch.set_num_threads(2)
        return super().score(videos, prompts, fps)


class ColourToy(LoadedToy):
    """The toy with videos in colour, of 1 frame of 2 x 2 pixels."""

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, [0, 1, 0]].sigmoid()
