"""The command line: exit codes, one clear sentence per mistake, nothing trained by one, and a whole suite in small."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from bench import store
from bench.cli import main
from bench.core.hashing import write_manifest
from bench.core.provenance import ROOT
from bench.launch import jobs
from tests.helpers.nano_suite import CHECKPOINT, NANO, TINY

ROWS = "rows=[{method: flow_grpo, kl: fixed}, {method: cps}]"


def refused(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str, suite: Path = NANO) -> str:
    """The one sentence with which `bench run` and `bench run --dry-run` refuse a suite, with exit code 2."""
    sentences = set()
    for extra in (["--dry-run"], []):
        assert main(["run", str(suite), *TINY, *overrides, "--results", str(results), *extra]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("bench run: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        sentences.add(err)
    (sentence,) = sentences
    return sentence


def refused_untouched(capsys: pytest.CaptureFixture[str], results: Path, *overrides: str) -> str:
    """The same, before anything was written."""
    sentence = refused(capsys, results, *overrides)
    assert not results.exists()
    return sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("budgett=1", "unknown key 'budgett'; did you mean 'budget'?"),
        ("budget.updatess=1", "unknown key 'budget.updatess'; did you mean 'updates'?"),
        ("rows=[{metod: cps}]", "unknown key 'rows.0.metod'; did you mean 'method'?"),
        ("rows=[{method: flow_grop}]", "unknown method 'flow_grop'"),
        ("rows=[{method: cps, label: a, params: {etta: 0.5}}]", "has no parameter 'etta': did you mean 'eta'?"),
        ("rows=[{method: cps, label: a, params: {eta: -1}}]", "eta is -1"),
        (
            "rows=[{method: cps, kl: fixd}]",
            "unknown KL policy 'fixd': known are dual, fixed, moving, none, stepwise; did you mean 'fixed'?",
        ),
        ("rows=[{method: 'nowhere:Thing'}]", "module 'nowhere' cannot be imported"),
        ("evaluation.evaluators=[gold, glod]", "unknown evaluator 'glod'"),
        ("evaluation.evaluators=[clipscore]", "reward evaluator 'gold' is not in evaluation.evaluators"),
        ("evaluator_params={gold: {checkpoint: nano}}", "evaluator 'gold' has no parameter 'checkpoint'"),
        ("backbone.name=hunyuanvideo51", "did you mean 'hunyuanvideo15'?"),
        ("backbone.train={lora_rnk: 8}", "has no parameter 'lora_rnk': did you mean 'lora_rank'?"),
        ("budget.train_steps=4", "has 3 steps to train at update 0, but budget.train_steps is 4"),
        ("budget.micro_batch=3", "choose a budget.micro_batch that divides 4"),
        ("seeds=[0, 0]", "contain one twice"),
        ("noise_policy={kind: matched_rss, rss: 50}", "lower rss"),
        ("nonsense=", "unknown key 'nonsense'"),
        ("suite=my suite", "'my suite' is not a name: write letters, digits, '-' and '_'"),
        ("device=cuda", "unknown key 'device'; did you mean 'backbone.train.device'?"),
        ("updates=3", "unknown key 'updates'; did you mean 'budget.updates'?"),
        ("seeds=0,1", "0,1 is not a list: write seeds='[0, 1]'"),
        ("seeds=3", "3 is not a list: write seeds='[3]'"),
        ("evaluation.evaluators=gold", "write evaluation.evaluators='[gold]'"),
        ("backbone.checkpoint=/nowhere", "only a suite on the checkpoint 'nano' has default prompts and evaluators"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, sentence: str
) -> None:
    assert sentence in refused_untouched(capsys, tmp_path / "results", override)


def test_unknown_method_suggests_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sentence = refused_untouched(capsys, tmp_path / "results", "rows=[{method: dance_gpro}]")
    assert "known are awm, cps, dance_grpo, diffusion_nft, " in sentence
    assert sentence.rstrip().endswith("sage_grpo; did you mean 'dance_grpo'?")


def test_a_method_that_sets_the_budget_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greedy.py").write_text(
        "from dataclasses import dataclass\n"
        "from methods.flow_grpo import FlowGRPO\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Greedy(FlowGRPO):\n"
        "    group_size: int = 64\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sentence = refused_untouched(capsys, tmp_path / "results", "rows=[{method: 'greedy:Greedy'}]")
    assert "greedy:Greedy declares the field 'group_size', which belongs to the suite's budget" in sentence
    assert "under 'budget:' in the YAML" in sentence


PROMPTS = "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}"
"""What a checkpoint of one's own must name; the packaged one brings its own."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the nano checkpoint with its manifest."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    write_manifest(folder)
    return folder


