"""LoRA and full fine-tuning on a small random transformer: gradients, memory, export, optimizers, resume."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench import store
from bench.algorithm.optimizers import CombinedOptimizer, make_optimizer, recorded_optimizer
from bench.api import BenchError
from bench.backbones.hunyuanvideo15.backbone import HunyuanVideo15
from bench.backbones.hunyuanvideo15.policy import UNTRAINED, gradient_free_layers
from bench.backbones.hunyuanvideo15.transformer import velocity as stock_velocity
from bench.cli import main
from bench.core.budget import Budget
from bench.core.rng import stream
from bench.store import record
from bench.train import trainer
from bench.train.trainer import Trainer
from tests.helpers.full_size import LONG, SHORT, gradients, latents, released, same, shake, velocity
from tests.helpers.nano_suite import CHECKPOINT, run, tiny

ONE_UPDATE = ("budget.updates=1", "evaluation.steps=1")
MODES = {"lora": {}, "full": {"lora_rank": 0}, "full, copies beside": {"lora_rank": 0, "anchors_on": "model"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("released") / "480p_t2v")


def fresh(folder: Path, **params: Any) -> HunyuanVideo15:
    backbone = HunyuanVideo15(folder, **params)
    backbone.reset(stream(0, "initial_policy"))
    return backbone


# gradients ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_an_anchor_between_forward_and_backward_leaves_the_gradient(
    folder: Path, mode: str, checkpointing: bool
) -> None:
    """The trap: an adapter switched before backward() gives the policy no gradient, or that of the anchor."""
    backbone = fresh(folder, **MODES[mode], gradient_checkpointing=checkpointing)
    shake(backbone)
    backbone.refresh_anchor("moving")
    shake(backbone, name="again")
    velocity(backbone, [SHORT, LONG]).square().mean().backward()
    expected = gradients(backbone)
    v = velocity(backbone, [SHORT, LONG])
    with backbone.as_anchor("moving"):
        moving = velocity(backbone, [SHORT, LONG])
    with backbone.as_anchor("fixed"):
        fixed = velocity(backbone, [SHORT, LONG])
    assert not torch.equal(moving, v)
    assert not torch.equal(fixed, v)
    v.square().mean().backward()
    found = gradients(backbone)
    assert same(found, expected)
    got = sum(grad is not None and bool(grad.any()) for grad in found)
    assert got > 0.8 * len(found)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_gradient_checkpointing_changes_no_bit(folder: Path, mode: str) -> None:
    found = []
    for checkpointing in (False, True):
        backbone = fresh(folder, **MODES[mode], gradient_checkpointing=checkpointing)
        shake(backbone)
        calls = []
        block = backbone.transformer.transformer_blocks[1]
        block.register_forward_pre_hook(lambda module, args, seen=calls: seen.append(0))
        v = velocity(backbone, [SHORT], guidance=2.0)
        v.square().mean().backward()
        found.append((v.detach(), gradients(backbone), len(calls)))
    (plain, grads, calls_plain), (kept, others, calls_kept) = found
    assert torch.equal(plain, kept)
    assert same(grads, others)
    assert (calls_plain, calls_kept) == (2, 4)  # both branches, computed again in the backward pass


def test_only_dead_ends_get_no_gradient(folder: Path) -> None:
    """Full training leaves out exactly the weights without a gradient; LoRA's matrices there get none or zeros."""
    backbone = fresh(folder, lora_rank=0)
    velocity(backbone, [SHORT]).square().mean().backward()
    dead = gradient_free_layers(backbone.transformer)
    names = dict(backbone.transformer.named_parameters())
    trained = {name for name, p in names.items() if p.requires_grad}
    assert {id(p) for p in backbone.parameters()} == {id(names[name]) for name in trained}
    assert {name for name in names if name not in trained} == {
        name for name in names if name.startswith(UNTRAINED) or dead.match(name)
    }
    without = {name for name in trained if names[name].grad is None or not bool(names[name].grad.any())}
    assert without == set()
    for p in names.values():
        p.requires_grad_(True)
        p.grad = None
    velocity(backbone, [SHORT]).square().mean().backward()
    lost = {name for name in names if not name.startswith(UNTRAINED) and names[name].grad is None}
    lost |= {name for name in names if names[name].grad is not None and not bool(names[name].grad.any())}
    assert {name for name in lost if not name.startswith(UNTRAINED)} == {name for name in names if dead.match(name)}


# memory -------------------------------------------------------------------------------------------------------
def storages(least: int) -> dict[int, int]:
    """Address to bytes of every living tensor's memory of at least `least` bytes."""
    gc.collect()
    tensors = [obj for obj in gc.get_objects() if type(obj) in (torch.Tensor, torch.nn.Parameter)]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return {address: size for address, size in found.items() if size >= least}


