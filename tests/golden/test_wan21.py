"""Wan2.1 against the pipeline of 2025 on a small folder: text states, latents, pixels, and the mistakes it catches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.backbones.wan21 import Wan21, text_encoder, transformer
from tests.helpers import parity
from tests.helpers.wan import BROKEN, FOLDER, NEGATIVE, SHORT, make, reference, sampled

BOUND = 1e-4
"""Two versions of the libraries in float32; below 2e-5 measured. The smallest mistake below moves latents by 0.01."""
CAUGHT = 100 * BOUND


@pytest.fixture(scope="module")
def want() -> dict[str, Tensor]:
    return reference()


@pytest.fixture(scope="module")
def wan() -> Wan21:
    return make()


def test_text_states_are_those_of_the_pipeline(wan: Wan21, want: dict[str, Tensor]) -> None:
    states = wan.encode([SHORT, BROKEN, "", NEGATIVE]).text
    for i, state in enumerate(states):
        parity.within("Wan2.1: text states", state, want[f"text{i}"], BOUND)
    assert len(states[2]) == 1  # the empty prompt is </s> alone


@pytest.mark.parametrize(("negative", "prefix"), [("", ""), (NEGATIVE, "neg_")], ids=["empty", "written"])
def test_latents_and_pixels_are_those_of_the_pipeline(want: dict[str, Tensor], negative: str, prefix: str) -> None:
    """4 Euler steps at shift 5 and guidance 5, with the empty and with a written negative prompt."""
    backbone = make(negative_prompt=negative)
    for i, prompt in enumerate((SHORT, BROKEN)):
        x = sampled(backbone, prompt, want["x"][i : i + 1])
        parity.within("Wan2.1: latents", x, want[f"{prefix}lat{i}"], BOUND)
        pixels = backbone.decode(x).permute(0, 2, 3, 4, 1)
        parity.within("Wan2.1: pixels", pixels, want[f"{prefix}px{i}"], BOUND)


Mistake = Callable[[pytest.MonkeyPatch, Wan21], None]


def change_velocity(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Change the timestep before the model sees it."""
    stock = transformer.velocity

    def velocity(net: Any, x: Tensor, sigma: Tensor, text: Any, rows: int) -> Tensor:
        return stock(net, x, change(1000 * sigma) / 1000, text, rows)

    monkeypatch.setattr("bench.backbones.wan21.backbone.velocity", velocity)


def rows(count: int) -> Mistake:
    return lambda monkeypatch, wan: monkeypatch.setattr(wan, "text_rows", count)


def change_ids(monkeypatch: pytest.MonkeyPatch, wan: Wan21) -> None:
    stock = text_encoder.UMT5.ids
    monkeypatch.setattr(text_encoder.UMT5, "ids", lambda self, prompt: stock(self, prompt)[:-1] or [1])


def zero_unconditional(monkeypatch: pytest.MonkeyPatch, wan: Wan21) -> None:
    states = wan.encode([""]).text[0]
    wan.prompts._known[""] = {"text": torch.zeros_like(states)}


MISTAKES: dict[str, Mistake] = {
    "text cropped to its tokens": lambda m, wan: m.setattr(transformer, "padded", lambda text, rows: text[0][None]),
    "226 rows of text": rows(226),
    "no repair of UTF-8": lambda m, wan: m.setattr(text_encoder.ftfy, "fix_text", lambda text: text),
    "no HTML entities": lambda m, wan: m.setattr(text_encoder.html, "unescape", lambda text: text),
    "no final </s>": change_ids,
    "zeros as the unconditional states": zero_unconditional,
    "integer timesteps": lambda m, wan: change_velocity(m, torch.floor),
    "bfloat16 timesteps": lambda m, wan: change_velocity(m, lambda t: t.bfloat16().float()),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_moves_the_latents_far_beyond_the_bound(
    name: str, want: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = make()
    MISTAKES[name](monkeypatch, backbone)
    x = sampled(backbone, BROKEN, want["x"][1:])
    assert float((x - want["lat1"]).abs().max()) > CAUGHT


def test_the_tokenizer_is_read_verbatim(wan: Wan21, want: dict[str, Tensor]) -> None:
    """`AutoTokenizer` of transformers 5 builds another one from the vocabulary: unknown characters become <s>."""
    from transformers import AutoTokenizer

    built = AutoTokenizer.from_pretrained(FOLDER / "tokenizer", local_files_only=True)._tokenizer
    rebuilt = dataclasses.replace(wan.text, tokenizer=built)
    ids, others = wan.text.ids(NEGATIVE), rebuilt.ids(NEGATIVE)
    assert 3 in ids
    assert ids[-1] == 1
    assert others != ids
    states = rebuilt.encode([NEGATIVE]).text[0]
    assert states.shape != want["text3"].shape or float((states - want["text3"]).abs().max()) > CAUGHT


@pytest.mark.parametrize(
    ("written", "clean"),
    [
        (BROKEN, "two dogs <b> & a cat \u2014 run on the grass first"),
        (" a\t b\u3000c\n", "a b c"),
        ("&lt;b&gt; &amp;quot;x&amp;quot;", '<b> "x"'),
        ("", ""),
    ],
)
def test_prompts_are_cleaned_as_in_the_released_pipeline(written: str, clean: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert text_encoder.clean(written) == clean == prompt_clean(written)


def test_latents_are_scaled_by_mean_and_deviation(wan: Wan21, want: dict[str, Tensor]) -> None:
    unscaled = wan.vae.decode(want["lat0"], return_dict=False)[0].detach() / 2 + 0.5
    assert float((unscaled.permute(0, 2, 3, 4, 1) - want["px0"]).abs().max()) > CAUGHT
