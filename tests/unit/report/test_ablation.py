"""Ablations: the right differences to the first level, refusal of levels that do not compare, the same bytes twice."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from bench import store
from bench.api import BenchError
from bench.cli import main
from bench.core.provenance import ROOT
from bench.report.data import differences, dynamics, statistics
from bench.report.data.ablation import AblationLevel, compare_levels, levels_of, levels_of_study, levels_of_suite
from bench.report.data.loading import load_records
from bench.report.data.power import detectable_difference
from bench.report.data.stored import stored_folder
from bench.report.figures.ablation import build_ablation_figure
from bench.report.tables.ablation import AblationTable, ablation_notes, build_ablation
from bench.suite.load import load_variants
from bench.suite.schema import Suite
from tests.helpers.records import make_record, make_scores, write_lines, write_run

PROMPTS, UPDATES, NFE = 6, 3, 320
EASE = np.linspace(-1, 1, PROMPTS)
SWAY = {None: 0.0, 0: -0.1, 1: 0.0, 2: 0.1}
"""What a seed adds to every score of a row that sways: standard deviation 0.1 over three seeds."""
T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 97.5 %
HALF = 3 * T2 * 0.1 / math.sqrt(3)
"""Half the interval of a difference in Overall, 3 metrics that sway alike: t s / sqrt(3), no noise over prompts."""
CONFIG: dict[str, Any] = {
    "suite": "toy-nano",
    "backbone": {"name": "toy", "checkpoint": "nano"},
    "budget": {"updates": UPDATES},
    "noise_policy": {"kind": "native"},
    "reward": {"videoalign": {"VQ": 0.5, "TA": 1.0}},
    "evaluation": {"steps": 20},
    "seeds": [0, 1, 2],
    "rows": [
        {"method": "sage_grpo", "kl": "none"},
        {"method": "cps", "kl": "none"},
        {"method": "sage_grpo", "kl": "fixed"},
        {"method": "sage_grpo", "kl": "dual"},
    ],
}
LIFTS = {"sage_grpo-none": 0.0, "sage_grpo-fixed": 1.0, "sage_grpo-dual": -0.05, "cps-none": 0.0}
SCHEDULE = {"sigma": [1.0, 0.6, 0.0], "std": [0.4, 0.0], "predicted_grad_norm": [1.0, 1.0], "step_weight": [1.0, 1.0]}


def write(folder: Path, row: str, seed: int | None, lift: float = 0.0, sway: bool = False, **changes: Any) -> Path:
    """A run whose every score of prompt p is EASE[p] + lift, and the seed's sway if asked for."""
    ledger = {"nfe_rollout": NFE * UPDATES, "nfe_train": 9, "reward_calls": {}} if seed is not None else {}
    record = make_record(CONFIG, row, seed, **{"ledger": ledger, "extra": {"schedule": SCHEDULE}, **changes})
    level = lift + (SWAY[seed] if sway else 0)
    prompts = [f"prompt {p}" for p in range(PROMPTS)]
    return write_run(folder, record, make_scores(prompts, 1, lambda p, k, metric: EASE[p] + level))


def put(path: Path, *parts: dict[str, float] | None, **more: Any) -> None:
    """`train.jsonl` of a run: one line per update, with its `kl_gradient` where one is given."""
    logged = [{"kl_gradient": part} if part else {} for part in parts]
    write_lines(path, [{"update": update, **more, **part} for update, part in enumerate(logged)])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of small records: nothing here is about what a power cut leaves."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three rows of SAGE-GRPO, of which the second sways with its seeds, and one of CPS."""
    folder = tmp_path / "toy-nano"
    write(folder, "base", None, -0.5)
    for row, lift in LIFTS.items():
        for seed in range(3):
            write(folder, row, seed, lift, sway=row == "sage_grpo-fixed")
    return folder


def study(folder: Path, changes: dict[str, dict[str, Any]], **records: dict[str, Any]) -> list[AblationLevel]:
    """Levels of a study with one row; `changes`: variant to what its configuration changes, `records` its records."""
    lift = 0.0
    for variant, settings in changes.items():
        given = {"suite": f"toy-nano/{variant}", "rows": [{"method": "cps", "kl": "none"}], **settings}
        more = {"suite": given["suite"], "config": CONFIG | given, **records.get(variant, {})}
        write(folder / variant, "base", None, -0.5, **more)
        for seed in range(3):
            write(folder / variant, "cps-none", seed, lift, **more)
        lift += 1.0
    return levels_of_study({variant: load_records(folder / variant) for variant in changes})


