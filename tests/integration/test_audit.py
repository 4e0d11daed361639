"""The ratio audit: exactly 1 on nano, a planted error found with training's own number, each practice's effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import Conditioning
from bench.audit.ratio import PRACTICES, RATIO_TOLERANCE, AuditCase, audit_suite, make_case, measure_ratio
from bench.audit.ratio_page import ratio_page
from bench.cli import main
from bench.flow import per_sample
from bench.store.files import read_lines
from bench.suite.load import load_suite
from bench.suite.prepared import PreparedSuite, make_backbone, prepare
from tests.helpers.nano_suite import NANO, TINY, run
from tests.helpers.toy import LoadedToy


class Drifting(LoadedToy):
    """Its forward pass under gradients differs from that of the rollout: the error that the audit measures."""

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True
    ) -> Tensor:
        return super().velocity(x, sigma, cond, guidance) + 0.01 * float(torch.is_grad_enabled()) * per_sample(
            sigma, x
        )


class Guided(LoadedToy):
    """Guidance as HunyuanVideo-1.5 does it, and a product that autocast rounds."""

    negative = ""

    def velocity(
        self, x: Tensor, sigma: Tensor, cond: Conditioning, guidance: float, uncond_grad: bool = True
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu") and guidance > 3:
            raise RuntimeError("this backbone does\nnot support autocast")
        v = super().velocity(torch.nn.functional.linear(x, torch.eye(2)), sigma, cond, 1.0)
        if guidance == 1:
            return v
        base = super().velocity(x, sigma, self.encode([self.negative]).take([0] * len(x)), 1.0)
        return base + guidance * (v - base)


class OwnPrompt(Guided):
    """Guidance against another prompt than the empty one."""

    negative = "a blurred video"


class NamedPrompt(OwnPrompt):
    """The same, and it says so."""

    uncond_prompt = OwnPrompt.negative


def words(folder: Path, backbone: str, *overrides: str) -> list[str]:
    """A suite of the toy: two rows, one update of 8 samples in micro-batches of 2, two trained steps."""
    return [
        str(NANO),
        *TINY,
        *("suite=toy", f"backbone={{name: '{backbone}', checkpoint: {folder}}}"),
        *("reward={'tests.helpers.toy:Brightness': {brightness: 1.0}}", "monitor=[]", "clip_reference_size=null"),
        "evaluation={evaluators: ['tests.helpers.toy:Brightness'], steps: 2, videos_per_prompt: 1}",
        "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
        *("budget.group_size=4", "budget.micro_batch=2", "budget.updates=1"),
        *("rows=[{method: cps, kl: fixed}, {method: sage_grpo, kl: none}]", *overrides),
    ]


def prepared_suite(folder: Path, backbone: str, *overrides: str) -> PreparedSuite:
    path, *settings = words(folder, backbone, *overrides)
    return prepare(load_suite(path, settings))


def practices(audit: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (row,) = audit["rows"]
    entries: dict[str, dict[str, Any]] = row["practices"]
    return entries


def test_nano_is_exact_and_every_practice_that_rounds_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["budget.guidance=2.0", "budget.micro_batch=2", "budget.minibatches=2"]
    arguments = ["audit", str(NANO), *TINY, *more, "--row", "cps-fixed", "sage_grpo-dual", "--results", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    out = capsys.readouterr().out
    (audit,) = json.loads(out)
    assert audit == json.loads((tmp_path / "tiny" / "audit.json").read_text())
    assert audit["passed"] is True
    assert [row["row"] for row in audit["rows"]] == ["cps-fixed", "sage_grpo-dual"]
    for row in audit["rows"]:
        assert [step["largest"] for step in row["steps"]] == [0.0, 0.0]
        tried = row["practices"]
        assert list(tried) == list(PRACTICES)
        assert not any("left_out" in entry for entry in tried.values())
        shapes = [tried[name]["largest"] for name in ("one sample per call", "all samples in one call")]
        rounded = [tried[name]["largest"] for name in list(PRACTICES)[2:]]
        assert max(shapes) < RATIO_TOLERANCE < min(rounded)


def test_a_planted_error_is_caught_with_the_number_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(
        tmp_path, "tests.integration.test_audit:Drifting", "budget.minibatches=2", "budget.train_steps=3"
    )
    assert main(["audit", *arguments, "--results", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "cps-fixed FAILS: largest" in text
    suite = load_suite(arguments[0], arguments[1:])
    record = run(suite, tmp_path / "run")
    row = audit_suite(prepare(suite), ["cps-fixed"])["rows"][0]
    logged = read_lines(tmp_path / "run" / "train.jsonl")[0]
    assert [step["step"] for step in row["steps"]] == logged["trained_steps"]
    assert row["largest"] > 100 * RATIO_TOLERANCE
    # the updates log the first optimizer step's half of the samples, the audit all of them
    assert record.gates["ratio_audit"]["passed"] is False
    assert 0 < logged["ratio_error"] <= row["largest"]
    whole = prepared_suite(tmp_path, "tests.integration.test_audit:Drifting")
    record = run(whole.suite, tmp_path / "whole")
    row = audit_suite(whole, ["cps-fixed"])["rows"][0]
    assert row["largest"] == record.gates["ratio_audit"]["largest"]
    assert row["beyond_clip"] == read_lines(tmp_path / "whole" / "train.jsonl")[0]["clipped_share"] > 0


def test_rounded_latents_have_the_effect_of_the_formula(tmp_path: Path) -> None:
    prepared = prepared_suite(tmp_path, "tests.helpers.toy:LoadedToy", "rows=[{method: cps}]")
    backbone = make_backbone(prepared)
    case = make_case(prepared, prepared.rows[0], backbone, 0)
    tried = practices(audit_suite(prepared))
    stored, worst = case.rollout, {"stored latents in bfloat16": 0.0, "unrounded next latent scored": 0.0}
    texts = torch.cat([text[:, 0] for text in stored.cond.text])
    for n, i in enumerate(stored.view.steps.tolist()):
        sigma, after = (stored.sigmas[j].expand(8) for j in (i, i + 1))
        for name, x in zip(worst, (stored.x[n].bfloat16().float(), stored.x[n]), strict=True):
            v = 0.0 + torch.tensor([0.3, -0.2]).reshape(1, 2, 1, 1, 1) * x + 0.1 * per_sample(sigma, x)
            mean = case.method.transition(x, v + per_sample(texts, x), sigma, after).mean
            # CPS's log-probability is the negative mean squared distance, without a variance
            logp = -((stored.x_next[n].bfloat16().float() - mean) ** 2).flatten(1).mean(1)
            worst[name] = max(worst[name], float((torch.exp(logp - stored.logp_old[n]) - 1).abs().max()))
    for name, expected in worst.items():
        assert tried[name]["largest"] == pytest.approx(expected, rel=1e-3) != 0
    assert worst["stored latents in bfloat16"] != worst["unrounded next latent scored"]


def test_the_practices_change_nothing_in_the_rollout_or_the_backbone(tmp_path: Path) -> None:
    prepared = prepared_suite(
        tmp_path, "tests.integration.test_audit:Guided", "budget.guidance=2.0", "rows=[{method: sage_grpo}]"
    )
    backbone = make_backbone(prepared)
    case = make_case(prepared, prepared.rows[0], backbone, 0)
    before = [case.rollout.x.clone(), case.rollout.x_next.clone(), *backbone.state_dict().values()]
    tried = practices(audit_suite(prepared))
    for name in ("timestep in bfloat16", "bfloat16 autocast", "guidance in bfloat16"):
        changed = PRACTICES[name](case)
        assert isinstance(changed, AuditCase)
        assert float(changed.log_ratio().abs().max()) > 1e-5
        assert tried[name]["largest"] > 1e-5
    after = [case.rollout.x, case.rollout.x_next, *backbone.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert float(case.log_ratio().abs().max()) == 0.0


def test_a_practice_that_cannot_be_applied_is_left_out_with_a_reason(tmp_path: Path) -> None:
    toy = audit_suite(
        prepared_suite(tmp_path, "tests.helpers.toy:LoadedToy", "budget.guidance=2.0", "budget.micro_batch=8"),
        ["cps-fixed"],
    )
    assert practices(toy)["all samples in one call"] == {"left_out": "the suite's own batch shape"}
    assert "guidance is not base + guidance" in practices(toy)["guidance in bfloat16"]["left_out"]
    audit = audit_suite(
        prepared_suite(tmp_path, "tests.integration.test_audit:Guided", "budget.guidance=4.0"), ["cps-fixed"]
    )
    assert (
        "left out: bfloat16 autocast: the backbone refuses it: this backbone does not support autocast"
        in ratio_page(audit)
    )
    assert "left_out" not in practices(audit)["guidance in bfloat16"]
    prepared = prepared_suite(tmp_path, "tests.helpers.toy:LoadedToy")
    audit = audit_suite(prepared)
    assert "left out: guidance in bfloat16: guidance is 1" in ratio_page(audit)


def test_the_unconditional_prompt_is_the_one_that_the_backbone_names(tmp_path: Path) -> None:
    found = {
        name: practices(
            audit_suite(
                prepared_suite(tmp_path, f"tests.integration.test_audit:{name}", "budget.guidance=2.0"), ["cps-fixed"]
            )
        )["guidance in bfloat16"]
        for name in ("OwnPrompt", "NamedPrompt")
    }
    assert "its unconditional prompt as base" in found["OwnPrompt"]["left_out"]
    assert "left_out" not in found["NamedPrompt"]


def test_a_number_that_is_not_finite_fails() -> None:
    audit = measure_ratio(torch.tensor([0.0, float("nan")]), 0.1)
    assert audit == {"largest": None, "mean_log_ratio": None, "beyond_clip": 0.5}


def test_a_trained_policy_takes_the_place_of_the_fresh_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepared_suite(tmp_path, "tests.helpers.toy:LoadedToy", "budget.lr=0.1")
    run(prepared.suite, tmp_path / "run")
    fresh, trained = (audit_suite(prepared, ["cps-fixed"], policy) for policy in (None, tmp_path / "run"))
    assert trained["passed"] is True
    name = "stored latents in bfloat16"
    assert practices(trained)[name]["largest"] != practices(fresh)[name]["largest"]
    assert ratio_page(trained).startswith(
        f"toy: ratio audit before the first update, seed 0, policy of {tmp_path / 'run'}"
    )
    arguments = words(tmp_path, "tests.helpers.toy:LoadedToy")
    assert main(["audit", *arguments, "--results", str(tmp_path), "--policy", str(tmp_path / "nothing")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["audit", *arguments, "--results", str(tmp_path), "--row", "cps-fixd"]) == 2
    assert "has no row 'cps-fixd': --row takes cps-fixed, sage_grpo-none" in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()
