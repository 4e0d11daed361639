"""Text encoders that run before the other models are in memory, and `bench encode`, which runs nothing else."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from bench.backbones.hunyuanvideo15 import checkpoint
from bench.cli import main
from bench.suite.prepared import make_backbone, prepare
from tests.helpers.nano_suite import NANO, TINY, tiny

RELEASED = "backbone.train.text_encoders=released"


def test_encoders_are_gone_when_the_transformer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    text: list[weakref.ref[Any]] = []
    load_text, load_transformer = checkpoint.load_text, checkpoint.load_transformer

    def watched_text(*args: Any) -> Any:
        encoders = load_text(*args)
        text.append(weakref.ref(encoders.encoder))
        seen.append("text")
        return encoders

    def watched_transformer(*args: Any) -> Any:
        assert [ref() for ref in text] == [None]
        seen.append("transformer")
        return load_transformer(*args)

    monkeypatch.setattr(checkpoint, "load_text", watched_text)
    monkeypatch.setattr(checkpoint, "load_transformer", watched_transformer)
    prepared = prepare(tiny(RELEASED))
    backbone = make_backbone(prepared, prompts=prepared.all_prompts)
    assert len(backbone.encode(prepared.all_prompts)) == len(prepared.all_prompts)
    assert seen == ["text", "transformer"]


def test_encode_fills_the_cache_and_loads_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "states"
    words = ["encode", str(NANO), *TINY]
    assert main([*words, RELEASED]) == 2
    assert "add backbone.train.text_cache=FOLDER" in capsys.readouterr().err
    assert main([*words, f"backbone.train.text_cache={cache}"]) == 2
    assert "set backbone.train.text_encoders=released" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "load_transformer", lambda *args: pytest.fail("loaded"))
        assert main([*words, RELEASED, f"backbone.train.text_cache={cache}", "--json"]) == 0
    (suite,) = json.loads(capsys.readouterr().out)["suites"]
    assert (suite["suite"], suite["folder"]) == ("tiny", str(cache))
    (file,) = cache.iterdir()
    monkeypatch.setattr(checkpoint, "load_text", lambda *args: pytest.fail("loaded"))
    prepared = prepare(tiny(RELEASED, f"backbone.train.text_cache={cache}"))
    assert suite["prompts"] == len(prepared.all_prompts)
    backbone = make_backbone(prepared, prompts=prepared.all_prompts)
    assert len(backbone.encode(prepared.all_prompts)) == suite["prompts"]
    assert list(cache.iterdir()) == [file]
