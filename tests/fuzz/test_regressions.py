"""Inputs that once ended in a traceback, in a hang or in a silent mistake, each built here."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from bench import plugins, store
from bench.core.errors import BenchError
from bench.core.hashing import MANIFEST, verify_manifest
from bench.core.limits import EXTENDS, PROMPT_CHARACTERS
from bench.core.provenance import ROOT
from bench.launch.config import load_launch_config
from bench.score.videos import read_items
from bench.suite.load import load_suite, load_variants
from bench.suite.paths import resolve
from bench.suite.prepared import prepare
from bench.suite.prompts import count_comments, read_prompts
from evaluators.clip.frames import read_image_rule
from evaluators.common import weight_files
from evaluators.videoalign.inputs import read_template
from tests.fuzz.mutations import BOMB
from tests.fuzz.outcomes import answer, timer
from tests.helpers.nano_suite import NANO
from tests.helpers.paths import PROJECT


def refused(call: Any, message: str) -> None:
    """The call is refused in one sentence that has `message`."""
    sentence = answer("regressions", call)
    assert sentence is not None, f"accepted, expected: {message}"
    assert message in sentence


# Suites -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"suite: \xff\n", "is not UTF-8 text (line 1)"),
        (b"suite: a\0\n", "holds a NUL character"),
        (BOMB.encode(), "values, aliases expanded"),
        (b"budget: {{ budget }}\n", "a key is no text; put {{ }} in quotes"),
        (b"? [a]\n: 1\n", "a key is no text"),
        (b"budget:\n  <<: 1\n", "a merge key (<<) takes a mapping"),
        (b"a: " + b"[" * 5000, "nested deeper than"),
        (b"seeds: [" + b"9" * 5000 + b"]\n", "a whole number has 5000 digits"),
        (b"suite: 2020-13-45\n", "is a date, which is no setting: put it in quotes"),
        (b'suite: "\\ud83d"\n', "half a surrogate pair"),
        (b"extends: [nano.yaml, other.yaml]\n", "extends takes one suite, not ['nano.yaml', 'other.yaml']"),
        (b"extends: ~nobody/x.yaml\n", "cannot be read"),
        (b"extends: nano.yaml\nkl_probe_every: no\n", "key 'kl_probe_every'"),
        (b"extends: nano.yaml\nsuite: no\n", "put a word in quotes"),
        (b"extends: nano.yaml\nrows: [{method: cps, kl: no}]\n", "put a word in quotes"),
        (b"extends: nano.yaml\nsuite: 1e5\n", "put it in quotes for a text"),
        (b"extends: nano.yaml\nsuite: " + b"a" * 101 + b"\n", "use at most 100"),
        (b"extends: nano.yaml\nbudget: {steps: 1000000000}\n", "budget.steps is 1000000000: set it to at most 10000"),
        (b"extends: nano.yaml\nseeds: [9223372036854775808]\n", "more than 63 bits"),
    ],
)
def test_suites(text: bytes, message: str, tmp_path: Path) -> None:
    shutil.copy(NANO, tmp_path)
    (tmp_path / "suite.yaml").write_bytes(text)
    refused(lambda: load_variants(tmp_path / "suite.yaml"), message)


def test_a_suite_with_a_byte_order_mark_merge_keys_and_anchors_loads(tmp_path: Path) -> None:
    shutil.copy(NANO, tmp_path)
    text = """extends: nano.yaml
budget: &budget {lr: 1e-3, updates: 9}
variants:
  a: {budget: {<<: *budget, updates: 2}}
  b: {budget: *budget}
