"""`idle_device`: where an evaluator's model waits between calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bench import plugins
from bench.suite.paths import resolve

CHECKPOINTS = {"clipscore": "nano/clip", "pickscore": "nano/pickscore", "videoalign": "nano/videoreward"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_model_waits_elsewhere_and_no_score_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []
    move = nn.Module.to

    def noted(self: nn.Module, *args: Any, **words: Any) -> nn.Module:
        moves.append(str(args[0]))
        return move(self, *args, **words)

    make = {"checkpoint": str(resolve(CHECKPOINTS[name])), "device": "cpu"}
    resident = plugins.evaluator(name, **make)
    monkeypatch.setattr(nn.Module, "to", noted)
    waiting = plugins.evaluator(name, **make, idle_device="cpu")
    monkeypatch.setattr(waiting, "_idle", torch.device("cpu", 0))  # the same place under another name
    moves.clear()
    videos = torch.rand(2, 3, 13, 16, 16, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle moving left", "a blue square moving up"]
    scores = waiting.score(videos, prompts, 8.0)
    assert (moves[0], moves[-1]) == ("cpu", "cpu:0")
    for metric, values in resident.score(videos, prompts, 8.0).items():
        assert torch.equal(values, scores[metric])
    assert waiting.fingerprint() == resident.fingerprint()
