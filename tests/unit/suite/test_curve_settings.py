"""The settings of the held-out curve and of the kept videos: what they refuse, and which digests they move."""

from __future__ import annotations

import pytest

from bench import store
from bench.core.errors import BenchError
from bench.core.hashing import digest
from bench.core.provenance import ROOT
from bench.plan.workload import curve_nfe, curve_points
from bench.suite.inputs import run_settings
from bench.suite.load import load_suite
from bench.suite.prepared import prepare
from bench.suite.recorded import record_difference, suite_of_record

PILOT = ROOT / "results" / "reference" / "nano_pilot" / "lr3e-4" / "cps-fixed" / "seed-100"
"""A run of before there were curves."""
VARIANT = "variant=lr3e-4"
WITHOUT = ("evaluation.every=null", "evaluation.keep_videos=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.every=0", r"key 'evaluation\.every': Input should be greater than or equal to 1"),
        ("evaluation.curve_videos=5", r"evaluation\.curve_videos is 5, but a prompt has 4 video\(s\): set at most"),
        ("evaluation.curve_videos=0", r"key 'evaluation\.curve_videos': Input should be greater than or equal to 1"),
        ("evaluation.keep_videos=5", r"evaluation\.keep_videos is 5, but a prompt has 4 video\(s\): set at most"),
        ("evaluation.keep_videos=-1", r"key 'evaluation\.keep_videos': Input should be greater than or equal to 0"),
    ],
)
def test_settings_without_a_meaning_are_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        load_suite("nano", [override])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nano_control_gold", "b0e53d5fc837d19c"),
        ("hunyuanvideo15_480p_pilot", "065aa48934988e10"),
    ],
)
def test_digests_of_suites_without_a_curve_are_those_of_before_there_were_curves(name: str, expected: str) -> None:
    settings = run_settings(load_suite(name))
    settings["backbone"]["train"].pop("text_encoders", None)  # later than the digests: the full-size suites set it
    assert digest(settings) == expected


def test_a_run_of_before_has_the_settings_of_its_inputs() -> None:
    record = store.read_record(PILOT)
    assert run_settings(suite_of_record(PILOT, record)) == store.read_inputs(PILOT)["settings"]


def test_every_setting_of_a_curve_is_part_of_the_digest() -> None:
    plain = load_suite("nano", WITHOUT)
    changed = ["evaluation.every=10", "evaluation.every=20", "evaluation.keep_videos=1", "evaluation.keep_videos=2"]
    suites = [load_suite("nano", [*WITHOUT, override]) for override in changed]
    suites.append(load_suite("nano", [*WITHOUT, "evaluation.every=10", "evaluation.curve_videos=2"]))
    assert len({digest(run_settings(suite)) for suite in [plain, *suites]}) == 6


def test_a_run_without_a_curve_has_the_scores_that_a_suite_with_one_asks_for() -> None:
    record = store.read_record(PILOT)
    suite = load_suite("nano_pilot", [VARIANT, "evaluation.every=10", "evaluation.keep_videos=1"])
    assert record_difference(PILOT, record, suite) is None
    other = load_suite("nano_pilot", [VARIANT, "evaluation.every=10", "evaluation.steps=10"])
    assert record_difference(PILOT, record, other) == "evaluation.steps is 20 there and 10 here"


def test_a_run_that_is_shorter_than_the_distance_of_points_has_no_point() -> None:
    """So that `budget.updates=5` is a quick trial of any suite."""
    short = prepare(load_suite("nano", ["budget.updates=10"]))
    assert (curve_points(short), curve_nfe(short)) == (0, 0)
    assert curve_points(prepare(load_suite("nano", ["budget.updates=11"]))) == 1
    whole = prepare(load_suite("nano"))
    assert (curve_points(whole), curve_nfe(whole)) == (5, 5 * 36 * 20)
