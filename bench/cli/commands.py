"""What each command of the command line does: arguments in, exit code out."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import BenchError
from bench.core.provenance import ROOT, source_digest

if TYPE_CHECKING:
    from bench.report.data.ablation import AblationLevel
    from bench.report.data.records import Row
    from bench.suite.schema import Experiment


def _run(args: argparse.Namespace) -> int:
    from bench.launch.config import load_launch_config
    from bench.launch.jobs import all_jobs
    from bench.launch.run import describe, run_suites
    from bench.suite.load import load_all
    from bench.train.preflight import check_suite

    suites = load_all(args.suite, args.overrides)
    given = {"launcher": args.launcher, "nproc": args.nproc, "processes": args.processes, "shard": args.shard}
    how = load_launch_config(args.launch, **given)
    if args.dry_run:
        for exp in suites:
            check_suite(exp)
        found = all_jobs(suites, args.results)
        for exp in suites:
            print(describe(exp, [job for job in found if job.exp is exp]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled like Ctrl-C
    outcome = run_suites(suites, args.results, how)
    print(
        f"records: {args.results / suites[0].study}; the table: bench table with the same arguments", file=sys.stderr
    )
    if outcome.errors or outcome.failed:
        print(f"{outcome.failed} run(s) failed and {outcome.errors} stopped with an error, see above", file=sys.stderr)
    return 2 if outcome.errors else int(outcome.failed > 0)


def _plan(args: argparse.Namespace) -> int:
    from bench.cli.plan import plans
    from bench.suite.load import load_all

    text, refused = plans(load_all(args.suite, args.overrides), args)
    print(text)
    if refused:
        raise BenchError(refused)
    return 0


def _table(args: argparse.Namespace) -> int:
    from bench.report.tables.ablation import build_ablation
    from bench.report.tables.main import build_table

    recorded = _recorded(args)
    written: list[Path] = []
    shown: list[Path] = []
    for exp, rows in recorded:
        paths = build_table(args.results / exp.suite, rows=rows, seeds=exp.seeds)
        written += paths.values()
        shown += [] if exp.variant else [paths["main.md"]]
    folder, levels = _ablation(recorded, args.results)
    if levels:
        paths = build_ablation(folder, levels, folder.name)
        written += paths.values()
        shown.append(paths["ablation.md"])
    print("\n".join(path.read_text(encoding="utf-8") for path in shown))
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0


def _figures(args: argparse.Namespace) -> int:
    from bench.report.figures.ablation import build_ablation_figure
    from bench.report.figures.suite import build_figures

    recorded = _recorded(args)
    written: list[Path] = []
    for exp, rows in recorded:
        written += build_figures(args.results / exp.suite, rows=rows, seeds=exp.seeds).values()
    folder, levels = _ablation(recorded, args.results)
    if levels:
        written += build_ablation_figure(folder, levels).values()
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0


def _report(args: argparse.Namespace) -> int:
    from bench.report.data.selection import Selection
    from bench.report.page.page import build_report

    recorded = _recorded(args)
    suites = {exp.variant: (args.results / exp.suite, Selection(rows, exp.seeds)) for exp, rows in recorded}
    print(f"written: {build_report(args.results / recorded[0][0].study, suites)}", file=sys.stderr)
    return 0


def _gallery(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    exp = _recorded(args)[0][0]
    if exp.variant:
        raise BenchError(f"{args.suite} is a study: name one suite, `bench gallery` shows no variants.")
    if args.seed not in exp.seeds or args.videos < 1:
        raise BenchError(f"--seed {args.seed} must be one of {exp.seeds}, and --videos at least 1.")
    from bench.audit.gallery import build_gallery

    print(f"written: {build_gallery(exp, args.results, args.seed, args.videos)}", file=sys.stderr)
    return 0


def _recorded(args: argparse.Namespace) -> list[tuple[Experiment, list[Row]]]:
    """The suite, or each variant of the study, and its rows, after a look whether the records are its own."""
    from bench.report.data.selection import rows_of
    from bench.suite.load import load_all

    found = []
    for exp in load_all(args.suite, args.overrides):
        _refuse_other_settings(exp, args.results / exp.suite, args.command)
        found.append((exp, rows_of(exp.rows)))
    return found


def _ablation(recorded: list[tuple[Experiment, list[Row]]], results: Path) -> tuple[Path, list[AblationLevel]]:
    """The folder of the suite or the study, and the levels that it compares; none where no method has two rows."""
    from bench.report.data.records import load_suite
    from bench.report.data.selection import levels_of

    suites = {exp.variant: load_suite(results / exp.suite, rows, exp.seeds) for exp, rows in recorded}
    return results / recorded[0][0].study, levels_of(suites)


def _refuse_other_settings(exp: Experiment, folder: Path, command: str) -> None:
    """Records made with other settings than the suite's are no rows of its table or figures."""
    from bench import store
    from bench.suite.difference import first_difference

    sources, stale = source_digest(), 0
    runs = [folder / "base", *(store.run_folder(folder, row.name, seed) for row in exp.rows for seed in exp.seeds)]
    for run in runs:
        if not (run / store.RUN).exists():
            continue
        record = store.read_record(run)
        change = first_difference(record.config, exp.shared())
        if change:
            raise BenchError(
                f"record {run} was made with other settings: {change}. Give `bench {command}` the YAML and the "
                "overrides of that run, or run the suite under a name of its own with suite=NAME."
            )
        stale += record.provenance.get("source_digest") != sources
    if stale:
        print(f"note: the sources have changed since {stale} of these runs were made", file=sys.stderr)


