"""Files of other programs: what a player shows is scored, what cannot be honoured is noted, damage is refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from bench.api import BenchError
from evaluators.video_io import read_image, read_video
from tests.helpers.clips import Clip, picture, write_streams

HEALTHY = {
    "h264.mp4": Clip("libx264", options={"threads": "1"}),
    "h264.mkv": Clip("libx264", options={"bf": "2", "g": "4"}),
    "av1.mp4": Clip("libsvtav1", options={"svtav1-params": "lp=1"}),
    "mpeg4.avi": Clip("mpeg4"),
    "vp9.webm": Clip("libvpx-vp9"),
    "mjpeg.avi": Clip("mjpeg", "yuvj420p"),
    "ffv1.mkv": Clip(),
    "png.mov": Clip("png", "rgb24"),
    "prores.mov": Clip("prores_ks", "yuv422p10le"),
    "wmv2.wmv": Clip("wmv2"),
    "mpeg2.mkv": Clip("mpeg2video"),
}
"""Files of common programs."""


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_file_is_read_whole(tmp_path: Path, name: str) -> None:
    video = read_video(HEALTHY[name].write(tmp_path / name))
    assert (video.frames.shape, video.fps, video.notes) == ((12, 48, 64, 3), 8.0, ())


def noise(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def flip(path: Path, frame: int, count: int | None = None) -> Path:
    """Change `count` bytes of the packet of a frame, from a third of it on; None: all of them."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][frame]
        data, pos, payload = bytearray(path.read_bytes()), packet.pos, bytes(packet)
    start = data.index(payload, max(0, pos or 0))
    first = packet.size // 3
    rest = range(start + first, start + (packet.size if count is None else first + count))
    data[rest.start : rest.stop] = np.random.default_rng(0).integers(0, 256, len(rest), dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["ffv1.mkv", "png.mov", "prores.mov", "mjpeg.avi", "h264.mp4", "mpeg2.mkv"])
@pytest.mark.hazard(7)
def test_a_damaged_frame_is_refused(tmp_path: Path, name: str) -> None:
    clip = replace(HEALTHY[name], draw=noise)  # damage of a few bytes may give another valid picture
    path = flip(clip.write(tmp_path / name), 5)
    with pytest.raises(BenchError, match=r"is damaged at frame [4567]\b"):
        read_video(path)


def test_the_damaged_frame_is_named_and_ffmpeg_s_reason_is_given(tmp_path: Path) -> None:
    path = flip(Clip().write(tmp_path / "a.mkv"), 7, 1)
    with pytest.raises(BenchError, match=r"a\.mkv is damaged at frame 7 \(slice CRC mismatch .*\): write or fetch"):
        read_video(path)
    assert len(read_video(Clip().write(tmp_path / "b.mkv")).frames) == 12  # no message of one file reaches the next


@pytest.mark.parametrize("share", [0.4, 0.7, 0.97])
@pytest.mark.parametrize("name", ["ffv1.mkv", "vp9.webm", "mpeg4.avi", "h264.mkv"])
@pytest.mark.hazard(7)
def test_a_truncated_file_without_a_frame_count_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = HEALTHY[name].write(tmp_path / name)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BenchError, match=r"damaged|cannot be decoded|cut short"):
        read_video(path)


def test_a_file_cut_between_two_frames_is_refused(tmp_path: Path) -> None:
    path = Clip().write(tmp_path / "a.mkv")
    with av.open(str(path)) as container:
        ends = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[9]])
    with pytest.raises(BenchError, match="File ended prematurely"):
        read_video(path)


def test_names_in_another_encoding_do_not_matter(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "a.avi", [Clip("mpeg4")], title="film")
    path.write_bytes(path.read_bytes().replace(b"film", b"fil\xe9"))
    assert len(read_video(path).frames) == 12


