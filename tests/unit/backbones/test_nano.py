"""The nano HunyuanVideo-1.5 against diffusers itself, its adapters and anchors, its text, and what it refuses."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.api import BenchError, Conditioning
from bench.backbones.hunyuanvideo15 import HunyuanOptions, HunyuanVideo15
from bench.core.rng import normal, stream
from tests.helpers.nano_suite import CHECKPOINT

SHORT, LONG = "a red circle moving left quickly", "a red circle and a blue square moving left and then up quickly"
QUOTED = 'a red circle with the words "stay here" moving left'


@pytest.fixture(scope="module")
def loaded() -> HunyuanVideo15:
    return HunyuanVideo15(CHECKPOINT)


@pytest.fixture
def backbone(loaded: HunyuanVideo15) -> Iterator[HunyuanVideo15]:
    """The module's backbone with a fresh policy."""
    loaded.reset(stream(0, "initial_policy"))
    yield loaded
    for p in loaded.parameters():
        p.grad = None


def shake(backbone: HunyuanVideo15, size: float = 0.05) -> None:
    """A policy away from the base."""
    with torch.no_grad():
        for i, p in enumerate(backbone.parameters()):
            p.add_(size * torch.randn(p.shape, generator=stream(1, "shake", i)))


def latents(b: int) -> tuple[Tensor, Tensor]:
    x = normal(0, [("test_backbone", i) for i in range(b)], (8, 4, 4, 4))
    return x, torch.linspace(0.9, 0.2, b)


def velocity(backbone: HunyuanVideo15, prompts: list[str], guidance: float = 1.0, **more: Any) -> Tensor:
    x, sigma = latents(len(prompts))
    return backbone.velocity(x, sigma, backbone.encode(prompts), guidance, **more)


def is_dead_end(name: str) -> bool:
    """What makes the last block's text output, which goes nowhere, in the stock model as well."""
    return "transformer_blocks.2." in name and any(part in name for part in ("add_q_proj", "to_add_out", "ff_context"))


@pytest.mark.usefixtures("global_random_state_is_left_alone")
def test_loading_leaves_the_random_state_alone_and_knows_its_shape() -> None:
    backbone = HunyuanVideo15(CHECKPOINT, lora_rank=4)
    assert backbone.latent_shape == (8, 4, 4, 4)
    assert backbone.fps == 8.0
    assert all(p.requires_grad and p.dtype == torch.float32 for p in backbone.parameters())
    trained = {id(p) for p in backbone.parameters()}
    assert not any(p.requires_grad for p in backbone.transformer.parameters() if id(p) not in trained)


# against diffusers --------------------------------------------------------------------------------------------
def stock_velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """diffusers' own transformer with its own processor, on texts padded to one length and masked."""
    from diffusers import HunyuanVideo15Transformer3DModel

    stock = HunyuanVideo15Transformer3DModel.from_pretrained(CHECKPOINT / "transformer").eval().double()

    def padded(states: list[Tensor], pad: int) -> tuple[Tensor, Tensor]:
        longest = max(len(s) for s in states) + pad
        out = torch.zeros(len(states), longest, states[0].shape[1], dtype=torch.float64)
        mask = torch.zeros(len(states), longest)
        for i, s in enumerate(states):
            out[i, : len(s)], mask[i, : len(s)] = s, 1
        return out, mask

    text, text_mask = padded(cond.text, 3)
    glyph, glyph_mask = padded(cond.more["glyph"], 2)
    extra = torch.zeros(len(x), stock.config.in_channels - 8, *x.shape[2:])
    with torch.no_grad():
        out: Tensor = stock(
            hidden_states=torch.cat([x, extra], 1).double(),
            timestep=(1000 * sigma).double(),
            encoder_hidden_states=text,
            encoder_attention_mask=text_mask,
            encoder_hidden_states_2=glyph,
            encoder_attention_mask_2=glyph_mask,
            image_embeds=torch.zeros(len(x), 1, stock.config.image_embed_dim, dtype=torch.float64),
            return_dict=False,
        )[0]
    return out


