"""Example videos of the nano world and their `prompts.csv`: `python -m bench.nano.example_clips FOLDER [COUNT]`.

The clips are those of the noisy corpus, with true captions, from a fixed seed. They are lossless (FFV1 in Matroska),
with 8 frames per second.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bench import store
from bench.core.errors import BenchError
from bench.core.rng import stream
from bench.nano import world

FPS = 8


def write_clip(path: Path, clip: Float[Tensor, "3 f h w"], fps: int = FPS) -> None:
    """Write one clip in [0, 1], rounded to the nearest of 256 levels."""
    import av

    frames = (clip * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().numpy()
    with av.open(str(path), "w") as container:
        out = container.add_stream("ffv1", rate=fps)
        out.height, out.width, out.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            container.mux(out.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(out.encode())


def write_clips(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` clips and their list, `prompts.csv`; returns its path."""
    if count < 1:
        raise BenchError(f"the number of clips is {count}: set COUNT to at least 1.")
    rng = stream(seed, "example_clips")
    clips, captions = world.corpus(count, rng, world.all_captions(), wrong=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["video", "prompt"])
    for i, caption in enumerate(captions):
        name = f"clip-{i:03d}.mkv"
        write_clip(folder / name, clips[i])
        lines.writerow([name, caption])
    store.write_text(folder / "prompts.csv", text.getvalue())
    return folder / "prompts.csv"


if __name__ == "__main__":
    try:
        print(f"written: {write_clips(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 50)}")
    except (IndexError, ValueError):
        sys.exit("usage: python -m bench.nano.example_clips FOLDER [COUNT]")
