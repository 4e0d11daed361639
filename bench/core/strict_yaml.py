"""YAML for settings: one document of mappings, lists, texts, numbers, booleans and null, with limits.

The grammar is PyYAML's. What no setting can be is refused in one sentence: the tag of an object, a date, a key that is
no text or is given twice, a number in base 8 or 60, and aliases that expand without end. Numbers such as 1e-4 and 2e0,
which YAML 1.1 reads as texts, are numbers. Merge keys (`<<`) are merged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from yaml.composer import Composer
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import AliasEvent, Event, StreamEndEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

from bench.core.errors import BenchError
from bench.core.limits import DIGITS, YAML_ALIASES, YAML_BYTES, YAML_CHARACTERS, YAML_DEPTH, YAML_NODES
from bench.core.text import bad_character, shown

TAG = "tag:yaml.org,2002:"
KINDS: dict[str, type[Node]] = {
    **dict.fromkeys(("str", "int", "float", "bool", "null", "timestamp", "value", "merge"), ScalarNode),
    "map": MappingNode,
    "seq": SequenceNode,
}
"""The tags of YAML that a text may have, and the kind of node that each belongs to."""
TRUE, FALSE = ("yes", "true", "on"), ("no", "false", "off")
NUMBER = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+")
"""Numbers with an exponent, which YAML 1.1 reads only with a point and a sign."""
SPECIAL = {".inf": "inf", ".nan": "nan"}


def parse_yaml(text: str, where: str, key: str = "", is_text: Callable[[str], bool] = lambda key: False) -> Any:
    """The value of a YAML text. A text that is refused is a `BenchError` that starts with `where`.

    A number or date under a key for which `is_text` holds is its text, such as `checkpoint: 2024_01`. `key` is that of
    the whole value, for an override `key=text`.
    """
    if len(text.encode("utf-8", "replace")) > YAML_BYTES:
        raise BenchError(f"{where} is too large: the limit is {YAML_BYTES:,} bytes, so make it shorter.")
    try:
        return _Values(is_text).read(text, key)
    except _RefusedError as cause:
        raise BenchError(f"{where}, line {cause.line}: {cause}.") from cause
    except MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        position = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        problem = ", ".join(shown(part, 100) for part in (cause.context, cause.problem) if part)
        raise BenchError(f"{where} is not YAML ({position}{problem}): fix it there.") from cause
    except YAMLError as cause:
        problem = " ".join(str(cause).split())
        raise BenchError(f"{where} is not YAML ({shown(problem)}): save it as plain text.") from cause


class _RefusedError(Exception):
    """A text that is valid YAML and no setting; the message ends with how to fix it."""

    def __init__(self, node: Node | Event, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1 if node.start_mark else 1


class _Reader(Reader, Scanner, Parser, Composer, Resolver):
    """Text to nodes, with limits on nesting, aliases and values."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        Resolver.__init__(self)
        self.depth = self.aliases = self.nodes = 0
        self.sizes: dict[int, int] = {}
        """Values in each finished node, by the node's id."""

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        self.aliases += isinstance(event, AliasEvent)
        if self.aliases > YAML_ALIASES:
            raise _RefusedError(event, f"there are more than {YAML_ALIASES} aliases (*name): write the values out")
        if self.depth > YAML_DEPTH:
            raise _RefusedError(event, f"it is nested deeper than {YAML_DEPTH} levels: make it flatter")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, AliasEvent) and id(node) not in self.sizes:
            name = shown(event.anchor, 40)
            raise _RefusedError(event, f"the alias *{name} stands inside its own value: write it out")
        self.nodes += 1
        size = 1 + sum(self.sizes[id(child)] for child in _children(node))
        if max(size, self.nodes) > YAML_NODES:
            raise _RefusedError(event, f"there are more than {YAML_NODES:,} values, aliases expanded: make it shorter")
        self.sizes[id(node)] = size
        return node


_Reader.add_implicit_resolver(f"{TAG}float", re.compile(f"^(?:{NUMBER.pattern})$"), list("-+0123456789."))


def _children(node: Node | None) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


