"""The golden-score gate: a run does not start with an evaluator that does not reproduce its golden scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.api import BenchError
from bench.checks.golden import (
    CLIPS,
    GOLDEN,
    check_golden,
    clips_digest,
    farthest_score,
    golden_path,
    measure_golden,
    read_golden,
    tolerance,
    write_golden,
)
from bench.cli import main
from bench.core.hashing import verify_manifest, write_manifest
from bench.nano.gold import VQ_UNIT, Gold
from bench.report.data.records import failed_gates
from bench.suite.checkpoints import Checkpoint
from bench.suite.paths import resolve
from bench.suite.schema import NANO
from evaluators.clipscore import ClipScore
from tests.helpers.nano_suite import run, tiny
from tests.helpers.toy import NotANumberLater

CLIP = resolve("nano/clip")
SUMS = {
    "ramp": 1297408,
    "square": 281580,
    "still": 271856,
    "wide ramp": 57143552,
    "wide square": 9340380,
    "wide texture": 51411102,
    "tall flicker": 9950400,
}
DIGEST = "12e045fc05af6d49"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkpoint of our own, with its golden scores."""
    return Path(shutil.copytree(CLIP, tmp_path / "clip"))


def edit(path: Path, **changes: Any) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**stored, **changes}), encoding="utf-8")


def test_clips_are_the_same_numbers_everywhere() -> None:
    """The sums here are stored: a change of a clip would change every golden score."""
    sums = {clip.name: int(clip.levels().long().sum()) for clip in CLIPS}
    assert sums == SUMS
    assert clips_digest(CLIPS) == DIGEST
    assert {(clip.size[0], clip.fps) for clip in CLIPS} == {(13, 8.0), (49, 24.0), (25, 12.0)}
    assert len({clip.name for clip in CLIPS}) == len(CLIPS)


def test_clips_are_what_their_names_say() -> None:
    pixels = {clip.name: clip.pixels() for clip in CLIPS}
    assert (pixels["still"] == pixels["still"][:, :1]).all()
    changed = (pixels["square"][0, 1:] != pixels["square"][0, :-1]).flatten(1).any(1)
    assert changed.tolist() == [t != 5 for t in range(12)]  # it stands still where it turns
    red = (pixels["square"][0] > 0.5).sum((1, 2))
    assert (red == 25).all()  # it never leaves the frame
    assert pixels["wide texture"].std() > 0.25


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_golden_scores_do_not_depend_on_the_order_of_work() -> None:
    together, alone = measure_golden(Gold()), measure_golden(Gold(), alone=True)
    assert together.keys() == alone.keys() == {"ramp", "square", "still"}
    assert farthest_score(together, alone)[0] < 1e-5


def test_a_record_has_the_result_of_the_gate(tmp_path: Path) -> None:
    record = run(tiny("evaluation.evaluators=[gold, clipscore]", "budget.updates=1"), tmp_path)
    gate = record.gates["golden_scores"]
    assert gate["passed"] is True
    assert {name: entry["clips"] for name, entry in gate["evaluators"].items()} == {"gold": 3, "clipscore": 7}
    assert all(entry["largest"] <= entry["tolerance"] == 1e-5 for entry in gate["evaluators"].values())
    assert failed_gates(record) == []


def test_a_wrong_score_stops_the_run_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.nano.gold.visual_quality", lambda fit: 3e-4 - fit.residual / VQ_UNIT)
    with pytest.raises(
        BenchError, match=r"evaluator gold does not reproduce.*gold_VQ of clip 'square' is -1\.20866"
    ) as e:
        run(tiny(), tmp_path)
    assert "expected -1.20896 within 1e-05" in str(e.value)
    assert "nothing was trained. Install the versions of requirements.lock" in str(e.value)
    assert not (tmp_path / "train.jsonl").exists()
    assert not (tmp_path / "run.json").exists()


def test_an_evaluator_without_golden_scores_runs_and_the_record_says_so(tmp_path: Path) -> None:
    record = run(
        tiny("evaluation.evaluators=[gold, 'tests.helpers.toy:NotANumberLater']", "budget.updates=1"), tmp_path
    )
    gate = record.gates["golden_scores"]
    assert gate["passed"] is None
    assert gate["evaluators"]["tests.helpers.toy:NotANumberLater"] == {
        "passed": None,
        "not_available": "the checkpoint has no golden_scores.json",
    }
    assert gate["evaluators"]["gold"]["passed"] is True
    assert failed_gates(record) == []


@pytest.mark.parametrize(
    ("gates", "failed"),
    [
        ({"a": {"passed": None}}, []),
        ({"a": {"passed": False}, "b": False, "c": {}, "d": None}, ["a", "b", "c", "d"]),
        ({"a": {"passed": True}, "b": True}, []),
    ],
)
def test_not_available_is_no_failure(gates: dict[str, Any], failed: list[str], tmp_path: Path) -> None:
    record = run(tiny("budget.updates=1"), tmp_path).model_copy(update={"gates": gates})
    assert failed_gates(record) == failed


