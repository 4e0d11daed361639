"""Recipe of the nano VideoReward: a tiny Qwen2-VL with three reward tokens, trained on preferences from gold scores.

Every batch has Bradley-Terry losses over all pairs of clips, one per axis, and some that teach what to look at:
captioning, in which each word of the prompt is predicted from the clip and the words before it; checking, whether each
word is right; tracking, the shape's centre in each frame; travel, how far it gets; and shake, how far each frame is
from a steady path. The last four are read off hidden states by linear maps that are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bench.core.rng import stream
from bench.nano import world
from bench.nano.preferences import (
    AXES,
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
from bench.nano.videoreward_files import (
    REWARD_TOKENS,
    SIDE,
    TEMPLATE,
    Reward,
    base_config,
    from_release,
    model_config,
    save_base,
    save_tokenizers,
    to_release,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


STEP = 1
"""N of the folder checkpoint-N."""
FRAMES = 12
"""Frames looked at: the even number next to 13 at 8 frames per second."""
TEMPERATURE = {"VQ": 0.25, "MQ": 0.25, "TA": 0.08}
"""Gold differences at which a preference is 73 % sure: about a quarter of a standard deviation."""
TRACK_SCALE = 4.0
"""Pixels that count as 1 in the tracking and travel losses."""
SIDE_WEIGHT = {"caption": 0.3, "check": 0.5, "track": 1.0, "travel": 1.0, "shake": 1.0}
"""Of the side losses against the sum of the preference losses; only preferences are measured."""


def chosen_frames(total: int) -> Tensor:
    """Indices of the frames looked at: spread evenly, both ends included."""
    return torch.linspace(0, total - 1, FRAMES).round().long()


def patches(clips: UInt8[Tensor, "b 3 f h w"]) -> Float[Tensor, "b p 1176"]:
    """What the vision tower sees: `FRAMES` frames, enlarged and rounded, as normalised patches in Qwen2-VL's order."""
    b = len(clips)
    frames = clips[:, :, chosen_frames(clips.shape[2])].transpose(1, 2).flatten(0, 1).float()
    large = F.interpolate(frames, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255).round()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], device=clips.device).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], device=clips.device).view(3, 1, 1)
    n = SIDE // 28
    pixels = ((large / 255 - mean) / std).view(b, FRAMES // 2, 2, 3, n, 2, 14, n, 2, 14)
    return pixels.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(b, -1, 3 * 2 * 14 * 14)


class Scorer:
    """The model with its evaluation text: raw scores as the evaluator gives them, and captioning losses."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int, device: str = "cpu"):
        from transformers import Qwen2VLConfig

        config = Qwen2VLConfig(**base_config(tokenizer))
        config.text_config.vocab_size = len(tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial weights; transformers takes no generator
            self.model = Reward(config).to(device)
            hidden = config.text_config.hidden_size
            sizes = {"track": 4, "check": 1, "travel": 2, "shake": 2 * FRAMES}
            self.side = torch.nn.ModuleDict({name: torch.nn.Linear(hidden, n) for name, n in sizes.items()}).to(device)
        self.tokenizer = tokenizer
        turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": TEMPLATE}]}]
        self.chat = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        self.video_id, *self.reward_ids = tokenizer.convert_tokens_to_ids(["<|video_pad|>", *REWARD_TOKENS])
        self.places = FRAMES // 2 * (SIDE // 28) ** 2
        self.chat = self.chat.replace("<|video_pad|>", "<|video_pad|>" * self.places)
        self._rows = lru_cache(maxsize=None)(self._row)

    @property
    def device(self) -> torch.device:
        return self.model.rm_head.weight.device

    def _row(self, text: str) -> list[int]:
        row: list[int] = self.tokenizer(self.chat.format(text_prompt=text))["input_ids"]
        return row[: row.index(self.reward_ids[-1]) + 1]

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Token ids [n, l] up to the last reward token; all captions of the world have the same length."""
        return torch.tensor([self._rows(text) for text in texts], device=self.device)

    def look(self, clips: UInt8[Tensor, "b 3 f h w"]) -> Float[Tensor, "b t d"]:
        """Merged visual features of each clip."""
        device = self.device
        grid = torch.tensor([[FRAMES // 2, SIDE // 14, SIDE // 14]] * len(clips), device=device)
        pixels = patches(clips.to(device)).flatten(0, 1)
        features: Tensor = self.model.visual(pixels, grid_thw=grid).pooler_output
        return features.reshape(len(clips), self.places, -1)

    def read(self, features: Float[Tensor, "b t d"], ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Raw scores [b, 3], and hidden states [b, l, d] after and before the last layer.

        Positions are 0 to l - 1 on all rotary axes.
        """
        embeds = self.model.language_model.embed_tokens(ids)
        start = int((ids[0] == self.video_id).nonzero()[0])
        embeds = torch.cat([embeds[:, :start], features, embeds[:, start + self.places :]], 1)
        order = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states = self.model.language_model(
            inputs_embeds=embeds, position_ids=order, use_cache=False, output_hidden_states=True
        )
        hidden, early = states.last_hidden_state, states.hidden_states[-2]
        at = [int((ids[0] == token).nonzero()) for token in self.reward_ids]
        raw: Tensor = self.model.rm_head(hidden[:, at])[..., 0]
        return raw, hidden, early

    def score(self, clips: UInt8[Tensor, "b 3 f h w"], texts: Sequence[str]) -> Float[Tensor, "b 3"]:
        with torch.no_grad():
            parts = [
                self.read(self.look(some), self.ids(texts[i * 64 : i * 64 + len(some)]))[0]
                for i, some in enumerate(clips.split(64))
            ]
        return torch.cat(parts).cpu()

    def word_losses(self, hidden: Tensor, early: Tensor, ids: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """Captioning and checking of the four words that vary; `wanted` [n, l] are ids of what the clips show."""
        one, two = self.ids(["a red circle moving left slowly", "a blue square moving up quickly"])
        vary = (one != two).nonzero()[:, 0]
        logits = hidden[:, vary - 1] @ self.model.language_model.embed_tokens.weight.T
        right = (ids == wanted)[:, vary].float()
        return {
            "caption": F.cross_entropy(logits.flatten(0, 1), wanted[:, vary].flatten()),
            "check": F.binary_cross_entropy_with_logits(self.side["check"](early[:, vary])[..., 0], right),
        }

    def motion_losses(self, hidden: Tensor, early: Tensor, ids: Tensor, clips: ScoredClips) -> dict[str, Tensor]:
        """Errors of the centre in the two frames of each pair, read where the pair ends, and of the whole path.

        Of the path: how far it goes, and each frame's distance from the steady path, both read at the token of MQ.
        """
        centre = clips.found.centre
        ends = (ids[0] == self.video_id).nonzero()[:, 0].unflatten(0, (FRAMES // 2, -1))[:, -1]
        got = self.side["track"](hidden[:, ends]).flatten(1)
        wanted = (centre[:, chosen_frames(centre.shape[1])] - world.SIZE / 2).flatten(1) / TRACK_SCALE
        at = int((ids[0] == self.reward_ids[1]).nonzero())
        path = clips.found.velocity() * (centre.shape[1] - 1) / TRACK_SCALE
        away = (centre - clips.found.steady())[:, chosen_frames(centre.shape[1])].flatten(1)
        told = self.side["shake"](early[:, at])
        return {
            "shake": F.smooth_l1_loss(told, away.to(told.device), beta=0.1),
            "track": F.smooth_l1_loss(got, wanted.to(got.device), beta=0.1),
            "travel": F.smooth_l1_loss(self.side["travel"](early[:, at]), path.to(early.device), beta=0.1),
        }


def batch_loss(scorer: Scorer, batch: ScoredClips, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of one batch; half of the clips are judged for another caption, near or far from what they show."""
    seen = batch.seen()
    n = len(batch)
    near, far = world.wrong_word(seen, 0.7, rng), world.random_captions(world.split()[0], n, rng)
    kind = torch.multinomial(torch.tensor([0.5, 0.35, 0.15]), n, replacement=True, generator=rng)
    captions = choose(kind, (batch.captions, near, far))
    ids = scorer.ids(captions.texts())
    raw, hidden, early = scorer.read(scorer.look(batch.clips), ids)
    gold = batch.scores(captions)
    losses = {
        axis: preference_loss(raw[:, i], gold[axis].to(raw.device), TEMPERATURE[axis]) for i, axis in enumerate(AXES)
    }
    losses |= scorer.word_losses(hidden, early, ids, scorer.ids(seen.texts()))
    losses |= scorer.motion_losses(hidden, early, ids, batch)
    return torch.stack([SIDE_WEIGHT.get(name, 1.0) * loss for name, loss in losses.items()]).sum(), losses


def fit_scorer(scorer: Scorer, clips: ScoredClips, steps: int, seed: int, batch: int, lr: float, watch: Timer) -> None:
    """Adam with warm-up and a cosine to nothing over turned and reversed clips of the pool."""
    model = scorer.model.train()
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *scorer.side.parameters()], lr=lr, weight_decay=0.01, betas=(0.9, 0.98)
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rng = stream(seed, "videoreward", step)
        some = clips[torch.randint(len(clips), (batch,), generator=rng)]
        mirror, backwards = torch.rand(2, batch, generator=rng) < 0.5
        loss, terms = batch_loss(scorer, some.turned(mirror, backwards), rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        watch.line(step, **terms)
    model.eval()


def measure(scorer: Scorer, clips: ScoredClips) -> dict[str, float]:
    """Pairwise accuracy per axis, on pairs whose gold differs by half a standard deviation or more."""
    raw, gold = scorer.score(clips.clips, clips.captions.texts()), clips.scores()
    return {f"accuracy_{axis}": pair_accuracy(raw[:, i], gold[axis]) for i, axis in enumerate(AXES)}


def save(folder: Path, scorer: Scorer, reference: ScoredClips) -> None:
    """Weights and configuration; mean and standard deviation of each axis are those of `reference`."""
    raw = scorer.score(reference.clips, reference.captions.texts())
    norm: dict[str, float] = {}
    for i, axis in enumerate(AXES):
        norm |= {f"{axis}_mean": round(raw[:, i].mean().item(), 4), f"{axis}_std": round(raw[:, i].std().item(), 4)}
    checkpoint = folder / f"checkpoint-{STEP}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    torch.save(
        to_release({k: v.detach().cpu() for k, v in scorer.model.state_dict().items()}), checkpoint / "model.pth"
    )
    save_base(folder / "base", scorer.tokenizer)
    (folder / "prompt_template.txt").write_text(TEMPLATE, encoding="utf-8")
    write_json(folder / "model_config.json", model_config(norm))


def load(folder: Path, seed: int = 0, device: str = "cpu") -> Scorer:
    """The saved model, to score with or to train on."""
    from transformers import Qwen2Tokenizer

    checkpoint = folder / f"checkpoint-{STEP}"
    scorer = Scorer(Qwen2Tokenizer.from_pretrained(checkpoint / "tokenizer"), seed, device)
    scorer.model.load_state_dict(from_release(torch.load(checkpoint / "model.pth", weights_only=True)))
    scorer.model.eval()
    return scorer


def train(
    out: Path,
    source: Source = renders,
    exam: Source | None = None,
    steps: int = 4000,
    seed: int = 0,
    batch: int = 32,
    lr: float = 2e-3,
    pool: int = 12000,
    tests: int = 768,
    init: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> dict[str, float]:
    """Train on `pool` clips of `source` and save to `out`/videoreward, measured on `tests` clips of `exam`.

    `init`: a saved folder to start from; `cache`: a file that keeps the clips from one recipe to the next.
    """
    folder = out / "videoreward"
    tokenizer = save_tokenizers(folder / f"checkpoint-{STEP}", folder / "base")
    watch = Timer("videoreward", steps)
    scorer = Scorer(tokenizer, seed, device) if init is None else load(init, seed, device)
    clips, held = pools(source, exam, pool, tests, seed, cache, num_workers(device))
    fit_scorer(scorer, clips, steps, seed, batch, lr, watch)
    save(folder, scorer, held)
    measured = measure(scorer, held)
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
