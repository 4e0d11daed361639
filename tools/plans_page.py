"""The stored plans, results/plans.md: `make plans` (`python -m tools.plans_page`) writes them from the suites.

Nothing in them depends on the machine, except that sizes are those of the released model where its folder is absent.
The probe's error is read from results/reference/probe_nano.csv, which `python -m tools.probe_error` has measured.
"""

from __future__ import annotations

import contextlib
import csv
import io
import statistics
import sys
import tempfile
from pathlib import Path

from bench import store
from bench.cli import main
from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from tools.probe_error import OUT as PROBES
from tools.probe_error import PHASES, UPDATES

PAGE = ROOT / "results" / "plans.md"
FULL = (
    "variant=setting_b backbone.train.lora_rank=0 backbone.train.dtype=float32 backbone.train.text_encoders=released"
)
PLANS = (
    ("The paper's suite on 64 H100", "hunyuanvideo15_480p.yaml --gpus 64"),
    ("The paper's suite on one H100", "hunyuanvideo15_480p.yaml"),
    ("The small suite on one H100", "hunyuanvideo15_single_gpu.yaml"),
    (
        "All weights in place of a LoRA, on 8 H100",
        f"hunyuanvideo15_480p.yaml {FULL} --gpus 8 --shard full",
    ),
    ("The miniature, which runs on a CPU", "nano.yaml"),
)
"""Heading, and the words after `bench plan bench/configs/`."""
HEAD = """# Plans

What each suite will cost, by `bench plan`: written by `make plans`, not by hand. No released weight was at hand and
no full-size suite has been run: sizes are those of the released 480p model, memory is arithmetic, and the pace is an
assumption that each plan states.
"""


def output(words: str) -> str:
    """What `bench plan` prints; finished runs of this machine are left aside."""
    text = io.StringIO()
    with tempfile.TemporaryDirectory() as none, contextlib.redirect_stdout(text):
        code = main(["plan", *words.split(), "--results", none])
    if code:
        raise BenchError(f"`bench plan {words}` ended with exit code {code}: mend the suite, or bench/plans.py.")
    return text.getvalue().strip()


def section(title: str, words: str) -> str:
    suite, *rest = words.split()
    shown = " ".join(["bench plan", f"bench/configs/{suite}", *rest])
    found = output(" ".join([str(ROOT / "bench" / "configs" / suite), *rest]))
    return f"## {title}\n\n`{shown}`\n\n```text\n{found}\n```\n"


def probe_error(path: Path = PROBES) -> str:
    """The probe's seconds per update beside those of runs: medians, and the error of each turn."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    turns = sorted({int(row["turn"]) for row in rows})
    lines = ["| phase | predicted | measured | error, turn by turn |", "|---|---|---|---|"]
    for phase in (*PHASES, "all"):
        names = tuple(PHASES) if phase == "all" else (phase,)
        pairs = []
        for turn in turns:
            mine = [row for row in rows if int(row["turn"]) == turn and row["phase"] in names]
            pairs.append(tuple(sum(float(row[key]) for row in mine) for key in ("predicted", "measured")))
        guess, found = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        errors = ", ".join(f"{pair[0] / pair[1] - 1:+.0%}" for pair in pairs)
        lines.append(f"| {phase} | {guess:.2f} s | {found:.2f} s | {errors} |")
    table = "\n".join(lines)
    return (
        "## What the probe's prediction is worth\n\n"
        f"`python -m tools.probe_error`: {len(turns)} times by turns `--probe` and a run of {UPDATES} updates of the "
        "nano suite's first row, on\n2 CPU cores that other work shared. Median seconds per update, scoring left out:"
        "\n\n"
        f"{table}\n"
    )


def page() -> str:
    return "\n".join([HEAD, *(section(*each) for each in PLANS), probe_error()])


if __name__ == "__main__":
    store.write_text(PAGE, page())
    sys.stderr.write(f"written: {PAGE}\n")
