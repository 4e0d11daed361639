"""`bench check`: plug-ins by name, one line per broken promise, and golden scores of evaluators."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from bench import api, plugins
from bench.checks import backbones, evaluators, methods, rules
from bench.checks.golden import GATE, check_golden, golden_path, write_golden
from bench.checks.method_lint import (
    CONSTRUCTION,
    SCALE,
    SUITE,
    LintLine,
    division_text,
    lint_line,
    lint_method,
    locate,
)
from bench.checks.violations import CHANGES
from bench.core.errors import BenchError, ProcessStateError
from bench.core.process_state import fix_process_state
from bench.core.provenance import check_not_installed
from bench.suite.paths import resolve, resolve_parameters
from bench.suite.schema import NANO, Suite

NANO_BACKBONES: dict[str, dict[str, Any]] = {"wan21": {"size": (13, 16, 16), "fps": 8.0}}
"""Constructor arguments of a backbone that its packaged checkpoint needs and that are not its defaults."""


def plugin_group(name: str) -> str:
    """Group of a plug-in's name; an unknown name is refused with the nearest known one.

    A class that cannot be imported counts as a method, whose linter reports why.
    """
    if ":" in name:
        try:
            cls = plugins.find("backbones", name)  # which may derive from nothing
        except Exception:  # the linter of methods raises it again, and reports it
            return "methods"
        for group, base in plugins.BASES.items():
            if inspect.isclass(cls) and issubclass(cls, getattr(api, base)):
                return group
        return "backbones" if hasattr(cls, "velocity") and hasattr(cls, "decode") else "methods"
    return plugins.group_of(name)


def constructor_params(name: str, overrides: Mapping[str, Any], nano: bool) -> dict[str, Any]:
    """Constructor arguments: `overrides`, on top of the packaged ones unless they name another checkpoint."""
    if nano and "checkpoint" in overrides:
        raise BenchError("--nano takes the packaged checkpoint: leave out --params checkpoint=..., or --nano.")
    packaged = NANO["evaluator_params"].get(name, {})
    if name in plugins.available("backbones") and resolve(f"nano/{name}").is_dir():
        packaged = {"checkpoint": f"nano/{name}", **NANO_BACKBONES.get(name, {}), **packaged}
    defaults = {} if "checkpoint" in overrides else packaged
    return resolve_parameters({**defaults, **overrides})


def _construct(group: str, name: str, params: Mapping[str, Any]) -> tuple[Any, list[LintLine]]:
    """The plug-in, or None and the line of its exception; a wrong parameter or checkpoint raises `BenchError`."""
    cls: Any = plugins.find(group, name)
    plugins.check(group, name, params)  # for its sentences on the class and on wrong names
    missing = [
        key
        for key, parameter in inspect.signature(cls).parameters.items()
        if key not in params
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing:
        raise BenchError(f"{name} cannot be made without {missing[0]}: add --params {missing[0]}=VALUE.")
    try:
        return plugins.MAKERS[group](name, **params), []
    except ProcessStateError as error:
        return None, [LintLine(locate(cls, "__init__"), CHANGES.replace(" ", "-"), str(error))]
    except BenchError:
        raise
    except Exception as error:
        return None, [LintLine(locate(cls), CONSTRUCTION, f"{type(error).__name__}: {' '.join(str(error).split())}")]


def _summary(name: str, plugin: object | None, lines: Sequence[LintLine], checks: Sequence[str]) -> list[str]:
    """The lines of the failed checks, and the last line of the plug-in's report."""
    if plugin is None:
        last = "cannot be checked further before that is fixed"
    elif lines:
        last = f"{len(lines)} of {len(checks)} checks failed"
    else:
        last = f"{len(checks)} checks passed ({', '.join(checks)})"
    return [*map(str, lines), f"{name}: {last}"]


