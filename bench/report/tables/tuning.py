"""The table of a search over settings, from its records only: `<folder>/tables/tuning.{md,csv}`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from bench.report import formatting
from bench.report.data.attempts import named_seeds
from bench.report.data.loading import load_records
from bench.report.data.metrics import REWARD
from bench.report.data.records import SuiteRecords
from bench.report.data.selection import Row
from bench.report.data.tuning import best_table, chosen_rows, final_cost, search_cost, trial_table
from bench.report.legend import legend
from bench.report.tables.main import FOLDER, LEGEND, NOTES, VERDICT, bullets
from bench.report.tables.notes import nano_warning, run_notes
from bench.report.tables.screen import narrow, wrapped
from bench.report.tables.sections import Table
from bench.store.files import write_files
from bench.suite.search import trial_of

NAME = "tuning"
CHOSEN = "Chosen settings"


class TuningTable:
    """The numbers of a search, and its texts."""

    def __init__(self, suite: SuiteRecords, folder: Path) -> None:
        self.suite = suite
        self.folder = folder
        """Folder of the suite's records."""
        self.table = trial_table(suite)
        """The columns of tuning.csv."""
        self.best = best_table(self.table)

    @property
    def sections(self) -> dict[str, Table]:
        """Title to heads and lines of each section that has lines."""
        content = {"Trials": self._trials(), "Best after k trials": self._best(), "Cost": self._cost()}
        return {title: section for title, section in content.items() if section[1]}

    def _trials(self) -> Table:
        table, seeds = self.table, self.suite.seeds
        optional = {f"score_seed_{seed}": f"seed {seed}" for seed in seeds if len(seeds) > 1}
        optional |= {"gold_overall": "gold Overall"} if table["gold_overall"].notna().any() else {}
        lines = []
        for _, row in table.iterrows():
            rank = formatting.count(row["rank"]) + (" (chosen)" if row["chosen"] else "")
            settings = [_significant(row["lr"]), _significant(row["eta"]), row["equalizer"] or formatting.MISSING]
            cells = [formatting.number(row[name]) for name in ("score", *optional)]
            lines.append([f"{row['row']}.t{row['trial']}", *settings, cells[0], rank, *cells[1:]])
        return ["Row", "lr", "eta", "equalizer", "Reward", "rank", *optional.values()], lines

    def _best(self) -> Table:
        wide = self.best.pivot(index="row", columns="trials", values="best").reindex(self.best["row"].unique())
        lines = [[str(row), *map(formatting.number, values)] for row, *values in wide.itertuples()]
        return ["Row", *(f"k = {trials}" for trials in wide)], lines

    def _cost(self) -> Table:
        costs = search_cost(self.suite)
        lines = [[row, str(cost.runs), formatting.number(cost.minutes, 1)] for row, cost in costs.items()]
        total = sum(cost.runs for cost in costs.values()), sum(cost.minutes for cost in costs.values())
        lines.append(["all trials", str(total[0]), formatting.number(total[1], 1)])
        return ["Row", "runs", "minutes of one process"], lines

    @property
    def yaml_rows(self) -> str | None:
        """The rows with the chosen settings, for the YAML of the suite that runs them; None before all are chosen."""
        rows = chosen_rows(self.suite, self.table)
        if len(rows) < self.table["row"].nunique():
            return None
        return "\n".join(["rows:", *(f"  - {_flow(row)}" for row in rows)])

    @property
    def verdict(self) -> list[str]:
        """What was chosen for each row, and by how much it is above the default."""
        sentences = [nano_warning(self.suite.name, self.suite.config)] if self.suite.nano else []
        return [*sentences, *(self._choice(str(row), trials) for row, trials in self.table.groupby("row", sort=False))]

    def _choice(self, row: str, trials: pd.DataFrame) -> str:
        """What was chosen for one row."""
        chosen = trials[trials["chosen"]]
        if chosen.empty:
            missing = len(trials) * len(self.suite.seeds) - int((trials["n_seeds"] + trials["n_failed"]).sum())
            why = f"its runs are not complete (missing: {missing})" if missing else "no trial has finished every seed"
            return f"{row}: nothing is chosen, since {why}."
        best, default = chosen.iloc[0], trials[trials["trial"] == 0]["score"].iloc[0]
        settings = f"lr {best['lr']:.3g}"
        settings += f", eta {_significant(best['eta'])}" if isfinite(best["eta"]) else ""
        settings += f", equalizer {best['equalizer']}" if best["equalizer"] else ""
        lead = "the default" if best["trial"] == 0 else _lead(best["score"] - default)
        return f"{row}: trial {best['trial']} of {len(trials)} is chosen ({settings}), {lead}."

    @cached_property
    def notes(self) -> list[str]:
        """The notes under the table."""
        suite, config = self.suite, self.suite.config
        prompts = len(suite.runs[0].cells) if suite.runs else 0
        search, evaluation = config["search"], config.get("evaluation", {})
        space = (
            f"lr from {search['lr'][0]:g} to {search['lr'][1]:g} and factors on the method's own eta from "
            f"{search['eta'][0]:g} to {search['eta'][1]:g}, both log-uniform, eta at most 1 (or the method's own); "
            f"equalizer {' or '.join(search['equalizer'])}"
        )
        base = suite.base.cells[REWARD].mean() if suite.base else None
        absent = {entry["label"]: " and ".join(entry["lacks"]) for entry in config["rows"] if entry.get("lacks")}
        lacks = {named[0]: settings for label, settings in absent.items() if (named := trial_of(label))}
        return [
            *[note for runs in suite.rows for note in run_notes(runs.row.label, runs, len(suite.seeds))],
            f"Trial 0 is the suite's default. The others are the same draws for every row: {space}.",
            *[
                f"{row} has no {settings}, which its trials leave out; they are as many."
                for row, settings in lacks.items()
            ],
            f"Reward: mean over {prompts} {evaluation.get('prompts', 'heldout')} prompts and the "
            f"{named_seeds(suite.seeds)}; the base has {formatting.number(base)}. The largest is chosen, the "
            "first of equal ones. Gold does not choose.",
            "Best after k trials: the largest Reward among the default and k - 1 of the draws, mean over all orders "
            "of the draws. The largest of noisy means is too high: the number to cite is that of the chosen settings "
            "on held-out prompts with fresh seeds.",
            "No p-values and no pairs of rows: these runs choose settings, and nothing is tested on them.",
        ]

    def legend(self, text: str) -> list[str]:
        """One line per word of the table that occurs in `text`."""
        return legend(text, (runs.row.kl for runs in self.suite.rows), self.suite.metrics.values())


