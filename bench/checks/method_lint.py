"""`bench check` as a linter: one line with file and line number per broken promise; and all checks of a method."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from bench import plugins
from bench.algorithm.rollout import needs_old_mean
from bench.api import AnyMethod, Method
from bench.checks.method_checks import STEP_CHECKS
from bench.checks.methods import HOOK_OF_CHECK, check_method, checks_of, method_violations
from bench.checks.steps import check_steps
from bench.checks.violations import CHANGES, Violation, require, run_check
from bench.core.errors import BenchError, BudgetFieldError, ProcessStateError
from bench.core.rng import stream
from bench.flow import sigma_schedule
from bench.suite.division import SCALE_TOLERANCE, open_reasons, wrong_gradient
from bench.suite.methods import make_method
from bench.suite.schema import RowSpec, Suite

SCHEDULES = ((10, 5.0), (20, 5.0))
"""(steps, shift) of the nano suite, and of SAGE-GRPO's rollouts (methods/sage_grpo.py)."""
API = sys.modules[Method.__module__].__file__
CONSTRUCTION = "construction"
"""Name of the finding for a class that cannot be constructed; no other check is then run."""
SUITE = "suite"
SCALE = "scale"
"""Name of the check of the loss's gradient at ratio 1. A run does not refuse what it finds: its row is open."""
NOISY = "noisy steps"
"""Name of the check against the budget, the settings and the noise policy of a suite."""


class LintLine(NamedTuple):
    """One finding as a linter prints it."""

    location: str
    """File and line; the path is relative to the working directory if the file is below it."""
    check: str
    """The check's name, with hyphens."""
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.check}: {self.message}"


def lint_line(plugin: object, violation: Violation, hook: str | None) -> LintLine:
    """The line of one broken promise: the statement that raised, else the hook, or the class if `hook` is None."""
    message = " ".join(violation.message.split())
    location = _statement(violation.cause, type(plugin)) or locate(type(plugin), hook)
    return LintLine(location, violation.check.replace(" ", "-"), message)


def _statement(error: BaseException | None, cls: type) -> str | None:
    """The innermost line of the traceback in the plug-in's own files; None if there is none, or no exception."""
    own_files = {sys.modules[parent.__module__].__dict__.get("__file__") for parent in cls.__mro__[:-1]}
    while error is not None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own_files - {API}]
        if frames:
            return _location(frames[-1].filename, frames[-1].lineno or 1)
        error = error.__cause__
    return None


def locate(cls: type, hook: str | None = None) -> str:
    """File and line of the hook if the plug-in's own code defines it, else of the class; or the name of the class."""
    own_classes = [parent for parent in cls.__mro__ if parent.__module__ == cls.__module__]
    target = next((vars(parent)[hook] for parent in own_classes if hook in vars(parent)), cls) if hook else cls
    try:
        file = inspect.getsourcefile(cls)
        _, line = inspect.getsourcelines(target)
    except (OSError, TypeError):
        file = None
    return f"{cls.__module__}:{cls.__qualname__}" if file is None else _location(file, line)


def _location(file: str, line: int) -> str:
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{line}"


