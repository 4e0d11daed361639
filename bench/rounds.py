"""What one round trains on: its prompts and the rewards of its videos."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bench.api import BenchError, DivergedError, Evaluator, Rewards
from bench.config import Experiment
from bench.ledger import Ledger
from bench.rng import stream


def shuffled(values: dict[str, Tensor], seed: int, index: int) -> dict[str, Tensor]:
    """Rewards [p, g] dealt out anew within each group; the metrics of one video stay together."""
    p, g = next(iter(values.values())).shape
    order = torch.rand(p, g, generator=stream(seed, "shuffle_rewards", index)).argsort(1)
    return {name: value.gather(1, order) for name, value in values.items()}


def watch(
    evaluators: dict[str, Evaluator], exp: Experiment, videos: Tensor, prompts: list[str], fps: float
) -> dict[str, float]:
    """Mean of every metric of the suite's monitors over one round's videos; nothing of it reaches the update.

    An evaluator that gives a reward is left out: its means are logged as rewards.
    """
    return {
        metric: float(values.mean())
        for name in exp.monitor
        if name not in exp.reward
        for metric, values in evaluators[name].score(videos, prompts, fps).items()
    }


def score_round(
    evaluators: dict[str, Evaluator],
    exp: Experiment,
    videos: Tensor,
    prompts: list[str],
    fps: float,
    folder: Path,
    ledger: Ledger,
) -> Rewards:
    """Rewards [p, g] of one round; a non-finite pixel or reward stops the run with the offending sample saved."""
    budget, values = exp.budget, {}
    _need_finite("video", videos.flatten(1).isfinite().all(1), videos, prompts, folder)
    for name, weights in exp.reward.items():
        scores = evaluators[name].score(videos, prompts, fps)
        ledger.call_reward(name, len(videos))
        for metric in weights:
            if metric not in scores:
                raise BenchError(
                    f"reward {name}.{metric}: the evaluator gives {', '.join(scores)}; mend 'reward:' in the YAML."
                )
            _need_finite(f"reward {metric}", scores[metric].isfinite(), videos, prompts, folder)
            values[metric] = scores[metric].float().reshape(budget.prompts, budget.group_size)
    return Rewards(values, exp.weights, exp.advantage)


def _need_finite(what: str, finite: Tensor, videos: Tensor, prompts: list[str], folder: Path) -> None:
    """Stop the run at the first sample that is not finite, and save its video."""
    if finite.all():
        return
    from safetensors.torch import save_file

    first, path = int((~finite).nonzero()[0]), folder / "offending_sample.safetensors"
    save_file({"video": videos[first].contiguous()}, path, {"prompt": prompts[first]})
    raise DivergedError(f"{what} of prompt {prompts[first]!r} is not finite; its video is saved as {path}.")


def round_prompts(exp: Experiment, prompts: list[str], seed: int, index: int) -> list[str]:
    """Training prompts of one round: epochs of seeded permutations, the same order for every row."""
    first = index * exp.budget.prompts
    order: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + exp.budget.prompts):
        epoch, place = divmod(position, len(prompts))
        if epoch not in order:
            order[epoch] = torch.randperm(len(prompts), generator=stream(seed, "prompts", epoch)).tolist()
        chosen.append(prompts[order[epoch][place]])
    return chosen
