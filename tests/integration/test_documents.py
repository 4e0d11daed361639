"""The pages beside the methods: the list of departures is up to date, the example of a new method works as said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.checks.methods import CHECKS
from bench.cli import main
from bench.core.provenance import ROOT
from tools.departures import FOLDERS, PAGE, departures, page

README = ROOT / "methods" / "README.md"


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


@pytest.mark.parametrize("right", [True, False])
def test_the_example_of_the_readme_is_checked_as_it_says(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = README.read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    module = "my_grpo" if right else "my_wrong_grpo"
    (tmp_path / f"{module}.py").write_text(source if right else source.replace("self.eta", "self.eat"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", f"{module}:MyGRPO"]) == int(not right)
    said = capsys.readouterr().out
    if right:
        assert said.startswith(f"my_grpo:MyGRPO: {len(CHECKS)} checks passed")
    else:
        assert said.strip().replace("my_wrong_grpo", "my_grpo") in text