def test_anchors_and_policies_share_one_base(folder: Path) -> None:
    """Two anchors cost two adapters: no tensor of the base's size is made after loading, not even for a moment."""
    backbone = fresh(folder, dtype="bfloat16", text_encoders="released")
    least = 64 * 64 * 2  # bytes of the base's smallest square matrix
    base = storages(least)
    backbone.refresh_anchor("moving")
    backbone.refresh_anchor("old")
    during = []
    for name in ("moving", "old", "fixed"):
        with backbone.as_anchor(name):
            during.append(storages(least).keys() - base.keys())
    adapter = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    adapters = [backbone.policy.adapter(name) for name in ("moving", "old")]
    anchors = {p.data_ptr() for weights in adapters for p in weights.values()}
    assert len(anchors) == 2 * len(adapter)
    assert all(addresses <= anchors for addresses in during)
    loaded = HunyuanVideo15(folder, dtype="bfloat16", text_encoders="released", lora_rank=1).transformer
    plain = sum(p.numel() * p.element_size() for name, p in loaded.named_parameters() if "lora_" not in name)
    held = sum(p.numel() * p.element_size() for p in backbone.transformer.parameters())
    assert held - plain == 3 * sum(p.numel() * p.element_size() for p in backbone.parameters())


def test_copies_of_all_weights_wait_where_they_are_asked_to(folder: Path) -> None:
    for where in ("cpu", "model"):
        backbone = fresh(folder, lora_rank=0, anchors_on=where)
        trained = sum(p.numel() for p in backbone.parameters())
        before = sum(storages(1).values())
        backbone.refresh_anchor("moving")
        assert sum(storages(1).values()) - before == 4 * trained
        policy = [p.data_ptr() for p in backbone.parameters()]
        with backbone.as_anchor("moving"):
            assert sum(storages(1).values()) - before <= 4 * trained + 1024
        assert [p.data_ptr() for p in backbone.parameters()] == policy


# full fine-tuning ---------------------------------------------------------------------------------------------
@torch.no_grad()
def test_references_of_a_full_policy_are_the_base_or_their_last_refresh(folder: Path) -> None:
    backbone = fresh(folder, lora_rank=0)
    base = velocity(backbone, [SHORT])
    shake(backbone)
    first = velocity(backbone, [SHORT])
    backbone.refresh_anchor("moving")
    shake(backbone, name="again")
    second = velocity(backbone, [SHORT])
    assert not torch.equal(first, second)
    with backbone.as_anchor("moving"):
        assert torch.equal(velocity(backbone, [SHORT]), first)
        with backbone.as_anchor("fixed"):
            assert torch.equal(velocity(backbone, [SHORT]), base)
        assert torch.equal(velocity(backbone, [SHORT]), first)
    with pytest.raises(RuntimeError, match="inside"), backbone.as_anchor("fixed"):
        raise RuntimeError("inside")
    assert torch.equal(velocity(backbone, [SHORT]), second)
    state = backbone.state_dict()
    other = HunyuanVideo15(folder, lora_rank=0)
    other.load_state_dict(state)
    assert torch.equal(velocity(other, [SHORT]), second)
    with other.as_anchor("moving"):
        assert torch.equal(velocity(other, [SHORT]), first)
    backbone.reset(stream(1, "initial_policy"))
    assert torch.equal(velocity(backbone, [SHORT]), base)


def test_one_update_of_all_weights(tmp_path: Path) -> None:
    """Through the harness, with an anchor, to a record and a folder that diffusers loads."""
    from diffusers import HunyuanVideo15Transformer3DModel

    suite = tiny("rows=[{method: sage_grpo, kl: fixed}]", *ONE_UPDATE, "backbone.train.lora_rank=0")
    record = run(suite, tmp_path / "run")
    assert record.gates["ratio_audit"]["passed"]
    assert json.loads(record.backbone["settings"])["r"] == 0
    policy = load_file(tmp_path / "run" / "policy.safetensors")
    base = HunyuanVideo15Transformer3DModel.from_pretrained(CHECKPOINT / "transformer").state_dict()
    moved = {name for name, value in policy.items() if not torch.equal(value, base[name.removeprefix("policy:")])}
    assert len(moved) > 0.9 * len(policy)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    stock = HunyuanVideo15Transformer3DModel.from_pretrained(tmp_path / "out").state_dict()
    assert stock.keys() == base.keys()
    for name, value in stock.items():
        assert torch.equal(value, policy.get(f"policy:{name}", base[name]))


# export -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(tiny(*ONE_UPDATE, "budget.lr=0.01"), folder)
    return folder


