"""Whatever stands in a file or an option: the answer is one sentence or acceptance, never a traceback or a hang."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bench import plugins, store
from bench.audit.findings import Finding
from bench.audit.verify_run import check_run
from bench.backbones.hunyuanvideo15 import HunyuanVideo15
from bench.cli.check import _parameters
from bench.core.hashing import MANIFEST, canonical_json, verify_manifest
from bench.launch.config import load_launch_config
from bench.report.data.votes import read_votes
from bench.score.evaluators import evaluator_parameters
from bench.score.videos import read_items
from bench.store.replay import REPLAY, read_replay
from bench.suite.load import load_variants
from bench.suite.paths import resolve
from bench.suite.prepared import prepare_all
from bench.suite.prompts import PromptLists, read_prompts
from bench.train.preflight import check_backbone
from evaluators.clip.frames import read_image_rule
from evaluators.common import weight_files
from evaluators.videoalign.checkpoint import read_config
from evaluators.videoalign.inputs import read_template
from tests.fuzz.mutations import TOKENS, VALUES, damaged_bytes, damaged_texts, damaged_values, yaml_files
from tests.fuzz.outcomes import answer
from tests.helpers.nano_suite import NANO
from tests.helpers.paths import PROJECT
from tests.helpers.raters import by_order, votes
from tests.helpers.toy_records import CONFIG, write_suite

SUITES = [path.read_text(encoding="utf-8") for path in sorted(NANO.parent.glob("*.yaml"))]
LAUNCHES = [path.read_text(encoding="utf-8") for path in sorted((PROJECT / "examples/launch").glob("*.yaml"))]
PROMPTS = "# a comment\na red circle moving left\na blue square\n\n#1 player\ne\u0301t\u00e9\n"
EVALUATORS = ("clipscore", "videoalign", "detectors")
SCORES = {
    ".csv": 'video,prompt\na.mp4,a red circle\nb.mp4,"a circle, red"\n"c.mp4","a ""red"" circle"\n',
    ".jsonl": '{"video": "a.mp4", "prompt": "a red circle"}\n{"video": "b.mp4", "prompt": "\\ud83d\\ude00"}\n',
}


def use(suites: Any) -> None:
    """All that a dry run needs of a suite."""
    for prepared in prepare_all(suites):
        check_backbone(prepared, may_lack=True)
        canonical_json([prepared.suite.shared(), [row.identity() for row in prepared.rows]])


@given(content=st.sampled_from(SUITES).flatmap(yaml_files))
def test_suites(content: bytes, folder: Path) -> None:
    path = folder / "suite.yaml"
    for name, text in zip(sorted(NANO.parent.glob("*.yaml")), SUITES, strict=True):
        (folder / name.name).write_text(text, encoding="utf-8")  # for `extends`
    path.write_bytes(content)
    answer("suites", lambda: use(load_variants(path)))


def _keys(value: Any, key: str = "") -> list[str]:
    """All dotted keys of nested mappings."""
    if not isinstance(value, dict):
        return []
    names = [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
    return [name for name, _ in names] + [deep for name, item in names for deep in _keys(item, name)]


KEYS = [
    *_keys(yaml.safe_load(SUITES[-1])),
    *_keys(CONFIG),
    *(f"backbone.train.{key}" for key in inspect.signature(HunyuanVideo15).parameters),
    *(
        f"evaluator_params.{name}.{key}"
        for name in ("clipscore", "videoalign")
        for key in ("device", "micro_batch", "step")
    ),
    *("", ".", "a..b", "rows.0.method", "variants", "variant", "extends", "noise_policy.kind", "advantage.clip"),
    *("evaluation", "evaluation.seed", "kl_probe_every", "clip_reference_size", "group_noise", "last_step"),
]
SETTINGS = st.sampled_from(TOKENS) | st.sampled_from(VALUES).map(
    lambda value: yaml.safe_dump(value, width=10**9).strip()
)
ROWS = ("[{method: cps, kl: {name: dual, params: {target: %s}}}]", "[{method: cps, label: a, params: {eta: %s}}]",
        "[{method: %s}]", "[{method: cps, label: %s}]", "[{method: cps, kl: %s}]")  # fmt: skip


@given(
    overrides=st.lists(
        st.builds("{}={}".format, st.sampled_from(KEYS), SETTINGS)
        | st.builds(lambda rows, value: "rows=" + rows % value, st.sampled_from(ROWS), SETTINGS)
        | damaged_texts("budget.lr=1e-4"),
        min_size=1,
        max_size=2,
    )
)
def test_overrides(overrides: list[str], folder: Path) -> None:
    answer("overrides", lambda: use(load_variants(NANO, overrides)))


@given(content=st.sampled_from(LAUNCHES).flatmap(yaml_files))
def test_launch_files(content: bytes, folder: Path) -> None:
    path = folder / "launch.yaml"
    path.write_bytes(content)
    answer("launch files", lambda: load_launch_config(path, launcher=None, nproc=None))


@given(content=damaged_bytes(PROMPTS), suffix=st.sampled_from((".txt", "", ".csv", ".json")))
def test_prompt_lists(content: bytes, suffix: str, folder: Path) -> None:
    path = folder / f"prompts{suffix}"
    path.write_bytes(content)

    def read() -> None:
        prompts = read_prompts(str(path), "prompts.train")
        PromptLists(prompts, ["another"]).check(1)
        assert PromptLists(prompts, ["another"]).digest
        assert all(prompt.encode() and "\ufeff" not in prompt[:1] for prompt in prompts[:1])

    answer("prompt lists", read)


@given(data=st.data(), suffix=st.sampled_from((".csv", ".jsonl", ".json", ".txt")))
def test_score_lists(data: st.DataObject, suffix: str, folder: Path) -> None:
    path = folder / f"list{suffix}"
    path.write_bytes(data.draw(damaged_bytes(SCORES[".csv" if suffix in (".csv", ".txt") else ".jsonl"])))

    def read() -> None:
        for item in read_items([], path)[0]:
            (item.video + (item.prompt or "")).encode()  # raises UnicodeEncodeError on a text that cannot be stored

    answer("score lists", read)


VOTES = votes("anna", by_order()).to_csv(index=False)


@given(content=damaged_bytes(VOTES))
def test_votes(content: bytes, folder: Path) -> None:
    path = folder / "votes.csv"
    path.write_bytes(content)
    answer("votes", lambda: read_votes([path]))


for evaluator in EVALUATORS:
    plugins.find("evaluators", evaluator)  # its import takes longer than any input


@given(
    name=st.sampled_from(EVALUATORS),
    key=st.sampled_from(
        ("micro_batch", "device", "dtype", "prefix", "num_frames", "sample_fps", "normalise", "step", "x")
    ),
    value=SETTINGS,
)
def test_parameters(name: str, key: str, value: str, folder: Path) -> None:
    words = [f"{name}.{key}={value}"]
    answer("parameters", lambda: evaluator_parameters([name], words, nano=True, dtype=None, device=None))
    answer("parameters", lambda: _parameters([f"{key}={value}"]))


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The folder of a whole run, with a replay and a manifest."""
    run = write_suite(folder / "results", seeds=(0,)) / "cps-fixed" / "seed-0"
    record = store.read_record(run)
    replay = {
        **{"schema": 1, "digest": record.digest, "scores_digest": record.scores_digest, "date": "2026-01-01"},
        **{"hardware": {}, "equal": True, "training_gaps": 0, "first_gap": None, "floors": {}, "other": []},
    }
    (run / REPLAY).write_text(json.dumps(replay), encoding="utf-8")
    (run / store.STARTED).write_text(record.digest + "\n", encoding="utf-8")
    (run / MANIFEST).write_text(json.dumps({store.RUN: {"sha256": "0", "bytes": 3}}), encoding="utf-8")
    return run


