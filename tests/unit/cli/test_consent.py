"""A suite that names code runs only with the user's consent, which is remembered for its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli import main
from bench.cli.consent import VARIABLE, is_trusted, trust, trusted_folders_file

CODE = "theirs:Method"
SUITE = f"extends: nano\nsuite: theirs\nrows: [{{method: '{CODE}', label: theirs}}]\n"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite from elsewhere, whose module ends the process when it is imported."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "download"
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "theirs.py").write_text(
        "from bench.api import Method as Base\nclass Method(Base): pass\nraise SystemExit('imported')\n"
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ["run", "suite.yaml", "--dry-run"],
        ["plan", "suite.yaml"],
        ["audit", "suite.yaml"],
        ["check", "cps", "--suite", "suite.yaml"],
    ],
)
def test_a_file_that_names_code_is_refused_before_the_code_is_imported(
    theirs: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    sentence = capsys.readouterr().err
    assert f"suite.yaml names code of its own ({CODE}), which will run with your rights: read it, then add" in sentence
    assert not trusted_folders_file().exists()


def test_consent_is_remembered_for_the_folder(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="imported"):
        main(["run", "suite.yaml", "--dry-run", "--allow-code"])
    assert trusted_folders_file().read_text() == f"{theirs}\n"
    with pytest.raises(SystemExit, match="imported"):
        main(["plan", "suite.yaml"])
    assert is_trusted(theirs / "below")
    assert not is_trusted(tmp_path)


def test_typed_names_and_packaged_suites_need_no_consent(
    theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="imported"):
        main(["run", "nano", f"rows=[{{method: '{CODE}', label: mine}}]", "--dry-run"])
    assert main(["run", "nano", "--dry-run"]) == 0
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(SystemExit, match="imported"):
        main(["run", "suite.yaml", "--dry-run"])


def test_commands_that_read_records_import_no_plug_in(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "suite.yaml"]) in (0, 2)  # not the exit of the module
    assert "names code of its own" not in capsys.readouterr().err


def test_a_folder_that_cannot_be_remembered_is_trusted_once(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("a file where the folder must be")
    trust(theirs)
    assert "is trusted for this command only" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="imported"):
        main(["run", "suite.yaml", "--dry-run", "--allow-code"])
