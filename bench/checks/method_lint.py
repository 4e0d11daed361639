"""`bench check`: all broken promises of a method, one line each, with the file and line where to mend them."""

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
from bench.api import BenchError, Method
from bench.checks.methods import CHECKS, STEP_CHECKS, method_violations
from bench.core.errors import BudgetFieldError
from bench.flow import sigma_schedule

#: (steps, shift): the nano suite's schedule, and the one of SAGE-GRPO's rollouts (methods/sage_grpo.py).
SCHEDULES = ((10, 5.0), (20, 5.0))

#: Where the promise of a check is kept; the others are kept by the class as a whole, or by the hook of that name.
HOOKS = {
    "affine in v": "transition",
    "independent samples": "transition",
    "no-noise limit": "transition",
    "gradient reaches v": "log_prob",
    "steps": "stochastic",
    "credit": "advantages",
}

#: A class that cannot be made has these findings alone.
MAKING = "construction"


class LintLine(NamedTuple):
    """One finding as a linter prints it."""

    where: str
    """File and line, relative to the working directory where it lies below it."""
    check: str
    """The check's name, with hyphens."""
    found: str

    def __str__(self) -> str:
        return f"{self.where}: {self.check}: {self.found}"


def _place(file: str, line: int) -> str:
    path = Path(file)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{line}"


def locate(cls: type, hook: str | None = None) -> str:
    """File and line of the hook where a class of the plug-in defines it, else of the class; or the class's name."""
    own = [part for part in cls.__mro__ if part.__module__ == cls.__module__]
    target = next((vars(part)[hook] for part in own if hook in vars(part)), cls) if hook else cls
    try:
        file = inspect.getsourcefile(cls)
        _, line = inspect.getsourcelines(target)
    except (OSError, TypeError):
        file = None
    return f"{cls.__module__}:{cls.__qualname__}" if file is None else _place(file, line)


def _raised_at(error: BaseException, name: str) -> str:
    """The innermost line of the traceback outside this package: the plug-in's own."""
    if isinstance(error, SyntaxError) and error.filename:
        return _place(error.filename, error.lineno or 1)
    here = os.path.dirname(os.path.dirname(__file__))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, sys.base_prefix, "<"))
    ]
    return _place(frames[-1].filename, frames[-1].lineno or 1) if frames else name


def _made(name: str) -> Method | LintLine:
    """The method with its defaults, or why its class cannot be made; a wrong name stays a `BenchError`."""
    try:
        plugins.find("methods", name)
    except BudgetFieldError as error:
        return LintLine(_raised_at(error, name), "no-budget-field", str(error))
    except BenchError:
        raise
    except Exception as error:
        return LintLine(_raised_at(error, name), MAKING, f"{type(error).__name__}: {error}")
    cls = plugins.find("methods", name)
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise BenchError(f"method {name!r} is no class that derives from bench.api.Method.")
    try:
        return plugins.method(name)
    except Exception as error:
        return LintLine(
            locate(cls), MAKING, f"with its defaults the class cannot be made: {' '.join(str(error).split())}"
        )


def lint_method(name: str, schedules: Sequence[Float[Tensor, "t1"]] = ()) -> list[LintLine]:
    """Every check of a method on every schedule: the lines of those that failed, each check once.

    `schedules` come on top of `SCHEDULES`. An unknown name raises `BenchError`.
    """
    m = _made(name)
    if isinstance(m, LintLine):
        return [m]
    lines: dict[str, LintLine] = {}
    for sigmas in [*(sigma_schedule(steps, shift) for steps, shift in SCHEDULES), *schedules]:
        for finding in method_violations(m, sigmas):
            check = finding.check.replace(" ", "-")
            hook = HOOKS.get(finding.check, finding.check)
            where = locate(type(m), hook if hasattr(Method, hook) else None)
            met = _schedule(sigmas) if finding.check in STEP_CHECKS else ""
            lines.setdefault(check, LintLine(where, check, " ".join(finding.found.split()) + met))
    order = [check.replace(" ", "-") for check in CHECKS]
    return sorted(lines.values(), key=lambda line: order.index(line.check))


def _schedule(sigmas: Tensor) -> str:
    return f" [{len(sigmas) - 1} steps, sigma {sigmas[0]:.3g}, {sigmas[1]:.3g}, ...]"


def report(names: Sequence[str], schedules: Sequence[Float[Tensor, "t1"]] = ()) -> tuple[str, int]:
    """Lines and a summary for each method, and how many methods have a failed check."""
    text: list[str] = []
    failed = 0
    for name in names:
        lines = lint_method(name, schedules)
        failed += bool(lines)
        text += map(str, lines)
        passed = [check for check in CHECKS if check.replace(" ", "-") not in {line.check for line in lines}]
        if not lines:
            text.append(f"{name}: {len(passed)} checks passed ({', '.join(passed)})")
        elif lines[0].check in (MAKING, "no-budget-field"):
            text.append(f"{name}: cannot be checked further before that is mended")
        else:
            text.append(f"{name}: {len(lines)} of {len(CHECKS)} checks failed")
    return "\n".join(text), failed
