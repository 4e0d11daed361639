"""`bench evaluate`: a policy's scores are those of its run, from the run's folder and from files of other programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench import store
from bench.audit import evaluation
from bench.cli import main
from bench.core.provenance import ROOT
from bench.launch.jobs import suite_jobs
from bench.suite.job import Job, TrainingRun
from bench.suite.prepared import prepare
from bench.train.run import execute
from tests.helpers.nano_suite import NANO, TINY, tiny

CAPTIONS = 4
"""Held-out captions of the tests."""


def overrides(results: Path) -> list[str]:
    heldout = results.parent / "heldout.txt"
    captions = (ROOT / "bench" / "prompts" / "nano_heldout.txt").read_text().splitlines()
    heldout.write_text("\n".join([line for line in captions if not line.startswith("#")][:CAPTIONS]) + "\n")
    train = "prompts.train=bench/prompts/nano_train.txt"
    return [
        *("budget.updates=1", "budget.lr=0.01", "evaluation.steps=1", "rows=[{method: cps, kl: fixed}]"),
        *(train, f"prompts.heldout={heldout}"),
    ]


def jobs(results: Path) -> list[Job]:
    return suite_jobs(prepare(tiny(*overrides(results))), results)


def evaluate(results: Path, policies: Sequence[Path], *options: str) -> int:
    words = [word for path in policies for word in ("--policy", str(path))]
    return main(
        ["evaluate", str(NANO), *TINY, *overrides(results), *words, *options, "--results", str(results), "--quiet"]
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, and its policy exported in the layouts of diffusers and of peft."""
    folder = tmp_path_factory.mktemp("evaluate")
    (_, job) = jobs(folder / "results")
    assert isinstance(job, TrainingRun)
    assert execute(job).status == "finished"
    assert main(["export", str(job.folder), str(folder / "exported")]) == 0
    for name, files in {"theirs": ["adapter_model.safetensors", "adapter_config.json"], "mine": []}.items():
        (folder / name).mkdir()
        for file in files or ["pytorch_lora_weights.safetensors"]:
            shutil.copy(folder / "exported" / file, folder / name / file)
    return folder / "results"


@pytest.fixture(scope="module")
def run(results: Path) -> Path:
    return results / "tiny" / "cps-fixed" / "seed-0"


def scores(folder: Path, name: str = evaluation.SCORES) -> pd.DataFrame:
    return pd.read_parquet(folder / name)


def test_scores_have_the_bits_of_the_run(
    results: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = [run, results.parent / "mine", results.parent / "theirs" / "adapter_model.safetensors"]
    assert evaluate(results, policies, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    names = ["base", "tiny-cps-fixed-seed-0", "mine", "theirs"]
    assert [line["policy"] for line in document["policies"]] == names
    folder, expected = results / "tiny" / "evaluated", scores(run, store.SCORES)
    for name in names[1:]:
        pd.testing.assert_frame_equal(scores(folder / name), expected, check_exact=True)
    base = scores(folder / "base")
    assert not base["value"].equals(expected["value"])
    gain = (expected["value"] - base["value"])[expected["metric"] == "gold_TA"].mean()
    (line,) = (line for line in document["policies"] if line["policy"] == "mine")
    assert line["gold_ta_diff"] == pytest.approx(gain)
    assert line["gold_ta_diff_lo"] < gain < line["gold_ta_diff_hi"]
    assert "LoRA in the layout of diffusers' models, rank 8" in line["what"]

    # nothing is scored twice, the text says what the lines are, and the base's own run has the same bits
    assert execute(jobs(results)[0]).status == "finished"
    pd.testing.assert_frame_equal(scores(results / "tiny" / "base", store.SCORES), base, check_exact=True)
    monkeypatch.setattr(evaluation, "load_models", None)
    assert evaluate(results, policies) == 0
    text = capsys.readouterr().out
    assert "mine - base" in [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert "These lines stand in no table of the suite" in text
    assert f"base: the base model; {results / 'tiny' / 'base'}" in text

    # tables and readers of records pass them over
    assert set(bench.load_results(results / "tiny").runs["row"]) == {"base", "cps-fixed"}
    assert main(["table", str(results / "tiny")]) == 0
    assert "mine" not in capsys.readouterr().out


def test_what_does_not_fit_is_refused_before_a_model_is_loaded(
    results: Path, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluation, "load_models", None)
    whole = (results.parent / "mine" / "pytorch_lora_weights.safetensors").read_bytes()

    def refusal(policies: Sequence[Path]) -> str:
        assert evaluate(results, policies) == 2
        return capsys.readouterr().err

    half = tmp_path / "half.safetensors"
    half.write_bytes(whole[:-1000])
    assert "half.safetensors is not a whole safetensors file" in refusal([half])
    assert "does not exist: name a LoRA's file or folder" in refusal([tmp_path / "nowhere"])
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(whole)
    assert "the name 'twin' is taken twice" in refusal([twin, twin])
    empty = tmp_path / "run"
    shutil.copytree(run, empty)
    (empty / store.POLICY).write_bytes(b"")
    assert f"{store.POLICY} has 0 bytes" in refusal([empty])
    (empty / store.POLICY).unlink()
    assert "has no policy" in refusal([empty])
    stored = results / "tiny" / "evaluated" / "twin"
    stored.mkdir(parents=True)
    other = json.loads((results / "tiny" / "evaluated" / "mine" / evaluation.RESULT).read_text())
    (stored / evaluation.RESULT).write_text(json.dumps(other))
    assert "holds the scores of another policy, or of another state" in refusal([twin])