def _check_method(name: str, suites: Sequence[Suite]) -> tuple[list[str], bool]:
    """Report of one method, and whether a check failed."""
    method, lines = lint_method(name, suites)
    checks = methods.CHECKS if method is None else methods.checks_of(method)
    scale = [] if isinstance(method, api.ForwardMethod) else [SCALE]
    text = _summary(name, method, lines, (*checks, *scale, *[SUITE] * bool(suites)))
    if method is not None and all(line.check == SCALE for line in lines):
        text[-1] += f"; division: {division_text(name, method)}"
    return text, bool(lines)


def _check_rule(group: str, name: str, params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Report of a KL policy, a noise policy or an advantage rule, and whether a check failed."""
    rule, lines = _construct(group, name, params)
    if rule is not None:
        hooks = rules.HOOK_OF_CHECK[group]
        violations = rules.rule_violations(group, rule)
        lines = [lint_line(rule, violation, hooks.get(violation.check)) for violation in violations]
    return _summary(name, rule, lines, rules.check_names(group)), bool(lines)


def _check_backbone(name: str, params: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Report of one backbone, and whether a check failed."""
    backbone, lines = _construct("backbones", name, params)
    if backbone is not None:
        hooks = backbones.HOOK_OF_CHECK
        violations = backbones.backbone_violations(backbone)
        lines = [lint_line(backbone, violation, hooks.get(violation.check, "velocity")) for violation in violations]
    return _summary(name, backbone, lines, backbones.CHECKS), bool(lines)


def _check_evaluator(name: str, params: Mapping[str, Any], write: bool) -> tuple[list[str], bool]:
    """Report of one evaluator, and whether a check failed; `write`: store its golden scores if none failed."""
    evaluator, lines = _construct("evaluators", name, params)
    if evaluator is not None:
        hooks = evaluators.HOOK_OF_CHECK
        violations = evaluators.evaluator_violations(evaluator)
        lines = [lint_line(evaluator, violation, hooks.get(violation.check, "score")) for violation in violations]
    text = _summary(name, evaluator, lines, evaluators.CHECKS)
    if lines:
        return text, True
    if not evaluators.modules(evaluator):
        text.append(f"{name}: note: no weights (torch.nn.Module) found, so 'weights count' had nothing to look at")
    path = golden_path(evaluator, params)
    if write:
        if path is None:
            raise BenchError(f"evaluator {name} has no folder for golden scores: give --params checkpoint=FOLDER.")
        check_not_installed(path, "give a copy of the checkpoint with --params checkpoint=FOLDER")
        text.append(f"{name}: golden scores written to {write_golden(evaluator, path)}")
    try:
        entry = check_golden(name, evaluator, path)
    except BenchError as error:
        return [*text, str(LintLine(locate(type(evaluator), "score"), GATE.replace("_", "-"), str(error)))], True
    if entry["passed"]:
        return [*text, f"{name}: golden scores: {entry['clips']} clips reproduced"], False
    return [
        *text,
        f"{name}: golden scores: not available, {entry['not_available']}",
        f"note: nothing tells whether {name} gives the scores that it gave before: store its golden scores with "
        "--write-golden, and every run compares them before it trains",
    ], False


def check_report(
    name: str,
    suites: Sequence[Suite] = (),
    params: Mapping[str, Any] | None = None,
    nano: bool = False,
    write: bool = False,
) -> tuple[str, bool]:
    """Lines and a summary for a plug-in, and whether one of its checks failed.

    The global settings of the process are those of a run. `suites`: what a method is checked against, too.
    """
    fix_process_state()
    group = plugin_group(name)
    if group == "methods" and (params or nano or write):
        raise BenchError(
            f"{name} is a method: --params, --nano and --write-golden are not for methods. Parameters of a method "
            "stand in a row of a suite: name one with --suite."
        )
    if group != "evaluators" and write:
        raise BenchError(f"{name} is a {plugins.KINDS[group]}: --write-golden is for evaluators.")
    if group == "methods":
        lines, failed = _check_method(name, suites)
    elif group in rules.CHECKS:
        lines, failed = _check_rule(group, name, params or {})
    elif group == "backbones":
        lines, failed = _check_backbone(name, constructor_params(name, params or {}, nano))
    else:
        lines, failed = _check_evaluator(name, constructor_params(name, params or {}, nano), write)
    return "\n".join(lines), failed
