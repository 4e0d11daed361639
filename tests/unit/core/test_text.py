"""Text, JSON and YAML: what is read, and what is refused with which sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.core import limits
from bench.core.errors import BenchError
from bench.core.limits import DIGITS, JSON_DEPTH, YAML_ALIASES, YAML_BYTES, YAML_DEPTH, YAML_NODES
from bench.core.strict_json import parse_json, read_json
from bench.core.strict_yaml import parse_yaml
from bench.core.text import read_text, shown
from tests.helpers.paths import PROJECT


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"\xef\xbb\xbfa\r\nb\rc\n", "a\nb\nc\n"), ("é😀\u2028x".encode(), "é😀\u2028x"), (b"", "")],
)
def test_a_text_file_has_newlines_and_no_byte_order_mark(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt", "file", "fix", 100) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\xff", r"file .*a\.txt is not UTF-8 text \(line 2\): save it as UTF-8\."),
        ("é".encode("utf-16"), "is not UTF-8 text"),
        (b"\xed\xa0\xbd", "is not UTF-8 text"),  # half a surrogate pair
        (b"a\nb\0", r"holds a NUL character \(line 2\)"),
        (b"x" * 101, "is too large: the limit is 100 bytes"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BenchError, match=message):
        read_text(tmp_path / "a.txt", "file", "fix", 100)


@pytest.mark.parametrize("name", ["none.txt", ".", "a" * 300, "a\0b", "\ud83d"])
def test_a_file_that_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"file .* (cannot be read|is not the name of a file).*: fix\.") as refused:
        read_text(f"{tmp_path}/{name}", "file", "fix", 100)
    assert str(refused.value).isprintable()


def test_a_value_in_a_message_is_one_short_line() -> None:
    assert shown("a\nb\ud83d") == "a\\nb\\ud83d"
    assert len(shown("x" * 10**6)) < 210


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2e0", 2.0),
        ("1E1", 10.0),
        ("-.5e+3", -500.0),
        ("3.0e-4", 3e-4),
        (".inf", float("inf")),
        ("1_000", 1000),
        ("0x1f", 31),
        ("0b11", 3),
        ("-7", -7),
        ("0", 0),
        ("9" * DIGITS, int("9" * DIGITS)),
        ("'1e-4'", "1e-4"),
        ('"2020-01-01"', "2020-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("=", "="),
        ("!!str 3", "3"),
        ("yes", True),
        ("NO", False),
        ("~", None),
        ("", None),
        ("# a comment", None),
        ("--- a\n...", "a"),
        ('"\\ud83d\\ude00"'.replace("\\ud83d\\ude00", "😀"), "😀"),
        ('"1": a', {"1": "a"}),
        ('"{{ x }}"', "{{ x }}"),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("<<: [{a: 1, b: 1}, {a: 2, c: 2}]", {"a": 1, "c": 2, "b": 1}),
        ('"<<": 1', {"<<": 1}),
    ],
)
def test_yaml_values(text: str, value: Any) -> None:
    assert repr(parse_yaml(text, "suite x")) == repr(value)


def test_an_alias_is_a_copy() -> None:
    value = parse_yaml("a: &x {b: 1}\nc: *x", "suite x")
    value["a"]["b"] = 2
    assert value["c"] == {"b": 1}


BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in ("ab", "bc", "cd", "de", "ef")
)
BOMB += "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in ("fg", "gh", "hi", "ij", "jk"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('!!int ""', "line 1: '' is no number"),
        ("!!float abc", "'abc' is no number"),
        ("!!int 1.5", "is no number"),
        ("!!bool maybe", "'maybe' is neither true nor false"),
        ("!!null x", "'x' is not null"),
        ("!!timestamp foo", "foo is a date"),
        ("a: 2020-13-45", "2020-13-45 is a date, which is no setting: put it in"),
        ("2020-01-01", "is a date"),
        ("2020-01-01 10:00:00", "is a date"),
        ("1:30:00", "reads 1:30:00 in base 60"),
        ("010", "reads 010 in base 8"),
        ("1e400", "the number 1e400 is too large"),
        ("9" * 301, "has 301 digits"),
        ("9" * 10_000, "has 10000 digits"),
        ("!!map [a]", "the tag 'map' does not fit"),
        ("!!set {a}", "the tag 'set'"),
        ("!!binary aa", "the tag 'binary'"),
        ("!x y", "the tag '!x' does not fit this value: remove it"),
        ("!!python/name:os.system", "the tag 'python/name:os.system'"),
        ('"\\U00110000"', "is not YAML .line 1"),
        ('"\\ud83d"', "holds half a surrogate pair"),
        ('"\\0"', "holds a NUL character"),
        ("a: \x07", "is not YAML"),
        ("a: {{ x }}", r"line 1: a key is no text; put {{ }} in quotes"),
        ("{{a: b}: c}", "a key is no text"),
        ("? [a]\n: b", "a key is no text"),
        ("1: a", "the key 1 is no text: put it in quotes"),
        ("no: a", "the key no is no text"),
        ("~: a", "the key ~ is no text"),
        ("a: 1\na: 2", "line 2: key 'a' is given"),
        ("{a: 1, 'a': 2}", "key 'a' is given twice"),
        ("a: 1\n---\nb: 2", "line 2: a second document starts here"),
        ("<<: 3", "a merge key .<<. takes a mapping"),
        ("&a [*a]", r"the alias \*a stands inside its own value"),
        ("*b", "undefined alias 'b'"),
        ("[" * 10_000, f"deeper than {YAML_DEPTH} levels"),
        ("- " * 50 + "a", "deeper"),
        (BOMB, f"more than {YAML_NODES:,} values"),
        ("[&a x" + ", *a" * (YAML_ALIASES + 1) + "]", "more than 100 aliases"),
        ("#" * (YAML_BYTES + 1), "is too large"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "is not YAML"),
        ("%YAML 2.0\n--- a", "is not YAML"),
        ("a: b: c", r"is not YAML \(line 1, column 5: "),
        ("@x", "is not YAML"),
    ],
)
def test_yaml_that_no_setting_can_be_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=rf"suite x.*{message}") as refused:
        parse_yaml(text, "suite x")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON"),
        ("", "is not JSON"),
        (b"\xff", "is not JSON"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": {"b": [1, NaN]}}', r"a number at a\.b\.1 that is not finite"),
        ("-Infinity", "a number at its top"),
        ("[1e999]", "a number at 0 that"),
        ("9" * 5000, "a whole number of 5000 digits"),
        ('["\\ud83d"]', "half a surr"),
        ('"\\u0000"', "a NUL character"),
        ("[" * 100_000, f"deeper than {JSON_DEPTH} levels"),
        ("[" * 60 + "]" * 60, "deeper than"),
        ('{"\\ud83d": 1}', "half a surrogate pair"),
    ],
)
def test_json_that_is_refused_is_one_sentence(text: str | bytes, message: str) -> None:
    with pytest.raises(BenchError, match=rf"^file x .*{message}.*: fix\.$") as refused:
        parse_json(text, "file x", "fix")
    assert str(refused.value).isprintable()


def test_json_values() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"]}', "x", "fix") == {"a": [1, 2.5, None, "😀"]}
    assert parse_json('"\\ud83d"', "x", "fix", any_text=True) == "\ud83d"


def test_a_json_file_holds_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(BenchError, match=r"a\.json does not hold a JSON object: fetch it again\."):
        read_json(tmp_path / "a.json")


def test_the_page_of_the_limits_states_the_constants() -> None:
    page = (PROJECT / "docs/reference/limits.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([0-9,]+) \|", page, re.MULTILINE))
    assert rows == {name: f"{value:,}" for name, value in vars(limits).items() if name.isupper()}
