"""Read a suite's YAML, or the suite that a results folder stores; duplicate and unknown keys are refused.

Overrides are part of the digest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.core.errors import BenchError
from bench.core.limits import EXTENDS, YAML_BYTES, YAML_CHARACTERS
from bench.core.strict_yaml import parse_yaml
from bench.core.text import read_text, shown
from bench.suite.difference import shortened
from bench.suite.load_errors import first_error
from bench.suite.packaged import CONFIGS, packaged_files, suite_file
from bench.suite.paths import PATH_RULE, change_paths, is_path_key, locate, packaged, resolve
from bench.suite.recorded import SUITE_FILE, named_folder, recorded_suites
from bench.suite.schema import (
    UNSHARED,
    Suite,
    merge_mappings,
)


def load_suite(path: Path | str, overrides: Sequence[str] = ()) -> Suite:
    """Read a suite and apply overrides such as `budget.lr=1e-4`, `rows='[{method: cps}]'` or `seeds+='[3]'`.

    `path`: a YAML file, the name of a packaged suite, such as "nano" (see `bench.suite.packaged.suite_file`), or a
    results folder such as `results/mine`, which stores its suite.
    The override `variant=NAME` picks one variant of a study (see `load_variants`).
    """
    suites = load_variants(path, overrides)
    if len(suites) > 1:
        names = ", ".join(suite.variant for suite in suites)
        raise BenchError(f"suite {path} is a study of {len(suites)} variants: pick one with variant=NAME ({names}).")
    return suites[0]


def load_variants(path: Path | str, overrides: Sequence[str] = ()) -> list[Suite]:
    """One suite per entry of the YAML's `variants:`, named "study/variant"; the suite itself if there are none.

    A variant's settings win over the overrides, and are merged like those of a suite that extends another one.
    """
    data = _read_folder(Path(path)) if is_results_folder(path) else _read_suite(str(path), Path(), [])
    for number, override in enumerate(overrides):
        key = override.partition("=")[0]
        if any(earlier.startswith(f"{key}+=") for earlier in overrides[:number]):
            raise BenchError(f"override {shown(repr(override))} drops what '{key}+=' before it adds: give it first.")
        _apply_override(data, override)
    data = change_paths(data, lambda name: locate(name, Path()))  # those of overrides
    variants, selected = data.pop("variants", None), data.pop("variant", None)
    if variants is None:
        if selected is not None:
            raise BenchError(f"suite {path} has no variants: remove variant={selected}.")
        return [_validate(path, data)]
    if not (isinstance(variants, dict) and variants and all(isinstance(v, dict) for v in variants.values())):
        raise BenchError(
            f"suite {path}: 'variants' is not a mapping of names to settings, such as 'a: {{decode: ...}}'."
        )
    if selected is not None and selected not in variants:
        raise BenchError(f"suite {path} has no variant {selected!r}: choose one of {', '.join(map(str, variants))}.")
    for name, settings in variants.items():
        common = sorted({"suite", *UNSHARED, "variants", "extends", "seeds+", "rows+"} & settings.keys())
        if common:
            raise BenchError(
                f"suite {path}: variant {name!r} sets {common[0]!r}, which all variants share; move it up."
            )
    return [
        _validate(path, {**_merge(path, data, settings), "suite": f"{data.get('suite')}/{name}"})
        for name, settings in variants.items()
        if selected in (None, name)
    ]


def _validate(path: Path | str, data: dict[str, Any]) -> Suite:
    try:
        return Suite.model_validate_json(json.dumps(data), strict=True)  # strict: no text or truth value is a number
    except ValidationError as cause:
        raise BenchError(f"suite {path}: {first_error(cause, data)}") from cause


MERGED = ("backbone", "budget", "advantage", "evaluation", "evaluator_params", "prompts")
"""Keys whose mappings `extends:` and `variants:` merge key by key; the value of any other key is replaced."""


def read_mapping(path: Path, what: str = "suite", example: str = "bench/configs/nano.yaml") -> dict[str, Any]:
    """The mapping of a YAML file, whose path follows `PATH_RULE` without its names of checkpoints.

    `what` and `example` are for the error messages.
    """
    file = path if packaged(str(path)) else resolve(str(path))
    text = read_text(file, what, f"name a YAML file that can be read ({PATH_RULE})", YAML_BYTES, path)
    data = parse_yaml(text, f"{what} {path}", is_text=is_path_key)
    if not isinstance(data, dict):
        raise BenchError(f"{what} {path} is not a mapping of keys to values: start from {example}.")
    return data


def _read_suite(name: str, folder: Path, children: list[Path]) -> dict[str, Any]:
    """The suite's mapping on top of that of the suite that it extends, with its paths from the current folder.

    `name` counts from `folder`; `children` are the files that extend this one. Relative paths count from the folder of
    the file that contains them; those of a packaged suite from the current folder.
    """
    file = suite_file(name, folder)
    data = read_mapping(file)
    parent = data.pop("extends", None)
    own_folder = Path() if CONFIGS in file.absolute().parents else file.parent
    data = change_paths(data, lambda path: locate(path, own_folder))
    if parent is None:
        return _merge(file, {}, data)
    if not isinstance(parent, str):
        raise BenchError(f"suite {file}: extends takes one suite, not {shown(repr(parent), 60)}: name one.")
    chain = [*children, file.resolve()]
    if suite_file(parent, file.parent).resolve() in chain:
        raise BenchError(f"suite {file} extends {parent}, which extends it in turn: remove one 'extends:'.")
    if len(children) == EXTENDS:
        raise BenchError(f"suite {file} is above {EXTENDS} suites that extend each other: merge some of them.")
    return _merge(file, _read_suite(parent, file.parent, chain), data)


def is_results_folder(path: Path | str) -> bool:
    """Whether this is a folder, and not the name of a packaged suite."""
    return Path(path).is_dir() and str(path) not in packaged_files()


def _read_folder(folder: Path) -> dict[str, Any]:
    """The mapping of the suite that a results folder stores; its name is that of the folder."""
    folder = named_folder(folder)
    if (folder / SUITE_FILE).is_file():
        return {**_read_suite(str(folder / SUITE_FILE), Path(), []), "suite": folder.name}
    if (folder.parent / SUITE_FILE).is_file():
        return {**_read_folder(folder.parent), "variant": folder.name}
    return suite_mapping(recorded_suites(folder))


def suite_mapping(suites: Sequence[Suite]) -> dict[str, Any]:
    """The mapping from which `load_variants` makes a suite, or all variants of a study, with all defaults.

    Settings that all variants share stand outside of `variants`, so that overrides reach them.
    """
    first = suites[0]
    named = {"suite": first.study, **first.model_dump(mode="json", include=set(UNSHARED))}
    settings = [suite.model_dump(mode="json", exclude={"suite", *UNSHARED}) for suite in suites]
    if not first.variant:
        return {**named, **settings[0]}
    common = _common(settings)
    variants = {suite.variant: _rest(own, common) for suite, own in zip(suites, settings, strict=True)}
    return {**named, **common, "variants": variants}


def _common(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all of these have; of a mapping that `variants:` merges, its common keys."""
    common: dict[str, Any] = {}
    for key, value in settings[0].items():
        if all(other[key] == value for other in settings):
            common[key] = value
        elif key in MERGED:
            common[key] = {k: v for k, v in value.items() if all(other[key].get(k, ...) == v for other in settings)}
    return common


