"""Settings of the fuzzer: few fixed inputs in the normal tests, many new ones with `make fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.outcomes import COUNTS, EXAMPLES, MEMORY_MB, memory_mb

COMMON = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
settings.register_profile("short", COMMON, max_examples=40, derandomize=True)
settings.register_profile("long", COMMON, max_examples=max(EXAMPLES, 1), print_blob=True)
settings.load_profile("long" if EXAMPLES else "short")


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """All inputs of a test fit into `MEMORY_MB`."""
    before = memory_mb()
    yield
    assert memory_mb() - before < MEMORY_MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the inputs of a module are written into, as the current folder."""
    path = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        yield path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The numbers of inputs, where many were asked for."""
    if EXAMPLES and COUNTS:
        terminalreporter.section("inputs of the fuzzer")
        for kind, counts in COUNTS.items():
            accepted, refused = counts["accepted"], counts["refused"]
            terminalreporter.write_line(
                f"{kind:<16} {accepted + refused:6} inputs: {refused} refused, {accepted} accepted"
            )
