"""CLIPScore and PickScore: the numbers of the originals on images, our protocol on videos, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.api import BenchError
from evaluators.clipscore import ClipScore
from evaluators.common import to_uint8
from evaluators.pickscore import PickScore
from tests.helpers import parity
from tests.helpers.clip_fixtures import BATCH, COSINE, FIXTURES, HF_EXPECTED, PIXEL, RAW, images, noise
from tests.helpers.paths import PROJECT

PICK, PROCESSOR = FIXTURES / "PickScore_v1", FIXTURES / "CLIP-ViT-H-14-laion2B-s32B-b79K"
ROOT = PROJECT
CLIP = FIXTURES / "clip-vit-tiny-patch14"
PROMPTS = HF_EXPECTED["prompts"]


@pytest.fixture(scope="module")
def pick():
    return PickScore(PICK, PROCESSOR, device="cpu")


@pytest.fixture(scope="module")
def clip():
    return ClipScore(CLIP, device="cpu")


@pytest.fixture
def copy(tmp_path) -> Callable[..., Path]:
    """A copy of the CLIP folder with its weights, its configuration and its image constants changed."""

    def make(
        weights: Callable[[dict[str, Tensor]], object] = lambda state: None,
        config: Callable[[dict[str, object]], object] = lambda config: None,
        images: Callable[[dict[str, object]], object] = lambda config: None,
    ) -> Path:
        root = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(CLIP, root)
        for name, change in (("config.json", config), ("preprocessor_config.json", images)):
            stored = json.loads((root / name).read_text())
            change(stored)
            (root / name).write_text(json.dumps(stored))
        state = load_file(root / "model.safetensors")
        weights(state)
        save_file(state, root / "model.safetensors")
        return root

    return make


def test_pickscore_is_that_of_the_original(pick):
    expected = HF_EXPECTED["pickscore"]
    parity.within("PickScore: logit scale", pick._scale, expected["logit_scale_exp"], 1e-6, relative=True)
    for i, image in enumerate(images()):
        scores = pick.score(image.expand(len(PROMPTS), -1, -1, -1, -1), PROMPTS, 1.0)
        column = np.array(expected["div26_matrix_prompt_by_image"])[:, i]
        parity.within("PickScore: raw / 26", scores["pickscore_div26"], column, RAW / 26)
        parity.within("PickScore: raw / 26, pairs", scores["pickscore_div26"][i], expected["div26_batch"][i], RAW / 26)
        parity.within("PickScore: raw", scores["pickscore"][i], expected["raw_batch"][i], RAW)
        cosine = expected["raw_batch"][i] / expected["logit_scale_exp"]
        parity.within("PickScore: cosine", scores["pickscore_cosine"][i], cosine, COSINE)


def test_cosine_and_clipscore_are_those_of_the_originals(clip):
    expected = HF_EXPECTED["hf_clip"]
    for i, image in enumerate(images()):
        scores = clip.score(image.expand(len(PROMPTS), -1, -1, -1, -1), PROMPTS, 1.0)
        column = np.array(expected["cosine_matrix_prompt_by_image"])[:, i]
        parity.within("CLIPScore: cosine", scores["clip_cosine"], column, COSINE)
        parity.within("CLIPScore: 2.5 * cosine", scores["clipscore"][i], expected["hessel_2_5_max0"][i], 2.5 * COSINE)


def test_torchmetrics_agrees_where_it_does_not_cut_the_prompt(clip):
    # Its last prompt is too long: torchmetrics drops the end token there, the other programs keep it.
    expected = HF_EXPECTED["torchmetrics_100cos_unclamped"]
    for image, prompt, score in list(zip(images(), expected["prompts"], expected["scores"], strict=True))[:3]:
        got = 100 * clip.score(image, [prompt], 1.0)["clip_cosine"]
        parity.within("CLIPScore: torchmetrics, 100 * cosine", got[0], score, 100 * COSINE)


def test_pixels_and_tokens_are_those_of_the_original(pick):
    for image, total in zip(images(), HF_EXPECTED["pickscore"]["pixel_sums"], strict=True):
        pixels = pick._rule.pixels(to_uint8(image[:, :, 0]))
        parity.within("PickScore: mean pixel", pixels.double().mean(), total / pixels.numel(), PIXEL)
    for prompt, ids in zip(PROMPTS, HF_EXPECTED["pickscore"]["input_ids"], strict=True):
        parity.within("PickScore: token ids", pick._text.ids(prompt)[0], ids, 0)


@pytest.mark.parametrize("name", ["clipscore", "pickscore"])
def test_the_fingerprints_of_the_reference_results_still_hold(name):
    """Records compare by fingerprint: one that changes cuts new runs off from the stored reference."""
    record = json.loads((ROOT / "results/reference/nano/base/run.json").read_text(encoding="utf-8"))
    folder = {"clipscore": "clip", "pickscore": "pickscore"}[name]
    evaluator = {"clipscore": ClipScore, "pickscore": PickScore}[name](ROOT / "bench/nano/checkpoints" / folder)
    assert evaluator.fingerprint() == record["evaluators"][name]


def test_a_video_is_the_mean_of_eight_uniform_frames(clip):
    video = noise(1)
    chosen = [0, 2, 3, 5, 7, 9, 10, 12]
    frames = [clip.score(video[:, :, i : i + 1], PROMPTS[:1], 8.0) for i in chosen]
    scores = clip.score(video, PROMPTS[:1], 8.0)
    for name in clip.metrics:
        np.testing.assert_allclose(scores[name], torch.stack([frame[name] for frame in frames]).mean(0), atol=BATCH)
    details = clip.details()
    assert details["frame_index"].tolist() == chosen
    np.testing.assert_allclose(details["clip_cosine"], [frame["clip_cosine"].item() for frame in frames], atol=BATCH)


def test_a_short_video_is_scored_whole(pick):
    pick.score(noise(2, f=3), PROMPTS[:2], 8.0)
    assert pick.details()["frame_index"].tolist() == [0, 1, 2] * 2
    assert pick.details()["video"].tolist() == [0, 0, 0, 1, 1, 1]


def test_negative_cosines_are_clamped_frame_by_frame(clip):
    clip.score(noise(3), PROMPTS[:3], 8.0)
    details = clip.details()
    np.testing.assert_allclose(details["clipscore"], 2.5 * details["clip_cosine"].clip(lower=0), rtol=1e-6)


def test_a_score_does_not_depend_on_the_batch(pick):
    videos = noise(4)
    together = pick.score(videos, PROMPTS, 8.0)["pickscore"]
    alone = [pick.score(videos[i : i + 1], PROMPTS[i : i + 1], 8.0)["pickscore"].item() for i in range(4)]
    np.testing.assert_allclose(together, alone, atol=1e-4)  # raw, up to 100 times a cosine


def test_long_prompts_are_cut_and_counted(clip):
    long = "a red circle moving left quickly " * 30
    cut = clip.score(noise(2), ["a cat", long], 8.0)
    details = clip.details().groupby("video").first()
    assert details["prompt_truncated"].tolist() == [False, True]
    assert details["token_limit"].tolist() == [77, 77]
    short, cut_from = details["prompt_tokens"]
    assert short <= 77 < cut_from == len(clip._text._tokenizer.encode(long).ids)
    longer = clip.score(noise(2), ["a cat", long + "and a blue square"], 8.0)
    assert torch.equal(cut["clip_cosine"], longer["clip_cosine"])


def test_a_prefix_is_part_of_the_text_and_of_the_fingerprint(clip):
    prefixed = ClipScore(CLIP, prefix="A photo depicts ", device="cpu")
    assert torch.equal(
        prefixed.score(noise(1), ["a cat"], 8.0)["clip_cosine"],
        clip.score(noise(1), ["A photo depicts a cat"], 8.0)["clip_cosine"],
    )
    assert prefixed.fingerprint() != clip.fingerprint()


def test_fingerprints_name_the_weights_and_the_preprocessing(pick, clip):
    for evaluator in (pick, clip):
        fingerprint = evaluator.fingerprint()
        assert {"sha256:model.safetensors", "sha256:tokenizer.json", "mean", "resize", "frames", "dtype"} <= set(
            fingerprint
        )
        assert all(isinstance(value, str) for value in fingerprint.values())
    assert pick.fingerprint()["sha256:model.safetensors"] != clip.fingerprint()["sha256:model.safetensors"]


GROUPS = [
    "vision_model.embeddings.patch_embedding",
    "vision_model.embeddings.position_embedding",
    "vision_model.embeddings.class_embedding",
    "vision_model.encoder.layers.0.self_attn.v_proj",
    "vision_model.encoder.layers.1.mlp.fc1",
    "vision_model.pre_layrnorm",
    "vision_model.post_layernorm",
    "visual_projection",
    "text_model.embeddings.token_embedding",
    "text_model.embeddings.position_embedding",
    "text_model.encoder.layers.0.self_attn.v_proj",
    "text_model.encoder.layers.1.mlp.fc2",
    "text_model.final_layer_norm",
    "text_projection",
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_of_weights_counts(copy, clip, group):
    def perturb(state):
        touched = [name for name in state if name.startswith(group)]
        assert touched
        for name in touched:
            state[name] = state[name] * torch.linspace(0.5, 1.5, state[name].numel()).view_as(state[name]) + 0.05

    before, after = (e.score(noise(1), ["a cat"], 8.0)["clip_cosine"] for e in (clip, ClipScore(copy(perturb))))
    assert (after - before).abs().item() > 1e-4


def test_the_logit_scale_counts_in_pickscore_only(copy):
    folders = copy(), copy(lambda state: state["logit_scale"].add_(1))
    one, two = (PickScore(folder).score(noise(1), ["a cat"], 8.0) for folder in folders)
    assert torch.equal(one["pickscore_cosine"], two["pickscore_cosine"])
    np.testing.assert_allclose(two["pickscore"], one["pickscore"] * np.e, rtol=1e-5)


def test_stored_positions_of_older_checkpoints_are_accepted(copy, clip):
    old = ClipScore(copy(lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(77)[None]})))
    assert torch.equal(
        old.score(noise(1), ["a cat"], 8.0)["clip_cosine"], clip.score(noise(1), ["a cat"], 8.0)["clip_cosine"]
    )


def test_sizes_written_the_older_way_are_understood(copy, clip):
    old = ClipScore(copy(images=lambda config: config.update(size=56, crop_size=56)))
    assert old.fingerprint()["size"] == clip.fingerprint()["size"]


def test_bfloat16_is_close(clip):
    rough = ClipScore(CLIP, dtype="bfloat16", device="cpu").score(noise(), PROMPTS[:3], 8.0)
    np.testing.assert_allclose(rough["clip_cosine"], clip.score(noise(), PROMPTS[:3], 8.0)["clip_cosine"], atol=0.03)


BROKEN = {
    "missing weight": ({"weights": lambda s: s.pop("logit_scale")}, "lacks weight 'logit_scale'"),
    "unexpected weight": ({"weights": lambda s: s.update(extra=torch.ones(1))}, "unexpected weight 'extra'"),
    "wrong shape": ({"weights": lambda s: s.update({"text_projection.weight": torch.ones(20, 23)})}, "has shape"),
    "other width": ({"config": lambda c: c.update(projection_dim=21)}, "has shape"),
    "other kind": ({"config": lambda c: c.update(model_type="siglip")}, "pass a CLIPModel folder"),
    "other resize": ({"images": lambda c: c.update(resample=2)}, "bicubic"),
    "no crop": ({"images": lambda c: c.update(do_center_crop=False)}, "centre crop"),
    "other size": ({"images": lambda c: c.update(crop_size=42)}, "the model needs 56"),
    "no mean": ({"images": lambda c: c.pop("image_mean")}, "image_mean"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_folder_is_refused(copy, changes, message):
    with pytest.raises(BenchError, match=message):
        ClipScore(copy(**changes))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_or_damaged_file_is_refused(copy, name):
    root = copy()
    (root / name).write_bytes((root / name).read_bytes()[:50])
    with pytest.raises(BenchError, match=name):
        ClipScore(root)
    (root / name).unlink()
    with pytest.raises(BenchError, match=name):
        ClipScore(root)


def test_missing_folders_and_unknown_types_are_refused(tmp_path):
    with pytest.raises(BenchError, match="does not exist"):
        PickScore(tmp_path / "none")
    with pytest.raises(BenchError, match="does not exist"):
        PickScore(PICK, tmp_path / "none")
    with pytest.raises(BenchError, match=r"preprocessor_config\.json cannot be read"):
        PickScore(PICK)
    with pytest.raises(BenchError, match="dtype 'int8'"):
        ClipScore(CLIP, dtype="int8")


def test_bad_input_is_refused(clip):
    for video, message in ((noise(1) * 2, "clamp"), (noise(1) / 0, "infinite"), (noise(1)[0], "float tensor")):
        with pytest.raises(BenchError, match=message):
            clip.score(video, ["a cat"], 8.0)
    with pytest.raises(BenchError, match="2 prompts for 1 videos"):
        clip.score(noise(1), ["a cat", "a dog"], 8.0)


def test_a_special_token_in_a_prompt_is_refused(clip):
    with pytest.raises(BenchError, match=r"special token '<\|endoftext\|>'"):
        clip.score(noise(1), ["a cat <|endoftext|> a dog"], 8.0)


def test_scores_that_are_no_numbers_are_refused(copy):
    evaluator = ClipScore(copy(lambda state: state["text_projection.weight"].fill_(float("nan"))))
    with pytest.raises(BenchError, match="not finite"):
        evaluator.score(noise(1), ["a cat"], 8.0)