@given(data=st.data(), name=st.sampled_from((store.RUN, store.TRAIN, REPLAY, MANIFEST, store.STARTED)))
def test_records(data: st.DataObject, name: str, run: Path) -> None:
    whole = (run / name).read_bytes()
    text = whole.decode()
    files = damaged_bytes(text)
    if name in (store.RUN, REPLAY, MANIFEST):
        files |= damaged_values(json.loads(text)).map(lambda value: json.dumps(value).encode())
    (run / name).write_bytes(data.draw(files))
    record = None

    def read() -> None:
        nonlocal record
        record = store.read_record(run)

    def verify() -> None:
        for result in check_run(run):
            assert not isinstance(result, Finding) or "\n" not in result.line

    try:
        answer("records", read)
        answer("records", lambda: store.read_lines(run / store.TRAIN))
        answer("records", lambda: store.read_digest(run))
        answer("records", lambda: verify_manifest(run))
        answer("records", verify)
        if record is not None:
            answer("records", lambda: read_replay(run, record))  # type: ignore[arg-type]
    finally:
        (run / name).write_bytes(whole)


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    """A LoRA of one layer of nano in peft's layout, with room for its configuration."""
    prefix = "base_model.model.transformer_blocks.0.attn.to_q.lora_"
    (folder / "lora").mkdir()
    weights = {f"{prefix}A.weight": torch.ones(2, 64), f"{prefix}B.weight": torch.ones(64, 2)}
    save_file(weights, folder / "lora/adapter_model.safetensors")
    return folder / "lora"


