"""VideoReward: the numbers of the original program, and every way of loading or asking wrongly refused."""

from __future__ import annotations

import hashlib
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
from evaluators.common import to_uint8, uniform_indices
from evaluators.video_io import read_video
from evaluators.videoalign import scorer
from evaluators.videoalign.inputs import MIN_FRAME_PIXELS, Text, frame_count, frame_size, patches, resize
from evaluators.videoalign.scorer import VideoAlign
from tests.helpers import parity
from tests.helpers.paths import FIXTURES_ROOT

FIXTURES = FIXTURES_ROOT / "videoalign"
BASE, TEMPLATE = FIXTURES / "tiny-qwen2-vl", FIXTURES / "prompt_template.txt"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
PROMPTS = EXPECTED["prompts"]
LAYOUTS = sorted(EXPECTED["checkpoints"])
AXES = ("VQ", "MQ", "TA")
# The original ran with other versions of torch and with unmerged LoRA; we are within 7e-5, mistakes are above 0.1.
REWARD, PIXEL, BATCH = 5e-4, 1e-6, 5e-6


def load(layout: str = "VideoReward", **options: object) -> VideoAlign:
    return VideoAlign(FIXTURES / layout, BASE, prompt_template=TEMPLATE, device="cpu", **options)  # type: ignore[arg-type]


def clip(i: int) -> tuple[Tensor, float]:
    """Fixture video i as [1, 3, f, h, w] in [0, 1], and its frame rate."""
    video = read_video(FIXTURES / "videos" / EXPECTED["videos"][i])
    return torch.from_numpy(video.frames).permute(3, 0, 1, 2)[None].float() / 255, video.fps


def noise(b: int = 3, f: int = 13, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, f, 16, 16, generator=torch.Generator().manual_seed(seed))


def table(scores, suffix: str = "") -> np.ndarray:
    return np.stack([scores[axis + suffix].numpy() for axis in AXES], 1)


def wanted(rows: list[dict[str, float]]) -> np.ndarray:
    return np.array([[row[axis] for axis in AXES] for row in rows])


@pytest.fixture(scope="module", params=LAYOUTS)
def both(request):
    return request.param, load(request.param)


@pytest.fixture(scope="module")
def evaluator():
    return load()


@pytest.fixture(scope="module")
def text():
    template = TEMPLATE.read_bytes().decode()
    return Text(template, FIXTURES / "VideoReward/checkpoint-11352/tokenizer/tokenizer.json", TEMPLATE)


@pytest.fixture
def copy(tmp_path) -> Callable[..., Path]:
    """A copy of a checkpoint that looks at small frames, with its weights and its configuration changed."""

    def make(
        weights: Callable[[dict[str, Tensor]], object] = lambda state: None,
        config: Callable[[dict[str, dict[str, object]]], object] = lambda config: None,
    ) -> Path:
        root = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(FIXTURES / "VideoReward", root)
        shutil.copytree(BASE, root / "base")
        shutil.copy(TEMPLATE, root / "prompt_template.txt")
        stored = json.loads((root / "model_config.json").read_text())
        stored["data_config"]["min_frame_pixels"] = 56 * 56
        config(stored)
        (root / "model_config.json").write_text(json.dumps(stored))
        path = root / "checkpoint-11352" / "model.pth"
        state = torch.load(path, weights_only=True)
        weights(state)
        torch.save(state, path)
        return root

    return make


def test_scores_are_those_of_the_original(both):
    layout, evaluator = both
    expected = EXPECTED["checkpoints"][layout]["float32"]
    for i, prompt in enumerate(PROMPTS):
        video, fps = clip(i)
        scores = evaluator.score(video, [prompt], fps)
        parity.within(f"{layout}: raw", table(scores, "_raw"), wanted(expected["single_raw"][i : i + 1]), REWARD)
        parity.within(f"{layout}: normalised", table(scores), wanted(expected["single_norm"][i : i + 1]), REWARD)


