"""Records as pandas data frames, for analyses in Python: `bench.load_results`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from bench.core.errors import BenchError
from bench.report.data.held_out import COLUMNS, held_out_curves
from bench.report.data.loading import load_records, records_below
from bench.report.data.metrics import mean_scores, reward_weights, video_scores
from bench.report.data.records import failed_gates
from bench.report.data.summary import COUNTS, count
from bench.report.tables.main import load_main_table
from bench.store.files import find, read_lines
from bench.store.record import RUN, TRAIN, read_run
from bench.store.scores import SCORE_COLUMNS

if TYPE_CHECKING:
    from bench.store.record import RunRecord

#: Columns that identify a run in every frame.
KEY = ["suite", "row", "seed"]


class StoredRun(NamedTuple):
    """One run as its folder has it."""

    suite: str
    folder: Path
    record: RunRecord
    scores: pd.DataFrame

    @property
    def key(self) -> dict[str, Any]:
        """The values of `KEY`; the seed of the base is NA."""
        seed = pd.NA if self.record.seed is None else self.record.seed
        return {"suite": self.suite, "row": self.record.row, "seed": seed}


class Results:
    """The records of one suite or of several suites as data frames; `bench.load_results` makes it.

    Every frame starts with the columns `suite`, `row` and `seed`, which together identify a run:

    - `suite`: folder of the suite relative to the loaded folder, such as "nano" or "nano_noise/native"; if the loaded
      folder is that of a suite itself, the name of the suite.
    - `row`: label of the row; "base" for the untrained model.
    - `seed`: training seed, Int64; NA for the base.

    **`runs`**: one line per run, finished or failed.

    - `method`, `kl`: names of the method and of the KL policy; missing for the base.
    - `status`: "finished" or "failed"; `error`: the reason for which a run failed, else missing.
    - `digest`: digest of everything that decides the numbers of the run.
    - `updates`: number of updates done, Int64; 0 for the base.
    - `seconds`: wall-clock seconds of all phases together; `peak_memory_mb`: peak memory, MB of 10^6 bytes.
    - `nfe_rollout`, `nfe_train`, `nfe_anchor`: network evaluations; `reward_calls`: videos times evaluators of the
      reward; `videos`, `decodes`: counts. Totals of the run, Int64; NA for the base.
    - `failed_gates`: names of the validity gates that the run fails, separated by spaces.
    - `overall`, `trained`, `vq`, `gold_overall`, ...: mean held-out scores over prompts and videos, score units, with
      the names of `main.csv`: `overall` = VQ + MQ + TA, `trained` = the training reward, single metrics in lower case.
      NaN for a failed run, and for a metric that was not scored.
    - `folder`: path of the run's folder, text.

    **`scores`**: one line per run, held-out video and metric. A failed run has none.

    - `prompt_index`: number of the prompt in the held-out list, from 0; `prompt`: its text.
    - `video`: number of the video of this prompt, from 0. Videos with the same `prompt_index` and `video` start from
      the same noise in all rows and seeds.
    - `evaluator`, `metric`: names; `value`: the score, in units of the metric.

    **`curves`**: one line per run and update. The base has none. NaN where a run did not record a number.

    - `update`: number of the update, from 0.
    - `reward`: the training reward, mean over the videos of the update, score units; `reward_group_std`: its standard
      deviation within a group, mean over groups; `reward_<metric>`: mean of each metric of the reward.
    - `monitor_<metric>`: mean of each metric that is monitored and not trained.
    - `grad_norm`: norm of the gradient before clipping, mean over the optimizer steps of the update;
      `grad_norm_of_step_<k>`: norm of the part from rollout step k, NaN if step k is not trained in this update.
    - `policy_loss`, `log_prob`, `ratio_error`, `clipped_share`: as in `train.jsonl`.
    - `kl_anchor`, `kl_stepwise`: means of the KL terms; `kl_weight_<term>`: their factors after the update;
      `kl_gradient_kl`, `kl_gradient_policy`: gradient norms of the KL term and of the rest, in some updates only.
    - `nfe_rollout`, `nfe_train`, `reward_calls`, `videos`, ...: the ledger, totals since the start of the run.
    - `seconds_<phase>`: wall-clock seconds of this update by phase.

    **`held_out`**: the held-out learning curves, one line per run, update and score. Runs without a curve
    (`evaluation.every`) have none. Every suite must be one that compares (`table`).

    - `update`: number of finished updates, from 0 (the base) to the last.
    - `nfe_rollout`, `reward_calls`, `minutes`: what training had spent by then, the curve itself not counted.
    - `score`: a name of `main.csv`, such as "overall".
    - `gain`: mean over the point's videos of the score less the base's score of the same prompt and video, in units of
      the score; at the last update all videos, so that it is the difference to the base in the table.
    - `level`: the base's mean plus the gain.
    """

    def __init__(self, folder: Path, suites: Mapping[str, Path], stored: list[StoredRun]) -> None:
        self.folder = folder
        """The loaded folder."""
        self.suites = dict(suites)
        """Value of the column `suite` to the folder of the suite."""
        self._stored = stored

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One line per run; columns as in the class's description."""
        frame = pd.DataFrame([_run_line(run) for run in self._stored])
        counts = ("seed", "updates", *(name for name in COUNTS if name != "updates"))
        return frame.astype(dict.fromkeys(counts, "Int64"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One line per run, held-out video and metric; columns as in the class's description."""
        frames = [run.scores.assign(**run.key) for run in self._stored if len(run.scores)]
        if not frames:
            return pd.DataFrame(columns=[*KEY, *SCORE_COLUMNS])
        return pd.concat(frames, ignore_index=True)[[*KEY, *SCORE_COLUMNS]].astype({"seed": "Int64"})

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One line per run and update; columns as in the class's description."""
        lines = [
            {**run.key, **_update_numbers(line)}
            for run in self._stored
            if run.record.seed is not None
            for line in read_lines(run.folder / TRAIN)
        ]
        lead = [*KEY, "update", "reward"]
        frame = pd.DataFrame(lines, columns=None if lines else lead)
        return frame[[*lead, *sorted(set(frame.columns) - set(lead))]].astype({"seed": "Int64"})

    @cached_property
    def held_out(self) -> pd.DataFrame:
        """One line per run, update and score; columns as in the class's description."""
        frames = [held_out_curves(load_records(folder)).assign(suite=name) for name, folder in self.suites.items()]
        return pd.concat(frames, ignore_index=True)[["suite", *COLUMNS]]

    def table(self, suite: str | None = None) -> pd.DataFrame:
        """The numbers of the main table, with the columns of `main.csv`: one line per row, the base first.

        `suite` is a value of the column `suite`; it is needed if the folder has several suites. Runs that do not
        compare are a `BenchError`.
        """
        names = ", ".join(self.suites)
        if suite is None and len(self.suites) > 1:
            raise BenchError(f"{self.folder} holds {len(self.suites)} suites: name one with suite= ({names}).")
        if suite is not None and suite not in self.suites:
            raise BenchError(f"{self.folder} holds no suite {suite!r}: choose one of {names}.")
        return load_main_table(self.suites[suite if suite is not None else next(iter(self.suites))]).table

    def __repr__(self) -> str:
        return f"<Results of {self.folder}: {len(self._stored)} runs of {', '.join(self.suites)}>"


def load_results(folder: Path | str) -> Results:
    """Read every record below a suite's folder, such as `results/nano`, or below a parent of several suites."""
    top = Path(folder)
    paths = {path.parent for path in find(top, f"**/{RUN}")}
    suite_folders = sorted({run.parent.parent if run.name.startswith("seed-") else run.parent for run in paths})
    if not suite_folders:
        raise BenchError(f"{top} holds no records ({RUN}): name a suite's folder, such as results/nano.")
    suites: dict[str, Path] = {}
    stored: list[StoredRun] = []
    for suite_folder in suite_folders:
        records = records_below(suite_folder)
        name = records[0][1].suite if suite_folder == top else suite_folder.relative_to(top).as_posix()
        suites[name] = suite_folder
        stored += [StoredRun(name, path, *read_run(path)) for path, _ in records]
    return Results(top, suites, stored)


def _run_line(run: StoredRun) -> dict[str, Any]:
    record = run.record
    means: dict[str, Any] = {}
    if record.status == "finished":
        cells = mean_scores(video_scores(run.scores, reward_weights(record.config), run.folder))
        means = {str(name): mean for name, mean in cells.mean().items()}
    totals = {name: count(record.ledger.get(name)) for name in COUNTS if name != "updates"}
    return {
        **run.key,
        "method": record.method,
        "kl": record.kl,
        "status": record.status,
        "error": record.error,
        "digest": record.digest,
        "updates": record.updates_done,
        "seconds": sum(record.seconds.values()) if record.seconds else float("nan"),
        "peak_memory_mb": record.peak_memory_mb,
        **totals,
        "failed_gates": " ".join(failed_gates(record)),
        **means,
        "folder": str(run.folder),
    }


def _update_numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of one line of `train.jsonl`, nested ones under the names of the class's description."""
    numbers: dict[str, Any] = {}
    for name, value in line.items():
        if name == "ledger":
            numbers |= {total: count(amount) for total, amount in value.items()}
        elif isinstance(value, Mapping):
            prefix = "reward" if name == "rewards" else name
            numbers |= {f"{prefix}_{key}": item for key, item in value.items()}
        elif name == "grad_norm":
            numbers[name] = sum(value) / len(value) if value else float("nan")
        elif not isinstance(value, list):
            numbers[name] = value
    return numbers