# groups -------------------------------------------------------------------------------------------------------
def test_a_suite_gives_one_group_per_method_with_several_rows(suite: Path) -> None:
    levels = levels_of_suite(load_records(suite))
    assert [(level.group, level.name) for level in levels] == [
        ("sage_grpo", "sage_grpo-none"),
        ("sage_grpo", "sage_grpo-fixed"),
        ("sage_grpo", "sage_grpo-dual"),
    ]


def test_a_study_gives_one_group_per_row(tmp_path: Path) -> None:
    levels = study(tmp_path, {"native": {}, "common": {"noise_policy": {"kind": "common_eta", "eta": 0.5}}})
    assert [(level.group, level.name, level.suite) for level in levels] == [
        ("cps-none", "native", "toy-nano/native"),
        ("cps-none", "common", "toy-nano/common"),
    ]
    found = compare_levels(levels)
    assert found["to_first"].tolist() == pytest.approx([np.nan, 3.0], nan_ok=True)
    assert found["overall_delta"].tolist() == pytest.approx([1.5, 4.5])


def test_a_study_needs_two_variants_with_the_same_rows(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"1 variant\(s\) \(a\): .*at least two"):
        study(tmp_path, {"a": {}})
    study(tmp_path, {"a": {}, "b": {}})
    rows = [{"method": "cps", "kl": "none"}, {"method": "cps", "kl": "fixed"}]
    other = load_records(tmp_path / "b")
    write(tmp_path / "b", "cps-fixed", 0, suite="toy-nano/b", config=other.config | {"rows": rows})
    with pytest.raises(BenchError, match=r"a and b do not have the same rows \(cps-none against cps-none, cps-fixed"):
        levels_of_study({variant: load_records(tmp_path / variant) for variant in ("a", "b")})


# numbers ------------------------------------------------------------------------------------------------------
def test_a_known_difference_has_its_sign_and_its_interval(suite: Path) -> None:
    found = compare_levels(levels_of_suite(load_records(suite))).set_index("level")
    first, fixed, dual = (found.loc[name] for name in ("sage_grpo-none", "sage_grpo-fixed", "sage_grpo-dual"))
    for name in ("to_first", "to_first_gold"):
        assert [fixed[name + end] for end in ("", "_lo", "_hi")] == pytest.approx([3.0, 3.0 - HALF, 3.0 + HALF])
        p = statistics.paired_difference([[2.7], [3.0], [3.3]] * np.ones(PROMPTS), np.zeros(PROMPTS)).p
        assert [fixed[f"{name}_p"], fixed[f"{name}_p_holm"]] == pytest.approx([p, 2 * p])  # the largest two of four
        assert dual[f"{name}_p_holm"] < 1e-9  # no noise but rounding
        assert dual[name] == pytest.approx(-0.15)
        assert pd.isna([first[column] for column in (name, f"{name}_lo", f"{name}_p", f"{name}_mde")]).all()
        se = 0.3 / math.sqrt(3)
        x = np.array([[2.7], [3.0], [3.3]]) * np.ones(PROMPTS)
        assert fixed[f"{name}_mde"] == pytest.approx(detectable_difference(x, 0.05 / 4), rel=1e-6)
        assert fixed[f"{name}_margin"] == pytest.approx(3.0 + 2.919986 * se, rel=1e-6)  # t(2), 95 %, one-sided
    for part in ("vq", "mq", "ta"):
        ends = [fixed[f"to_first_{part}{end}"] for end in ("", "_lo", "_hi")]
        assert ends == pytest.approx([1.0, 1.0 - HALF / 3, 1.0 + HALF / 3])
    assert [fixed[f"overall_delta{end}"] for end in ("", "_lo", "_hi")] == pytest.approx([4.5, 4.5 - HALF, 4.5 + HALF])
    assert fixed["gold_overall_delta"] == pytest.approx(4.5)
    assert [fixed["overall"], fixed["vq"], fixed["clipscore"]] == pytest.approx([3.0, 1.0, 1.0])
    assert found["to_first_seeds"].tolist() == [0, 3, 3]
    assert "trained" not in found.columns