class _Values:
    """Nodes to values; an alias becomes a copy of its value, so that an override changes one place only."""

    def __init__(self, is_text: Callable[[str], bool]) -> None:
        self.is_text = is_text

    def read(self, text: str, key: str) -> Any:
        """The value of a text with at most one document; None for an empty one."""
        reader = _Reader(text)
        try:
            reader.get_event()  # the start of the text
            node = None if reader.check_event(StreamEndEvent) else reader.compose_document()
            if not reader.check_event(StreamEndEvent):
                raise _RefusedError(reader.peek_event(), "a second document starts here (---): keep one")
        except (ValueError, OverflowError) as cause:  # an escape such as "\\U00110000", or a %YAML line of many digits
            raise YAMLError(f"line {reader.line + 1}: {cause}") from cause
        return None if node is None else self.value(node, key)

    def value(self, node: Node, key: str = "") -> Any:
        """The value of a node, which stands under `key`."""
        kind = node.tag.removeprefix(TAG) if node.tag.startswith(TAG) else node.tag
        if kind == "!" or kind not in KINDS or not isinstance(node, KINDS[kind]):
            raise _RefusedError(node, f"the tag {shown(kind, 60)!r} does not fit this value: remove it")
        if isinstance(node, MappingNode):
            return self.mapping(node)
        if isinstance(node, SequenceNode):
            return [self.value(item) for item in node.value]
        assert isinstance(node, ScalarNode)
        as_text = kind in ("int", "float", "timestamp") and self.is_text(key)
        return self.scalar(node, "str" if as_text else kind)

    def mapping(self, node: MappingNode) -> dict[str, Any]:
        """A mapping of texts to values; its own keys win over those of merge keys, and earlier merges over later."""
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if key.tag == f"{TAG}merge":
                merged = {**self.merge(value), **merged}
                continue
            name = self.key(key)
            if name in own:
                raise _RefusedError(key, f"key {shown(name, 60)!r} is given twice: remove one of them")
            own[name] = self.value(value, name)
        return {**merged, **own}

    def merge(self, node: Node) -> dict[str, Any]:
        """The keys that a merge key adds: those of a mapping, or of a list of mappings."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, MappingNode):
                raise _RefusedError(node, "a merge key (<<) takes a mapping, or a list of mappings: give one")
            merged = {**self.mapping(part), **merged}
        return merged

    def key(self, node: Node) -> str:
        """The text of a key."""
        if not isinstance(node, ScalarNode):
            raise _RefusedError(node, "a key is no text; put {{ }} in quotes")
        name = self.value(node)
        if not isinstance(name, str):
            raise _RefusedError(node, f"the key {shown(node.value, 60)} is no text: put it in quotes")
        return name

    def scalar(self, node: ScalarNode, kind: str) -> Any:
        """A text, number, boolean or null."""
        text = node.value
        if kind == "null":
            if text.lower() not in ("", "~", "null"):
                raise _RefusedError(node, f"{shown(text, 60)!r} is not null: remove the tag")
            return None
        if kind == "bool":
            if text.lower() not in TRUE + FALSE:
                raise _RefusedError(node, f"{shown(text, 60)!r} is neither true nor false: write one of them")
            return text.lower() in TRUE
        if kind == "timestamp":
            raise _RefusedError(node, f"{shown(text, 60)} is a date, which is no setting: put it in quotes for a text")
        if kind in ("int", "float"):
            return _number(node, kind)
        if len(text) > YAML_CHARACTERS:
            raise _RefusedError(node, f"a text has {len(text):,} characters: write at most {YAML_CHARACTERS:,}")
        if character := bad_character(text):
            raise _RefusedError(node, f"a text holds {character}: remove it")
        return text


def _number(node: ScalarNode, kind: str) -> int | float:
    """A whole number (decimal, 0x or 0b) or a float."""
    text = node.value.lower()
    if kind == "int" and len(text) > DIGITS:
        raise _RefusedError(node, f"a whole number has {len(text)} digits: write at most {DIGITS}")
    if ":" in text or (kind == "int" and re.fullmatch(r"[-+]?0[0-9_]+", text)):
        base = "60" if ":" in text else "8"
        raise _RefusedError(
            node, f"YAML reads {shown(text, 60)} in base {base}: put it in quotes, or write it in decimals"
        )
    try:
        if kind == "int":
            return int(text.replace("_", ""), 0)
        sign, rest = (text[:1], text[1:]) if text[:1] in ("-", "+") else ("", text)
        value = float(sign + SPECIAL.get(rest, rest.replace("_", "")))
        if rest not in SPECIAL and value in (float("inf"), float("-inf")):
            raise _RefusedError(node, f"the number {shown(text, 60)} is too large: write a smaller one")
        return value
    except ValueError:
        raise _RefusedError(node, f"{shown(node.value, 60)!r} is no number: write one, or remove the tag") from None
