"""CLIP models in open_clip's layout: their configuration, their weights, their tokenizer, their preprocessing.

A model is a state dict with open_clip's names (OpenAI's released CLIP uses the same) and a model configuration, which
is one of open_clip's own by name, or a JSON file. Nothing is downloaded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bench.api import BenchError, read_json
from evaluators.clip.frames import ImageRule, TorchvisionRule, three_numbers
from evaluators.common import CLIP_MEAN, CLIP_STD, file_sha256, load_exact, read_weights

CONFIG_FILE = "open_clip_config.json"
"""Configuration that open_clip writes beside its weights."""
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files that open_clip writes."""
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's own state dicts hold beside the weights; no other release has them."""
ACTIVATIONS = {True: "quick_gelu", False: "gelu"}
"""Value of `quick_gelu` in a configuration to the name of the activation."""


class OpenClip:
    """An open_clip model, its preprocessing and its tokenizer, as `evaluators.clip.scorer` uses them."""

    def __init__(
        self,
        weights_file: Path,
        model: str | Path | None,
        activation: str | None,
        rule: type[ImageRule] = TorchvisionRule,
        state_key: str | None = None,
    ):
        """`model`: an open_clip name, a JSON file, or None for the file beside the weights.

        `activation` must agree with the configuration, and is required if the configuration does not state it.
        `rule`: the preprocessing; `state_key`: key of the state dict in the checkpoint file, None if it is the file.
        """
        from open_clip.tokenizer import default_bpe

        config, preprocess, source = read_open_config(model, weights_file)
        self.activation = check_activation(config, activation, source)
        weights = read_open_weights(weights_file, state_key)
        network: Any = build_open_clip(config, source)
        image_size, context = config["vision_cfg"]["image_size"], config["text_cfg"].get("context_length", 77)
        numbers = {"input_resolution": image_size, "context_length": context, "vocab_size": network.vocab_size}
        _check_openai_numbers(weights, numbers, self.activation, weights_file)
        load_exact(network, weights, weights_file)
        self.model, self.checkpoint = network, weights_file.name
        self.scale: float = network.logit_scale.detach().float().exp().item()
        self.rule = make_rule(rule, image_size, preprocess, source)
        self.text = OpenText(context, network.vocab_size)
        self.hashes = {f"sha256:{weights_file.name}": file_sha256(weights_file)}
        self.hashes["sha256:vocabulary"] = file_sha256(Path(default_bpe()))
        if isinstance(source, Path):
            self.hashes["sha256:open_clip config"] = file_sha256(source)
        self.constants = {"open_clip model": str(getattr(source, "name", source)), "activation": self.activation}

    def image_features(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Projected image features, not normalised."""
        features: Tensor = self.model.encode_image(pixels)
        return features

    def text_features(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Projected text features, not normalised."""
        features: Tensor = self.model.encode_text(ids)
        return features


def find_weights(checkpoint: Path, names: Sequence[str] = WEIGHT_FILES) -> Path:
    """The weight file: `checkpoint` itself, or the first of `names` in that folder."""
    if checkpoint.is_dir():
        paths = [checkpoint / name for name in names if (checkpoint / name).is_file()]
        if not paths:
            raise BenchError(f"folder {checkpoint} holds none of {', '.join(names)}: pass the weight file itself.")
        return paths[0]
    if not checkpoint.is_file():
        raise BenchError(f"checkpoint {checkpoint} does not exist: pass a local file, nothing is downloaded.")
    return checkpoint


def read_open_config(
    model: str | Path | None, weights_file: Path
) -> tuple[dict[str, Any], dict[str, Any], Path | str]:
    """Model configuration, preprocessing configuration (may be empty), and where they come from."""
    import open_clip

    if model is None:
        model = weights_file.parent / CONFIG_FILE
        if not model.is_file():
            raise BenchError(
                f"{weights_file} has no {CONFIG_FILE} beside it: name the open_clip model with model=, for example "
                "model='ViT-L-14-quickgelu' for OpenAI's weights."
            )
    if str(model).endswith(".json"):
        path = Path(model)
        stored = read_json(path)
        config, preprocess = stored.get("model_cfg", stored), stored.get("preprocess_cfg", {})
        source: Path | str = path
    else:
        config, preprocess, source = open_clip.get_model_config(str(model)), {}, str(model)
        if config is None:
            raise BenchError(f"open_clip has no model '{model}': use a name from open_clip.list_models(), or a .json.")
    vision, text = (config.get(part) if isinstance(config, dict) else None for part in ("vision_cfg", "text_cfg"))
    if not isinstance(vision, dict) or not isinstance(text, dict) or "image_size" not in vision:
        raise BenchError(
            f"open_clip config {source} lacks vision_cfg with image_size or text_cfg: use open_clip's own layout."
        )
    if not isinstance(preprocess, dict):
        raise BenchError(
            f"open_clip config {source} has a preprocess_cfg that is no mapping: use open_clip's own layout."
        )
    return config, preprocess, source


def check_activation(config: Mapping[str, Any], wanted: str | None, source: Path | str) -> str:
    """The activation's name, from the configuration or from `wanted`; the two must agree.

    The shapes of the weights do not show it: a wrong activation changes every score without an error.
    """
    if wanted is not None and wanted not in ACTIVATIONS.values():
        raise BenchError(f"activation '{wanted}' is unknown: choose one of {', '.join(ACTIVATIONS.values())}.")
    if not isinstance(config.get("quick_gelu", False), bool):
        raise BenchError(f"open_clip config {source} has quick_gelu {config['quick_gelu']!r}: write true or false.")
    stated = ACTIVATIONS[config["quick_gelu"]] if "quick_gelu" in config else None
    if stated is None and wanted is None:
        raise BenchError(
            f"open_clip config {source} does not state 'quick_gelu': pass activation='gelu', or for OpenAI's weights "
            "a model whose name ends in '-quickgelu'."
        )
    if wanted is not None and wanted != (stated or "gelu"):
        raise BenchError(
            f"activation='{wanted}' contradicts open_clip config {source}, which uses '{stated or 'gelu'}': "
            "choose the model that these weights were trained with."
        )
    return stated or "gelu"


def read_open_weights(path: Path, state_key: str | None = None) -> dict[str, Tensor]:
    """A state dict in float32, with OpenAI's three numbers if the file has them."""
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise BenchError(
                    f"weight file {path} is a TorchScript program, which is not executed: load it once with "
                    "torch.jit.load and save its state_dict() with torch.save."
                )
    return {name: value.float() for name, value in read_weights(path, state_key).items()}


def _check_openai_numbers(weights: dict[str, Tensor], wanted: Mapping[str, int], activation: str, path: Path) -> None:
    """Remove OpenAI's three numbers from the state dict; they must be those of the configuration, with QuickGELU."""
    numbers = {name: weights.pop(name) for name in OPENAI_NUMBERS if name in weights}
    for name, value in numbers.items():
        stored = value.flatten().tolist()
        if stored != [wanted[name]]:
            text = ", ".join(f"{number:g}" for number in stored)
            raise BenchError(
                f"{path} has {name} {text}, the open_clip config {wanted[name]}: choose the model of these weights."
            )
    if numbers and activation != "quick_gelu":
        raise BenchError(
            f"{path} has the layout of OpenAI's release, whose models use QuickGELU, but the open_clip config uses "
            "GELU: choose the model whose name ends in '-quickgelu'."
        )


def build_open_clip(config: Mapping[str, Any], source: Path | str) -> nn.Module:
    """`open_clip.CLIP` with random weights; a configuration that would download other models is an error."""
    from open_clip import CLIP

    vision, text = config["vision_cfg"], config["text_cfg"]
    foreign = [f"vision_cfg.{key}" for key in vision if key.startswith("timm_")]
    foreign += [f"text_cfg.{key}" for key in text if key.startswith(("hf_", "tokenizer_"))]
    foreign += [key for key in config if key in ("custom_text", "multimodal_cfg")]
    if foreign:
        raise BenchError(
            f"open_clip config {source} uses {foreign[0]}, which is not supported: use a plain CLIP model."
        )
    known = {key: value for key, value in config.items() if key not in ("vision_cfg", "text_cfg")}
    try:
        with torch.random.fork_rng(devices=[]):  # the random initial weights are all replaced
            model: nn.Module = CLIP(vision_cfg=dict(vision), text_cfg=dict(text), **known).float()
    except Exception as error:  # a wrong value fails wherever the library first uses it
        raise BenchError(
            f"open_clip config {source} does not describe a model ({error}): use open_clip's own layout."
        ) from None
    return model


def make_rule(kind: type[ImageRule], size: int, preprocess: Mapping[str, Any], source: Path | str) -> ImageRule:
    """The preprocessing with CLIP's constants, or those of `preprocess_cfg`; another resize is an error."""
    for key, want in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if preprocess.get(key, want) != want:
            raise BenchError(
                f"open_clip config {source} asks for {key} '{preprocess[key]}': only '{want}' is supported."
            )
    mean, std = (preprocess.get(key, value) for key, value in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    if not three_numbers(mean) or not three_numbers(std) or min(std) <= 0:
        raise BenchError(
            f"open_clip config {source} needs three means and three positive stds: fix its preprocess_cfg."
        )
    return kind(size, size, tuple(mean), tuple(std))


class OpenText:
    """open_clip's tokenizer: ftfy cleans the text, HTML is unescaped; a prompt is cut to the context length."""

    def __init__(self, context: int, vocabulary: int):
        """`context`: the text model's number of positions, 77 in CLIP; `vocabulary`: its number of embeddings."""
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer, self.context = SimpleTokenizer(), context
        if self._tokenizer.vocab_size != vocabulary:
            raise BenchError(
                f"the open_clip model has {vocabulary} token embeddings, CLIP's tokenizer "
                f"{self._tokenizer.vocab_size}: use a model with CLIP's own tokenizer."
            )

    def batch(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "b l"], list[int]]:
        """Ids padded with 0, and the number of tokens of each prompt before the cut, start and end token included."""
        rows = [self._tokenizer.encode(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, rows, strict=True):
            if set(self._tokenizer.all_special_ids) & set(ids):
                raise BenchError(
                    f"prompt {prompt[:60]!r} holds a special token of CLIP, which would end the text: reword it."
                )
        return self._tokenizer(list(prompts), self.context), [len(ids) + 2 for ids in rows]
