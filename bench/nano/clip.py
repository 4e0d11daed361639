"""Recipes of the nano image scorers: CLIPScore's, trained on frames and captions, and PickScore's, on preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bench.core.rng import stream
from bench.nano import world
from bench.nano.preferences import (
    ScoredClips,
    Source,
    choose,
    describe,
    pair_accuracy,
    pools,
    preference_loss,
    renders,
)
from bench.nano.recipe import Timer, num_workers, save_report
from bench.nano.videoreward_files import write_json
from bench.nano.vocabulary import save_clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase


MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

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

Loss = Callable[["Pair", ScoredClips, torch.Generator], Tensor]


class Pair:
    """A `CLIPModel` with its tokenizer: similarities of frames and captions, as the evaluators compute them."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer

    def frames(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit image features; the world's frames have the model's size, so nothing is resized."""
        device = self.model.device
        mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (MEAN, STD))
        pixels = (images.to(device).float() / 255 - mean) / std
        return F.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit text features."""
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.model.device)
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    def cosine(self, clips: UInt8[Tensor, "n 3 f h w"], texts: Sequence[str]) -> Float[Tensor, "n"]:
        """Mean cosine over all frames of each clip and its text."""
        with torch.no_grad():
            rows = []
            for i, some in enumerate(clips.split(64)):
                image = self.frames(some.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(some), -1))
                rows.append((image.mean(1) * self.texts(texts[i * 64 : i * 64 + len(some)])).sum(-1))
        return torch.cat(rows).cpu()


