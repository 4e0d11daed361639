"""Limits of what is read, far above what a real file needs; docs/reference/limits.md lists them."""

from __future__ import annotations

YAML_BYTES = 256_000
"""Size of a YAML file, an override or a parameter of the command line, in bytes."""
YAML_DEPTH = 20
"""Levels of nested YAML lists and mappings."""
YAML_NODES = 10_000
"""Values in a YAML text, where each alias (`*name`) counts as all values that it stands for."""
YAML_ALIASES = 100
"""Aliases (`*name`) in a YAML text."""
YAML_CHARACTERS = 1_000
"""Characters of a text or a key in a YAML text, and of the key of an override."""
DIGITS = 300
"""Characters of a whole number, in YAML and in JSON."""
EXTENDS = 10
"""Suites above a suite, by `extends`."""

NAME_CHARACTERS = 100
"""Characters of the name of a suite or a row, which name folders."""
SEED_BITS = 63
"""Bits of a seed, so that tables can hold it."""
UPDATES = 100_000
"""Updates of a run; the steps of each are checked before it starts."""
STEPS = 10_000
"""Sampling steps, of a rollout and of the held-out evaluation."""
TRIALS = 1_000
"""Trials of a search over settings."""

PROMPT_LIST_BYTES = 64_000_000
"""Size of a list of prompts or of videos with prompts, in bytes."""
PROMPTS = 1_000_000
"""Prompts in a file of a suite."""
PROMPT_CHARACTERS = 10_000
"""Characters of a prompt."""

JSON_BYTES = 64_000_000
"""Size of a JSON file: a record, or a file of a checkpoint's folder; also of the header of a weight file."""
JSON_LINES_BYTES = 1_000_000_000
"""Size of a file of JSON lines: the log of training, or the partial scores of `bench score`."""
JSON_DEPTH = 50
"""Levels of nested JSON lists and objects."""