def test_a_good_copy_of_the_checkpoint_is_accepted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    overrides = [*TINY, PROMPTS, f"backbone.checkpoint={checkpoint}"]
    assert main(["run", str(NANO), *overrides, "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    assert "to do" in capsys.readouterr().out


def test_a_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path) -> None:
    sentence = refused_untouched(capsys, tmp_path / "results", PROMPTS, f"backbone.checkpoint={tmp_path / 'nothing'}")
    assert f"checkpoint {tmp_path / 'nothing'} does not exist" in sentence
    lost = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    lost.unlink()
    sentence = refused_untouched(capsys, tmp_path / "results", PROMPTS, f"backbone.checkpoint={checkpoint}")
    assert "vae/diffusion_pytorch_model.safetensors cannot be read: No such file or directory" in sentence


def test_one_flipped_bit_in_a_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> None:
    weights = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    sentence = refused_untouched(capsys, tmp_path / "results", PROMPTS, f"backbone.checkpoint={checkpoint}")
    assert f"checkpoint file {weights} was altered: expected sha256" in sentence


def test_a_suite_that_is_no_suite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results, path = tmp_path / "results", tmp_path / "suite.yaml"
    sentence = refused(capsys, results, suite=path)
    assert f"suite {path} cannot be read (No such file or directory)" in sentence
    assert "or a packaged suite (`bench suites` lists them)" in sentence
    path.write_text("suite: [")
    assert "is not YAML" in refused(capsys, results, suite=path)
    path.write_text("- a\n- b\n")
    assert "is not a mapping" in refused(capsys, results, suite=path)


def test_packaged_suites_are_read_from_any_folder_and_results_lie_below_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["bench/configs/nano.yaml", *TINY]
    assert main(["run", *words, "--dry-run"]) == 0
    assert "suite tiny: 6 runs" in capsys.readouterr().out
    assert main(["table", *words]) == 2
    assert "bench table: results/tiny holds no records" in capsys.readouterr().err
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "mine.yaml").write_text("suite: [")  # a folder of this name is not the packaged checkpoint
    assert main(["run", "nano/mine.yaml"]) == 2
    assert "suite nano/mine.yaml is not YAML" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert "bench verify: results holds no run" in capsys.readouterr().err


