"""The launchers: runs over several processes, Slurm jobs, and what is refused before anything is loaded."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config import config_args
from nano_suite import NANO, TINY, tiny
from safetensors.torch import load_file

from bench import cli, config, launch, slurm, store, worker
from bench.api import BenchError
from bench.config import Experiment
from bench.launch_file import how
from bench.launchers import How
from bench.processes import World
from bench.store import read_lines, read_run
from bench.torchrun import RUN_FILE, Spread, read_job, write_job

UPDATES = 8
BOUND = 2e-6
"""Relative difference of a number after some updates of one and of two processes: tests/test_processes.py has why."""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A suite that loads in a second: 8 updates of 8 samples in micro-batches of 2, a moving anchor."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parent}")
    (tmp_path / "weights").mkdir()
    return config.load(
        NANO,
        [
            *("suite=toy", f"backbone={{name: 'toy:LoadedToy', checkpoint: {tmp_path / 'weights'}}}"),
            *(f"budget.{key}" for key in (f"updates={UPDATES}", "prompts=2", "group_size=4", "steps=4")),
            *("budget.train_steps=2", "budget.micro_batch=2", "monitor=[]", "evaluator_params={}", "seeds=[0]"),
            "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
            "reward={'toy:Brightness': {brightness: 1.0}}",
            "evaluation={evaluators: ['toy:Brightness'], steps: 2, videos_per_prompt: 1}",
            "rows=[{method: cps, kl: {name: dual, params: {every: 1, weight: 0.01, min_weight: 0.001}}}]",
        ],
    )


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of `train.jsonl` without what a restart may change."""
    return [
        {**line, "seconds": None, "ledger": {k: v for k, v in line["ledger"].items() if k != "restarts"}}
        for line in lines
    ]


TWO = How(launcher="torchrun", nproc=2)


