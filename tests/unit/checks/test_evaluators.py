"""`bench check` for evaluators: ours pass, and for each promise there is a toy that breaks it alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.api import BenchError, Evaluator, Metric
from bench.checks.evaluators import CHECKS, check_evaluator, evaluator_violations
from bench.checks.golden import GOLDEN
from bench.cli import main
from bench.core.process_state import fix_process_state
from bench.suite.paths import resolve


class Sound(Evaluator):
    """A small network's view of each video, and how long the prompt is beside it."""

    metrics: Mapping[str, Metric] = {"glow": Metric(True, "share of white"), "fit": Metric(True, "share of white")}
    prompt_free = frozenset({"glow"})

    def __init__(self) -> None:
        self.net = nn.utils.skip_init(nn.Linear, 3, 1, bias=False)  # draws nothing
        with torch.no_grad():
            self.net.weight.copy_(torch.tensor([[0.2, 0.3, 0.5]]))

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        if videos.isnan().any():
            raise BenchError("a pixel is not a number: fix the generator.")
        with torch.no_grad():
            glow = torch.stack([self.net(video.flatten(1).mean(1))[0] for video in videos])
        return {"glow": glow, "fit": glow - torch.tensor([len(prompt) / 100 for prompt in prompts])}

    def fingerprint(self) -> dict[str, str]:
        return {"kind": "toy"}


class NoUnit(Sound):
    metrics: Mapping[str, Metric] = {"glow": Metric(True, " "), "fit": Metric(True, "share of white")}


class NoMetrics(Sound):
    metrics: Mapping[str, Metric] = {}


class UnknownPromptFree(Sound):
    prompt_free = frozenset({"glow", "MQ"})