def test_holm_counts_every_comparison_of_the_table(suite: Path) -> None:
    for seed in range(3):
        write(suite, "sage_grpo-dual", seed, 2.0, sway=True)
    found = compare_levels(levels_of_suite(load_records(suite))).set_index("level")
    p = found["to_first_p"]
    assert p["sage_grpo-dual"] < p["sage_grpo-fixed"]
    for name in ("to_first", "to_first_gold"):  # both scores are one family, and here they are equal
        assert found[f"{name}_p_holm"]["sage_grpo-dual"] == pytest.approx(4 * p["sage_grpo-dual"])
        assert found[f"{name}_p_holm"]["sage_grpo-fixed"] == pytest.approx(2 * p["sage_grpo-fixed"])
    assert not {"to_first_vq_p", "to_first_vq_p_holm"} & set(found.columns)


def test_a_result_that_does_not_survive_the_correction_is_exploratory(suite: Path) -> None:
    for seed in range(3):
        write(suite, "sage_grpo-fixed", seed, 0.32, sway=True)
        write(suite, "sage_grpo-dual", seed, 0.02, sway=True)
    ablation = AblationTable(levels_of_suite(load_records(suite)), "toy-nano")
    found = ablation.table.set_index("level").loc["sage_grpo-fixed"]
    assert found["to_first_p"] < 0.05 < found["to_first_p_holm"]
    text = "\n".join(ablation.verdict)
    assert (
        "Overall: exploratory (p below 0.05 as it is, not after Holm over the whole table): sage_grpo, sage_g" in text
    )
    assert re.search(
        r"Overall: 1 of 2 levels cannot be told apart from their baseline; at most ±0\.\d\d apart\.", text
    )
    assert "better" not in text.replace("better and worse", "")
    notes = "\n".join(ablation.notes)
    assert "exploratory at best unless p after Holm over the whole table is below 0.05. Studies may share" in notes


def test_a_failed_run_is_counted_and_its_seed_left_out_of_both(suite: Path) -> None:
    write(suite, "sage_grpo-fixed", 2, status="failed", error="reward is not finite", ledger={})
    levels = levels_of_suite(load_records(suite))
    found = compare_levels(levels).set_index("level").loc["sage_grpo-fixed"]
    assert [found["n_seeds"], found["n_failed"], found["to_first_seeds"]] == [2, 1, 2]
    assert found["to_first"] == pytest.approx(3 * (1.0 - 0.05))  # seeds 0 and 1 alone
    text = build_ablation(suite, levels, "toy-nano")["ablation.md"].read_text(encoding="utf-8")
    assert "2/3 (1 failed)" in text
    assert "sage_grpo, sage_grpo-fixed, seed 2 failed: reward is not finite." in text


def test_a_first_level_that_failed_leaves_no_difference(suite: Path) -> None:
    for seed in range(3):
        write(suite, "sage_grpo-none", seed, status="failed", error="loss is not finite", ledger={})
    found = compare_levels(levels_of_suite(load_records(suite)))
    assert found["to_first"].isna().all()
    assert found["overall_delta"].notna().tolist() == [False, True, True]


def test_one_seed_has_no_interval_and_no_base_no_difference_to_it(tmp_path: Path) -> None:
    for row in ("sage_grpo-none", "sage_grpo-fixed"):
        write(tmp_path, row, 0, LIFTS[row])
    levels = levels_of_suite(load_records(tmp_path))
    found = compare_levels(levels).set_index("level").loc["sage_grpo-fixed"]
    assert found["to_first"] == pytest.approx(3.0)
    assert found[["to_first_lo", "to_first_p_holm", "to_first_mde", "overall_delta"]].isna().all()
    text = build_ablation(tmp_path, levels, "toy-nano")["ablation.md"].read_text(encoding="utf-8")
    assert "The base of toy-nano has no record yet" in text
    assert "sage_grpo, sage_grpo-fixed: 2 of 3 seeds have not run yet." in text
    assert "MDE: the smallest" not in text
    assert "ablation.png" in build_ablation_figure(tmp_path, levels)


