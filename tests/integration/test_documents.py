"""The documents: generated pages are up to date, commands parse, examples run, numbers are those of the records."""

from __future__ import annotations

import importlib.util
import re
import shlex
import textwrap
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from bench.checks.methods import CHECKS, FORWARD_CHECKS
from bench.cli import main
from bench.cli.app import parser
from bench.core.provenance import ROOT
from bench.launch.jobs import suite_jobs
from bench.report.data import differences
from bench.report.data.loading import load_records
from bench.suite.load import load_suite, load_variants
from bench.suite.packaged import packaged_files
from bench.suite.prepared import prepare
from bench.train.run import execute
from tools.departures import FOLDERS, PAGE, departures, page
from tools.docs_pages import FOLDER, PAGES

README = ROOT / "README.md"
TUTORIAL, EVALUATOR, BACKBONE, RULES = (
    ROOT / "docs" / "tutorials" / f"add-{name}.md" for name in ("a-method", "an-evaluator", "a-backbone", "a-rule")
)
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = [FOLDER / name for name in PAGES]
WRITTEN = [path for path in DOCUMENTS if path not in GENERATED]


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command of the shell blocks, without comments."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield shlex.split(line, comments=True)


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_from_the_code_is_up_to_date(name: str) -> None:
    stored = (FOLDER / name).read_text(encoding="utf-8")
    assert stored.split() == PAGES[name]().split(), "run `make docs-pages`"  # argparse wraps lines by Python version


@pytest.mark.parametrize("path", WRITTEN, ids=names(WRITTEN))
def test_every_command_parses(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(path):
        match [word.removeprefix(".venv/bin/") for word in words]:
            case ["bench", *options] if not {"--version", "--print-completion"} & set(options):
                args, rest = parser().parse_known_args(options)
                assert all("=" in word and not word.startswith("-") for word in rest), words
                suite = getattr(args, "suite", None)
                packaged = str(suite) in packaged_files()
                if suite is not None and (packaged or (ROOT / suite).is_file()):
                    load_variants(suite if packaged else ROOT / suite, [*getattr(args, "overrides", []), *rest])
            case ["make", target, *_]:
                assert f"\n{target}:" in makefile, words
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), words
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), words


@pytest.mark.parametrize("path", WRITTEN, ids=names(WRITTEN))
def test_every_yaml_is_a_part_of_a_suite_or_a_launch_file(path: Path, tmp_path: Path) -> None:
    for i, block in enumerate(blocks(path, "yaml")):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and data.get("extends") in packaged_files():
            (tmp_path / f"{i}.yaml").write_text(block)
            assert load_variants(tmp_path / f"{i}.yaml")


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=names([*DOCUMENTS, ROOT / "CHANGELOG.md"]))
def test_every_link_has_a_target(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert ":" in target or (path.parent / target).is_file(), target


@pytest.mark.parametrize("path", WRITTEN, ids=names(WRITTEN))
def test_lines_are_short_outside_of_tables_and_code(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert not [line for line in text.splitlines() if len(line) > 150 and not line.startswith("|")]


def test_the_readme_is_short_and_its_table_has_the_stored_numbers() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    table = pd.read_csv(ROOT / "results" / "reference" / "nano" / "tables" / "main.csv", index_col="row")
    labels = {
        "FlowGRPO": "flow_grpo-fixed",
        "FlowGRPO with the equalizer": "flow_grpo-equalized",
        "DanceGRPO": "dance_grpo-fixed",
        "CPS": "cps-fixed",
        "SAGE-GRPO": "sage_grpo-dual",
    }

    def interval(row: str, score: str) -> str:
        mean, low, high = (
            abs(value) if round(value, 2) == 0 else value
            for value in table.loc[row, [score, f"{score}_lo", f"{score}_hi"]]
        )
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"

    for label, row in labels.items():
        cells = [interval(row, score) for score in ("overall_delta", "gold_overall_delta")]
        starred = [
            f"{cell} *" if table.loc[row, f"{score}_p_holm"] < 0.05 else cell
            for cell, score in zip(cells, ("overall_delta", "gold_overall_delta"), strict=True)
        ]
        assert f"| {label} | {starred[0]} | {starred[1]} |" in text
    pairs = differences.between_rows(
        differences.tested_differences(load_records(ROOT / "results" / "reference" / "nano")), "overall"
    )
    decided = pairs[pairs["diff_p_holm"] < 0.05]
    better = {
        (row, other) if gain > 0 else (other, row) for row, other, gain in decided[["row", "other", "diff"]].to_numpy()
    }
    groups = ({"sage_grpo-dual", "flow_grpo-equalized"}, {"cps-fixed", "flow_grpo-fixed"}, {"dance_grpo-fixed"})
    assert better == {(one, other) for above, below in combinations(groups, 2) for one in above for other in below}, (
        "the README has three groups, and no difference inside a group"
    )


def test_the_plan_that_is_explained_is_the_stored_one() -> None:
    stored = (ROOT / "results" / "plans.md").read_text(encoding="utf-8")
    for line in blocks(ROOT / "docs" / "how-to" / "plan-cost.md", "text")[0].splitlines():
        assert all(part.strip() in stored for part in line.split("[...]")), line


def test_the_method_of_the_readme_passes_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readme_grpo.py").write_text(blocks(README, "python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "readme_grpo:MyGRPO"]) == 0


def test_the_workflow_calls_the_ci_script() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["ci"]["steps"][-1]["run"] == "bash .ci/run"


def test_the_evaluator_of_the_tutorial_gives_the_output_that_is_printed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steadiness.py").write_text(blocks(EVALUATOR, "python")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "steadiness:Steadiness"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line, expected in zip(printed, blocks(EVALUATOR, "text")[0].splitlines(), strict=True):
        assert line.startswith(expected.split("[...]")[0])