def test_every_packaged_scorer_has_golden_scores_of_its_dtype() -> None:
    for params in NANO["evaluator_params"].values():
        stored = read_golden(resolve(params["checkpoint"]) / GOLDEN)
        assert stored.tolerance_reason
        assert stored.scores.keys() == {clip.name for clip in CLIPS}


def test_writing_and_proving_go_together(copy: Path) -> None:
    path = copy / GOLDEN
    path.unlink()
    assert check_golden("clipscore", ClipScore(copy), path)["passed"] is None
    write_golden(ClipScore(copy), path)
    assert check_golden("clipscore", ClipScore(copy), path)["passed"] is True
    stored = read_golden(CLIP / GOLDEN)  # written on another CPU, whose sums may differ in the last bits
    assert farthest_score(read_golden(path).scores, stored.scores)[0] <= stored.tolerance


def test_a_renamed_folder_keeps_its_golden_scores(copy: Path) -> None:
    moved = copy.rename(copy.with_name("other"))
    assert check_golden("clipscore", ClipScore(moved), moved / GOLDEN)["passed"] is True


def test_other_settings_have_no_golden_scores(copy: Path) -> None:
    entry = check_golden("clipscore", ClipScore(copy, prefix="A photo depicts "), copy / GOLDEN)
    assert entry == {"passed": None, "not_available": "golden scores are stored for another prefix"}


def test_other_files_are_refused(copy: Path) -> None:
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    with pytest.raises(BenchError, match=r"made with other files \(sha256:config.json differs\)"):
        check_golden("clipscore", ClipScore(copy), copy / GOLDEN)


def test_damaged_golden_scores_are_refused(copy: Path) -> None:
    path, evaluator = copy / GOLDEN, ClipScore(copy)
    whole = path.read_text(encoding="utf-8")
    for text, message in (("", "cannot be read"), (whole[:300], "cannot be read"), ("{}", "cannot be read")):
        path.write_text(text)
        with pytest.raises(BenchError, match=message):
            check_golden("clipscore", evaluator, path)
    for changes, message in (
        ({"fingerprint_digest": "0" * 16}, "were edited"),
        ({"scores": {}}, "were edited or are empty"),
        ({"clips_digest": "0" * 16}, "made with other clips"),
        ({"scores": {"ramp": {"clipscore": 0.0}}}, "made with other clips"),
        ({"scores": {clip.name: {"clipscore": 0.0} for clip in CLIPS}}, "gives clipscore, clip_cosine on"),
        ({"more": 1}, "cannot be read"),
    ):
        path.write_text(whole)
        edit(path, **changes)  # type: ignore[arg-type]
        with pytest.raises(BenchError, match=message):
            check_golden("clipscore", evaluator, path)


def test_scores_that_depend_on_the_batch_are_not_written(tmp_path: Path) -> None:
    class Neighbours(Gold):
        def score(self, videos: Any, prompts: Any, fps: float) -> dict[str, torch.Tensor]:
            return {name: values - values.mean() for name, values in super().score(videos, prompts, fps).items()}

    with pytest.raises(BenchError, match="no golden score can be written"):
        write_golden(Neighbours(), tmp_path / GOLDEN)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dtype_has_no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gold, "fingerprint", lambda self: {"dtype": "float16"})
    with pytest.raises(BenchError, match=r"dtype 'float16'.*float32, bfloat16"):
        tolerance(Gold())


def test_where_golden_scores_lie(tmp_path: Path) -> None:
    (tmp_path / "HPS_v2.1.pt").write_bytes(b"")
    toy = NotANumberLater()
    assert golden_path(toy, {}) is None
    assert golden_path(toy, {"checkpoint": tmp_path}) == tmp_path / "golden_scores.json"
    assert golden_path(toy, {"checkpoint": tmp_path / "HPS_v2.1.pt"}) == tmp_path / "HPS_v2.1.golden_scores.json"
    assert golden_path(Gold(), {}) == resolve("nano/gold") / "golden_scores.json"


def test_golden_scores_are_no_part_of_a_manifest_nor_of_a_digest(copy: Path) -> None:
    assert GOLDEN not in verify_manifest(copy)
    write_manifest(copy)
    assert GOLDEN not in verify_manifest(copy)
    (copy / "manifest.json").unlink()
    before = Checkpoint(str(copy)).digest
    (copy / GOLDEN).unlink()
    assert Checkpoint(str(copy)).digest == before


def test_bench_nano_golden_writes_what_is_committed(tmp_path: Path) -> None:
    for name in ("videoreward", "clip", "pickscore"):
        shutil.copytree(resolve(f"nano/{name}"), tmp_path / name)
        (tmp_path / name / GOLDEN).unlink()
    assert main(["nano", "golden", "--out", str(tmp_path)]) == 0
    for name in ("videoreward", "clip", "pickscore", "gold"):
        stored, written = (read_golden(path / name / GOLDEN) for path in (CLIP.parent, tmp_path))
        assert written.fingerprint == stored.fingerprint
        assert farthest_score(written.scores, stored.scores)[0] <= stored.tolerance
    shutil.rmtree(tmp_path / "clip")
    assert main(["nano", "golden", "--out", str(tmp_path)]) == 2