SETTINGS = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8, "ff.*": 1}, "init_lora_weights": True}


@given(content=damaged_bytes(json.dumps(SETTINGS)) | damaged_values(SETTINGS).map(lambda v: json.dumps(v).encode()))
def test_lora_configurations(content: bytes, lora: Path) -> None:
    (lora / "adapter_config.json").write_bytes(content)
    answer("LoRA files", lambda: HunyuanVideo15.check_policy_file(lora, resolve("nano")))


@given(data=st.data())
def test_lora_files(data: st.DataObject, lora: Path) -> None:
    whole = (lora / "adapter_model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = data.draw(damaged_texts(whole[8:end].decode())).encode()
    (lora / "damaged.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + whole[end:])
    answer("LoRA files", lambda: HunyuanVideo15.check_policy_file(lora / "damaged.safetensors", resolve("nano")))


FILES = (
    "hunyuanvideo15/vae/config.json",
    "hunyuanvideo15/transformer/config.json",
    "hunyuanvideo15/model_index.json",
    "clip/preprocessor_config.json",
    "clip/config.json",
    "videoreward/model_config.json",
    "videoreward/prompt_template.txt",
)


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> Path:
    """The packaged checkpoints by links, so that a file can be replaced."""
    source = resolve("nano/gold").parent
    for path in source.rglob("*"):
        if path.is_file():
            link = folder / "checkpoints" / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (folder / "checkpoints/clip/model.safetensors").unlink()
    return folder / "checkpoints"


@given(data=st.data(), name=st.sampled_from(FILES))
def test_checkpoint_files(data: st.DataObject, name: str, checkpoints: Path) -> None:
    path, source = checkpoints / name, resolve("nano/gold").parent / name
    text = source.read_text(encoding="utf-8")
    files = damaged_bytes(text)
    if path.suffix == ".json":
        files |= damaged_values(json.loads(text)).map(lambda value: json.dumps(value).encode())
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    content, shards = data.draw(files), data.draw(damaged_values(index))
    path.unlink()
    path.write_bytes(content)
    (checkpoints / "clip/model.safetensors.index.json").write_text(json.dumps(shards), encoding="utf-8")
    try:
        answer("checkpoint files", lambda: HunyuanVideo15.check_suite(checkpoints / "hunyuanvideo15", 1.0, {}))
        answer("checkpoint files", lambda: read_image_rule(checkpoints / "clip", 32))
        answer("checkpoint files", lambda: weight_files(checkpoints / "clip"))
        answer("checkpoint files", lambda: read_config(checkpoints / "videoreward"))
        answer("checkpoint files", lambda: read_template(checkpoints / "videoreward/prompt_template.txt"))
    finally:
        path.unlink()
        path.symlink_to(source)
