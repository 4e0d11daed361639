"""A CLIP folder of transformers: its weights, its preprocessing and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.api import BenchError, read_json
from evaluators.clip.frames import ClipText, read_image_rule
from evaluators.common import building_model, file_sha256, load_exact, merge_disjoint, read_weights, weight_files

if TYPE_CHECKING:
    from transformers import CLIPModel


POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Buffers that older checkpoints store and the model computes itself."""


def load_clip(folder: Path) -> CLIPModel:
    """A `CLIPModel` folder in float32; the names of weights and parameters must be the same."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.initialization import no_init_weights

    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise BenchError(
            f"{folder / 'config.json'} describes a '{kind}' model: pass a CLIPModel folder, with model_type 'clip'."
        )
    weights = merge_disjoint([read_weights(file) for file in weight_files(folder)], folder)
    with building_model(folder / "config.json"), no_init_weights():
        config = CLIPConfig.from_pretrained(str(folder), local_files_only=True)
        for part in (config, config.text_config, config.vision_config):
            part.dtype = torch.float32
        model = CLIPModel(config).float()
    load_exact(model, {name: value.float() for name, value in weights.items() if name not in POSITIONS}, folder)
    return model


class HuggingFaceClip:
    """A `CLIPModel`, its preprocessing and its tokenizer, as `evaluators.clip.scorer` uses them."""

    def __init__(self, name: str, folder: Path, processor: Path | None, activation: str | None = None):
        """`processor`: folder with tokenizer.json and the processor's image settings, by default the model's own.

        `activation`: must be that of config.json, if set; OpenAI's models use "quick_gelu", LAION's "gelu".
        """
        files = folder if processor is None else processor
        for path in (folder, files):
            if not path.is_dir():
                raise BenchError(f"{name} folder {path} does not exist: pass a local folder, nothing is downloaded.")
        self.model = load_clip(folder)
        config = self.model.config
        stated = {config.text_config.hidden_act, config.vision_config.hidden_act}
        if activation is not None and stated != {activation}:
            raise BenchError(
                f"activation='{activation}' contradicts {folder / 'config.json'}, which has "
                f"{' and '.join(sorted(stated))}: use the config.json that belongs to these weights."
            )
        self.checkpoint = folder.name
        self.scale: float = self.model.logit_scale.detach().float().exp().item()
        self.rule = read_image_rule(files, config.vision_config.image_size)
        self.text = ClipText(files, config.text_config.max_position_embeddings)
        hashed = [*weight_files(folder), folder / "config.json", files / "tokenizer.json"]
        self.constants: dict[str, str] = {}
        self.hashes = {f"sha256:{file.name}": file_sha256(file) for file in hashed}

    def image_features(self, pixels: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        """Projected image features, not normalised."""
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def text_features(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Projected text features, not normalised."""
        features: Tensor = self.model.get_text_features(input_ids=ids).pooler_output
        return features
