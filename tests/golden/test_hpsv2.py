"""HPSv2: the numbers of the original program, its letterbox, its versions, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.api import BenchError
from bench.suite.load import load_suite
from bench.suite.prepared import make_evaluator, prepare
from evaluators.clip.frames import LetterboxRule
from evaluators.common import CLIP_MEAN, CLIP_STD, to_uint8
from evaluators.hpsv2 import HPSv2
from tests.helpers import parity
from tests.helpers.clip_fixtures import COSINE, FIXTURES, OPEN_EXPECTED, PIXEL, images, noise
from tests.helpers.nano_suite import NANO

CHECKPOINT = FIXTURES / "HPSv2" / "HPS_v2.1_compressed.pt"
TINY = FIXTURES / "HPSv2" / "open_clip_tiny_config.json"
PROMPTS = OPEN_EXPECTED["prompts"]


def load(checkpoint: Path = CHECKPOINT, version: str = "2.1", **options: Any) -> HPSv2:
    return HPSv2(checkpoint, version, **{"model": TINY, "device": "cpu", **options})


@pytest.fixture(scope="module")
def hps() -> HPSv2:
    return load()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint with its state dict changed, or with another name."""

    def make(change: Callable[[dict[str, Tensor]], object] = lambda state: None, name: str = "tuned.pt") -> Path:
        state = torch.load(CHECKPOINT, weights_only=True)
        change(state["state_dict"])
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return make


def test_scores_are_those_of_the_original(hps: HPSv2) -> None:
    matrix = np.array(OPEN_EXPECTED["hpsv2"]["matrix_prompt_by_image"])
    for i, image in enumerate(images()):
        scores = hps.score(image.expand(len(PROMPTS), -1, -1, -1, -1), PROMPTS, 1.0)
        parity.within("HPSv2: cosine", scores["hpsv2"], matrix[:, i], COSINE)
        parity.within("HPSv2: score", scores["hpsv2"][i], OPEN_EXPECTED["hpsv2"]["score"][i], COSINE)
        parity.within("HPSv2: 100 * cosine", scores["hpsv2_x100"], 100 * matrix[:, i], 100 * COSINE)


def test_pixels_and_tokens_are_those_of_the_original(hps: HPSv2) -> None:
    for image, want in zip(images(), OPEN_EXPECTED["hpsv2"]["pixels"], strict=True):
        pixels = hps._rule.pixels(to_uint8(image[:, :, 0]))[0]
        assert list(pixels.shape) == want["shape"]
        parity.within("HPSv2: pixels", pixels.flatten()[want["idx"]], want["at_idx"], PIXEL)
        parity.within("HPSv2: mean pixel", pixels.double().mean(), want["sum"] / pixels.numel(), PIXEL)
    ids, _ = hps._text.batch(PROMPTS)
    for row, wanted in zip(ids.tolist(), OPEN_EXPECTED["hpsv2"]["input_ids_nonzero"], strict=True):
        parity.within("HPSv2: token ids", row, wanted + [0] * (77 - len(wanted)), 0)


