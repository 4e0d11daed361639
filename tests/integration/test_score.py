"""`bench score`: files in, one row per video and metric out; bad files fail alone, and nothing is scored twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bench.api import BenchError
from bench.cli import main
from bench.nano.example_clips import write_clip, write_clips
from bench.score import scoring
from bench.score.partial import summarise
from evaluators.video_io import read_image, read_video
from tests.helpers.counting_scorer import Brightness
from tests.unit.evaluators import test_video_io
from tests.unit.evaluators.test_video_io import write

FAKE = "tests.helpers.counting_scorer:Brightness"


@pytest.fixture(autouse=True)
def calls() -> list[list[str]]:
    Brightness.asked.clear()
    return Brightness.asked


def videos(folder: Path, count: int = 3, **options: Any) -> list[Path]:
    """Small clips that differ from each other by their names and bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        paths.append(write(folder / f"v{i}.mp4", frames=6, **options))
        with paths[-1].open("ab") as file:  # a "free" box at the end: another sha256, the same pictures
            file.write((12).to_bytes(4, "big") + b"free" + i.to_bytes(4, "big"))
    return paths


def listed(folder: Path, lines: Mapping[str, str] | Sequence[tuple[str, str]], name: str = "prompts.csv") -> Path:
    path, pairs = folder / name, list(lines.items() if isinstance(lines, Mapping) else lines)
    with path.open("w", newline="", encoding="utf-8") as file:
        if name.endswith(".csv"):
            csv.writer(file).writerows([("video", "prompt"), *pairs])
        else:
            file.writelines(json.dumps({"video": video, "prompt": prompt}) + "\n" for video, prompt in pairs)
    return path


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def score(out: Path, prompts: Path, *words: str, evaluators: Sequence[str] = (FAKE,)) -> int:
    return main(["score", *evaluators, "--prompts", str(prompts), "--out", str(out), *words])


@pytest.mark.parametrize("name", ["prompts.csv", "prompts.jsonl"])
def test_a_list_alone_names_the_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    paths = videos(tmp_path / "clips")
    texts = {path.name: f'prompt {i}, with "quotes"\nand lines\u2028 — é' for i, path in enumerate(paths)}
    texts[paths[2].name] = "no quotes\u2028around this"
    out = tmp_path / "new" / "scores.parquet"
    assert score(out, listed(tmp_path / "clips", texts, name)) == 0
    rows = table(out)
    assert [row["video"] for row in rows] == [str(path) for path in paths for _ in range(2)]
    assert [row["prompt"] for row in rows] == [text for text in texts.values() for _ in range(2)]
    assert [row["metric"] for row in rows] == ["brightness", "frames"] * 3
    assert {row["evaluator"] for row in rows} == {FAKE}
    want = [float(torch.from_numpy(read_video(path).frames).float().mean() / 255) for path in paths]
    assert [row["value"] for row in rows[::2]] == pytest.approx(want, rel=1e-6)
    assert [row["value"] for row in rows[1::2]] == [6.0] * 3
    shapes = {(row["frames"], row["fps"], row["height"], row["width"], row["status"], row["error"]) for row in rows}
    assert shapes == {(6, 12.0, 32, 32, "ok", None)}
    printed = capsys.readouterr()
    assert "| tests.helpers.counting_scorer:Brightness | frames     |   3 |        0 |      6 |" in printed.out
    assert f"written: {out}, {out.with_suffix('.json')}" in printed.err


