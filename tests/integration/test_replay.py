"""A repeated run: equal bits, a changed line or score measured, and the note of the main table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench import store
from bench.api import BenchError
from bench.audit import replay
from bench.cli import main
from bench.launch.jobs import suite_jobs
from bench.report.data.loading import load_records
from bench.report.tables.main import load_main_table
from bench.report.tables.notes import footnotes
from bench.store.replay import REPLAY
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.run import execute
from tests.helpers import nano_suite
from tests.helpers.nano_suite import NANO, TINY


def toy(folder: Path, *overrides: str) -> Suite:
    """A suite that loads in a second: 3 updates of 8 samples, an anchor from the first one on."""
    (folder / "weights").mkdir(exist_ok=True)
    settings = [
        *(
            "suite=toy",
            f"backbone={{name: 'tests.helpers.toy:LoadedToy', checkpoint: {folder / 'weights'}}}",
            "monitor=[]",
        ),
        *(
            "budget.updates=3",
            "budget.group_size=4",
            "budget.micro_batch=2",
            "reward={'tests.helpers.toy:Brightness': {brightness: 1.0}}",
        ),
        "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
        "evaluation={evaluators: ['tests.helpers.toy:Brightness'], steps: 2, videos_per_prompt: 1}",
        "rows=[{method: cps, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]",
    ]
    return load_suite(NANO, [*TINY, *settings, *overrides])


def run_all(suite: Suite, results: Path) -> Path:
    """Do the base and the row's run under `results`; returns the folder of the suite."""
    for job in suite_jobs(prepare(suite), results):
        execute(job)
    return results / suite.name


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    return run_all(toy(folder), folder / "results")


@pytest.fixture
def suite(once: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(once, tmp_path / "results" / "toy"))


@pytest.fixture
def run(suite: Path) -> Path:
    return suite / "cps-dual" / "seed-0"


def run_replay(run: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["replay", str(run), *words])
    return code, capsys.readouterr().out


def change_line(run: Path, update: int, **changes: Any) -> None:
    """Numbers of one line of the curves, changed; None takes the field away."""
    lines = store.read_lines(run / store.TRAIN)
    lines[update] = {key: value for key, value in {**lines[update], **changes}.items() if value is not None}
    store.write_text(run / store.TRAIN, "".join(json.dumps(line) + "\n" for line in lines))


def change_record(run: Path, **changes: Any) -> None:
    data = json.loads((run / store.RUN).read_text())
    store.write_text(run / store.RUN, json.dumps({**data, **changes}))


def change_score(run: Path, by: float) -> None:
    record, scores = store.read_run(run)
    scores.loc[7, "value"] += by
    store.write_run(run, record, scores)


def test_a_repeated_run_has_equal_bits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code, text = run_replay(run, capsys)
    assert code == 0
    first, *rest = text.splitlines()
    assert first == f"{run}: 3 update(s) and the held-out evaluation done again: equal bits"
    assert rest[0].startswith("training: 0 of ")
    assert rest[1:] == ["scores: all equal", "the same sources, versions, hardware and weights as in the record"]
    stored = json.loads((run / REPLAY).read_text())
    assert stored["equal"] is True
    assert stored["floors"] == {"brightness": 0.0}
    assert stored["other"] == []
    assert stored["hardware"]["cores"] >= 1
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != REPLAY} == before


