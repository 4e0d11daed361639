"""A third real model on the shared parts: the example, on a small random folder, beside diffusers' own pipeline."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from bench.api import BenchError
from bench.checks.backbones import CHECKS
from bench.cli import main
from bench.core.rng import normal, stream
from bench.launch.jobs import suite_jobs
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.train.run import execute
from examples.ltx_video import LTXVideo
from tests.helpers import parity
from tests.helpers.paths import PROJECT

FILE = PROJECT / "examples" / "ltx_video.py"
NAME, SIZE, FPS = "examples.ltx_video:LTXVideo", (9, 32, 64), 25.0
PROMPT = "a red circle moving left quickly"
OTHER = "a green square moving up slowly"
WORDS = sorted({*PROMPT.split(), *OTHER.split()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder with random weights, as the pipeline itself writes it."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return write_folder(vocabulary, words, tmp_path_factory.mktemp("ltx") / "folder")


def write_folder(vocabulary: dict[str, int], words: Tokenizer, path: Path) -> Path:
    """Small models with random weights from torch's generator, and the tokenizer."""
    network = LTXVideoTransformer3DModel(
        **{"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2},
        **{"cross_attention_dim": 64, "caption_channels": 32},
    )
    four: dict[str, Any] = {"block_out_channels": (8,) * 4, "spatio_temporal_scaling": (True, True, False, False)}
    vae = AutoencoderKLLTXVideo(
        **{"latent_channels": 8, "patch_size": 2, "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5},
        **{**four, **{f"decoder_{key}": value for key, value in four.items()}},
    )
    vae.latents_mean.normal_(0, 0.1)
    vae.latents_std.uniform_(0.8, 1.2)
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    tokens = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    parts = FlowMatchEulerDiscreteScheduler(), vae.eval(), encoder.eval(), tokens, network.eval()
    LTXPipeline(*parts).save_pretrained(path)
    return path


def make(folder: Path, **params: Any) -> LTXVideo:
    backbone = LTXVideo(folder, **{"size": SIZE, "fps": FPS, "device": "cpu", **params})
    backbone.reset(stream(0, "initial_policy"))
    return backbone


def test_it_is_short() -> None:
    lines = [line for line in FILE.read_text().splitlines() if line.strip()]
    assert len(lines) <= 150


def test_it_keeps_its_promises(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = [f"checkpoint={folder}", f"size={list(SIZE)}", "device=cpu", "text_rows=64"]
    assert main(["check", NAME, "--params", *params]) == 0
    assert f"{NAME}: {len(CHECKS)} checks passed" in capsys.readouterr().out


@torch.no_grad()
def test_it_samples_what_the_pipeline_samples(folder: Path) -> None:
    backbone, pipeline = make(folder), LTXPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    x = normal(0, [("ltx", 0)], backbone.latent_shape)
    call: dict[str, Any] = {
        **{"prompt": PROMPT, "num_frames": SIZE[0], "height": SIZE[1], "width": SIZE[2], "frame_rate": FPS},
        **{"num_inference_steps": 4, "guidance_scale": 3.0, "latents": pipeline._pack_latents(x)},
    }
    latents, pixels = (pipeline(**call, output_type=kind).frames for kind in ("latent", "pt"))
    cond = backbone.encode([PROMPT])
    for now, after in itertools.pairwise(pipeline.scheduler.sigmas):
        x = x + (after - now) * backbone.velocity(x, now[None], cond, 3.0)
    parity.within("LTX-Video: latents, guidance 3", pipeline._pack_latents(x), latents, 1e-5)
    parity.within("LTX-Video: pixels", backbone.decode(x)[0].transpose(0, 1), pixels[0], 1e-5)


def test_it_trains_by_two_methods(folder: Path, tmp_path: Path) -> None:
    for name, text in (("train", PROMPT), ("heldout", OTHER)):
        (tmp_path / f"{name}.txt").write_text(f"{text}\n")
    settings: dict[str, Any] = {
        "suite": "ltx",
        "backbone": {
            **{"name": NAME, "checkpoint": str(folder)},
            "train": {"size": list(SIZE), "fps": FPS, "text_rows": 64, "lora_rank": 2, "device": "cpu"},
        },
        "budget": {
            **{"updates": 2, "prompts": 1, "group_size": 2, "steps": 3, "train_steps": 1, "micro_batch": 2},
            **{"shift": 3.0, "guidance": 2.0, "lr": 1e-3},
        },
        "reward": {"detectors": {"colour_entropy": 1.0}},
        "evaluation": {"evaluators": ["detectors"], "steps": 2, "videos_per_prompt": 1},
        "prompts": {name: str(tmp_path / f"{name}.txt") for name in ("train", "heldout")},
        "seeds": [0],
        "rows": [{"method": "flow_grpo", "kl": "fixed"}, {"method": "sage_grpo", "kl": "dual"}],
    }
    (tmp_path / "ltx.yaml").write_text(yaml.safe_dump(settings))
    prepared = prepare(load_suite(tmp_path / "ltx.yaml"))
    for job in suite_jobs(prepared, tmp_path / "results", "sources")[1:]:
        record = execute(job)
        assert (record.status, record.updates_done) == ("finished", 2)
        assert record.gates["ratio_audit"]["largest"] == 0.0


@pytest.mark.parametrize("params", [{"vae_tiling": (32, 32, 16, 16)}, {"dtype": "bfloat16", "base_weights": "int8"}])
def test_options_of_the_shared_parts_work(params: dict[str, Any], folder: Path) -> None:
    backbone = make(folder, **params)
    x = normal(0, [("ltx", 0)], backbone.latent_shape)
    v = backbone.velocity(x, torch.tensor([0.5]), backbone.encode([PROMPT]), 2.0)
    assert v.shape == x.shape
    assert backbone.decode(x).shape == (1, 3, *SIZE)


def test_what_it_cannot_do_is_refused(folder: Path) -> None:
    for params, sentence in (
        ({"size": (9, 30, 64)}, "height and width multiples of 8"),
        ({"parallel": {"context": 2}}, "LTXVideo has no `_share_context`"),
        ({"text_rows": 0}, "text_rows is 0: set it to at least 1"),
    ):
        with pytest.raises(BenchError, match=sentence):
            make(folder, **params)
    with pytest.raises(BenchError, match="has 7 tokens and 3 fit: shorten it"):
        make(folder, text_rows=3).encode([PROMPT])
