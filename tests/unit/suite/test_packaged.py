"""Suites by name, and the paths in them: what each counts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bench.cli import main
from bench.core.errors import BenchError
from bench.suite.catalogue import first_sentence, packaged_suites
from bench.suite.load import load_suite, load_variants
from bench.suite.packaged import CONFIGS, packaged_files, suite_file
from bench.suite.paths import locate, path_parameters, resolve
from bench.suite.prepared import prepare


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["nano", "nano_kl", "as_published/cps", "hunyuanvideo15_480p"])
def test_a_packaged_suite_is_read_by_its_name(name: str) -> None:
    assert load_variants(name) == load_variants(CONFIGS / f"{name}.yaml")


def test_a_file_wins_over_a_packaged_name_only_as_a_path(here: Path) -> None:
    assert suite_file("nano") == CONFIGS / "nano.yaml"
    (here / "nano").write_text("")
    assert suite_file("nano") == CONFIGS / "nano.yaml", "no ending and no separator"
    (here / "nano.yaml").write_text("")
    assert suite_file("nano.yaml") == Path("nano.yaml")
    assert suite_file("as_published/cps") == CONFIGS / "as_published" / "cps.yaml"
    (here / "as_published").mkdir()
    (here / "as_published" / "cps").write_text("")
    assert suite_file("as_published/cps") == Path("as_published/cps")
    (here / "mine").write_text("")
    assert suite_file("mine") == Path("mine"), "no packaged suite has this name"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "near"),
    [("nnao", "nano"), ("nano.yaml", "nano"), ("nano_noisy", "nano_noise"), ("as_published/cp", "as_published/cps")],
)
def test_an_unknown_suite_gives_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(BenchError, match=rf"suite {name} cannot be read .* packaged suite '{near}'\?"):
        load_suite(name)
    with pytest.raises(BenchError, match=r"suite qqq cannot be read .*`bench suites` lists them\)\.$"):
        load_suite("qqq")


def test_every_packaged_suite_is_listed_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    suites = packaged_suites()
    assert [each.name for each in suites] == list(packaged_files())
    assert all(each.description and "\n" not in each.description for each in suites)
    sizes = {each.name: (each.scale, each.size) for each in suites}
    assert sizes["nano"] == ("nano", "5 x 3")
    assert sizes["nano_noise"] == ("nano", "4 x 3 x 3 variants")
    assert sizes["hunyuanvideo15_480p"][0] == "full"
    assert main(["suites"]) == 0
    out = capsys.readouterr().out
    assert all(each.name in out for each in suites)
    assert main(["suites", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == list(packaged_files())
    assert all(Path(each["path"]).is_file() for each in listed)


def test_the_description_is_the_first_sentence_of_the_comment() -> None:
    assert first_sentence("# One,\n# two. Three.\na: 1\n# no\n") == "One, two"
    assert first_sentence("a: 1\n") == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "proj/a.txt"),
        ("./a.txt", "proj/a.txt"),
        ("../a.txt", "proj/../a.txt"),
        ("../../a.txt", "proj/../../a.txt"),
        ("/x/a.txt", "/x/a.txt"),
        ("nano/clip", "nano/clip"),
        ("bench/prompts/nano_train.txt", "bench/prompts/nano_train.txt"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_path_counts_from_the_folder_of_its_file(name: str, expected: str) -> None:
    assert locate(name, Path("proj")) == expected


def test_a_path_is_never_taken_for_a_packaged_name(here: Path) -> None:
    assert locate("./bench/a.txt", Path()) == str(here / "bench" / "a.txt")
    assert locate("clip", Path("nano")) == str(here / "nano" / "clip")
    assert locate("a", here.parent) == str(here.parent / "a"), "outside of the current folder: absolute"


def test_the_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    assert locate("~/x", Path("proj")) == "home/x"
    assert resolve("~/x") == here / "home" / "x"
    assert resolve("~nobody-of-this-name/x") == here / "~nobody-of-this-name" / "x"


def write_prompts(folder: Path, word: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("train", "heldout"):
        (folder / f"{name}.txt").write_text("".join(f"{word} {name} {n}\n" for n in range(4)))


OWN = """
extends: nano
suite: mine
budget: {prompts: 2}
prompts: {train: train.txt, heldout: heldout.txt}
evaluator_params: {clipscore: {checkpoint: ../clip}}
"""


def test_a_suite_elsewhere_extends_a_packaged_one_and_has_its_files_beside_it(here: Path) -> None:
    write_prompts(here / "proj", "own")
    (here / "proj" / "mine.yaml").write_text(OWN)
    suite = load_suite("proj/mine.yaml")
    assert suite.prompts.model_dump(exclude_none=True) == {"train": "proj/train.txt", "heldout": "proj/heldout.txt"}
    assert suite.prompt_list("train")[0] == "own train 0"
    assert suite.evaluator_params["clipscore"]["checkpoint"] == "proj/../clip"
    assert suite.backbone.checkpoint == "nano"


def test_each_file_of_a_chain_keeps_its_own_folder(here: Path) -> None:
    write_prompts(here / "base", "base")
    write_prompts(here / "own", "own")
    (here / "base" / "base.yaml").write_text(OWN)
    (here / "own" / "mine.yaml").write_text(
        "extends: ../base/base.yaml\nsuite: mine\nprompts: {heldout: heldout.txt}\n"
    )
    suite = load_suite("own/mine.yaml", ["evaluator_params.pickscore.checkpoint=./pick"])
    assert suite.prompt_list("train")[0] == "base train 0"
    assert suite.prompt_list("heldout")[0] == "own heldout 0"
    assert suite.evaluator_params["pickscore"]["checkpoint"] == "pick", "an override counts from the current folder"


def test_a_variant_has_paths_too(here: Path) -> None:
    write_prompts(here / "proj", "own")
    (here / "proj" / "mine.yaml").write_text(
        "extends: nano\nsuite: mine\nvariants:\n  a: {}\n  b: {prompts: {train: train.txt}}\n"
    )
    packaged, own = load_variants("proj/mine.yaml")
    assert packaged.prompts.train == "bench/prompts/nano_train.txt"
    assert own.prompt_list("train")[0] == "own train 0"


@pytest.mark.usefixtures("here")
def test_the_checkpoints_of_a_packaged_suite_count_from_the_current_folder() -> None:
    (suite, *_) = load_variants("hunyuanvideo15_480p")
    assert suite.backbone.checkpoint == "checkpoints/HunyuanVideo-1.5-Diffusers-480p_t2v"


def test_one_suite_is_the_same_from_every_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(here / "proj", "own")
    (here / "proj" / "mine.yaml").write_text(OWN)
    one = load_suite("proj/mine.yaml")
    monkeypatch.chdir(here / "proj")
    other = load_suite("mine.yaml")
    assert one.prompts != other.prompts
    assert one.shared() == other.shared()
    third = load_suite(here / "proj" / "mine.yaml")
    assert other.read_prompts() == third.read_prompts()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("folder", ["2024", "2024_01", "2024-01-02", "1e4", "0x10", "1.50"])
def test_a_checkpoint_that_looks_like_a_number_is_its_text(here: Path, folder: str) -> None:
    override = load_suite("nano", [f"evaluator_params.clipscore.checkpoint={folder}"])
    assert override.evaluator_params["clipscore"]["checkpoint"] == folder
    text = {"extends": "nano", "suite": "mine", "evaluator_params": {"clipscore": {"checkpoint": "FOLDER"}}}
    (here / "mine.yaml").write_text(yaml.safe_dump(text).replace("FOLDER", folder))
    assert load_suite("mine.yaml").evaluator_params["clipscore"]["checkpoint"] == folder


EVALUATOR = """
from pathlib import Path
from bench.api import Evaluator