def _check(args: argparse.Namespace) -> int:
    import yaml

    from bench.checks.report import check_report
    from bench.flow import sigma_schedule
    from bench.suite.load import load_all

    suites = [] if args.suite is None else [exp.budget for exp in load_all(args.suite)]
    schedules = [sigma_schedule(budget.steps, budget.shift) for budget in suites]
    bare = next((word for word in args.params if not word.partition("=")[2]), None)
    if bare is not None:
        raise BenchError(f"--params takes KEY=VALUE, got {bare!r}: write for example checkpoint=FOLDER.")
    pairs = [word.partition("=") for word in args.params]
    try:
        params = {key: yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError as cause:
        raise BenchError(f"--params {' '.join(args.params)}: a value is no YAML; put it in quotes.") from cause
    text, failed = check_report(args.names, schedules, params, args.nano, args.write_golden)
    print(text)
    return 1 if failed else 0


def _audit(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)  # as a run does
    from bench.audit.ratio import audit_suite, write_audit
    from bench.audit.ratio_page import ratio_page
    from bench.suite.load import load_all

    found = [audit_suite(exp, args.row, args.policy) for exp in load_all(args.suite, args.overrides)]
    written = [write_audit(each, args.results) for each in found]
    print(json.dumps(found, indent=1) if args.json else "\n\n".join(map(ratio_page, found)))
    print("written: " + ", ".join(map(str, written)), file=sys.stderr)
    return 0 if all(each["passed"] for each in found) else 1


def _replay(args: argparse.Namespace) -> int:
    import math

    import torch

    torch.set_num_threads(1)  # as a run does
    from bench.audit import replay
    from bench.audit.replay import replay_page, write_verdict

    if not 0 <= args.tolerance < math.inf:
        raise BenchError(f"--tolerance is {args.tolerance}: give a finite number of at least 0.")
    verdict = replay.replay(args.run, args.updates, args.out)
    print(replay_page(verdict, args.tolerance))
    if verdict.whole:
        print(f"written: {write_verdict(verdict)}", file=sys.stderr)
    return 0 if verdict.largest <= args.tolerance else 1


def _score(args: argparse.Namespace) -> int:
    from bench.score.scoring import ScoreRequest, score

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = {key: value for key, value in vars(args).items() if key != "command"}
    return 1 if score(ScoreRequest(**words)) else 0


def _assets(args: argparse.Namespace) -> int:
    from bench.suite import assets
    from bench.suite.assets import catalogue
    from bench.suite.load import load_all

    if args.suite is None:
        print(catalogue())
        return 0
    text, wrong = assets.report(load_all(args.suite, args.overrides), args.verify)
    print(text)
    return 1 if wrong else 0


def _compare(args: argparse.Namespace) -> int:
    from bench.report.tables.comparison import compare_folders

    print(compare_folders(args.a, args.b, args.open, args.csv))
    if args.csv is not None:
        print(f"written: {args.csv}", file=sys.stderr)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from bench.audit.verify import verify

    report = verify(args.folders or [ROOT / "results"])
    print(report.text)
    return 1 if report.wrong else 0


def _sde_study(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(1)
    from bench.audit.sde.page import build_page, main_tables
    from bench.audit.sde.study import contenders, study

    entries = contenders(args.methods, args.eta)
    frames = study(entries, args.steps, args.shift)
    words = [*args.methods, f"--steps {args.steps}", f"--shift {args.shift:g}"]
    words += [] if args.eta is None else [f"--eta {args.eta:g}"]
    title = f"SDE study: {args.steps} steps, shift {args.shift:g}"
    written = build_page(args.out, frames, title, f"bench sde-study {' '.join(words)}")
    print(main_tables(frames))
    print("written: " + ", ".join(str(path) for path in written.values()), file=sys.stderr)
    return 0


def _export(args: argparse.Namespace) -> int:
    from bench.train.export import export

    print("written: " + ", ".join(str(path) for path in export(args.run, args.out)), file=sys.stderr)
    return 0


def _nano(args: argparse.Namespace) -> int:
    import torch

    if args.device == "cpu":
        torch.set_num_threads(1)
    from bench.nano.build import build_part

    build_part(args.part, args.out, args.steps, args.seed, args.device)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    **{"run": _run, "plan": _plan, "table": _table, "figures": _figures, "report": _report, "gallery": _gallery},
    **{"audit": _audit, "replay": _replay, "compare": _compare, "verify": _verify, "check": _check},
    **{"sde-study": _sde_study, "nano": _nano},
    **{"score": _score, "assets": _assets, "export": _export},
}
"""Name of a command to what it does."""
