"""`python -m tools.speed` in miniature: the two loops compute the same, nothing real is measured twice or lost."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.api import BenchError
from bench.backbones.hunyuanvideo15.options import HunyuanOptions
from bench.backbones.options import NUMERIC
from bench.core.budget import PROBE_EVERY
from bench.core.ledger import Ledger
from bench.store.files import read_lines
from bench.store.record import TRAIN
from bench.suite.load import load_suite
from bench.suite.prepared import make_backbone, make_evaluator, prepare
from bench.train.rewards import update_prompts
from bench.train.trainer import Trainer
from tests.helpers.nano_suite import first_run
from tools.random_checkpoint import mini, write_checkpoint
from tools.speed import compare_loops, loading, page, settings, stock
from tools.speed.__main__ import main
from tools.speed.compare_loops import (
    BOUND,
    TEXT,
    TINY_LOOPS,
    WIDE,
    Case,
    RandomVideo15,
    Work,
    check_gradients,
    gradient,
    harness_loop,
    measure_peak,
    naive_loop,
    peak_in_fresh_process,
    prepare_work,
)
from tools.speed.full_size import TINY_MODEL, GPUBenchmark
from tools.speed.naive_trainer import NaiveTrainer
from tools.speed.overhead import NANO, TINY_OVERHEAD, Alternation, BareCalls, summary
from tools.speed.page import FILE, PAGE, SECTIONS, read, write
from tools.speed.stock import PIPELINE, PIPELINE_LATENTS, scaled

CPU = torch.device("cpu")
ONE = ("--tiny", "--updates", "3", "--repeats", "1")


def loaded_here(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """What a fresh process of the section loading does and prints; in this process, which saves its start."""
    assert command[1:3] == ["-m", "tools.speed.loading"]
    part, folder, device, cache = command[3:]
    figures = loading.measure_part(part, Path(folder), device, Path(cache))
    return subprocess.CompletedProcess(command, 0, f"a library's line\n{json.dumps(figures)}\n", "")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which all sections were measured in miniature."""
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "subprocess", SimpleNamespace(run=loaded_here))
        patch.setattr("bench.backbones.base.compile_blocks", lambda blocks: None)  # on a CPU it takes minutes
        assert main([*ONE, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(params=TINY_LOOPS, ids=lambda case: case.method)
def work(request: pytest.FixtureRequest) -> Work:
    return prepare_work(request.param, CPU)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with the keys that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from numbers(item, f"{path}/{key}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, float(value)


# the straightforward loop -------------------------------------------------------------------------------------
def test_both_loops_end_in_the_check_gradients(work: Work) -> None:
    assert check_gradients(work, [harness_loop(work), naive_loop(work)]) <= BOUND
    assert gradient(work).norm() > 0


def test_a_loop_without_the_kl_is_found_out(work: Work) -> None:
    loop = NaiveTrainer(work.backbone, work.method, work.policy, work.optimizer, work.settings, scaled(32, TEXT))
    loop.weights = {}
    with pytest.raises(BenchError, match="gradients of the two loops differ"):
        check_gradients(work, [harness_loop(work), lambda: loop(work.cond, work.rewards)])


def test_a_loop_that_attends_to_its_padding_is_found_out(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(*args: Any) -> Any:
        states, mask = pad_states(*args)
        return states, torch.ones_like(mask)

    pad_states = stock.pad_states
    monkeypatch.setattr(stock, "pad_states", unmasked)
    with pytest.raises(BenchError, match="gradients of the two loops differ"):
        check_gradients(work, [harness_loop(work), naive_loop(work)])


def test_the_loops_leave_policy_and_attention_as_they_were(work: Work) -> None:
    before = [p.detach().clone() for p in work.backbone.parameters()]
    processors = {type(block.attn.processor) for block in work.backbone.transformer.transformer_blocks}
    harness_loop(work)()
    naive_loop(work)()
    assert all(torch.equal(old, new) for old, new in zip(before, work.backbone.parameters(), strict=True))
    assert processors == {type(block.attn.processor) for block in work.backbone.transformer.transformer_blocks}


def test_a_fresh_process_tells_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process is asked, what it does, and how its answer is read; in this process, which saves its start."""

    def here(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "tools.speed.compare_loops"]
        monkeypatch.setattr(compare_loops, "current_gb", lambda device: -1.0)
        return subprocess.CompletedProcess(command, 0, f"a library's line\n{measure_peak(command[3])}\n", "")

    monkeypatch.setattr(subprocess, "run", here)
    for loop in ("harness", "straightforward"):
        assert 1 < peak_in_fresh_process(TINY_LOOPS[0], loop, CPU) < 20


def test_a_peak_is_not_handed_down_by_the_process_that_started_this_one() -> None:
    """As ru_maxrss is: a child of a process that holds 1.5 GB would seem to have held as much."""
    held = torch.ones(375_000_000)
    code = "import torch; from tools.speed.clock import peak_gb; print(peak_gb(torch.device('cpu')))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.05 < float(said) < 1.5 <= held.nbytes / 1e9


def test_a_fresh_process_that_stops_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = subprocess.CompletedProcess([], -9, "", "out of memory")
    monkeypatch.setattr(subprocess, "run", lambda *args, **settings: stopped)
    with pytest.raises(BenchError, match="of tiny, sage_grpo, micro-batch 4 failed"):
        peak_in_fresh_process(TINY_LOOPS[0], "harness", CPU)


def test_padding_is_the_pipelines_at_full_size() -> None:
    assert scaled(PIPELINE_LATENTS, 100) == PIPELINE
    assert scaled(64, 12).text == 12


# the overhead -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trainer() -> Callable[[Path], Trainer]:
    """A trainer of three tiny updates in a folder; all of them share one backbone, which each resets."""
    suite = load_suite(NANO, ["suite=speed", "seeds=[0]", "budget.updates=3", *TINY_OVERHEAD])
    prepared = prepare(suite)
    backbone = make_backbone(prepared)
    evaluators = {name: make_evaluator(prepared, name) for name in suite.all_evaluators}

    def make_trainer(folder: Path) -> Trainer:
        return Trainer.new(first_run(suite, folder, "speed"), backbone, evaluators)

    return make_trainer


def bare_calls(trainer: Trainer) -> BareCalls:
    return BareCalls(trainer.suite, trainer.backbone, trainer.evaluators, ["moving"])


def test_bare_calls_are_those_of_the_harness(
    trainer: Callable[[Path], Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path)
    calls: list[Any] = []

    def watched(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def noted(x: torch.Tensor, *args: Any) -> Any:
            calls.append((name, tuple(x.shape), torch.is_grad_enabled()))
            return call(x, *args)

        monkeypatch.setattr(owner, name, noted)

    watched(made.backbone, "velocity")
    watched(made.backbone, "decode")
    watched(made.evaluators["gold"], "score")
    made.run_update(0)
    expected, calls[:] = sorted(calls), []
    bare_calls(made)(update_prompts(made.suite.prompt_list("train"), made.suite.budget.prompts, 0, 0))
    assert sorted(calls) == expected
    assert len(expected) == 4 + 2 + 2 + 1 + 1


def test_replaying_bare_calls_changes_nothing_of_the_run(trainer: Callable[[Path], Trainer], tmp_path: Path) -> None:
    lines = []
    for name in ("alone", "watched"):
        made = trainer(tmp_path / name)
        made.train(Alternation(made, bare_calls(made)) if name == "watched" else lambda *args: None)
        found = read_lines(tmp_path / name / TRAIN)
        lines.append([{key: value for key, value in line.items() if key != "seconds"} for line in found])
    assert len(lines[0]) == 3
    assert lines[0] == lines[1]


def test_a_probe_and_a_checkpoint_are_spread_over_the_updates(
    trainer: Callable[[Path], Trainer], tmp_path: Path
) -> None:
    """Ordinary updates 2 s, bare 1 s; a probe 3 s every third update, a checkpoint 5 s every fifth."""
    harness, bare = [], []
    for i in range(16):
        update, other = 1.0 + 3 * (i % PROBE_EVERY == PROBE_EVERY - 1), 1.0 + 5 * (i % 5 == 4 or i == 15)
        harness.append({"update": update, "other": other, "total": update + other, "cpu": 3.0})
        bare.append({"update": 1.0, "other": 0.0, "total": 1.0, "cpu": 2.0})
    made = trainer(tmp_path)
    found = summary(made.suite, made, harness, bare)
    assert found["ratio"] == found["ratio_of_medians"] == 2
    assert found["ratio_of_cpu"] == 1.5
    assert found["ratio_all"] == 2 + 3 / 3 + 5 / 5
    assert found["updates"] == 15


# what is written ----------------------------------------------------------------------------------------------
def test_every_figure_is_finite_and_every_ratio_positive(stored: Path) -> None:
    sections = json.loads((stored / FILE).read_text())["sections"]
    assert list(sections) == list(SECTIONS)
    found = dict(numbers(sections))
    assert all(map(math.isfinite, found.values()))
    positive = [
        name for name in found if any(word in name for word in ("ratio", "/total", "/cpu", "tflops", "peak_gb"))
    ]
    assert len(positive) > 40
    assert all(found[name] > 0 for name in positive)
    assert all(case["gradient_difference"] <= BOUND for case in sections["loops"]["result"]["cases"])
    assert all(section["where"]["tiny"] for section in sections.values())


def test_the_page_is_made_of_the_stored_figures(stored: Path) -> None:
    text = (stored / PAGE).read_text()
    sections = read(stored)
    assert text == page.page(sections)
    row = sections["overhead"]["result"]["rows"][0]
    assert f"| {row['row']} | " in text
    assert f"{row['ratio']:.3f}" in text
    assert "Goal: at most 1.10" in text
    assert text.count("Tiny run") == len(SECTIONS)


def test_what_was_not_measured_is_kept(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = read(stored)
    old["gpu"]["where"] |= {"gpu": "A Card", "date": "2020-01-01", "tiny": False}
    write(tmp_path, {name: old[name] for name in ("gpu", "loops")})
    monkeypatch.setattr(compare_loops, "TINY_LOOPS", TINY_LOOPS[1:])
    assert main(["loops", *ONE, "--out", str(tmp_path)]) == 0
    new = read(tmp_path)
    assert new["gpu"] == old["gpu"]
    assert new["loops"] != old["loops"]
    text = (tmp_path / PAGE).read_text()
    assert "On A Card" in text
    assert "measured on 2020-01-01" in text
    assert "Not measured yet" in text  # the overhead


def test_without_a_gpu_the_page_says_so() -> None:
    text = page.page({})
    assert "These figures await a GPU" in text
    assert "417 TFLOP/s" in text


def test_goals_are_judged_by_the_figures(stored: Path) -> None:
    result = read(stored)["overhead"]["result"]
    for ratio, word in ((1.05, "**Reached.**"), (1.2, "**Not reached.**")):
        result["rows"][0] |= {"ratio": 1.0, "ratio_all": ratio, "ratio_of_cpu": 1.0}
        assert word in "\n".join(page.overhead_section(result))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tiny"], "give --out FOLDER"),
        (["frames"], "there is no section 'frames'"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["gpu"], "the section gpu needs a GPU"),
        (["loading"], "give --checkpoint FOLDER"),
        (["--updates", "2"], "too few"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(words) == 2
    assert said in capsys.readouterr().err


# suites at their size ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> settings.SettingsBenchmark:
    folder = tmp_path_factory.mktemp("settings") / "checkpoint"
    write_checkpoint(folder, mini())
    return settings.SettingsBenchmark(folder, CPU, settings.TINY)


def test_a_setting_climbs_to_the_budget_in_which_it_fits(
    benchmark: settings.SettingsBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    class OneCard:
        total_memory, name = 141e9, "A Card"

    @contextmanager
    def limit(device: torch.device, gb: float) -> Iterator[None]:
        tried.append(gb)
        yield

    def figures(prepared: Any, setting: settings.Setting) -> dict[str, Any]:
        if tried[-1] < 80:
            raise torch.OutOfMemoryError
        return {"peak_gb": 60.0}

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: OneCard)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(settings, "memory_limit", limit)
    monkeypatch.setattr(settings, "reset_peak", lambda device: None)
    monkeypatch.setattr(benchmark, "_figures", figures)
    monkeypatch.setattr(benchmark, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(settings, "planned_gb", lambda *args: 30.0)
    found = benchmark.measure(settings.Setting("one", settings.SINGLE))
    assert tried == [48, 80], "24 GB are below the plan"
    assert (found["budget_gb"], found["plan_ratio"]) == (80, 0.5)
    monkeypatch.setattr(settings, "planned_gb", lambda *args: 200.0)
    tried.clear()
    assert benchmark.measure(settings.Setting("one", settings.SINGLE))["budget_gb"] == 141
    assert tried == [141], "a plan above the card is tried on all of it"


def test_a_value_that_the_backbone_refuses_is_named_with_its_sentence(benchmark: settings.SettingsBenchmark) -> None:
    odd = settings.Setting("odd", settings.SINGLE, ("backbone.train.lora_targets=nothing",))
    assert "lora_targets" in benchmark.measure(odd)["refused"]


def test_settings_end_in_time(tmp_path: Path) -> None:
    (late,) = settings.measure_settings(
        tmp_path, CPU, tiny=True, until=time.monotonic() - 1, chosen=[settings.Setting("late", settings.SINGLE)]
    )
    assert late["refused"] == "no time was left for it."


def test_every_option_beside_its_default_is_measured() -> None:
    choices = {name: HunyuanOptions.choices[name] for name in (*NUMERIC, "idle_models")}
    assert {name: set(values) for name, values in settings.OPTIONS.items()} == {
        name: set(values[1:]) for name, values in choices.items()
    }
    names = [setting.name for setting in settings.settings()]
    assert names[:2] == ["single-GPU suite", "base_weights=int8 and idle_models=cpu"]
    assert {f"{name}={value}" for name, values in settings.OPTIONS.items() for value in values} < set(names)


def test_a_limit_of_memory_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append(share))
    with settings.memory_limit(torch.device("cuda"), 24):
        assert shares == [(24e9 - settings.FIXED) / 80e9]
    assert shares[-1] == 1


def test_a_failed_load_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = subprocess.CompletedProcess([], -9, "", "out of\nmemory")
    monkeypatch.setattr(loading, "subprocess", SimpleNamespace(run=lambda *args, **settings: stopped))
    with pytest.raises(BenchError, match=r"the part 'text' of .* ended with -9: out of memory"):
        loading.measure_loading(tmp_path, "cpu", lambda what: None)


def test_damaged_figures_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    with pytest.raises(BenchError, match="delete or restore it"):
        write(tmp_path, {})
    assert (tmp_path / FILE).read_text() == "{"


def test_other_methods_and_odd_heads_are_refused() -> None:
    with pytest.raises(BenchError, match="'cps' is not compared"):
        prepare_work(Case("tiny", "cps", 1), CPU)
    with pytest.raises(BenchError, match="multiple of 32"):
        RandomVideo15(
            replace(WIDE, attention_head_dim=16), (32, 2, 4, 4), text=12, rank=2, dtype=torch.float32, device=CPU
        )


def test_an_update_at_full_size_uses_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured update is that of `bench.algorithm.update.Updater`, with two trained steps of one sample each."""
    spent: list[tuple[str, int]] = []
    monkeypatch.setattr(Ledger, "spend", lambda self, name, amount: spent.append((name, amount)))
    benchmark = GPUBenchmark(TINY_MODEL, CPU)
    before = [p.detach().clone() for p in benchmark.backbone.parameters()]
    benchmark.update("tiny", 1.0)
    assert [amount for name, amount in spent if name == "nfe_train"] == [3] * 4  # two samples x two steps, one by one
    assert any(not torch.equal(old, new) for old, new in zip(before, benchmark.backbone.parameters(), strict=True))
