"""The parser: commands and options are frozen, examples parse, and nothing heavy is imported for it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli.app import COMMANDS, main, parse, parser
from bench.cli.command import Command
from bench.cli.parser import SHELLS
from tests.helpers.nano_suite import NANO
from tests.helpers.paths import PROJECT

SUITE = "suite overrides --results"
OPTIONS = {
    "run": f"{SUITE} --allow-code --dry-run --overwrite --processes --launcher --nproc --shard --tracker --launch "
    "--json --quiet",
    "plan": f"{SUITE} --allow-code --gpu --gpus --gpu-memory --tflops --context-parallel --shard --scorer-seconds "
    "--probe --json --quiet",
    "doctor": f"{SUITE} --allow-code --json --quiet",
    "table": f"{SUITE} --json --quiet",
    "figures": f"{SUITE} --paper --json --quiet",
    "compare": "a b --open --rows --csv --json",
    "votes": "files --suite --json",
    "report": f"{SUITE} --json --quiet",
    "verify": "folders --replay --draw --allow-code --json --quiet",
    "check": "names --suite --allow-code --train --params --nano --write-golden --json",
    "audit": f"{SUITE} --allow-code --row --policy --json --quiet",
    "replay": "run --allow-code --updates --out --tolerance --json --quiet",
    "gallery": f"{SUITE} --seed --videos --json --quiet",
    "score": "evaluators --videos --prompts --out --params --nano --batch --dtype --device --overwrite --json --quiet",
    "suites": "--json",
    "assets": "suite overrides --verify --json --quiet",
    "sde-study": "methods --steps --shift --eta --out --json --quiet",
    "evaluate": f"{SUITE} --allow-code --policy --overwrite --json --quiet",
    "encode": f"{SUITE} --allow-code --json --quiet",
    "export": "run out --allow-code --json",
    "nano": "part --out --steps --seed --device --quiet",
}
"""Command to its arguments and options: scripts of users depend on them, so a name here may be added, not changed."""
CHOICES = {
    "run --launcher": "local torchrun slurm",
    "run --shard": "full grads",
    "run --tracker": "tensorboard wandb trackio",
    "plan --shard": "full grads",
    "score --dtype": "float32 bfloat16",
    "score --device": "cpu cuda",
    "nano part": "vae policy videoreward-start videoreward clip pickscore wan-vae wan-policy manifest golden measure "
    "wan-measure",
}
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "peft", "open_clip", "scipy", "pandas")
"""Packages that loading a suite does without."""


def commands() -> dict[str, argparse.ArgumentParser]:
    """Command to its parser."""
    (subparsers,) = (action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers)


def names(action: argparse.Action) -> list[str]:
    return list(action.option_strings) or [action.dest]


def test_commands_and_options_are_frozen() -> None:
    actual = {
        command: " ".join(name for action in each._actions for name in names(action) if name not in ("-h", "--help"))
        for command, each in commands().items()
    }
    assert actual == OPTIONS
    assert list(actual) == [command.name for command in COMMANDS]


def test_choices_are_frozen() -> None:
    actual = {
        f"{command} {names(action)[0]}": " ".join(map(str, action.choices))
        for command, each in commands().items()
        for action in each._actions
        if action.choices is not None
    }
    assert actual == CHOICES


def test_every_option_has_a_help_text() -> None:
    missing = [
        f"{command} {names(action)[0]}"
        for command, each in commands().items()
        for action in each._actions
        if not action.help
    ]
    assert missing == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_example_parses_and_is_shown(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command.name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert command.examples
    for example in command.examples:
        assert f"\n  {example}\n" in text
        program, *words = shlex.split(example, comments=True)
        assert program == "bench"
        assert parse(words).command == command.name
    assert command.exit_codes is None or f"\nexit code: {command.exit_codes}\n" in text


def python(code: str) -> str:
    """Output of this code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import bench.cli.app\nbench.cli.app.parser()", (*HEAVY, "numpy", "pydantic", "rich", "shtab", "yaml")),
        (f"from bench.suite.load import load_suite\nload_suite({str(NANO)!r})", HEAVY),
    ],
    ids=["parser", "load a suite"],
)
def test_starting_imports_nothing_heavy(code: str, packages: tuple[str, ...]) -> None:
    out = python(f"import sys, json\n{code}\nprint(json.dumps([n for n in {packages} if n in sys.modules]))")
    assert json.loads(out.splitlines()[-1]) == []