def aspect(ratio: Fraction) -> Any:
    def set_ratio(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    return set_ratio


@pytest.mark.parametrize(("ratio", "width"), [("2", 128), ("160/159", 64), ("1/2", 32), ("4/3", 85)])
def test_pixels_that_are_not_square_are_stretched(tmp_path: Path, ratio: str, width: int) -> None:
    video = read_video(Clip("libx264", set_stream=aspect(Fraction(ratio))).write(tmp_path / "a.mp4"))
    assert video.frames.shape == (12, 48, width, 3)
    assert video.notes == ((f"pixels are not square ({ratio}): its width is stretched to {width}",) * (width != 64))
    plain = read_video(Clip("libx264").write(tmp_path / "b.mp4")).frames[0]
    size = (width, 48)
    want = np.asarray(Image.fromarray(plain).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    assert np.abs(video.frames[0] - want).mean() < 4


def test_an_absurd_pixel_ratio_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Clip("libx264", set_stream=aspect(Fraction(2))).write(tmp_path / "a.mp4")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 100)
    with pytest.raises(BenchError, match="correct this ratio"):
        read_video(path)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((1, 0, 0, 1), lambda image: image),
    ],
    ids=["clockwise", "counterclockwise", "upside down", "mirrored", "flipped", "transposed", "as it is"],
)
def test_a_phone_s_video_is_turned(tmp_path: Path, matrix: tuple[int, ...], turn: Any) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    words = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    plain = read_video(Clip("mpeg4").write(tmp_path / "a.mp4"))
    video = read_video(Clip("mpeg4", set_stream=lambda s: s.set_display_matrix(words)).write(tmp_path / "b.mp4"))
    np.testing.assert_array_equal(video.frames, np.stack([turn(frame) for frame in plain.frames]))


def test_the_rotation_is_that_of_ffmpeg(tmp_path: Path) -> None:
    """PyAV counts degrees counterclockwise."""
    plain = read_video(Clip("mpeg4").write(tmp_path / "a.mp4"))
    video = read_video(Clip("mpeg4", set_stream=lambda s: s.set_display_rotation(90)).write(tmp_path / "b.mp4"))
    np.testing.assert_array_equal(video.frames[0], np.rot90(plain.frames[0]))


def test_another_angle_is_refused(tmp_path: Path) -> None:
    path = Clip("mpeg4", set_stream=lambda s: s.set_display_rotation(30)).write(tmp_path / "a.mp4")
    with pytest.raises(BenchError, match="other than right angles"):
        read_video(path)


def test_frames_that_an_edit_list_hides_are_not_scored(tmp_path: Path) -> None:
    whole = read_video(Clip("mpeg4").write(tmp_path / "whole.mp4"))
    trimmed = read_video(Clip("mpeg4", stamps=range(-3, 9)).write(tmp_path / "trimmed.mp4"))
    np.testing.assert_array_equal(trimmed.frames, whole.frames[3:])
    assert trimmed.notes == ("its edit list hides 3 of 12 frames: they are not scored",)
    late = read_video(Clip("mpeg4", stamps=range(5, 17)).write(tmp_path / "late.mp4"))
    np.testing.assert_array_equal(late.frames, whole.frames)
    assert (late.fps, late.notes) == (8.0, ())


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.hazard(7)
def test_a_trimmed_file_that_is_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = Clip("mpeg4", stamps=range(-3, 9), container={"movflags": "faststart"}).write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BenchError, match=r"cut short|damaged"):
        read_video(path)


def mark(disposition: Disposition) -> Any:
    def set_disposition(stream: Any) -> None:
        stream.disposition = disposition

    return set_disposition


COVER = Clip(
    "mjpeg", "yuvj420p", frames=1, draw=lambda i: picture(i, 320, 320), set_stream=mark(Disposition.attached_pic)
)


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_picture_is_not_the_video(tmp_path: Path, first: bool) -> None:
    clips = [COVER, Clip("mpeg4")] if first else [Clip("mpeg4"), COVER]
    video = read_video(write_streams(tmp_path / "a.mp4", clips))
    assert (video.frames.shape, video.fps, video.notes) == ((12, 48, 64, 3), 8.0, ())


def test_a_song_with_a_cover_has_no_video(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="has no video stream"):
        read_video(write_streams(tmp_path / "song.mp4", [COVER]))


@pytest.mark.parametrize(("default", "shade"), [(0, 0), (1, 200), (None, 200)])
def test_of_several_streams_the_default_or_the_largest_is_scored(
    tmp_path: Path, default: int | None, shade: int
) -> None:
    clips = [
        Clip(
            frames=4,
            set_stream=mark(Disposition.default if number == default else Disposition(0)),
            draw=lambda i, value=value, width=width: np.full((32, width, 3), value, np.uint8),
        )
        for number, (value, width) in enumerate(((0, 32), (200, 64)))
    ]
    video = read_video(write_streams(tmp_path / "a.mkv", clips))
    assert abs(int(video.frames.mean()) - shade) < 3
    assert video.notes[0].startswith("holds 2 video streams: number")


