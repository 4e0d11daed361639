"""The findings of `bench doctor` and its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from bench.core.errors import BenchError
from bench.core.progress import say
from bench.plan.page import format_hours

State = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """Its name."""
    state: State
    """"note": it was skipped, or something is worth knowing; "bad": a reason not to start."""
    text: str

    @property
    def line(self) -> str:
        mark = {"good": "ok", "note": "note", "bad": "NO-GO"}[self.state]
        return f"{mark:5s}  {self.check}: {self.text}"


@dataclass
class Report:
    """The findings so far; each one is shown as soon as it is there."""

    findings: list[Finding] = field(default_factory=list)
    hours: float | None = None
    """Extrapolated hours of all runs, one after another; None if nothing was measured."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Measured seconds of loading, and of the timed update by phase."""

    @property
    def go(self) -> bool:
        """Whether no check is a reason not to start."""
        return not any(finding.state == "bad" for finding in self.findings)

    def add(self, check: str, state: State, text: str) -> None:
        self.findings.append(Finding(check, state, text))
        say(self.findings[-1].line)

    @contextmanager
    def checked(self, check: str) -> Iterator[None]:
        """A `BenchError` in the block is a bad finding."""
        try:
            yield
        except BenchError as error:
            self.add(check, "bad", str(error))
        except torch.OutOfMemoryError as error:
            reason = " ".join(str(error).split())[:160]
            self.add(check, "bad", f"out of memory on the GPU ({reason}): `bench plan` says which settings take less")

    @property
    def verdict(self) -> str:
        """GO or NO-GO with the reasons."""
        reasons = [f"{finding.check}: {finding.text}" for finding in self.findings if finding.state == "bad"]
        if reasons:
            return "NO-GO: " + "; ".join(reason.rstrip(".") for reason in reasons)
        return "GO" if self.hours is None else f"GO: about {format_hours(self.hours)} for all runs, one after another"

    def document(self) -> dict[str, Any]:
        """The report as JSON data."""
        return {
            "verdict": "GO" if self.go else "NO-GO",
            "findings": [asdict(finding) for finding in self.findings],
            "hours": self.hours,
            "seconds": self.seconds,
        }