def contrastive_loss(pair: Pair, batch: ScoredClips, rng: torch.Generator) -> Tensor:
    """CLIP's symmetric loss on one random frame per clip and the caption that it shows."""
    n, frames = len(batch), batch.clips.shape[2]
    image = pair.frames(batch.clips[torch.arange(n), :, torch.randint(frames, (n,), generator=rng)])
    logits = pair.model.logit_scale.exp() * image @ pair.texts(batch.seen().texts()).T
    target = torch.arange(n, device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pick_loss(pair: Pair, batch: ScoredClips, rng: torch.Generator) -> Tensor:
    """Bradley-Terry loss of the mean score of a few frames against gold Overall; half of the captions are changed."""
    n, frames = len(batch), batch.clips.shape[2]
    near = world.wrong_word(batch.seen(), 0.8, rng)
    captions = choose(torch.randint(2, (n,), generator=rng), (batch.captions, near))
    chosen = torch.rand(n, frames, generator=rng).argsort(1)[:, :PICK_FRAMES]
    images = batch.clips.transpose(1, 2)[torch.arange(n)[:, None], chosen]
    image = pair.frames(images.flatten(0, 1)).unflatten(0, (n, PICK_FRAMES))
    scores = pair.model.logit_scale.exp() * (image.mean(1) * pair.texts(captions.texts())).sum(-1)
    return preference_loss(scores, overall(batch, captions).to(scores.device), TEMPERATURE)


def overall(clips: ScoredClips, captions: world.Captions | None = None) -> Float[Tensor, "n"]:
    """Gold Overall: the plain sum of VQ, MQ and TA."""
    return torch.stack(list(clips.scores(captions).values())).sum(0)


def retrieval_accuracy(pair: Pair, clips: ScoredClips, rng: torch.Generator, choices: int = 8) -> float:
    """Share of clips whose caption beats `choices` - 1 captions that differ from it in colour or shape."""
    seen, n = clips.seen(), len(clips)
    combinations = len(world.COLOURS) * len(world.SHAPES)
    own = seen.colour * len(world.SHAPES) + seen.shape
    shift = torch.rand(n, combinations - 1, generator=rng).argsort(1)[:, : choices - 1] + 1
    rivals = (own[:, None] + shift) % combinations
    columns = torch.cat([own[:, None], rivals], 1)
    scores = []
    for k in range(choices):
        colour, shape = columns[:, k] // len(world.SHAPES), columns[:, k] % len(world.SHAPES)
        scores.append(pair.cosine(clips.clips, world.Captions(colour, shape, seen.direction, seen.speed).texts()))
    return (torch.stack(scores).argmax(0) == 0).double().mean().item()


def new_pair(folder: Path, seed: int) -> Pair:
    """An untrained model of the nano size, its tokenizer saved to `folder`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = save_clip_tokenizer(folder, world.all_captions().texts())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**TEXT, **ids, "pad_token_id": tokenizer.eos_token_id, "vocab_size": len(tokenizer)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights; transformers takes no generator
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=PROJECTION))
    return Pair(model, tokenizer)


def load(folder: Path) -> Pair:
    """A saved model, to score with or to train on."""
    from transformers import CLIPModel, CLIPTokenizer

    return Pair(CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder))


def save(folder: Path, pair: Pair) -> None:
    """The folder of a published CLIP: weights, configuration, tokenizer, preprocessing."""
    pair.model.save_pretrained(folder)
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
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
    }
    write_json(folder / "preprocessor_config.json", image)


def fit(
    pair: Pair, clips: ScoredClips, loss: Loss, steps: int, seed: int, batch: int, lr: float, watch: Timer
) -> None:
    """Adam with warm-up and a cosine to nothing over turned and reversed clips of the pool."""
    model = pair.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = stream(seed, watch.name, step)
        some = clips[torch.randint(len(clips), (batch,), generator=rng)]
        mirror, backwards = torch.rand(2, batch, generator=rng) < 0.5
        value = loss(pair, some.turned(mirror, backwards), rng)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # CLIP's own bound
        watch.line(step, loss=value, scale=model.logit_scale.exp())
    model.eval()


def train_clip(
    out: Path,
    source: Source = renders,
    exam: Source | None = None,
    steps: int = 1500,
    seed: int = 0,
    batch: int = 128,
    lr: float = 1e-3,
    pool: int = 12000,
    tests: int = 768,
    init: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Train CLIPScore's model on frames of `source` and save it to `out`/clip; `init`: a folder to start from."""
    watch, folder = Timer("clip", steps), out / "clip"
    clips, held = pools(source, exam, pool, tests, seed, cache, num_workers(device))
    pair = new_pair(folder, seed) if init is None else load(init)
    pair.model.to(device)
    fit(pair, clips, contrastive_loss, steps, seed, batch, lr, watch)
    save(folder, pair)
    cosine = pair.cosine(held.clips, held.seen().texts())
    measured = {
        "retrieval_of_8": retrieval_accuracy(pair, held, stream(seed, "clip", "rivals")),
        "cosine_mean": cosine.mean().item(),
        "cosine_std": cosine.std().item(),
    }
    recipe: dict[str, Any] = {
        "source": describe(source),
        "steps": steps,
        "seed": seed,
        "batch": batch,
        "lr": lr,
        "pool": pool,
        "tests": tests,
    }
    save_report(folder, watch, recipe | ({} if init is None else {"init": init.name}), measured)
    return measured


def train_pickscore(
    out: Path,
    source: Source = renders,
    exam: Source | None = None,
    steps: int = 1500,
    seed: int = 0,
    batch: int = 64,
    lr: float = 1e-3,
    pool: int = 12000,
    tests: int = 768,
    init: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Train PickScore's model and save it to `out`/pickscore; `init`: a saved `CLIPModel` to start from."""
    watch, folder = Timer("pickscore", steps), out / "pickscore"
    clips, held = pools(source, exam, pool, tests, seed, cache, num_workers(device))
    pair = new_pair(folder, seed) if init is None else load(init)
    pair.model.to(device)
    fit(pair, clips, pick_loss, steps, seed, batch, lr, watch)
    save(folder, pair)
    scores = pair.cosine(held.clips, held.captions.texts())
    gold = held.scores()
    measured = {"accuracy_overall": pair_accuracy(scores, overall(held))}
    measured |= {f"accuracy_{axis}": pair_accuracy(scores, value) for axis, value in gold.items()}
    recipe: dict[str, Any] = {
        "source": describe(source),
        "steps": steps,
        "seed": seed,
        "batch": batch,
        "lr": lr,
        "pool": pool,
        "tests": tests,
    }
    save_report(folder, watch, recipe | ({} if init is None else {"init": init.name}), measured)
    return measured