def _raised_at(error: BaseException, name: str) -> str:
    """The innermost line of the traceback in the plug-in's own code, or `name` if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _location(error.filename, error.lineno or 1)
    package = os.path.dirname(os.path.dirname(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((package, sys.base_prefix, "<"))
    ]
    return _location(frames[-1].filename, frames[-1].lineno or 1) if frames else name


def _module_file(name: str) -> str:
    """The file of a plug-in whose import has changed something."""
    file = sys.modules[name.partition(":")[0]].__file__
    return name if file is None else _location(file, 1)


def _make_method(name: str) -> AnyMethod | LintLine:
    """The method with its defaults, or why it cannot be constructed; a wrong name raises `BenchError`."""
    try:
        plugins.find("methods", name)
    except BudgetFieldError as error:
        return LintLine(_raised_at(error, name), "no-budget-field", str(error))
    except ProcessStateError as error:
        return LintLine(_module_file(name), CHANGES.replace(" ", "-"), str(error))
    except BenchError:
        raise
    except Exception as error:
        return LintLine(_raised_at(error, name), CONSTRUCTION, f"{type(error).__name__}: {error}")
    cls = plugins.find("methods", name)
    if not (inspect.isclass(cls) and issubclass(cls, AnyMethod)):
        raise BenchError(f"method {name!r} is not a class that derives from bench.api.Method or ForwardMethod.")
    try:
        method: AnyMethod = plugins.method(name)
        return method
    except ProcessStateError as error:
        return LintLine(locate(cls), CHANGES.replace(" ", "-"), str(error))
    except Exception as error:
        message = f"with its defaults the class cannot be constructed: {' '.join(str(error).split())}"
        return LintLine(locate(cls), CONSTRUCTION, message)


def lint_method(name: str, suites: Sequence[Suite] = ()) -> tuple[AnyMethod | None, list[LintLine]]:
    """The method, or None, and a line for each check that failed on `SCHEDULES` or on one of `suites`.

    Each check has at most one line, from the first schedule on which it failed. An unknown name raises `BenchError`.
    """
    method = _make_method(name)
    if isinstance(method, LintLine):
        return None, [method]
    lines: dict[str, LintLine] = {}
    for steps, shift in SCHEDULES:
        _add_lines(lines, method, steps, shift)
    for suite in suites:
        if not _add_lines(lines, method, suite.budget.steps, suite.budget.shift):
            for violation in run_check(SUITE, _fits, name, suite):
                lines.setdefault(SUITE, lint_line(method, violation, "stochastic"))
    if isinstance(method, Method) and not lines.keys() & {"surrogate", "policy_loss"}:
        for violation in run_check(SCALE, _scale, method):
            hook = "policy_loss" if needs_old_mean(method) else "surrogate"
            lines[SCALE] = lint_line(method, violation, hook)
    if isinstance(method, Method) and not lines and not any(_marks_noise(method, *schedule) for schedule in SCHEDULES):
        violation = Violation(NOISY, "stochastic marks no step of any schedule noisy: the method never trains.")
        lines[NOISY] = lint_line(method, violation, "stochastic")
    return method, [lines[check] for check in (*checks_of(method), SCALE, NOISY, SUITE) if check in lines]


def _scale(method: Method) -> None:
    gradient = wrong_gradient(method)
    require(
        gradient is None,
        f"{gradient}; it is minus the advantage, to {SCALE_TOLERANCE:g}, in the closed division: a row of this method "
        "stands in the open one",
    )


def division_text(name: str, method: AnyMethod) -> str:
    """The division in which a row of this method stands, and why."""
    reasons = open_reasons(method, RowSpec(method=name, label="check"))
    return f"open ({'; '.join(reasons)})" if reasons else "closed"


def _marks_noise(method: Method, steps: int, shift: float) -> bool:
    """Whether a step of the schedule is noisy in update 0."""
    return bool(method.stochastic(sigma_schedule(steps, shift), 0, stream(0, "steps", 0)).any())


def _add_lines(lines: dict[str, LintLine], method: AnyMethod, steps: int, shift: float) -> bool:
    """Add the line of each check that fails on a schedule, unless the check has one; whether one fails."""
    sigmas, failed = sigma_schedule(steps, shift), False
    for violation in method_violations(method, sigmas):
        failed = True
        line = lint_line(method, violation, HOOK_OF_CHECK.get(violation.check))
        if violation.check in STEP_CHECKS:
            line = line._replace(message=line.message + _schedule_note(sigmas))
        lines.setdefault(violation.check, line)
    return failed


def _fits(name: str, suite: Suite) -> None:
    """The method under the suite's noise policy passes all checks and has enough steps at every update."""
    try:
        method = make_method(suite, RowSpec(method=name, label="check"))
        check_method(method, sigma_schedule(suite.budget.steps, suite.budget.shift))
        check_steps(method, suite)
    except BenchError as error:
        raise BenchError(f"in suite {suite.name}: {error}") from error


def _schedule_note(sigmas: Tensor) -> str:
    return f" [{len(sigmas) - 1} steps, sigma {sigmas[0]:.3g}, {sigmas[1]:.3g}, ...]"
