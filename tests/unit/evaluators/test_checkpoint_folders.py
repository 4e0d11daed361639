"""Checkpoint folders as other programs and checkouts leave them: read right, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.api import BenchError
from bench.suite.paths import resolve_parameters
from bench.suite.schema import NANO
from evaluators.clip.frames import ImageRule, read_image_rule
from evaluators.clip.open_clip import check_activation, make_rule, read_open_config
from evaluators.clipscore import ClipScore
from evaluators.common import weight_files
from evaluators.videoalign.checkpoint import read_config
from evaluators.videoalign.inputs import read_template

CLIP = Path(resolve_parameters(NANO["evaluator_params"]["clipscore"])["checkpoint"])
REWARD = Path(resolve_parameters(NANO["evaluator_params"]["videoalign"])["checkpoint"])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    shutil.copytree(CLIP, tmp_path / "clip")
    return tmp_path / "clip"


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cosine(folder: Path) -> float:
    video = torch.rand(1, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    scores = ClipScore(folder, device="cpu").score(video, ["a red circle"], 8.0)
    return float(scores["clip_cosine"][0])


def test_a_folder_saved_by_transformers_5_is_read(clip: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizerFast

    processor = CLIPProcessor(CLIPImageProcessor.from_pretrained(clip), CLIPTokenizerFast.from_pretrained(clip))
    old = json.loads((clip / "preprocessor_config.json").read_text())
    tokenizer = (clip / "tokenizer.json").read_bytes()
    (clip / "preprocessor_config.json").unlink()
    processor.save_pretrained(clip)
    (clip / "tokenizer.json").write_bytes(tokenizer)
    assert not (clip / "preprocessor_config.json").exists()
    assert json.loads((clip / "processor_config.json").read_text())["image_processor"]["resample"] == old["resample"]
    assert cosine(clip) == cosine(CLIP)


@pytest.mark.parametrize("content", [{}, {"image_processor": None}, {"image_processor": [1]}])
def test_a_processor_without_an_image_part_is_refused(clip: Path, content: dict[str, Any]) -> None:
    (clip / "preprocessor_config.json").unlink()
    (clip / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=r"processor_config\.json has no image_processor"):
        read_image_rule(clip, 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": "large"},
        {"size": {"shortest_edge": "x"}},
        {"crop_size": None},
        {"image_mean": 0.5},
        {"image_mean": ["a", "b", "c"]},
        {"image_std": [0.1, 0.2]},
        {"image_std": [0.1, 0.2, 0]},
    ],
    ids=str,
)
def test_image_settings_of_a_wrong_type_are_refused(clip: Path, wrong: dict[str, Any]) -> None:
    edit(clip / "preprocessor_config.json", lambda content: content.update(wrong))
    with pytest.raises(BenchError, match=r"preprocessor_config\.json .*: use a CLIP processor"):
        read_image_rule(clip, json.loads((clip / "config.json").read_text())["vision_config"]["image_size"])


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("vision_config", {"hidden_size": "wide"}),
        ("vision_config", {"patch_size": 0}),
        ("text_config", {"num_attention_heads": 7}),
        ("text_config", {"hidden_act": "unknown"}),
    ],
)
def test_a_configuration_that_is_no_model_is_refused(clip: Path, part: str, wrong: dict[str, Any]) -> None:
    edit(clip / "config.json", lambda content: content[part].update(wrong))
    with pytest.raises(BenchError, match=r"config\.json does not describe a model"):
        ClipScore(clip, device="cpu")


def shard(folder: Path) -> dict[str, str]:
    """Split the weights into two files and write their index; returns the index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    (folder / "model.safetensors").unlink()
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / file)
    index = {name: file for file, own in parts.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def test_shards_are_read_whole_or_refused(clip: Path) -> None:
    index = shard(clip)
    assert cosine(clip) == cosine(CLIP)
    (clip / "model-2.safetensors").unlink()
    with pytest.raises(BenchError, match=r"lacks model-2\.safetensors \(1 of 2 weight files\): fetch it again"):
        weight_files(clip)
    elsewhere = {name: "../" + file for name, file in index.items()}
    (clip / "model.safetensors.index.json").write_text(json.dumps({"weight_map": elsewhere}))
    with pytest.raises(BenchError, match="which is no file of its folder"):
        weight_files(clip)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["model-1.safetensors"]}], ids=str)
def test_an_index_without_weights_is_refused(clip: Path, content: dict[str, Any]) -> None:
    (clip / "model.safetensors").unlink()
    (clip / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=r"index\.json names no weights \(weight_map\): fetch it again"):
        weight_files(clip)


@pytest.mark.parametrize("kind", ["no bytes", "no tensors"])
def test_an_empty_weight_file_is_refused(clip: Path, kind: str) -> None:
    if kind == "no bytes":
        (clip / "model.safetensors").write_bytes(b"")
    else:
        save_file({}, clip / "model.safetensors")
    with pytest.raises(BenchError, match=r"cannot be read|lacks weight"):
        ClipScore(clip, device="cpu")


@pytest.mark.parametrize(
    ("mark", "name"), [("\r\n", "carriage returns"), ("\ufeff", "a byte-order mark")], ids=["CRLF", "BOM"]
)
@pytest.mark.hazard(10)
def test_a_template_changed_by_a_checkout_is_refused(tmp_path: Path, mark: str, name: str) -> None:
    text = (REWARD / "prompt_template.txt").read_bytes().decode()
    changed = text.replace("\n", mark) if mark == "\r\n" else mark + text
    path = tmp_path / "prompt_template.txt"
    path.write_bytes(changed.encode())
    with pytest.raises(BenchError, match=f"holds {name}, which would change the scores"):
        read_template(path)
    path.write_bytes(text.encode())
    assert read_template(path) == text


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("data_config", {"fps": "2.0"}),
        ("data_config", {"num_frames": True}),
        ("data_config", {"max_frame_pixels": float("inf")}),
        ("data_config", {"eval_dim": 3}),
        ("peft_lora_config", {"lora_r": 0}),
        ("peft_lora_config", {"lora_alpha": "16"}),
    ],
    ids=str,
)
def test_videoreward_settings_of_a_wrong_type_are_refused(tmp_path: Path, part: str, wrong: dict[str, Any]) -> None:
    content = json.loads((REWARD / "model_config.json").read_text())
    content[part] |= wrong
    (tmp_path / "model_config.json").write_text(json.dumps(content))
    with pytest.raises(
        BenchError,
        match=r"model_config\.json (lacks a valid|holds a number at data_config\.max_frame_pixels that is not finite)",
    ):
        read_config(tmp_path)


def test_open_clip_settings_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    for wrong in ({"mean": 0.5}, {"std": ["a", "b", "c"]}, {"std": [0.2, 0.2, 0.0]}):
        with pytest.raises(BenchError, match="three means and three positive stds"):
            make_rule(ImageRule, 16, wrong, "a config")
    with pytest.raises(BenchError, match="has quick_gelu 'false': write true or false"):
        check_activation({"quick_gelu": "false"}, None, "a config")
    path = tmp_path / "open_clip_config.json"
    path.write_text(
        json.dumps({"model_cfg": {"vision_cfg": {"image_size": 16}, "text_cfg": {}}, "preprocess_cfg": [1]})
    )
    with pytest.raises(BenchError, match="has a preprocess_cfg that is no mapping"):
        read_open_config(path, tmp_path / "weights.pt")
