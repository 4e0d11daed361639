"""Bad input of a full-size suite: one sentence and exit code 2 from `bench run` and `bench plan`, nothing loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import store
from bench.backbones.hunyuanvideo15 import checkpoint
from bench.cli import main
from bench.launch import run
from bench.launch.config import LaunchConfig
from bench.launch.jobs import suite_jobs
from bench.launch.run import run_suites
from bench.plan.fit import check_gpu_memory
from bench.store.record import STARTED
from bench.suite.prepared import prepare
from tests.helpers.full_size import released, shards
from tests.helpers.nano_suite import CHECKPOINT, NANO, TINY, tiny

LISTS = "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}"
FULL = (*TINY, LISTS, "backbone.train.device=null")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "480p_t2v")


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "480p_t2v"))


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading any part of a checkpoint, or starting a run, fails the test."""
    import diffusers
    import transformers

    def loaded(*args: Any, **words: Any) -> None:
        pytest.fail("loaded")

    for part in ("load_transformer", "load_vae", "load_text"):
        monkeypatch.setattr(checkpoint, part, loaded)
    for library in (diffusers.ModelMixin, transformers.PreTrainedModel):
        monkeypatch.setattr(library, "from_pretrained", loaded)
    monkeypatch.setattr(run, "run_jobs", loaded)