def test_a_killed_process_ends_the_run_within_seconds_and_it_resumes_to_the_same_bits(
    tmp_path: Path, toy: Experiment, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = launch.run([toy], tmp_path / "whole", TWO)
    assert (whole.finished, whole.failed, whole.errors) == (2, 0, 0)
    monkeypatch.setenv("TOY_KILLS", "1 6")
    killed = launch.run([toy], tmp_path / "killed", TWO)
    said = capfd.readouterr().err
    assert (killed.finished, killed.failed, killed.errors) == (1, 0, 1), said
    assert "cps-dual seed 0: error: a process was killed" in said
    folder = tmp_path / "killed" / "toy" / "cps-dual" / "seed-0"
    assert [line["update"] for line in read_lines(folder / store.TRAIN)] == list(range(6))
    assert (folder / "checkpoint.pt").exists()
    assert not store.is_complete(folder)
    monkeypatch.delenv("TOY_KILLS")
    resumed = launch.run([toy], tmp_path / "killed", TWO)
    assert (resumed.finished, resumed.failed, resumed.errors) == (1, 0, 0)
    other = tmp_path / "whole" / "toy" / "cps-dual" / "seed-0"
    (record, _), (expected, _) = read_run(folder), read_run(other)
    assert record.scores_digest == expected.scores_digest
    assert record.ledger == {**expected.ledger, "restarts": 1}
    assert timeless(read_lines(folder / store.TRAIN)) == timeless(read_lines(other / store.TRAIN))
    mine, theirs = load_file(folder / "policy.safetensors"), load_file(other / "policy.safetensors")
    assert all(mine[key].equal(theirs[key]) for key in theirs)
    assert not (folder / RUN_FILE).exists()


def test_the_record_of_two_processes_is_that_of_one(tmp_path: Path, toy: Experiment) -> None:
    launch.run([toy], tmp_path / "one", How(processes=1))
    launch.run([toy], tmp_path / "two", TWO)
    for run in ("base", "cps-dual/seed-0"):
        (one, scores), (two, others) = (read_run(tmp_path / name / "toy" / run) for name in ("one", "two"))
        assert two.provenance["processes"] == 2
        changed = {"seconds", "peak_memory_mb", "provenance", "scores_digest"}
        assert one.model_dump(exclude=changed) == two.model_dump(exclude=changed)
        assert others["value"].tolist() == pytest.approx(scores["value"].tolist(), rel=BOUND)
        assert 0 < one.extra["prompts_cut"]["toy:Brightness"] < 1
    first, second = (
        read_lines(tmp_path / name / "toy" / "cps-dual" / "seed-0" / store.TRAIN)[0] for name in ("one", "two")
    )
    exact = {"grad_norm", "grad_norm_of_step", "kl_gradient", "seconds"}  # all but these are the same bits
    assert {k: v for k, v in first.items() if k not in exact} == {k: v for k, v in second.items() if k not in exact}


def test_a_divergence_is_a_failed_run_of_all_processes(
    tmp_path: Path, toy: Experiment, capfd: pytest.CaptureFixture[str]
) -> None:
    scorer = {"toy:NotANumberLater": {"brightness": 1.0}}
    judged = toy.evaluation.model_copy(update={"evaluators": list(scorer)})
    change = {
        "evaluation": judged,
        "evaluator_params": {"toy:NotANumberLater": {"calls_before": 10}},
        "reward": scorer,
    }
    exp = toy.model_copy(update=change)
    outcome = launch.run([exp], tmp_path, TWO)
    assert (outcome.finished, outcome.failed, outcome.errors) == (1, 1, 0), capfd.readouterr().err
    record, _ = read_run(tmp_path / "toy" / "cps-dual" / "seed-0")
    assert record.status == "failed"
    assert "reward brightness of prompt" in str(record.error)
    assert record.updates_done == 5
    assert (tmp_path / "toy" / "cps-dual" / "seed-0" / "offending_sample.safetensors").exists()


def test_a_mistake_in_the_processes_is_one_sentence(
    tmp_path: Path, toy: Experiment, capfd: pytest.CaptureFixture[str]
) -> None:
    exp = toy.model_copy(update={"reward": {"toy:Brightness": {"light": 1.0}}})
    outcome = launch.run([exp], tmp_path, TWO)
    assert outcome.errors == 1
    assert (
        "error: reward toy:Brightness.light: the evaluator gives brightness; mend 'reward:'" in capfd.readouterr().err
    )


def test_a_run_is_told_to_its_processes_whole(tmp_path: Path) -> None:
    exp = tiny("rows=[{method: cps}, {method: sage_grpo, kl: {name: dual, params: {every: 1}}}]")
    for job in launch.jobs(exp, tmp_path):
        assert read_job(write_job(job)) == (job, None)
        assert read_job(write_job(job, "full")) == (job, "full")


def test_a_process_spreads_the_weights_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job, _) = launch.jobs(tiny("rows=[{method: cps}]", "seeds=[0]"), tmp_path)
    found: list[Any] = []

    @contextlib.contextmanager
    def joined(copies: int, shard: str | None) -> Iterator[World]:
        yield World(0, 2, copies, shard)

    monkeypatch.setattr(worker, "joined", joined)
    monkeypatch.setattr(worker, "execute", lambda job, report, world: found.append((job, world)))
    assert worker.main(write_job(job, "grads")) == 0
    assert found == [(job, World(0, 2, 1, "grads"))]


