"""Which rows and seeds a table shows: those of a suite's YAML, or those that its records name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bench.core.hashing import canonical_json
from bench.report import formatting
from bench.store.record import RunRecord
from bench.suite.schema import PILOT_SEED, RowSpec, Suite

BASE = "base"
#: Names as the papers write them; any other method is called by its own name.
METHOD_TITLES = {
    BASE: "Base",
    "flow_grpo": "FlowGRPO",
    "dance_grpo": "DanceGRPO",
    "cps": "CPS",
    "sage_grpo": "SAGE-GRPO",
    "precise": "Precise",
    "longcat_grpo": "LongCat-GRPO",
    "mix_grpo": "MixGRPO",
    "flow_grpo_fast": "Flow-GRPO-Fast",
    "flash_grpo": "Flash-GRPO",
    "grpo_guard": "GRPO-Guard",
    "flow_dppo": "Flow-DPPO",
    "diffusion_nft": "DiffusionNFT",
    "awm": "AWM",
    "rvm": "RVM",
}


class Row(NamedTuple):
    """A row of the suite, in the order of its YAML."""

    label: str
    method: str
    kl: str
    variant: bool = False
    """Whether the row changes parameters of its method: published numbers are then about another method."""
    open: bool = False
    """Whether the row stands in the open division, which its records say."""
    comparator: bool = False
    """Whether the suite compares each other row with this one, in place of every pair."""

    @property
    def name(self) -> str:
        """The label in tables and texts, marked for a row of the open division."""
        return f"{self.label}{formatting.OPEN_MARK if self.open else ''}"


def method_title(method: str) -> str:
    """Name of a method as its paper writes it, or the name in the suite."""
    return METHOD_TITLES.get(method, method)


def row_title(row: Row) -> str:
    """Name of a row for readers, such as "SAGE-GRPO, dual KL"; a row with a label of its own keeps the label."""
    plain = row.label in (f"{row.method}-{row.kl}", row.method)
    kl = "no KL" if row.kl == "none" else f"{row.kl} KL"
    title = f"{method_title(row.method)}, {kl}" if plain and row.method != BASE else row.label
    if row.label == BASE:
        title = METHOD_TITLES[BASE]
    return f"{title} (open)" if row.open else title


class Selection(NamedTuple):
    """The rows and seeds that a table of one suite shows."""

    rows: list[Row]
    seeds: list[int]


def rows_of(suite: Suite) -> list[Row]:
    """The rows of a suite as a table needs them."""
    return [
        Row(
            row.name,
            row.method,
            row.kl_spec.name,
            variant=_is_variant(row),
            comparator=row.name == suite.compare_with,
        )
        for row in suite.rows
    ]


def _is_variant(row: RowSpec) -> bool:
    return bool(row.params or row.kl_spec.params or row.lr or row.eta_factor)


def scored_prompts(config: Mapping[str, Any]) -> str:
    """ "held-out" or "validation": the prompts on which the runs of this configuration were scored."""
    return "validation" if (config.get("evaluation") or {}).get("prompts") == "validation" else "held-out"


def recorded_seeds(records: Iterable[RunRecord]) -> set[int]:
    """The seeds that the records' own configurations name, without pilot seeds if there are others."""
    records = list(records)
    planned = {int(seed) for record in records for seed in record.config.get("seeds", [])}
    planned = planned or {record.seed for record in records if record.seed is not None}
    return {seed for seed in planned if seed < PILOT_SEED} or planned


def recorded_rows(config: Mapping[str, Any], records: Iterable[RunRecord]) -> list[Row]:
    """Rows in the order of the configuration, then rows that only the records have, sorted by label."""
    known = {
        record.row: Row(record.row, record.method or BASE, record.kl or "none")
        for record in records
        if record.seed is not None
    }
    rows: list[Row] = []
    entries = config.get("rows", [])
    own = {_label(entry) for entry in entries}
    for entry in entries:
        method, (kl, kl_params) = str(entry.get("method")), _kl_policy(entry)
        label = entry.get("label")
        variant = bool(kl_params) or any(entry[key] for key in entry if key not in ("method", "kl", "label"))
        matching = [
            row
            for row in known.values()
            if row.label == _label(entry)
            or (not label and (row.method, row.kl) == (method, kl) and row.label not in own)
        ]
        rows += [row._replace(variant=variant) for row in sorted(matching)]
        rows += [] if matching else [Row(_label(entry), method, kl, variant)]
    rows += sorted(known.values())
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.label, row)
    return list(first.values())


def row_settings(record: RunRecord) -> dict[str, Any]:
    """The method, the KL policy and the parameters of both, from the record's own configuration.

    And `lr`, if the row has a learning rate of its own.
    """
    entry: dict[str, Any] = next((entry for entry in record.config.get("rows", []) if _label(entry) == record.row), {})
    settings = {"method": record.method, "params": record.method_params, "kl": record.kl}
    own = {"lr": entry["lr"]} if entry.get("lr") else {}
    return {**settings, "kl_params": _kl_policy(entry)[1], **own}


def settings_key(record: RunRecord) -> str:
    """`row_settings` as one text, to compare rows by."""
    return canonical_json(row_settings(record))


def _kl_policy(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a configured row's KL policy, which is a name or a mapping of both."""
    kl = entry.get("kl") or "none"
    return (str(kl["name"]), dict(kl.get("params", {}))) if isinstance(kl, Mapping) else (str(kl), {})


def _label(entry: Mapping[str, Any]) -> str:
    """Label of a configured row, which is also the name of its folder."""
    return str(entry.get("label") or f"{entry.get('method')}-{_kl_policy(entry)[0]}".replace(":", "."))