def refused(command: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """The one sentence of stderr."""
    assert main([command, str(NANO), *FULL, *words, "--results", str(tmp_path / "results")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith(f"bench {command}: ")
    assert err.endswith(".\n")
    return err


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_shard(folder: Path) -> None:
    shards(folder, "transformer")[1].unlink()


def quantise(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = shards(folder, "transformer")[0]
    save_file({key: value.to(torch.float8_e4m3fn) for key, value in load_file(path).items()}, path)


def distil(folder: Path) -> None:
    edit(folder / "guider" / "guider_config.json", guidance_scale=1.0)


def drop_vocabulary(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()


def cut_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text()[:1000])


Damage = Callable[[Path], None]
SUITE: dict[str, tuple[Damage | None, tuple[str, ...], str]] = {
    "missing shard": (drop_shard, (), r"1 of \d+ shards of transformer are missing, first .*-00002-of-.*restore"),
    "no vocabulary": (drop_vocabulary, (), "tokenizer has neither tokenizer.json nor vocab.json.*restore the folder"),
    "half a tokenizer": (cut_tokenizer, (), "tokenizer.json is not JSON .*restore the folder"),
    "dtype of a file": (quantise, (), "holds weights of dtype F8_E4M3: give the folder with F32 or BF16 or F16"),
    "dtype": (None, ("backbone.train.dtype=float16",), "'dtype' is 'float16': it should be 'float32' or 'bfloat16'"),
    "dtype of all weights": (
        None,
        ("backbone.train.lora_rank=0", "backbone.train.dtype=bfloat16"),
        "bfloat16 weights lose small updates to rounding: set backbone.train.dtype to float32",
    ),
    "rank": (None, ("backbone.train.lora_rank=-4",), "lora_rank is -4: give a rank of at least 1, or 0"),
    "no rank": (None, ("backbone.train.lora_rank=many",), "'lora_rank' is 'many': it should be a valid integer"),
    "layers": (
        None,
        ("backbone.train.lora_targets=all",),
        "'lora_targets' is 'all': it should be 'attention'",
    ),
    "guidance": (distil, ("budget.guidance=6.0",), r"is distilled .*: set budget.guidance to 1"),
    "size": (None, ("backbone.train.size=[12, 16, 16]",), r"size \[12, 16, 16\]: frames must be 4 n \+ 1"),
    "no size": (None, ("backbone.train.size=[13, 16]",), r"'size' is \[13, 16\]: it has too few items"),
    "tiles": (None, ("backbone.train.vae_tiling=[8, 8, 4, 4]",), "the pixel sizes 4 times the latent ones"),
}
"""Damage to the folder, overrides, and the sentence of both commands."""


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", SUITE)
def test_a_suite_or_a_folder_that_does_not_fit(
    name: str, command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, words, sentence = SUITE[name]
    if damage is not None:
        damage(folder)
    said = refused(command, (f"backbone.checkpoint={folder}", *words), capsys, tmp_path)
    assert re.search(sentence, said), said


def test_half_an_evaluator_is_refused(intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "clip"
    shutil.copytree(CHECKPOINT.parent / "clip", judge, ignore=shutil.ignore_patterns("manifest.json"))
    weights = judge / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    words = ("evaluation.evaluators=[gold, clipscore]", f"evaluator_params.clipscore.checkpoint={judge}")
    said = refused("run", (f"backbone.checkpoint={intact}", *words), capsys, tmp_path)
    assert re.search(r"clip does not load \(model.safetensors has \d+ bytes, its header requires \d+\)", said), said


TOGETHER = "backbone.train.parallel={context: %d}"
GPUS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "too few for a sample": (
        (TOGETHER % 2,),
        (TOGETHER % 2, "--gpu", "h100"),
        r"context is 2, but a run has 1 process.* multiple of 2|--gpus 1 and --context-parallel 2: .*divides",
    ),
    "no multiple": (
        (TOGETHER % 2, "--launcher", "torchrun", "--nproc", "3"),
        (TOGETHER % 2, "--gpus", "3"),
        r"context is 2, but a run has 3 process.* multiple of 2|--gpus 3 and --context-parallel 2: .*divides",
    ),
    "heads": (
        (TOGETHER % 8, "--launcher", "torchrun", "--nproc", "8"),
        (TOGETHER % 8, "--gpus", "8"),
        r"context is 8, which does not divide the \d+ attention heads: choose another degree",
    ),
    "tokens": (
        (TOGETHER % 3, "--launcher", "torchrun", "--nproc", "3"),
        (TOGETHER % 3, "--gpus", "3"),
        r"context is 3, which does not divide the 64 latent tokens: choose another degree",
    ),
    "no share each": (
        ("--launcher", "torchrun", "--nproc", "3"),
        ("--gpus", "3"),
        "3 processes cannot share the 1 micro-batch of an optimizer step evenly.*N processes that divide 1",
    ),
    "nothing to shard over": (
        ("--launcher", "torchrun", "--nproc", "1", "--shard", "full"),
        ("--shard", "full"),
        "--shard is full, but each run has one process|--shard full shards .*give --gpus 2 or more",
    ),
}
"""Words of `bench run`, of `bench plan`, and what either says."""


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("name", GPUS)
def test_gpus_that_do_not_fit_the_suite(
    name: str, command: str, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, sentence = GPUS[name][command == "plan"], GPUS[name][2]
    said = refused(command, (f"backbone.checkpoint={intact}", *words), capsys, tmp_path)
    assert re.search(sentence, said), said


def test_a_degree_of_the_command_line_that_does_not_divide(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"backbone.checkpoint={intact}", "--gpus", "3", "--context-parallel", "3")
    assert "--context-parallel 3 does not divide 64 latent tokens" in refused("plan", words, capsys, tmp_path)


def test_a_finished_run_of_another_rank_is_named(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The suite's first row stands there with a LoRA of rank 8; now it wants 4."""
    from bench.core.provenance import ROOT

    suite = (f"backbone.checkpoint={intact}",)
    exp = tiny(*FULL[len(TINY) :], *suite)
    stored = ROOT / "results" / "reference" / "nano" / "base"
    for job in suite_jobs(prepare(exp), tmp_path / "results")[:1]:
        shutil.copytree(stored, job.folder)
        record = json.loads((job.folder / store.RUN).read_text())
        (job.folder / store.RUN).write_text(json.dumps({**record, "digest": job.digest, "config": exp.shared()}))
        (job.folder / STARTED).write_text(job.digest + "\n")
    said = refused("run", (*suite, "backbone.train.lora_rank=4"), capsys, tmp_path)
    assert re.search(r"holds another run: .*lora_rank.*suite=NAME", said), said


def test_a_checkpoint_of_another_rank_is_not_taken_up(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that has begun with rank 8 has no record yet: its digest is not that of rank 4."""
    suite = (f"backbone.checkpoint={intact}",)
    job = suite_jobs(prepare(tiny(*FULL[len(TINY) :], *suite)), tmp_path / "results")[1]
    job.folder.mkdir(parents=True)
    (job.folder / STARTED).write_text(job.digest + "\n")
    said = refused("run", (*suite, "backbone.train.lora_rank=4"), capsys, tmp_path)
    assert f"{job.folder} holds another run: its digest is {job.digest}" in said


# memory -------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 1 GB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = SimpleNamespace(name="Tiny GPU", total_memory=10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)


WIDE = ("backbone.train.size=[81, 256, 256]", "backbone.train.decode_batch=4")
"""A larger video: 16 latents of 64 x 64 for each frame, the room of seven of a decoder's maps for four videos."""


@pytest.mark.usefixtures("small_gpu")
def test_a_run_that_does_not_fit_on_the_gpu_is_refused(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "all_jobs", lambda *args: pytest.fail("hashed"))
    said = refused("run", (f"backbone.checkpoint={intact}", *WIDE), capsys, tmp_path)
    assert re.search(r"does not fit: each GPU needs about \d+ GB, and Tiny GPU x 1 has 1 GB each: set .*", said), said
    assert "set backbone.train.decode_batch=1 and " in said


def test_the_plan_of_the_same_run_is_shown_and_refused(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"backbone.checkpoint={intact}", *WIDE, "--gpu-memory", "1")
    assert main(["plan", str(NANO), *FULL, *words, "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "of 1 GB (does not fit)" in out
    assert re.search(r"does not fit: each GPU needs about \d+ GB, and h100 x 1 has 1 GB each: set ", err), err


@pytest.mark.usefixtures("small_gpu")
@pytest.mark.parametrize("words", ["backbone.train.device=cpu", "backbone.checkpoint=nano"])
def test_a_run_elsewhere_is_not_measured_by_this_gpu(intact: Path, words: str) -> None:
    check_gpu_memory(prepare(tiny(*FULL[len(TINY) :], *WIDE, f"backbone.checkpoint={intact}", words)))


@pytest.mark.usefixtures("small_gpu")
def test_runs_at_a_time_share_one_gpu(
    intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one run needs here is mostly the GPU's context: 0.6 GB of 1. The suite has five: the base and four rows."""
    suite = (f"backbone.checkpoint={intact}",)
    said = refused("run", (*suite, "--processes", "4"), capsys, tmp_path)
    assert re.search(r"4 runs at a time need about 3 GB, and the Tiny GPU has 1 GB: use --processes 1\.", said)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for how in (LaunchConfig(processes=1), LaunchConfig("torchrun", nproc=1)):
        started: list[Any] = []
        monkeypatch.setattr(run, "run_jobs", lambda *given, started=started: started.append(given))
        run_suites([prepare(tiny(*FULL[len(TINY) :], *suite))], tmp_path / "results", how)
        assert len(started) == 1
