"""The global state of torch and numpy that can change numbers, and the code of the harness, which plug-ins must leave.

`fix_process_state` sets the state at the start of every process of a run, before a plug-in is imported. The record has
the result of `process_state`. `unchanged_process` and `unchanged_settings` name the plug-in that changes something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.core.errors import ProcessStateError

THREADS = 1
"""Threads of torch in a run: sums stay in one order, and runs side by side do not compete for cores."""


class Setting(NamedTuple):
    """One global setting."""

    value: Any
    """Its value in a run; it is torch's or numpy's own default, except for the number of threads."""
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    call: str
    """What changes it, for messages."""


def _precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to read it after its parts (`fp32_precision`) were set one by one
        return "mixed"


def _flag(path: str, value: Any) -> Setting:
    """An attribute of `torch.backends`."""
    module: Any = torch.backends
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    return Setting(value, partial(getattr, module, name), partial(setattr, module, name), f"torch.backends.{path}")


def _kernel(name: str) -> Setting:
    """One implementation of scaled dot product attention."""
    cuda = torch.backends.cuda
    return Setting(
        True, getattr(cuda, f"{name}_sdp_enabled"), getattr(cuda, f"enable_{name}_sdp"), f"enable_{name}_sdp"
    )


def _autocast(device: str) -> Setting:
    read, write = partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
    return Setting(False, read, write, "torch.set_autocast_enabled")


def _write_device(name: str) -> None:
    if name != str(torch.get_default_device()):
        torch.set_default_device(name)


SETTINGS: Mapping[str, Setting] = {
    "num_threads": Setting(THREADS, torch.get_num_threads, torch.set_num_threads, "torch.set_num_threads"),
    "float32_matmul_precision": Setting(
        "highest", _precision, torch.set_float32_matmul_precision, "torch.set_float32_matmul_precision"
    ),
    **{
        path: _flag(path, value)
        for path, value in {
            "fp32_precision": "none",
            "cuda.matmul.fp32_precision": "none",
            "cudnn.fp32_precision": "none",
            "cudnn.conv.fp32_precision": "tf32",
            "cudnn.rnn.fp32_precision": "tf32",
            "mkldnn.fp32_precision": "none",
            "mkldnn.matmul.fp32_precision": "none",
            "cudnn.enabled": True,
            "cudnn.benchmark": False,
            "cudnn.deterministic": False,
            "cuda.matmul.allow_fp16_reduced_precision_reduction": True,
            "cuda.matmul.allow_bf16_reduced_precision_reduction": True,
            "cuda.matmul.allow_fp16_accumulation": False,
        }.items()
    },
    **{f"{name}_sdp": _kernel(name) for name in ("flash", "mem_efficient", "math", "cudnn")},
    "default_dtype": Setting(
        "float32",
        lambda: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda name: torch.set_default_dtype(getattr(torch, name)),
        "torch.set_default_dtype",
    ),
    "default_device": Setting(
        "cpu", lambda: str(torch.get_default_device()), _write_device, "torch.set_default_device"
    ),
    "deterministic_algorithms": Setting(
        0, torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, "torch.use_deterministic_algorithms"
    ),
    "flush_denormal": Setting(
        False, lambda: sys.float_info.min * 0.5 == 0.0, torch.set_flush_denormal, "torch.set_flush_denormal"
    ),
    "grad_enabled": Setting(True, torch.is_grad_enabled, torch.set_grad_enabled, "torch.set_grad_enabled"),
    "autocast_cpu": _autocast("cpu"),
    "autocast_cuda": _autocast("cuda"),
    "numpy_errors": Setting(
        {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},
        np.geterr,
        lambda value: np.seterr(**value),
        "numpy.seterr",
    ),
}
"""Setting to its value in a run, in the order in which they are written."""
VARIABLES = (
    *("OMP_", "MKL_", "KMP_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_CPU_CAPABILITY", "TORCH_", "PYTORCH_"),
    *("CUBLAS_", "CUDNN_", "NVIDIA_TF32_OVERRIDE"),
)
"""First letters of the environment variables that can change a number; values that are paths do not count."""
RANDOM = ("rand", "randn", "rand_like", "randn_like", "randint", "randperm", "normal", "bernoulli")
"""Functions of torch that are watched like the harness. `manual_seed` is not: torch itself wraps it at times."""


SHOWN = 3
"""Changed settings that a message lists."""


def process_state() -> dict[str, Any]:
    """The present value of every setting, torch's interop threads and the environment variables, for a record."""
    variables = sorted(os.environ.items())
    return {
        **{name: setting.read() for name, setting in SETTINGS.items()},
        "interop_threads": torch.get_num_interop_threads(),
        "environment": {
            name: value for name, value in variables if name.startswith(VARIABLES) and os.sep not in value
        },
    }


