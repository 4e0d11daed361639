"""Digests are canonical, manifests catch every change, and git is asked about the right folder."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.api import BenchError
from bench.core import provenance
from bench.core.hashing import MANIFEST, canonical_json, digest, plain, sha256_file, verify_manifest, write_manifest
from bench.core.provenance import ROOT, SOURCE_ROOMS, git_state, lock_digest, package_versions, source_digest
from bench.suite.checkpoints import Checkpoint


def test_digest_is_canonical() -> None:
    assert digest({"a": 1, "b": (2.5, "é")}) == digest({"b": [2.5, "é"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(np.float64(0.5)) == digest(0.5)
    assert len(digest(None)) == 16
    text = '{"a":1}'
    assert digest({"a": 1}) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_digest_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})
    with pytest.raises(TypeError, match="object cannot be stored in a record"):
        digest(object())


def test_plain_turns_arrays_paths_and_sets_into_json() -> None:
    value = {"x": np.array([1, 2]), "y": np.float32(0.5), "p": Path("a/b"), "s": {"b", "a"}, 3: True}
    assert plain(value) == {"x": [1, 2], "y": 0.5, "p": "a/b", "s": ["a", "b"], "3": True}


def test_sha256_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nothing\.bin cannot be read"):
        sha256_file(tmp_path / "nothing.bin")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "weights.bin").write_bytes(b"12345678")
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_manifest_accepts_what_it_was_written_for(checkpoint: Path) -> None:
    assert verify_manifest(checkpoint) == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "part/weights.bin": hashlib.sha256(b"12345678").hexdigest(),
    }


def test_manifest_names_a_missing_file(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(BenchError, match=r"config\.json is missing: expected 2 bytes.*git checkout.*bench nano"):
        verify_manifest(checkpoint)


def test_manifest_names_a_changed_bit(checkpoint: Path) -> None:
    (checkpoint / "part" / "weights.bin").write_bytes(b"12345679")
    expected, actual = (hashlib.sha256(text).hexdigest() for text in (b"12345678", b"12345679"))
    with pytest.raises(BenchError, match=rf"weights\.bin was altered: expected sha256 {expected}, found {actual}"):
        verify_manifest(checkpoint)


def test_manifest_names_a_truncated_file(checkpoint: Path) -> None:
    (checkpoint / "part" / "weights.bin").write_bytes(b"1234")
    with pytest.raises(BenchError, match="expected 8 bytes, found 4"):
        verify_manifest(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', '{"a": {"bytes": 1}}'])
def test_an_invalid_manifest_is_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(BenchError, match="checkpoint manifest"):
        verify_manifest(checkpoint)


def test_manifest_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        verify_manifest(tmp_path)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A small project: one file in a room that counts, one outside."""
    for name in ("bench/core/a.py", "bench/report/page.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n")
    return tmp_path


def test_source_digest_depends_on_code_and_names(sources: Path) -> None:
    file = sources / "bench" / "core" / "a.py"
    first = source_digest(sources)
    file.write_text("x = 2\n")
    second = source_digest(sources)
    file.rename(file.with_name("b.py"))
    assert len({first, second, source_digest(sources)}) == 3


def test_source_digest_ignores_comments_docstrings_and_blank_lines(sources: Path) -> None:
    file = sources / "bench" / "core" / "a.py"
    bare = 'class A:\n    x: str = "# \u00e9"\n    def f(self):\n        return f"{self.x}"\n'
    full = (
        '"""Module \u00e9."""\n\n# a comment\nclass A:  # \u00e9\n    """What it is."""\n\n'
        '    x: str = "# \u00e9"  # why\n    """The field.\n\n    Two lines."""\n\n'
        '    def f(self):\n        """Gives x."""\n        return f"{self.x}"\n'
    )
    file.write_text(bare, encoding="utf-8")
    digest = source_digest(sources)
    file.write_text(full, encoding="utf-8")
    assert source_digest(sources) == digest
    file.write_text(full.replace("return f", "return 2 * f"), encoding="utf-8")
    assert source_digest(sources) != digest


def test_source_digest_depends_on_blank_lines_and_spaces_inside_strings(sources: Path) -> None:
    """A template for a model is such a string."""
    file = sources / "bench" / "core" / "a.py"
    digests = set()
    for body in ("one\ntwo", "one\n\ntwo", "one \ntwo"):
        for prefix in ("", "f"):
            file.write_text(f'x = 1\nTEXT = {prefix}"""{body}"""\n')
            digests.add(source_digest(sources))
    assert len(digests) == 6


def test_a_file_outside_the_source_rooms_does_not_change_the_digest(sources: Path) -> None:
    first = source_digest(sources)
    (sources / "bench" / "report" / "page.py").write_text("x = 2\n")
    (sources / "bench" / "core" / "notes.md").write_text("not a source")
    assert source_digest(sources) == first


def imported(path: Path) -> list[tuple[str, ...]]:
    """Dotted names that a file imports, as parts; of `from a import b`, a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [tuple(name.split(".")) for name in names]


def test_source_rooms_exist_and_import_nothing_that_does_not_count() -> None:
    """Rooms outside the list decide no number, so no room of the list imports them; checks only let a run start."""
    rooms = {tuple(room.removesuffix(".py").split("/")) for room in SOURCE_ROOMS} | {("bench", "checks")}
    for room in SOURCE_ROOMS:
        assert (ROOT / room).exists(), room
        for path in [ROOT / room] if room.endswith(".py") else (ROOT / room).rglob("*.py"):
            for name in imported(path):
                packages = {name[:length] for length in range(1, len(name) + 1)}
                assert (
                    name[0] != "bench" or name[1:] == ("store",) or packages & rooms or name == ("bench", "plugins")
                ), f"{path} imports {'.'.join(name)}"


def test_git_state_tells_clean_from_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", ".")
    git("commit", "-q", "--no-verify", "-m", "first")
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "b").write_text("1")
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / "sub").mkdir()
    assert git_state(tmp_path / "sub") == {"commit": None, "dirty": None}  # another project's checkout


def test_provenance_fits_into_a_record() -> None:
    record = provenance.provenance(device={"name": "cpu"})
    canonical_json(record)
    assert record["packages"]["numpy"] == np.__version__
    assert record["hardware"]["cores"] >= 1
    assert record["device"] == {"name": "cpu"}
    assert package_versions(["no-such-distribution"]) == {"no-such-distribution": None}
    assert lock_digest(Path("no-such-folder")) is None


def test_the_cpu_has_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert provenance.hardware()["cpu"] == "AMD EPYC, family 25 model 1 stepping 1"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "model name : Neoverse\n")
    assert provenance.hardware()["cpu"] == "Neoverse"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_a_peak_counts_from_its_reset() -> None:
    block = np.ones(300 * 2**20, np.uint8)
    before = provenance.peak_kib()
    del block
    assert provenance.reset_peak_kib()
    assert provenance.peak_kib() < before - 200 * 1024


def test_what_a_download_leaves_beside_the_weights_is_no_part_of_them(tmp_path: Path) -> None:
    """`hf download --local-dir` keeps files with timestamps in .cache, which differ between equal downloads."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    digest = Checkpoint(str(tmp_path)).digest
    (tmp_path / ".cache" / "huggingface").mkdir(parents=True)
    (tmp_path / ".cache" / "huggingface" / "weights.metadata").write_text("2026")
    (tmp_path / ".gitattributes").write_text("")
    assert Checkpoint(str(tmp_path)).digest == digest
    assert set(digest) == {"model/weights"}
    assert set(json.loads(write_manifest(tmp_path).read_text(encoding="utf-8"))) == {"model/weights"}
