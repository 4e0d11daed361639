"""Hypothesis strategies: texts and settings of real files with damage in them."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from hypothesis import strategies as st

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Nested anchors: 8^9 texts in half a kilobyte."""
TOKENS = (
    *(
        '!!int ""',
        "!!float abc",
        "!!bool maybe",
        "!!timestamp foo",
        "!!map [a]",
        "!!set {a}",
        "!!python/name:os.system",
    ),
    *(
        "2020-13-45",
        "2020-01-01",
        "12:30:45",
        "99:99:99",
        '"\\U00110000"',
        '"\\ud83d"',
        '"\\0"',
        "{{ x }}",
        "{{a: b}: c}",
    ),
    *(
        "? [a]\n: b",
        "<<",
        "<<: {a: 1}",
        "&a",
        "*a",
        "&b [*b]",
        "!x",
        "---",
        "...",
        "%YAML 1.1",
        "%TAG ! x",
        "|",
        ">",
        "@",
    ),
    *(
        "no",
        "NO",
        "yes",
        "~",
        "null",
        "1e-4",
        "2e0",
        "1e400",
        ".nan",
        "-.inf",
        "010",
        "0x10",
        "1_000",
        "-1",
        "0",
        "0.5",
    ),
    *(
        "NaN",
        "Infinity",
        "1e999",
        "9" * 5000,
        "9" * 300,
        "-" + "9" * 299,
        "[" * 100,
        "[" * 3000,
        "{a: " * 60,
        "- " * 200,
    ),
    *(
        "[]",
        "{}",
        "[a]",
        "{a: b}",
        "''",
        "'",
        '"',
        ":",
        ": ",
        ",",
        "#",
        "# x",
        "\t",
        "\r",
        "\r\n",
        "\n",
        "\ufeff",
        "\0",
    ),
    *(
        "\u2028",
        "\x85",
        "\x0b",
        "é",
        "e\u0301",
        "😀",
        "a" * 300,
        "x" * 20_000,
        "..",
        "../x",
        "~/x",
        "~nobody/x",
        "/",
        ".",
    ),
    *(":y", "..:X", "a b:C", "bench.api:Method", "subprocess:Popen", "builtins:int", "bench.core.errors:BenchError"),
    *(
        "nano",
        "nano/../..",
        "bench/prompts/nano_train.txt",
        "bench/configs/nano.yaml",
        "extends: nano.yaml",
        "cps",
        BOMB,
    ),
)
"""Pieces of text that have broken readers."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**6, 10**9, 2**63, 10**299, 0.0, 0.5, -0.5, 1e-300, 1e300, float("nan")),
    *(
        float("inf"),
        "",
        " ",
        "x",
        "no",
        "yes",
        "1",
        "1e-4",
        "auto",
        "cpu",
        "gpu",
        "cuda:99",
        "nano",
        "../x",
        "~nobody/x",
    ),
    *("\n", "a\nb", "\ufeff", "😀", "a" * 300, "x" * 20_000, ":y", "..:X", "bench.api:Method", "builtins:int", "cps"),
    *([], {}, [1], ["x"], [[]], [None], [1, 2, 3], [0.5], {"x": 1}, {"x": {}}, {"name": "dual"}, {"kind": "native"}),
    *([13, 16, 16], [13, 16], [1.5, 16, 16], ["a", "b", "c"], [10**9] * 3, {"context": 0}, {"context": True}),
)
"""Values that stand in for a setting."""


@st.composite
def damaged_texts(draw: st.DrawFn, text: str) -> str:
    """The text after one to three edits: a token put in, or a line replaced, repeated, moved or cut."""
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("insert", "replace", "value", "repeat", "move", "cut", "drop")))
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        if kind == "insert":
            place, token = draw(st.integers(0, len(text))), draw(st.sampled_from(TOKENS))
            text = text[:place] + token + text[place:]
            continue
        if kind == "replace":
            lines[at] = draw(st.sampled_from(TOKENS))
        elif kind == "value":
            lines[at] = lines[at].partition(":")[0] + ": " + draw(st.sampled_from(TOKENS))
        elif kind == "repeat":
            lines.insert(at, lines[at])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif kind == "cut":
            lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
        else:
            del lines[at]
        text = "\n".join(lines)
    return text


@st.composite
def damaged_bytes(draw: st.DrawFn, text: str) -> bytes:
    """The damaged text as a file: mostly UTF-8, sometimes with odd bytes or in another encoding."""
    damaged = draw(damaged_texts(text))
    kind = draw(st.sampled_from((*["utf-8"] * 6, "bom", "utf-16", "latin-1", "bytes")))
    if kind == "bytes":
        content = damaged.encode()
        place = draw(st.integers(0, len(content)))
        return content[:place] + draw(st.sampled_from((b"\xff", b"\xc3", b"\x00", b"\xed\xa0\x80"))) + content[place:]
    if kind == "bom":
        return b"\xef\xbb\xbf" + damaged.encode()
    return damaged.encode(kind, "replace")


@st.composite
def damaged_values(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a nested value where one to three places hold another value, another key or nothing."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        parent, key = value, None
        while isinstance(parent, dict | list) and parent:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            key = draw(st.sampled_from(keys))
            if not isinstance(parent[key], dict | list) or not parent[key] or draw(st.booleans()):
                break
            parent = parent[key]
        if key is None:
            return draw(st.sampled_from(VALUES))
        kind = draw(st.sampled_from(("value", "value", "value", "drop", "rename")))
        if kind == "value":
            parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif kind == "drop":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(("x", "", "sttps", "a.b", "name", "checkpoint", "size", "😀", "a\nb")))] = (
                parent.pop(key)
            )
    return value


def yaml_files(text: str) -> st.SearchStrategy[bytes]:
    """A YAML file with damage in its text or in its values."""
    value = yaml.safe_load(text)
    dumped = damaged_values(value).map(lambda damaged: yaml.safe_dump(damaged, allow_unicode=True).encode())
    return damaged_bytes(text) | dumped