# the KL share -------------------------------------------------------------------------------------------------
def test_kl_share_is_the_mean_over_updates_then_seeds(suite: Path) -> None:
    paths = [store.run_folder(suite, "sage_grpo-fixed", seed) for seed in range(3)]
    put(paths[0], {"kl": 1.0, "policy": 10.0}, None, {"kl": 3.0, "policy": 10.0})  # 0.1 and 0.3
    put(paths[1], {"kl": 0.6, "policy": 1.0}, {"kl": 1.0, "policy": 0.0}, None)  # a rest of 0 has no ratio
    put(paths[2], None, None)
    put(store.run_folder(suite, "sage_grpo-none", 0), None, None)
    put(store.run_folder(suite, "sage_grpo-dual", 0), {"kl": 0.0, "policy": 2.0})
    found = compare_levels(levels_of_suite(load_records(suite))).set_index("level")["kl_share"]
    assert found["sage_grpo-fixed"] == pytest.approx((0.2 + 0.6) / 2)
    assert np.isnan(found["sage_grpo-none"])
    assert found["sage_grpo-dual"] == 0


@pytest.mark.parametrize("part", [{"kl": 1.0}, {"kl": -1.0, "policy": 1.0}, {"kl": "much", "policy": 1.0}])
def test_a_broken_kl_gradient_is_refused(suite: Path, part: dict[str, Any]) -> None:
    put(store.run_folder(suite, "sage_grpo-fixed", 0), None, part)
    with pytest.raises(
        BenchError, match=r"seed-0/train\.jsonl, line 2, kl_gradient\.(policy|kl): .*`bench run` again"
    ):
        dynamics.columns(load_records(suite).rows[2], {})


# fairness -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_digest": "q"}, "prompts digest p against q"),
        ({"budget": {"updates": 4}}, r"budget \{'updates': 3\} against \{'updates': 4\}"),
        ({"backbone": {"weights": "9"}}, r"backbone fingerprint \{'weights': '2'\} against \{'weights': '9'\}"),
        ({"evaluators": {"videoalign": {"weights": "9"}}}, "evaluator fingerprints"),
        ({"ledger": {"nfe_rollout": 1, "nfe_train": 9, "reward_calls": {}}}, "ledger nfe_rollout 960 against 1"),
    ],
)
def test_variants_that_must_not_be_mixed_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    levels = study(tmp_path / "study", {"a": {}, "b": {}}, b=changes)
    for call in (lambda: compare_levels(levels), lambda: build_ablation(tmp_path, levels, "t")):
        with pytest.raises(
            BenchError, match=rf"toy-nano/a/.* and toy-nano/b/.* are not levels of one ablation: {message}.*again"
        ):
            call()
    with pytest.raises(BenchError, match="not levels of one ablation"):
        build_ablation_figure(tmp_path, levels)
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_another_evaluation_or_other_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"evaluation \{'steps': 20\} against \{'steps': 10\}"):
        compare_levels(study(tmp_path / "one", {"a": {}, "b": {"evaluation": {"steps": 10}}}))
    study(tmp_path / "two", {"a": {}, "b": {}})
    for path in sorted((tmp_path / "two" / "b").rglob(store.RUN)):
        record, frame = store.read_run(path.parent)
        store.write_run(path.parent, record, frame[frame["prompt_index"] > 0])
    with pytest.raises(BenchError, match="scored videos"):
        compare_levels(levels_of_study({variant: load_records(tmp_path / "two" / variant) for variant in ("a", "b")}))


def test_variants_may_differ_in_reward_and_reward_calls(tmp_path: Path) -> None:
    spent = {"nfe_rollout": NFE * UPDATES, "nfe_train": 9, "reward_calls": {"gold": 8}}
    levels = study(tmp_path, {"a": {}, "b": {"reward": {"gold": {"gold_VQ": 1.0}}}}, b={"ledger": spent})
    assert compare_levels(levels)["to_first_gold"].tolist() == pytest.approx([np.nan, 3.0], nan_ok=True)