def test_one_video_with_several_prompts(evaluator):
    video, fps = clip(0)
    scores = evaluator.score(video.expand(3, -1, -1, -1, -1), PROMPTS[:3], fps)
    expected = wanted(EXPECTED["checkpoints"]["VideoReward"]["float32"]["cross_prompt_raw"][:3])
    parity.within("VideoReward: one video, three prompts", table(scores, "_raw"), expected, REWARD)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("fps4_raw", {"sample_fps": 4.0}),
        ("num_frames2_raw", {"num_frames": 2}),
        ("max_pixels_150528_raw", {"max_frame_pixels": 150528}),
    ],
)
def test_other_sampling(key, options):
    evaluator = load(normalise=False, **options)
    for i, row in enumerate(EXPECTED["checkpoints"]["VideoReward"]["float32"][key]):
        video, fps = clip(i)
        scores = evaluator.score(video, [PROMPTS[i]], fps)
        parity.within(f"VideoReward: {key}", table(scores), wanted([row]), REWARD)


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_what_the_model_sees_is_what_the_original_saw(i, text):
    entry, (video, fps) = EXPECTED["inputs"][i], clip(i)
    total, height, width = video.shape[2:]
    indices = uniform_indices(total, frame_count(total, fps, 2.0, None))
    size = frame_size(height, width, MIN_FRAME_PIXELS, 200704)
    parity.within(
        "VideoReward: frame indices, sizes", indices + list(size), entry["frame_indices"] + entry["resized_hw"], 0
    )
    pixels = patches(resize(to_uint8(video[0, :, indices]).transpose(0, 1), size)[None])[0]
    expected = entry["pixel_values_videos"]
    assert list(pixels.shape) == expected["shape"]
    assert pixels.double().sum().item() == pytest.approx(expected["sum"], abs=PIXEL * pixels.numel())
    assert pixels.double().square().sum().item() == pytest.approx(expected["sq_sum"], rel=PIXEL)
    parity.within("VideoReward: pixels", pixels.flatten()[expected["idx"]], expected["at_idx"], PIXEL)
    ids, at = text.batch([PROMPTS[i]], int(np.prod(entry["video_grid_thw"])) // 4)
    inner = text.chat(PROMPTS[i]).partition("<|vision_end|>")[2].partition("<|im_end|>")[0]
    assert hashlib.sha256(inner.encode()).hexdigest() == entry["built_prompt_sha256"]
    assert hashlib.sha256(ids[0].numpy().astype("<i8").tobytes()).hexdigest() == entry["input_ids_sha256"]
    assert at[0].tolist() == entry["special_token_positions"]


def test_frame_counts():
    for total, fps, sample_fps, count, indices in EXPECTED["tables"]["nframes"]:
        if count == "ValueError":
            with pytest.raises(BenchError, match="at least 2 frames"):
                frame_count(total, float(fps), sample_fps, None)
        else:
            assert frame_count(total, float(fps), sample_fps, None) == count
            assert indices is None or uniform_indices(total, count) == indices  # None: long, not stored


def test_frame_sizes():
    for height, width, most, *size in EXPECTED["tables"]["smart_resize"]:
        assert list(frame_size(height, width, MIN_FRAME_PIXELS, most)) == size


@pytest.mark.hazard(21)
def test_vq_and_mq_do_not_depend_on_the_prompt(copy):
    evaluator = VideoAlign(copy())
    scores = evaluator.score(noise(1).expand(len(PROMPTS), -1, -1, -1, -1), PROMPTS, 8.0)
    for axis in ("VQ", "MQ"):
        assert (scores[axis] - scores[axis][0]).abs().max() <= BATCH
    assert scores["TA"].std() > 0.01


def test_a_score_does_not_depend_on_the_batch(copy):
    root, videos = copy(), noise(5)
    alone = VideoAlign(root, micro_batch=1).score(videos, PROMPTS, 8.0)
    together = VideoAlign(root, micro_batch=16).score(videos, PROMPTS, 8.0)
    np.testing.assert_allclose(table(together), table(alone), atol=BATCH, rtol=0)


def test_pixels_are_taken_to_the_levels_of_a_file(copy):
    evaluator, video = VideoAlign(copy()), noise()
    rounded = (video * 255).round() / 255
    np.testing.assert_array_equal(
        table(evaluator.score(video, PROMPTS[:3], 8.0)), table(evaluator.score(rounded, PROMPTS[:3], 8.0))
    )


def test_both_units_are_given(copy):
    root = copy()
    scores = VideoAlign(root).score(noise(), PROMPTS[:3], 8.0)
    raw = VideoAlign(root, normalise=False).score(noise(), PROMPTS[:3], 8.0)
    np.testing.assert_array_equal(table(raw), table(scores, "_raw"))
    np.testing.assert_allclose(scores["MQ"], (raw["MQ"] - 1.1646) / 1.3811, rtol=1e-6)


def test_a_checkpoint_without_a_scale_gives_raw_scores(copy):
    evaluator = VideoAlign(copy(config=lambda config: config.pop("inference_config")))
    scores = evaluator.score(noise(), PROMPTS[:3], 8.0)
    np.testing.assert_array_equal(table(scores), table(scores, "_raw"))
    assert evaluator.metrics["VQ"].unit == "raw"


@pytest.mark.hazard(6)
def test_details_and_fingerprint(copy):
    evaluator = VideoAlign(copy())
    evaluator.score(noise(2), PROMPTS[:2], 8.0)
    details = evaluator.details()
    assert details["frame_indices"].tolist() == [[0, 4, 8, 12]] * 2
    assert details[["total_frames", "height", "width"]].to_numpy().tolist() == [[13, 56, 56]] * 2
    fingerprint = evaluator.fingerprint()
    assert fingerprint["min_frame_pixels"] == str(56 * 56)
    assert fingerprint["dtype"] == "float32"
    assert fingerprint["sha256:prompt_template"] == hashlib.sha256(TEMPLATE.read_bytes()).hexdigest()
    assert all(isinstance(value, str) for value in fingerprint.values())


def test_bfloat16_is_close(copy):
    root = copy()
    exact, rough = (
        VideoAlign(root, dtype=dtype).score(noise(), PROMPTS[:3], 8.0) for dtype in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(table(rough), table(exact), atol=0.2)


GROUPS = {
    "patch embedding": "visual.patch_embed",
    "vision block 0": "visual.blocks.0.",
    "vision block 1": "visual.blocks.1.",
    "merger": "visual.merger",
    "embeddings": ("embed_tokens", "lm_head"),
    "norms": ("layernorm", "model.norm"),
    **{
        f"{name} base": f"{name}.base_layer"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
    },
    "LoRA A": "lora_A",
    "LoRA B": "lora_B",
    "layer 1": "layers.1.",
    "reward head": "rm_head",
}


@pytest.mark.hazard(5)
def test_every_group_of_weights_counts(copy):
    video = noise(1)
    before = table(VideoAlign(copy()).score(video, PROMPTS[:1], 8.0))
    for group, part in GROUPS.items():
        parts = (part,) if isinstance(part, str) else part

        def perturb(state, parts=parts):
            for name in state:
                if any(part in name for part in parts):
                    state[name] = (state[name].float() * 1.5 + 0.02).to(state[name].dtype)

        after = table(VideoAlign(copy(perturb)).score(video, PROMPTS[:1], 8.0))
        assert np.abs(after - before).max() > 1e-3, group


def test_one_frame_is_refused(evaluator):
    with pytest.raises(BenchError, match="at least 2 frames"):
        evaluator.score(noise(1, f=1), ["a cat"], 8.0)


def test_three_frames_become_two(copy):
    evaluator = VideoAlign(copy())
    evaluator.score(noise(1, f=3), ["a cat"], 8.0)
    assert evaluator.details()["frame_indices"].tolist() == [[0, 2]]


@pytest.mark.parametrize("token", ["<|VQ_reward|>", "<|TA_reward|>", "<|video_pad|>", "<|im_end|>", "<|endoftext|>"])
@pytest.mark.hazard(11)
def test_a_special_token_in_a_prompt_is_refused(evaluator, token):
    with pytest.raises(BenchError, match="special token"):
        evaluator.score(noise(1), [f"a {token} cat"], 8.0)


def test_braces_in_a_prompt_are_text(text):
    assert "{x} {text_prompt} {{" in text.chat("{x} {text_prompt} {{")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda video: video.clone().fill_(float("nan")), "NaN"),
        (lambda video: video + 0.5, "clamp"),
        (lambda video: video - 0.5, "clamp"),
        (lambda video: video * 255, "clamp"),
        (lambda video: to_uint8(video), "float tensor"),
        (lambda video: video[0], "float tensor"),
        (lambda video: video[:, :1], "float tensor"),
        (lambda video: video[:0], "float tensor"),
    ],
)
def test_bad_pixels_are_refused(evaluator, change, message):
    with pytest.raises(BenchError, match=message):
        evaluator.score(change(noise(1)), ["a cat"], 8.0)


