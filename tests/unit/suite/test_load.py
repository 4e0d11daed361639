"""A suite's YAML: what is refused, with which message, and what the digest covers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench.core.errors import BenchError
from bench.core.provenance import ROOT
from bench.suite.load import load_suite, load_variants
from bench.suite.prepared import make_backbone, prepare

NANO = ROOT / "bench" / "configs" / "nano.yaml"
_WITHOUT_NANO = (
    "prompts={train: bench/prompts/nano_train.txt, heldout: bench/prompts/nano_heldout.txt}",
    *("evaluator_params={}", "monitor=[]", "reward={gold: {gold_VQ: 1.0}}"),
    "evaluation={evaluators: [gold], steps: 2, videos_per_prompt: 1}",
)
"""What a suite states itself if its checkpoint is not a packaged one."""


def test_the_nano_suite_loads() -> None:
    suite = load_suite(NANO)
    assert suite.scale == "nano"
    assert [row.name for row in suite.rows] == [
        *("flow_grpo-fixed", "flow_grpo-equalized", "dance_grpo-fixed", "cps-fixed", "sage_grpo-dual")
    ]
    assert suite.weights == {"VQ": 0.5, "MQ": 0.5, "TA": 1.0}
    assert len(suite.prompt_list("train")) == 96
    assert len(suite.prompt_list("heldout")) == 36


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoed=final_latent", "unknown key 'decoed'; did you mean 'decode'?"),
        ("budget.lrr=1e-3", "unknown key 'budget.lrr'; did you mean 'lr'?"),
        ("rows=[{metod: cps}]", "unknown key 'rows.0.metod'; did you mean 'method'?"),
        ("evaluation.stpes=4", "unknown key 'evaluation.stpes'; did you mean 'steps'?"),
        ("decode=maybe", "key 'decode'"),
        ("budget.updates=many", "key 'budget.updates'"),
        ("budget.group_size=1", "group_size is 1"),
        ("seeds=[]", "key 'seeds'"),
        ("seeds=[1, 1]", "contain one twice"),
        ("rows=[{method: cps}, {method: cps}]", "two rows are called 'cps-none'"),
        ("compare_with=sage", "compare_with is 'sage', which names no row; choose one of flow_grpo-fixed, "),
        ("rows=[{method: cps, params: {eta: 0.5}}]", "give it a 'label:'"),
        ("rows=[{method: cps, label: base}]", "names a folder"),
        ("rows=[{method: cps, label: ../x}]", "names a folder"),
        ("reward={videoalign: {VQ: 0}}", "every reward weight is 0"),
        ("noise_policy={knd: native}", "key 'noise_policy.kind' is missing"),
        ("noise_policy={kind: common_eta, rss: 1}", "unknown key 'noise_policy.rss'; known keys here: eta, kind."),
        ("reward={videoalign: {VQ: 1}, gold: {VQ: 1}}", "reward metric 'VQ' is given by two evaluators"),
        ("evaluation.evaluators=[gold]", "reward evaluator 'videoalign' is not in evaluation.evaluators"),
        ("evaluation.evaluators=[videoalign, videoalign]", "name each evaluator once"),
        ("advantage.clip=-5", "advantage.clip is -5"),
        ("advantage.ddof=2", "advantage.ddof is 2"),
        ("advantage.eps=.nan", "advantage.eps is nan"),
        ("budget.weight_decay=-1", "budget.weight_decay is -1"),
        ("budget", "has no '='"),
        ("suite.x=1", "is not a mapping"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BenchError) as caught:
        load_suite(NANO, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    data = yaml.safe_load(NANO.read_text(encoding="utf-8"))
    del data["budget"]["lr"]
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(BenchError, match=r"key 'budget\.lr' is missing"):
        load_suite(path)


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("- 1", "is not a mapping")])
def test_a_file_that_is_not_a_suite(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=message):
        load_suite(path)


def test_a_missing_file() -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        load_suite("nowhere.yaml")


def test_yaml_tags_run_no_code(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"suite: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n", encoding="utf-8")
    with pytest.raises(BenchError, match=r"line 1: the tag 'python/object/apply:os\.mkdir' does not fit"):
        load_suite(path)
    assert not (tmp_path / "made").exists()


def test_overrides_reach_nested_keys_and_read_numbers() -> None:
    suite = load_suite(
        NANO, ["budget.lr=1e-4", "budget.updates=3", "seeds=[5]", "noise_policy={kind: common_eta, eta: 0.5}"]
    )
    assert suite.budget.lr == 1e-4
    assert suite.budget.updates == 3
    assert suite.seeds == [5]
    assert suite.noise_policy.kind == "common_eta"


def test_shared_settings_exclude_seeds_rows_and_name() -> None:
    one = load_suite(NANO)
    other = load_suite(NANO, ["seeds=[7]", "rows=[{method: cps}]", "suite=mine"])
    assert one.shared() == other.shared()
    assert one.shared() != load_suite(NANO, ["budget.lr=1e-4"]).shared()


def test_a_prompt_in_both_lists_is_refused(tmp_path: Path) -> None:
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text("a\nb\nc\nd\n", encoding="utf-8")
    heldout.write_text("e\nb\n", encoding="utf-8")
    suite = load_suite(NANO, [f"prompts={{train: {train}, heldout: {heldout}}}"])
    with pytest.raises(BenchError, match="prompt 'b' is in the training and in the held-out list"):
        suite.prompt_lists()


def test_a_prompt_twice_in_a_list_is_refused(tmp_path: Path) -> None:
    train = tmp_path / "train.txt"
    train.write_text("a\na\n", encoding="utf-8")
    suite = load_suite(NANO, [f"prompts.train={train}", "prompts.heldout=bench/prompts/nano_heldout.txt"])
    with pytest.raises(BenchError, match="empty or contains a prompt twice"):
        suite.prompt_list("train")


def test_more_prompts_per_update_than_there_are_is_refused() -> None:
    with pytest.raises(BenchError, match="the training list has 96"):
        load_suite(NANO, ["budget.prompts=128"]).prompt_lists()


def test_another_checkpoint_gets_no_nano_defaults() -> None:
    with pytest.raises(BenchError, match="key 'prompts' is missing"):
        load_suite(NANO, ["backbone.checkpoint=somewhere"])


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(
        NANO.read_text(encoding="utf-8").replace("  lr: 3.0e-4\n", "  lr: 3.0e-4\n  lr: 1.0e-4\n"), "utf-8"
    )
    with pytest.raises(BenchError, match="key 'lr' is given twice"):
        load_suite(path)


def test_an_evaluator_parameter_keeps_the_nano_checkpoints() -> None:
    suite = load_suite(NANO, ["evaluator_params.videoalign.normalise=false"])
    nano = {"device": "cpu", "checkpoint": "nano/videoreward"}
    assert suite.evaluator_params["videoalign"] == {**nano, "normalise": False}
    assert suite.evaluator_params["clipscore"] == {"device": "cpu", "checkpoint": "nano/clip"}


def test_a_suite_extends_another_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(NANO.read_text())
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nsuite: child\nbudget: {lr: 0.001}\nreward: {gold: {gold_TA: 1.0}}\n")
    suite, base = load_suite(child), load_suite(NANO)
    assert (suite.name, suite.budget.lr, suite.budget.updates) == ("child", 0.001, base.budget.updates)
    assert suite.reward == {"gold": {"gold_TA": 1.0}}  # replaced, not merged
    assert suite.rows == base.rows


def test_suites_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}.yaml\nsuite: {one}\n")
    with pytest.raises(BenchError, match=r"extends a\.yaml, which extends it in turn"):
        load_suite(tmp_path / "a.yaml")


def test_a_missing_parent_suite_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: none.yaml\nsuite: a\n")
    with pytest.raises(BenchError, match=r"none\.yaml cannot be read"):
        load_suite(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", sorted(path.name for path in NANO.parent.glob("*.yaml")))
def test_every_suite_that_comes_with_the_project_loads(name: str) -> None:
    for suite in load_variants(NANO.parent / name):
        assert suite.study == name.removesuffix(".yaml")
        prepare(suite)


STUDY = """
extends: {nano}
suite: noise
seeds: [0]
variants:
  native: {{}}
  quiet: {{noise_policy: {{kind: common_eta, eta: 0.1}}, budget: {{lr: 1.0e-3}}}}