# files --------------------------------------------------------------------------------------------------------
def test_the_table_says_what_must_be_said(suite: Path) -> None:
    path = build_ablation(suite, levels_of_suite(load_records(suite)), "toy-nano")["ablation.md"]
    assert path == suite / "tables" / "ablation.md"
    text = path.read_text(encoding="utf-8")
    for phrase in [
        "Overall: better than the baseline of its group: sage_grpo, sage_grpo-fixed (3.00",
        "**toy-nano measures a miniature model",
        "n = 3 seeds (0, 1, 2) of each level, independent training runs, on 6 held-out prompts.",
        "The baseline is the first level of its group",
        "Overall is the primary score and gold Overall its check. Differences to the baseline, in all groups, in "
        "Overall and gold Overall are one family of 4 tests: p is adjusted after Holm over all of them.",
        "MDE: the smallest true difference",
        "KL share: norm of the KL term's gradient over the norm of the rest",
        "differ between the levels of sage_grpo: `row.kl` none (sage_grpo-none), fixed (sage_grpo-fixed)",
    ]:
        assert phrase in text
    first = rf"3\.00+ \[{3 - HALF:.4f}, {3 + HALF:.4f}\] \*"
    assert re.search(rf"\| sage_grpo +\| +sage_grpo-fixed +\| +4\.50+ \[.*?\] \| +{first} \|", text)
    assert "Overall of seed 0, 1, 2 |" in text
    means = ", ".join(f"{3 * (np.mean(EASE) + 1 + SWAY[seed]):.2f}" for seed in range(3))
    assert re.search(rf"\| sage_grpo +\| +sage_grpo-fixed +\| +{means} \|", text)
    assert re.search(r"\| sage_grpo +\| +sage_grpo-none \(baseline\) +\| +1\.50+ \[.*?\] \| +- \|", text)


def test_the_note_names_the_settings_of_variants(tmp_path: Path) -> None:
    changes = {
        "native": {},
        "common": {"noise_policy": {"kind": "common_eta", "eta": 0.5}},
        "gold": {"reward": {"gold": {"gold_VQ": 1.0}}},
    }
    levels = study(tmp_path, changes)
    text = build_ablation(tmp_path, levels, "toy-nano")["ablation.md"].read_text(encoding="utf-8")
    assert "of cps-none: `noise_policy.kind` native (native, gold), common_eta (common); " in text
    assert "`noise_policy.eta` not set (native, gold), 0.5 (common)" in text
    assert "`reward.gold.gold_VQ` not set (native, common), 1 (gold)" in text


def test_a_difference_that_says_nothing_has_no_star(suite: Path) -> None:
    for seed in range(3):
        write(suite, "sage_grpo-fixed", seed, 0.05, sway=True)
        write(suite, "sage_grpo-dual", seed, 0.0, sway=True)
    text = build_ablation(suite, levels_of_suite(load_records(suite)), "toy-nano")["ablation.md"].read_text()
    assert "*" not in text.partition("## Scores")[2].partition("## Notes")[0]
    assert "2 of 2 levels cannot be told apart from their baseline" in text


def test_a_run_that_fails_a_gate_is_marked(suite: Path) -> None:
    write(suite, "sage_grpo-dual", 1, gates={"ratio_audit": {"passed": False}})
    text = build_ablation(suite, levels_of_suite(load_records(suite)), "toy-nano")["ablation.md"].read_text()
    assert "sage_grpo-dual †" in text
    assert "† sage_grpo, sage_grpo-dual, seed 1 fails the validity gate ratio_audit: do not cite it." in text


def test_a_second_call_writes_the_same_bytes(suite: Path) -> None:
    def build() -> dict[str, bytes]:
        levels = levels_of_suite(load_records(suite))
        built = (build_ablation(suite, levels, "toy-nano"), build_ablation_figure(suite, levels))
        return {str(path.relative_to(suite)): path.read_bytes() for paths in built for path in paths.values()}

    first = build()
    assert sorted(first) == [
        *(f"figures/ablation.{kind}" for kind in ("csv", "pdf", "png")),
        *(f"tables/ablation.{kind}" for kind in ("csv", "md", "tex")),
    ]
    assert first["figures/ablation.png"].startswith(b"\x89PNG")
    assert first["figures/ablation.pdf"].startswith(b"%PDF")
    assert build() == first
    frame = pd.read_csv(suite / "figures" / "ablation.csv").set_index("level")
    assert frame.loc["sage_grpo-fixed", "gold_overall_delta_lo"] == pytest.approx(4.5 - HALF)
    assert frame["n_planned"].tolist() == [3, 3, 3]
    tex = first["tables/ablation.tex"].decode()
    assert tex.count(r"\toprule") == tex.count(r"\end{tabular*}") > 0
    assert tex.count(r"\end{table*}") == 2
    assert "sage_grpo" not in tex.replace(r"\_", "")


