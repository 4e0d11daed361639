"""Silent ways to wrong numbers of VideoReward, and the hazard table of docs/evaluators/hazards.md is complete."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2VLModel

from bench.api import BenchError
from bench.core.provenance import ROOT
from bench.suite.load import load_variants
from evaluators.videoalign.inputs import MIN_FRAME_PIXELS, Text
from evaluators.videoalign.scorer import VideoAlign
from tests.helpers.paths import FIXTURES_ROOT, TESTS

FIXTURES = FIXTURES_ROOT / "videoalign"
BASE, TEMPLATE = FIXTURES / "tiny-qwen2-vl", FIXTURES / "prompt_template.txt"
PREFIX = "base_model.model."
TABLE = ROOT / "docs" / "evaluators" / "hazards.md"


def load(root: Path = FIXTURES / "VideoReward", **options: Any) -> VideoAlign:
    return VideoAlign(root, BASE, prompt_template=TEMPLATE, device="cpu", **options)


def noise(b: int = 2, f: int = 13, side: int = 16) -> Tensor:
    return torch.rand(b, 3, f, side, side, generator=torch.Generator().manual_seed(0))


def merged() -> dict[str, Tensor]:
    """The file's weights under the names of today's Qwen2VLModel, LoRA (rank 4, alpha 8) merged in float32."""
    state = torch.load(FIXTURES / "VideoReward/checkpoint-11352/model.pth", weights_only=True)
    weights = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if "lora_" in name or name == "lm_head.weight":
            continue
        weight = value.float()
        if name.endswith("base_layer.weight"):
            a, b = (state[key.replace("base_layer", f"lora_{side}.default")].float() for side in "AB")
            weight = weight + 2.0 * (b @ a)
        name = re.sub(r"^model\.", "language_model.", name.replace(".base_layer", ""))
        weights[name if name == "rm_head.weight" else f"backbone.{name}"] = weight
    return weights


@pytest.mark.hazard(2)
@pytest.mark.hazard(4)
@pytest.mark.hazard(5)
def test_every_parameter_is_the_file_s_and_none_is_rounded() -> None:
    """The base's config.json says bfloat16; a parameter made in it would round the merged weights."""
    model, expected = load()._model, merged()
    assert json.loads((BASE / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert type(model.backbone) is Qwen2VLModel  # a subclass would keep its language model at random values
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    rounded = [name for name, value in expected.items() if not torch.equal(value, value.bfloat16().float())]
    assert len(rounded) == 14  # the seven merged maps of both layers


@pytest.mark.hazard(6)
def test_the_frame_rate_decides_what_is_seen_and_is_recorded() -> None:
    evaluator, video = load(), noise(1, f=53)
    seen = {}
    for fps in (8.0, 24.0):
        evaluator.score(video, ["a cat"], fps)
        row = evaluator.details().iloc[0]
        assert (row["total_frames"], row["fps"]) == (53, fps)
        seen[fps] = len(row["frame_indices"])
    assert seen == {8.0: 14, 24.0: 4}


@pytest.mark.hazard(11)
def test_three_reward_tokens_in_a_prompt_are_refused() -> None:
    """One too many raises in the original; three read TA at the wrong place without an error."""
    with pytest.raises(BenchError, match="special token"):
        load().score(noise(1), ["<|VQ_reward|><|MQ_reward|><|TA_reward|>"], 8.0)


@pytest.mark.hazard(17)
@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_tied_head_that_differs_from_the_embeddings_is_refused(tmp_path: Path, name: str) -> None:
    root = Path(shutil.copytree(FIXTURES / "VideoReward", tmp_path / "copy"))
    path = root / "checkpoint-11352" / "model.pth"
    state = torch.load(path, weights_only=True)
    state[f"{PREFIX}{name}.weight"] = state[f"{PREFIX}{name}.weight"].clone()
    state[f"{PREFIX}{name}.weight"][-1, -1] += 1
    torch.save(state, path)
    with pytest.raises(BenchError, match="tied lm_head and embed_tokens that differ"):
        load(root)


@pytest.mark.hazard(18)
def test_enlarged_frames_are_recorded() -> None:
    evaluator = load()
    for side, expected in ((16, 336), (448, 448)):
        evaluator.score(noise(1, f=4, side=side), ["a cat"], 8.0)
        assert evaluator.details()[["height", "width"]].to_numpy().tolist() == [[expected, expected]]
    assert evaluator.fingerprint()["min_frame_pixels"] == str(MIN_FRAME_PIXELS) == "100352"


@pytest.mark.hazard(22)
@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_reports_a_metric_that_it_does_not_train(path: Path) -> None:
    for suite in load_variants(path):
        assert set(suite.evaluation.evaluators) - set(suite.reward)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], object]], Path]:
    """A copy of the adapter layout with its non_lora_state_dict.pth changed."""

    def make(change: Callable[[dict[str, Tensor]], object]) -> Path:
        root = Path(shutil.copytree(FIXTURES / "VideoReward-adapter", tmp_path / "adapter"))
        path = root / "checkpoint-500" / "non_lora_state_dict.pth"
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)
        return root

    return make