def test_bad_prompts_and_rates_are_refused(evaluator):
    with pytest.raises(BenchError, match="1 prompts for 2 videos"):
        evaluator.score(noise(2), ["a cat"], 8.0)
    with pytest.raises(BenchError, match="one prompt per video"):
        evaluator.score(noise(1), "a", 8.0)
    with pytest.raises(BenchError, match="fps=0"):
        evaluator.score(noise(1), ["a cat"], 0.0)


@pytest.mark.hazard(8)
def test_scores_that_are_no_numbers_are_refused(copy):
    def spoil(state):
        state["base_model.model.rm_head.weight"].fill_(float("nan"))

    with pytest.raises(BenchError, match="not finite"):
        VideoAlign(copy(spoil)).score(noise(1), ["a cat"], 8.0)


PREFIX = "base_model.model."
BROKEN_WEIGHTS = {
    "missing vision weight": (lambda s: s.pop(f"{PREFIX}visual.merger.ln_q.bias"), "lacks weight 'backbone.visual"),
    "missing head": (lambda s: s.pop(f"{PREFIX}rm_head.weight"), "lacks weight 'rm_head.weight'"),
    "missing embeddings": (lambda s: s.pop(f"{PREFIX}model.embed_tokens.weight"), "embed_tokens"),
    "missing base of LoRA": (
        lambda s: s.pop(f"{PREFIX}model.layers.1.mlp.up_proj.base_layer.weight"),
        "lacks a factor or a base",
    ),
    "missing LoRA factor": (
        lambda s: s.pop(f"{PREFIX}model.layers.1.mlp.up_proj.lora_B.default.weight"),
        "lacks a factor or a base",
    ),
    "missing LoRA pair": (
        lambda s: [s.pop(f"{PREFIX}model.layers.1.mlp.up_proj.lora_{side}.default.weight") for side in "AB"],
        "13 weights, not 14",
    ),
    "unexpected weight": (lambda s: s.update({f"{PREFIX}model.extra.weight": torch.ones(1)}), "unexpected weight"),
    "unknown adapter": (lambda s: s.update({f"{PREFIX}rm_head.modules_to_save.x": torch.ones(1)}), "not supported"),
    "two for one place": (
        lambda s: s.update({f"{PREFIX}model.visual.merger.ln_q.bias": torch.ones(32)}),
        "two weights with one name",
    ),
    "wrong shape": (lambda s: s.update({f"{PREFIX}model.norm.weight": torch.ones(31)}), "has shape"),
    "head of three": (lambda s: s.update({f"{PREFIX}rm_head.weight": torch.ones(3, 32)}), "has shape"),
    "untied head": (lambda s: s[f"{PREFIX}lm_head.weight"].add_(1), "tied"),
    "rows of the base": (
        lambda s: [
            s.update({f"{PREFIX}{name}.weight": torch.ones(561, 32)}) for name in ("model.embed_tokens", "lm_head")
        ],
        "561 embeddings, not 539",
    ),
    "no tensor": (lambda s: s.update({"step": 3}), "not a tensor"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_WEIGHTS.values(), ids=BROKEN_WEIGHTS)
@pytest.mark.hazard(5)
def test_broken_weights_are_refused(copy, change, message):
    with pytest.raises(BenchError, match=message):
        VideoAlign(copy(change))


BROKEN_CONFIGS = {
    "template type": (lambda c: c["data_config"].update(prompt_template_type="detailed"), "detailed_special"),
    "sampling": (lambda c: c["data_config"].update(sample_type="random"), "uniform"),
    "reward token": (lambda c: c["model_config"].update(reward_token="last"), "special"),
    "output dimension": (lambda c: c["model_config"].update(output_dim=2), "output_dim"),
    "head of three": (lambda c: c["model_config"].update(output_dim=3), "has shape"),
    "missing key": (lambda c: c["data_config"].pop("max_frame_pixels"), "max_frame_pixels"),
    "missing section": (lambda c: c.pop("peft_lora_config"), "peft_lora_config"),
    "other rank": (lambda c: c["peft_lora_config"].update(lora_r=8), "rank"),
    "half a scale": (lambda c: c["inference_config"].pop("TA_std"), "TA_std"),
    "scale of zero": (lambda c: c["inference_config"].update(TA_std=0), "TA_std"),
    "no rate": (lambda c: c["data_config"].update(fps=None), "one of sample_fps and num_frames"),
    "rate and number": (lambda c: c["data_config"].update(num_frames=4), "one of sample_fps and num_frames"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN_CONFIGS.values(), ids=BROKEN_CONFIGS)
def test_broken_configs_are_refused(copy, change, message):
    with pytest.raises(BenchError, match=message):
        VideoAlign(copy(config=change))


def test_a_damaged_weight_file_is_refused(copy):
    path = copy() / "checkpoint-11352" / "model.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BenchError, match="cannot be read"):
        VideoAlign(path.parent.parent)


def test_missing_files_are_refused(copy, tmp_path):
    with pytest.raises(BenchError, match="does not exist"):
        VideoAlign(tmp_path / "none", BASE)
    for name, message in (
        ("checkpoint-11352/model.pth", "neither model.pth nor"),
        ("checkpoint-11352", "no checkpoint-N folder"),
        ("model_config.json", "model_config.json cannot be read"),
        ("prompt_template.txt", "prompt_template.txt is missing"),
        ("base/config.json", "config.json is missing"),
        ("base", "base_model="),
    ):
        root = copy()
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(BenchError, match=message):
            VideoAlign(root)


def test_another_architecture_is_refused(copy):
    root = copy()
    config = json.loads((root / "base" / "config.json").read_text())
    (root / "base" / "config.json").write_text(json.dumps(config | {"model_type": "qwen2_5_vl"}))
    with pytest.raises(BenchError, match="needs Qwen2-VL"):
        VideoAlign(root)


@pytest.mark.hazard(19)
def test_steps_are_compared_as_numbers(copy):
    root = copy()
    shutil.copytree(root / "checkpoint-11352", root / "checkpoint-990")
    (root / "checkpoint-990" / "model.pth").write_bytes(b"")
    VideoAlign(root)
    with pytest.raises(BenchError, match="checkpoint-7 "):
        VideoAlign(root, step=7)


def test_without_its_own_tokenizer_a_checkpoint_takes_the_base_s(copy):
    root = copy()
    expected = VideoAlign(root).score(noise(), PROMPTS[:3], 8.0)
    shutil.rmtree(root / "checkpoint-11352" / "tokenizer")
    np.testing.assert_array_equal(table(VideoAlign(root).score(noise(), PROMPTS[:3], 8.0)), table(expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("<|MQ_reward|>", ""), "out of order"),
        (lambda t: t + "<|TA_reward|>", "out of order"),
        (lambda t: t.replace("{text_prompt}", ""), "exactly one"),
        (lambda t: t.replace("{text_prompt}", "{caption}"), "exactly one"),
        (lambda t: "{text_prompt}" + t.replace("{text_prompt}", ""), "out of order"),
        (lambda t: t + "}", "not a format string"),
    ],
)
def test_a_malformed_template_is_refused(tmp_path, change, message):
    path = tmp_path / "template.txt"
    path.write_bytes(change(TEMPLATE.read_bytes().decode()).encode())
    with pytest.raises(BenchError, match=message):
        VideoAlign(FIXTURES / "VideoReward", BASE, prompt_template=path)


@pytest.mark.hazard(10)
def test_blanks_of_the_template_count(copy):
    root = copy()
    before = VideoAlign(root).score(noise(), PROMPTS[:3], 8.0)
    lines = (root / "prompt_template.txt").read_bytes().split(b"\n")
    (root / "prompt_template.txt").write_bytes(b"\n".join(line.rstrip() for line in lines))
    after = VideoAlign(root).score(noise(), PROMPTS[:3], 8.0)
    assert np.abs(table(after) - table(before)).max() > 0.01


@pytest.mark.hazard(10)
def test_the_official_checkpoint_takes_the_official_template_only(copy, monkeypatch):
    root = copy()
    weights = hashlib.sha256((root / "checkpoint-11352" / "model.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(scorer, "OFFICIAL_WEIGHTS", weights)
    with pytest.raises(BenchError, match="is not the one"):
        VideoAlign(root)
    monkeypatch.setattr(scorer, "OFFICIAL_TEMPLATE", hashlib.sha256(TEMPLATE.read_bytes()).hexdigest())
    VideoAlign(root)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "non_lora_state_dict.pth"])
def test_an_incomplete_adapter_is_refused(tmp_path, file):
    root = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "VideoReward-adapter", root)
    path = root / "checkpoint-500" / file
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    state.pop(next(name for name in state if name.endswith("rm_head.weight") or "lora_A" in name))
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(BenchError, match="lacks"):
        VideoAlign(root, BASE, prompt_template=TEMPLATE)


