"""Random folders in the released layout: they load as released ones do, have their sizes, and are drawn by a seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.api import BenchError
from bench.backbones.folder import stored_parameters
from bench.backbones.hunyuanvideo15 import cost
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.core.hashing import sha256_file
from tests.helpers.full_size import SHORT, shards, velocity
from tools import random_checkpoint
from tools.random_checkpoint import empty_models, main, mini, released, split_into_shards, write_checkpoint

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In miniature, in shards of 100 kB."""
    place = tmp_path_factory.mktemp("random") / "mini"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "SHARD_BYTES", 100_000)
        assert main([str(place), "--mini"]) == 0
    return place


@torch.no_grad()
def test_it_loads_encodes_moves_and_decodes_through_the_ordinary_backbone(folder: Path) -> None:
    assert len(shards(folder, "transformer")) > 5
    backbone = HunyuanVideo15(folder, dtype="bfloat16", text_encoders="released")
    backbone.reset(torch.Generator().manual_seed(0))
    v = velocity(backbone, [SHORT], guidance=6.0)
    assert 0.1 < float(v.std()) < 10
    video = backbone.decode(torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)))
    assert 0.01 < float(video.std()) < 1


def test_its_numbers_are_those_of_the_seed_and_differ_between_weights(tmp_path: Path, folder: Path) -> None:
    configs = mini()
    small = replace(configs, transformer={**configs.transformer, "num_layers": 1})
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        write_checkpoint(tmp_path / name, small, seed)
    files = [tmp_path / name / "transformer" / "diffusion_pytorch_model.safetensors" for name in ("first", "second")]
    assert sha256_file(files[0]) == sha256_file(files[1])
    other = tmp_path / "third" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert sha256_file(files[0]) != sha256_file(other)
    weights = random_checkpoint.RandomWeights(0)
    a, b = (weights.weight("w", (3, 5)) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(weights.weight("norm.weight", (4,)), torch.ones(4, dtype=torch.bfloat16))
    assert not weights.weight("norm.bias", (4,)).any()


def test_a_weight_with_more_numbers_than_are_drawn_repeats_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoint, "DRAWN", 7)
    row = random_checkpoint.RandomWeights(0).weight("w", (2, 10)).flatten()
    assert torch.equal(row[:7], row[7:14])
    assert len(row.unique()) > 4


def test_the_released_sizes_are_those_that_the_plan_counts() -> None:
    """Without any weight: the models are made on the meta device."""
    counts: dict[str, int] = {}
    with torch.device("meta"):
        for part, make in empty_models(released()):
            counts[part] = sum(p.numel() for p in make().parameters())
    assert counts["transformer"] == cost.Transformer().parameters
    assert counts["vae"] == pytest.approx(cost.VAE_PARAMETERS, rel=1e-3)
    assert counts["text_encoder"] + counts["text_encoder_2"] == pytest.approx(cost.TEXT_PARAMETERS, rel=2e-3)
    sizes = [name for name in released(layers=4).transformer.items() if name[0] == "num_layers"]
    assert sizes == [("num_layers", 4)]


def test_every_weight_of_the_folder_is_counted_once(folder: Path) -> None:
    models: dict[str, Any] = {}
    with torch.device("meta"):
        models |= {part: make() for part, make in empty_models(mini())}
    assert set(models) == set(PARTS)
    for part, model in models.items():
        assert stored_parameters(folder / part) == sum(p.numel() for p in model.parameters())
    index = json.loads((folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * stored_parameters(folder / "transformer")


def test_a_shard_holds_at_most_its_limit_or_one_weight() -> None:
    shapes = {"a": (10,), "b": (30,), "c": (4,), "d": (4,)}
    assert split_into_shards(shapes, 20) == [["a"], ["b"], ["c", "d"]]


def test_a_folder_that_exists_and_a_full_disk_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(folder), "--mini"]) == 2
    assert "exists: name a folder that does not" in capsys.readouterr().err
    monkeypatch.setattr(random_checkpoint, "MARGIN", 10**18)
    with pytest.raises(BenchError, match=r"GB are needed: name a folder on another disk"):
        write_checkpoint(tmp_path / "new", mini())
    assert not (tmp_path / "new").exists()
