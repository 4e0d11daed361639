"""CLIPScore with open_clip's models: the numbers of the original program, activations, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.api import BenchError
from evaluators.clip.frames import TorchvisionRule
from evaluators.clip.open_clip import read_open_config
from evaluators.clipscore import ClipScore
from evaluators.common import CLIP_MEAN, CLIP_STD, to_uint8
from tests.helpers import parity
from tests.helpers.clip_fixtures import COSINE, FIXTURES, OPEN_EXPECTED, PIXEL, images, noise

FOLDER = FIXTURES / "openai-clip-tiny"
WEIGHTS, TINY = FOLDER / "open_clip_pytorch_model.bin", FOLDER / "open_clip_tiny_config.json"
HUGGING_FACE = FIXTURES / "clip-vit-tiny-patch14"
PROMPTS, HESSEL = OPEN_EXPECTED["prompts"], OPEN_EXPECTED["hessel_clipscore"]


def load(**options: Any) -> ClipScore:
    return ClipScore(WEIGHTS, **{"model": TINY, "device": "cpu", **options})


@pytest.fixture(scope="module")
def clip() -> ClipScore:
    return load()


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A folder with the weights and the configuration under open_clip's names, both changed."""

    def make(
        weights: Callable[[dict[str, Tensor]], object] = lambda state: None,
        config: Callable[[dict[str, Any]], object] = lambda config: None,
        preprocess: dict[str, Any] | None = None,
    ) -> Path:
        root = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        model = json.loads(TINY.read_text())
        config(model)
        stored = model if preprocess is None else {"model_cfg": model, "preprocess_cfg": preprocess}
        (root / "open_clip_config.json").write_text(json.dumps(stored))
        state = torch.load(WEIGHTS, weights_only=True)
        weights(state)
        torch.save(state, root / "open_clip_pytorch_model.bin")
        return root

    return make


def test_clipscore_is_that_of_the_original(clip: ClipScore) -> None:
    prefixed = load(prefix=HESSEL["prefix"])
    for i, (image, prompt) in enumerate(zip(images(), PROMPTS, strict=True)):
        scores = prefixed.score(image, [prompt], 1.0)
        parity.within(
            "CLIPScore (open_clip): with prefix", scores["clip_cosine"][0], HESSEL["cosine_prefixed"][i], COSINE
        )
        parity.within("CLIPScore (open_clip): 2.5", scores["clipscore"][0], HESSEL["per_image"][i], 2.5 * COSINE)
        plain = clip.score(image, [prompt], 1.0)["clip_cosine"][0]
        parity.within("CLIPScore (open_clip): no prefix", plain, HESSEL["cosine_no_prefix"][i], COSINE)


def test_tokens_are_those_of_the_original(clip: ClipScore) -> None:
    ids, tokens = clip._text.batch(PROMPTS)
    for row, wanted in zip(ids.tolist(), OPEN_EXPECTED["hpsv2"]["input_ids_nonzero"], strict=True):
        parity.within("CLIPScore (open_clip): token ids", row, wanted + [0] * (77 - len(wanted)), 0)
    assert tokens == [11, 13, 10, 110]