def test_videos_of_a_folder_take_their_prompts_from_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = videos(tmp_path / "clips" / "deep")
    (tmp_path / "clips" / "notes.txt").write_text("no video")
    lines = [("clips/deep/v0.mp4", "a"), ("clips/deep/v1.mp4", "b"), ("clips/deep/v1.mp4", "c"), ("gone.mp4", "d")]
    prompts, out = listed(tmp_path, lines), tmp_path / "scores.parquet"
    monkeypatch.chdir(tmp_path)
    assert score(out, prompts, "--videos", "clips", str(first), "--videos", str(second)) == 1
    statuses = [(row["video"], row["prompt"], row["status"]) for row in table(out)[::2]]
    ok = [(str(first), "a", "ok"), (str(second), "b", "ok"), (str(second), "c", "ok")]
    assert statuses == [*ok, ("clips/deep/v2.mp4", None, "error")]
    assert "has no prompt" in table(out)[-1]["error"]
    assert third.exists()
    printed = capsys.readouterr().err
    assert "note: 1 line(s)" in printed
    assert "1 of 4 videos failed" in printed


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "b.png")
    Image.fromarray(pixels).save(tmp_path / "c.JPG", quality=95)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").frames[0], pixels)
    out = tmp_path / "scores.parquet"
    prompts = listed(tmp_path, {name: "p" for name in ("a.png", "b.png", "c.JPG")})
    assert score(out, prompts) == 0
    rows = table(out)
    assert rows[0]["value"] == rows[2]["value"] == pytest.approx(pixels.mean() / 255, rel=1e-6)
    assert rows[4]["value"] == pytest.approx(rows[0]["value"], abs=0.01)  # JPEG's loss
    assert {(row["frames"], row["height"], row["width"]) for row in rows} == {(1, 20, 30)}


