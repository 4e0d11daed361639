"""The held-out curve of a run: it changes nothing, survives kills, and is the same over several processes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from bench import store
from bench.api import BenchError, DivergedError
from bench.audit.findings import Finding
from bench.audit.replay import replay, replay_page
from bench.audit.verify_run import check_run
from bench.core.hashing import digest
from bench.core.progress import Step
from bench.store.curve import curve_digest, read_points, write_points
from bench.store.record import RunRecord
from bench.store.videos import read_videos, videos_digest
from bench.suite.job import Job
from bench.suite.load import load_suite
from bench.train import evaluate as evaluation
from bench.train.run import execute
from bench.train.trainer import Trainer
from tests.helpers.nano_suite import NANO
from tests.helpers.toy_suite import UPDATES, run_in_two, toy_importable, toy_overrides, training_job

CURVE = ("evaluation.every=3",)
POINTS = [3, 6]
TRAIN = ["A cat.", "A small dog.", "A cow.", "A white hen."]
HELD_OUT = ["A fox.", "A brown bear.", "A bee.", "An old owl.", "An ant."]
BATCHES = 3
"""Batches of a point: one video per prompt, two in a batch."""


class KilledError(Exception):
    """Stands for a kill: nothing in the harness catches it."""


def job(folder: Path, *overrides: str) -> Job:
    """The toy's run with two videos per prompt, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in {"train": TRAIN, "heldout": HELD_OUT}.items():
        (folder / f"{name}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    lists = f"prompts={{train: {folder / 'train.txt'}, heldout: {folder / 'heldout.txt'}}}"
    suite = load_suite(NANO, [*toy_overrides(folder), lists, "evaluation.videos_per_prompt=2", *overrides])
    return replace(training_job(suite, folder), digest="d")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run with a curve."""
    one = job(tmp_path_factory.mktemp("whole"), *CURVE)
    assert execute(one).status == "finished"
    return one.folder


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The lines of training without clocks, restarts and what the curve costs."""
    lines = [dict(line) for line in store.read_lines(folder / store.TRAIN)]
    for line in lines:
        del line["seconds"]
        line["ledger"] = training_ledger(line["ledger"])
    return lines


def training_ledger(ledger: dict[str, Any]) -> dict[str, Any]:
    return {name: n for name, n in ledger.items() if name not in ("restarts", "nfe_curve", "curve_videos")}


def assert_same_training(folder: Path, other: Path) -> tuple[RunRecord, RunRecord]:
    """Equal scores, weights and lines, bit for bit."""
    first, second = store.read_record(folder), store.read_record(other)
    assert (first.status, first.scores_digest) == ("finished", second.scores_digest)
    mine, others = load_file(folder / store.POLICY), load_file(other / store.POLICY)
    assert all(torch.equal(mine[key], others[key]) for key in others)
    assert timeless(folder) == timeless(other)
    return first, second


def test_a_curve_has_the_first_videos_of_every_prompt_at_its_updates(whole: Path) -> None:
    record, scores = store.read_run(whole)
    curve = store.read_curve(whole, record)
    assert list(curve.columns) == store.CURVE_COLUMNS
    assert sorted(set(curve["update"])) == POINTS
    assert set(curve["video"]) == {0}
    prompts = len(HELD_OUT)
    assert scores["prompt_index"].nunique() == prompts
    assert len(curve) == len(POINTS) * prompts
    assert record.curve_digest == curve_digest(whole)
    assert record.ledger["curve_videos"] == len(POINTS) * prompts
    assert record.ledger["nfe_curve"] == len(POINTS) * prompts * 2  # steps of the evaluation, without guidance
    assert record.seconds["curve"] > 0


def test_a_curve_changes_nothing_of_the_training(tmp_path: Path, whole: Path) -> None:
    plain = job(tmp_path)
    execute(plain)
    without, with_curve = assert_same_training(plain.folder, whole)
    assert training_ledger(without.ledger) == training_ledger(with_curve.ledger)
    assert (without.curve_digest, (plain.folder / store.CURVE).exists()) == (None, False)
    assert "curve" not in without.seconds


def test_a_point_is_what_the_evaluation_of_that_policy_gives(tmp_path: Path, whole: Path) -> None:
    """A run that ends after 3 updates of the same training is evaluated by the code of the end."""
    short = job(tmp_path, "budget.updates=3", "evaluation.videos_per_prompt=1")
    execute(short)
    _, scores = store.read_run(short.folder)
    curve = read_points(whole)
    point = curve[curve["update"] == 3].drop(columns="update").reset_index(drop=True)
    pd.testing.assert_frame_equal(point, scores, check_exact=True)


@pytest.mark.parametrize("update", range(UPDATES))
@pytest.mark.parametrize("moment", ["before the point", "after the point"])
def test_a_run_killed_at_any_update_resumes_to_the_same_bits(
    tmp_path: Path, whole: Path, update: int, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after an update, before or after its point is written, and in either case before its checkpoint."""
    score_point = Trainer._score_point

    def dying(self: Trainer, report: Any) -> None:
        if self.updates_done == update + 1 and moment == "before the point":
            raise KilledError
        score_point(self, report)
        if self.updates_done == update + 1:
            raise KilledError

    one = job(tmp_path, *CURVE)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_score_point", dying)
        with pytest.raises(KilledError):
            execute(one)
    execute(one)
    record, expected = assert_same_training(one.folder, whole)
    assert record.curve_digest == expected.curve_digest
    assert (one.folder / store.CURVE).read_bytes() == (whole / store.CURVE).read_bytes()
    assert {**record.ledger, "restarts": 0} == {**expected.ledger, "restarts": 0}


def test_a_resumed_run_without_its_earlier_points_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, run_update = job(tmp_path, *CURVE), Trainer.run_update

    def dying(self: Trainer, index: int) -> float:
        if index == 5:
            raise KilledError
        return run_update(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_update", dying)
        with pytest.raises(KilledError):
            execute(one)
    (one.folder / store.CURVE).unlink()
    with pytest.raises(BenchError, match=r"curve\.parquet lacks a point before the checkpoint.*delete"):
        execute(one)


def test_two_processes_give_the_curve_of_one(tmp_path: Path, whole: Path) -> None:
    one = job(tmp_path, *CURVE)
    with toy_importable():
        assert run_in_two(one, tmp_path) == ["finished", "finished"]
    mine, other = read_points(one.folder), read_points(whole)
    assert mine.drop(columns="value").equals(other.drop(columns="value"))
    # gradients are summed in another order, so that the policies are equal up to rounding alone
    assert mine["value"].to_numpy() == pytest.approx(other["value"].to_numpy(), rel=1e-5)
    ledgers = [store.read_record(folder).ledger for folder in (one.folder, whole)]
    assert ledgers[0] == ledgers[1]


def test_a_run_that_diverges_in_a_point_fails_and_keeps_the_points_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = evaluation._score_batch, []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > BATCHES:  # in the second point
            raise DivergedError("a held-out video is not finite")
        return score(*args)

    monkeypatch.setattr(evaluation, "_score_batch", failing)
    one = job(tmp_path, *CURVE)
    record = execute(one)
    assert (record.status, record.updates_done, record.scores_digest) == ("failed", 6, None)
    assert sorted(set(store.read_curve(one.folder, record)["update"])) == [3]


def test_progress_says_that_a_point_is_scored(tmp_path: Path) -> None:
    steps: list[Step] = []
    execute(job(tmp_path, *CURVE), steps.append)
    phases = [step.phase for step in steps]
    assert phases.count("curve") == 2 * (1 + BATCHES)
    first = phases.index("curve")
    assert steps[first - 1].phase == "train"
    assert (steps[first].done, steps[first].total) == (0, len(HELD_OUT))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing, which its record expects"),
        (lambda path: path.write_bytes(b"no parquet"), "cannot be read"),
        (lambda path: forge(path), "does not belong to its record"),
    ],
    ids=["missing", "damaged", "forged"],
)
def test_a_curve_that_is_not_that_of_its_record_is_refused(
    tmp_path: Path, whole: Path, damage: Any, message: str
) -> None:
    record = store.read_record(whole)
    path = tmp_path / store.CURVE
    path.write_bytes((whole / store.CURVE).read_bytes())
    damage(path)
    with pytest.raises(BenchError, match=message):
        store.read_curve(tmp_path, record)


def forge(path: Path) -> None:
    frame = pd.read_parquet(path)
    frame.loc[0, "value"] += 0.1
    frame.to_parquet(path)


COLOUR = (
    "backbone.name=tests.helpers.toy:ColourToy",
    "evaluation.keep_videos=1",
)


def test_kept_videos_are_those_that_were_scored(tmp_path: Path) -> None:
    """The evaluator's score is the mean brightness, so that the stored frames give it again."""
    one = job(tmp_path, *COLOUR)
    record = execute(one)
    kept = read_videos(one.folder)
    assert kept is not None
    assert kept.problems() == []
    assert [(clip["prompt_index"], clip["video"]) for clip in kept.index["clips"]] == [
        (p, 0) for p in range(len(HELD_OUT))
    ]
    assert {name: kept.index[name] for name in ("frames", "height", "width", "format", "fps")} == {
        **{"frames": 1, "height": 2, "width": 2, "format": "webp", "fps": 8.0}
    }
    _, scores = store.read_run(one.folder)
    for line in scores[scores["video"] == 0].itertuples():
        brightness = kept.frames(int(line.prompt_index), 0).mean() / 255
        assert brightness == pytest.approx(float(line.value), abs=0.5 / 255)
    assert record.videos_digest is not None


def test_two_processes_keep_the_videos_of_one(tmp_path: Path) -> None:
    one, two = job(tmp_path / "one", *COLOUR, "budget.updates=1"), job(tmp_path / "two", *COLOUR, "budget.updates=1")
    execute(one)
    with toy_importable():
        assert run_in_two(two, tmp_path) == ["finished", "finished"]
    first, second = read_videos(one.folder), read_videos(two.folder)
    assert first is not None
    assert second is not None
    assert [clip["line"] for clip in second.index["clips"]] == list(range(len(HELD_OUT)))
    for p in range(len(HELD_OUT)):
        apart = first.frames(p, 0).astype(int) - second.frames(p, 0).astype(int)
        assert abs(apart).max() <= 1  # equal up to rounding: gradients are summed in another order


def test_a_run_that_fails_keeps_no_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, calls = evaluation._score_batch, []

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise DivergedError("a held-out video is not finite")
        return score(*args)

    monkeypatch.setattr(evaluation, "_score_batch", failing)
    monkeypatch.setattr("bench.store.videos.SMALL", 1)  # each clip in a file of its own, which is written at once
    one = job(tmp_path, *COLOUR, "budget.updates=1")
    record = execute(one)
    assert (record.status, record.videos_digest) == ("failed", None)
    assert not (one.folder / "videos").exists()


def test_another_run_in_the_folder_removes_curve_and_videos(tmp_path: Path) -> None:
    one = job(tmp_path, *COLOUR, *CURVE)
    execute(one)
    plain = replace(job(tmp_path, "budget.updates=1", "evaluation.videos_per_prompt=1"), digest="e", overwrite=True)
    execute(replace(plain, folder=one.folder))
    files = sorted(path.name for path in one.folder.iterdir())
    assert store.CURVE not in files
    assert "videos" not in files


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with a curve and kept videos, under its own digest."""
    folder = tmp_path_factory.mktemp("stored")
    one = job(folder, *COLOUR, *CURVE)
    one = replace(one, digest=digest(one.inputs))
    execute(one)
    return one.folder


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    """A copy to change, in a folder of the same name."""
    return shutil.copytree(stored, tmp_path / "cps-dual" / "seed-0")


def findings(run: Path) -> list[str]:
    return [result.text for result in check_run(run) if isinstance(result, Finding) and result.wrong]


def test_a_run_with_curve_and_videos_is_well(stored: Path) -> None:
    assert findings(stored) == []


def edit_record(run: Path, **changes: Any) -> None:
    content = json.loads((run / store.RUN).read_text())
    (run / store.RUN).write_text(json.dumps(content | changes))


def change_curve(run: Path, change: Any) -> None:
    """Change the curve and the digest that the record has of it."""
    write_points(run, change(read_points(run)))
    edit_record(run, curve_digest=curve_digest(run))


def without_a_point(run: Path) -> None:
    change_curve(run, lambda curve: curve[curve["update"] != 3])


def without_a_prompt(run: Path) -> None:
    change_curve(run, lambda curve: curve[curve["prompt_index"] != 4])


def other_videos(run: Path) -> None:
    change_curve(run, lambda curve: curve.assign(video=1))


def changed_clip(run: Path) -> None:
    path = run / "videos" / "clips.webp"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def changed_index(run: Path) -> None:
    path = run / "videos" / "index.json"
    path.write_text(path.read_text().replace('"fps": 8.0', '"fps": 9.0'))


def fewer_clips(run: Path) -> None:
    path = run / "videos" / "index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"clips": index["clips"][:-1]}))
    edit_record(run, videos_digest=videos_digest(run))


def foreign_name(run: Path) -> None:
    path = run / "videos" / "index.json"
    path.write_text(path.read_text().replace("clips.webp", "../../other.webp", 1))
    edit_record(run, videos_digest=videos_digest(run))


FORGERIES: dict[str, tuple[Any, str]] = {
    "a value of the curve": (lambda run: forge(run / store.CURVE), "curve.parquet does not belong to its record"),
    "no curve": (lambda run: (run / store.CURVE).unlink(), "curve.parquet is missing, which its record expects"),
    "a curve that the record denies": (lambda run: edit_record(run, curve_digest=None), "of another run"),
    "a point left out": (without_a_point, "curve.parquet has the points [6], its settings ask for [3, 6]"),
    "a prompt left out": (without_a_prompt, "its ledger has curve_videos 10, curve.parquet has cost 8"),
    "other videos": (
        other_videos,
        "point 3 of curve.parquet has other prompts, videos or metrics",
    ),
    "a changed clip": (changed_clip, "videos/clips.webp is not the file that videos/index.json lists"),
    "a missing clip": (lambda run: (run / "videos" / "clips.webp").unlink(), "videos/clips.webp is missing"),
    "a changed index": (changed_index, "videos/index.json was changed"),
    "no index": (lambda run: (run / "videos" / "index.json").unlink(), "videos/index.json is missing"),
    "an index that the record denies": (lambda run: edit_record(run, videos_digest=None), "the record has none"),
    "a clip left out": (fewer_clips, "it keeps 4 videos, its settings ask for the first 1 of 5 prompts"),
    "a path out of the folder": (foreign_name, "has the file '../../other.webp' and line 0 for clip 0"),
    "a foreign file": (lambda run: (run / "videos" / "x.mp4").write_bytes(b""), "videos/x.mp4 is no file of the kept"),
}


@pytest.mark.parametrize(("change", "text"), FORGERIES.values(), ids=FORGERIES.keys())
def test_verify_finds_a_forged_curve_and_forged_videos(copy: Path, change: Any, text: str) -> None:
    change(copy)
    assert any(text in found for found in findings(copy)), findings(copy)


def test_a_replay_compares_the_points(copy: Path) -> None:
    report = replay(copy)
    assert report.equal
    assert report.curve_differences == {"brightness": 0.0}
    change_curve(copy, lambda curve: curve.assign(value=curve["value"] + 0.25 * (curve["update"] == 6)))
    changed = replay(copy, updates=6)
    assert not changed.equal
    assert changed.curve_differences == {"brightness": pytest.approx(0.25)}
    assert "curve: largest difference brightness 0.25" in replay_page(changed, 0.0)
    assert replay(copy, updates=4).equal  # the point after update 6 is not done again
