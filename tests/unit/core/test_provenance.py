"""Digests are canonical, manifests catch every change, and git is asked about the right folder."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bench.api import BenchError
from bench.core import provenance
from bench.core.hashing import canonical_json, digest, plain, sha256_file
from bench.core.manifest import MANIFEST, verify_manifest, write_manifest
from bench.core.provenance import git_state, lock_digest, package_versions, source_digest


def test_digest_is_canonical() -> None:
    assert digest({"a": 1, "b": (2.5, "é")}) == digest({"b": [2.5, "é"], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(np.float64(0.5)) == digest(0.5)
    assert len(digest(None)) == 16
    text = '{"a":1}'
    assert digest({"a": 1}) == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_digest_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})
    with pytest.raises(TypeError, match="object has no place"):
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
    found = verify_manifest(checkpoint)
    assert found == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "part/weights.bin": hashlib.sha256(b"12345678").hexdigest(),
    }


def test_manifest_names_a_missing_file(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(BenchError, match=r"config\.json is missing: expected 2 bytes.*git checkout.*bench nano"):
        verify_manifest(checkpoint)


def test_manifest_names_a_changed_bit(checkpoint: Path) -> None:
    (checkpoint / "part" / "weights.bin").write_bytes(b"12345679")
    expected, found = (hashlib.sha256(text).hexdigest() for text in (b"12345678", b"12345679"))
    with pytest.raises(BenchError, match=rf"weights\.bin was altered: expected sha256 {expected}, found {found}"):
        verify_manifest(checkpoint)


def test_manifest_names_a_truncated_file(checkpoint: Path) -> None:
    (checkpoint / "part" / "weights.bin").write_bytes(b"1234")
    with pytest.raises(BenchError, match="expected 8 bytes, found 4"):
        verify_manifest(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": 1}', '{"a": {"bytes": 1}}'])
def test_manifest_that_is_none_is_refused(checkpoint: Path, text: str) -> None:
    (checkpoint / MANIFEST).write_text(text)
    with pytest.raises(BenchError, match="checkpoint manifest"):
        verify_manifest(checkpoint)


def test_manifest_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        verify_manifest(tmp_path)


def test_source_digest_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    file = tmp_path / "bench" / "a.py"
    file.write_text("x = 1\n")
    (tmp_path / "bench" / "notes.md").write_text("not a source")
    first = source_digest(tmp_path)
    (tmp_path / "bench" / "notes.md").write_text("changed")
    assert source_digest(tmp_path) == first
    file.write_text("x = 2\n")
    second = source_digest(tmp_path)
    file.rename(tmp_path / "bench" / "b.py")
    assert len({first, second, source_digest(tmp_path)}) == 3


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
    found = provenance.provenance(device={"name": "cpu"})
    canonical_json(found)
    assert found["packages"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] >= 1
    assert found["device"] == {"name": "cpu"}
    assert package_versions(["no-such-distribution"]) == {"no-such-distribution": None}
    assert lock_digest(Path("no-such-folder")) is None