def check_output(page: Path, block: int, module: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The code of a page passes its checks with the output that the page prints."""
    Path(f"{module}.py").write_text("\n\n".join(blocks(page, "python")), encoding="utf-8")
    assert main(words) == 0
    printed, expected = capsys.readouterr().out.splitlines(), blocks(page, "text")[block].splitlines()
    for line, start in zip(printed, expected, strict=True):
        assert line.startswith(start.split("[...]")[0])


def test_the_evaluator_with_a_file_passes_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "palette.py").write_text(blocks(EVALUATOR, "python")[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["check", "palette:PaletteDistance", "--params", "checkpoint=red.json"]
    assert main(command) == 2
    assert "palette" in (refusal := capsys.readouterr().err)
    assert refusal.count("\n") == 1
    (tmp_path / "red.json").write_text("[0.9, 0.1, 0.1]")
    assert main(command) == 0


def test_the_backbone_of_the_tutorial_is_checked_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    check_output(BACKBONE, 0, "tiny_video", ["check", "tiny_video:TinyVideo"], capsys)
    (tmp_path / "tiny.yaml").write_text(blocks(BACKBONE, "yaml")[0])
    jobs = suite_jobs(prepare(load_suite("tiny.yaml", ["budget.updates=2"])), tmp_path / "results")
    assert [job.label for job in jobs] == ["base", "flow_grpo-fixed seed 0", "sage_grpo-dual seed 0"]
    assert execute(jobs[-1]).status == "finished"
    assert main(["export", str(jobs[-1].folder), "out"]) == 2
    assert "the backbone 'tiny_video:TinyVideo' has no export" in capsys.readouterr().err
    assert main(["assets", "tiny.yaml"]) == 0


def test_the_rules_of_the_tutorial_are_checked_and_make_a_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for command in commands(RULES) if command[:2] == ["bench", "check"] for word in command[2:3]]
    assert words == ["my_rules:FadingKL", "my_rules:LargestStep", "my_rules:Ranks"]
    outputs = blocks(RULES, "text")[0].splitlines()
    (tmp_path / "my_rules.py").write_text("\n\n".join(blocks(RULES, "python")))
    for name, expected in zip(words, outputs, strict=True):
        assert main(["check", name, *(["--params", "std=0.2"] if name.endswith("LargestStep") else [])]) == 0
        assert capsys.readouterr().out.startswith(expected.split("[...]")[0])
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    (tmp_path / "my-rules.yaml").write_text(blocks(RULES, "yaml")[0])
    rows = prepare(load_suite("my-rules.yaml")).rows
    assert [row.name for row in rows] == ["cps-my_rules.FadingKL", "cps-fast"]


def test_the_reward_model_of_the_how_to_stores_and_reproduces_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "how-to" / "regression-test-a-reward-model.md"
    (tmp_path / "my_reward.py").write_text(blocks(page, "python")[0])
    (tmp_path / "weights").mkdir()
    layers = torch.nn.Sequential(
        torch.nn.Conv3d(3, 8, 3), torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity()
    )
    layers.append(torch.nn.Linear(8, 1))
    save_file(layers.state_dict(), tmp_path / "weights" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = ["check", "my_reward:MyReward", "--params", "checkpoint=weights"]
    assert main([*command, "--write-golden"]) == 0
    assert main(command) == 0
    assert "my_reward:MyReward: golden scores: 7 clips reproduced" in capsys.readouterr().out


def test_the_page_of_departures_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make departures`"


def test_no_departure_is_missed() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path.name != "departures.py"]
    assert sum(path.read_text(encoding="utf-8").count("Departs: ") for path in files) == len(departures())


def test_a_departure_knows_its_place_and_all_its_lines(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "methods" / "a.py").write_text(
        '"""Module.\n\nDeparts: one,\n  two.\nNot this.\n"""\n\n'
        'class A:\n    """A.\n\n    Departs: three.\n    Departs: four\n      five.\n    """\n\n'
        '    eta: float = 1\n    """Departs: six."""\n\n'
        '    def f(self):\n        """F.\n\n        Departs: seven."""\n'
    )
    assert [departure[1:] for departure in departures(tmp_path)] == [
        ("", "one, two."),
        ("A", "three."),
        ("A", "four five."),
        ("A.eta", "six."),
        ("A.f", "seven."),
    ]
    assert "- `A.eta`: six.\n" in page(tmp_path)


@pytest.mark.parametrize("slow", [False, True])
def test_the_forward_method_of_the_tutorial_passes_its_checks(
    slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    (source,) = (block for block in blocks if "class MyMatching" in block)
    if slow:
        (more,) = (block for block in blocks if "def old_decay" in block)
        line = '    references: ClassVar[frozenset[str]] = frozenset({"base"})\n'
        assert line in source
        source = source.replace(line, textwrap.indent(more, "    ")).replace(
            "import ClassVar", "import ClassVar, Literal"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_slow_matching" if slow else "my_matching"
    (tmp_path / f"{name}.py").write_text(source)
    assert main(["check", f"{name}:MyMatching"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}:MyMatching: {len(FORWARD_CHECKS)} checks passed")


@pytest.mark.parametrize("right", [True, False])
def test_the_example_of_the_tutorial_gives_the_output_that_is_printed_there(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    module = "my_grpo" if right else "my_wrong_grpo"
    (tmp_path / f"{module}.py").write_text(source if right else source.replace("self.eta", "self.eat"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", f"{module}:MyGRPO"]) == int(not right)
    printed = capsys.readouterr().out
    if right:
        assert printed.startswith(f"my_grpo:MyGRPO: {len(CHECKS) + 1} checks passed")
    else:
        assert printed.strip().replace("my_wrong_grpo", "my_grpo") in text