@torch.no_grad()
def test_an_exported_lora_gives_diffusers_the_same_velocity_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    from diffusers import HunyuanVideo15Transformer3DModel
    from peft import LoraConfig, PeftModel

    out = tmp_path / "out"
    assert main(["export", str(trained), str(out)]) == 0
    names = ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == names
    policy = HunyuanVideo15(CHECKPOINT)
    policy.load_state_dict(load_file(trained / "policy.safetensors"))
    x, sigma = latents(2)
    cond = policy.encode([SHORT, LONG])
    stock = HunyuanVideo15Transformer3DModel.from_pretrained(CHECKPOINT / "transformer").eval()
    base = stock_velocity(stock, x, sigma, cond.text, cond.more["glyph"])
    stock.load_lora_adapter(out, prefix=None, use_safetensors=True)
    expected = policy.velocity(x, sigma, cond, 1.0)
    assert torch.equal(stock_velocity(stock, x, sigma, cond.text, cond.more["glyph"]), expected)
    assert float((base - expected).abs().max()) > 1e-3
    config = LoraConfig.from_pretrained(out)
    assert (config.r, config.lora_alpha) == (8, 16)
    clean = HunyuanVideo15Transformer3DModel.from_pretrained(CHECKPOINT / "transformer").eval()
    wrapped = PeftModel.from_pretrained(clean, out)
    assert torch.equal(stock_velocity(wrapped, x, sigma, cond.text, cond.more["glyph"]), expected)


