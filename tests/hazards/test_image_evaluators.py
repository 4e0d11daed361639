"""The silent ways to a wrong image score: each broken variant misses the right value by more than its tolerance.

The numbers of the marks are those of the hazards in docs/evaluators/hazards.md.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.api import BenchError
from evaluators.clip.frames import ImageRule
from evaluators.clip.scorer import ClipEvaluator
from evaluators.clipscore import ClipScore
from evaluators.common import CLIP_MEAN, CLIP_STD, to_uint8
from evaluators.hpsv2 import HPSv2
from evaluators.pickscore import PickScore
from tests.helpers.clip_fixtures import COSINE, FIXTURES, HF_EXPECTED, OPEN_EXPECTED, PIXEL, RAW, images, noise

PICK, PROCESSOR = FIXTURES / "PickScore_v1", FIXTURES / "CLIP-ViT-H-14-laion2B-s32B-b79K"
HUGGING_FACE, OPENAI = FIXTURES / "clip-vit-tiny-patch14", FIXTURES / "openai-clip-tiny"
HPS = FIXTURES / "HPSv2" / "HPS_v2.1_compressed.pt"
HPS_CONFIG = FIXTURES / "HPSv2" / "open_clip_tiny_config.json"
PROMPTS, HESSEL = OPEN_EXPECTED["prompts"], OPEN_EXPECTED["hessel_clipscore"]
#: A broken variant misses by at least this many tolerances.
FAR = 10


def openai(**options: Any) -> ClipScore:
    params = {"model": OPENAI / "open_clip_tiny_config.json", "device": "cpu", **options}
    return ClipScore(OPENAI / "open_clip_pytorch_model.bin", **params)


def hps(**options: Any) -> HPSv2:
    return HPSv2(HPS, **{"version": "2.1", "model": HPS_CONFIG, "device": "cpu", **options})


def miss(evaluator: ClipEvaluator, metric: str, prompts: list[str], wanted: list[float]) -> float:
    """Largest distance of the fixture images' scores, each with its prompt, from the wanted ones."""
    pairs = zip(images(), prompts, wanted, strict=True)
    return max(abs(evaluator.score(image, [p], 1.0)[metric].item() - want) for image, p, want in pairs)


@pytest.mark.hazard(12)
def test_rounding_to_bfloat16_shows_in_the_score_and_in_the_fingerprint() -> None:
    exact, rough = hps(), hps(dtype="bfloat16")
    error = miss(rough, "hpsv2", PROMPTS, OPEN_EXPECTED["hpsv2"]["score"])
    assert FAR * COSINE < error < 0.05
    assert miss(exact, "hpsv2", PROMPTS, OPEN_EXPECTED["hpsv2"]["score"]) <= COSINE
    assert (exact.fingerprint()["dtype"], rough.fingerprint()["dtype"]) == ("float32", "bfloat16")


@pytest.mark.hazard(13)
def test_words_after_the_77th_token_do_not_count_and_are_counted() -> None:
    long = "a young woman walks along a quiet street " * 12
    for evaluator in (hps(), openai(), PickScore(PICK, PROCESSOR), ClipScore(HUGGING_FACE)):
        metric = next(iter(evaluator.metrics))
        ends = [long + end for end in ("at night in the rain", "by day, a red balloon above her")]
        one, two = (evaluator.score(noise(1), [prompt], 8.0)[metric] for prompt in ends)
        assert torch.equal(one, two), evaluator.name
        details = evaluator.details()
        assert details["prompt_truncated"].all()
        assert details["prompt_tokens"].iloc[0] > details["token_limit"].iloc[0] == 77
        evaluator.score(noise(1), ["a red balloon"], 8.0)
        assert not evaluator.details()["prompt_truncated"].any()


@pytest.mark.hazard(13)
def test_a_prefix_counts_towards_the_limit() -> None:
    prompt = "a cat " * 37  # 74 tokens, start and end not counted
    for prefix, tokens, cut in (("", 76, False), ("A photo depicts ", 79, True)):
        evaluator = openai(prefix=prefix)
        evaluator.score(noise(1), [prompt], 8.0)
        assert evaluator.details()["prompt_tokens"].unique().tolist() == [tokens]
        assert evaluator.details()["prompt_truncated"].unique().tolist() == [cut]


@pytest.mark.hazard(14)
def test_a_missing_prefix_is_far_off() -> None:
    assert miss(openai(prefix=HESSEL["prefix"]), "clip_cosine", PROMPTS, HESSEL["cosine_prefixed"]) <= COSINE
    assert miss(openai(), "clip_cosine", PROMPTS, HESSEL["cosine_prefixed"]) > FAR * COSINE