"""
    (tmp_path / "suite.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode().replace(b"\n", b"\r\n"))
    one, other = load_variants(tmp_path / "suite.yaml")
    assert [(s.budget.updates, s.budget.lr) for s in (one, other)] == [(2, 1e-3), (9, 1e-3)]


def test_suites_that_extend_each_other_through_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"extends: sub/../{other}.yaml\n")
    refused(lambda: load_suite(tmp_path / "a.yaml"), "extends it in turn: remove one 'extends:'")
    (tmp_path / "self.yaml").write_text("extends: self.yaml\n")
    refused(lambda: load_suite(tmp_path / "self.yaml"), "extends it in turn")


def test_a_long_chain_of_suites_is_refused(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    refused(lambda: load_suite(tmp_path / "0.yaml"), f"is above {EXTENDS} suites that extend each other")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rows=[{method: cps, method: dance_grpo}]", "key 'method' is given twice"),
        ("budget.lr=!!float x", "'x' is no number"),
        ("budget.lr=" + "9" * 5000, "a whole number has 5000 digits"),
        ("budget.updates=" + "9" * 300, "set it to at most 100000"),
        ("budget.lr=2020-01-01", "is a date"),
        ("budget.lr=[" + "[" * 3000, "nested deeper"),
        ("rows={{ rows }}", "put {{ }} in quotes"),
        ("x" * 5000, "has no '='"),
        ("prompts.train=~nobody/x.txt", "cannot be read"),
        ("prompts.train=" + "a" * 300, "cannot be read"),
        ("budget.lr=\udcff", "is not YAML"),
    ],
)
def test_overrides(override: str, message: str) -> None:
    sentence = answer("regressions", lambda: prepare(load_suite(NANO, [override])))
    assert message in (sentence or "")


# Launch files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b"\xff", "is not UTF-8 text"),
        (b"launcher: no\n", "launcher is False; see examples/launch"),
        (b"launcher: torchrun\nnproc: '2'\n", "nproc is '2'; see examples/launch"),
        (b"launcher: torchrun\nnproc: 2e0\n", "nproc is 2.0; see"),
        (b"slurm: [a]\n", "slurm is ['a']; see"),
        (b"launcher: torchrun\nlauncher: local\n", "key 'launcher' is given twice"),
    ],
)
def test_launch_files(change: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "launch.yaml").write_bytes(change)
    refused(lambda: load_launch_config(tmp_path / "launch.yaml"), message)


def test_accelerates_file_with_no_in_place_of_a_word(tmp_path: Path) -> None:
    text = (PROJECT / "examples/launch/accelerate_ddp.yaml").read_text()
    path = tmp_path / "launch.yaml"
    path.write_text(text.replace("MULTI_GPU", "NO"))
    launch = load_launch_config(path)
    assert (launch.launcher, launch.nproc) == ("torchrun", 8)
    text = (PROJECT / "examples/launch/accelerate_fsdp2.yaml").read_text()
    path.write_text(text.replace("fsdp_version: 2", "fsdp_version: '2'"))
    refused(lambda: load_launch_config(path), "write the number 2, without quotes")


# Prompt files -------------------------------------------------------------------------------------------------------


def prompt_file(folder: Path, content: str | bytes, name: str = "train.txt") -> str:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)


def test_prompts_have_no_byte_order_mark_and_keep_their_text(tmp_path: Path) -> None:
    name = prompt_file(tmp_path, b"\xef\xbb\xbfa red circle\r\n# no\r\n\r\n blue \xe2\x80\xa8square\r\n#1 player\r\n")
    assert read_prompts(name, "prompts.train") == ["a red circle", " blue \u2028square"]
    assert count_comments(name, "prompts.train") == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"video,prompt\n", "is a .csv: give a text file with a prompt per line in 'prompts.train'"),
        ("a.JSONL", b"{}", "is a .JSONL: give a text file"),
        ("a.txt", b"\xe9t\xe9\n", "is not UTF-8 text (line 1)"),
        ("a.txt", "a\n".encode("utf-16"), "is not UTF-8 text"),
        ("a.txt", b"a\0b\n", "holds a NUL character"),
        ("a.txt", b"a\n\xef\xbb\xbfb\n", "holds a byte-order mark inside (line 2): remove it"),
        ("a.txt", b"a \na\n", "contains a prompt twice"),
        ("a.txt", "é\n".encode() + unicodedata.normalize("NFD", "é\n").encode(), "contains a prompt twice"),
        ("a.txt", b"a" * (PROMPT_CHARACTERS + 1), "has a prompt of 10,001 characters"),
        ("a.txt", b"# a\n\n", "is empty"),
    ],
)
def test_prompt_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = prompt_file(tmp_path, content, name)
    refused(lambda: read_prompts(path, "prompts.train"), message)


@pytest.mark.parametrize(("train", "held_out"), [("a cat ", "a cat"), (unicodedata.normalize("NFD", "café"), "café")])
def test_the_same_prompt_in_both_files_is_seen(train: str, held_out: str, tmp_path: Path) -> None:
    one, other = prompt_file(tmp_path, f"{train}\nx\ny\nz\n"), prompt_file(tmp_path, held_out, "heldout.txt")
    suite = load_suite(NANO, [f"prompts={{train: {one}, heldout: {other}}}"])
    refused(suite.prompt_lists, "is in the training and in the held-out list")


def test_the_digests_of_the_packaged_prompts_have_not_moved() -> None:
    """Stored runs have these digests in their records."""
    record = store.read_record(ROOT / "results/reference/nano/cps-fixed/seed-0")
    assert load_suite(NANO).prompt_lists().digest("heldout") == record.prompts_digest


# Lists of videos and prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'video,prompt\na.mp4,x\nb.mp4,"x"y"\n', "line 3, is not CSV"),
        ("a.csv", f"video,prompt\na.mp4,{'x' * 200_000}\n", "line 2, is not CSV (field larger than"),
        ("a.csv", "video,prompt,prompt\na,b,c\n", "needs a first line with the columns video,prompt, not"),
        ("a.csv", f"video,prompt\na.mp4,{'x' * 20_000}\n", "line 2, has a prompt of more than 10,000 characters"),
        ("a.json", '[{"video": "a.mp4", "prompt": "x"}]', "is JSON with an array: write {"),
        ("a.json", '[\n {"video": "a.mp4", "prompt": "x"}\n]', "is JSON with an array: write {"),
        ("a.json", '{"a.mp4": "a cat", "b.mp4": "a dog"}', "is JSON with one object: write {"),
        ("a.jsonl", '{\n "video": "a.mp4",\n "prompt": "x"\n}', "is JSON with one object: write {"),
        ("a.jsonl", '{"video": "a.mp4"}\n{"video": "a\\u0000.mp4"}\n', "line 2, names a video with a NUL character"),
        ("a.jsonl", '{"video": "a.mp4"}\n' + '{"prompt": ' + "[" * 100_000, "line 2, is nested deeper than"),
        ("a.jsonl", '{"video": "\\ud83d.mp4", "prompt": "x"}', "names a video with half a surrogate pair"),
        ("a.jsonl", '{"video": "a", "video": "b", "prompt": "x"}\n{}', "line 1, gives the key 'video' twice"),
    ],
)
def test_lists_of_videos(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    refused(lambda: read_items([], tmp_path / name), message)


def test_a_prompt_that_cannot_be_stored_is_the_error_of_its_row(tmp_path: Path) -> None:
    content = '{"video": "a.mp4", "prompt": "cut \\ud83d"}\n{"video": "b.mp4", "prompt": "pair \\ud83d\\ude00"}\n'
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    (cut, whole), _ = read_items([], tmp_path / "a.jsonl")
    assert (cut.prompt, whole.prompt) == (None, "pair 😀")
    assert cut.problem == "has a prompt that holds half a surrogate pair: write it as text in the list"


# Records and checkpoints --------------------------------------------------------------------------------------------


def test_records_and_manifests(tmp_path: Path) -> None:
    for content in (b"\xff", b"[" * 100_000, b'{"schema": 1, "schema": 1}', b"9" * 10_000, b"[]", b"{}", b'"\\ud83d"'):
        (tmp_path / store.RUN).write_bytes(content)
        refused(lambda: store.read_record(tmp_path), "record ")
        (tmp_path / store.TRAIN).write_bytes(content + b"\n")
        answer("regressions", lambda: store.read_lines(tmp_path / store.TRAIN))
        (tmp_path / MANIFEST).write_bytes(content)
        refused(lambda: verify_manifest(tmp_path), "checkpoint manifest ")
    (tmp_path / store.STARTED).write_bytes(b"\xff")
    refused(lambda: store.read_digest(tmp_path), "is not UTF-8 text")


def test_a_last_line_that_a_killed_process_cut_inside_a_character_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": "é"}\n{"a": "é'.encode()[:-1])
    assert store.read_lines(tmp_path / "a.jsonl") == [{"a": "é"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf", "holds a byte-order mark, which would change the scores"),
        (b"\r", "holds carriage returns, which would change the scores"),
    ],
)
def test_a_template_that_an_editor_changed_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    whole = (resolve("nano/videoreward") / "prompt_template.txt").read_bytes()
    path = tmp_path / "prompt_template.txt"
    path.write_bytes(content + whole)
    refused(lambda: read_template(path), message)
    path.write_bytes(whole)
    assert read_template(path) == whole.decode()


def test_a_processor_that_transformers_5_wrote_is_read(tmp_path: Path) -> None:
    config = json.loads((resolve("nano/clip") / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": config}))
    size = config["crop_size"]["height"] if isinstance(config["crop_size"], dict) else config["crop_size"]
    assert read_image_rule(tmp_path, size) == read_image_rule(resolve("nano/clip"), size)
    (tmp_path / "processor_config.json").write_text("{}")
    refused(lambda: read_image_rule(tmp_path, size), "has no image_processor")


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map": {"a": [1]}}'])
def test_an_index_without_weights_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refused(lambda: weight_files(tmp_path), "names no weights")


# The fuzzer itself --------------------------------------------------------------------------------------------------


def test_the_timer_ends_a_hang() -> None:
    def hang() -> None:
        while True:
            os.getpid()

    with pytest.raises(BaseException, match="no answer after"), timer(0.05):
        hang()


def test_a_fault_is_no_answer() -> None:
    with pytest.raises(KeyError):
        answer("regressions", lambda: {}["x"])
    with pytest.raises(AssertionError):
        answer("regressions", lambda: (_ for _ in ()).throw(BenchError("two\nlines")))


def test_plug_ins_of_odd_names() -> None:
    for name in (":y", "..:X", "a:", "a b:C", "a\0:b", "x" * 3000 + ":y z"):
        refused(lambda name=name: plugins.find("methods", name), "is not 'module:Class'")


def test_a_line_break_in_the_name_of_the_extended_suite_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("extends: '\n\n  '\nsuite: x\n", encoding="utf-8")
    refused(lambda: load_suite(path), "cannot be read")
