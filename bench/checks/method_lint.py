"""`bench check` as a linter: one line with file and line number per broken promise; and all checks of a method."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from bench import plugins
from bench.api import Method
from bench.checks.methods import CHECKS, HOOK_OF_CHECK, STEP_CHECKS, method_violations
from bench.checks.violations import Violation
from bench.core.errors import BenchError, BudgetFieldError
from bench.flow import sigma_schedule

SCHEDULES = ((10, 5.0), (20, 5.0))
"""(steps, shift) of the nano suite, and of SAGE-GRPO's rollouts (methods/sage_grpo.py)."""
CONSTRUCTION = "construction"
"""Name of the finding for a class that cannot be constructed; no other check is then run."""


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
    """The line of one broken promise, with the location of the hook, or of the class if `hook` is None."""
    message = " ".join(violation.message.split())
    return LintLine(locate(type(plugin), hook), violation.check.replace(" ", "-"), message)


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


def _make_method(name: str) -> Method | LintLine:
    """The method with its defaults, or why it cannot be constructed; a wrong name raises `BenchError`."""
    try:
        plugins.find("methods", name)
    except BudgetFieldError as error:
        return LintLine(_raised_at(error, name), "no-budget-field", str(error))
    except BenchError:
        raise
    except Exception as error:
        return LintLine(_raised_at(error, name), CONSTRUCTION, f"{type(error).__name__}: {error}")
    cls = plugins.find("methods", name)
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise BenchError(f"method {name!r} is not a class that derives from bench.api.Method.")
    try:
        return plugins.method(name)
    except Exception as error:
        message = f"with its defaults the class cannot be constructed: {' '.join(str(error).split())}"
        return LintLine(locate(cls), CONSTRUCTION, message)


def lint_method(name: str, schedules: Sequence[Float[Tensor, "t1"]] = ()) -> tuple[Method | None, list[LintLine]]:
    """The method, or None, and a line for each check that failed on `SCHEDULES` or on one of `schedules`.

    Each check has at most one line, from the first schedule on which it failed. An unknown name raises `BenchError`.
    """
    method = _make_method(name)
    if isinstance(method, LintLine):
        return None, [method]
    lines: dict[str, LintLine] = {}
    for sigmas in [*(sigma_schedule(steps, shift) for steps, shift in SCHEDULES), *schedules]:
        for violation in method_violations(method, sigmas):
            line = lint_line(method, violation, HOOK_OF_CHECK.get(violation.check))
            if violation.check in STEP_CHECKS:
                line = line._replace(message=line.message + _schedule_note(sigmas))
            lines.setdefault(violation.check, line)
    return method, [lines[check] for check in CHECKS if check in lines]


def _schedule_note(sigmas: Tensor) -> str:
    return f" [{len(sigmas) - 1} steps, sigma {sigmas[0]:.3g}, {sigmas[1]:.3g}, ...]"
