"""A results folder stores its suite: loading the folder gives the suite of the latest run, or that of its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.store import read_record
from bench.suite.load import load_suite, load_variants
from bench.suite.recorded import SUITE_FILE, record_difference, results_of
from bench.suite.schema import Suite
from bench.suite.stored import write_suite
from tests.helpers import toy_records
from tests.helpers.nano_suite import NANO
from tests.helpers.toy_records import CONFIG

CONFIGS = sorted(path.name for path in NANO.parent.glob("*.yaml"))


def store_suite(results: Path, *words: str, config: str = "nano.yaml") -> list[Suite]:
    suites = load_variants(NANO.parent / config, words)
    write_suite(results / suites[0].study, suites)
    return suites


@pytest.mark.parametrize("name", CONFIGS)
def test_loading_the_folder_gives_equal_suites(tmp_path: Path, name: str) -> None:
    suites = store_suite(tmp_path, config=name)
    assert load_variants(tmp_path / suites[0].study) == suites
    assert results_of(tmp_path / suites[0].study) == tmp_path


def test_overrides_and_odd_texts_survive(tmp_path: Path) -> None:
    words = [
        *("suite=mine", "seeds=[3, 4]", "budget.lr=1e-5", "evaluator_params.videoalign.normalise=false"),
        "rows=[{method: cps, label: a, params: {eta: 0.5}}, {method: 'my_grpo:MyGRPO', kl: {name: fixed}, label: b}]",
        "backbone.train.note='no, 1e-4: # é'",
    ]
    suites = store_suite(tmp_path, *words)
    assert load_variants(tmp_path / "mine") == suites
    text = (tmp_path / "mine" / SUITE_FILE).read_text(encoding="utf-8")
    assert text.startswith("# The suite of this folder")
    assert "&" not in text


def test_further_overrides_reach_every_variant_of_a_stored_study(tmp_path: Path) -> None:
    suites = store_suite(tmp_path, config="nano_setting.yaml")
    again = load_variants(tmp_path / "nano_setting", ["budget.updates=3", "seeds+=[7]"])
    assert [suite.variant for suite in again] == [suite.variant for suite in suites]
    assert {suite.budget.updates for suite in again} == {3}
    assert all(suite.seeds[-1] == 7 for suite in again)
    folder = tmp_path / "nano_setting" / suites[1].variant
    folder.mkdir()
    assert load_variants(folder) == [suites[1]]
    assert results_of(folder) == tmp_path


def test_variants_that_differ_inside_a_mapping_share_the_rest_of_it(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        f"extends: {NANO}\nsuite: study\nvariants:\n  a: {{budget: {{lr: 1.0e-3}}}}\n  b: {{}}\n"
    )
    suites = load_variants(tmp_path / "study.yaml")
    stored = yaml.safe_load(write_suite(tmp_path / "study", suites).read_text(encoding="utf-8"))
    assert stored["variants"] == {"a": {"budget": {"lr": 1e-3}}, "b": {"budget": {"lr": 3e-4}}}
    a, b = load_variants(tmp_path / "study", ["budget.updates=2"])
    assert (a.budget.updates, a.budget.lr, b.budget.lr) == (2, 1e-3, 3e-4)


def test_paths_are_stored_so_that_they_lead_to_the_same_files_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    store_suite(tmp_path, "suite=mine", "prompts.train=train.txt", "prompts.heldout=bench/prompts/nano_heldout.txt")
    monkeypatch.chdir(ROOT)
    suite = load_suite(tmp_path / "mine")
    assert suite.prompt_list("train") == ["a", "b", "c", "d"]
    assert suite.prompts.heldout == "bench/prompts/nano_heldout.txt"
    assert suite.backbone.checkpoint == "nano"


def test_a_renamed_folder_keeps_its_suite(tmp_path: Path) -> None:
    store_suite(tmp_path, "suite=mine")
    (tmp_path / "mine").rename(tmp_path / "kept")
    assert load_suite(tmp_path / "kept").name == "kept"


def test_an_older_folder_is_read_from_its_records(tmp_path: Path) -> None:
    results = tmp_path / "results"
    toy_records.write_suite(results / "toy")
    more = {"rows": [{"method": "flow_grpo", "label": "more", "params": {"eta": 0.3}}], "seeds": [3, 101]}
    toy_records.write(results / "toy", "more", 3, more)
    suite = load_suite(results / "toy")
    assert [row.name for row in suite.rows] == ["sage_grpo-dual", "cps-fixed", "more"]
    assert suite.rows[2].params == {"eta": 0.3}
    assert suite.seeds == [0, 1, 2, 3], "without pilot seeds"
    assert suite.shared() == Suite.model_validate(CONFIG).shared()
    assert results_of(results / "toy") == results


def test_an_older_study_is_read_from_its_records(tmp_path: Path) -> None:
    for name, updates in (("short", 6), ("long", 7)):
        toy_records.write_suite(
            tmp_path / "study" / name, {"suite": f"study/{name}", "budget": {**CONFIG["budget"], "updates": updates}}
        )
    long, short = load_variants(tmp_path / "study")
    assert (long.name, long.budget.updates, short.name, short.budget.updates) == ("study/long", 7, "study/short", 6)
    assert load_variants(tmp_path / "study" / "short") == [short]
    assert results_of(tmp_path / "study" / "short") == results_of(tmp_path / "study") == tmp_path


def test_records_of_several_settings_are_refused(tmp_path: Path) -> None:
    toy_records.write_suite(tmp_path / "toy")
    toy_records.write(tmp_path / "toy", "cps-fixed", 5, {"decode": "final_latent", "seeds": [5]})
    with pytest.raises(BenchError, match=r"holds runs of several settings \(decode is .*\): name the suite's YAML"):
        load_suite(tmp_path / "toy")


def test_a_folder_that_is_not_that_of_a_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="stores no suite and no records: name a suite's YAML"):
        load_suite(tmp_path)
    toy_records.write_suite(tmp_path / "toy")
    with pytest.raises(BenchError, match=r"holds several suites: name one of them, such as .*/toy"):
        load_suite(tmp_path)
    with pytest.raises(BenchError, match="stores no suite and no records"):
        load_suite(tmp_path / "toy" / "cps-fixed")


def test_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_suite(tmp_path, "suite=mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert load_suite(".").name == "mine"
    assert results_of(Path()) == tmp_path


def test_the_stored_reference_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite(ROOT / "results" / "reference" / "nano")
    assert suite == load_suite(NANO, ["seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"])


def difference(folder: Path, **changes: Any) -> str | None:
    """What the run of `toy_records` has otherwise than the toy suite with these changes."""
    return record_difference(folder, read_record(folder), Suite.model_validate({**CONFIG, **changes}))


def test_prompts_are_compared_by_their_content(tmp_path: Path) -> None:
    run = toy_records.write(tmp_path, "cps-fixed", 0)
    prompts = Suite.model_validate(CONFIG).prompts
    copies = {"train": str(tmp_path / "t.txt"), "heldout": str(tmp_path / "h.txt")}
    for key, path in copies.items():
        Path(path).write_bytes((ROOT / getattr(prompts, key)).read_bytes())
    assert difference(run, prompts=copies) is None
    Path(copies["train"]).write_text("other\n", encoding="utf-8")
    assert difference(run, prompts=copies) == "the prompts are other ones there and here"
    Path(copies["train"]).unlink()
    assert difference(run, prompts=copies) is None, "what is not there cannot be compared"


def test_checkpoints_are_compared_by_their_content(tmp_path: Path) -> None:
    run = toy_records.write(tmp_path, "cps-fixed", 0)
    params = {"videoalign": {"checkpoint": str(tmp_path / "here")}}
    assert difference(run, evaluator_params=params) is None, "an older run does not say what it used"
    (run / "inputs.json").write_text('{"checkpoints": {"videoalign.checkpoint": {"a.bin": "00"}}}', encoding="utf-8")
    assert difference(run, evaluator_params=params) is None, "what is not there cannot be compared"
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a.bin").write_bytes(b"1")
    change = difference(run, evaluator_params=params)
    assert change == f"checkpoint videoalign.checkpoint is nano/videoreward there and {tmp_path / 'here'} here, " + (
        "with other files"
    )


def test_settings_and_the_row_are_compared(tmp_path: Path) -> None:
    run = toy_records.write(tmp_path, "cps-fixed", 0)
    assert difference(run) is None
    assert difference(run, decode="final_latent") == "decode is predicted_x0 there and final_latent here"
    rows = [{"method": "cps", "kl": "fixed", "label": "cps-fixed", "params": {"eta": 0.1}}]
    assert difference(run, rows=rows) == "row cps-fixed.params.eta is None there and 0.1 here"
