"""The trained policy of a run, stored as safetensors beside its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bench.api import POLICY_PREFIX, Backbone
from bench.core.errors import BenchError
from bench.store.files import write_bytes
from bench.store.record import POLICY


def save_policy(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the trained weights of a backbone's state to the folder of a run."""
    from safetensors.torch import save

    policy = {key: value for key, value in state.items() if key.startswith(POLICY_PREFIX)}
    if not policy:
        raise BenchError(
            f"the backbone's state_dict has no key that starts with {POLICY_PREFIX!r} (its keys: "
            f"{', '.join(list(state)[:3]) or 'none'}), so no policy can be stored: rename the keys of the policy."
        )
    write_bytes(folder / POLICY, save(policy))


def load_policy(backbone: Backbone, run: Path) -> None:
    """Load the policy of a finished run into the backbone."""
    backbone.load_state_dict(_read_state(run))


def read_policy(run: Path) -> dict[str, Tensor]:
    """The weights of the policy of a finished run, by their names in the transformer."""
    return {key.removeprefix(POLICY_PREFIX): value.contiguous() for key, value in _read_state(run).items()}


def _read_state(run: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run / POLICY
    try:
        return load_file(path)
    except (OSError, SafetensorError) as cause:
        raise BenchError(
            f"policy {path} cannot be read ({cause}): give the folder of a finished, trained run, such as "
            "results/nano/cps-fixed/seed-0."
        ) from cause
