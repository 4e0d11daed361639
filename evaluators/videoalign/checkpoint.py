"""Reads a VideoReward checkpoint into Qwen2-VL and a linear reward head.

Two layouts exist: `model.pth`, a full PEFT state dict (the published one), and `adapter_model.safetensors` with
`non_lora_state_dict.pth`, which needs the base model's weights. Key names are those of transformers 4.45 or newer.
Every key of the files must name a parameter, and every parameter needs a key. LoRA is merged in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.api import BenchError, read_json
from evaluators.common import building_model, load_exact, merge_disjoint, read_weights, weight_files
from evaluators.videoalign.inputs import MIN_FRAME_PIXELS
from evaluators.videoalign.network import RewardModel

if TYPE_CHECKING:
    from transformers import Qwen2VLConfig


AXES = ("VQ", "MQ", "TA")
LORA_PER_LAYER = 7
"""Linear maps with LoRA in every decoder layer: q, k, v, o, gate, up, down."""

_PREFIXES = (
    (re.compile(r"^model\.visual\."), "visual."),
    (re.compile(r"^model\.language_model\."), "language_model."),
    (re.compile(r"^model\.(?=(embed_tokens|layers|norm)\.)"), "language_model."),
)
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight$")
_UNKNOWN = ("lora_", "modules_to_save", "original_module")


@dataclass(frozen=True)
class RewardConfig:
    """Settings of `model_config.json`: sampling, head, LoRA and normalisation of the scores."""

    sample_fps: float | None
    """Frames sampled per second of video."""
    num_frames: int | None
    """Number of sampled frames, in place of `sample_fps`."""
    max_frame_pixels: int
    """Largest area of a frame, pixels."""
    min_frame_pixels: int
    """Smallest area of a frame, pixels; an optional key, which the official files do not have."""
    output_dim: int
    """1: one output, read at each reward token; 3: output j is read at token j."""
    lora: bool
    lora_r: int
    lora_scale: float
    """Factor of B A when LoRA is merged."""
    norm: Mapping[str, tuple[float, float]] | None
    """Mean and standard deviation of the raw scores per axis on the authors' validation set, if stated."""


def read_config(checkpoint: Path) -> RewardConfig:
    """Settings of `model_config.json`; another kind of model than the published one is an error."""
    path = checkpoint / "model_config.json"
    config = read_json(path)
    try:
        data, model, lora = config["data_config"], config["model_config"], config["peft_lora_config"]
        wanted = {
            "data_config.prompt_template_type": (data["prompt_template_type"], "detailed_special"),
            "data_config.sample_type": (data["sample_type"], "uniform"),
            "data_config.eval_dim": (list(data["eval_dim"]), list(AXES)),
            "model_config.reward_token": (model["reward_token"], "special"),
            "model_config.use_special_tokens": (model["use_special_tokens"], True),
        }
        wrong = next(((name, got, want) for name, (got, want) in wanted.items() if got != want), None)
        if wrong is not None:
            raise BenchError(
                f"{path}: {wrong[0]} is {wrong[1]!r}, only {wrong[2]!r} is supported: use a VideoReward checkpoint."
            )
        if model["output_dim"] not in (1, 3):
            raise BenchError(
                f"{path}: model_config.output_dim is {model['output_dim']!r}, only 1 and 3 are supported."
            )
        rank = int(lora["lora_r"])
        return RewardConfig(
            sample_fps=_number(data, "fps"),
            num_frames=_number(data, "num_frames"),
            max_frame_pixels=int(data["max_frame_pixels"]),
            min_frame_pixels=int(data.get("min_frame_pixels", MIN_FRAME_PIXELS)),
            output_dim=model["output_dim"],
            lora=bool(lora["lora_enable"]),
            lora_r=rank,
            lora_scale=lora["lora_alpha"] / (math.sqrt(rank) if lora["use_rslora"] else rank),
            norm=_norm(config.get("inference_config")),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise BenchError(f"{path} lacks a valid {error}: use the file that came with the checkpoint.") from None


def _number(section: Mapping[str, Any], key: str) -> Any:
    """A number that may be null."""
    value = section[key]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise KeyError(f"{key}, which must be a number")
    return value


def _norm(section: Mapping[str, float] | None) -> dict[str, tuple[float, float]] | None:
    """Mean and positive standard deviation per axis; None if the checkpoint has none."""
    if not section:
        return None
    norm = {axis: (float(section[f"{axis}_mean"]), float(section[f"{axis}_std"])) for axis in AXES}
    for axis, (mean, std) in norm.items():
        if not math.isfinite(mean):
            raise KeyError(f"{axis}_mean, which must be finite")
        if not 0 < std < math.inf:
            raise KeyError(f"{axis}_std, which must be positive")
    return norm


def find_step(checkpoint: Path, step: int | None) -> Path:
    """Folder `checkpoint-N` with the requested N, or with the highest one (numerically)."""
    if not checkpoint.is_dir():
        raise BenchError(
            f"checkpoint folder {checkpoint} does not exist: pass the folder that holds model_config.json."
        )
    steps = {
        int(match[1]): folder
        for folder in checkpoint.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name))
    }
    if not steps or (step is not None and step not in steps):
        raise BenchError(
            f"{checkpoint} holds no checkpoint-{'N' if step is None else step} folder (found steps {sorted(steps)}): "
            "name one that exists."
        )
    return steps[max(steps) if step is None else step]