def fix_process_state() -> None:
    """Give every setting its value in a run; call it before the first plug-in is imported."""
    for setting in SETTINGS.values():
        setting.write(setting.value)


def _setting_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The settings that differ, and how to undo it, as the end of a sentence; empty if all are equal."""
    names = [name for name in before if before[name] != after[name]]
    if not names:
        return ""
    if after["float32_matmul_precision"] not in (before["float32_matmul_precision"], "mixed"):
        names = [name for name in names if not name.endswith("matmul.fp32_precision")]  # torch sets them along with it
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    changes = " and ".join(f"{name} from {before[name]!r} to {after[name]!r}" for name in names[:SHOWN]) + more
    calls = dict.fromkeys(SETTINGS[name].call if name in SETTINGS else f"what sets {name}" for name in names[:SHOWN])
    return (
        f"changes {changes}: global settings change the numbers of a run, so they are the same for all plug-ins; "
        f"take out {' and '.join(calls)}, or restore the former value at once."
    )


Code = dict[str, tuple[object, object]]
"""Dotted name to a function, class or constant, and the code behind a function."""


def _function_entry(value: object) -> tuple[object, object]:
    return value, getattr(value, "__code__", None)


def _class_entries(path: str, cls: type) -> Iterator[tuple[str, tuple[object, object]]]:
    """Functions and plain values of a class, without the attributes that Python and pydantic fill in later."""
    for name, value in list(vars(cls).items()):
        function = isinstance(value, FunctionType | staticmethod | classmethod | property | cached_property)
        if function or (not name.startswith("__") and isinstance(value, int | float | str | tuple | frozenset)):
            yield f"{path}.{name}", _function_entry(value)


def harness_code() -> Code:
    """Functions, classes and constants of all loaded modules of bench, and torch's random functions."""
    code: Code = {f"torch.{name}": _function_entry(getattr(torch, name)) for name in RANDOM}
    for module_name, module in sys.modules.copy().items():  # list() of them fails while another thread imports
        if module_name.partition(".")[0] != "bench" or module is None:
            continue
        for name, value in vars(module).copy().items():
            path = f"{module_name}.{name}"
            if isinstance(value, FunctionType | type) or name.isupper():
                code[path] = _function_entry(value)
            if isinstance(value, type) and value.__module__ == module_name:
                code.update(_class_entries(path, value))
    return code


def _code_changes(before: Code, after: Code) -> str:
    """The first replaced piece of the harness and how to fix it, as the end of a sentence; empty if there is none.

    A function that is added to a class counts, a name that is added to a module does not: imports of modules add some.
    """
    replaced = [
        name
        for name, old in before.items()
        if name not in after or any(a is not b for a, b in zip(old, after[name], strict=True))
    ]
    replaced += [name for name in after if name not in before and name.rpartition(".")[0] in before]
    if not replaced:
        return ""
    more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
    return (
        f"replaces {replaced[0]}{more}: the harness is the same for every plug-in, or rows could not be compared; "
        "express it by the hooks of bench.api, or change the harness in a copy of the project."
    )


class ProcessSnapshot(NamedTuple):
    """The settings, and the code of the harness, at one time."""

    state: dict[str, Any]
    code: Code

    @classmethod
    def take(cls) -> ProcessSnapshot:
        """The present state. Takes a few milliseconds."""
        return cls(process_state(), harness_code())

    def changes(self) -> str:
        """What has changed since then and how to fix it, as the end of a sentence; empty if nothing has."""
        return _setting_changes(self.state, process_state()) or _code_changes(self.code, harness_code())


@contextmanager
def unchanged_process(culprit: str) -> Iterator[None]:
    """Raise `ProcessStateError` if the block changes a setting or code of the harness. Takes a few milliseconds."""
    before = ProcessSnapshot.take()
    yield
    if changes := before.changes():
        raise ProcessStateError(f"{culprit} {changes}")


@contextmanager
def unchanged_settings(culprit: str) -> Iterator[None]:
    """Raise `ProcessStateError` if the block changes a setting. Takes less than a millisecond."""
    before = process_state()
    yield
    if changes := _setting_changes(before, process_state()):
        raise ProcessStateError(f"{culprit} {changes}")