class Raises(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        raise RuntimeError("no kernel")


class OtherMetrics(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return {"glow": super().score(videos, prompts, fps)["glow"]}


class WrongShape(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return {name: values[:, None] for name, values in super().score(videos, prompts, fps).items()}


class Infinite(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return {name: values / 0 for name, values in super().score(videos, prompts, fps).items()}


class Counts(Sound):
    calls = 0

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        self.calls += 1
        return {name: values + 1e-7 * self.calls for name, values in super().score(videos, prompts, fps).items()}


class Neighbours(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return {name: values - values.mean() / 50 for name, values in super().score(videos, prompts, fps).items()}


class FirstDiffers(Sound):
    """The score depends on the place in the batch, as with a mask of the first row only."""

    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        offset = 1e-3 * (torch.arange(len(videos)) > 0)
        return {name: values + offset for name, values in super().score(videos, prompts, fps).items()}


class PromptMovesAll(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        scores = super().score(videos, prompts, fps)
        return {**scores, "glow": scores["fit"]}


class PromptIgnored(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        scores = super().score(videos, prompts, fps)
        return {**scores, "fit": scores["glow"]}


class InPlace(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        scores = super().score(videos, prompts, fps)
        videos.clamp_(0.1, 0.9)
        return scores


class EatsPrompts(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        scores = super().score(videos, prompts, fps)
        if isinstance(prompts, list):
            prompts.clear()
        return scores


class TakesNaN(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        return super().score(videos.nan_to_num(), prompts, fps)


class NoDetails(Sound):
    def details(self) -> None:  # type: ignore[override]
        return None


class EmptyFingerprint(Sound):
    def fingerprint(self) -> dict[str, str]:
        return {}


class NumberFingerprint(Sound):
    def fingerprint(self) -> dict[str, str]:
        return {"frames": 8}  # type: ignore[dict-item]


class FreshFingerprint(Sound):
    calls = 0

    def fingerprint(self) -> dict[str, str]:
        self.calls += 1
        return {"call": str(self.calls)}


class DeadWeights(Sound):
    """A second network that is never called, as when a head is loaded beside the one that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class UnknownIdle(Sound):
    idle_weights = frozenset({"logit_scale"})


class Torch(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        torch.rand(1)
        return super().score(videos, prompts, fps)


class Numpy(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        np.random.rand()  # noqa: NPY002
        return super().score(videos, prompts, fps)


class Switches(Sound):
    def score(self, videos: Tensor, prompts: Sequence[str], fps: float) -> dict[str, Tensor]:
        torch.set_float32_matmul_precision("medium")
        return super().score(videos, prompts, fps)


class OddSize(Sound):
    only_size = (7, 8, 8)


BROKEN: list[tuple[type[Evaluator], str, str]] = [
    (NoUnit, "declaration", "glow has no unit"),
    (NoMetrics, "declaration", "metrics is not a mapping"),
    (UnknownPromptFree, "declaration", "prompt_free names ['MQ']"),
    (EmptyFingerprint, "fingerprint", "is empty"),
    (NumberFingerprint, "fingerprint", "holds ['frames']"),
    (FreshFingerprint, "fingerprint", "two calls"),
    (Raises, "score", "RuntimeError: no kernel"),
    (OddSize, "score", "no golden clip has"),
    (OtherMetrics, "metrics", "score gives ['glow'], metrics declares ['fit', 'glow']"),
    (WrongShape, "metrics", "has shape [3, 1], expected [3]"),
    (Infinite, "finite scores", "is not finite"),
    (Counts, "repeatable", "two calls with the same videos"),
    (Neighbours, "independent videos", "of a video alone differs"),
    (FirstDiffers, "independent videos", "differs by 0.001"),
    (PromptMovesAll, "prompts", "glow is declared prompt_free, but another prompt changes it"),
    (PromptIgnored, "prompts", "fit is the same with other prompts"),
    (InPlace, "input unchanged", "changes the videos"),
    (EatsPrompts, "input unchanged", "changes the list of prompts"),
    (TakesNaN, "NaN refused", "raise BenchError"),
    (NoDetails, "details", "gives NoneType"),
    (DeadWeights, "weights count", "other weights in weight change no score"),
    (UnknownIdle, "weights count", "idle_weights names ['logit_scale']"),
    (Torch, "no global randomness", "random state"),
    (Numpy, "no global randomness", "random state"),
    (Switches, "no global changes", "changes float32_matmul_precision from 'highest' to 'medium'"),
]


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_a_sound_evaluator_passes() -> None:
    assert list(evaluator_violations(Sound())) == []
    assert check_evaluator(Sound()) == CHECKS


@pytest.mark.parametrize(("toy", "check", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_promise_is_found_and_no_other(toy: type[Evaluator], check: str, message: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    violations = list(evaluator_violations(toy()))
    assert [violation.check for violation in violations] == [check]
    assert message in violations[0].message
    fix_process_state()
    with pytest.raises(BenchError, match=f"{toy.__name__} fails the check '{check}'"):
        check_evaluator(toy())
    fix_process_state()
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002


def test_every_check_has_a_toy_that_breaks_it() -> None:
    assert {check for _, check, _ in BROKEN} == set(CHECKS)


def test_weights_are_as_they_were_after_the_check() -> None:
    sound = Sound()
    before = sound.net.weight.clone()
    check_evaluator(sound)
    assert torch.equal(sound.net.weight, before)


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    code = main(["check", *words])
    out = capsys.readouterr()
    return code, out.out.splitlines(), out.err


def test_ours_pass_on_the_packaged_checkpoints(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = check(capsys, "videoalign", "clipscore", "pickscore", "gold", "--nano")
    assert code == 0, lines
    passed = f"{len(CHECKS)} checks passed ({', '.join(CHECKS)})"
    assert lines == [
        f"videoalign: {passed}",
        "videoalign: golden scores: 7 clips reproduced",
        f"clipscore: {passed}",
        "clipscore: golden scores: 7 clips reproduced",
        f"pickscore: {passed}",
        "pickscore: golden scores: 7 clips reproduced",
        f"gold: {passed}",
        "gold: note: no weights (torch.nn.Module) found, so 'weights count' had nothing to look at",
        "gold: golden scores: 3 clips reproduced",
    ]


def test_methods_and_evaluators_are_checked_in_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = check(capsys, "cps", "tests.unit.checks.test_evaluators:TakesNaN", "gold")
    assert code == 1
    assert lines[0].startswith("cps: ")
    assert "test_evaluators.py:" in lines[1]
    assert ": NaN-refused: a video with a NaN pixel is scored: raise BenchError." in lines[1]
    assert lines[2] == f"tests.unit.checks.test_evaluators:TakesNaN: 1 of {len(CHECKS)} checks failed"
    assert lines[3].startswith("gold: ")


def test_golden_scores_of_ones_own_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("nano/clip"), tmp_path / "mine")
    path = folder / GOLDEN
    path.unlink()
    words = ("clipscore", "--params", f"checkpoint={folder}", "device=cpu")
    code, lines, _ = check(capsys, *words)
    assert code == 0
    assert lines[-2].endswith("not available, the checkpoint has no golden_scores.json")
    assert lines[-1].startswith("note: nothing tells whether clipscore gives the scores that it gave before: store")
    code, lines, _ = check(capsys, *words, "--write-golden")
    assert code == 0
    assert lines[-2:] == [
        f"clipscore: golden scores written to {path}",
        "clipscore: golden scores: 7 clips reproduced",
    ]
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["scores"]["ramp"]["clip_cosine"] += 1e-3
    path.write_text(json.dumps(stored), encoding="utf-8")
    code, lines, _ = check(capsys, *words)
    assert code == 1
    assert "golden-scores: evaluator clipscore does not reproduce its golden scores: clip_cosine of clip" in lines[-1]


def test_a_constructor_that_raises_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = check(capsys, "clipscore", "--params", "micro_batch=0")
    assert code == 2
    assert "evaluator 'clipscore', parameter 'micro_batch' is 0: give a whole number of at least 1" in error
    code, lines, _ = check(capsys, "tests.unit.checks.test_evaluators:Unmade")
    assert code == 1
    assert "construction: KeyError: 'weights'" in lines[0]
    assert lines[1] == "tests.unit.checks.test_evaluators:Unmade: cannot be checked further before that is fixed"


class Unmade(Sound):
    def __init__(self) -> None:
        raise KeyError("weights")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["videoalgn"], "did you mean 'videoalign'?"),
        (["zzz"], "'zzz' is not the name of a plug-in (method: awm, cps, dance_grpo"),
        (["cps", "--nano"], "cps is a method: --params, --nano and --write-golden are not for methods"),
        (["clipscore", "--params", "checkpoint"], "--params takes KEY=VALUE, got 'checkpoint'"),
        (["clipscore", "--params", "prefix=[a"], "is not YAML (line 1, column 3"),
        (["clipscore", "--params", "prefx=a"], "did you mean 'prefix'?"),
        (["clipscore", "--nano", "--params", "checkpoint=x"], "--nano takes the packaged checkpoint"),
        (["clipscore", "--params", "checkpoint=nowhere"], "nowhere does not exist"),
        (["tests.unit.checks.test_evaluators:Sound", "--write-golden"], "has no folder for golden scores"),
    ],
)
def test_a_wrong_call_is_exit_code_2(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    code, _, stderr = check(capsys, *words)
    assert code == 2
    assert sentence in stderr