def test_the_base_is_evaluated_again(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run_replay(suite / "base", capsys)
    assert code == 0
    assert text.startswith(f"{suite / 'base'}: the held-out evaluation done again: equal bits\nscores: all equal\n")
    assert run_replay(suite / "base", capsys, "--updates", "1")[0] == 2


def test_a_changed_line_is_found_and_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = store.read_lines(run / store.TRAIN)[1]
    change_line(run, 1, grad_norm=[line["grad_norm"][0] + 0.25], reward=line["reward"] + 0.125)
    code, text = run_replay(run, capsys)
    assert code == 1
    assert "done again: differs by up to 0.25, above the tolerance of 0" in text
    assert "training: 2 of " in text
    assert "  first: update 1, grad_norm.0: " in text
    assert "(0.25 apart)" in text
    assert "scores: all equal" in text
    stored = json.loads((run / REPLAY).read_text())
    assert (stored["equal"], stored["training_gaps"], stored["floors"]) == (False, 2, {"brightness": 0.0})


def test_a_tolerance_and_the_first_updates(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = store.read_lines(run / store.TRAIN)[1]
    change_line(run, 1, reward=line["reward"] + 0.125)
    change_line(
        run, 0, seconds={"rollout": 1e9}, ledger={**store.read_lines(run / store.TRAIN)[0]["ledger"], "restarts": 4}
    )
    code, text = run_replay(run, capsys, "--updates", "2", "--tolerance", "0.2")
    assert (code, "differs by up to 0.125, within the tolerance of 0.2" in text) == (0, True)
    assert run_replay(run, capsys, "--updates", "2", "--tolerance", "0.1")[0] == 1
    code, text = run_replay(run, capsys, "--updates", "1")
    assert (code, text.splitlines()[0]) == (0, f"{run}: 1 update(s) done again: equal bits")
    assert not (run / REPLAY).exists(), "a part of a run has no scores"


def test_a_changed_score_is_the_floor_and_a_note_of_the_table(
    suite: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_score(run, 0.03125)
    code, text = run_replay(run, capsys)
    assert code == 1
    assert "differs by up to 0.0312" in text
    assert "scores: largest difference brightness 0.0312" in text
    assert run_replay(suite / "base", capsys)[0] == 0
    main_table = load_main_table(suite)
    table, tests = main_table.table, main_table.tests
    notes = [note for note in footnotes(load_records(suite), table, tests) if "floor" in note]
    cpu = json.loads((run / REPLAY).read_text())["hardware"]["cpu"]
    start = "Nondeterminism floor: {} repeated on " + cpu + ": {}."
    assert notes == [
        start.format("base", "equal bits"),
        start.format("cps-dual seed 0", "scores differ by up to 0.031 (brightness); 0 numbers of train.jsonl differ"),
    ]
    change_score(run, 1.0)  # another run in the folder: its replay is stale
    with pytest.raises(BenchError, match=r"replay\.json is that of another run than the record beside it: delete it"):
        footnotes(load_records(suite), table, tests)
    (run / REPLAY).write_text('{"schema": 2}')
    with pytest.raises(BenchError, match=r"replay .*replay\.json is not valid .*: delete it, or make it again"):
        footnotes(load_records(suite), table, tests)
    for path in suite.rglob(REPLAY):
        path.unlink()
    assert not [note for note in footnotes(load_records(suite), table, tests) if "floor" in note]


def test_other_sources_are_reported_and_their_new_fields_are_not_compared(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_line(run, 2, tied_groups=None)
    code, text = run_replay(run, capsys, "--updates", "3")
    assert code == 1, "the same sources write the same fields"
    assert "cannot be compared in full" in text
    assert "not compared: tied_groups, which only the second run has" in text
    made_with = json.loads((run / store.RUN).read_text())["provenance"]
    changed = {**made_with, "source_digest": "older", "packages": {**made_with["packages"], "numpy": "1.0"}}
    change_record(run, provenance=changed, digest="0123456789abcdef")
    code, text = run_replay(run, capsys, "--updates", "3")
    assert code == 0
    assert "done again: equal bits" in text
    assert "other than in the record: sources: older stored, " in text
    assert "other than in the record: package numpy: 1.0 stored, " in text
    change_record(run, provenance=made_with)
    assert (
        "other than in the record: digest: 0123456789abcdef stored, " in run_replay(run, capsys, "--updates", "1")[1]
    )


def test_missing_lines_are_a_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run / store.TRAIN).read_text().splitlines(keepends=True)
    (run / store.TRAIN).write_text("".join(lines[:2]))
    code, text = run_replay(run, capsys, "--updates", "3")
    assert code == 1
    assert "first: update 2, train.jsonl: 2 lines stored, 3 lines again" in text


def test_a_replay_may_go_on_from_its_own_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert run_replay(run, capsys, "--updates", "1", "--out", str(out))[0] == 0
    assert len(store.read_lines(out / store.TRAIN)) == 1
    code, text = run_replay(run, capsys, "--out", str(out))
    assert (code, "equal bits" in text) == (0, True)
    assert store.read_lines(out / store.TRAIN)[-1]["ledger"]["restarts"] == 1
    assert store.read_record(out).scores_digest == store.read_record(run).scores_digest


def test_a_failed_run_must_fail_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the scorer's second micro-batch of a run is not a number, so no line is written
    change = ["reward={'tests.helpers.toy:NotANumberLater': {brightness: 1.0}}"]
    change += ["evaluation={evaluators: ['tests.helpers.toy:NotANumberLater'], steps: 2, videos_per_prompt: 1}"]
    folder = run_all(toy(tmp_path, *change), tmp_path / "results") / "cps-dual" / "seed-0"
    assert store.read_record(folder).status == "failed"
    code, text = run_replay(folder, capsys)
    assert code == 0
    assert "stopped by: reward brightness of prompt" in text
    assert run_replay(folder, capsys, "--updates", "1")[0] == 0
    change_record(folder, status="finished", error=None)
    with pytest.raises(BenchError, match="has no scores"):
        replay.replay(folder)
    report = replay.replay(folder, updates=2)
    assert report.errors[0] is None
    assert report.errors[1] is not None
    assert report.largest == float("inf")


def test_a_mistake_is_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("mine")
    mistakes = {
        ("--updates", "0"): "--updates is 0, but the run has 3 update(s): give 1 to 3.",
        ("--updates", "4"): "--updates is 4, but the run has 3 update(s): give 1 to 3.",
        ("--tolerance", "-1"): "--tolerance is -1.0: give a finite number of at least 0.",
        ("--tolerance", "nan"): "--tolerance is nan",
        ("--out", str(run)): "contains a run already: name a new folder for the replay.",
        ("--out", str(full)): "contains other files: name a new or an empty folder",
    }
    for words, sentence in mistakes.items():
        assert main(["replay", str(run), *words]) == 2
        stderr = capsys.readouterr().err
        assert sentence in stderr
        assert stderr.count("\n") == 1
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]
    assert main(["replay", str(tmp_path / "nothing")]) == 2
    assert "does not exist: run `bench run` first" in capsys.readouterr().err
    settings = json.loads((run / store.RUN).read_text())["config"]
    change_record(run, config={**settings, "temperature": 1})
    assert main(["replay", str(run)]) == 2
    assert "has a configuration that this version does not accept (temperature: " in capsys.readouterr().err


def test_nano_is_repeated_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = nano_suite.tiny("rows=[{method: sage_grpo, kl: dual}]")
    job = suite_jobs(prepare(suite), tmp_path)[1]
    execute(job)
    code, text = run_replay(job.folder, capsys)
    assert code == 0
    assert "2 update(s) and the held-out evaluation done again: equal bits" in text
    assert "the same sources, versions, hardware and weights" in text
