"""The rows that `bench score` keeps: of several calls, of odd names, with cut prompts and notes; and its memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bench.api import Evaluator, SamplesFrames
from bench.nano.example_clips import write_clips
from bench.score import scoring
from bench.score.evaluators import make_evaluator
from bench.suite.schema import NANO
from evaluators.video_io import read_video
from tests.helpers.clips import Clip
from tests.helpers.counting_scorer import Brightness
from tests.integration.test_score import FAKE, listed, score, table, videos


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), 3)


@pytest.fixture(scope="module", params=["clipscore", "videoalign"])
def nano(request: pytest.FixtureRequest) -> Evaluator:
    return make_evaluator(request.param, NANO["evaluator_params"][request.param])[0]


def test_a_second_evaluator_joins_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = listed(tmp_path, {path.name: "a red circle" for path in videos(tmp_path, 2)})
    out = tmp_path / "s.parquet"
    assert score(out, prompts) == 0
    first = table(out)
    capsys.readouterr()
    assert score(out, prompts, "--nano", evaluators=["clipscore"]) == 0
    printed = capsys.readouterr()
    assert f"note: 4 rows of earlier calls stay in {out}" in printed.err
    assert f"| {FAKE} | brightness " in printed.out
    assert table(out)[4:] == first
    assert {row["evaluator"] for row in table(out)} == {FAKE, "clipscore"}
    stored = json.loads(out.with_suffix(".json").read_text())
    assert set(stored["evaluators"]) == {FAKE, "clipscore"}
    assert stored["rows"] == 8
    assert set(json.loads(pq.read_schema(out).metadata[b"bench.score"])["evaluators"]) == {FAKE, "clipscore"}
    assert score(out, prompts, "--nano", "--overwrite", evaluators=["clipscore"]) == 0
    assert {row["evaluator"] for row in table(out)} == {"clipscore"}


def test_other_videos_join_and_a_new_prompt_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = videos(tmp_path, 2)
    out = tmp_path / "s.parquet"
    assert score(out, listed(tmp_path, {first.name: "a first prompt"})) == 0
    assert score(out, listed(tmp_path, {second.name: "b"})) == 0
    assert [(row["video"], row["prompt"]) for row in table(out)[::2]] == [
        (str(second), "b"),
        (str(first), "a first prompt"),
    ]
    assert score(out, listed(tmp_path, {first.name: "a corrected prompt"})) == 0
    assert {row["prompt"] for row in table(out)} == {"a corrected prompt", "b"}
    assert len(table(out)) == 4


def test_rows_of_another_version_do_not_stay(tmp_path: Path) -> None:
    prompts = listed(tmp_path, {path.name: "p" for path in videos(tmp_path, 1)})
    out = tmp_path / "s.parquet"
    assert score(out, prompts) == 0
    old = out.read_bytes()
    assert score(out, prompts, "--overwrite", "--params", f"{FAKE}.scale=2.0") == 0
    out.write_bytes(old)  # a kill after --overwrite, before the new table
    (tmp_path / "more").mkdir()
    (tmp_path / "v0.mp4").rename(tmp_path / "more" / "w.mp4")
    other = listed(tmp_path / "more", {"w.mp4": "q"})
    assert score(out, other, "--params", f"{FAKE}.scale=2.0") == 0
    assert {row["prompt"] for row in table(out)} == {"q"}


def test_a_table_of_another_program_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = listed(tmp_path, {path.name: "p" for path in videos(tmp_path, 1)}), tmp_path / "s.parquet"
    assert score(out, prompts) == 0
    for content in (b"notes", out.read_bytes()[:-9]):
        out.write_bytes(content)
        assert score(out, prompts) == 2
        assert "is not a table of bench score" in capsys.readouterr().err
        assert out.read_bytes() == content


def test_half_a_surrogate_pair_fails_alone(tmp_path: Path, calls: list[list[str]]) -> None:
    paths = videos(tmp_path, 3)
    texts = {path.name: text for path, text in zip(paths, ["a", "cut \ud83d", "whole \U0001f600"], strict=True)}
    out = tmp_path / "s.parquet"
    assert score(out, listed(tmp_path, texts, "p.jsonl")) == 1
    rows = table(out)[::2]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert [row["prompt"] for row in rows] == ["a", None, "whole \U0001f600"]
    assert "half a surrogate pair" in rows[1]["error"]
    assert calls == [["a", "whole \U0001f600"]]


@pytest.fixture
def calls() -> list[list[str]]:
    Brightness.asked.clear()
    return Brightness.asked


def test_a_file_name_that_is_no_unicode_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"clip\xe9.mp4")
    assert score(tmp_path / "s.parquet", listed(tmp_path, {name: "p"}, "p.jsonl")) == 2
    assert "line 1, names a video with half a surrogate pair" in capsys.readouterr().err


def test_a_damaged_video_is_a_row_with_an_error(tmp_path: Path) -> None:
    good, bad = (Clip().write(tmp_path / name) for name in ("a.mkv", "b.mkv"))
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0x55
    bad.write_bytes(data)
    out = tmp_path / "s.parquet"
    assert score(out, listed(tmp_path, {good.name: "p", bad.name: "p"})) == 1
    assert [row["status"] for row in table(out)[::2]] == ["ok", "error"]
    assert "is damaged at frame" in table(out)[2]["error"]


def test_cut_prompts_are_counted(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(clips.parent / f"clip-00{i}.mkv") for i in range(3)]
    lines = [(names[0], "a red circle"), (names[1], "circle " * 120), (names[2], "circle " * 120)]
    prompts, out = listed(tmp_path, lines), tmp_path / "s.parquet"
    for again in (False, True):  # the second call takes its scores from the first
        assert score(out, prompts, "--nano", evaluators=["clipscore", "detectors"]) == 0
        printed = capsys.readouterr()
        note = "clipscore cut 1 of 2 prompts at 77 tokens"
        assert f"note: {note}" in printed.err
        assert ("scores are taken from" in printed.err) is again
        cut = {row["video"]: row["prompt_truncated"] for row in table(out) if row["evaluator"] == "clipscore"}
        assert [cut[name] for name in names] == [False, True, True]
        assert {row["prompt_truncated"] for row in table(out) if row["evaluator"] == "detectors"} == {None}
        stored = json.loads(out.with_suffix(".json").read_text())
        assert stored["notes"] == [note]
        counts = {line["metric"]: line["truncated"] for line in stored["summary"]}
        assert (counts["clip_cosine"], counts["motion_energy"]) == (2, None)
        (line,) = (line for line in printed.out.splitlines() if "clip_cosine" in line)
        assert line.split("|")[-2].strip() == "2"


def test_notes_of_the_file_are_said_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.mp4", "b.mp4")
    for name in names:
        Clip("mpeg4", stamps=range(-3, 9)).write(tmp_path / name)
    Clip("mpeg4", frames=6).write(tmp_path / "c.mp4")
    out = tmp_path / "s.parquet"
    text = "its edit list hides 3 of 12 frames: they are not scored"
    for _ in range(2):
        assert score(out, listed(tmp_path, dict.fromkeys((*names, "c.mp4"), "p"))) == 0
        assert f"note: 2 video(s), first {tmp_path / 'a.mp4'}: {text}" in capsys.readouterr().err
        assert [row["note"] for row in table(out)[::2]] == [text, text, None]


def test_sampled_frames_give_the_scores_of_the_whole_video(nano: Evaluator, clips: Path) -> None:
    assert isinstance(nano, SamplesFrames)
    frames = [read_video(clips.parent / f"clip-00{i}.mkv").frames for i in range(2)]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).float() / 255
    prompts = ["a red circle moving left quickly", "a blue square"]
    for total, fps in ((13, 8.0), (13, 3.0), (5, 8.0)):
        whole = nano.score(pixels[:, :, :total], prompts, fps)
        details = nano.details()
        indices = nano.frame_indices(total, fps)
        part = nano.score_frames(pixels[:, :, indices], prompts, total, fps)
        assert {name: part[name].tolist() for name in part} == {name: whole[name].tolist() for name in whole}
        assert nano.details().equals(details)


def test_only_frames_that_are_looked_at_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nano: Evaluator
) -> None:
    held: list[int] = []

    def sample(self: scoring.Scoring, *words: Any) -> Any:
        decoded = real(self, *words)
        held.append(len(decoded.frames[nano_name]))
        assert decoded.frames[nano_name].untyped_storage().nbytes() == decoded.frames[nano_name].nbytes
        return decoded

    nano_name = {"ClipScore": "clipscore", "VideoAlign": "videoalign"}[type(nano).__name__]
    real = scoring.Scoring._sample
    monkeypatch.setattr(scoring.Scoring, "_sample", sample)
    monkeypatch.setattr(scoring, "make_evaluator", lambda *words: (nano, {}))
    Clip(frames=64, fps=32).write(tmp_path / "a.mkv")
    assert score(tmp_path / "s.parquet", listed(tmp_path, {"a.mkv": "p"}), "--nano", evaluators=[nano_name]) == 0
    assert held == [{"clipscore": 8, "videoalign": 16}[nano_name]]
    assert table(tmp_path / "s.parquet")[0]["frames"] == 64
