"""What holds for every test: one thread, no network, and a list of the parity errors at the end."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any, NoReturn

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
os.environ["BENCH_ALLOW_CODE"] = "1"  # the tests' plug-ins; test_consent.py takes it away

import numpy as np
import pytest
import torch

from tests.helpers import parity

torch.set_num_threads(1)

LOCAL = {"localhost", "127.0.0.1", "::1", ""}


def _refuse(address: object) -> NoReturn:
    raise RuntimeError(f"tests run offline, but something tried to connect to {address!r}")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Sockets connect to this machine only; a name is looked up for this machine only."""
    connect, connect_ex, lookup = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def allowed(sock: socket.socket, address: Any) -> bool:
        return sock.family == getattr(socket, "AF_UNIX", None) or address[0] in LOCAL

    def local_connect(sock: socket.socket, address: Any) -> None:
        return connect(sock, address) if allowed(sock, address) else _refuse(address)

    def local_connect_ex(sock: socket.socket, address: Any) -> int:
        return connect_ex(sock, address) if allowed(sock, address) else _refuse(address)

    def local_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return lookup(host, *args, **kwargs) if host in {None, *LOCAL, socket.gethostname()} else _refuse(host)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket.socket, "connect_ex", local_connect_ex)
        patch.setattr(socket, "getaddrinfo", local_lookup)
        yield


@pytest.fixture(autouse=True)
def parity_errors(request: pytest.FixtureRequest) -> None:
    """What `parity.within` measures belongs to the test that runs."""
    parity.start(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest error of each comparison with an original program, whichever worker made it."""
    stats = terminalreporter.stats
    rows = parity.worst([*stats.get("passed", []), *stats.get("failed", [])])
    if rows:
        terminalreporter.section("largest parity errors")
        for name, error, tolerance in rows:
            allowed = f"tolerance {tolerance:.1e}" if tolerance else "exact"
            terminalreporter.write_line(f"{name:<44} {error:8.1e}  {allowed}")


@pytest.fixture
def global_random_state_is_left_alone() -> Iterator[None]:
    """For tests that may not move torch's or numpy's global random state: every number comes from a named stream.

    Python's own `random` is not watched: beartype draws from it.
    """
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    yield
    numpy_after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert torch.equal(torch_before, torch.get_rng_state()), "torch's global random state moved: draw from a stream"
    assert repr(numpy_before) == repr(numpy_after), "numpy's global random state moved: draw from a stream"