def test_without_levels_there_is_nothing_to_write(tmp_path: Path) -> None:
    for call in (lambda: build_ablation(tmp_path, [], "toy"), lambda: build_ablation_figure(tmp_path, [])):
        with pytest.raises(BenchError, match="has no ablation: give one method several rows"):
            call()


def test_stored_runs_lie_in_the_project_or_where_one_says(tmp_path: Path) -> None:
    assert stored_folder("study/variant") == ROOT / "results" / "reference" / "study" / "variant"
    assert stored_folder("nano", tmp_path) == tmp_path


# the command line ---------------------------------------------------------------------------------------------
NANO = ROOT / "bench" / "configs" / "nano.yaml"
ROWS = [{"method": "cps"}, {"method": "cps", "kl": "fixed"}]


def finish(suite: Suite, results: Path, lift: float) -> None:
    """Records of all runs of a suite, with what the figures need; each row lifts the scores by 0.1 more."""
    shared = {"suite": suite.name, "config": suite.model_dump(mode="json")}
    folder = results / suite.name
    write(folder, "base", None, **shared)
    for place, row in enumerate(suite.rows):
        for seed in suite.seeds:
            path = write(folder, row.name, seed, lift + place / 10, sway=True, **shared)
            spent = {"ledger": {"nfe_rollout": NFE}, "grad_norm_of_step": {"0": 1.0}}
            put(path, *[{"kl": 1.0, "policy": 4.0}] * UPDATES, reward=lift, rewards={}, monitor={}, **spent)