def _rest(settings: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    """What a variant adds to the common settings."""
    rest = {key: value for key, value in settings.items() if common.get(key) != value}
    for key in rest.keys() & common.keys():
        part = {name: value for name, value in settings[key].items() if name not in common[key]}
        if merge_mappings({key: common[key]}, {key: part}, MERGED)[key] == settings[key]:
            rest[key] = part
    return rest


def _merge(path: Path | str, base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, and lists under `KEY+` added to those under `KEY`."""
    return _add_lists(path, merge_mappings(base, changes, MERGED))


def _add_lists(path: Path | str, mapping: dict[str, Any], key: str = "") -> dict[str, Any]:
    """The mapping with each `NAME+` added to the list `NAME`, in all mappings below but the variants of a study."""
    result = {
        name: _add_lists(path, value, f"{key}{name}.") if isinstance(value, dict) and name != "variants" else value
        for name, value in mapping.items()
        if not str(name).endswith("+")
    }
    for name, items in mapping.items():
        if str(name).endswith("+"):
            result[name[:-1]] = _added(f"suite {path}: {key}{name}", result, name[:-1], items)
    return result


def _added(what: str, mapping: dict[str, Any], name: str, items: Any) -> list[Any]:
    """The list of `name`, empty where it is missing, and the `items` that are added to it."""
    before = mapping.get(name, [])
    if not isinstance(before, list):
        raise BenchError(f"{what} adds to a list, but {name!r} is {shortened(before)!r}: leave out the '+'.")
    if not isinstance(items, list):
        raise BenchError(f"{what} adds {shortened(items)!r}, which is not a list: write it in brackets, as [...].")
    return [*before, *items]


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    where = f"override {shown(repr(override))}"
    if not equals:
        raise BenchError(f"{where} has no '=': write it as key.subkey=value.")
    if len(key) > YAML_CHARACTERS:
        raise BenchError(f"{where}: the key has {len(key):,} characters: write at most {YAML_CHARACTERS:,}.")
    *parents, last = key.split(".")
    mapping: Any = data
    for name in parents:
        mapping = mapping.setdefault(name, {}) if isinstance(mapping, dict) else None
    if not isinstance(mapping, dict):
        raise BenchError(f"{where}: {'.'.join(parents)!r} is not a mapping in the suite.")
    name = last.removesuffix("+")
    content = parse_yaml(value, where, name, is_path_key)
    mapping[name] = content if name == last else _added(where, mapping, name, content)
