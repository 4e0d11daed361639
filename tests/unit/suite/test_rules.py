"""KL policies, noise policies and advantage rules of one's own: named in a suite, run, recorded, in the digest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import store
from bench.api import BenchError, Rewards
from bench.core.world import SINGLE_PROCESS
from bench.launch.jobs import suite_jobs
from bench.report.data.selection import recorded_rows
from bench.suite.load import load_suite, load_variants
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from tests.helpers.nano_suite import NANO
from tests.helpers.toy_suite import run_alone, toy_suite

RULES = '''
from dataclasses import dataclass
import torch
from bench.api import AdvantageRule, KLPolicy, NoisePolicy, RefreshRule

@dataclass(frozen=True, kw_only=True)
class K3(KLPolicy):
    """Two anchors with a forward pass, and an estimate against the rollout policy."""
    weight: float = 0.01
    growth: float = 1.1

    def anchors(self):
        return {"fixed": RefreshRule(), "moving": RefreshRule(every=2)}

    def weights(self, state):
        return dict.fromkeys(("base", "copy", "k3"), self.weight * state["factor"])

    def terms(self, step):
        log_ratio = step.logp_old - step.logp_new
        k3 = torch.exp(log_ratio) - 1 - log_ratio
        return {"base": step.divergences["fixed"], "copy": step.divergences["moving"], "k3": k3}

    def init_state(self):
        return {"factor": 1.0}

    def next_state(self, state, logs):
        return {"factor": state["factor"] * self.growth}

@dataclass(frozen=True, kw_only=True)
class Peak(NoisePolicy):
    """The eta whose largest step has this std."""
    std: float = 0.2

    def choose_eta(self, own, variance):
        return self.std / float(variance(1.0).max()) ** 0.5

@dataclass(frozen=True)
class Ranks(AdvantageRule):
    """Ranks within the group, from -scale to scale."""
    scale: float = 1.0

    def advantages(self, rewards):
        total = rewards.total()
        below = (total[:, :, None] > total[:, None]).sum(2) - (total[:, :, None] < total[:, None]).sum(2)
        return (self.scale * below / (total.shape[1] - 1))[None]

class NotARule:
    pass
'''
SETTINGS = (
    "rows=[{method: dance_grpo, kl: {name: 'own_rules:K3', params: {growth: 1.01}}}]",
    "noise_policy={kind: 'own_rules:Peak', std: 0.3}",
    "advantage={kind: 'own_rules:Ranks', scale: 2.0}",
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own_rules.py"
    path.write_text(RULES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)
    return path


def own_suite(folder: Path, **changes: Any) -> Suite:
    """The toy suite with all three plug-ins; `changes` are keys of the suite."""
    data = toy_suite(folder).model_dump(mode="json")
    del data["noise_policy"], data["advantage"]
    row = {"method": "dance_grpo", "kl": {"name": "own_rules:K3", "params": {"growth": 1.01}}}
    rules = {"noise_policy": {"kind": "own_rules:Peak", "std": 0.3}, "advantage": {"kind": "own_rules:Ranks"}}
    return Suite.model_validate({**data, "rows": [row], **rules, **changes})


@pytest.mark.usefixtures("own")
def test_a_run_trains_with_all_three_and_records_them(tmp_path: Path) -> None:
    prepared = prepare(own_suite(tmp_path))
    (row,) = prepared.rows
    assert row.name == "dance_grpo-own_rules.K3"
    assert row.identity()["kl_params"] == {"weight": 0.01, "growth": 1.01}
    _, job = suite_jobs(prepared, tmp_path / "results")
    assert run_alone(job, SINGLE_PROCESS) == "finished"
    record, lines = store.read_record(job.folder), store.read_lines(job.folder / store.TRAIN)
    assert job.folder == tmp_path / "results" / "toy" / "dance_grpo-own_rules.K3" / "seed-0"
    assert record.kl == "own_rules:K3"
    assert record.config["noise_policy"] == {"kind": "own_rules:Peak", "std": 0.3}
    assert record.config["advantage"] == {"kind": "own_rules:Ranks"}
    assert max(record.extra["schedule"]["std"]) == pytest.approx(0.3)
    assert record.ledger["nfe_anchor"] == 2 * 8 * 8 * 2  # two anchors, 8 samples, 8 updates, 2 trained steps
    assert lines[0]["kl_base"] == lines[0]["kl_copy"] == lines[0]["kl_k3"] == 0.0
    assert 0 < lines[-1]["kl_copy"] != lines[-1]["kl_base"] > 0
    assert lines[-1]["kl_weight"] == pytest.approx(dict.fromkeys(("base", "copy", "k3"), 0.01 * 1.01**16))
    assert [(shown.label, shown.kl) for shown in recorded_rows(record.config, [record])] == [(row.name, record.kl)]


def test_an_edit_of_each_file_changes_the_digest_of_the_runs_and_nothing_else_does(own: Path, tmp_path: Path) -> None:
    def digests(**changes: Any) -> list[str]:
        return [job.digest for job in suite_jobs(prepare(own_suite(tmp_path, **changes)), tmp_path, "sources")]

    plain = toy_suite(tmp_path).model_dump(mode="json")
    packaged = {key: plain[key] for key in ("noise_policy", "advantage", "rows")}
    mixed = [{key: packaged[key] for key in packaged if key != kept} for kept in packaged]
    before, ours = [digests(**changes) for changes in mixed], digests(**packaged)
    assert before == [digests(**changes) for changes in mixed]
    own.write_text(RULES + "\nANOTHER = 1\n", encoding="utf-8")
    assert digests(**packaged) == ours
    for was, changes in zip(before, mixed, strict=True):
        (base, trained), (base_was, trained_was) = digests(**changes), was
        assert trained != trained_was
        assert (base != base_was) == ("rows" in changes)  # the base has no KL policy


@pytest.mark.usefixtures("own")
def test_the_parameters_of_all_three_reach_the_objects(tmp_path: Path) -> None:
    suite = load_suite(NANO, list(SETTINGS))
    prepared = prepare(suite)
    rewards = Rewards({"a": torch.tensor([[1.0, 2.0, 4.0]])}, {"a": 1.0}, prepared.advantage_rule)
    assert prepared.rows[0].method.advantages(rewards).tolist() == [[[-2.0, 0.0, 2.0]]]
    assert json.loads(suite.model_dump_json())["advantage"] == {"kind": "own_rules:Ranks", "scale": 2.0}
    assert Suite.model_validate(suite.model_dump(mode="json")) == suite


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise_policy={kind: loud}", "unknown noise policy 'loud': known are common_eta, matched_rss, native"),
        (
            "noise_policy={kind: 'own_rules:Peak', sdt: 1}",
            "'own_rules:Peak' has no parameter 'sdt': did you mean 'std'",
        ),
        ("noise_policy={kind: 'own_rules:NotARule'}", "derived from no class"),
        (
            "advantage={kind: 'own_rules:Rank'}",
            "advantage rule 'own_rules:Rank': module own_rules has no class 'Rank'",
        ),
        ("advantage={kind: 'own_rules:Ranks', scale: loud}", "'own_rules:Ranks', parameter 'scale'"),
        ("rows=[{method: cps, kl: 'own_rules:NotARule'}]", "derived from no class"),
        ("rows=[{method: cps, kl: 'nowhere:K3'}]", "KL policy 'nowhere:K3': module 'nowhere' cannot be imported"),
        ("rows=[{method: cps, kl: {name: 'own_rules:K3', params: {weiight: 1}}}]", "did you mean 'weight'"),
    ],
)
@pytest.mark.usefixtures("own")
def test_a_mistake_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        prepare(load_suite(NANO, [override]))


def test_two_rows_that_differ_in_the_kl_parameters_need_a_label() -> None:
    rows = "rows=[{method: cps, kl: {name: 'a:B', params: {x: %d}}}, {method: cps, kl: {name: 'a:B', params: {x: 2}}}]"
    with pytest.raises(BenchError, match=r"two rows are called 'cps-a\.B'; give each a different 'label:'"):
        load_suite(NANO, [rows % 1])


def test_a_rule_of_ones_own_replaces_the_settings_of_the_packaged_one(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(
        f"extends: {NANO}\nsuite: child\nadvantage: {{std: global}}\n"
        "variants:\n  own: {advantage: {kind: 'a:B', x: 1}}\n  eps: {advantage: {eps: 0.1}}\n"
    )
    own, eps = load_variants(child)
    assert own.shared()["advantage"] == {"kind": "a:B", "x": 1}
    assert (eps.shared()["advantage"]["std"], eps.shared()["advantage"]["eps"]) == ("global", 0.1)