@pytest.mark.parametrize("prompts", [[SHORT] * 2, [SHORT, LONG, QUOTED, "", SHORT]], ids=["one length", "mixed"])
@torch.no_grad()
def test_velocity_equals_the_stock_model_on_valid_tokens(loaded: HunyuanVideo15, prompts: list[str]) -> None:
    """Ours sees no padding and no mask, the stock model masks its padding; both in float64, ours rounded after."""
    x, sigma = latents(len(prompts))
    cond = loaded.encode(prompts)
    exact = HunyuanVideo15(CHECKPOINT)
    exact.transformer.double()
    ours, stock = exact.velocity(x, sigma, cond, 1.0), stock_velocity(x, sigma, cond)
    gap = float((ours - stock).abs().max())
    print(f"largest difference to the stock model: {gap:.1e} at velocities up to {float(stock.abs().max()):.1f}")
    assert gap < 1e-6  # one rounding of a velocity below 8 to float32 is 2.4e-7
    assert stock.abs().max() > 1


TOLERANCE = 2e-5
"""Two ways to one velocity in float32: below 5e-6 measured, on velocities up to 5, after some hundred products."""


@torch.no_grad()
def test_mixed_text_lengths_equal_calls_of_one_sample(backbone: HunyuanVideo15) -> None:
    prompts = [LONG, SHORT, QUOTED, "", SHORT]
    x, sigma = latents(5)
    cond = backbone.encode(prompts)
    assert len({len(t) for t in cond.text}) == 4
    together = backbone.velocity(x, sigma, cond, 1.0)
    for i in range(5):
        one = cond.take([i])
        alone = backbone.velocity(x[i : i + 1], sigma[i : i + 1], one, 1.0)
        assert float((alone - together[i : i + 1]).abs().max()) < TOLERANCE  # matrix products of another size


def test_mixed_text_lengths_carry_gradients_of_every_sample(backbone: HunyuanVideo15) -> None:
    shake(backbone)
    x, sigma = latents(2)
    for prompts in ([SHORT, LONG], [SHORT, SHORT]):
        x = x.detach().requires_grad_()
        v = backbone.velocity(x, sigma, backbone.encode(prompts), 1.0)
        (grad,) = torch.autograd.grad(v.square().sum(), x)
        assert (grad.flatten(1).abs().sum(1) > 0).all()


