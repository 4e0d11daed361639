"""Input of `bench score`: names of files, links, and what is passed over in folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.score.videos import VideoPrompt, read_items


def files(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a video")
    return [folder / name for name in names]


def listed(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.csv"
    path.write_text("video,prompt\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_two_names_of_one_file_are_two_videos(tmp_path: Path) -> None:
    (video,) = files(tmp_path, "a.mkv")
    link = tmp_path / "link.mkv"
    link.symlink_to("a.mkv")
    want = [VideoPrompt(str(video), "p"), VideoPrompt(str(link), "p")]
    assert read_items([video, link], listed(tmp_path, "a.mkv,p")) == (want, 0)
    assert read_items([], listed(tmp_path, "a.mkv,p", "link.mkv,p")) == (want, 0)
    assert read_items([tmp_path], listed(tmp_path, "link.mkv,p")) == (want, 0)
    own = [VideoPrompt(str(video), "p"), VideoPrompt(str(link), "q")]
    assert read_items([tmp_path], listed(tmp_path, "a.mkv,p", "link.mkv,q")) == (own, 0)
    assert read_items([video], listed(tmp_path, "a.mkv,p", "link.mkv,q")) == (own[:1], 1)


def test_a_link_into_another_folder_takes_the_file_s_prompt(tmp_path: Path) -> None:
    files(tmp_path, "blobs/0a1b")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.mp4").symlink_to("../blobs/0a1b")
    prompts = listed(tmp_path, "snapshot/a.mp4,p")
    assert read_items([tmp_path / "snapshot"], prompts)[0] == [VideoPrompt(str(tmp_path / "snapshot" / "a.mp4"), "p")]


def test_one_name_given_twice_is_one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "clips/a.mkv")
    prompts = listed(tmp_path, "clips/a.mkv,p")
    monkeypatch.chdir(tmp_path)
    items, _ = read_items([Path("clips"), Path("clips/../clips/a.mkv"), tmp_path / "clips" / "a.mkv"], prompts)
    assert [item.prompt for item in items] == ["p"]
    with pytest.raises(BenchError, match="one prompt twice"):
        read_items([], listed(tmp_path, "clips/a.mkv,p", "clips/../clips/a.mkv,p"))


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    files(
        tmp_path, "b/a.mkv", "b/._a.mkv", ".ipynb_checkpoints/a-checkpoint.mkv", "b/.cache/x/a.mp4", "__MACOSX/._a.mkv"
    )
    prompts = listed(tmp_path, "b/a.mkv,p")
    assert [item.video for item in read_items([tmp_path], prompts)[0]] == [str(tmp_path / "b" / "a.mkv")]
    named = tmp_path / "b" / ".cache"
    assert [item.prompt for item in read_items([named, tmp_path / "b" / "._a.mkv"], prompts)[0]] == [None, None]
    with pytest.raises(BenchError, match="does not hold a video"):
        read_items([tmp_path / "__MACOSX"], prompts)
