"""The full-size suites and their prompts: a shrunken copy of each YAML runs from end to end, so no key is a typo.

Only sizes change: frames, resolution, steps, updates, prompts, samples, and the folders that hold the weights. The
pipeline is a small random one in the released folders' layout; the scorers are the small parity fixtures.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import store
from bench.algorithm.forward import FORWARD
from bench.backbones.wan21 import Wan21
from bench.core.provenance import ROOT
from bench.launch.jobs import suite_jobs
from bench.plan.hardware import gpu_hardware
from bench.plan.memory import memory_use
from bench.plan.workload import suite_model
from bench.suite.division import open_reasons
from bench.suite.job import Job, TrainingRun
from bench.suite.load import load_suite, load_variants
from bench.suite.prepared import prepare
from bench.suite.schema import Suite
from bench.train.preflight import check_methods, check_suite
from bench.train.run import execute
from tests.helpers.nano_suite import CHECKPOINT
from tests.helpers.paths import FIXTURES_ROOT
from tests.helpers.wan import FOLDER as WAN_FOLDER

CONFIGS, PROMPTS = ROOT / "bench" / "configs", ROOT / "bench" / "prompts"
FIXTURES = FIXTURES_ROOT
SUITES = ("hunyuanvideo15_480p", "hunyuanvideo15_single_gpu")
WAN_SUITES = ("wan21_1p3b_480p", "wan21_1p3b_24gb", "wan21_14b")
WAN = "bench.backbones.wan21:Wan21"
SHA256 = {
    "hv15_train.txt": "7242947eb50539167e54bb29f5eb553e10808b9af6406eca336b399c9be600e4",
    "hv15_heldout.txt": "0d342eb68a58a95fa40f4e7c67e4e8d5be4d595a14cc14d8773a72bb4d971c2f",
    "hv15_validation.txt": "f5afebd8944980334468cc036c12d0d67218226d4baecdb8045db08304e9228f",
}
"""A changed prompt list is another benchmark: change the name of the file with it."""
LISTS = ("train", "held_out", "validation")
THEMES = 12
NEAR = 0.4
"""From this share of common words on (of all words of two prompts, each counted once) they are near-duplicates."""


# prompts ------------------------------------------------------------------------------------------------------
def prompts(which: str) -> list[str]:
    suite = load_suite(CONFIGS / "hunyuanvideo15_480p.yaml", ["variant=setting_b"])
    return getattr(suite.prompt_lists(), which)


def words(prompt: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", prompt.lower()))


@pytest.mark.parametrize("name", SHA256)
def test_prompt_files_are_those_of_the_manifest(name: str) -> None:
    assert hashlib.sha256((PROMPTS / name).read_bytes()).hexdigest() == SHA256[name]


@pytest.mark.parametrize(
    ("which", "number", "lengths"),
    [("train", 300, (198, 84, 18)), ("held_out", 64, (41, 16, 7)), ("validation", 24, (15, 6, 3))],
)
def test_prompts_come_in_three_lengths_and_twelve_themes(
    which: str, number: int, lengths: tuple[int, int, int]
) -> None:
    found = prompts(which)
    sizes = [len(prompt.split()) for prompt in found]
    short, long = sum(n <= 20 for n in sizes), sum(150 <= n <= 200 for n in sizes)
    medium = sum(21 <= n <= 60 for n in sizes)
    assert len(found) == len(set(found)) == number == sum(lengths)
    assert (short, medium, long) == lengths
    lines = (PROMPTS / f"hv15_{which.replace('_', '')}.txt").read_text(encoding="utf-8").splitlines()
    themes = [line for line in lines if line.startswith("# ")][1:]
    assert len(themes) == len(set(themes)) == THEMES
    assert all(prompt == prompt.strip() and "  " not in prompt for prompt in found)


def test_no_prompt_is_a_near_duplicate_of_another() -> None:
    """Within and across the lists; the closest pair shares a third of its words."""
    found = [(prompt, words(prompt)) for which in LISTS for prompt in prompts(which)]
    worst = max(
        (len(a & b) / len(a | b), first, second) for i, (first, a) in enumerate(found) for second, b in found[:i]
    )
    assert worst[0] < NEAR, worst


def test_prompts_hold_no_tokens_of_a_tokenizer_and_quote_in_pairs() -> None:
    """No added token of Qwen, of the glyph encoder or of VideoReward; quotation marks in pairs."""
    for prompt in [prompt for which in LISTS for prompt in prompts(which)]:
        assert not re.search(r"<\|?\w|\|>|\[/?[A-Z]+\]|</?s>", prompt), prompt
        assert prompt.count('"') % 2 == 0
        assert not re.search("[\u2018-\u201f]", prompt), prompt
    for which in ("train", "held_out"):
        assert sum('"' in prompt for prompt in prompts(which)) >= 5


# the suites ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random pipeline folder: nano's configs and tokenizers, a fresh transformer, released VAE ratios."""
    from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Transformer3DModel

    folder = tmp_path_factory.mktemp("pipelines") / "small"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("manifest.json", "report.json"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = HunyuanVideo15Transformer3DModel.load_config(CHECKPOINT / "transformer") | {"num_layers": 2}
        HunyuanVideo15Transformer3DModel.from_config(sizes).bfloat16().save_pretrained(folder / "transformer")
        vae = AutoencoderKLHunyuanVideo15(
            latent_channels=8,
            block_out_channels=(16, 16, 16, 16, 16),
            layers_per_block=1,
            spatial_compression_ratio=16,
            downsample_match_channel=False,
            upsample_match_channel=False,
        )
        vae.save_pretrained(folder / "vae")
    return folder


def shrunken(name: str, pipeline: Path, folder: Path, variant: str | None) -> Suite:
    """The suite with other sizes and folders; every other key stays as the YAML has it."""
    short = {which: [p for p in prompts(which) if len(p) < 70] for which in ("train", "held_out")}
    for which, found in short.items():
        quoted = next(p for p in prompts(which) if '"' in p and len(p) < 70)
        (folder / f"{which}.txt").write_text("\n".join([quoted, found[0]]) + "\n", encoding="utf-8")
    align = FIXTURES / "videoalign"
    clip = FIXTURES / "clip"
    sizes = {"size": "[5, 32, 32]", "lora_rank": 2, "lora_alpha": 2, "device": "cpu"}
    if name == "hunyuanvideo15_single_gpu":  # tiles smaller than the video; the others keep the YAML's
        sizes |= {"size": "[5, 96, 64]", "vae_tiling": "[64, 64, 4, 4]"}
    overrides = [
        f"backbone.checkpoint={pipeline}",
        *([f"backbone.name={WAN}"] if name in WAN_SUITES else []),
        *(f"backbone.train.{key}={value}" for key, value in sizes.items()),
        *(f"budget.{key}" for key in ("updates=1", "prompts=2", "group_size=2", "steps=3", "train_steps=2")),
        *("evaluation.steps=1", "evaluation.videos_per_prompt=1"),
        f"evaluator_params.videoalign.checkpoint={align / 'VideoReward'}",
        f"evaluator_params.videoalign.base_model={align / 'tiny-qwen2-vl'}",
        f"evaluator_params.videoalign.prompt_template={align / 'prompt_template.txt'}",
        f"evaluator_params.clipscore.checkpoint={clip / 'clip-vit-tiny-patch14'}",
        f"evaluator_params.pickscore.checkpoint={clip / 'PickScore_v1'}",
        f"evaluator_params.pickscore.processor={clip / 'CLIP-ViT-H-14-laion2B-s32B-b79K'}",
        *(f"evaluator_params.{name}.device=cpu" for name in ("videoalign", "clipscore", "pickscore")),
        *(f"prompts.{key}={folder / which}.txt" for key, which in (("train", "train"), ("heldout", "held_out"))),
        "prompts.validation=null",
        "seeds=[0]",
        *([] if variant is None else [f"variant={variant}"]),
    ]
    return load_suite(CONFIGS / f"{name}.yaml", overrides)


def run(job: Job) -> store.RunRecord:
    execute(job)
    return store.read_record(job.folder)


@pytest.mark.parametrize(
    ("name", "variant", "rows"),
    [
        ("hunyuanvideo15_480p", "setting_b", ("base", "dance_grpo-fixed", "sage_grpo-dual")),
        ("hunyuanvideo15_480p", "setting_a", ("flow_grpo-fixed", "cps-none")),
        ("hunyuanvideo15_single_gpu", None, ("cps-fixed", "sage_grpo-dual")),
        ("hunyuanvideo15_zoo_single_gpu", None, ("mix_grpo-window5", "diffusion_nft-none")),
        ("wan21_1p3b_480p", None, ("base", "dance_grpo-fixed", "cps-fixed")),
        ("wan21_1p3b_24gb", None, ("sage_grpo-dual",)),
        ("wan21_14b", None, ("flow_grpo-fixed",)),
    ],
)
def test_a_shrunken_suite_runs_end_to_end(
    name: str, variant: str | None, rows: tuple[str, ...], pipeline: Path, tmp_path: Path
) -> None:
    suite = shrunken(name, WAN_FOLDER if name in WAN_SUITES else pipeline, tmp_path, variant)
    prepared = prepare(suite)
    check_suite(prepared)
    jobs = [job for job in suite_jobs(prepared, tmp_path) if job.identity["row"] in rows]
    assert len(jobs) == len(rows)
    for job in jobs:
        record = run(job)
        assert (record.status, record.error) == ("finished", None)
        assert record.extra["scale"] == "full"
        assert record.suite == (name if variant is None else f"{name}/{variant}")
        metrics = set(store.read_run(job.folder)[1]["metric"])
        assert {"VQ", "MQ", "TA", "pickscore"} <= metrics
        if isinstance(job, TrainingRun):
            assert record.updates_done == 1
            if record.extra.get("family") != FORWARD:  # a forward method has no ratio of log-probabilities
                assert record.gates["ratio_audit"]["passed"], record.gates


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_says_what_it_takes_from_the_paper(name: str) -> None:
    """Settings that both suites keep: the paper's schedule, guidance, group and KL rows."""
    for suite in load_variants(CONFIGS / f"{name}.yaml"):
        budget: Any = suite.budget
        assert (budget.shift, budget.guidance, budget.group_size, budget.minibatches) == (5.0, 6.0, 4, 1)
        assert [row.name for row in suite.rows] == [
            *("dance_grpo-fixed", "flow_grpo-fixed", "cps-fixed", "cps-none", "sage_grpo-dual")
        ]
        assert suite.scale == "full"
        assert (suite.clip_reference_size is None) == (name == "hunyuanvideo15_480p")


def test_the_zoo_differs_from_the_small_suite_in_its_rows_only() -> None:
    zoo, small = (load_suite(CONFIGS / f"hunyuanvideo15_{name}.yaml") for name in ("zoo_single_gpu", "single_gpu"))
    assert zoo.shared() == small.shared()
    assert zoo.seeds == small.seeds
    rows = {row.name: row for row in small.rows}
    assert {row.name for row in zoo.rows if rows.get(row.name) == row} == {"flow_grpo-fixed", "sage_grpo-dual"}
    prepared = prepare(zoo)
    check_methods(prepared)
    assert all(open_reasons(row.method, row.spec) == [] for row in prepared.rows)


@pytest.mark.parametrize("name", WAN_SUITES)
def test_a_suite_of_wan21_has_the_models_rate_guidance_and_reference_latent(name: str) -> None:
    """fps 16, 20 steps of shift 3, guidance 5 with the empty negative prompt; clip ranges for 81 frames at 480p."""
    suite = load_suite(CONFIGS / f"{name}.yaml")
    budget, train = suite.budget, suite.backbone.train
    assert (suite.backbone.name, train["fps"], train["negative_prompt"]) == ("wan21", 16.0, "")
    assert (budget.steps, budget.shift, budget.guidance, budget.micro_batch) == (20, 3.0, 5.0, 1)
    assert (train["lora_rank"], train["lora_alpha"]) == (64, 128)
    assert suite.weights == {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}
    methods = ("dance_grpo-fixed", "flow_grpo-fixed", "cps-fixed", "sage_grpo-dual")
    assert tuple(row.name for row in suite.rows) == methods
    whole = 16 * 21 * 60 * 104
    assert suite.clip_reference_size == (None if train["size"] == [81, 480, 832] else whole)
    Wan21.check_suite(None, budget.guidance, train)


@pytest.mark.parametrize(("name", "limit"), [("wan21_1p3b_24gb", 24), ("wan21_1p3b_480p", 48), ("wan21_14b", 80)])
def test_a_suite_of_wan21_fits_the_card_it_is_for(name: str, limit: int) -> None:
    prepared = prepare(load_suite(CONFIGS / f"{name}.yaml", [f"backbone.name={WAN}"]))
    model = suite_model(prepared)
    assert model is not None
    memory, _ = memory_use(prepared, model, gpu_hardware("h100"))
    assert 0.2 * limit < memory.peak / 1e9 < limit


def test_the_pilot_differs_from_its_suite_in_seeds_prompts_and_noise_of_the_evaluation_only() -> None:
    pilot = load_suite(CONFIGS / "hunyuanvideo15_480p_pilot.yaml")
    suite = load_variants(CONFIGS / "hunyuanvideo15_480p.yaml")[0]
    assert pilot.seeds == [100, 101, 102]
    assert (pilot.evaluation.prompts, pilot.evaluation.seed) == ("validation", 1000)
    assert {**pilot.shared(), "evaluation": suite.shared()["evaluation"]} == suite.shared()
    assert prepare(pilot).scored_prompts == prompts("validation")
    assert pilot.rows == suite.rows


def test_the_two_settings_differ_in_their_reward_weights_only() -> None:
    b, a = load_variants(CONFIGS / "hunyuanvideo15_480p.yaml")
    assert (b.weights, a.weights) == ({"VQ": 0.5, "MQ": 0.5, "TA": 1.0}, {"VQ": 1.0, "MQ": 1.0, "TA": 1.0})
    assert {**b.shared(), "reward": a.shared()["reward"]} == a.shared()
    assert (b.budget.steps, b.budget.train_steps, b.budget.prompts) == (20, 19, 16)
    assert b.backbone.train["size"] == [81, 480, 848]