def glass(i: int) -> np.ndarray:
    """A picture whose upper half is transparent."""
    return np.dstack([picture(i), np.repeat(np.uint8([0, 255]), 24)[:, None].repeat(64, 1)])


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("a.mov", Clip("qtrle", "argb", draw=glass)),
        ("a.mov", Clip("prores_ks", "yuva444p10le", draw=glass)),
        ("a.mkv", Clip("ffv1", "yuva420p", draw=glass)),
        ("a.webm", Clip("libvpx-vp9", "yuva420p", draw=glass, options={"auto-alt-ref": "0"})),
    ],
)
def test_transparency_is_dropped_and_noted(tmp_path: Path, name: str, clip: Clip) -> None:
    video = read_video(clip.write(tmp_path / name))
    assert video.notes == ("transparency is dropped: the colours below it are scored",)
    assert np.abs(video.frames[0, :24] - picture(0)[:24].astype(float)).mean() < 12


def test_an_opaque_alpha_channel_needs_no_note(tmp_path: Path) -> None:
    solid = Clip("qtrle", "argb", draw=lambda i: np.dstack([picture(i), np.full((48, 64), 255, np.uint8)]))
    assert read_video(solid.write(tmp_path / "a.mov")).notes == ()


def test_interlaced_and_hdr_are_noted(tmp_path: Path) -> None:
    woven = Clip("libx264", options={"x264-params": "tff=1:log=-1"}).write(tmp_path / "a.mp4")
    assert read_video(woven).notes == ("interlaced: both fields are scored as one picture",)

    def set_pq(part: Any) -> None:
        part.color_trc, part.colorspace = 16, 9

    deep = Clip("ffv1", "yuv420p10le", set_stream=lambda s: set_pq(s.codec_context), set_frame=set_pq)
    assert read_video(deep.write(tmp_path / "b.mkv")).notes == (
        "high dynamic range (PQ): scored without tone mapping",
    )


@pytest.mark.parametrize(
    ("matrix", "full", "grey"),
    [(None, False, (203, 88, 64)), (1, False, (214, 98, 61)), (6, False, (203, 88, 64)), (None, True, (192, 91, 70))],
    ids=["not stated", "BT.709", "BT.601", "full range"],
)
def test_the_stated_colour_matrix_and_range_count(
    tmp_path: Path, matrix: int | None, full: bool, grey: tuple[int, int, int]
) -> None:
    """A matrix that is not stated is BT.601, a range that is not stated is limited, as in ffmpeg."""

    def state(part: Any) -> None:
        if matrix is not None:
            part.colorspace = matrix
        if full:
            part.color_range = 2

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        state(stream.codec_context)
        planes = np.repeat(np.uint8([120, 100, 180]), [48, 12, 12])[:, None].repeat(64, 1)
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            state(frame)
            frame.pts, frame.time_base = i, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert tuple(read_video(path).frames[0, 20, 20]) == grey


def save(path: Path, count: int, **options: Any) -> Path:
    pictures = [Image.fromarray(picture(i)) for i in range(count)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


def test_animations(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is an animated WebP, which cannot be read: write it as MP4"):
        read_video(save(tmp_path / "a.webp", 4, duration=125))
    gif = read_video(save(tmp_path / "a.gif", 5, duration=120))
    assert (gif.frames.shape, gif.fps) == ((5, 48, 64, 3), pytest.approx(100 / 12))
    one = read_video(save(tmp_path / "b.gif", 1))
    assert (len(one.frames), one.fps) == (1, 1.0)
    with pytest.raises(BenchError, match="no constant frame rate"):
        read_video(save(tmp_path / "c.gif", 5, duration=[100, 200, 100, 50, 100]))
    with pytest.raises(BenchError, match="is animated: write it as a video"):
        read_image(save(tmp_path / "a.png", 4, duration=120))


def test_a_phone_s_jpeg_of_two_pictures_is_the_first(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 2, format="MPO", quality=95)
    Image.fromarray(picture(0)).save(tmp_path / "b.jpg", quality=95)
    with Image.open(path) as image:
        assert image.format == "MPO"
    np.testing.assert_array_equal(read_image(path).frames, read_image(tmp_path / "b.jpg").frames)


def test_a_photo_is_turned_as_its_exif_data_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").frames[0], np.rot90(picture(0), -1))


def test_transparency_of_an_image_is_noted(tmp_path: Path) -> None:
    Image.fromarray(glass(0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").notes == ("transparency is dropped: the colours below it are scored",)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").frames[0], picture(0))
    Image.fromarray(picture(0)).convert("RGBA").save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").notes == ()


def test_a_file_without_frames_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(BenchError, match=r"a\.mkv (has no frames|cannot be decoded)"):
        read_video(tmp_path / "a.mkv")