def test_a_study_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, results = tmp_path / "noise.yaml", tmp_path / "results"
    variants = {"native": {}, "common": {"noise_policy": {"kind": "common_eta", "eta": 0.5}}}
    content = {"extends": str(NANO), "suite": "noise", "rows": ROWS, "variants": variants}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    for lift, suite in enumerate(load_variants(path, [])):
        finish(suite, results, lift)
    words = [str(path), "--results", str(results)]

    assert main(["table", *words]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# noise: ablation\n\n## Scores")
    assert "- **noise measures a miniature model" in out.partition("## What these runs show")[2]
    assert max(len(line) for line in out.splitlines() if str(results) not in line) <= 100
    text = (results / "noise" / "tables" / "ablation.md").read_text(encoding="utf-8")
    assert "of cps-none, cps-fixed: `noise_policy.kind` native (native), common_eta (common)" in text
    for variant in variants:
        assert sorted(file.name for file in (results / "noise" / variant / "tables").iterdir()) == [
            *("main.csv", "main.md", "main.tex", "main_narrow.tex")
        ]
        assert str(results / "noise" / variant / "tables" / "main.md") in err
    found = pd.read_csv(results / "noise" / "tables" / "ablation.csv").set_index(["group", "level"])
    assert list(found.index) == [(row, variant) for row in ("cps-none", "cps-fixed") for variant in variants]
    assert found["to_first"].tolist() == pytest.approx([np.nan, 3.0, np.nan, 3.0], nan_ok=True)
    assert found["kl_share"].tolist() == [0.25] * 4

    assert main(["figures", *words]) == 0
    assert sorted(file.name for file in (results / "noise" / "figures").iterdir()) == [
        *("ablation.csv", "ablation.pdf", "ablation.png")
    ]
    for variant in variants:
        assert (results / "noise" / variant / "figures" / "rollouts.png").is_file()

    assert main(["table", *words, "noise_policy={kind: common_eta, eta: 0.5}"]) == 2
    assert "was made with other settings: noise_policy" in capsys.readouterr().err


def test_a_suite_that_tests_no_pairs_shows_its_ablation_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.report.data.differences.MOST_ROWS_FOR_PAIRS", 2)
    words = [str(NANO), "suite=two", "seeds=[0, 1]", f"rows={json.dumps([*ROWS, {'method': 'dance_grpo'}])}"]
    (suite,) = load_variants(NANO, words[1:])
    finish(suite, tmp_path, 0.0)
    assert main(["table", *words, "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    tables = tmp_path / "two" / "tables"
    assert out.index("# two: main table") < out.index("# two: ablation")
    assert f"bench run {tmp_path / 'two'} seeds='[0, 1, 2, 3, 4]'" in out, "the folder stores the overrides"
    assert "seeds=[0, 1]" not in out
    assert pd.read_csv(tables / "ablation.csv")["level"].tolist() == ["cps-none", "cps-fixed"]
    assert main(["figures", *words, "--results", str(tmp_path)]) == 0
    assert (tmp_path / "two" / "figures" / "ablation.png").is_file()
    assert (tmp_path / "two" / "figures" / "noise.png").is_file()


def test_one_difference_has_one_p_value(suite: Path) -> None:
    """Four rows of two methods: the main table tests their pairs, so no second table does."""
    loaded = load_records(suite)
    assert len(differences.tested_differences(loaded)["diff_p"]) == 20
    assert levels_of({"": loaded}) == []


# how training went ----------------------------------------------------------------------------------------------
def course_of(rewards: list[float], std: float = 2.0, **norms: list[float]) -> list[dynamics.DynamicsLine]:
    made = [dynamics.DynamicsLine(reward=reward, reward_group_std=std) for reward in rewards]
    for step, values in norms.items():
        for line, value in zip(made, values, strict=True):
            line.grad_norm_of_step[int(step[1:])] = value
    return made


def test_a_setback_is_the_deepest_fall_of_the_running_mean_in_group_stds() -> None:
    rising = [float(i) for i in range(20)]
    assert dynamics.setback(course_of(rising)) == 0
    fallen = [0.0] * 5 + [10.0] * 5 + [4.0] * 5 + [20.0] * 5
    assert dynamics.setback(course_of(fallen)) == pytest.approx((10 - 4) / 2)
    assert math.isnan(dynamics.setback(course_of(rising[:4])))
    assert math.isnan(dynamics.setback(course_of(rising, std=0.0)))


def test_the_spread_is_of_geometric_means_and_leaves_zeros_out() -> None:
    updates = course_of([0.0] * 2, s1=[1.0, 4.0], s3=[8.0, 32.0], s4=[0.0, 16.0])
    assert dynamics.gradient_spread(updates) == pytest.approx(8.0)  # 2, 16 and 16
    assert math.isnan(dynamics.gradient_spread(course_of([0.0] * 2, s1=[1.0, 4.0])))


def test_two_seeds_have_no_interval_of_their_training(suite: Path) -> None:
    for seed in range(3):
        for row, fall in (("sage_grpo-none", 0.0), ("sage_grpo-fixed", 1.0 + seed)):
            rewards = [0.0] * 5 + [10.0] * 5 + [10.0 - fall] * 5
            norms = {"1": 1.0, "2": 2.0 + seed}
            lines = [{"reward": r, "reward_group_std": 1.0, "grad_norm_of_step": norms} for r in rewards]
            write_lines(store.run_folder(suite, row, seed), lines)
    names = ["grad_spread", "setback", "to_first_setback"]
    for count in (3, 2):
        found = compare_levels(levels_of_suite(load_records(suite))).set_index("level").loc["sage_grpo-fixed"]
        assert found[names].notna().all()
        assert found[[f"{name}_lo" for name in names]].notna().tolist() == [count == 3] * 3
        shutil.rmtree(suite / "sage_grpo-fixed" / "seed-2", ignore_errors=True)


def test_a_course_without_lines_says_nothing(suite: Path) -> None:
    found = compare_levels(levels_of_suite(load_records(suite)))
    assert found[["grad_spread", "setback", "to_first_setback"]].isna().all(axis=None)


def test_a_level_that_shares_the_baselines_runs_is_not_tested(suite: Path) -> None:
    levels = levels_of_suite(load_records(suite))
    group = [level for level in levels if level.group == levels[0].group]
    twin = dataclasses.replace(group[1], runs=dataclasses.replace(group[1].runs, finished=group[0].runs.finished))
    table = compare_levels([group[0], twin]).set_index("level")
    assert table.loc[twin.name, "to_first_seeds"] == 0
    assert math.isnan(table.loc[twin.name, "to_first"])
    assert any("the same runs as" in note for note in ablation_notes(AblationTable([group[0], twin], "toy")))