@torch.no_grad()
def test_decoding_three_equals_one_by_one_and_diffusers_slices(backbone: HunyuanVideo15) -> None:
    from diffusers import AutoencoderKLHunyuanVideo15

    x = latents(3)[0]
    batch = backbone.decode(x)
    assert batch.shape == (3, 3, 13, 16, 16)
    assert 0 <= batch.min() <= batch.max() <= 1
    singles = torch.cat([backbone.decode(x[i : i + 1]) for i in range(3)])
    stock = AutoencoderKLHunyuanVideo15.from_pretrained(CHECKPOINT / "vae").eval()
    stock.enable_slicing()
    expected = (stock.decode(x / stock.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    assert float((batch - singles).abs().max()) < 1e-6  # pixels in [0, 1]: a few float32 roundings
    assert float((batch - expected).abs().max()) < 1e-6


# adapters and anchors -----------------------------------------------------------------------------------------
@torch.no_grad()
def test_a_fresh_policy_is_the_base_bit_for_bit(backbone: HunyuanVideo15) -> None:
    policy = velocity(backbone, [SHORT, SHORT])
    with backbone.as_anchor("fixed"):
        assert torch.equal(velocity(backbone, [SHORT, SHORT]), policy)
    down = [p for name, p in backbone.policy.adapter("policy").items() if "lora_A" in name]
    assert all(p.abs().max() > 0 for p in down)
    first = [p.detach().clone() for p in backbone.parameters()]
    backbone.reset(stream(1, "initial_policy"))
    assert not all(torch.equal(a, b) for a, b in zip(first, backbone.parameters(), strict=True))
    backbone.reset(stream(0, "initial_policy"))
    assert all(torch.equal(a, b) for a, b in zip(first, backbone.parameters(), strict=True))


def test_the_policy_keeps_its_gradient_after_an_anchor_ran(backbone: HunyuanVideo15) -> None:
    """peft's own switch of adapters clears requires_grad: the next backward pass would silently train nothing."""
    shake(backbone)
    backbone.refresh_anchor("moving")
    for name in ("fixed", "moving", "fixed"):
        with backbone.as_anchor(name):
            assert not velocity(backbone, [SHORT]).requires_grad
    policy = velocity(backbone, [SHORT, SHORT])
    policy.square().mean().backward()
    got = {name for name, p in backbone.policy.adapter("policy").items() if p.grad is not None and p.grad.any()}
    assert got == {name for name in backbone.policy.adapter("policy") if not is_dead_end(name)}
    assert all(p.grad is None for p in backbone.policy.adapter("moving").values())
    frozen = [p for name, p in backbone.transformer.named_parameters() if "lora_" not in name]
    assert all(p.grad is None for p in frozen)


@torch.no_grad()
def test_anchors_are_the_base_or_the_copy_of_their_last_refresh(backbone: HunyuanVideo15) -> None:
    base = velocity(backbone, [SHORT])
    with backbone.as_anchor("never refreshed"):
        assert torch.equal(velocity(backbone, [SHORT]), base)
    shake(backbone)
    first = velocity(backbone, [SHORT])
    backbone.refresh_anchor("copy")
    assert torch.equal(velocity(backbone, [SHORT]), first)  # refreshing changes nothing for the policy
    shake(backbone)
    second = velocity(backbone, [SHORT])
    assert not torch.equal(second, first)
    with backbone.as_anchor("copy"):
        assert torch.equal(velocity(backbone, [SHORT]), first)
        with backbone.as_anchor("fixed"):
            assert torch.equal(velocity(backbone, [SHORT]), base)
        assert torch.equal(velocity(backbone, [SHORT]), first)
    backbone.refresh_anchor("copy")
    with backbone.as_anchor("copy"):
        assert torch.equal(velocity(backbone, [SHORT]), second)
    assert torch.equal(velocity(backbone, [SHORT]), second)


@torch.no_grad()
def test_an_anchor_is_left_again_after_an_error(backbone: HunyuanVideo15) -> None:
    shake(backbone)
    policy = velocity(backbone, [SHORT])
    with pytest.raises(RuntimeError, match="inside"), backbone.as_anchor("fixed"):
        raise RuntimeError("inside")
    assert torch.equal(velocity(backbone, [SHORT]), policy)


@torch.no_grad()
def test_state_dict_round_trip_into_another_backbone(backbone: HunyuanVideo15) -> None:
    shake(backbone)
    backbone.refresh_anchor("moving")
    shake(backbone)
    state = backbone.state_dict()
    other = HunyuanVideo15(CHECKPOINT)
    other.load_state_dict(state)
    assert torch.equal(velocity(other, [SHORT]), velocity(backbone, [SHORT]))
    with other.as_anchor("moving"), backbone.as_anchor("moving"):
        assert torch.equal(velocity(other, [SHORT]), velocity(backbone, [SHORT]))
    again = other.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    with pytest.raises(BenchError, match="other LoRA weights"):
        HunyuanVideo15(CHECKPOINT, lora_rank=4).load_state_dict(state)
    shake(backbone)  # a stored state is a copy
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_fingerprint_follows_weights_and_settings() -> None:
    first = HunyuanVideo15(CHECKPOINT).fingerprint()
    assert first == HunyuanVideo15(CHECKPOINT).fingerprint()
    assert len(first["weights_sha256"]) == 64
    assert HunyuanVideo15(CHECKPOINT, lora_rank=4).fingerprint()["settings"] != first["settings"]


# guidance -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_guidance_goes_from_the_empty_prompt_through_the_prompt(backbone: HunyuanVideo15) -> None:
    cond, uncond = velocity(backbone, [SHORT, LONG]), velocity(backbone, ["", ""])
    guided = velocity(backbone, [SHORT, LONG], guidance=2.5)
    torch.testing.assert_close(guided, uncond + 2.5 * (cond - uncond), rtol=0, atol=2 * TOLERANCE)
    assert (guided - cond).abs().max() > 1e-2


def test_uncond_grad_false_detaches_the_empty_prompt(backbone: HunyuanVideo15) -> None:
    shake(backbone)
    grads, trained = [], [p for name, p in backbone.policy.adapter("policy").items() if not is_dead_end(name)]
    for uncond_grad in (True, False):
        v = velocity(backbone, [SHORT], guidance=2.0, uncond_grad=uncond_grad)
        grads.append(torch.autograd.grad(v.sum(), trained))
    conditional = torch.autograd.grad(2.0 * velocity(backbone, [SHORT]).sum(), trained)
    whole, without, expected = (torch.cat([g.flatten() for g in part]) for part in (*grads, conditional))
    scale = float(expected.abs().max())
    assert float((without - expected).abs().max()) < 1e-5 * scale  # two backward passes that add in another order
    assert float((whole - without).abs().max()) > 0.05 * scale


# text ---------------------------------------------------------------------------------------------------------
def test_encode_drops_exactly_the_tokens_before_the_prompt(backbone: HunyuanVideo15) -> None:
    """What is left are the prompt's tokens and the turn that follows it, alone and in the whole chat."""
    text = backbone.text
    for prompt in (SHORT, LONG):
        ids = text.tokenizer(text._chat(prompt), add_special_tokens=False).input_ids
        kept, dropped = ids[text.crop :], ids[: text.crop]
        assert text.tokenizer.decode(kept).startswith(prompt)
        assert text.tokenizer.decode(dropped).endswith("user\n")
        assert prompt not in text.tokenizer.decode(dropped)
        states = backbone.encode([prompt]).text[0]
        assert states.shape == (len(kept), 64)
        with torch.no_grad():
            hidden = text.encoder(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert torch.equal(states, hidden[-3][0, text.crop :])


def test_a_prompt_is_encoded_alone(backbone: HunyuanVideo15) -> None:
    alone, together = backbone.encode([LONG]), backbone.encode([SHORT, LONG, QUOTED])
    assert torch.equal(alone.text[0], together.text[1])
    assert [len(g) > 0 for g in together.more["glyph"]] == [False, False, True]


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_prompt_with_a_special_token_is_refused(backbone: HunyuanVideo15, token: str) -> None:
    with pytest.raises(BenchError, match=r"holds the special token .* remove it"):
        backbone.encode([SHORT, f"a red circle {token} moving"])


def test_a_prompt_that_is_too_long_is_refused(backbone: HunyuanVideo15) -> None:
    with pytest.raises(BenchError, match=r"tokens, the model accepts 1000: shorten it"):
        backbone.encode(["red circle " * 1200])


# what it refuses ----------------------------------------------------------------------------------------------
@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    return folder


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer_2"])
def test_a_missing_folder_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(BenchError, match=rf"has no folder '{part}': give a diffusers pipeline folder"):
        HunyuanVideo15(copy)


WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_weight_or_file_is_refused(copy: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / part / WEIGHTS[part]
    state = load_file(path)
    lost = sorted(key for key in state if key.endswith("weight"))[0]
    save_file({key: value for key, value in state.items() if key != lost}, path, {"format": "pt"})
    with pytest.raises(BenchError, match=rf"{part} has missing keys, first '"):
        HunyuanVideo15(copy)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BenchError, match="does not load"):
        HunyuanVideo15(copy)
    path.unlink()
    with pytest.raises(BenchError, match="does not load"):
        HunyuanVideo15(copy)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"size": (12, 16, 16)}, r"frames must be 4 n \+ 1"),
        ({"size": (13, 18, 16)}, "multiples of 4"),
        ({"lora_targets": "all"}, "choose one of attention, attention"),
    ],
)
def test_settings_that_do_not_fit_are_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence):
        HunyuanVideo15(CHECKPOINT, **params)


def test_the_constructor_lists_the_options_with_their_defaults() -> None:
    """The harness checks the keys of `backbone.train` by this signature."""
    parameters = inspect.signature(HunyuanVideo15).parameters
    options = inspect.signature(HunyuanOptions).parameters
    assert list(parameters) == ["checkpoint", "shard", *options]
    assert all(parameters[name].default == option.default for name, option in options.items())
    assert "settings" not in parameters