def test_an_adapter_that_contradicts_its_config_is_refused(tmp_path):
    root = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "VideoReward-adapter", root)
    path = root / "checkpoint-500" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 16}))
    with pytest.raises(BenchError, match="contradicts"):
        VideoAlign(root, BASE, prompt_template=TEMPLATE)


def test_newer_key_names_and_merged_weights_load_alike(copy):
    def newer(state):
        for name in list(state):
            new = name
            if name.startswith(f"{PREFIX}visual."):
                new = name.replace(f"{PREFIX}visual.", f"{PREFIX}model.visual.")
            elif name.startswith(f"{PREFIX}model."):
                new = name.replace(f"{PREFIX}model.", f"{PREFIX}model.language_model.")
            state[new] = state.pop(name)

    def merge(state):
        for name in [name for name in state if "base_layer.weight" in name]:
            a, b = (state.pop(name.replace("base_layer", f"lora_{side}.default")).float() for side in "AB")
            state[name.replace(".base_layer", "")] = state.pop(name).float() + 2 * (b @ a)
        for name in list(state):
            state[name.replace(".base_layer", "").removeprefix(PREFIX)] = state.pop(name)

    expected = table(VideoAlign(copy()).score(noise(), PROMPTS[:3], 8.0))
    np.testing.assert_array_equal(table(VideoAlign(copy(newer)).score(noise(), PROMPTS[:3], 8.0)), expected)
    plain = VideoAlign(copy(merge, lambda config: config["peft_lora_config"].update(lora_enable=False)))
    np.testing.assert_array_equal(table(plain.score(noise(), PROMPTS[:3], 8.0)), expected)


@pytest.mark.hazard(20)
def test_a_head_of_three_is_read_on_its_diagonal(copy):
    def widen(state):
        state[f"{PREFIX}rm_head.weight"] = torch.cat([scale * state[f"{PREFIX}rm_head.weight"] for scale in (1, 2, 4)])

    one = VideoAlign(copy()).score(noise(), PROMPTS[:3], 8.0)
    three = VideoAlign(copy(widen, lambda config: config["model_config"].update(output_dim=3)))
    scores = table(three.score(noise(), PROMPTS[:3], 8.0), "_raw")
    np.testing.assert_allclose(scores, table(one, "_raw") * [1, 2, 4], rtol=1e-5)