# what is refused ----------------------------------------------------------------------------------------------
def test_a_number_of_processes_that_does_not_divide_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(NANO), *TINY, "budget.micro_batch=1", "--results", str(tmp_path)]
    assert cli.main([*words, "--launcher", "torchrun", "--nproc", "3"]) == 2
    assert "use N processes that divide 4" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "device", "nproc", "says"),
    [
        (1, None, 2, "a run has 2 process(es) on this machine and each needs a GPU of its own, but torch sees 1:"),
        (3, "cuda", 4, "but torch sees 3: give an --nproc of at most 3, or backbone.train.device=cpu."),
        (0, "cuda", 1, "but torch sees none: choose a machine that has GPUs, or backbone.train.device=cpu."),
        (2, None, 2, None),
        (1, "cpu", 2, None),
        (0, None, 2, None),
    ],
)
def test_too_few_gpus_are_refused_before_anything_is_loaded(
    gpus: int, device: str | None, nproc: int, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    started: list[Any] = []
    monkeypatch.setattr(launch, "do", lambda *given: started.append(given))
    exp = tiny("rows=[{method: cps}]", "budget.micro_batch=1", "seeds=[0]")
    train = {key: value for key, value in exp.backbone.train.items() if key != "device"}
    train |= {} if device is None else {"device": device}
    exp = exp.model_copy(update={"backbone": exp.backbone.model_copy(update={"train": train})})
    many = How("torchrun", nproc=nproc)
    if says is None:
        launch.run([exp], tmp_path, many)
        assert started
        return
    with pytest.raises(BenchError) as refused:
        launch.run([exp], tmp_path, many)
    assert says in str(refused.value)
    assert not started
    assert not any(tmp_path.iterdir())
    (base, _) = launch.jobs(exp, tmp_path)
    assert slurm.work(base, many.spread) == ("error", str(refused.value))  # a Slurm job looks at its own node


def test_more_processes_than_cores_are_allowed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(launch, "do", lambda *given: None)
    exp = tiny("rows=[{method: cps}]", "budget.micro_batch=1", "seeds=[0]")
    launch.run([exp], tmp_path, How("torchrun", nproc=2))
    assert "note: 2 processes of one run share 1 core(s)" in capsys.readouterr().err
    launch.run([exp], tmp_path, How())
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nproc": 2}, "use --launcher torchrun"),
        ({"launcher": "torchrun", "nproc": 0}, "--nproc is 0: give at least 1"),
        ({"launcher": "torchrun", "processes": 2}, "--processes belongs to the local launcher"),
        ({"processes": 0}, "--processes is 0: give at least 1"),
        ({"launcher": "kubernetes"}, "choose one of local, torchrun, slurm"),
        ({"slurm": {"mem_gb": 8}}, "set launcher: slurm"),
        ({"shard": "full"}, "--shard is full, but each run has one process"),
        ({"launcher": "torchrun", "nproc": 1, "shard": "grads"}, "--shard is grads, but each run has one process"),
        ({"launcher": "torchrun", "nproc": 2, "shard": "half"}, "shard is 'half': choose one of full, grads"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BenchError, match=says):
        How(**given)


def test_a_launch_file_gives_the_settings_and_the_command_line_changes_them(tmp_path: Path) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text("launcher: slurm\nnproc: 8\nshard: full\nslurm: {slurm_partition: gpu}\n", encoding="utf-8")
    assert how(path, launcher=None, nproc=4, processes=None) == How(
        "slurm", None, 4, {"slurm_partition": "gpu"}, "full"
    )
    assert how(path, shard="grads").spread == Spread(8, "grads")
    for text, says in {
        "launcher: slurm\nnprocs: 8\n": "unknown key 'nprocs'",
        "launcher: torchrun\nnproc: many\n": "nproc is 'many'",
        "launcher: torchrun\nnproc: true\n": "nproc is True",
        "[]\n": "holds no mapping",
    }.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(BenchError, match=says):
            how(path)
    with pytest.raises(BenchError, match=r"launch file .* cannot be read"):
        how(tmp_path / "none.yaml")


EXAMPLES = Path(__file__).parents[1] / "examples" / "launch"


@pytest.mark.parametrize("name", ["local", "torchrun", "slurm"])
def test_the_examples_are_read(name: str) -> None:
    assert how(EXAMPLES / f"{name}.yaml").launcher == name


@pytest.mark.parametrize(("name", "shard"), [("accelerate_ddp", None), ("accelerate_fsdp2", "full")])
def test_accelerates_own_file_is_a_launch_file(name: str, shard: str | None, tmp_path: Path) -> None:
    path, copy = EXAMPLES / f"{name}.yaml", tmp_path / "copy.yaml"
    assert how(path) == How("torchrun", nproc=8, shard=shard)
    assert how(path, nproc=2) == How("torchrun", nproc=2, shard=shard)
    config_args.load_config_from_file(str(path)).to_yaml_file(copy)
    assert yaml.safe_load(copy.read_text()) == yaml.safe_load(path.read_text())  # the example is what it would write


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision is 'bf16', but precision belongs to the suite"),
        ({"num_machines": 2}, "num_machines is 2, .*use the slurm launcher with its key 'nodes'"),
        ({"num_processes": None}, "num_processes is -1: give the number of processes"),
        ({"num_processes": "8"}, "num_processes is '8': give the number of processes"),
        ({"gpu_ids": "0,1"}, "gpu_ids is '0,1', .*set CUDA_VISIBLE_DEVICES"),
        ({"enable_cpu_affinity": True}, "enable_cpu_affinity is True, but processes are not bound to cores"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "dynamo_config is .*INDUCTOR.*but runs are not compiled"),
        ({"deepspeed_config": {"zero_stage": 3}}, "deepspeed_config is .*choose FSDP with fsdp_version 2"),
        ({"parallelism_config": {"parallelism_config_cp_size": 2}}, "parallelism_config is .*backbone.train.parallel"),
        ({"distributed_type": "MULTI_GPU"}, "fsdp_config is .*but distributed_type is MULTI_GPU"),
        ({"distributed_type": "MULTI_NPU"}, "distributed_type is 'MULTI_NPU', runs know NO, MULTI_GPU, MULTI_CPU and"),
        ({"distributed_type": "FSPD"}, "accelerate cannot read it: 'FSPD' is not a valid"),
        ({"num_procs": 8}, r"accelerate cannot read it: .*unknown keys \(\['num_procs'\]\)"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, "accelerate cannot read it"),
        ({"fsdp_version": 1}, r"fsdp_config\.fsdp_version is 1, but runs know version 2 only"),
        ({"fsdp_version": None}, r"fsdp_config\.fsdp_version is 1, but runs know version 2 only"),
        ({"fsdp_offload_params": True}, r"fsdp_config\.fsdp_offload_params is True, but weights stay on their GPU"),
        ({"fsdp_activation_checkpointing": True}, "it belongs to the suite, backbone.train.gradient_checkpointing"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, "weights are gathered block by block"),
        ({"fsdp_transformer_layer_cls_to_wrap": "Block"}, "is 'Block', but the backbone knows its blocks"),
        ({"fsdp_reshard_after_forward": "FULL_SHARD"}, "is 'FULL_SHARD': write true or false"),
        ({"fsdp_min_num_params": 100}, r"fsdp_config\.fsdp_min_num_params is 100, but runs do not follow it"),
    ],
)
def test_what_a_run_would_not_follow_of_accelerates_file_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match=says) as refused:
        how(changed(tmp_path, change))
    assert str(refused.value).startswith(f"launch file {tmp_path}")
    assert "\n" not in str(refused.value)