@pytest.mark.skipif(
    importlib.util.find_spec("hpsv2") is None,
    reason="the hpsv2 package is not installed; the stored numbers of the original are tested without it",
)
@pytest.mark.filterwarnings("ignore")  # the package's own, of library versions it was not written for
def test_scores_are_those_of_the_installed_package(hps: HPSv2, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original program on the tiny model.

    Its wheel pins old versions of pytest and protobuf and lacks a file, so install it without what it asks for:
    `pip install --no-deps hpsv2==1.2.0 clint args`, then copy open_clip's `bpe_simple_vocab_16e6.txt.gz` into
    `hpsv2/src/open_clip/`. Its import of `turtle`, which it does not use, needs no Tk here.
    """
    from PIL import Image

    monkeypatch.setitem(sys.modules, "turtle", SimpleNamespace(forward=None))
    from hpsv2 import img_score
    from hpsv2.src.open_clip.model import CLIP
    from hpsv2.src.open_clip.transform import image_transform

    config = json.loads(TINY.read_text())
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], output_dict=True)
    letterbox = image_transform(config["vision_cfg"]["image_size"], is_train=False, resize_longest_max=True)
    monkeypatch.setitem(img_score.model_dict, "model", model)
    monkeypatch.setitem(img_score.model_dict, "preprocess_val", letterbox)
    monkeypatch.setattr(img_score, "device", "cpu")
    names = [FIXTURES / "images" / name for name in OPEN_EXPECTED["images"]]
    for name, image, prompt in zip(names, images(), PROMPTS, strict=True):
        (want,) = img_score.score(Image.open(name), prompt, cp=str(CHECKPOINT))
        parity.within("HPSv2: installed package", hps.score(image, [prompt], 1.0)["hpsv2"][0], want, COSINE)


@pytest.mark.parametrize(("height", "width"), [(36, 64), (64, 36), (37, 64), (20, 224), (224, 20), (224, 224), (7, 5)])
def test_the_frame_is_centred_on_black(height: int, width: int) -> None:
    rule = LetterboxRule(64, 64, CLIP_MEAN, CLIP_STD)
    frame = torch.full((1, 3, height, width), 255, dtype=torch.uint8)
    pixels = rule.pixels(frame)[0] * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    scale = 64 / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (64 - rows) // 2, (64 - columns) // 2
    want = torch.zeros(64, 64)
    want[top : top + rows, left : left + columns] = 1
    torch.testing.assert_close(pixels, want.expand(3, -1, -1), atol=2e-6, rtol=0)


def test_a_frame_of_the_models_size_is_not_resized() -> None:
    rule = LetterboxRule(64, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    frame = to_uint8(noise(1, 1, 64)[:, :, 0])
    assert torch.equal(rule.pixels(frame), frame.float() / 255)


def test_overshoot_of_the_resize_is_kept() -> None:
    frame = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    frame[..., 4:] = 255
    pixels = LetterboxRule(64, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).pixels(frame)
    assert pixels.min() < -0.01
    assert pixels.max() > 1.01


def test_details_and_fingerprint(hps: HPSv2) -> None:
    hps.score(noise(2), [PROMPTS[0], PROMPTS[3]], 8.0)
    details = hps.details()
    assert details["frame_index"].tolist() == [0, 2, 3, 5, 7, 9, 10, 12] * 2
    assert details.groupby("video")["prompt_tokens"].first().tolist() == [11, 110]
    assert details.groupby("video")["prompt_truncated"].all().tolist() == [False, True]
    assert details["token_limit"].unique().tolist() == [77]
    fingerprint = hps.fingerprint()
    assert fingerprint["version"] == "2.1"
    assert fingerprint["activation"] == "gelu"
    assert fingerprint["protocol"].startswith("8 uniform frames")
    assert fingerprint["resize"] == "letterbox, tensor bicubic, antialias"
    assert {"sha256:HPS_v2.1_compressed.pt", "sha256:vocabulary", "sha256:open_clip config"} <= fingerprint.keys()
    assert all(isinstance(value, str) for value in fingerprint.values())


def test_a_video_is_the_mean_of_its_frames(hps: HPSv2) -> None:
    video = noise(1)
    whole = hps.score(video, PROMPTS[:1], 8.0)["hpsv2"].item()
    parts = [hps.score(video[:, :, i : i + 1], PROMPTS[:1], 8.0)["hpsv2"].item() for i in (0, 2, 3, 5, 7, 9, 10, 12)]
    assert whole == pytest.approx(np.mean(parts), abs=5e-6)
    assert hps.details()["frame_index"].tolist() == [0]


def test_a_score_does_not_depend_on_the_batch(hps: HPSv2) -> None:
    videos = noise(4)
    together = load(micro_batch=3).score(videos, PROMPTS, 8.0)["hpsv2"]
    alone = [hps.score(videos[i : i + 1], PROMPTS[i : i + 1], 8.0)["hpsv2"].item() for i in range(4)]
    np.testing.assert_allclose(together, alone, atol=5e-6)


def test_the_folder_of_the_release_and_the_config_beside_the_file_are_found(tmp_path: Path, hps: HPSv2) -> None:
    shutil.copy(CHECKPOINT, tmp_path)
    shutil.copy(TINY, tmp_path / "open_clip_config.json")
    evaluator = HPSv2(tmp_path, "2.1", device="cpu")
    video = noise(1)
    assert torch.equal(evaluator.score(video, ["a cat"], 8.0)["hpsv2"], hps.score(video, ["a cat"], 8.0)["hpsv2"])


def test_a_suite_names_it_with_paths_of_the_project(hps: HPSv2) -> None:
    folder = "tests/fixtures/clip/HPSv2"
    params = {
        "checkpoint": folder,
        "version": 2.1,
        "model": f"{folder}/{TINY.name}",
        "device": "cpu",
    }  # as YAML reads it
    name = "evaluators.hpsv2:HPSv2"
    suite = load_suite(NANO, [f"evaluator_params={{{name!r}: {json.dumps(params)}}}"])
    assert make_evaluator(prepare(suite), name).fingerprint() == hps.fingerprint()


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_loading_draws_no_random_numbers() -> None:
    load()


def test_the_logit_scale_does_not_count(copy: Callable[..., Path], hps: HPSv2) -> None:
    other = load(copy(lambda state: state["logit_scale"].add_(1)))
    assert torch.equal(other.score(noise(1), ["a cat"], 8.0)["hpsv2"], hps.score(noise(1), ["a cat"], 8.0)["hpsv2"])


GROUPS = [
    "visual.conv1",
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.ln_pre",
    "visual.transformer.resblocks.0.attn.in_proj",
    "visual.transformer.resblocks.1.mlp.c_fc",
    "visual.ln_post",
    "visual.proj",
    "token_embedding",
    "positional_embedding",
    "transformer.resblocks.0.attn.out_proj",
    "transformer.resblocks.1.mlp.c_proj",
    "ln_final",
    "text_projection",
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_of_weights_counts(copy: Callable[..., Path], hps: HPSv2, group: str) -> None:
    def perturb(state: dict[str, Tensor]) -> None:
        touched = [name for name in state if name.startswith(group)]
        assert touched
        for name in touched:
            value = state[name].float()
            ramp = torch.linspace(0.5, 1.5, value.numel()).view_as(value)
            state[name] = (value * ramp + 0.05 * ramp**2).to(state[name].dtype)

    before, after = (e.score(noise(1), [PROMPTS[0]], 8.0)["hpsv2"] for e in (hps, load(copy(perturb))))
    assert (after - before).abs().item() > 1e-4


BROKEN: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda s: s.pop("visual.proj"), "lacks weight 'visual.proj'"),
    "unexpected": (lambda s: s.update(extra=torch.ones(1)), "unexpected weight 'extra'"),
    "wrong shape": (lambda s: s.update({"visual.proj": torch.ones(32, 17)}), "has shape"),
    "no tensor": (lambda s: s.update(step=3), "not a tensor"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_weights_are_refused(copy: Callable[..., Path], change: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        load(copy(change))


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(BenchError, match=r"HPS_v2\.1_compressed\.pt lacks weight .*belong together"):
        load(model="ViT-B-32")
    other = FIXTURES / "openai-clip-tiny"
    with pytest.raises(BenchError, match="has no 'state_dict'"):
        load(other / "open_clip_pytorch_model.bin")
    with pytest.raises(BenchError, match=r"activation='gelu' contradicts .*'quick_gelu'"):
        load(model=other / "open_clip_tiny_config.json")


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="does not exist"):
        load(tmp_path / "none.pt")
    with pytest.raises(BenchError, match=r"holds none of HPS_v2\.1_compressed\.pt"):
        load(tmp_path)
    (tmp_path / "half.pt").write_bytes(CHECKPOINT.read_bytes()[:1000])
    with pytest.raises(BenchError, match=r"half\.pt cannot be read"):
        load(tmp_path / "half.pt")
    with pytest.raises(BenchError, match=r"dtype 'float16' is not supported"):
        load(dtype="float16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video[:, :1], "float tensor"),
        (lambda video: torch.cat([video, video[:, :1]], 1), "float tensor"),
        (lambda video: video / 0, "infinite"),
        (lambda video: video * 255, "clamp"),
        (lambda video: video[..., :1, :1].expand(-1, -1, -1, 1, 500), "shrink to nothing"),
    ],
    ids=["grey", "with alpha", "not finite", "not scaled", "a line"],
)
def test_bad_pixels_are_refused(hps: HPSv2, change: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        hps.score(change(noise(1)), ["a cat"], 8.0)


def test_weights_that_are_no_numbers_are_refused(copy: Callable[..., Path]) -> None:
    evaluator = load(copy(lambda state: state["text_projection"].fill_(float("nan"))))
    with pytest.raises(BenchError, match="hpsv2 gave a score that is not finite"):
        evaluator.score(noise(1), ["a cat"], 8.0)


def test_a_special_token_in_a_prompt_is_refused(hps: HPSv2) -> None:
    with pytest.raises(BenchError, match="special token"):
        hps.score(noise(1), ["a cat <end_of_text> a dog"], 8.0)
