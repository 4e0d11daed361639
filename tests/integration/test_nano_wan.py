"""nano on Wan2.1's classes: the checkpoint, the suite, a run of seconds, and what tables say of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from bench import plugins
from bench.backbones.wan21 import Wan21
from bench.checks.backbones import CHECKS, check_backbone
from bench.checks.report import NANO_BACKBONES, constructor_params
from bench.core.rng import normal, stream
from bench.flow import euler, sigma_schedule
from bench.nano import gold, wan_policy, world
from bench.nano.recipe import FOLDERS
from bench.report.data.records import full_model
from bench.report.tables.notes import nano_note, nano_warning
from bench.store.record import read_run
from bench.suite.difference import differences
from bench.suite.job import TrainingRun
from bench.suite.load import load_suite
from bench.suite.prepared import make_backbone, prepare
from bench.train.run import execute
from tests.helpers.nano_suite import CHECKPOINT, NANO, TINY

FOLDER = CHECKPOINT.parent / "wan21"
SUITE = NANO.with_name("nano_wan.yaml")
FEW = (6, 60, 120)
"""Some of the captions, for samples."""


@pytest.fixture(scope="module")
def backbone() -> Wan21:
    made = Wan21(FOLDER, device="cpu", text_rows=wan_policy.TEXT_ROWS, **NANO_BACKBONES["wan21"])
    made.reset(stream(0, "initial_policy"))
    return made


def test_the_checkpoint_is_loaded_by_the_suite(backbone: Wan21) -> None:
    suite = load_suite(SUITE)
    made = make_backbone(prepare(suite))
    assert made.latent_shape == backbone.latent_shape == (8, 4, 4, 4)
    assert suite.backbone.train["text_rows"] == wan_policy.TEXT_ROWS
    assert (made.fps, suite.backbone.checkpoint_name) == (world.FPS, "nano/wan21")


def test_the_packaged_checkpoint_keeps_the_backbones_promises() -> None:
    """As `bench check wan21` makes it: with the default number of text rows, since its prompts are long."""
    assert check_backbone(plugins.backbone("wan21", **constructor_params("wan21", {}, nano=False))) == CHECKS


@torch.no_grad()
def test_the_base_model_draws_what_a_caption_says(backbone: Wan21) -> None:
    """Colour and shape, which the base has right in most clips; by chance both are right in 1 of 18."""
    captions = world.all_captions()[torch.tensor(FEW).repeat_interleave(4)]
    x = normal(0, [("test_nano_wan", i) for i in range(len(captions))], backbone.latent_shape)
    cond, sigmas = backbone.encode(captions.texts()), sigma_schedule(10, 5.0)
    for now, after in itertools.pairwise(sigmas):
        sigma, sigma_next = now.expand(len(x)), after.expand(len(x))
        x = euler(x, backbone.velocity(x, sigma, cond, 1.0), sigma, sigma_next)
    clips = backbone.decode(x)
    assert clips.shape == (12, 3, world.FRAMES, world.SIZE, world.SIZE)
    right = gold.caption_correct(gold.fit(clips), captions)[:, :2].all(1)
    assert float(right.float().mean()) > 0.5


def test_the_suite_is_nanos_but_for_the_model_and_a_row() -> None:
    nano, wan = load_suite(NANO), load_suite(SUITE)
    found = differences(nano.model_dump(mode="json"), wan.model_dump(mode="json"), nested=True)
    assert set(found) == {"suite", "backbone.name", "backbone.train.text_rows", "rows"}
    assert [row.name for row in wan.rows] == [row.name for row in nano.rows if row.name != "flow_grpo-equalized"]
    assert [row.kl for row in wan.rows] == [row.kl for row in nano.rows if row.name != "flow_grpo-equalized"]


@pytest.mark.parametrize("row", range(4))
def test_each_row_trains_for_seconds(tmp_path: Path, row: int) -> None:
    suite = load_suite(SUITE, TINY)
    prepared = prepare(suite)
    record = execute(TrainingRun(prepared, tmp_path / "run", "d", suite.rows[row].name, 0))
    assert record.status == "finished"
    _, scores = read_run(tmp_path / "run")
    assert len(scores) == 36 * 3, "one video of each held-out caption, three gold scores"


def test_a_table_names_the_full_model_that_it_is_not_about() -> None:
    wan, nano = (load_suite(path).model_dump(mode="json") for path in (SUITE, NANO))
    assert (full_model(wan), full_model(nano)) == ("Wan2.1", "HunyuanVideo-1.5")
    assert "nothing here is a result about Wan2.1.**" in nano_warning("nano_wan", wan)
    assert "nothing here is a result about HunyuanVideo-1.5.**" in nano_warning("nano", nano)
    assert nano_note(wan) == "A miniature model: no result about Wan2.1. "


def test_all_checkpoints_stay_small() -> None:
    folders = [CHECKPOINT.parent / name for name in FOLDERS]
    assert all(folder.is_dir() for folder in folders)
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) <= 25e6
