"""The parser: commands and options are frozen, examples parse, and nothing heavy is imported for it."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys

import pytest

from bench.cli.app import COMMANDS, main, parse, parser
from bench.cli.command import Command
from bench.cli.suite_arguments import command_line
from tests.helpers.nano_suite import NANO

SUITE = "suite overrides --results"
OPTIONS = {
    "run": f"{SUITE} --dry-run --processes --launcher --nproc --shard --launch",
    "plan": f"{SUITE} --gpu --gpus --gpu-memory --tflops --context-parallel --shard --scorer-seconds --probe --json",
    "table": SUITE,
    "figures": SUITE,
    "compare": "a b --open --csv",
    "report": SUITE,
    "verify": "folders",
    "check": "names --suite --params --nano --write-golden",
    "audit": f"{SUITE} --row --policy --json",
    "replay": "run --updates --out --tolerance",
    "gallery": f"{SUITE} --seed --videos",
    "score": "evaluators --videos --prompts --out --params --nano --batch --dtype --device --overwrite",
    "assets": "suite overrides --verify",
    "sde-study": "methods --steps --shift --eta --out",
    "export": "run out",
    "nano": "part --out --steps --seed --device",
}
"""Command to its arguments and options: scripts of users depend on them, so a name here may be added, not changed."""
CHOICES = {
    "run --launcher": "local torchrun slurm",
    "run --shard": "full grads",
    "plan --shard": "full grads",
    "score --dtype": "float32 bfloat16",
    "score --device": "cpu cuda",
    "nano part": "vae policy videoreward-start videoreward clip pickscore manifest golden measure",
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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nano.yaml"], "bench table nano.yaml"),
        (["nano.yaml", "--results", "there", "seeds=[0, 1]"], "bench table nano.yaml 'seeds=[0, 1]' --results there"),
    ],
)
def test_a_command_on_the_same_suite_is_written_for_a_shell(words: list[str], line: str) -> None:
    args = parse(["run", *words])
    assert command_line("table", args) == line
    again = parse(shlex.split(line)[1:])
    assert {key: getattr(again, key) for key in ("suite", "overrides", "results")} == {
        key: getattr(args, key) for key in ("suite", "overrides", "results")
    }


def python(code: str) -> str:
    """Output of this code in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import bench.cli.app\nbench.cli.app.parser()", (*HEAVY, "numpy", "pydantic", "yaml")),
        (f"from bench.suite.load import load_suite\nload_suite({str(NANO)!r})", HEAVY),
    ],
    ids=["parser", "load a suite"],
)
def test_starting_imports_nothing_heavy(code: str, packages: tuple[str, ...]) -> None:
    out = python(f"import sys, json\n{code}\nprint(json.dumps([n for n in {packages} if n in sys.modules]))")
    assert json.loads(out.splitlines()[-1]) == []


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.cli", "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n    {command.name}" in done.stdout for command in COMMANDS)
