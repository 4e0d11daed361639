"""Which settings differ between two suites, records or fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.core.hashing import canonical_json
from bench.suite.paths import change_paths
from bench.suite.schema import EXTRA_FILES, RowSpec, Suite


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value of every setting that is not a mapping itself: `{"a": {"b": 1}}` gives `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(
    left: Mapping[str, Any], right: Mapping[str, Any], nested: bool = False, absent: Any = None
) -> dict[str, tuple[Any, Any]]:
    """Key to the value in `left` and in `right`, for the keys whose values are not the same JSON.

    `nested` compares mappings that both sides have key by key and returns dotted keys. A key that one side does not
    have counts as `absent` there. The order is that of `left`, then that of `right`.
    """
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*left, *right]):
        one, other = left.get(key, absent), right.get(key, absent)
        if nested and isinstance(one, Mapping) and isinstance(other, Mapping):
            pairs |= {f"{key}.{name}": pair for name, pair in differences(one, other, nested, absent).items()}
        elif canonical_json(one) != canonical_json(other):
            pairs[key] = one, other
    return pairs


def differing_parts(left: Any, right: Any) -> tuple[Any, Any]:
    """The entries of two mappings that differ; two values that are not both mappings are returned whole."""
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        return left, right
    pairs = differences(left, right)
    return {key: one for key, (one, _) in pairs.items()}, {key: other for key, (_, other) in pairs.items()}


def shortened(value: Any, length: int = 60) -> str:
    """The value as text for a message, cut to so many characters."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def first_difference(recorded: Any, wanted: Any, key: str = "") -> str | None:
    """The first setting of `wanted` that `recorded` has otherwise; None if nothing differs.

    As text, such as "budget.lr is 0.001 there and 0.0003 here". Settings that only `recorded` has do not count, and 1
    and 1.0 are the same value.
    """
    if isinstance(wanted, dict) and isinstance(recorded, dict):
        for name, value in wanted.items():
            change = first_difference(recorded.get(name), value, f"{key}.{name}" if key else name)
            if change:
                return change
        return None
    return None if recorded == wanted else f"{key} is {recorded} there and {wanted} here"


def row_difference(recorded: Suite, wanted: RowSpec) -> str | None:
    """The first setting that the row of the same label has otherwise in a recorded suite; None if there is none."""
    same = next((row for row in recorded.rows if row.name == wanted.name), None)
    if same is None:
        return None
    return first_difference(same.model_dump(mode="json"), wanted.model_dump(mode="json"), f"row {wanted.name}")


def without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's settings without its paths: what a path leads to counts, by its digest, and not where it lies."""
    return {key: value for key, value in change_paths(settings, lambda path: None).items() if key != "prompts"}


def settings_difference(recorded: Suite, suite: Suite) -> str | None:
    """The first setting of the suite that the suite of a record has otherwise; paths do not count.

    Settings that decide no score (`EXTRA_FILES`) do not count either: a run without a curve has the scores of one with
    it. Settings that were added after the record have their defaults there (`bench.suite.recorded.suite_of_record`).
    """
    return first_difference(_deciding(recorded), _deciding(suite))


def _deciding(suite: Suite) -> dict[str, Any]:
    """The settings that decide scores, without paths."""
    settings = without_paths(suite.shared())
    return {**settings, "evaluation": without_extra_files(settings["evaluation"])}


def without_extra_files(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation that decide its scores."""
    return {key: value for key, value in evaluation.items() if key not in EXTRA_FILES}