def rename(key: str) -> str:
    """A checkpoint's key as a name of `Qwen2VLModel`; `rm_head.*` and `lm_head.*` stay."""
    name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
    for pattern, new in _PREFIXES:
        name, hits = pattern.subn(new, name)
        if hits:
            break
    return name


def split_lora(state: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Plain weights by target name, and LoRA factors by the name of the weight they change."""
    plain: dict[str, Tensor] = {}
    lora: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = _LORA.match(key)
        if match is None and any(word in key for word in _UNKNOWN):
            raise BenchError(
                f"checkpoint {source} holds '{key}', a kind of adapter that is not supported: merge it first."
            )
        if match is None:
            target, name = plain, rename(key)
        else:
            target, name = lora.setdefault(rename(match["module"]) + ".weight", {}), match["side"]
        if name in target:
            raise BenchError(f"checkpoint {source} has two weights with one name, the second is '{key}': keep one.")
        target[name] = value
    return plain, lora


def merge_lora(
    weights: dict[str, Tensor],
    lora: Mapping[str, Mapping[str, Tensor]],
    config: RewardConfig,
    layers: int,
    source: Path,
) -> None:
    """W += scale * B A in float32, in place; every factor needs its partner and its base weight."""
    expected = LORA_PER_LAYER * layers if config.lora else 0
    if len(lora) != expected:
        raise BenchError(
            f"checkpoint {source} has LoRA factors for {len(lora)} weights, not {expected}: use a complete checkpoint."
        )
    for name, factors in lora.items():
        if set(factors) != {"A", "B"} or name not in weights:
            raise BenchError(
                f"LoRA of '{name}' in checkpoint {source} lacks a factor or a base: use a complete checkpoint."
            )
        a, b, base = factors["A"].float(), factors["B"].float(), weights[name]
        if a.shape != (config.lora_r, base.shape[1]) or b.shape != (base.shape[0], config.lora_r):
            raise BenchError(
                f"LoRA of '{name}' in checkpoint {source} has shapes {tuple(a.shape)} and {tuple(b.shape)}, not rank "
                f"{config.lora_r} on {tuple(base.shape)}: use the model_config.json of this checkpoint."
            )
        weights[name] = base + config.lora_scale * (b @ a)


def used_files(step: Path, base_model: Path) -> list[Path]:
    """The weight files that the scores depend on."""
    if (step / "model.pth").is_file():
        return [step / "model.pth"]
    files = [step / "adapter_model.safetensors", step / "non_lora_state_dict.pth"]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise BenchError(f"{step} holds neither model.pth nor {missing.name}: use a complete VideoReward checkpoint.")
    return [*files, *weight_files(base_model)]


def read_reward_weights(step: Path, base_model: Path, config: RewardConfig, text_config: Any) -> dict[str, Tensor]:
    """All weights in float32 under their names in `Qwen2VLModel`, with `rm_head.weight`, LoRA merged."""
    files = used_files(step, base_model)
    if len(files) == 1:
        plain, lora = split_lora(read_weights(files[0]), files[0])
    else:
        _check_adapter(step, config)
        base, none = split_lora(merge_disjoint([read_weights(file) for file in files[2:]], base_model), base_model)
        base.pop("lm_head.weight", None)
        adapter, lora = split_lora(read_weights(files[0]), files[0])
        other, more = split_lora(read_weights(files[1]), files[1])
        if none or more or adapter:
            raise BenchError(
                f"{step} mixes LoRA factors and other weights within its files: use the files as they were saved."
            )
        _check_complete(base, other, step)
        plain = base | other
    weights = {name: value.float() for name, value in plain.items()}
    merge_lora(weights, lora, config, text_config.num_hidden_layers, step)
    return weights


def _check_complete(base: Mapping[str, Tensor], other: Mapping[str, Tensor], step: Path) -> None:
    """Reject missing weights that were trained beside LoRA: they would silently keep the base model's values.

    Head and embeddings are always trained; the vision tower and its merger are each trained completely or not at all.
    """
    needed = {"rm_head.weight", "language_model.embed_tokens.weight"}
    for group in (
        {name for name in base if name.startswith("visual.merger.")},
        {name for name in base if name.startswith("visual.") and not name.startswith("visual.merger.")},
    ):
        if group & other.keys():
            needed |= group
    missing = sorted(needed - other.keys())
    if missing:
        raise BenchError(
            f"checkpoint {step} lacks '{missing[0]}' in non_lora_state_dict.pth ({len(missing)} missing), for which "
            "the base model's value would be used: use a complete checkpoint."
        )


def _check_adapter(step: Path, config: RewardConfig) -> None:
    path = step / "adapter_config.json"
    if not path.is_file():
        return
    adapter = read_json(path)
    try:
        rank = adapter.get("r", config.lora_r)
        scale = adapter.get("lora_alpha", 0) / (math.sqrt(rank) if adapter.get("use_rslora") else rank)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BenchError(f"{path} lacks a valid r or lora_alpha ({error}): use the file of these weights.") from None
    extra = [name for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if adapter.get(name)]
    if rank != config.lora_r or not math.isclose(scale, config.lora_scale) or extra:
        reason = ", ".join(extra) or "rank or alpha"
        raise BenchError(f"{path} contradicts model_config.json ({reason}): use the files that belong together.")


def build(step: Path, base_model: Path, config: RewardConfig, vocabulary: int) -> RewardModel:
    """The model in float32; `vocabulary`: number of tokens of the tokenizer, the reward tokens included."""
    from transformers import Qwen2VLModel
    from transformers.initialization import no_init_weights

    qwen = read_base_config(base_model)
    weights = read_reward_weights(step, base_model, config, qwen.text_config)
    embed, head = weights.get("language_model.embed_tokens.weight"), weights.pop("lm_head.weight", None)
    if embed is None:
        raise BenchError(f"checkpoint {step} lacks the weight 'model.embed_tokens.weight': use a complete checkpoint.")
    if head is not None and qwen.tie_word_embeddings and not torch.equal(head, embed):
        raise BenchError(
            f"checkpoint {step} has tied lm_head and embed_tokens that differ: save them equal, or drop lm_head."
        )
    if len(embed) != vocabulary:
        raise BenchError(
            f"checkpoint {step} has {len(embed)} embeddings, not {vocabulary}: use the tokenizer that belongs to it."
        )
    qwen.text_config.vocab_size = vocabulary
    with building_model(base_model / "config.json"), no_init_weights():
        model = RewardModel(Qwen2VLModel(qwen), config.output_dim, qwen.text_config.hidden_size).float()
    named = {name if name.startswith("rm_head.") else f"backbone.{name}": value for name, value in weights.items()}
    load_exact(model, named, step)
    return model


def read_base_config(base_model: Path) -> Qwen2VLConfig:
    """The base model's `config.json` with every dtype set to float32, so that no parameter is created in bfloat16."""
    from transformers import Qwen2VLConfig

    path = base_model / "config.json"
    kind = read_json(path).get("model_type")
    if kind != "qwen2_vl":
        raise BenchError(f"{path} describes a '{kind}' model: VideoReward needs Qwen2-VL, 'qwen2_vl'.")
    with building_model(path):
        config = Qwen2VLConfig.from_pretrained(str(base_model), local_files_only=True)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
    vision = config.vision_config
    if (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) != (14, 2, 2):
        raise BenchError(
            f"{path}: patches other than 14 pixels, 2 frames, merged 2 x 2 are not supported: use a Qwen2-VL base."
        )
    return config
