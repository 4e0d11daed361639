"""`bench export`: the trained policy of a run as files for other programs, which its backbone makes."""

from __future__ import annotations

from pathlib import Path

from bench import plugins, store
from bench.api import ExportsPolicy
from bench.core.errors import BenchError
from bench.store.policy import read_policy
from bench.suite.paths import resolve
from bench.suite.schema import BackboneSpec


def export(run: Path, out: Path) -> list[Path]:
    """Write the policy of a finished run to the folder `out`; returns the paths of the files.

    Raises `BenchError` for a backbone that exports nothing.
    """
    record = store.read_record(run)
    spec = BackboneSpec.model_validate(record.config["backbone"])
    backbone = plugins.find("backbones", spec.name)
    if not (isinstance(backbone, type) and issubclass(backbone, ExportsPolicy)):
        raise BenchError(
            f"run {run}: the backbone {spec.name!r} has no export: give its class the method export_policy "
            "(bench.api.ExportsPolicy)."
        )
    checkpoint = None if spec.checkpoint_name is None else resolve(spec.checkpoint_name)
    policy = read_policy(run)
    try:
        files = backbone.export_policy(policy, record.backbone, checkpoint)
    except BenchError as cause:
        raise BenchError(f"run {run}: {cause}") from cause
    for name, content in files.items():
        store.write_bytes(out / name, content)
    return [out / name for name in files]
