"""`bench score`: evaluators on any video files."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from bench.cli.command import Command
from bench.cli.output import print_result
from bench.core.progress import working


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "evaluators", nargs="+", metavar="EVALUATOR", help="an evaluator's name (videoalign, ...) or 'module:Class'"
    )
    parser.add_argument(
        "--videos",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PATH",
        help="video files, images, or folders of them (default: the videos that --prompts names)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        help='CSV with the columns video,prompt, or JSON Lines {"video": ..., "prompt": ...}; paths relative to it',
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="file of the scores")
    parser.add_argument(
        "--params",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME.KEY=VALUE",
        help="an evaluator's parameters, e.g. videoalign.checkpoint=checkpoints/VideoReward",
    )
    parser.add_argument("--nano", action="store_true", help="use the packaged nano checkpoints (to try things out)")
    parser.add_argument("--batch", type=int, default=4, help="videos of equal shape scored together (default: 4)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="precision of all evaluators")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="device of all evaluators")
    parser.add_argument("--overwrite", action="store_true", help="discard the scores in --out and start again")


def execute(args: argparse.Namespace) -> int:
    import json

    from bench import plugins
    from bench.score.videos import read_items

    for name in args.evaluators:
        plugins.check_name("evaluators", name)
    read_items(args.videos, args.prompts)  # for its errors, before torch is imported
    with working("loading torch"):
        from bench.score.scoring import ScoreRequest, score

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is handled like Ctrl-C
    request = ScoreRequest(
        evaluators=args.evaluators,
        videos=args.videos,
        out=args.out,
        prompts=args.prompts,
        params=args.params,
        nano=args.nano,
        batch=args.batch,
        dtype=args.dtype,
        device=args.device,
        overwrite=args.overwrite,
    )
    failed = score(request)
    if args.json:
        print_result(args, "", json.loads(args.out.with_suffix(".json").read_text(encoding="utf-8")))
    return 1 if failed else 0


COMMAND = Command(
    name="score",
    help="score your own video files with any evaluator",
    add_arguments=add_arguments,
    execute=execute,
    json="the summary that is written beside the scores",
    progress=True,
    examples=(
        "bench score videoalign clipscore --nano --prompts my-videos/prompts.csv --out scores.parquet",
        "bench score clipscore --videos a.mp4 b.mp4 --prompts prompts.csv --out scores.parquet "
        "--params clipscore.checkpoint=/models/clip-vit-large-patch14",
        "bench score steadiness:Steadiness --prompts my-videos/prompts.csv --out steadiness.parquet",
    ),
    exit_codes="0 if every video was scored, 1 if some failed (their rows have the error), 2 for a mistake",
    interrupted="the scores so far are kept, and the same command continues",
)