def test_the_exported_file_is_what_diffusers_itself_saves(trained: Path, tmp_path: Path) -> None:
    policy = HunyuanVideo15(CHECKPOINT)
    policy.load_state_dict(load_file(trained / "policy.safetensors"))
    policy.transformer.save_lora_adapter(tmp_path / "theirs", adapter_name="policy", upcast_before_saving=False)
    main(["export", str(trained), str(tmp_path / "ours")])
    name = "pytorch_lora_weights.safetensors"
    ours, theirs = load_file(tmp_path / "ours" / name), load_file(tmp_path / "theirs" / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with safe_open(tmp_path / "ours" / name, "pt") as a, safe_open(tmp_path / "theirs" / name, "pt") as b:
        mine, other = (json.loads(file.metadata()["lora_adapter_metadata"]) for file in (a, b))
    for entry in ("base_model_name_or_path", "inference_mode"):
        mine.pop(entry), other.pop(entry)
    assert mine == other


def test_export_refuses_what_is_no_policy_of_this_record(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    state = load_file(other / "policy.safetensors")
    save_file(
        {key: t[:4] if "lora_A" in key else t[:, :4].contiguous() for key, t in state.items()},
        other / "policy.safetensors",
    )
    assert main(["export", str(other), str(tmp_path / "out")]) == 2
    assert "has rank 4, but its record has rank 8: restore both files" in capsys.readouterr().err
    (other / "policy.safetensors").unlink()
    assert main(["export", str(other), str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "run `bench run` first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_policy_of_another_rank_is_one_sentence(folder: Path) -> None:
    states = {rank: HunyuanVideo15(folder, lora_rank=rank).state_dict() for rank in (4, 8, 0)}
    wrong = (
        r"other LoRA weights than this suite's backbone \({}, the suite has rank 8\): "
        r"give backbone.train the lora_rank"
    )
    backbone = fresh(folder, lora_rank=8)
    before = [p.detach().clone() for p in backbone.parameters()]
    for rank, there in ((4, "rank 4"), (0, "no LoRA weights")):
        with pytest.raises(BenchError, match=wrong.format(there)):
            backbone.load_state_dict(states[rank])
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.parameters(), strict=True))
    with pytest.raises(
        BenchError, match=r"other weights than this suite's backbone, which trains all \(lora_rank 0\)"
    ):
        fresh(folder, lora_rank=0).load_state_dict(states[8])


def test_loading_a_state_forgets_anchors_that_it_does_not_name(folder: Path) -> None:
    backbone = fresh(folder)
    state = backbone.state_dict()
    shake(backbone)
    backbone.refresh_anchor("moving")
    backbone.load_state_dict(state)
    assert backbone.state_dict().keys() == state.keys()
    with torch.no_grad():
        policy = velocity(backbone, [SHORT])
        with backbone.as_anchor("moving"):
            assert torch.equal(velocity(backbone, [SHORT]), policy)  # a fresh policy is the base
    velocity(backbone, [SHORT]).sum().backward()
    assert sum(grad is not None for grad in gradients(backbone)) > 20


# optimizers ---------------------------------------------------------------------------------------------------
def budget(**changes: Any) -> Budget:
    settings: dict[str, Any] = {
        "updates": 1,
        "prompts": 2,
        "group_size": 2,
        "steps": 4,
        "train_steps": 2,
        "shift": 5.0,
    }
    return Budget(**{**settings, "guidance": 1.0, "lr": 1e-3, "optimizer": "muon", **changes})


def test_muon_takes_the_matrices_and_adamw_the_rest(folder: Path) -> None:
    for rank, parts in ((8, {"muon"}), (0, {"muon", "adamw"})):
        backbone = fresh(folder, lora_rank=rank)
        optimizer = make_optimizer(budget(weight_decay=0.02), backbone.parameters())
        assert isinstance(optimizer, CombinedOptimizer)
        assert optimizer.parts.keys() == parts
        owned = {name: part.param_groups[0]["params"] for name, part in optimizer.parts.items()}
        assert all(p.ndim == 2 for p in owned["muon"])
        assert all(p.ndim != 2 for p in owned.get("adamw", []))
        assert sum(map(len, owned.values())) == len(backbone.parameters())
        assert all(part.param_groups[0]["lr"] == 1e-3 for part in optimizer.parts.values())
        assert all(part.param_groups[0]["weight_decay"] == 0.02 for part in optimizer.parts.values())
        with pytest.raises(BenchError, match="a checkpoint's optimizer has the parts other"):
            optimizer.load_state_dict({"other": {}})


def test_muon_s_first_step_is_an_orthogonal_one() -> None:
    """Its singular values are near lr (Newton-Schulz in bfloat16: within 0.5 and 1.5 of it), not the gradient's."""
    p = torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = make_optimizer(budget(weight_decay=0.0), [p])
    p.grad = torch.diag(torch.tensor([100.0, 50.0, 40.0, 30.0, 20.0, 10.0]))
    optimizer.step()
    values = torch.linalg.svdvals(p.detach()) / 1e-3
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.5
    optimizer.zero_grad()
    assert p.grad is None


def test_the_record_names_muon_s_settings_and_leaves_adamw_s_out(tmp_path: Path) -> None:
    import inspect

    record = run(tiny(*ONE_UPDATE, "budget.optimizer=muon"), tmp_path)
    found = store.read_record(tmp_path).extra["optimizer"]["muon"]
    defaults = inspect.signature(torch.optim.Muon).parameters
    assert found["class"] == "Muon"
    assert found["momentum"] == defaults["momentum"].default == 0.95
    assert found["ns_steps"] == defaults["ns_steps"].default == 5
    assert found["ns_coefficients"] == list(defaults["ns_coefficients"].default)
    assert (found["lr"], found["weight_decay"]) == (3e-4, 1e-4)
    assert record.budget["optimizer"] == "muon"
    p = torch.nn.Parameter(torch.zeros(2, 2))
    adamw = budget(optimizer="adamw")
    assert recorded_optimizer(adamw, make_optimizer(adamw, [p])) == {}


class KilledError(Exception):
    """Stands for a kill: nothing in the harness catches it."""


@pytest.fixture
def kill_in_the_second_update(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    run_update, killed = Trainer.run_update, []
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 1)

    def dying(self: Trainer, index: int) -> None:
        if index == 1 and not killed:
            killed.append(index)
            raise KilledError
        run_update(self, index)

    monkeypatch.setattr(Trainer, "run_update", dying)
    return


RESUMED = {
    "muon": ("budget.optimizer=muon",),
    "muon, all weights": ("budget.optimizer=muon", "backbone.train.lora_rank=0"),
    "adamw, all weights": ("backbone.train.lora_rank=0",),
}
MOVING = "rows=[{method: sage_grpo, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]"


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.usefixtures("kill_in_the_second_update")
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    suite = tiny(MOVING, "evaluation.steps=1", *RESUMED[name])
    with pytest.raises(KilledError):
        run(suite, tmp_path / "killed")
    assert (tmp_path / "killed" / record.CHECKPOINT).exists()
    resumed, whole = run(suite, tmp_path / "killed"), run(suite, tmp_path / "whole")
    assert (resumed.ledger["restarts"], whole.ledger["restarts"]) == (1, 0)
    assert resumed.scores_digest == whole.scores_digest
    first, second = (load_file(tmp_path / part / "policy.safetensors") for part in ("killed", "whole"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("kill_in_the_second_update")
def test_resuming_with_another_rank_is_one_sentence(tmp_path: Path) -> None:
    """The digest already tells the runs apart; here it is made equal."""
    suite = tiny("evaluation.steps=1")
    with pytest.raises(KilledError):
        run(suite, tmp_path)
    other = tiny("evaluation.steps=1", "backbone.train.lora_rank=4")
    with pytest.raises(BenchError, match=r"rank 8, the suite has rank 4"):
        run(other, tmp_path)


def test_tensors_of_a_policy_are_copies(folder: Path) -> None:
    backbone = fresh(folder, lora_rank=0)
    state: dict[str, Tensor] = backbone.state_dict()
    shake(backbone)
    assert any(not torch.equal(a, b) for a, b in zip(state.values(), backbone.parameters(), strict=True))
