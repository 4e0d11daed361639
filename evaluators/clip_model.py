"""A CLIP model folder as a scorer of video frames against prompts; the basis of CLIPScore and PickScore."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bench.api import BenchError, Evaluator
from evaluators.clip_frames import FRAMES, ClipText, read_image_rule
from evaluators.common import (
    check_batch,
    check_finite,
    file_sha256,
    float_type,
    freeze,
    load_exact,
    merge_disjoint,
    pick_device,
    read_json,
    read_weights,
    scoring,
    to_uint8,
    uniform_indices,
    weight_files,
)

if TYPE_CHECKING:
    import pandas as pd
    from transformers import CLIPModel

#: Buffers that older checkpoints store and the model computes itself.
POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def load_clip(folder: Path) -> CLIPModel:
    """A `CLIPModel` folder in float32; every weight must have its place and every parameter its weight."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.initialization import no_init_weights

    kind = read_json(folder / "config.json").get("model_type")
    if kind != "clip":
        raise BenchError(
            f"{folder / 'config.json'} describes a '{kind}' model: this scorer needs a CLIPModel folder, 'clip'."
        )
    config = CLIPConfig.from_pretrained(str(folder), local_files_only=True)
    for part in (config, config.text_config, config.vision_config):
        part.dtype = torch.float32
    weights = merge_disjoint([read_weights(file) for file in weight_files(folder)], folder)
    with no_init_weights():
        model = CLIPModel(config).float()
    load_exact(model, {name: value.float() for name, value in weights.items() if name not in POSITIONS}, folder)
    return model


class ClipEvaluator(Evaluator):
    """Cosines between a video's frames and its prompt, turned into metrics by the subclass."""

    name: str
    idle_weights = frozenset({"logit_scale"})  # PickScore reads it when loading, cosines do not need it

    def __init__(
        self,
        checkpoint: str | Path,
        processor: str | Path | None,
        dtype: str,
        prefix: str,
        micro_batch: int,
        device: str | None,
    ):
        """`processor`: folder with tokenizer.json and preprocessor_config.json, by default the checkpoint's."""
        folder = Path(checkpoint)
        files = folder if processor is None else Path(processor)
        for path in (folder, files):
            if not path.is_dir():
                raise BenchError(
                    f"{self.name} folder {path} does not exist: pass a local folder, nothing is downloaded."
                )
        model = load_clip(folder)
        self._scale = model.logit_scale.detach().float().exp().item()
        self._rule = read_image_rule(files, model.config.vision_config.image_size)
        self._text = ClipText(files, model.config.text_config.max_position_embeddings)
        self._dtype, self._device, self._prefix, self._micro_batch = dtype, pick_device(device), prefix, micro_batch
        self._model = freeze(model, float_type(dtype), self._device)
        hashed = [*weight_files(folder), folder / "config.json", files / "tokenizer.json"]
        self._hashes = {f"sha256:{file.name}": file_sha256(file) for file in hashed}
        self._checkpoint, self._details = folder.name, dict[str, Tensor]()

    @abstractmethod
    def _metrics(self, cosine: Float[Tensor, "b n"]) -> dict[str, Float[Tensor, "b n"]]:
        """Every metric of every frame, from the cosines."""

    def score(
        self, videos: Float[Tensor, "b 3 f h w"], prompts: Sequence[str], fps: float
    ) -> Mapping[str, Float[Tensor, "b"]]:
        """Means over the scored frames; pixels in [0, 1], taken to the nearest of 256 levels; `fps` plays no part."""
        check_batch(videos, prompts, fps)
        total = videos.shape[2]
        indices = uniform_indices(total, min(FRAMES, total))
        frames = to_uint8(videos[:, :, indices]).transpose(1, 2)
        with scoring():
            images = self._images(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            texts, cut = self._texts(prompts)
            cosine = (images * texts[:, None]).sum(-1).to(videos.device)
        check_finite(self.name, cosine)
        values = self._metrics(cosine)
        b, n = cosine.shape
        self._details = {
            "video": torch.arange(b).repeat_interleave(n),
            "frame": torch.arange(n).repeat(b),
            "frame_index": torch.tensor(indices).repeat(b),
            "total_frames": torch.full((b * n,), total),
            "prompt_truncated": torch.tensor(cut).repeat_interleave(n),
            **{name: value.flatten().cpu() for name, value in values.items()},
        }
        return {name: value.mean(1) for name, value in values.items()}

    def _images(self, frames: Tensor) -> Float[Tensor, "n d"]:
        """Unit image embeddings of uint8 frames [n, 3, h, w]."""
        parts = []
        for some in frames.split(self._micro_batch):
            pixels = self._rule.pixels(some).to(self._device, self._model.dtype)
            parts.append(self._model.get_image_features(pixel_values=pixels).pooler_output.float())
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def _texts(self, prompts: Sequence[str]) -> tuple[Float[Tensor, "b d"], list[bool]]:
        """Unit text embeddings, each different prompt embedded once, and whether each prompt was cut."""
        unique = list(dict.fromkeys(prompts))
        ids, cut = self._text.batch([self._prefix + prompt for prompt in unique])
        parts = [
            self._model.get_text_features(input_ids=some.to(self._device)).pooler_output
            for some in ids.split(self._micro_batch)
        ]
        features = torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)
        place = [unique.index(prompt) for prompt in prompts]
        return features[place], [cut[i] for i in place]

    def details(self) -> pd.DataFrame:
        """One row per scored frame of the last call: index in the video, metrics, whether the prompt was cut."""
        import pandas as pd

        return pd.DataFrame({name: column.numpy() for name, column in self._details.items()})

    def fingerprint(self) -> Mapping[str, str]:
        """Hashes of weights and tokenizer, preprocessing constants, prefix and dtype."""
        model = {"evaluator": self.name, "checkpoint": self._checkpoint, "prefix": self._prefix, "dtype": self._dtype}
        return {**model, **self._hashes, **self._rule.constants()}
