"""Recipes of the nano CLIPScore, trained on frames and captions, and of the nano PickScore, trained on preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import CLIP_MEAN, CLIP_STD, Timer, save_report, seeded, write_json
from bench.nano.reward_training import RewardRecipe, clip_pools, fit, pair_accuracy, preference_loss
from bench.nano.scored_clips import ScoredClips, select_captions
from bench.nano.vocabulary import save_clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase


TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
}
TEXT: dict[str, Any] = {**TOWER, "num_hidden_layers": 2, "max_position_embeddings": 77}
VISION: dict[str, Any] = {**TOWER, "num_hidden_layers": 3, "image_size": world.SIZE, "patch_size": 4}
PROJECTION = 64
TEMPERATURE = 0.5
"""Difference of gold Overall at which a preference is 73 % sure: about a quarter of a standard deviation."""
PICK_FRAMES = 6
"""Frames of a clip that are scored and averaged in one training step."""
MAX_LOG_SCALE = math.log(100)
"""Upper bound of the logarithm of the logit scale, as in CLIP."""
CHUNK = 64
"""Clips per forward pass outside training."""


class ClipEncoder:
    """A `CLIPModel` with its tokenizer: features of frames and captions, as the evaluators compute them."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    def frames(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit image features; the world's frames have the model's size, so nothing is resized."""
        device = self.model.device
        mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
        pixels = (images.to(device).float() / 255 - mean) / std
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit text features."""
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    def scale(self) -> Float[Tensor, ""]:
        """Logit scale."""
        scale: Tensor = self.model.logit_scale.exp()
        return scale

    def clamp_scale(self) -> None:
        """Limit the logit scale to CLIP's bound, 100."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOG_SCALE)

    @torch.no_grad()
    def cosine(self, clips: UInt8[Tensor, "n 3 f h w"], texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Mean cosine over all frames of each clip and its text."""
        rows = []
        for i, chunk in enumerate(clips.split(CHUNK)):
            image = self.frames(chunk.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(chunk), -1))
            rows.append((image.mean(1) * self.texts(texts[i * CHUNK : i * CHUNK + len(chunk)])).sum(-1))
        return torch.cat(rows).cpu()


def contrastive_loss(
    encoder: ClipEncoder, batch: ScoredClips, rng: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """CLIP's symmetric loss on one random frame per clip and the caption that describes the clip."""
    n, frames = len(batch), batch.clips.shape[2]
    image = encoder.frames(batch.clips[torch.arange(n), :, torch.randint(frames, (n,), generator=rng)])
    logits = encoder.scale() * image @ encoder.texts(batch.fitted_captions().texts()).T
    target = torch.arange(n, device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, {"loss": loss, "scale": encoder.scale()}


def pick_loss(encoder: ClipEncoder, batch: ScoredClips, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley-Terry loss of the mean score of a few frames against gold Overall; half of the captions are changed."""
    n, frames = len(batch), batch.clips.shape[2]
    near = world.wrong_word(batch.fitted_captions(), 0.8, rng)
    captions = select_captions(torch.randint(2, (n,), generator=rng), (batch.captions, near))
    chosen = torch.rand(n, frames, generator=rng).argsort(1)[:, :PICK_FRAMES]
    images = batch.clips.transpose(1, 2)[torch.arange(n)[:, None], chosen]
    image = encoder.frames(images.flatten(0, 1)).unflatten(0, (n, PICK_FRAMES))
    scores = encoder.scale() * (image.mean(1) * encoder.texts(captions.texts())).sum(-1)
    loss = preference_loss(scores, batch.overall(captions).to(scores.device), TEMPERATURE)
    return loss, {"loss": loss, "scale": encoder.scale()}


def retrieval_accuracy(encoder: ClipEncoder, clips: ScoredClips, rng: torch.Generator, choices: int = 8) -> float:
    """Share of clips whose caption beats `choices` - 1 captions that differ from it in colour or shape."""
    truth, n = clips.fitted_captions(), len(clips)
    combinations = len(world.COLOURS) * len(world.SHAPES)
    own = truth.colour * len(world.SHAPES) + truth.shape
    shift = torch.rand(n, combinations - 1, generator=rng).argsort(1)[:, : choices - 1] + 1
    rivals = (own[:, None] + shift) % combinations
    columns = torch.cat([own[:, None], rivals], 1)
    scores = []
    for k in range(choices):
        colour, shape = columns[:, k] // len(world.SHAPES), columns[:, k] % len(world.SHAPES)
        captions = world.Captions(colour, shape, truth.direction, truth.speed)
        scores.append(encoder.cosine(clips.clips, captions.texts()))
    return (torch.stack(scores).argmax(0) == 0).double().mean().item()


def new_encoder(folder: Path, seed: int) -> ClipEncoder:
    """An untrained model of the nano size; its tokenizer is saved to `folder`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = save_clip_tokenizer(folder, world.all_captions().texts())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, **ids, "pad_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    with seeded(seed):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=PROJECTION))
    return ClipEncoder(model, tokenizer)


def load(folder: Path) -> ClipEncoder:
    """A saved model, to score with or to train on."""
    from transformers import CLIPModel, CLIPTokenizer

    return ClipEncoder(CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder))


def save(folder: Path, encoder: ClipEncoder) -> None:
    """The folder of a published CLIP: weights, configuration, tokenizer, preprocessing."""
    encoder.model.save_pretrained(folder)
    save_clip_tokenizer(folder, world.all_captions().texts())
    image = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_resize": True,
        "size": {"shortest_edge": world.SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": world.SIZE, "width": world.SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }
    write_json(folder / "preprocessor_config.json", image)


def train_clip(out: Path, config: RewardRecipe) -> None:
    """Train the nano CLIPScore and save it to `out`/clip."""

    def measure(encoder: ClipEncoder, clips: ScoredClips) -> dict[str, float]:
        cosine = encoder.cosine(clips.clips, clips.fitted_captions().texts())
        return {
            "retrieval_of_8": retrieval_accuracy(encoder, clips, stream(config.seed, "clip", "rivals")),
            "cosine_mean": cosine.mean().item(),
            "cosine_std": cosine.std().item(),
        }

    _train(out / "clip", config, contrastive_loss, measure)


def train_pickscore(out: Path, config: RewardRecipe) -> None:
    """Train the nano PickScore and save it to `out`/pickscore."""

    def measure(encoder: ClipEncoder, clips: ScoredClips) -> dict[str, float]:
        scores = encoder.cosine(clips.clips, clips.captions.texts())
        gold = {"overall": clips.overall(), **clips.scores()}
        return {f"accuracy_{name}": pair_accuracy(scores, truth).share for name, truth in gold.items()}

    _train(out / "pickscore", config, pick_loss, measure)


def _train(
    folder: Path,
    config: RewardRecipe,
    loss: Callable[[ClipEncoder, ScoredClips, torch.Generator], tuple[Tensor, dict[str, Tensor]]],
    measure: Callable[[ClipEncoder, ScoredClips], dict[str, float]],
) -> None:
    progress = Timer(folder.name, config.steps)
    clips, held_out = clip_pools(config)
    encoder = new_encoder(folder, config.seed) if config.init is None else load(config.init)
    model = encoder.model.to(config.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.05, betas=(0.9, 0.98))
    optimizer.register_step_post_hook(lambda *_: encoder.clamp_scale())
    fit(model, optimizer, partial(loss, encoder), clips, config, progress)
    save(folder, encoder)
    save_report(folder, progress, config.arguments(), measure(encoder, held_out))