def drop(part: str) -> Callable[[dict[str, Tensor]], object]:
    def change(state: dict[str, Tensor]) -> None:
        del state[next(name for name in state if part in name)]

    return change


@pytest.mark.hazard(5)
@pytest.mark.parametrize("part", ["visual.blocks.0", "visual.patch_embed", "visual.merger", "embed_tokens", "rm_head"])
def test_a_hole_in_the_adapter_layout_is_not_filled_from_the_base(adapter: Any, part: str) -> None:
    with pytest.raises(BenchError, match=rf"lacks '[^']*{part}.*base model's value would be used"):
        load(adapter(drop(part)))


def test_an_untrained_vision_tower_comes_from_the_base(adapter: Any) -> None:
    def frozen(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if "visual." in name]:
            del state[name]

    model = load(adapter(frozen))._model
    base = load_file(BASE / "model.safetensors")
    name = "visual.blocks.0.attn.qkv.weight"
    assert torch.equal(model.backbone.state_dict()[name], base[name].float())


def test_a_tokenizer_without_vision_tokens_is_refused(tmp_path: Path) -> None:
    """They would be read as plain text, without an error."""
    stored = json.loads((FIXTURES / "VideoReward/checkpoint-11352/tokenizer/tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "<|vision_end|>"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(stored))
    with pytest.raises(BenchError, match=r"vision_end"):
        Text(TEMPLATE.read_bytes().decode(), path, TEMPLATE)


@pytest.mark.parametrize("field", ["{text_prompt!r}", "{text_prompt:>20}"])
def test_a_template_that_alters_the_prompt_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "template.txt"
    path.write_bytes(TEMPLATE.read_bytes().replace(b"{text_prompt}", field.encode()))
    with pytest.raises(BenchError, match="exactly one"):
        VideoAlign(FIXTURES / "VideoReward", BASE, prompt_template=path)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("inference_config", "VQ_mean", float("nan"), "a number at inference_config.VQ_mean that is not finite"),
        ("inference_config", "VQ_std", 0.0, "VQ_std, which must be positive"),
        ("inference_config", "VQ_std", "wide", "could not convert"),
        ("peft_lora_config", "lora_r", "four", "invalid literal"),
        ("data_config", "fps", -2.0, "sample_fps=-2.0: set it to a finite value above 0"),
        ("data_config", "max_frame_pixels", 0, "max_frame_pixels=0: set it to a finite value above 0"),
    ],
)
def test_odd_constants_are_refused(tmp_path: Path, section: str, key: str, value: object, message: str) -> None:
    root = Path(shutil.copytree(FIXTURES / "VideoReward", tmp_path / "copy"))
    stored = json.loads((root / "model_config.json").read_text())
    stored[section][key] = value
    (root / "model_config.json").write_text(json.dumps(stored))
    with pytest.raises(BenchError, match=re.escape(message)):
        load(root)


@pytest.mark.parametrize("option", ["sample_fps", "num_frames", "max_frame_pixels"])
def test_odd_overrides_are_refused(option: str) -> None:
    with pytest.raises(BenchError, match=f"{option}=-1: set it to a finite value above 0"):
        load(**{option: -1})


def hazard_rows() -> dict[int, tuple[str, str]]:
    """Number to (guard, tests) of the table's rows."""
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", TABLE.read_text(encoding="utf-8"), re.M)
    return {int(number): (guard.strip(), tests.strip()) for number, guard, tests in rows}


def marked(file: Path) -> dict[str, set[int]]:
    """Test function to the hazards that it is decorated with."""
    marks: dict[str, set[int]] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            calls = [call for call in node.decorator_list if isinstance(call, ast.Call)]
            numbers = [call.args for call in calls if ast.unparse(call.func) == "pytest.mark.hazard"]
            marks[node.name] = {ast.literal_eval(argument) for arguments in numbers for argument in arguments}
    return marks


def test_the_hazard_table_names_tests_that_exist_and_carry_its_numbers() -> None:
    rows = hazard_rows()
    assert sorted(rows) == list(range(1, 23))
    tests = {file.relative_to(TESTS).as_posix(): marked(file) for file in TESTS.rglob("test_*.py")}
    for number, (guard, references) in rows.items():
        assert guard, number
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", references)
        assert named, f"hazard {number} names no test"
        for file, test in named:
            assert number in tests[file].get(test, set()), f"{file}::{test} does not carry hazard {number}"


def test_every_marked_test_stands_in_the_table() -> None:
    rows = hazard_rows()
    for file in TESTS.rglob("test_*.py"):
        name = file.relative_to(TESTS).as_posix()
        for test, numbers in marked(file).items():
            for number in numbers:
                references = rows[number][1]
                assert f"`{name}::{test}`" in references, f"{name}::{test} and hazard {number}"
