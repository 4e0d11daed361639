"""Flow matching on latents of the noisy world: the training that the recipes of all nano policies share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench.core.errors import BenchError
from bench.core.rng import stream
from bench.nano import world
from bench.nano.recipe import RecipeConfig, Timer, learning_rate, num_workers, optimizer_step, save_report
from bench.store.files import write_bytes

TRAIN_SHIFT = 3.0
"""Noise levels of pre-training: u uniform, sigma = 3 u / (1 + 2 u), Tencent's shift for this model."""
EMPTY_SHARE = 0.05
"""Share of samples trained with the empty prompt, for classifier-free guidance."""
SAVE_EVERY = 500
"""Steps between two saved states."""


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe(RecipeConfig):
    """Options of the recipe of a policy."""

    clips: int = 24_576
    """Clips of the training corpus, in units of 64."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the loop trains, and how it calls and saves it."""

    transformer: Any
    velocity: Callable[[Tensor, Tensor, Sequence[int]], Tensor]
    """Noisy latents [b, c, f, h, w], noise levels [b], and the index of each sample's prompt, to the velocity."""
    save: Callable[[], None]
    """Saves the transformer as it is."""


@contextmanager
def averaged(transformer: Any, average: dict[str, Tensor]) -> Iterator[None]:
    """The transformer with the averaged weights in place of its own."""
    own = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.load_state_dict({**own, **average})
    try:
        yield
    finally:
        transformer.load_state_dict(own)


class Corpus(Dataset[tuple[Tensor, list[str]]]):
    """The noisy corpus in batches of 64 clips with their captions."""

    def __init__(self, batches: int, seed: int):
        self.batches, self.seed = batches, seed

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        return world.corpus(64, stream(self.seed, "policy", "corpus", index))


@torch.no_grad()
def encode_corpus(encode: Callable[[Tensor], Tensor], config: PolicyRecipe) -> tuple[Tensor, Tensor]:
    """Latents [n, c, f, h, w] of the noisy corpus, and the index of each one's caption.

    `encode`: clips [b, 3, f, h, w] in [0, 1] to the latents that the policy generates.
    """
    names = {text: i for i, text in enumerate(world.all_captions().texts())}
    latents, captions = [], []
    corpus = Corpus(config.clips // 64, config.seed)
    for pixels, texts in DataLoader(corpus, batch_size=None, num_workers=num_workers(config.device)):
        latents.append(encode(pixels.to(config.device)).cpu())
        captions += [names[text] for text in texts]
    return torch.cat(latents), torch.tensor(captions)


def train(out: Path, config: PolicyRecipe, model: Model, latents: Tensor, captions: Tensor, progress: Timer) -> None:
    """Train and save, with the report in `out`/transformer. An interrupted run resumes from `out`/state.pt.

    `captions`: index of each latent's caption in the order of `world.all_captions`; the index after the last one is
    the empty prompt's.
    """
    device, batch, transformer = config.device, config.batch, model.transformer
    empty = len(world.all_captions())
    trained = {name: p for name, p in transformer.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    average = {name: p.detach().clone() for name, p in trained.items()}
    first, state_file = 0, out / "state.pt"
    arguments = {name: getattr(config, name) for name in ("steps", "seed", "batch", "lr", "clips")}
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state.get("arguments") != arguments:
            raise BenchError(
                f"{state_file} is of a recipe with {state.get('arguments', 'unknown options')}, and this one has "
                f"{arguments}: delete the file, or use the same options."
            )
        transformer.load_state_dict(state["transformer"])
        optimizer.load_state_dict(state["optimizer"])
        average, first = state["average"], state["step"]
    losses: list[Tensor] = []
    for step in range(first, config.steps):
        rng = stream(config.seed, "policy", "step", step)
        rows = torch.randint(len(latents), (batch,), generator=rng)
        x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:], generator=rng)
        u = (torch.arange(batch) + torch.rand(batch, generator=rng)) / batch
        sigma = TRAIN_SHIFT * u / (1 + (TRAIN_SHIFT - 1) * u)
        at = sigma[:, None, None, None, None]
        prompts = captions[rows].tolist()
        if step % round(1 / EMPTY_SHARE) == 0:  # a whole batch, so that one forward pass serves it
            prompts = [empty] * batch
        v = model.velocity(((1 - at) * x0 + at * noise).to(device), sigma.to(device), prompts)
        loss = F.mse_loss(v, (noise - x0).to(device))
        rate = learning_rate(config, step, warmup=200, floor=0.01)
        optimizer_step(optimizer, loss, trained.values(), rate)
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(trained.values()), 1 - decay)
        losses.append(loss.detach())
        progress.line(step, loss=loss)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
            with averaged(transformer, average):
                model.save()
            state = {"transformer": transformer.state_dict(), "optimizer": optimizer.state_dict()}
            content = io.BytesIO()
            torch.save({**state, "average": average, "step": step + 1, "arguments": arguments}, content)
            write_bytes(state_file, content.getvalue())
    measured = {"loss_of_last_100": float(torch.stack(losses[-100:]).mean())} if losses else {}
    save_report(out / "transformer", progress, arguments, measured)
    state_file.unlink(missing_ok=True)