def test_ctrl_c_ends_with_the_message_of_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.suite.load.load_variants", interrupt)
    monkeypatch.setattr("bench.audit.verify.verify", interrupt)
    assert main(["run", str(NANO)]) == 130
    assert capsys.readouterr().err.startswith("interrupted; finished runs are kept, and the same command continues")
    assert main(["verify", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again\n"


def test_dry_run_prints_rows_and_costs_and_trains_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    overrides = [*TINY, ROWS, "seeds=[0, 1]", "budget.guidance=2.0"]
    assert main(["run", str(NANO), *overrides, "--results", str(results), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not results.exists()
    assert "suite tiny: 5 runs (base + 2 rows x 2 seeds), 5 to do" in out
    for label in ("base", "flow_grpo-fixed seed 0", "cps-none seed 0", "flow_grpo-fixed seed 1", "cps-none seed 1"):
        assert sum(line.strip().startswith(f"{label} ") and " to do " in line for line in out.splitlines()) == 1
    # guidance counts double everywhere: 2 x (2 x 2 x 2 samples) x 4 steps, and three times as much per trained step
    assert "nfe_rollout 64, nfe_train 96, reward_calls 8, decodes 8, videos 8" in out
    assert "36 videos x 2 steps = 144 NFE" in out
    # four trained runs, two of them with an anchor, and the base in the evaluation
    assert "rollout NFE 256, train NFE 384, anchor NFE 64, curve NFE 0, evaluation NFE 720" in out
    assert "time: unknown until one run of this suite has finished" in out


@pytest.mark.parametrize("words", [["run", "suite.yaml", "--fast"], ["check"], ["fly"], []])
def test_arguments_that_mean_nothing_are_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(("words", "sentence"), [(["stray"], "has no '='"), (["--processes", "0"], "give at least 1")])
def test_arguments_that_cannot_be_meant_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["run", str(NANO), *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.fixture(scope="module")
def same_sources() -> Iterator[None]:
    """Someone who edits a source while the tests run makes another suite of it; here the sources stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "source_digest", lambda: "these sources")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, same_sources: None) -> Path:
    """The results folder of a suite of 2 rows x 1 seed, from a YAML of its own, by 2 processes."""
    results = tmp_path_factory.mktemp("suite") / "results"
    assert main(["run", str(NANO), *TINY, ROWS, "--results", str(results), "--processes", "2"]) == 0
    return results


def again(finished: Path, *words: str) -> list[str]:
    return ["run", str(NANO), *TINY, ROWS, "--results", str(finished), *words]


def test_the_suite_is_complete(finished: Path) -> None:
    records = {path.parent.relative_to(finished).as_posix() for path in finished.rglob(store.RUN)}
    assert records == {"tiny/base", "tiny/flow_grpo-fixed/seed-0", "tiny/cps-none/seed-0"}
    for folder in sorted(finished.rglob(store.RUN)):
        record = store.read_run(folder.parent)[0]
        assert record.status == "finished"
        assert record.updates_done == (0 if record.seed is None else 2)
    flow, cps = (
        store.read_lines(finished / f"tiny/{row}/seed-0/train.jsonl") for row in ("flow_grpo-fixed", "cps-none")
    )
    assert [line["trained_steps"] for line in flow] == [line["trained_steps"] for line in cps]


def test_a_second_call_trains_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(path for path in finished.rglob("*") if path.is_file() and "tables" not in path.parts)
    before = {path: path.stat().st_mtime_ns for path in files}
    assert any(path.name == store.TRAIN for path in before)
    assert main(again(finished)) == 0
    err = capsys.readouterr().err
    assert "3 of 3 runs are finished already" in err
    table = shlex.split(err.splitlines()[-1].partition("print the table with: ")[2])
    assert table == ["bench", "table", str(finished / "tiny")]
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert main(again(finished, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "3 runs (base + 2 rows x 1 seeds), 0 to do" in out
    assert "time: nothing to do" in out


def test_another_suite_in_the_same_folder_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "tiny/base/run.json").read_bytes()
    sentence = refused(capsys, finished, ROWS, "budget.lr=1e-3")
    assert "base and 2 more folder(s) hold other runs: budget.lr is 0.0003 there and 0.001 here. " in sentence
    assert "write elsewhere with --results" in sentence
    assert (finished / "tiny/base/run.json").read_bytes() == before


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m bench.cli assets | head -n 1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_another_row_of_the_same_name_is_refused_with_the_setting_that_differs(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, finished, "rows=[{method: cps, params: {eta: 0.5}, label: cps-none}]")
    assert "holds another run: row cps-none: params.eta is 0.7 there and 0.5 here" in sentence


def test_records_of_other_sources_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "source_digest", lambda: "other sources")
    assert "hold other runs: the harness's sources changed. Start anew with --overwrite" in refused(
        capsys, finished, ROWS
    )


def test_another_row_or_seed_of_the_same_suite_reuses_the_base(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(NANO), *TINY, "rows=[{method: cps}, {method: dance_grpo}]", "--results", str(finished)]
    assert main([*words, "seeds=[0, 1]", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "5 runs (base + 2 rows x 2 seeds), 3 to do" in out
    lines = [line[2:34] + line[34:].rsplit(maxsplit=1)[0] for line in out.splitlines() if line.startswith("  ")]
    state = {line[:32].strip(): line[32:].strip() for line in lines}
    assert state == {
        "base": "finished",
        "cps-none seed 0": "finished",
        "dance_grpo-none seed 0": "to do",
        "cps-none seed 1": "to do",
        "dance_grpo-none seed 1": "to do",
    }


def test_table_writes_its_three_files(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(NANO), *TINY, ROWS, "--results", str(finished)]) == 0
    out, err = capsys.readouterr()
    folder = finished / "tiny" / "tables"
    assert sorted(path.name for path in folder.iterdir()) == ["main.csv", "main.md", "main.tex", "main_narrow.tex"]
    assert out.startswith("# tiny: main table\n")
    lead = "**A demonstration, not a comparison: nothing can be tested with 1 seed per row, since a test needs 3.**"
    assert (folder / "main.md").read_text().startswith(f"# tiny: main table\n\n{lead}")
    assert "written: " in err
    table = pd.read_csv(folder / "main.csv", keep_default_na=False, na_values=[""])
    assert table["row"].tolist() == ["base", "flow_grpo-fixed", "cps-none"]
    assert table["kl"].tolist() == ["none", "fixed", "none"]
    assert table["n_seeds"].tolist() == [0, 1, 1]
    for name in ("trained", "gold_overall", "trained_delta", "gold_overall_delta"):
        assert {name, f"{name}_lo", f"{name}_hi"} <= set(table.columns)
    for i, row in enumerate(("base", "flow_grpo-fixed/seed-0", "cps-none/seed-0")):
        scores = store.read_run(finished / "tiny" / row)[1]
        gold = scores.pivot(index=["prompt_index", "video"], columns="metric", values="value")
        weighted = 0.5 * gold["gold_VQ"] + 0.5 * gold["gold_MQ"] + gold["gold_TA"]
        assert table["gold_overall"][i] == pytest.approx(gold.sum(axis=1).mean(), rel=1e-7)  # 8 digits are written
        assert table["trained"][i] == pytest.approx(weighted.mean(), rel=1e-7)
    assert "\\begin{tabular*}" in (folder / "main.tex").read_text()


def test_the_results_folder_stands_for_the_suite_and_its_overrides(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(finished / "tiny")
    assert main(["table", str(NANO), *TINY, ROWS, "--results", str(finished)]) == 0
    table = capsys.readouterr().out
    assert main(["table", folder]) == 0
    assert capsys.readouterr().out == table
    assert main(["run", folder, "rows+=[{method: cps, kl: fixed}]", "seeds+=[1]", "--dry-run"]) == 0
    assert "suite tiny: 7 runs (base + 3 rows x 2 seeds), 4 to do" in capsys.readouterr().out
    assert main(["verify", folder]) == 0


def test_overwrite_prints_what_is_done_anew(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(again(finished, "budget.lr=1e-3", "--dry-run", "--overwrite")) == 0
    assert capsys.readouterr().out.count(" anew ") == 3


def test_rows_that_the_suite_does_not_have_are_named_under_the_table(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(finished / "tiny"), "rows=[{method: cps}]"]) == 0
    assert "Records of other seeds or rows, not in this table: flow_grpo-fixed/seed-0." in capsys.readouterr().out


def test_table_without_records_says_what_to_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["table", str(NANO), *TINY, "--results", str(tmp_path)]) == 2
    assert "run `bench run`" in capsys.readouterr().err


def test_a_record_that_was_cut_is_refused(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(finished, copy)
    path = copy / "tiny/cps-none/seed-0" / store.RUN
    path.write_text(path.read_text()[:100])
    assert main(again(copy)) == 2
    assert f"record {path} is not JSON" in capsys.readouterr().err


def test_the_nano_suite_itself_is_valid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suite = tmp_path / "copy.yaml"
    suite.write_text(yaml.safe_dump({**yaml.safe_load(NANO.read_text()), "evaluator_params": {}}))
    assert main(["run", str(suite), "--results", str(tmp_path / "results"), "--dry-run"]) == 0
    assert "base + 5 rows" in capsys.readouterr().out