@pytest.mark.hazard(14)
def test_the_units_are_named_apart() -> None:
    """A hundred times the cosine, 2.5 times, the logit scale and a 26th of it are metrics of their own."""
    video, prompt = images()[2], PROMPTS[2:3]
    scores = hps().score(video, prompt, 1.0)
    assert scores["hpsv2_x100"].item() == pytest.approx(100 * scores["hpsv2"].item(), rel=1e-6)
    assert abs(scores["hpsv2_x100"].item() - OPEN_EXPECTED["hpsv2"]["score"][2]) > FAR * COSINE
    scores = openai().score(video, prompt, 1.0)
    assert scores["clipscore"].item() == pytest.approx(2.5 * scores["clip_cosine"].item(), rel=1e-6)
    pick = PickScore(PICK, PROCESSOR)
    scores = pick.score(images()[0], HF_EXPECTED["prompts"][:1], 1.0)
    raw = HF_EXPECTED["pickscore"]["raw_batch"][0]
    assert abs(scores["pickscore"].item() - raw) <= RAW
    assert min(abs(scores[name].item() - raw) for name in ("pickscore_div26", "pickscore_cosine")) > FAR * RAW
    for evaluator in (hps(), openai(), pick):
        units = [metric.unit for metric in evaluator.metrics.values()]
        assert len(set(units)) == len(units)


@pytest.mark.hazard(14)
def test_the_two_versions_of_hpsv2_cannot_be_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"is the release of version 2\.1, but version is '2\.0'"):
        hps(version="2.0")
    shutil.copy(HPS, tmp_path / "HPS_v2_compressed.pt")
    with pytest.raises(BenchError, match=r"is the release of version 2\.0, but version is '2\.1'"):
        HPSv2(tmp_path / "HPS_v2_compressed.pt", "2.1", model=HPS_CONFIG)
    shutil.copy(HPS, tmp_path / "mine.pt")
    with pytest.raises(BenchError, match=r"not 000000000000\.\.\. as in the parameter"):
        HPSv2(tmp_path / "mine.pt", "2.0", model=HPS_CONFIG, sha256="0" * 64)
    for unknown in ("2", "v2.1", "3.0"):
        with pytest.raises(BenchError, match=r"choose one of 2\.0, 2\.1"):
            hps(version=unknown)
    with pytest.raises(TypeError, match="version"):
        HPSv2(HPS)  # type: ignore[call-arg]
    fingerprints = [HPSv2(tmp_path / "mine.pt", version, model=HPS_CONFIG).fingerprint() for version in ("2.0", "2.1")]
    assert fingerprints[0] != fingerprints[1]
    assert [fingerprint["version"] for fingerprint in fingerprints] == ["2.0", "2.1"]


@pytest.mark.hazard(14)
def test_the_first_frame_is_not_the_video() -> None:
    for evaluator in (hps(), openai(), PickScore(PICK, PROCESSOR)):
        metric = next(iter(evaluator.metrics))
        video = torch.cat([images()[1].expand(-1, -1, 6, -1, -1), noise(1, 7, 64)], 2)
        whole = evaluator.score(video, PROMPTS[:1], 8.0)[metric].item()
        assert evaluator.details()[metric].mean() == pytest.approx(whole, abs=1e-5)
        first = evaluator.score(video[:, :, :1], PROMPTS[:1], 8.0)[metric].item()
        assert abs(first - whole) > FAR * (RAW if metric == "pickscore" else COSINE)


@pytest.mark.hazard(15)
def test_the_stock_processor_gives_other_pixels_and_another_score() -> None:
    from transformers import CLIPImageProcessor

    pick, stock = PickScore(PICK, PROCESSOR), CLIPImageProcessor.from_pretrained(PROCESSOR)
    errors, scores = [], []
    for image, prompt, raw in zip(
        images(), HF_EXPECTED["prompts"], HF_EXPECTED["pickscore"]["raw_batch"], strict=True
    ):
        frame = to_uint8(image[:, :, 0])
        pixels = stock(images=frame[0], return_tensors="pt")["pixel_values"]
        errors.append((pixels - pick._rule.pixels(frame)).abs().max().item())
        with torch.no_grad():
            cosine = (
                torch.nn.functional.normalize(pick._clip.image_features(pixels), dim=-1) @ pick._texts([prompt])[0].T
            )
        scores.append(abs(pick._scale * cosine.item() - raw))
    assert max(errors) > FAR * PIXEL
    assert max(scores) > RAW