@pytest.mark.parametrize("kind", ["cut", "text", "deep", "moving", "gone"])
def test_a_bad_image_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    if kind == "moving":
        noise.save(path, save_all=True, append_images=[noise.rotate(90)])
    elif kind == "deep":
        Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(path)
    elif kind != "gone":
        noise.save(path)
        path.write_bytes(path.read_bytes()[:900] if kind == "cut" else b"no picture")
    words = {"cut": "decoded", "text": "decoded", "deep": "pixel format", "moving": "animated", "gone": "not exist"}
    with pytest.raises(BenchError, match=words[kind]):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.csv", "file,text\na.mp4,b\n", "columns video,prompt"),
        ("p.csv", "video,prompt\na.mp4,a circle, moving\n", "more values than columns"),
        ("p.csv", 'video,prompt\na.mp4,"open\n', "is not CSV"),
        ("p.csv", "video,prompt\n", "does not name a video"),
        ("p.csv", "video,prompt\n,b\n", "line 2, does not name a video"),
        ("p.csv", "video,prompt\na.mp4,b\na.mp4,b\n", "one prompt twice"),
        ("p.jsonl", '{"video": "a.mp4"', "line 1, is not JSON"),
        ("p.jsonl", '\n["a.mp4", "b"]', "is JSON with an array"),
        ("p.jsonl", '{"video": "a.mp4", "prompt": 3}', "a prompt that is not text"),
        ("p.txt", "a.mp4 b", "neither .csv nor .jsonl"),
    ],
)
def test_a_bad_list_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    assert score(tmp_path / "s.parquet", tmp_path / name) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--videos", "nothing.mp4"], "video nothing.mp4 does not exist"),
        (["--videos", "empty"], "folder empty does not hold a video"),
        (["--batch", "0"], "give at least 1"),
        (["--dtype", "float32"], "has no parameter 'dtype': leave out --dtype"),
        (["--device", "cpu"], "has no parameter 'device'"),
        (["--params", "scale=2"], "write it as name.key=value"),
        (["--params", f"{FAKE}.scal=2"], "did you mean 'scale'?"),
        (["--params", f"{FAKE}.scale=[2"], "is not YAML (line 1, column 3"),
        (["--out", "scores.csv"], "does not end in .parquet"),
        (["--prompts", "nothing.csv"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert score(Path("s.parquet"), listed(tmp_path, {"a.mp4": "b"}), *words) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1
    assert Brightness.asked == []


def test_evaluators_that_lack_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = listed(tmp_path, {"a.mp4": "b"}), tmp_path / "s.parquet"
    assert score(out, prompts, evaluators=["videoalign"]) == 2
    printed = capsys.readouterr().err
    assert "evaluator 'videoalign' needs 'checkpoint': give --params videoalign.checkpoint=VALUE, or --nano" in printed
    assert score(out, prompts, evaluators=["clipscor"]) == 2
    assert "did you mean 'clipscore'?" in capsys.readouterr().err
    assert score(out, prompts, evaluators=[FAKE, FAKE]) == 2
    assert "name each once" in capsys.readouterr().err
    assert main(["score", FAKE, "--videos", str(tmp_path), "--out", str(out)]) == 2
    assert "no prompts are given" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert score(out, prompts, "--nano", "--device", "cuda", evaluators=["clipscore"]) == 2
        assert "torch sees none" in capsys.readouterr().err


def test_bad_files_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, cut, other = videos(tmp_path)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    write(tmp_path / "uneven.mp4", frames=8, stamps=[0, 100, 200, 300, 500, 600, 700, 800])
    names = [good.name, cut.name, "empty.mp4", "gone.mp4", "uneven.mp4", "blank.mp4", other.name]
    prompts = listed(tmp_path, {name: " " if name == "blank.mp4" else "fine" for name in names})
    write(tmp_path / "blank.mp4")
    out = tmp_path / "scores.parquet"
    assert score(out, prompts) == 1
    rows = table(out)[::2]
    assert [row["status"] for row in rows] == ["ok", *["error"] * 5, "ok"]
    words = ["cannot be decoded", "is empty", "cannot be read", "no constant frame rate", "has no prompt"]
    for row, word in zip(rows[1:-1], words, strict=True):
        assert word in row["error"]
        assert row["value"] is None
    assert all(row["value"] > 0 for row in (rows[0], rows[-1]))
    printed = capsys.readouterr()
    assert "5 of 7 videos failed" in printed.err
    assert "| brightness |   2 |        5 |" in printed.out
    summary = json.loads(out.with_suffix(".json").read_text())
    assert summary["failed_rows"] == 10
    assert [line["n"] for line in summary["summary"]] == [2, 2]


def test_when_all_fail_there_is_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.parquet"
    assert score(out, listed(tmp_path, {"gone.mp4": "p"})) == 1
    (first, _) = json.loads(out.with_suffix(".json").read_text())["summary"]
    numbers = {key: first[key] for key in ("n", "failed", "mean", "std", "min", "max")}
    assert numbers == {"n": 0, "failed": 1, "mean": None, "std": None, "min": None, "max": None}
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "brightness" in line)
    assert [cell.strip() for cell in line.split("|")[3:-1]] == ["0", "1", *["-"] * 5]
    assert [row["value"] for row in table(out)] == [None, None]


@pytest.mark.parametrize(
    ("prompt", "sentence", "trace"),
    [
        ("refused", "the prompt is refused: write another one.", False),
        ("broken", "RuntimeError: out of memory", True),
        ("endless", f"evaluator '{FAKE}' gave brightness = inf: look at the evaluator and at this video.", False),
        ("misshapen", f"evaluator '{FAKE}' did not return one number per video for 'frames': fix it.", False),
    ],
)
def test_one_prompt_that_an_evaluator_cannot_score_fails_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    calls: list[list[str]],
    prompt: str,
    sentence: str,
    trace: bool,
) -> None:
    paths = videos(tmp_path, 4)
    texts = ["a", prompt, "b", "c"]
    prompts = listed(tmp_path, dict(zip((path.name for path in paths), texts, strict=True)))
    out = tmp_path / "scores.parquet"
    assert score(out, prompts) == 1
    rows = table(out)
    assert [row["status"] for row in rows[::2]] == ["ok", "error", "ok", "ok"]
    assert [(row["error"], row["value"], row["frames"]) for row in rows[2:4]] == [(sentence, None, 6)] * 2
    assert all(np.isfinite(row["value"]) for row in rows if row["status"] == "ok")
    assert ("Traceback" in capsys.readouterr().err) is trace
    calls.clear()
    assert score(out, prompts) == 1  # what failed is tried again, and nothing else
    assert calls in ([], [[prompt]])
    assert table(out) == rows