"""


def study(tmp_path: Path, text: str = STUDY) -> Path:
    path = tmp_path / "noise.yaml"
    path.write_text(text.format(nano=NANO), encoding="utf-8")
    return path


def test_a_study_is_one_suite_per_variant(tmp_path: Path) -> None:
    native, quiet = load_variants(study(tmp_path), ["budget.updates=7", "seeds=[4]"])
    assert (native.suite, native.study, native.variant) == ("noise/native", "noise", "native")
    assert (quiet.suite, quiet.variant, quiet.budget.lr) == ("noise/quiet", "quiet", 1e-3)
    assert native.budget.lr == load_suite(NANO).budget.lr
    assert native.budget.updates == quiet.budget.updates == 7, "an override reaches every variant"
    assert native.seeds == quiet.seeds == [4]
    assert (native.noise_policy.kind, quiet.noise_policy.kind) == ("native", "common_eta")


def test_one_variant_of_a_study_can_be_picked(tmp_path: Path) -> None:
    assert load_suite(study(tmp_path), ["variant=quiet"]).suite == "noise/quiet"
    with pytest.raises(BenchError, match=r"is a study of 2 variants: pick one with variant=NAME \(native, quiet\)"):
        load_suite(study(tmp_path))
    with pytest.raises(BenchError, match="has no variant 'loud': choose one of native, quiet"):
        load_variants(study(tmp_path), ["variant=loud"])
    with pytest.raises(BenchError, match="has no variants: remove variant=quiet"):
        load_variants(NANO, ["variant=quiet"])


@pytest.mark.parametrize("key", ["seeds: [1]", "rows: [{method: cps}]", "suite: other"])
def test_variants_share_name_seeds_and_rows(tmp_path: Path, key: str) -> None:
    text = STUDY + f"  odd: {{{{{key.replace('{', '{{').replace('}', '}}')}}}}}\n"
    with pytest.raises(BenchError, match=rf"variant 'odd' sets '{key.partition(':')[0]}', which all variants share"):
        load_variants(study(tmp_path, text))


@pytest.mark.parametrize("variants", ["[a, b]", "{}", "{a: 3}"])
def test_variants_are_a_mapping_of_settings(tmp_path: Path, variants: str) -> None:
    path = tmp_path / "noise.yaml"
    path.write_text(f"extends: {NANO}\nsuite: noise\nvariants: {variants}\n", encoding="utf-8")
    with pytest.raises(BenchError, match="'variants' is not a mapping of names to settings"):
        load_variants(path)


def test_a_mistake_in_a_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="unknown key 'decod'; did you mean 'decode'"):
        load_variants(study(tmp_path, STUDY + "  odd: {{decod: final_latent}}\n"))


def test_a_checkpoint_among_the_settings_of_the_backbone_is_refused() -> None:
    with pytest.raises(BenchError, match=r"backbone\.train\.checkpoint is not a setting: write the folder as"):
        prepare(load_suite(NANO, ["backbone.train.checkpoint=nano"]))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("{name: hunyuanvideo15}", "'hunyuanvideo15' needs a checkpoint: name its folder under backbone.checkpoint"),
        ("{name: 'tests.helpers.toy:Bare', checkpoint: x}", "takes no checkpoint: leave out backbone.checkpoint"),
    ],
)
def test_a_checkpoint_is_named_exactly_where_the_backbone_takes_one(backbone: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        prepare(load_suite(NANO, [f"backbone={backbone}", *_WITHOUT_NANO]))


@pytest.mark.parametrize("name", ["tests.helpers.toy:Bare", "tests.helpers.toy:Optional"])
def test_a_backbone_without_a_checkpoint_is_made_without_one(name: str) -> None:
    prepared = prepare(load_suite(NANO, [f"backbone={{name: '{name}'}}", *_WITHOUT_NANO]))
    assert (prepared.suite.scale, "backbone" in prepared.checkpoints) == ("full", False)
    assert type(make_backbone(prepared)).__name__ == name.partition(":")[2]


def test_nano_alone_is_the_packaged_checkpoint_of_the_suites_backbone() -> None:
    suite = load_suite(NANO)
    assert suite.backbone.checkpoint_name == "nano/hunyuanvideo15"
    other = suite.backbone.model_copy(update={"name": "another"})
    assert (other.checkpoint, other.checkpoint_name) == ("nano", "nano/another")
    assert prepare(suite).checkpoints["backbone"].path.name == "hunyuanvideo15"


def test_an_override_adds_to_a_list() -> None:
    base = load_suite(NANO)
    suite = load_suite(
        NANO, ["rows+=[{method: cps, label: mine}]", "seeds+=[7]", "seeds+=[8]", "monitor+=[clipscore]"]
    )
    assert [row.name for row in suite.rows] == [*(row.name for row in base.rows), "mine"]
    assert suite.seeds == [*base.seeds, 7, 8]
    assert suite.monitor == ["gold", "clipscore"]
    assert load_suite(NANO, ["evaluation.evaluators+=[detectors]"]).evaluation.evaluators[-1] == "detectors"
    assert load_suite(NANO, ["seeds=[5]", "seeds+=[6]"]).seeds == [5, 6]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "decode+=[a]",
            r"override 'decode\+=\[a\]' adds to a list, but 'decode' is 'predicted_x0': leave out the '\+'",
        ),
        ("budget+=[a]", "adds to a list, but 'budget' is"),
        ("sedes+=[3]", "unknown key 'sedes'; did you mean 'seeds'"),
        ("seeds+=3", r"override 'seeds\+=3' adds '3.0|3', which is not a list: write it in brackets"),
        ("rows+=[{method: cps}, {method: cps}]", "two rows are called 'cps-none'"),
        ("rows=[{method: cps, method: dance_grpo}]", "key 'method' is given twice"),
        ("rows+=[{method: cps, method: dance_grpo}]", "key 'method' is given twice"),
    ],
)
def test_what_cannot_be_added_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        load_suite(NANO, [override])
    assert "\n" not in str(caught.value)


def test_a_suite_that_extends_another_adds_to_its_lists(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(NANO.read_text())
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: base.yaml\nsuite: child\n"
        "rows+:\n  - {method: cps, label: mine}\nevaluation: {evaluators+: [detectors]}\n"
    )
    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("extends: child.yaml\nsuite: grandchild\nrows+: [{method: cps, label: second}]\n")
    base, suite = load_suite(NANO), load_suite(grandchild, ["rows+=[{method: cps, label: third}]"])
    assert [row.name for row in suite.rows] == [*(row.name for row in base.rows), "mine", "second", "third"]
    assert suite.evaluation.evaluators == [*base.evaluation.evaluators, "detectors"]


def test_a_variant_adds_to_the_lists_of_its_study(tmp_path: Path) -> None:
    text = STUDY + "  watched: {{monitor+: [clipscore]}}\n"
    assert [suite.monitor for suite in load_variants(study(tmp_path, text))] == [
        *(["gold"], ["gold"], ["gold", "clipscore"])
    ]
    with pytest.raises(BenchError, match=r"variant 'odd' sets 'rows\+', which all variants share"):
        load_variants(study(tmp_path, STUDY + "  odd: {{rows+: [{{method: cps}}]}}\n"))