MISTAKES = {
    "run nano.yaml budget.updates=three": "budget.updates",
    "run nano.yaml budget.updatess=3": "did you mean 'updates'?",
    "run nano.yaml rows='[{method: cpss}]'": "unknown method 'cpss'",
    "run nano.yaml rows='[{method: cps, kl: fixd}]'": "unknown KL policy 'fixd'",
    "run nano.yaml rows='[{method: \"nowhere:Thing\"}]'": "module 'nowhere' cannot be imported",
    "run nano.yaml rows='[{method: \"no.where:Thing\"}]'": "module 'no.where' cannot be imported",
    "run nano.yaml monitor='[glod]'": "unknown evaluator 'glod'",
    "run nano.yaml backbone.name=hunyuan": "unknown backbone 'hunyuan'",
    "run nano.yaml prompts.train=nowhere.txt": "nowhere.txt cannot be read",
    "run nano.yaml --launch nowhere.yaml": "launch file nowhere.yaml cannot be read",
    "plan nano.yaml seeds=0": "is not a list",
    "audit nano.yaml suite=": "key 'suite'",
    "table nano.yaml budget.updates=three": "budget.updates",
    "figures nano.yaml budget.updates=three": "budget.updates",
    "figures": "name a suite, such as nano, or give --paper",
    "figures --paper nowhere": "nowhere holds no results",
    "figures nano --paper": "--paper takes a folder of results and no suite",
    "report nano.yaml budget.updates=three": "budget.updates",
    "gallery nano.yaml suite=never": "never holds no records",
    "replay results/nowhere": "results/nowhere/run.json does not exist",
    "export results/nowhere out": "results/nowhere/run.json does not exist",
    "score clipscor --videos a.mp4 --out o.parquet": "did you mean 'clipscore'?",
    "score clipscore --nano --prompts nowhere.csv --out o.parquet": "prompt list nowhere.csv cannot be read",
    "check cpss": "did you mean 'cps'?",
    "check cps --suite nowhere.yaml": "nowhere.yaml cannot be read",
    "sde-study cpss": "did you mean 'cps'?",
    "verify results/nowhere": "holds no run",
    "compare results/nowhere results/nothing": "holds no records",
    "assets nano.yaml budgett=3": "did you mean 'budget'?",
}
"""Mistakes on the command line, and words of the sentence about each."""

CALLS = """
import contextlib, io, json, shlex, sys
from bench.cli.app import main
results = []
for line in json.loads(sys.stdin.read()):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(shlex.split(line))
    results.append([code, err.getvalue(), "torch" in sys.modules])
print(json.dumps(results))
"""


def test_a_mistake_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "nano.yaml").write_bytes(NANO.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CALLS],
        input=json.dumps(list(MISTAKES)),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    results = json.loads(done.stdout)
    for (line, words), (code, err, torch) in zip(MISTAKES.items(), results, strict=True):
        assert code == 2, line
        assert words in err, line
        assert err.count("\n") == 1, line
        assert not torch, line


def test_completion_is_written_for_each_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        with pytest.raises(SystemExit) as stopped:
            main(["--print-completion", shell])
        assert stopped.value.code == 0
        script = capsys.readouterr().out
        assert "sde-study" in script
        assert "--launcher" in script


def test_bash_completes_commands_options_choices_and_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    (tmp_path / "mine.yaml").touch()
    for words, expected in (
        ("bench sde", "sde-study"),
        ("bench run --laun", "--launch --launcher"),
        ("bench run --launcher to", "torchrun"),
        ("bench run mi", "mine.yaml"),
    ):
        *_, last = words.split()
        ask = (
            f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; "
            f"$(complete -p bench | sed 's/.*-F \\([^ ]*\\).*/\\1/') bench {last}; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, cwd=tmp_path, check=True
        )
        assert " ".join(sorted(set(done.stdout.split()))) == expected, words


def refusal(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(words))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_missing_argument_is_named_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    err = refusal("run", capsys)
    assert err.startswith("usage: bench run ")
    assert "bench run: error: the following arguments are required: suite\n" in err
    assert err.endswith(f"example: {COMMANDS[0].examples[0]}\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("run mine.yaml --update 3", "settings of the suite are written without dashes, such as budget.updates=10"),
        ("run mine.yaml --proceses 3", "did you mean --processes?"),
        ("run mine.yaml --dryrun", "did you mean --dry-run?"),
        ("verify results --jsn", "did you mean --json?"),
    ],
)
def test_an_unknown_option_shows_the_usage_of_the_command_and_a_hint(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refusal(words, capsys)
    command, option = words.split()[0], words.split()[2]
    assert err.startswith(f"usage: bench {command} ")
    assert f"bench {command}: error: unrecognized arguments: {option}" in err
    assert f"; {hint}\n" in err


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.cli", "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n    {command.name}" in done.stdout for command in COMMANDS)