def test_equal_videos_are_scored_together(tmp_path: Path, calls: list[list[str]]) -> None:
    videos(tmp_path / "a", 3)
    videos(tmp_path / "b", 3, fps=24)
    write(tmp_path / "c.mp4", frames=9)
    names = ["a/v0", "b/v0", "a/v1", "b/v1", "a/v2", "b/v2", "c"]
    prompts = listed(tmp_path, {f"{name}.mp4": name for name in names})
    assert score(tmp_path / "two.parquet", prompts, "--batch", "2") == 0
    assert sorted(calls) == [["a/v0", "a/v1"], ["a/v2"], ["b/v0", "b/v1"], ["b/v2"], ["c"]]
    calls.clear()
    assert score(tmp_path / "one.parquet", prompts, "--batch", "1") == 0
    assert calls == [[name] for name in names]
    assert [row["prompt"] for row in table(tmp_path / "two.parquet")[::2]] == names
    assert table(tmp_path / "one.parquet") == table(tmp_path / "two.parquet")


def test_many_shapes_do_not_pile_up(tmp_path: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [write(tmp_path / f"f{i}.mp4", frames=i).name for i in range(2, 12)]
    held: list[int] = []
    reads: list[Path] = []

    def read(path: Path) -> Any:
        reads.append(path)
        held.append(len(reads) - len(calls))
        return read_video(path)

    monkeypatch.setattr(scoring, "read_video", read)
    assert score(tmp_path / "s.parquet", listed(tmp_path, dict.fromkeys(names, "p")), "--batch", "2") == 0
    assert len(reads) == len(calls) == 10
    assert max(held) == 4


def test_a_second_call_scores_only_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[list[str]]
) -> None:
    paths = videos(tmp_path, 4)
    texts = {path.name: path.stem for path in paths}
    out = tmp_path / "scores.parquet"
    assert score(out, listed(tmp_path, dict(list(texts.items())[:2]))) == 0
    first = table(out)
    calls.clear()
    capsys.readouterr()
    assert score(out, listed(tmp_path, texts)) == 0
    assert calls == [["v2", "v3"]]
    assert "2 of 4 scores are taken from" in capsys.readouterr().err
    assert table(out)[:4] == first
    calls.clear()
    assert score(out, listed(tmp_path, texts)) == 0
    assert calls == []
    with paths[1].open("ab") as file:
        file.write((8).to_bytes(4, "big") + b"free")  # another file under the same name
    assert score(out, listed(tmp_path, {**texts, "v0.mp4": "another prompt"})) == 0
    assert calls == [["another prompt", "v1"]]


def test_another_evaluator_joins_and_another_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[list[str]]
) -> None:
    prompts = listed(tmp_path, {path.name: "a red circle moving left quickly" for path in videos(tmp_path)})
    out = tmp_path / "scores.parquet"
    assert score(out, prompts) == 0
    before = out.read_bytes(), (tmp_path / "scores.partial.jsonl").read_bytes()
    calls.clear()
    capsys.readouterr()
    assert score(out, prompts, "--params", f"{FAKE}.scale=2.0") == 2
    printed = capsys.readouterr().err
    assert "fingerprint.scale is 1.0 there and 2.0 here" in printed
    assert "--overwrite" in printed
    assert before == (out.read_bytes(), (tmp_path / "scores.partial.jsonl").read_bytes())
    assert score(out, prompts, "--params", f"{FAKE}.scale=2.0", "--overwrite") == 0
    assert calls == [["a red circle moving left quickly"] * 3]
    assert {row["value"] for row in table(out)[1::2]} == {6.0}
    calls.clear()
    words = ("--params", f"{FAKE}.scale=2.0", "--nano")
    assert score(out, prompts, *words, evaluators=[FAKE, "clipscore"]) == 0
    assert calls == []
    header = json.loads(pq.read_schema(out).metadata[b"bench.score"])
    assert set(header["evaluators"]) == {FAKE, "clipscore"}
    assert header["evaluators"][FAKE]["fingerprint"] == {"scale": "2.0"}
    assert header["evaluators"]["clipscore"]["versions"]["torch"] == metadata.version("torch")
    assert json.loads(out.with_suffix(".json").read_text())["evaluators"] == header["evaluators"]


