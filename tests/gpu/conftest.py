"""The devices of these tests: the CPU, in miniature, under `make test`; GPUs under `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.full_size import released

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """A device of torch. Without a GPU its tests fail: `make test-gpu` may not pass by testing nothing."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.fail("torch sees no GPU: run `make test-gpu` on a machine with one, or `make test` on this one")
    return str(request.param)


@pytest.fixture(scope="session")
def two(device: str) -> str:
    """The device of two processes, each with a GPU of its own."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs, and this machine has one")
    return device


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random pipeline in the released layout."""
    return released(tmp_path_factory.mktemp("gpu") / "480p_t2v")