def load_tuning_table(folder: Path | str, rows: Sequence[Row] | None, seeds: Sequence[int] | None) -> TuningTable:
    """The numbers of a search from the records in the suite's folder; `rows` and `seeds` are those of its YAML."""
    return TuningTable(load_records(folder, rows, seeds), Path(folder))


def write_tuning_files(tuning: TuningTable) -> dict[str, Path]:
    """Write tuning.md and tuning.csv atomically: {file name: path}."""
    return write_files(tuning.folder / FOLDER, render_tuning(tuning))


def render_tuning(tuning: TuningTable) -> dict[str, str]:
    """The text of each file."""
    csv = formatting.csv(tuning.table)
    return {f"{NAME}.md": _markdown(tuning), f"{NAME}.csv": csv}


def _markdown(tuning: TuningTable) -> str:
    parts = [f"# {tuning.suite.name}: tuning", f"## {VERDICT}", bullets(tuning.verdict)]
    for title, section in tuning.sections.items():
        parts += [f"## {title}", formatting.markdown(*section)]
    parts += [f"## {CHOSEN}", f"```yaml\n{tuning.yaml_rows}\n```"] if tuning.yaml_rows else []
    parts += [f"## {NOTES}", bullets(tuning.notes)]
    parts += [f"## {LEGEND}", bullets(tuning.legend("\n".join(parts)))]
    return "\n\n".join(parts) + "\n"


def tuning_screen(tuning: TuningTable) -> str:
    """The text of `bench table` for a search: tables, notes, words, what is chosen, cost of the final runs, YAML."""
    parts = [f"# {tuning.suite.name}: tuning"]
    for title, section in tuning.sections.items():
        parts += [f"## {title}", narrow(section)]
    parts += [f"## {NOTES}", wrapped(tuning.notes)]
    words = tuning.legend("\n".join([*parts, *tuning.verdict]))
    parts += [f"## {LEGEND}", wrapped(words), f"## {VERDICT}", wrapped(tuning.verdict)]
    final = final_cost(tuning.folder, tuning.suite.name)
    if final is not None:
        parts.append(f"Final runs ({final[0]}): {final[1].runs}, {final[1].minutes:.1f} minutes of one process.")
    parts += [f"## {CHOSEN}", tuning.yaml_rows] if tuning.yaml_rows else []
    return "\n\n".join(parts) + "\n"


def _significant(value: Any) -> str:
    """A setting with 3 significant digits."""
    return formatting.MISSING if pd.isna(value) else f"{value:.3g}"


def _lead(gain: float) -> str:
    if pd.isna(gain):
        return "the default failed"
    return f"{formatting.number(gain)} above the default in Reward"


def _flow(row: dict[str, Any]) -> str:
    """A row on one line of YAML."""
    return yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=1000).strip()
