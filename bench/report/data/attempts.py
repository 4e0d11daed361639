"""Which seeds a table shows, and how many runs were started for it: what a choice among runs would leave behind."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bench.core.errors import BenchError
from bench.report.data.records import SuiteRecords
from bench.store.attempts import ATTEMPTS, Attempt, read_attempts
from bench.suite.schema import PILOT_SEED

#: Rows that one list of a note names.
MOST_ROWS = 12

Runs = Collection[tuple[str, int]]
"""Row and seed of trained runs."""


def seed_kind(seeds: Collection[int]) -> str:
    """ "" for the seeds 0 to n - 1, "pilot " if all are pilot seeds, else "chosen ": fit to stand before "seeds"."""
    if sorted(seeds) == list(range(len(seeds))):
        return ""
    return "pilot " if min(seeds) >= PILOT_SEED else "chosen "


def named_seeds(seeds: Sequence[int]) -> str:
    """Such as "seeds 0, 1, 2", "seed 0", "pilot seeds 100, 101" or "chosen seeds 3, 5, 7"."""
    return f"{seed_kind(seeds)}seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def history_notes(suite: SuiteRecords) -> list[str]:
    """Whether the seeds are chosen, and how many runs were started and how many are shown, with the difference."""
    notes = []
    if seed_kind(suite.seeds) == "chosen ":
        notes.append(
            f"**{named_seeds(suite.seeds).capitalize()}: a table of the closed division takes the seeds 0 to n - 1. "
            "That these were chosen for their results is not ruled out.**"
        )
    try:
        attempts = read_attempts(suite.folder)
    except BenchError as error:
        return [*notes, f"**Runs started / shown: unknown. {error}**"]
    return [*notes, _missing(suite) if attempts is None else _counted(suite, attempts)]


def _missing(suite: SuiteRecords) -> str:
    """That there is no attempts file, and why."""
    known = any(run.record.attempt for run in suite.runs)
    why = (
        "it was deleted, since these records name its lines" if known else "these are older records, or it was deleted"
    )
    return f"Runs started / shown: unknown. There is no {ATTEMPTS}: {why}."


def _counted(suite: SuiteRecords, attempts: Sequence[Attempt]) -> str:
    """Runs started and shown, without the base, and each way in which the two can differ."""
    digests: dict[tuple[str, int], list[str]] = {}
    copied: set[tuple[str, int]] = set()
    for attempt in attempts:
        if attempt.seed is not None and attempt.event == "start":
            digests.setdefault((attempt.row, attempt.seed), []).append(attempt.digest)
        elif attempt.seed is not None:
            copied.add((attempt.row, attempt.seed))
    records = [record for runs in suite.rows for record in runs.records]
    shown = {(record.row, record.seed) for record in records if record.seed is not None}
    again = {run: set(values) for run, values in digests.items() if len(values) > 1}
    differences = {
        "started again with the same settings (continued or repeated)": {r for r, v in again.items() if len(v) == 1},
        "started again with other settings or sources": {run for run, values in again.items() if len(values) > 1},
        "started and not shown": digests.keys() - shown,
        "copied from another suite, where they were started": copied & shown - digests.keys(),
        "shown without a start on file": shown - digests.keys() - copied,
    }
    parts = [f"{what}: {_listed(runs)}" for what, runs in differences.items() if runs]
    started = sum(map(len, digests.values()))
    return f"Runs started / shown: {started} / {len(shown)}{''.join(f'; {part}' for part in parts)}."


def _listed(runs: Runs) -> str:
    """Such as "cps-fixed seeds 0, 3, sage_grpo-dual seed 1"."""
    rows: dict[str, list[int]] = {}
    for row, seed in sorted(runs):
        rows.setdefault(row, []).append(seed)
    named = [f"{row} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" for row, seeds in rows.items()]
    rest = len(named) - MOST_ROWS
    return ", ".join([*named[:MOST_ROWS], *([f"and {rest} more rows"] if rest > 0 else [])])
