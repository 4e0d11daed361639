"""Recipe of the nano VideoReward: a tiny Qwen2-VL with three reward tokens, trained on preferences from gold scores.

Every batch has one Bradley-Terry loss per axis, over all pairs of clips, and five side losses:

* caption: predict each word of the prompt from the clip and the words before it;
* check: classify whether each word is right;
* track: the shape's centre in each frame;
* travel: the displacement over the clip;
* shake: the distance of each frame's centre from a steady path.

The last four are linear maps of hidden states, which are not saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bench.nano import world
from bench.nano.recipe import CLIP_MEAN, CLIP_STD, Timer, save_report, seeded, write_json
from bench.nano.reward_training import RewardRecipe, clip_pools, fit, pair_accuracy, preference_loss
from bench.nano.scored_clips import AXES, ScoredClips, select_captions
from bench.nano.videoreward_files import (
    REWARD_TOKENS,
    SIDE,
    TEMPLATE,
    RewardNetwork,
    base_config,
    from_release,
    model_config,
    save_base,
    save_tokenizers,
    to_release,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


STEP = 1
"""N of the folder checkpoint-N."""
FRAMES = 12
"""Frames that the model sees: the even number next to 13, the frames of a clip at 8 frames per second."""
TEMPERATURE = {"VQ": 0.25, "MQ": 0.25, "TA": 0.08}
"""Gold differences at which a preference is 73 % sure: about a quarter of a standard deviation."""
TRACK_SCALE = 4.0
"""Pixels that count as 1 in the tracking and travel losses."""
SIDE_WEIGHT = {"caption": 0.3, "check": 0.5, "track": 1.0, "travel": 1.0, "shake": 1.0}
"""Weights of the side losses; preference losses have weight 1. Only preferences are measured."""
CHUNK = 64
"""Clips per forward pass outside training."""


def frame_indices(total: int) -> Tensor:
    """Indices of the frames that the model sees: spread evenly, both ends included."""
    return torch.linspace(0, total - 1, FRAMES).round().long()


def patches(clips: UInt8[Tensor, "b 3 f h w"]) -> Float[Tensor, "b p 1176"]:
    """Input of the vision tower: `FRAMES` frames, enlarged and rounded, as normalised patches in Qwen2-VL's order."""
    b = len(clips)
    frames = clips[:, :, frame_indices(clips.shape[2])].transpose(1, 2).flatten(0, 1).float()
    large = F.interpolate(frames, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255).round()
    mean, std = (torch.tensor(value, device=clips.device).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    n = SIDE // 28
    pixels = ((large / 255 - mean) / std).view(b, FRAMES // 2, 2, 3, n, 2, 14, n, 2, 14)
    return pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(b, -1, 3 * 2 * 14 * 14)


class VideoReward:
    """The network with its evaluation text: raw scores as the evaluator computes them, and side losses."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int, device: str = "cpu"):
        from transformers import Qwen2VLConfig

        config = Qwen2VLConfig(**base_config(tokenizer))
        config.text_config.vocab_size = len(tokenizer)
        with seeded(seed):
            self.network = RewardNetwork(config).to(device)
            hidden = config.text_config.hidden_size
            sizes = {"track": 4, "check": 1, "travel": 2, "shake": 2 * FRAMES}
            self.side = torch.nn.ModuleDict({name: torch.nn.Linear(hidden, n) for name, n in sizes.items()}).to(device)
        self.tokenizer = tokenizer
        turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": TEMPLATE}]}]
        chat = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        self.video_id, *self.reward_ids = tokenizer.convert_tokens_to_ids(["<|video_pad|>", *REWARD_TOKENS])
        self.video_tokens = FRAMES // 2 * (SIDE // 28) ** 2
        self.chat = chat.replace("<|video_pad|>", "<|video_pad|>" * self.video_tokens)
        self._text_ids = lru_cache(maxsize=None)(self._encode)

    @property
    def device(self) -> torch.device:
        return self.network.rm_head.weight.device

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(self.chat.format(text_prompt=text))["input_ids"]
        return ids[: ids.index(self.reward_ids[-1]) + 1]

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids [n, l] up to the last reward token; all captions of the world have the same length."""
        return torch.tensor([self._text_ids(text) for text in texts], device=self.device)

    def visual_features(self, clips: UInt8[Tensor, "b 3 f h w"]) -> Float[Tensor, "b t d"]:
        """Merged visual features of each clip."""
        device = self.device
        grid = torch.tensor([[FRAMES // 2, SIDE // 14, SIDE // 14]] * len(clips), device=device)
        pixels = patches(clips.to(device)).flatten(0, 1)
        features: Tensor = self.network.visual(pixels, grid_thw=grid).pooler_output
        return features.reshape(len(clips), self.video_tokens, -1)

    def forward(self, features: Float[Tensor, "b t d"], ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw scores [b, 3], and hidden states [b, l, d] after and before the last layer.

        Positions are 0 to l - 1 on all rotary axes.
        """
        language_model = self.network.language_model
        embeds = language_model.embed_tokens(ids)
        start = int((ids[0] == self.video_id).nonzero()[0])
        embeds = torch.cat([embeds[:, :start], features, embeds[:, start + self.video_tokens :]], 1)
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states = language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, output_hidden_states=True
        )
        hidden, early = states.last_hidden_state, states.hidden_states[-2]
        at = [int((ids[0] == token).nonzero()) for token in self.reward_ids]
        raw: Tensor = self.network.rm_head(hidden[:, at])[..., 0]
        return raw, hidden, early

    @torch.no_grad()
    def score(self, clips: UInt8[Tensor, "b 3 f h w"], texts: Sequence[str]) -> Float[Tensor, "b 3"]:
        """Raw VQ, MQ and TA."""
        rows = [
            self.forward(self.visual_features(chunk), self.ids(texts[i * CHUNK : i * CHUNK + len(chunk)]))[0]
            for i, chunk in enumerate(clips.split(CHUNK))
        ]
        return torch.cat(rows).cpu()

    def word_losses(self, hidden: Tensor, early: Tensor, ids: Tensor, target_ids: Tensor) -> dict[str, Tensor]:
        """Losses caption and check of the four words that vary; `target_ids` [n, l] describe the clips."""
        one, two = self.ids(["a red circle moving left slowly", "a blue square moving up quickly"])
        vary = (one != two).nonzero()[:, 0]
        logits = hidden[:, vary - 1] @ self.network.language_model.embed_tokens.weight.T
        correct = (ids == target_ids)[:, vary].float()
        return {
            "caption": F.cross_entropy(logits.flatten(0, 1), target_ids[:, vary].flatten()),
            "check": F.binary_cross_entropy_with_logits(self.side["check"](early[:, vary])[..., 0], correct),
        }

    def motion_losses(self, hidden: Tensor, early: Tensor, ids: Tensor, clips: ScoredClips) -> dict[str, Tensor]:
        """Losses track, travel and shake.

        Track is read at the last video token of each frame pair, travel and shake at the reward token of MQ.
        """
        centre = clips.fits.centre
        ends = (ids[0] == self.video_id).nonzero()[:, 0].unflatten(0, (FRAMES // 2, -1))[:, -1]
        track = self.side["track"](hidden[:, ends]).flatten(1)
        positions = (centre[:, frame_indices(centre.shape[1])] - world.SIZE / 2).flatten(1) / TRACK_SCALE
        at = int((ids[0] == self.reward_ids[1]).nonzero())
        displacement = clips.fits.velocity() * (centre.shape[1] - 1) / TRACK_SCALE
        offsets = (centre - clips.fits.steady())[:, frame_indices(centre.shape[1])].flatten(1)
        shake = self.side["shake"](early[:, at])
        return {
            "shake": F.smooth_l1_loss(shake, offsets.to(shake.device), beta=0.1),
            "track": F.smooth_l1_loss(track, positions.to(track.device), beta=0.1),
            "travel": F.smooth_l1_loss(self.side["travel"](early[:, at]), displacement.to(early.device), beta=0.1),
        }


def batch_loss(model: VideoReward, batch: ScoredClips, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum and terms of the losses; half of the clips are scored for another caption, near or far."""
    truth = batch.fitted_captions()
    n = len(batch)
    near, far = world.wrong_word(truth, 0.7, rng), world.random_captions(world.split()[0], n, rng)
    option = torch.multinomial(torch.tensor([0.5, 0.35, 0.15]), n, replacement=True, generator=rng)
    captions = select_captions(option, (batch.captions, near, far))
    ids = model.ids(captions.texts())
    raw, hidden, early = model.forward(model.visual_features(batch.clips), ids)
    gold = batch.scores(captions)
    losses = {
        axis: preference_loss(raw[:, i], gold[axis].to(raw.device), TEMPERATURE[axis]) for i, axis in enumerate(AXES)
    }
    losses |= model.word_losses(hidden, early, ids, model.ids(truth.texts()))
    losses |= model.motion_losses(hidden, early, ids, batch)
    return torch.stack([SIDE_WEIGHT.get(name, 1.0) * loss for name, loss in losses.items()]).sum(), losses


def measure(model: VideoReward, clips: ScoredClips) -> dict[str, float]:
    """Pairwise accuracy per axis, on pairs whose gold scores differ clearly."""
    raw, gold = model.score(clips.clips, clips.captions.texts()), clips.scores()
    return {f"accuracy_{axis}": pair_accuracy(raw[:, i], gold[axis]).share for i, axis in enumerate(AXES)}


def save(folder: Path, model: VideoReward, reference: ScoredClips) -> None:
    """Weights and configuration; mean and standard deviation of each axis are those of `reference`."""
    raw = model.score(reference.clips, reference.captions.texts())
    norm: dict[str, float] = {}
    for i, axis in enumerate(AXES):
        norm |= {f"{axis}_mean": round(raw[:, i].mean().item(), 4), f"{axis}_std": round(raw[:, i].std().item(), 4)}
    checkpoint = folder / f"checkpoint-{STEP}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu() for name, value in model.network.state_dict().items()}
    torch.save(to_release(weights), checkpoint / "model.pth")
    save_base(folder / "base", model.tokenizer)
    (folder / "prompt_template.txt").write_text(TEMPLATE, encoding="utf-8")
    write_json(folder / "model_config.json", model_config(norm))


def load(folder: Path, seed: int = 0, device: str = "cpu") -> VideoReward:
    """A saved model, to score with or to train on."""
    from transformers import Qwen2Tokenizer

    checkpoint = folder / f"checkpoint-{STEP}"
    model = VideoReward(Qwen2Tokenizer.from_pretrained(checkpoint / "tokenizer"), seed, device)
    model.network.load_state_dict(from_release(torch.load(checkpoint / "model.pth", weights_only=True)))
    model.network.eval()
    return model


def train(out: Path, config: RewardRecipe) -> None:
    """Train the nano VideoReward and save it to `out`/videoreward."""
    folder = out / "videoreward"
    tokenizer = save_tokenizers(folder / f"checkpoint-{STEP}", folder / "base")
    progress = Timer("videoreward", config.steps)
    seed, device = config.seed, config.device
    model = VideoReward(tokenizer, seed, device) if config.init is None else load(config.init, seed, device)
    clips, held_out = clip_pools(config)
    trained = [*model.network.parameters(), *model.side.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    fit(model.network, optimizer, partial(batch_loss, model), clips, config, progress)
    save(folder, model, held_out)
    save_report(folder, progress, config.arguments(), measure(model, held_out))
