"""`bench check`: methods, evaluators and backbones by name, one line per broken promise, golden scores too."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bench import plugins
from bench.api import BenchError, Evaluator
from bench.checks import backbones, method_lint
from bench.checks.backbones import backbone_violations
from bench.checks.evaluators import CHECKS, HOOKS, evaluator_violations, modules
from bench.checks.golden import GATE, check_golden, golden_path, write_golden
from bench.checks.method_lint import MAKING, LintLine, locate
from bench.checks.violations import Violation
from bench.suite.schema import NANO, packaged, resolve

PACKAGED = {**NANO["evaluator_params"], "hunyuanvideo15": {"checkpoint": "nano"}}
"""Parameters with which the packaged checkpoints are checked."""
GROUPS = ("methods", "evaluators", "backbones")


def kind(name: str) -> str:
    """Group of a name of `bench check`; one of no group is refused with the nearest known one.

    A class that cannot be imported counts as a method, whose linter says what is wrong with it.
    """
    if ":" in name:
        try:
            found = plugins.find("evaluators", name)
        except Exception:  # the method linter meets it again, and reports it
            return "methods"
        if inspect.isclass(found) and issubclass(found, Evaluator):
            return "evaluators"
        return "backbones" if hasattr(found, "velocity") and hasattr(found, "decode") else "methods"
    known = {group: plugins.available(group) for group in GROUPS}
    for group, names in known.items():
        if name in names:
            return group
    near = difflib.get_close_matches(name, [each for names in known.values() for each in names], 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else "write a class of your own as 'module:Class'."
    lists = "; ".join(f"{group} are {', '.join(names)}" for group, names in known.items())
    raise BenchError(f"{name!r} is neither a method nor an evaluator nor a backbone: {lists}; {hint}")


def parameters(name: str, given: Mapping[str, Any], nano: bool) -> dict[str, Any]:
    """Constructor arguments: those given, on top of the packaged checkpoint's unless another checkpoint is given."""
    stated = PACKAGED.get(name, {})
    if nano and "checkpoint" in given:
        raise BenchError("--nano takes the packaged checkpoint: leave out --params checkpoint=..., or --nano.")
    params = dict(given) if "checkpoint" in given else {**stated, **given}
    for key, value in params.items():
        if isinstance(value, str) and packaged(value):
            params[key] = resolve(value)
    return params


def _made(group: str, name: str, params: Mapping[str, Any]) -> tuple[Any, list[LintLine]]:
    """The plug-in, or None and the line that says why; a wrong parameter or checkpoint raises `BenchError`."""
    cls: Any = plugins.find(group, name)
    try:
        return getattr(plugins, group.removesuffix("s"))(name, **params), []
    except BenchError:
        raise
    except Exception as error:
        return None, [LintLine(locate(cls), MAKING, f"{type(error).__name__}: {' '.join(str(error).split())}")]


def _lines(made: Any, findings: Iterable[Violation], hooks: Mapping[str, str | None], hook: str) -> list[LintLine]:
    """A line for each broken promise, with the place of the hook (by default `hook`) that should keep it."""
    return [
        LintLine(
            locate(type(made), hooks.get(finding.check, hook)),
            finding.check.replace(" ", "-"),
            " ".join(finding.found.split()),
        )
        for finding in findings
    ]


def lint_evaluator(name: str, params: Mapping[str, Any]) -> tuple[list[LintLine], Evaluator | None]:
    """The lines of the checks that failed, and the evaluator; a wrong parameter or checkpoint raises `BenchError`."""
    e, lines = _made("evaluators", name, params)
    return (lines, None) if e is None else (_lines(e, evaluator_violations(e), HOOKS, "score"), e)


def _check_one(name: str, params: Mapping[str, Any], write: bool) -> tuple[list[str], bool]:
    """Report of one evaluator, and whether it failed; `write`: store its golden scores if it did not."""
    lines, e = lint_evaluator(name, params)
    text = [str(line) for line in lines]
    if e is None:
        return [*text, f"{name}: cannot be checked further before that is mended"], True
    if lines:
        return [*text, f"{name}: {len(lines)} of {len(CHECKS)} checks failed"], True
    text.append(f"{name}: {len(CHECKS)} checks passed ({', '.join(CHECKS)})")
    if not modules(e):
        text.append(f"{name}: note: no weights (torch.nn.Module) found, so 'weights count' had nothing to look at")
    path = golden_path(e, params)
    if write:
        if path is None:
            raise BenchError(f"evaluator {name} has no folder for golden scores: give --params checkpoint=FOLDER.")
        text.append(f"{name}: golden scores written to {write_golden(e, path)}")
    try:
        entry = check_golden(name, e, path)
    except BenchError as error:
        return [*text, str(LintLine(locate(type(e), "score"), GATE.replace("_", "-"), str(error)))], True
    found = f"{entry['clips']} clips reproduced" if entry["passed"] else f"not available, {entry['not_available']}"
    text.append(f"{name}: golden scores: {found}")
    return text, False


def _backbone(name: str, params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Report of one backbone, and whether it failed."""
    made, lines = _made("backbones", name, params)
    if made is None:
        return [*map(str, lines), f"{name}: cannot be checked further before that is mended"], True
    lines = _lines(made, backbone_violations(made), backbones.HOOKS, "velocity")
    checks = backbones.CHECKS
    if lines:
        return [*map(str, lines), f"{name}: {len(lines)} of {len(checks)} checks failed"], True
    return [f"{name}: {len(checks)} checks passed ({', '.join(checks)})"], False


def check_report(
    names: Sequence[str],
    schedules: Sequence[Float[Tensor, "t1"]] = (),
    params: Mapping[str, Any] | None = None,
    nano: bool = False,
    write: bool = False,
) -> tuple[str, int]:
    """Lines and a summary for each method, evaluator or backbone, and how many of them have a failed check."""
    text: list[str] = []
    failed = 0
    for name in names:
        group = kind(name)
        if group == "evaluators":
            lines, bad = _check_one(name, parameters(name, params or {}, nano), write)
        elif group == "backbones":
            if write:
                raise BenchError(f"{name} is a backbone: --write-golden is for evaluators.")
            lines, bad = _backbone(name, parameters(name, params or {}, nano))
        if group != "methods":
            text += lines
            failed += bad
            continue
        if params or nano or write:
            raise BenchError(f"{name} is a method: --params, --nano and --write-golden are not for methods.")
        found, bad_methods = method_lint.report([name], schedules)
        text.append(found)
        failed += bad_methods
    return "\n".join(text), failed
