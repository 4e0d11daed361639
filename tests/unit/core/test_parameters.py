"""Parameters of plug-ins are compared with the types of the constructor, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from bench.core.errors import BenchError
from bench.core.parameters import check_types
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from tests.helpers.nano_suite import NANO

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass
class Plugin:
    count: Annotated[int, Field(ge=1, description="a whole number of at least 1")] = 1
    rate: float = 1.0
    flag: bool = True
    name: str | None = None
    folder: str | Path = "x"
    size: tuple[int, int] = (1, 2)
    kind: Literal["a", "no"] = "a"
    parts: Mapping[str, int] | None = None


class Untyped:
    def __init__(self, a, b: ndarray | None = None, **rest: Any) -> None:  # type: ignore[no-untyped-def]
        raise AssertionError("nothing is made")


@pytest.mark.parametrize(
    "params",
    [
        {"count": 3, "rate": 2, "flag": False, "name": None, "folder": Path("y"), "size": [3, 4], "kind": "no"},
        {"name": "yes", "folder": "z", "parts": {"context": 2}, "rate": 0.5, "size": (3, 4)},
    ],
)
def test_values_that_fit(params: dict[str, Any]) -> None:
    check_types(Plugin, "plug-in", params)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 0, "is 0: give a whole number of at least 1"),
        ("count", 8.0, "is 8.0: give a whole number of at least 1"),
        ("count", True, "is True: give a whole number"),
        ("count", "3", "is '3': give a whole number"),
        ("rate", "2e0", "is '2e0': it should be a valid number"),
        ("rate", float("nan"), "holds a number that is not finite"),
        ("flag", "None", "is 'None': it should be a valid boolean"),
        ("flag", 1, "is 1: it should be a valid boolean"),
        ("name", 123, "is 123: it should be a valid string; put it in quotes for a text"),
        ("name", False, "YAML reads yes, no, on and off as true and false, so put a word in quotes"),
        ("folder", 2024, "is 2024: .*put it in quotes"),
        ("size", "x", "is 'x': it should be"),
        ("size", [1], "it has too few items"),
        ("size", [1, "a"], "it should be a valid integer"),
        ("size", [1, 2, 3], "it has too many items"),
        ("kind", False, "put a word in quotes"),
        ("parts", {"context": True}, "it should be a valid integer"),
        ("parts", [1], "is .1.: "),
    ],
)
def test_a_value_of_another_type_is_one_sentence(key: str, value: Any, message: str) -> None:
    with pytest.raises(BenchError, match=rf"^plug-in, parameter '{key}' .*{message}.*\.$"):
        check_types(Plugin, "plug-in", {key: value})


def test_parameters_without_a_type_take_any_finite_value() -> None:
    check_types(Untyped, "plug-in", {"a": [1, {"b": "c"}], "b": "x"})
    with pytest.raises(BenchError, match="not finite"):
        check_types(Untyped, "plug-in", {"a": [float("inf")]})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "backbone.train.lora_rank=yes",
            "backbone 'hunyuanvideo15', parameter 'lora_rank' is True: it should be",
        ),
        ("backbone.train.size=[13, a, 16]", "parameter 'size' is .*: it should be a valid integer"),
        ("backbone.train.size=big", "parameter 'size' is 'big'"),
        ("backbone.train.fps=fast", "parameter 'fps' is 'fast'"),
        (
            "evaluator_params.clipscore.micro_batch=0",
            "'micro_batch' is 0: give a whole number of at least 1",
        ),
        ("evaluator_params.clipscore.micro_batch=8.0", "'micro_batch' is 8.0: give a whole number"),
        ("evaluator_params.clipscore.prefix=123", "'prefix' is 123: .*put it in quotes"),
        ("evaluator_params.clipscore.prefix=yes", "'prefix' is True: .*YAML reads yes"),
        ("evaluator_params.clipscore.device=gpu", "'device' is 'gpu': give cpu, mps, cuda or cuda:N"),
        ("evaluator_params.videoalign.num_frames=4.5", "'num_frames' is 4.5: give a whole number"),
        ("evaluator_params.videoalign.normalise=None", "'normalise' is 'None': it should be a valid boolean"),
        ("evaluator_params.videoalign.dtype=float16", "'dtype' is 'float16': give one of float32, bfloat16"),
        ("rows=[{method: cps, label: a, params: {eta: yes}}]", "method 'cps', parameter 'eta': .*valid number"),
        (
            "rows=[{method: cps, label: a, params: {eta: .nan}}]",
            "method 'cps', parameter 'eta', holds a number that is not finite",
        ),
        ("rows=[{method: ':y'}]", "method ':y' is not 'module:Class'"),
        ("rows=[{method: '..:X'}]", "method '..:X' is not 'module:Class'"),
        ("rows=[{method: 'a b:X', label: a}]", "method 'a b:X' is not 'module:Class'"),
        ("rows=[{method: 'bench.api:Method'}]", "method 'bench.api:Method' is abstract: name a class that defines"),
        ("backbone.name=builtins:int", "backbone 'builtins:int': builtins is a module"),
        ("monitor=['subprocess:Popen']", r"evaluator 'subprocess:Popen': subprocess is a module of Python"),
    ],
)
def test_wrong_parameters_of_a_suite_are_refused_before_anything_is_loaded(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        prepare(load_suite(NANO, [override]))


def test_a_number_with_an_exponent_is_a_number_everywhere() -> None:
    suite = load_suite(NANO, ["evaluator_params.videoalign={sample_fps: 2e0}", "advantage.eps=1e-4"])
    assert (suite.evaluator_params["videoalign"]["sample_fps"], suite.advantage.eps) == (2.0, 1e-4)
    prepare(suite)