def changed(folder: Path, change: dict[str, Any]) -> Path:
    """The FSDP example with other values; None takes a key out."""
    config = yaml.safe_load((EXAMPLES / "accelerate_fsdp2.yaml").read_text(encoding="utf-8"))
    for key, value in change.items():
        part = config["fsdp_config"] if key.startswith("fsdp_") and key != "fsdp_config" else config
        part.pop(key, None)
        if value is not None:
            part[key] = value
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "spread"),
    [
        ({"fsdp_reshard_after_forward": False}, Spread(8, "grads")),
        ({"fsdp_reshard_after_forward": None}, Spread(8, "full")),
        ({"debug": True, "main_process_port": 29501, "fsdp_state_dict_type": "FULL_STATE_DICT"}, Spread(8, "full")),
        ({"distributed_type": "MULTI_CPU", "use_cpu": True, "num_processes": 2, "fsdp_config": None}, Spread(2, None)),
    ],
)
def test_accelerates_words_for_what_a_run_can_do(change: dict[str, Any], spread: Spread, tmp_path: Path) -> None:
    assert how(changed(tmp_path, change)).spread == spread


# Slurm --------------------------------------------------------------------------------------------------------
class UncompletedError(RuntimeError):
    """Stands for submitit's error of a job that ended without a result."""


