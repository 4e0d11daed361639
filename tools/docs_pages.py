"""The reference pages that are made from the code: `make docs-pages` writes them into docs/reference/.

- cli.md: the `--help` of every command.
- suite-yaml.md: every key of a suite, from annotated fields with the docstring below each, and from constructors.
- api.md: the public names of the Python interfaces, each with the first sentence of its docstring.

Sources are read with `ast`, so nothing heavy is imported. A test compares the stored pages with this module's.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

from bench.cli.app import parser
from bench.core.provenance import ROOT

FOLDER = ROOT / "docs" / "reference"
WIDTH = 100
"""Columns of the help texts."""
NOTE = "<!-- Written by `make docs-pages` from the code: do not edit. -->"
SUITE, BUDGET, KL = "bench/suite/schema.py", "bench/core/budget.py", "bench/algorithm/kl.py"
BACKBONES = "bench/backbones"


@dataclass(frozen=True)
class Section:
    """One heading of the page of keys: the fields of classes."""

    title: str
    file: str
    """Module, relative to the root."""
    classes: tuple[str, ...]
    intro: str = ""
    own: bool = True
    """Whether the docstring of the class is printed above the keys."""
    skip: tuple[str, ...] = ()
    """Keys that are left out, since other sections have them."""


@dataclass(frozen=True)
class Key:
    """One key of a suite."""

    name: str
    values: str
    """The allowed values in words."""
    default: str
    """The default as YAML; empty for a key that must be given."""
    text: str
    """The docstring below the field."""


SECTIONS = (
    Section("Top level", SUITE, ("Suite",), "A suite may also have two keys that are resolved before these: `extends` "
            "and `variants`; see [Write a suite](../how-to/write-a-suite.md).", own=False),
    Section("backbone", SUITE, ("BackboneSpec",), own=False),
    Section("backbone.train, for hunyuanvideo15 and wan21", f"{BACKBONES}/options.py", ("TrainingOptions",),
            "Each of the two has further keys below.", own=False, skip=("size", "fps", "vae_tiling")),
    Section("backbone.train, for hunyuanvideo15", f"{BACKBONES}/hunyuanvideo15/options.py", ("HunyuanOptions",),
            own=False),
    Section("backbone.train, for wan21", f"{BACKBONES}/wan21/options.py", ("WanOptions",), own=False),
    Section("budget", BUDGET, ("Budget",)),
    Section("advantage", BUDGET, ("AdvantageSettings",)),
    Section("noise_policy", SUITE, ("Native", "CommonEta", "MatchedRSS"), "One of three kinds, or a plug-in; see "
            "[Rules of the comparison](../explanation/protocol.md#noise-policy).", own=False),
    Section("evaluation", SUITE, ("Evaluation",), own=False),
    Section("prompts", SUITE, ("Prompts",), own=False),
    Section("search", "bench/suite/search.py", ("SearchSpec",), "See [Tune a comparison]"
            "(../how-to/tune-a-comparison.md)."),
    Section("rows", SUITE, ("RowSpec",), own=False),
    Section("rows: kl", SUITE, ("KLSpec",), "[KL policies](../methods/index.md#kl-policies) explains the policies. "
            "`none` has no parameters.", own=False),
    Section("Parameters of fixed, moving, stepwise and dual", KL, ("ControlledKL",)),
    Section("Further parameters of moving", KL, ("MovingKL",)),
    Section("Further parameters of stepwise", KL, ("StepwiseKL",)),
    Section("Further parameters of dual", KL, ("DualKL",)),
    Section("rows: params of every method", "bench/api.py", ("Method",), own=False),
    Section("rows: params of flow_grpo", "methods/flow_grpo.py", ("FlowGRPO",), own=False),
    Section("rows: params of dance_grpo", "methods/dance_grpo.py", ("DanceGRPO",), own=False),
    Section("rows: params of cps", "methods/cps.py", ("CPS",), own=False),
    Section("rows: params of sage_grpo", "methods/sage_grpo.py", ("SAGEGRPO",), own=False),
    Section("rows: params of precise", "methods/precise.py", ("Precise",), own=False),
    Section("rows: params of longcat_grpo", "methods/longcat_grpo.py", ("LongCatGRPO",), own=False),
    Section("rows: params of mix_grpo", "methods/mix_grpo.py", ("MixGRPO",), own=False),
    Section("rows: params of flow_grpo_fast", "methods/flow_grpo_fast.py", ("FlowGRPOFast",), own=False),
    Section("rows: params of flash_grpo", "methods/flash_grpo.py", ("FlashGRPO",), own=False),
    Section("rows: params of grpo_guard", "methods/grpo_guard.py", ("GRPOGuard",), own=False),
    Section("rows: params of flow_dppo", "methods/flow_dppo.py", ("FlowDPPO",), own=False),
    Section("rows: params of diffusion_nft", "methods/diffusion_nft.py", ("DiffusionNFT",), own=False),
    Section("rows: params of awm", "methods/awm.py", ("AWM",), own=False),
    Section("rows: params of rvm", "methods/rvm.py", ("RVM",), own=False),
    Section("evaluator_params.videoalign", "evaluators/videoalign/scorer.py", ("VideoAlign",)),
    Section("evaluator_params of clipscore, pickscore and hpsv2", "evaluators/clip/scorer.py", ("ClipEvaluator",),
            own=False),
    Section("evaluator_params.clipscore", "evaluators/clipscore.py", ("ClipScore",)),
    Section("evaluator_params.pickscore", "evaluators/pickscore.py", ("PickScore",)),
    Section("evaluator_params.hpsv2", "evaluators/hpsv2.py", ("HPSv2",)),
)  # fmt: skip
"""`gold` and `detectors` have no parameters."""
LINKS = {
    "BackboneSpec": "backbone",
    "Budget": "budget",
    "AdvantageSettings": "advantage",
    "AdvantageSpec": "advantage",
    "Native": "noise_policy",
    "Evaluation": "evaluation",
    "Prompts": "prompts",
    "SearchSpec": "search",
    "RowSpec": "rows",
    "KLSpec": "rows-kl",
}
"""Class to the anchor of its section."""
TYPES = {
    **{"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Path": "path", "Any": "any"},
    **{"Count": "integer", "Rate": "number", "Dtype": "text", "Device": "text"},  # of evaluators.common
    "Range": "two numbers above 0",  # of bench.suite.search
}
BOUNDS = {"ge": "at least", "gt": "above"}
MODULES = {
    "bench": "bench/__init__.py",
    **{
        name: f"{name.replace('.', '/')}.py"
        for name in ("bench.api", "bench.flow", "bench.plugins", "bench.report.results")
    },
}
"""Python interfaces, with their files."""


# The commands


def commands() -> str:
    """Page of all commands."""
    lines = [NOTE, "# Commands", "", "Every command with its options, as `bench COMMAND --help` prints it.", ""]
    lines.append("Exit codes are explained in [Errors and exit codes](errors.md#exit-codes).")
    with patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1"):
        main = parser()
        subcommands = next(a for a in main._actions if isinstance(a, argparse._SubParsersAction)).choices
        for name, command in {"bench": main, **{f"bench {name}": each for name, each in subcommands.items()}}.items():
            lines += ["", f"## {name}", "", "```text", command.format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"


# The keys of a suite


def keys() -> str:
    """Page of all keys of a suite."""
    lines = [
        *(NOTE, "# Keys of a suite", ""),
        "Every key with its values and its default. A key without a default must be given. Unknown keys are refused.",
        "[Write a suite](../how-to/write-a-suite.md) shows the keys that matter most, with examples.",
    ]
    for section in SECTIONS:
        lines += ["", f"## {section.title}"]
        lines += ["", section.intro] if section.intro else []
        for name in section.classes:
            node = _class(section.file, name)
            lines += ["", f"`{_kind(node)}`:"] if len(section.classes) > 1 else []
            lines += _section(section, node)
    return "\n".join(lines) + "\n"


@cache
def _module(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def _class(file: str, name: str) -> ast.ClassDef:
    return next(node for node in _module(file).body if isinstance(node, ast.ClassDef) and node.name == name)


def _kind(node: ast.ClassDef) -> str:
    """The field `kind` and its only value."""
    fields = {ast.unparse(each.target): each for each in node.body if isinstance(each, ast.AnnAssign)}
    return f"kind: {ast.literal_eval(_literals(fields['kind'].annotation)[0])}"


def _section(section: Section, node: ast.ClassDef) -> list[str]:
    """The docstring, the table of the keys, and what the docstrings of keys have below their first paragraph."""
    text = ast.get_docstring(node) or ""
    entries = [entry for entry in _fields(section.file, node) if entry.name not in section.skip]
    lines = ["", _prose(text)] if section.own and text else []
    described = any(entry.text for entry in entries)
    heads = ["key", "values", "default", *(["meaning"] if described else [])]
    lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    notes: list[str] = []
    for entry in entries:
        first, _, rest = _prose(entry.text).partition("\n\n")
        cells = [f"`{entry.name}`", entry.values, f"`{entry.default}`" if entry.default else ""]
        cells += [" ".join(first.split()).replace("|", "\\|")] if described else []
        lines.append(f"| {' | '.join(cells)} |")
        notes += ["", f"`{entry.name}`:", *([""] if rest.startswith("|") else []), rest] if rest else []
    return lines + notes


def _prose(text: str) -> str:
    """A docstring as Markdown, without its departures, which have a page of their own."""
    text = re.sub(r"^Departs: .*(?:\n +.*)*\n?", "", inspect.cleandoc(text), flags=re.MULTILINE)
    parts = re.sub(r"\bNone\b", "null", text).strip().split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # outside of code
    return "`".join(parts)


def _fields(file: str, node: ast.ClassDef) -> Iterator[Key]:
    """The annotated fields of a class."""
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(part, ast.AnnAssign) or re.match("ClassVar|KW_ONLY", ast.unparse(part.annotation)):
            continue
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        default, bounds = _default(part.value)
        yield Key(ast.unparse(part.target), _values(file, part.annotation) + bounds, default, str(text))


def _default(value: ast.expr | None) -> tuple[str, str]:
    """The default as YAML, and the bounds of the values; both empty where there are none."""
    if value is None:
        return "", ""
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("Field", "field"):
        words = {word.arg: word.value for word in value.keywords}
        limits = [f"{text} {ast.unparse(words[name])}" for name, text in BOUNDS.items() if name in words]
        return _default(words.get("default"))[0], "".join(f", {limit}" for limit in limits)
    if isinstance(value, ast.Call):
        return {"Native()": "{kind: native}"}.get(ast.unparse(value), "{}"), ""
    constant = ast.literal_eval(value)
    if constant is None or isinstance(constant, bool):
        return str(constant).replace("None", "null").lower(), ""
    if isinstance(constant, tuple):
        return str(list(constant)), ""
    return constant if isinstance(constant, str) and constant else repr(constant).replace("'", '"'), ""


def _literals(node: ast.expr) -> list[str]:
    """The elements of `Literal[...]`, as source; none for another annotation."""
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Literal":
        return []
    return [ast.unparse(each) for each in (node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])]


def _values(file: str, node: ast.expr) -> str:
    """An annotation in words."""
    if _literals(node):
        return ", ".join(f"`{ast.literal_eval(each)}`" for each in _literals(node))
    if isinstance(node, ast.BinOp):
        return f"{_values(file, node.left)} or {_values(file, node.right)}".replace("text or path", "path")
    if isinstance(node, ast.Constant):
        return "null"
    if isinstance(node, ast.Subscript):
        return _container(file, node)
    name = ast.unparse(node)
    if name in TYPES:
        return TYPES[name]
    if name in LINKS:
        return f"[{LINKS[name].replace('rows-kl', 'name and params')}](#{LINKS[name]})"
    aliases = [node for node in _module(file).body if isinstance(node, ast.Assign)]
    alias = next((each.value for each in aliases if ast.unparse(each.targets[0]) == name), None)
    return "text" if alias is None else _values(file, alias)


def _container(file: str, node: ast.Subscript) -> str:
    kind = ast.unparse(node.value)
    if kind == "Annotated":
        return "[kind and its parameter](#noise_policy)"
    elements = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if kind == "list":
        return f"list of {_values(file, elements[0])}"
    if kind == "tuple":
        return f"{len(elements)} times {_values(file, elements[0])}"
    return "mapping"


# The Python interfaces


def interfaces() -> str:
    """Page of the public names, with the directives from which mkdocstrings makes the full reference."""
    lines = [NOTE, "# Python API", "", "The modules that other code may import. The site has every signature and "
             "docstring below the tables;", "on GitHub follow the link to the source."]  # fmt: skip
    for name, file in MODULES.items():
        tree = _module(file)
        lines += ["", f"## {name}", "", f"Source: [{file}](../../{file})", "", "| name | what it is |", "|---|---|"]
        lines += [f"| `{symbol}` | {text} |" for symbol, text in _public(tree)]
        lines += ["", f"::: {name}"]
    return "\n".join(lines) + "\n"


def _public(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Classes and functions of a module without a leading underscore, with the first sentence of the docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            yield node.name, re.split(r"(?<=[a-z)\]`])\. ", text)[0].rstrip(".").replace("|", "\\|")


PAGES: dict[str, Callable[[], str]] = {"cli.md": commands, "suite-yaml.md": keys, "api.md": interfaces}


if __name__ == "__main__":
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
        print(f"written: {(FOLDER / name).relative_to(ROOT)}", file=sys.stderr)