@pytest.mark.hazard(15)
def test_bilinear_tensors_are_another_clipscore() -> None:
    """FlowCPS's scorer: exp(logit scale) * cosine / 30 on frames resized by torchvision's default."""
    clip, stored = ClipScore(HUGGING_FACE), HF_EXPECTED["flowcps_clip"]
    wanted = [30 * score / stored["logit_scale_exp"] for score in stored["div30"]]
    assert miss(clip, "clip_cosine", HF_EXPECTED["prompts"], wanted) > FAR * COSINE


@pytest.mark.hazard(15)
def test_a_centre_crop_is_not_hpsv2s_letterbox() -> None:
    evaluator = hps()
    assert miss(evaluator, "hpsv2", PROMPTS, OPEN_EXPECTED["hpsv2"]["score"]) <= COSINE
    evaluator._rule = ImageRule(evaluator._rule.size, evaluator._rule.crop, CLIP_MEAN, CLIP_STD)
    assert miss(evaluator, "hpsv2", PROMPTS, OPEN_EXPECTED["hpsv2"]["score"]) > FAR * COSINE


@pytest.mark.hazard(15)
def test_the_letterbox_depends_on_antialiasing(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.functional import interpolate

    from evaluators.clip import frames

    monkeypatch.setattr(frames, "interpolate", lambda *a, **k: interpolate(*a, **{**k, "antialias": False}))
    assert miss(hps(), "hpsv2", PROMPTS, OPEN_EXPECTED["hpsv2"]["score"]) > FAR * COSINE


@pytest.mark.hazard(15)
def test_the_sides_of_a_wide_frame_count_for_hpsv2_only() -> None:
    frame = images()[3]
    spoilt = frame.clone()
    spoilt[..., :40] = 1 - spoilt[..., :40]  # of 240 pixels, 52 on each side are cropped
    for evaluator, counts in ((hps(), True), (openai(), False), (PickScore(PICK, PROCESSOR), False)):
        metric = next(name for name, metric in evaluator.metrics.items() if metric.unit == "cosine")
        one, two = (evaluator.score(video, PROMPTS[:1], 1.0)[metric].item() for video in (frame, spoilt))
        assert (abs(one - two) > FAR * COSINE) == counts, evaluator.name


@pytest.mark.hazard(16)
def test_gelu_for_quickgelu_is_far_off(tmp_path: Path) -> None:
    """The broken variant has to be asked for: the same weights with a configuration that lies."""
    config = json.loads((OPENAI / "open_clip_tiny_config.json").read_text())
    lie = tmp_path / "lie.json"
    lie.write_text(json.dumps({**config, "quick_gelu": False}))
    assert miss(openai(), "clip_cosine", PROMPTS, HESSEL["cosine_no_prefix"]) <= COSINE
    assert miss(openai(model=lie), "clip_cosine", PROMPTS, HESSEL["cosine_no_prefix"]) > FAR * COSINE


@pytest.mark.hazard(16)
def test_an_activation_must_be_stated_and_may_not_contradict(tmp_path: Path) -> None:
    config = json.loads((OPENAI / "open_clip_tiny_config.json").read_text())
    del config["quick_gelu"]
    silent = tmp_path / "silent.json"
    silent.write_text(json.dumps(config))
    with pytest.raises(BenchError, match="does not state 'quick_gelu'"):
        openai(model=silent)
    with pytest.raises(BenchError, match="activation='quick_gelu' contradicts"):
        openai(model=silent, activation="quick_gelu")
    with pytest.raises(BenchError, match="activation='gelu' contradicts"):
        openai(activation="gelu")
    with pytest.raises(BenchError, match="activation 'relu' is unknown"):
        openai(activation="relu")
    with pytest.raises(BenchError, match="does not state 'quick_gelu'"):
        openai(model="ViT-L-14")
    assert openai(activation="quick_gelu").fingerprint() == openai().fingerprint()
    assert openai(model=silent, activation="gelu").fingerprint()["activation"] == "gelu"
    activation = json.loads((HUGGING_FACE / "config.json").read_text())["vision_config"].get(
        "hidden_act", "quick_gelu"
    )
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    with pytest.raises(BenchError, match=f"activation='{other}' contradicts .*which has {activation}"):
        ClipScore(HUGGING_FACE, activation=other)
    assert ClipScore(HUGGING_FACE, activation=activation).fingerprint() == ClipScore(HUGGING_FACE).fingerprint()


@pytest.mark.hazard(16)
def test_html_is_unescaped_by_open_clip_alone() -> None:
    both = ["salt &amp; pepper", "salt & pepper"]
    ids, _ = openai()._text.batch(both)
    assert torch.equal(ids[0], ids[1])
    hugging_face = ClipScore(HUGGING_FACE)._text
    assert hugging_face.ids(both[0]) != hugging_face.ids(both[1])
