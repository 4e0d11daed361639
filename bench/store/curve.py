"""The held-out learning curve of a run: the scores of held-out videos after some updates of the training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.store.files import replace_atomically
from bench.store.record import CURVE, RunRecord
from bench.store.scores import SCORE_COLUMNS, sorted_scores, write_parquet

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = ["update", *SCORE_COLUMNS]
"""All columns; `update` is the number of finished updates, so that 0 would be the base."""


def sorted_curve(curve: pd.DataFrame) -> pd.DataFrame:
    """The points in the order of their updates, each as `sorted_scores` has it, which also checks it."""
    import pandas as pd

    if sorted(curve.columns) != sorted(CURVE_COLUMNS):
        raise BenchError(f"a curve needs the columns {CURVE_COLUMNS}, got {list(curve.columns)}: fix what made it.")
    points = [
        sorted_scores(point.drop(columns="update")).assign(update=update)[CURVE_COLUMNS]
        for update, point in curve.astype({"update": "int64"}).groupby("update")
    ]
    return pd.concat(points, ignore_index=True) if points else curve[CURVE_COLUMNS]


def curve_digest(folder: Path) -> str | None:
    """Digest of the content of the folder's curve; None where there is none, as on other processes than the main one.

    It does not depend on the version of parquet.
    """
    return None if not (folder / CURVE).is_file() else _digest(read_points(folder))


def _digest(curve: pd.DataFrame) -> str:
    return digest({name: curve[name].tolist() for name in CURVE_COLUMNS})


def read_points(folder: Path) -> pd.DataFrame:
    """The curve in the folder of a run that may still go on (`CURVE_COLUMNS`); no rows where there is no file."""
    import pandas as pd

    path = folder / CURVE
    if not path.is_file():
        return pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    try:
        return sorted_curve(pd.read_parquet(path))
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise BenchError(f"curve {path} cannot be read ({error}): delete {folder} and run it again.") from error


def add_point(folder: Path, update: int, scores: pd.DataFrame) -> None:
    """Add the point after so many finished updates; points of the same or of a later update are replaced."""
    import pandas as pd

    known = read_points(folder)
    points = [known[known["update"] < update], scores.assign(update=update)]
    write_points(folder, pd.concat([point for point in points if len(point)]))


def write_points(folder: Path, curve: pd.DataFrame) -> None:
    """Write these points, atomically; without points the file is removed."""
    if curve.empty:
        (folder / CURVE).unlink(missing_ok=True)
        return
    ordered = sorted_curve(curve)
    replace_atomically(folder / CURVE, lambda path: write_parquet(ordered, path))


def read_curve(folder: Path | str, record: RunRecord) -> pd.DataFrame:
    """The curve of a run that has ended (`CURVE_COLUMNS`; no rows for a run without one).

    A curve that is missing, damaged or not that of the record is a `BenchError`.
    """
    import pandas as pd

    folder = Path(folder)
    fix = f"delete {folder} and run it again, or restore both files together"
    if record.curve_digest is None:
        if (folder / CURVE).is_file():
            raise BenchError(f"curve {folder / CURVE} is of another run, its record has none: move it away, or {fix}.")
        return pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    if not (folder / CURVE).is_file():
        raise BenchError(f"curve {folder / CURVE} is missing, which its record expects: {fix}.")
    curve = read_points(folder)
    if (actual := _digest(curve)) != record.curve_digest:
        raise BenchError(
            f"curve {folder / CURVE} does not belong to its record: run.json expects content digest "
            f"{record.curve_digest}, found {actual}. D{fix[1:]}."
        )
    return curve
