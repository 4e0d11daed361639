"""`bench assets`: known facts, missing files, and comparison of present files."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.cli import main
from bench.plugins import available
from bench.suite import assets
from bench.suite.assets import DATA, resolve
from bench.suite.paths import PATHS
from evaluators.videoalign.scorer import OFFICIAL_TEMPLATE, OFFICIAL_WEIGHTS
from tests.helpers.nano_suite import NANO, TINY

FULL = {
    "suite": "full",
    "backbone": {"name": "hunyuanvideo15", "checkpoint": "models/HunyuanVideo-1.5-Diffusers-720p_t2v"},
    "budget": {
        **{"updates": 1, "prompts": 4, "group_size": 4, "steps": 10, "train_steps": 5},
        **{"shift": 5.0, "guidance": 1.0, "lr": 3.0e-4},
    },
    "reward": {"videoalign": {"VQ": 1}},
    "evaluation": {
        "evaluators": ["videoalign", "clipscore", "pickscore", "gold"],
        "steps": 20,
        "videos_per_prompt": 4,
    },
    "evaluator_params": {
        "videoalign": {"checkpoint": "models/VideoReward", "base_model": "models/qwen"},
        "clipscore": {"checkpoint": "models/clip"},
        "pickscore": {"checkpoint": "models/PickScore_v1", "processor": "models/laion"},
    },
    "prompts": {"train": "bench/prompts/nano_train.txt", "heldout": "bench/prompts/nano_heldout.txt"},
    "seeds": [0],
    "rows": [{"method": "cps"}],
}
"""A suite on released weights, with relative paths that a test puts below its own folder."""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    text = yaml.safe_dump(FULL).replace("models/", f"{tmp_path}/models/")
    path = tmp_path / "full.yaml"
    path.write_text(text)
    return path


def fill(folder: Path) -> None:
    """Every file that the suite needs, small, at the path that the suite sets."""
    folders = {"VideoReward": "VideoReward", "Qwen2-VL-2B-Instruct": "qwen", "PickScore_v1": "PickScore_v1"}
    folders |= {"CLIP-ViT-H-14-laion2B-s32B-b79K": "laion", "clip-vit-large-patch14": "clip"}
    folders |= {"VideoReward-template": "VideoReward"}
    folders |= {name: name for name in ["HunyuanVideo-1.5-Diffusers-720p_t2v"]}
    for name, subfolder in folders.items():
        for file in assets.known(["hunyuanvideo15"])[name].files:
            path = folder / subfolder / file.path / ("config.json" if file.path.endswith("/") else "")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")


def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    """The data file, with `content` as the published reward model and evaluation text."""
    data = yaml.safe_load(DATA.read_text())
    weights = data["VideoReward"]["files"][1]
    weights |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    data["VideoReward-template"]["files"][0]["sha256"] = hashlib.sha256(b"{}").hexdigest()
    copy = tmp_path / "assets.yaml"
    copy.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(assets, "DATA", copy)


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.strip().startswith("hf download")]


def test_the_facts_agree_with_the_code() -> None:
    known = assets.known(["hunyuanvideo15"])
    (weights,) = (file for file in known["VideoReward"].files if file.path.endswith("model.pth"))
    assert (weights.sha256, weights.bytes) == (OFFICIAL_WEIGHTS, 5_031_072_529)
    assert known["VideoReward-template"].files[0].sha256 == OFFICIAL_TEMPLATE
    for asset in known.values():
        assert asset.hub or asset.by_hand
        assert asset.revision is None or len(asset.revision) == 40
        for use in asset.uses:
            owner, _, key = use.partition(".")
            assert key in PATHS
            assert owner in {"backbone", "hpsv2", *available("evaluators")}


def test_without_a_suite_everything_known_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets"]) == 0
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in assets.known(["hunyuanvideo15"]))
    words = next(words for words in commands(out) if words[2] == "KlingTeam/VideoReward")
    assert words[3:6] == [
        "model_config.json",
        "checkpoint-11352/model.pth",
        "checkpoint-11352/tokenizer/tokenizer.json",
    ]
    assert words[6:8] == ["--revision", "b8e421fe21aec3dde5f61fdd1dc44e1d603b9727"]
    assert words[8:] == ["--local-dir", "checkpoints/VideoReward"]
    assert "licence: apache-2.0" in out
    assert "licence: Tencent Hunyuan Community" in out


def test_a_nano_suite_has_all_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", str(NANO)]) == 0
    out = capsys.readouterr().out
    parts = ("nano/hunyuanvideo15", "nano/videoreward", "nano/clip", "nano/pickscore")
    assert all(f": {part}, packaged with the project" in out for part in parts)
    assert out.count("all sha256 as listed") == 4
    assert "hf download" not in out


def test_an_altered_nano_part_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "clip"
    shutil.copytree(resolve("nano/clip"), copy)
    words = ["assets", str(NANO), f"evaluator_params.clipscore.checkpoint={copy}"]
    assert main(words) == 0
    assert "a folder with a manifest" in capsys.readouterr().out
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "WRONG: checkpoint file" in out
    assert "1 of these are missing or wrong" in out


def test_what_is_missing_has_its_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: Path) -> None:
    assert main(["assets", str(suite)]) == 1
    out = capsys.readouterr().out
    models = tmp_path / "models"
    targets = {words[2]: words[words.index("--local-dir") + 1] for words in commands(out)}
    assert targets == {
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-720p_t2v": f"{models}/HunyuanVideo-1.5-Diffusers-720p_t2v",
        "KlingTeam/VideoReward": f"{models}/VideoReward",
        "Qwen/Qwen2-VL-2B-Instruct": f"{models}/qwen",
        "openai/clip-vit-large-patch14": f"{models}/clip",
        "yuvalkirstain/PickScore_v1": f"{models}/PickScore_v1",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": f"{models}/laion",
    }
    assert f"byte for byte (some lines end in blanks) as {models}/VideoReward/prompt_template.txt" in out
    assert "gold" not in out
    assert not models.exists()


def test_present_files_are_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts(monkeypatch, tmp_path, b"weights")
    fill(tmp_path / "models")
    weights = tmp_path / "models" / "VideoReward" / "checkpoint-11352" / "model.pth"
    assert main(["assets", str(suite)]) == 1
    out = capsys.readouterr().out
    assert "WRONG SIZE (2 bytes) checkpoint-11352/model.pth" in out
    assert [words[2:4] for words in commands(out)] == [["KlingTeam/VideoReward", "checkpoint-11352/model.pth"]]
    weights.write_bytes(b"weighty")  # the right size, other bytes
    assert main(["assets", str(suite)]) == 0
    assert "everything is present" in capsys.readouterr().out
    assert main(["assets", str(suite), "--verify"]) == 1
    assert "WRONG SHA256" in capsys.readouterr().out
    weights.write_bytes(b"weights")
    assert main(["assets", str(suite), "--verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("verified") == 2
    assert "hf download" not in out
    (tmp_path / "models" / "clip" / "model.safetensors").rename(tmp_path / "models" / "clip" / "pytorch_model.bin")
    assert main(["assets", str(suite)]) == 0
    for gone in ("clip/pytorch_model.bin", "HunyuanVideo-1.5-Diffusers-720p_t2v/vae/config.json"):
        (tmp_path / "models" / gone).unlink()
        assert main(["assets", str(suite)]) == 1
        (tmp_path / "models" / gone).write_text("{}")
    (tmp_path / "models" / "laion" / "tokenizer.json").write_text("")  # what a broken download leaves
    assert main(["assets", str(suite)]) == 1
    assert "WRONG SIZE (0 bytes) tokenizer.json" in capsys.readouterr().out


def test_a_place_that_the_suite_does_not_name(capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: Path) -> None:
    assert main(["assets", str(suite), "evaluator_params={}"]) == 1
    out = capsys.readouterr().out
    assert "add evaluator_params.videoalign.checkpoint=checkpoints/VideoReward" in out
    assert "add evaluator_params.pickscore.checkpoint=checkpoints/PickScore_v1" in out
    laion = next(words for words in commands(out) if words[2].startswith("laion/"))
    assert laion[-1].endswith("checkpoints/PickScore_v1")  # by default the processor is in the checkpoint


def test_a_plug_in_of_ones_own_has_no_facts(capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: Path) -> None:
    fill(tmp_path / "models")
    own = {"mine:Scorer": {"checkpoint": str(tmp_path / "weights.pt")}}
    words = [
        "assets",
        str(suite),
        "reward={'mine:Scorer': {m: 1}}",
        "evaluation.evaluators=['mine:Scorer']",
        f"evaluator_params={json.dumps(own)}",
    ]
    assert main(words) == 1
    assert "MISSING; nothing is known about it" in capsys.readouterr().out
    (tmp_path / "weights.pt").write_bytes(b"w")
    assert main(words) == 0
    assert "present; nothing is known about it" in capsys.readouterr().out


def test_a_backbone_of_ones_own_is_not_taken_for_another(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_model.py").write_text("raise AssertionError('imported')\n")
    words = ["assets", str(suite), f"backbone={{name: 'my_model:Mine', checkpoint: {tmp_path / 'mine'}}}"]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert f"backbone.checkpoint: {tmp_path / 'mine'}\n    MISSING; nothing is known about it" in out
    assert "HunyuanVideo" not in out
    facts = {"what": "a model of mine", "hub": "me/mine", "for": ["backbone.checkpoint"], "files": [{"path": "w.pt"}]}
    (tmp_path / "assets.yaml").write_text(yaml.safe_dump({"mine": facts}))
    assert main(words) == 1
    assert ["hf", "download", "me/mine", "w.pt", "--local-dir", str(tmp_path / "mine")] in commands(
        capsys.readouterr().out
    )
    assert main([*words[:2], "backbone={name: 'my_model:Mine'}"]) == 1
    assert "backbone.checkpoint" not in capsys.readouterr().out


def test_a_run_without_its_checkpoint_points_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*TINY, f"backbone.checkpoint={tmp_path / 'nothing'}", f"prompts={json.dumps(FULL['prompts'])}"]
    assert main(["run", str(NANO), *words, "--results", str(tmp_path / "results"), "--dry-run"]) == 2
    assert re.search("does not exist .*`bench assets SUITE` lists its files", capsys.readouterr().err)
    assert main(["assets", str(tmp_path / "no.yaml")]) == 2


def test_assets_import_nothing_heavy() -> None:
    code = (
        f"import sys\nfrom bench.cli import main\nassert main(['assets', {str(NANO)!r}]) == 0\n"
        "print([n for n in ('torch', 'transformers', 'av', 'pandas', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_variants_of_a_study_are_listed_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", str(NANO.parent / "nano_decode.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("suite nano_decode\n")
    assert out.count("backbone.checkpoint") == 1