class FailedError(UncompletedError):
    """Stands for submitit's error of a job whose function raised."""


class Handle:
    """A job that is done when its result is asked for."""

    job_id, state, paths = "7_0", "NODE_FAIL", types.SimpleNamespace(stderr="7_0.err")

    def __init__(self, act: Callable[..., Any], args: tuple[Any, ...], lost: bool):
        self.act, self.args, self.lost = act, args, lost

    def result(self) -> Any:
        if self.lost:
            raise UncompletedError
        return self.act(*self.args)


@pytest.fixture
def submitit(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """submitit's interface as bench uses it; `asked` is the request."""
    module: Any = types.ModuleType("submitit")
    module.asked, module.lost = {"jobs": []}, False

    class AutoExecutor:
        def __init__(self, folder: Path, cluster: str):
            module.asked |= {"folder": folder, "cluster": cluster}

        def update_parameters(self, **parameters: Any) -> None:
            if "slurm_partitions" in parameters:
                raise NameError("Unknown argument 'slurm_partitions'")
            module.asked["parameters"] = parameters

        def batch(self) -> Any:
            import contextlib

            module.asked["batch"] = True
            return contextlib.nullcontext()

        def submit(self, act: Callable[..., Any], *args: Any) -> Handle:
            module.asked["jobs"].append(args)
            return Handle(act, args, module.lost)

    module.AutoExecutor = AutoExecutor
    module.core = types.SimpleNamespace(
        utils=types.SimpleNamespace(UncompletedJobError=UncompletedError, FailedJobError=FailedError)
    )
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


def test_slurm_gets_one_array_with_a_job_per_run(tmp_path: Path, toy: Experiment, submitit: Any) -> None:
    settings = {"slurm_partition": "gpu", "timeout_min": 60}
    outcome = launch.run([toy], tmp_path / "results", How("slurm", slurm=settings))
    assert (outcome.finished, outcome.failed, outcome.errors) == (2, 0, 0)
    asked = submitit.asked
    assert asked["folder"] == tmp_path / "results" / "toy" / ".slurm"
    assert (asked["cluster"], asked["batch"]) == ("slurm", True)
    assert asked["parameters"] == {"name": "toy", "slurm_partition": "gpu", "timeout_min": 60}
    assert [(job.label, s.nproc) for job, s in asked["jobs"]] == [("base", 1), ("cps-dual seed 0", 1)]
    assert read_run(tmp_path / "results" / "toy" / "cps-dual" / "seed-0")[0].status == "finished"


def test_a_slurm_job_that_stops_is_an_error_in_one_sentence(
    tmp_path: Path, toy: Experiment, submitit: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    submitit.lost = True
    assert launch.run([toy], tmp_path, How("slurm")).errors == 2
    assert "Slurm job 7_0 ended without a result (state NODE_FAIL" in capfd.readouterr().err
    submitit.lost = False
    wrong = toy.model_copy(update={"reward": {"toy:Brightness": {"light": 1.0}}, "suite": "other"})
    assert launch.run([wrong], tmp_path, How("slurm")).errors == 1
    assert "mend 'reward:'" in capfd.readouterr().err
    with pytest.raises(BenchError, match=r"cannot be submitted .Unknown argument 'slurm_partitions'.: mend 'slurm:'"):
        launch.run([toy], tmp_path, How("slurm", slurm={"slurm_partitions": "gpu"}))


def test_slurm_without_submitit_says_how_to_install_it(
    tmp_path: Path, toy: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(BenchError, match=r"needs submitit: install it with `pip install 'grpo-video-bench\[slurm\]'`"):
        launch.run([toy], tmp_path, How("slurm"))