def test_a_file_of_other_origin_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = listed(tmp_path, {path.name: "p" for path in videos(tmp_path, 1)}), tmp_path / "scores.parquet"
    out.write_bytes(b"a run's scores")
    assert score(out, prompts) == 2
    assert "cannot be resumed" in capsys.readouterr().err
    assert out.read_bytes() == b"a run's scores"
    partial = tmp_path / "scores.partial.jsonl"
    for content in ('{"other": 1}\n', "not json\n"):
        partial.write_text(content)
        assert score(out, prompts) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert partial.read_text() == content
    partial.write_text('{"lay')  # a kill in the first line
    assert score(out, prompts) == 0
    assert table(out)[0]["status"] == "ok"


def test_a_full_disk_loses_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = listed(tmp_path, {path.name: path.stem for path in videos(tmp_path, 4)})
    out = tmp_path / "scores.parquet"

    def fill_after(room: int) -> None:
        """Score on a disk that takes `room` more lines or files."""
        left = [None] * room

        def fsync(_: int) -> None:
            if not left:
                raise OSError(errno.ENOSPC, "No space left on device")
            left.pop()

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            assert score(out, prompts, "--batch", "1") == 2
        assert "no space left on the disk" in capsys.readouterr().err
        assert not out.exists()

    fill_after(4)  # the layout, the evaluator and two videos
    assert calls == [["v0"], ["v1"], ["v2"]]
    calls.clear()
    fill_after(2)  # two more videos, then no table
    assert calls == [["v2"], ["v3"]]
    calls.clear()
    assert score(out, prompts) == 0
    assert calls == []
    assert [row["status"] for row in table(out)] == ["ok"] * 8


def test_an_interrupt_keeps_what_was_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = listed(tmp_path, {path.name: path.stem for path in videos(tmp_path, 3)})
    real = Brightness.score

    def stopped(self: Brightness, pixels: torch.Tensor, prompts: Sequence[str], fps: float) -> Any:
        if "v1" in prompts:
            raise KeyboardInterrupt
        return real(self, pixels, prompts, fps)

    with monkeypatch.context() as patch:
        patch.setattr(Brightness, "score", stopped)
        assert score(tmp_path / "s.parquet", prompts, "--batch", "1") == 130
    assert "interrupted; the scores so far are kept" in capsys.readouterr().err
    assert score(tmp_path / "s.parquet", prompts, "--batch", "1") == 0
    assert calls == [["v0"], ["v1"], ["v2"]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 5)