@pytest.mark.parametrize("size", [(54, 96), (97, 64), (48, 85), (30, 30), (53, 30), (30, 51)])
def test_pixels_are_torchvisions(size: tuple[int, int]) -> None:
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    rng = torch.Generator().manual_seed(size[0])
    frame = torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8)
    steps = [Resize(30, InterpolationMode.BICUBIC), CenterCrop(30), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
    want = Compose(steps)(Image.fromarray(frame.permute(1, 2, 0).numpy()))
    got = TorchvisionRule(30, 30, CLIP_MEAN, CLIP_STD).pixels(frame[None])[0]
    parity.within("CLIPScore (open_clip): pixels", got, want, PIXEL)


def test_transformers_and_open_clip_agree_on_the_same_weights(tmp_path: Path) -> None:
    """The tiny transformers model under open_clip's names, on the same tokens and pixels."""
    import open_clip

    hugging_face = ClipScore(HUGGING_FACE, device="cpu")
    model, config = hugging_face._clip.model, hugging_face._clip.model.config
    text, vision = config.text_config, config.vision_config
    small = open_clip.CLIP(
        embed_dim=config.projection_dim,
        quick_gelu=vision.hidden_act == "quick_gelu",
        vision_cfg={
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        text_cfg={
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    )
    small.load_state_dict(open_clip_names(model.state_dict()))
    small.eval()
    with torch.no_grad():
        for image, prompt in zip(images(), PROMPTS, strict=True):
            pixels = hugging_face._rule.pixels(to_uint8(image[:, :, 0]))
            ids, _ = hugging_face._text.batch([prompt])
            ids = nn.functional.pad(ids, (0, 77 - ids.shape[1]), value=0)
            cosine = (small.encode_image(pixels, normalize=True) * small.encode_text(ids, normalize=True)).sum()
            got = hugging_face.score(image, [prompt], 1.0)["clip_cosine"][0]
            parity.within("CLIPScore: transformers and open_clip", got, cosine, COSINE)


def open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers CLIP state dict under open_clip's names."""
    named = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "logit_scale": "logit_scale",
    }
    out = {new: state[old] for old, new in named.items()}
    out["text_projection"] = state["text_projection.weight"].T
    out["visual.proj"] = state["visual_projection.weight"].T
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    for old, new in {**norms, "text_model.final_layer_norm": "ln_final"}.items():
        for part in ("weight", "bias"):
            out[f"{new}.{part}"] = state[f"{old}.{part}"]
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        count = 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{tower}.encoder.layers."))
        for i in range(count):
            old, new = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
            for part in ("weight", "bias"):
                for source, target in parts.items():
                    out[f"{new}.{target}.{part}"] = state[f"{old}.{source}.{part}"]
                out[f"{new}.attn.in_proj_{part}"] = torch.cat(
                    [state[f"{old}.self_attn.{x}_proj.{part}"] for x in "qkv"]
                )
    return out


def test_the_configuration_beside_the_weights_is_used(copy: Callable[..., Path], clip: ClipScore) -> None:
    video = noise(1)
    want = clip.score(video, ["a cat"], 8.0)["clip_cosine"]
    root = copy()
    for checkpoint in (root, root / "open_clip_pytorch_model.bin", copy(preprocess={})):
        evaluator = ClipScore(checkpoint, device="cpu")
        assert torch.equal(evaluator.score(video, ["a cat"], 8.0)["clip_cosine"], want)
        assert evaluator.fingerprint()["activation"] == "quick_gelu"


def test_the_numbers_of_openais_files_are_checked(copy: Callable[..., Path], clip: ClipScore) -> None:
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}

    def add(state: dict[str, Any], **other: int) -> None:
        state.update({name: torch.tensor(value) for name, value in (numbers | other).items()})

    evaluator = ClipScore(copy(add))
    assert torch.equal(
        evaluator.score(noise(1), ["a cat"], 8.0)["clip_cosine"], clip.score(noise(1), ["a cat"], 8.0)["clip_cosine"]
    )
    with pytest.raises(BenchError, match="has input_resolution 336, the open_clip config 224"):
        ClipScore(copy(lambda state: add(state, input_resolution=336)))
    with pytest.raises(BenchError, match="OpenAI's release, whose models use QuickGELU"):
        ClipScore(copy(add, lambda config: config.update(quick_gelu=False)))


def test_a_configuration_by_name_is_open_clips() -> None:
    config, _, source = read_open_config("ViT-L-14-quickgelu", WEIGHTS)
    assert (config["quick_gelu"], config["embed_dim"], source) == (True, 768, "ViT-L-14-quickgelu")
    with pytest.raises(BenchError, match="open_clip has no model 'ViT-L-15'"):
        load(model="ViT-L-15")


def test_mean_and_std_beside_the_weights_are_used(copy: Callable[..., Path]) -> None:
    other = ClipScore(copy(preprocess={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}))
    assert other.fingerprint()["mean"] == "(0.5, 0.5, 0.5)"
    with pytest.raises(BenchError, match="interpolation 'bilinear'"):
        ClipScore(copy(preprocess={"interpolation": "bilinear"}))
    with pytest.raises(BenchError, match="resize_mode 'squash'"):
        ClipScore(copy(preprocess={"resize_mode": "squash"}))
    with pytest.raises(BenchError, match="three positive stds"):
        ClipScore(copy(preprocess={"std": [0.5, 0.0, 0.5]}))


def test_bfloat16_is_close(clip: ClipScore) -> None:
    rough = load(dtype="bfloat16").score(noise(), PROMPTS[:3], 8.0)["clip_cosine"]
    np.testing.assert_allclose(rough, clip.score(noise(), PROMPTS[:3], 8.0)["clip_cosine"], atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ln_final.bias"), r"lacks weight 'ln_final\.bias'"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected weight 'extra'"),
        (lambda s: s.update({"visual.proj": torch.ones(64, 17)}), "has shape"),
        (lambda s: s.update(state_dict={}), "'state_dict', which is not a tensor"),
    ],
    ids=["missing", "unexpected", "wrong shape", "a checkpoint of a training"],
)
def test_broken_weights_are_refused(copy: Callable[..., Path], change: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        ClipScore(copy(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("vision_cfg"), "lacks vision_cfg"),
        (lambda c: c["vision_cfg"].pop("image_size"), "lacks vision_cfg with image_size"),
        (lambda c: c["vision_cfg"].update(timm_model_name="vit"), r"vision_cfg\.timm_model_name"),
        (lambda c: c["text_cfg"].update(hf_model_name="bert"), r"text_cfg\.hf_model_name"),
        (lambda c: c.update(custom_text=True), "custom_text"),
        (lambda c: c["text_cfg"].update(depth=3), "does not describe a model"),
        (lambda c: c["text_cfg"].update(vocab_size=100), "100 token embeddings|has shape"),
        (lambda c: c.update(embed_dim=17), "has shape"),
    ],
)
def test_another_configuration_is_refused(copy: Callable[..., Path], change: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        ClipScore(copy(config=change))


def test_weights_of_transformers_are_refused() -> None:
    with pytest.raises(BenchError, match=r"model\.safetensors lacks weight"):
        ClipScore(HUGGING_FACE / "model.safetensors", model=TINY)
    with pytest.raises(BenchError, match="holds none of open_clip_model"):
        ClipScore(HUGGING_FACE, model=TINY)
    with pytest.raises(BenchError, match="leave it out, open_clip brings its own"):
        load(processor=HUGGING_FACE)


def test_weights_without_a_model_are_refused(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS, tmp_path)
    with pytest.raises(BenchError, match=r"no open_clip_config\.json beside it"):
        ClipScore(tmp_path / WEIGHTS.name)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's, of the format that is refused
def test_a_program_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(BenchError, match="is a TorchScript program, which is not executed"):
        ClipScore(path, model=TINY)


def test_scores_that_are_no_numbers_are_refused(copy: Callable[..., Path]) -> None:
    evaluator = ClipScore(copy(lambda state: state["text_projection"].fill_(float("nan"))))
    with pytest.raises(BenchError, match="not finite"):
        evaluator.score(noise(1), ["a cat"], 8.0)
    with pytest.raises(BenchError, match="float tensor"):
        evaluator.score(noise(1)[:, :1], ["a cat"], 8.0)
