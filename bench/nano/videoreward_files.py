"""The nano VideoReward on disk: VideoAlign's layout with the key names of its release, and a tiny Qwen2-VL base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.nano import world
from bench.nano.recipe import CLIP_MEAN, CLIP_STD, write_json
from bench.nano.scored_clips import AXES
from bench.nano.vocabulary import save_qwen_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2VLConfig


REWARD_TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)
TEMPLATE = (
    "Grade the video.\n"
    "Visual quality: <|VQ_reward|>\n"
    "Motion quality: <|MQ_reward|>\n"
    "Text alignment - {text_prompt}: <|TA_reward|>\n"
)
"""The evaluation text: VQ and MQ are read before the prompt, TA after it."""

SIDE = 56
"""Frames are enlarged to this many pixels per side: 4 x 4 patches, 2 x 2 merged tokens."""

QWEN: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "torch_dtype": "float32",
    "vision_config": {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.05,
    },
}
LORA = {"r": 4, "alpha": 8}
"""Rank and alpha of the LoRA factors."""
_LINEAR = re.compile(r"language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")
_TOKENS = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}


def save_tokenizers(checkpoint: Path, base: Path) -> PreTrainedTokenizerBase:
    """The base's tokenizer and the checkpoint's, which has the three reward tokens in addition; returns the latter."""
    chat = "system\nYou are a helpful assistant.\nuser\nassistant\n"
    texts = [*world.all_captions().texts(), chat, TEMPLATE]
    for token in REWARD_TOKENS:
        texts[-1] = texts[-1].replace(token, "")
    texts[-1] = texts[-1].replace("{text_prompt}", "")
    save_qwen_tokenizer(base, texts)
    return save_qwen_tokenizer(checkpoint / "tokenizer", texts, REWARD_TOKENS)


def base_config(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """`config.json` of the base, flat as Qwen2-VL's; its vocabulary lacks the reward tokens."""
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    return {**QWEN, **ids, "vocab_size": len(tokenizer) - len(REWARD_TOKENS)}


def save_base(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The base's configuration, preprocessing and chat template; the checkpoint holds all weights."""
    config = base_config(tokenizer)
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "min_pixels": SIDE**2,
        "max_pixels": SIDE**2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "chat_template.json", {"chat_template": tokenizer.chat_template})
    write_json(folder / "generation_config.json", {name: config[name] for name in ("bos_token_id", "eos_token_id")})


def model_config(norm: dict[str, float]) -> dict[str, Any]:
    """`model_config.json`; `norm`: mean and standard deviation of the raw scores per axis on reference clips."""
    return {
        "data_config": {
            "fps": world.FPS,
            "num_frames": None,
            "min_frame_pixels": SIDE**2,
            "max_frame_pixels": SIDE**2,
            "eval_dim": list(AXES),
            "prompt_template_type": "detailed_special",
            "sample_type": "uniform",
        },
        "training_args": {},
        "model_config": {
            "output_dim": 1,
            "use_special_tokens": True,
            "reward_token": "special",
            "torch_dtype": "float32",
            "loss_type": "bt",
        },
        "peft_lora_config": {
            "lora_enable": True,
            "vision_lora": False,
            "lora_r": LORA["r"],
            "lora_alpha": LORA["alpha"],
            "lora_dropout": 0.0,
            "lora_namespan_exclude": ["lm_head", "rm_head", "embed_tokens", "visual"],
            "lora_modules_to_save": None,
            "lora_task_type": "CAUSAL_LM",
            "use_rslora": False,
            "num_lora_modules": -1,
        },
        "inference_config": norm,
    }


def to_release(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A PEFT state dict under the release's key names.

    LoRA holds the best rank-r part of each linear map of the decoder and the base holds the rest. Their sum is the
    trained map.
    """
    state: dict[str, Tensor] = {}
    scale = LORA["alpha"] / LORA["r"]
    for name, value in weights.items():
        key = "base_model.model." + re.sub(r"^language_model\.", "model.", name)
        if not _LINEAR.match(name):
            state[key] = value.clone()
            continue
        u, s, v = torch.linalg.svd(value.double(), full_matrices=False)
        root = (s[: LORA["r"]] / scale).sqrt()
        a, b = (root[:, None] * v[: LORA["r"]]).float(), (u[:, : LORA["r"]] * root).float()
        module = key.removesuffix(".weight")
        state[f"{module}.base_layer.weight"] = value - scale * (b @ a)
        state[f"{module}.lora_A.default.weight"], state[f"{module}.lora_B.default.weight"] = a, b
    biases = [key for key in state if key.endswith("_proj.bias") and ".layers." in key]
    for key in biases:
        state[key.removesuffix(".bias") + ".base_layer.bias"] = state.pop(key)
    state["base_model.model.lm_head.weight"] = state["base_model.model.model.embed_tokens.weight"].clone()
    return state


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_release`: LoRA merged, names of `RewardNetwork`."""
    weights: dict[str, Tensor] = {}
    scale = LORA["alpha"] / LORA["r"]
    for key, value in state.items():
        if "lora_" in key or "lm_head" in key:
            continue
        name = re.sub(r"^model\.", "language_model.", key.removeprefix("base_model.model."))
        if key.endswith(".base_layer.weight"):
            module = key.removesuffix(".base_layer.weight")
            a, b = (state[f"{module}.lora_{side}.default.weight"] for side in "AB")
            value = value + scale * (b @ a)
        weights[name.replace(".base_layer.", ".")] = value
    return weights


class RewardNetwork(nn.Module):
    """Qwen2-VL's towers and a linear reward head, with the names that `to_release` expects."""

    def __init__(self, config: Qwen2VLConfig):
        from transformers import Qwen2VLModel

        super().__init__()
        qwen = Qwen2VLModel(config)
        self.visual, self.language_model = qwen.visual, qwen.language_model
        self.rm_head = nn.Linear(config.text_config.hidden_size, 1, bias=False)