class Weighted(Evaluator):
    def __init__(self, {name}: Path | None = None): ...
"""


def test_the_paths_of_an_own_evaluator_are_known_by_their_names(here: Path) -> None:
    (here / "weighted.py").write_text(EVALUATOR.format(name="weights_file"))
    (here / "proj").mkdir()
    (here / "proj" / "w.pt").write_bytes(b"w")
    (here / "proj" / "mine.yaml").write_text(
        "extends: nano\nsuite: mine\n"
        "evaluation: {evaluators: [videoalign, 'weighted:Weighted']}\n"
        "evaluator_params: {'weighted:Weighted': {weights_file: w.pt}}\n"
    )
    suite = load_suite("proj/mine.yaml")
    assert suite.evaluator_params["weighted:Weighted"] == {"weights_file": "proj/w.pt"}
    checkpoint = prepare(suite).checkpoints["weighted:Weighted.weights_file"]
    first = checkpoint.digest
    (here / "proj" / "w.pt").write_bytes(b"other")
    assert prepare(suite).checkpoints["weighted:Weighted.weights_file"].digest != first


def test_a_path_whose_name_does_not_say_so_is_refused(here: Path) -> None:
    (here / "unnamed.py").write_text(EVALUATOR.format(name="weights"))
    overrides = ["evaluation.evaluators=[videoalign, 'unnamed:Weighted']"]
    with pytest.raises(BenchError, match=r"parameter 'weights' is a Path, .* let the name end in _path, _file, _fold"):
        prepare(load_suite("nano", overrides))


def test_the_folder_of_a_cache_is_no_checkpoint() -> None:
    params = {"checkpoint": "a", "text_cache": "b", "model": "c.json", "scale_file": Path("d"), "device": "cpu"}
    assert path_parameters(params) == {"checkpoint": "a", "model": "c.json", "scale_file": "d"}
    assert path_parameters({"model": "ViT-H-14", "weights_file": 3}) == {}