def test_example_clips_are_lossless_and_reproducible(clips: Path, tmp_path: Path) -> None:
    again = write_clips(tmp_path, 5)
    assert again.read_bytes() == clips.read_bytes()
    for name in ("clip-000.mkv", "clip-004.mkv"):
        first, second = read_video(clips.parent / name), read_video(tmp_path / name)
        np.testing.assert_array_equal(first.frames, second.frames)
        assert (first.frames.shape, first.fps) == ((13, 16, 16, 3), 8.0)
    with av.open(str(clips.parent / "clip-000.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"


def test_a_score_is_the_same_alone_and_in_a_batch(clips: Path, tmp_path: Path) -> None:
    names = ["videoalign", "clipscore", "pickscore"]
    for batch in ("1", "4"):
        assert score(tmp_path / f"{batch}.parquet", clips, "--nano", "--batch", batch, evaluators=names) == 0
    alone, together = table(tmp_path / "1.parquet"), table(tmp_path / "4.parquet")
    assert len(alone) == 5 * (6 + 2 + 3)
    # 5e-6 is what VideoReward's batches may differ by; PickScore's raw unit is 8 times its cosine here
    np.testing.assert_allclose([row["value"] for row in alone], [row["value"] for row in together], atol=2e-5, rtol=0)
    assert len({row["value"] for row in alone if row["metric"] == "TA"}) == 5


def test_what_videoreward_cannot_score_the_others_can(clips: Path, tmp_path: Path) -> None:
    frame = read_video(clips.parent / "clip-000.mkv").frames[:1]
    Image.fromarray(frame[0]).save(tmp_path / "one.png")
    write_clip(tmp_path / "one.mkv", torch.from_numpy(frame).permute(3, 0, 1, 2) / 255)
    text = "a red circle moving left quickly"
    special = f"{text} <|VQ_reward|>"
    names = [str(clips.parent / f"clip-00{i}.mkv") for i in range(2)]
    out = tmp_path / "scores.parquet"
    lines = [(names[0], text), ("one.png", text), ("one.mkv", text), (names[1], special), (names[1], text)]
    assert score(out, listed(tmp_path, lines), "--nano", evaluators=["videoalign", "clipscore"]) == 1
    rows = {(Path(row["video"]).name, row["prompt"], row["metric"]): row for row in table(out)}
    assert rows["clip-000.mkv", text, "TA"]["status"] == rows["clip-001.mkv", text, "TA"]["status"] == "ok"
    for name in ("one.png", "one.mkv"):
        assert "an image cannot be scored" in rows[name, text, "VQ"]["error"]
        assert rows[name, text, "VQ"]["value"] is None
        assert rows[name, text, "clipscore"]["status"] == "ok"
        assert np.isfinite(rows[name, text, "clip_cosine"]["value"])
    assert rows["one.png", text, "clip_cosine"]["value"] == pytest.approx(
        rows["one.mkv", text, "clip_cosine"]["value"], abs=1e-6
    )
    bad = rows["clip-001.mkv", special, "TA"]
    assert bad["value"] is None
    assert "contains the special token <|VQ_reward|>" in bad["error"]
    assert rows["clip-001.mkv", special, "clip_cosine"]["status"] == "ok"


@pytest.mark.parametrize("name", ["prompts.csv", "prompts.jsonl"])
def test_videoreward_scores_files_as_the_original_does(tmp_path: Path, name: str) -> None:
    folder = Path(test_video_io.FIXTURES).resolve()
    expected = test_video_io.EXPECTED
    files = [str(folder / "videos" / video) for video in expected["videos"]]
    out, own = tmp_path / "scores.parquet", {"checkpoint": "VideoReward", "base_model": "tiny-qwen2-vl"}
    own |= {"prompt_template": "prompt_template.txt"}
    words = [f"videoalign.{key}={folder / value}" for key, value in own.items()]
    prompts = listed(tmp_path, list(zip(files, expected["prompts"], strict=True)), name)
    assert score(out, prompts, "--params", *words, "videoalign.device=cpu", evaluators=["videoalign"]) == 0
    rows = [row["value"] for row in table(out) if row["metric"].endswith("_raw")]
    wanted = expected["checkpoints"]["VideoReward"]["float32"]["single_raw"]
    want = [line[axis] for line in wanted for axis in ("VQ", "MQ", "TA")]
    np.testing.assert_allclose(rows, want, atol=5e-4, rtol=0)  # the tolerance that came with the expected values


def test_dtype_and_parameters_reach_the_evaluator(clips: Path, tmp_path: Path) -> None:
    words = ("--nano", "--dtype", "bfloat16", "--device", "cpu", "--params", "clipscore.prefix=A photo depicts ")
    out = tmp_path / "scores.parquet"
    assert score(out, clips, *words, evaluators=["clipscore"]) == 0
    header = json.loads(pq.read_schema(out).metadata[b"bench.score"])["evaluators"]["clipscore"]
    assert (header["fingerprint"]["dtype"], header["fingerprint"]["prefix"]) == ("bfloat16", "A photo depicts")
    assert header["device"] == "cpu"


def test_summary_counts_and_sample_deviation() -> None:
    rows = [
        {"evaluator": "e", "metric": "m", "value": value, "prompt_truncated": cut}
        for value, cut in ((1.0, True), (2.0, False), (None, None), (6.0, True))
    ]
    (line,) = summarise([*rows])
    numbers = {"n": 3, "failed": 1, "mean": 3.0, "std": 7**0.5, "min": 1.0, "max": 6.0, "truncated": 2}
    assert line == pytest.approx({"evaluator": "e", "metric": "m", **numbers})
    (line,) = summarise(rows[:1])
    assert line["std"] is None


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom bench.cli import main\n"
        "try: main(['score', '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print([n for n in ('torch', 'transformers', 'av', 'pandas', 'pyarrow', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--videos" in done.stdout
