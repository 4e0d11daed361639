"""The figures and the table of the paper: found by what the runs record, left out with a reason, never mixed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.cli import main
from bench.core.errors import BenchError
from bench.report.data.loading import load_records
from bench.report.data.paper import NANO, PUBLISHED, noise_energy, paper_table, stored_suites, suite_of_methods
from bench.report.data.published import FOLDER, NAME
from bench.report.figures import plots
from bench.report.figures.paper import build_paper
from tests.helpers import toy_records

ROWS: list[dict[str, Any]] = [
    {"method": "sage_grpo", "kl": "dual"},
    {"method": "sage_grpo", "kl": "fixed"},
    {"method": "cps", "kl": "fixed"},
    {"method": "cps", "kl": "none"},
    {"method": "sage_grpo", "kl": "dual", "label": "sage-off", "params": {"equalizer": "off"}},
]
STUDY = "method,eta,step,sigma,variance,rate_integral,extra\n" + "\n".join(
    [
        "flow_grpo,0.7,0,1.0,0.5,,",
        "flow_grpo,0.7,1,0.9,0.4,0.3,0.1",
        "cps,0.7,0,1.0,0.5,,",
        "sage_grpo,0.5,0,1.0,0.2,0.2,0.0",
        "sage_grpo,0.5,1,0.9,0.1,0.1,0.0",
    ]
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of Setting B with two seeds, its control and its own copy below `reference`, and an SDE study."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for place, name, more in (
            ("nano_toy", "nano_toy", {}),
            ("reference/nano_toy", "nano_toy", {}),
            ("control", "control", {"shuffle_rewards": True}),
        ):
            settings = {"suite": name, "rows": ROWS, "seeds": [0, 1], **more}
            toy_records.write(folder / place, "base", None, settings)
            for lift, row in enumerate(["sage_grpo-dual", "sage_grpo-fixed", "cps-fixed", "cps-none", "sage-off"]):
                for seed in (0, 1) if not more else (0,):
                    toy_records.write(folder / place, row, seed, settings, 0.1 * lift)
    (folder / "sde-study").mkdir()
    (folder / "sde-study" / "steps.csv").write_text(STUDY + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not turned into pictures."""
    monkeypatch.setattr(plots, "figure_files", lambda name, figure, frame: {f"{name}.csv": frame.to_csv().encode()})


def test_suites_are_found_without_controls_and_without_the_reference(stored: Path) -> None:
    suites = stored_suites(stored)
    assert [suite.name for suite in suites] == ["nano_toy"]
    assert {record.row for record in suites[0].records} == {
        *("sage_grpo-dual", "sage_grpo-fixed", "cps-fixed", "cps-none", "sage-off")
    }
    assert suite_of_methods(suites) == suites[0]
    assert suite_of_methods([]) is None


def test_published_numbers_and_ours_are_in_blocks_of_their_own(stored: Path) -> None:
    table = paper_table(stored_suites(stored))
    published, ours = table[table["block"] == PUBLISHED], table[table["block"] == NANO]
    keys = [*zip(published["setting"], published["method"], published["kl"], strict=True)]
    assert keys == [*zip(ours["setting"], ours["method"], ours["kl"], strict=True)]
    assert published.loc[published["setting"] == "A", "overall"].isna().all(), "Setting A is not known"
    known = pd.read_csv(FOLDER / f"{NAME}.csv")
    found = published[published["setting"] == "B"].merge(known, on=["method", "kl"], suffixes=("", "_known"))
    assert len(found) == len(known)
    assert found["overall"].tolist() == found["overall_known"].tolist()
    assert published["pickscore"].isna().all()


def test_our_cells_are_means_of_plain_rows_and_unknown_ones_stay_empty(stored: Path) -> None:
    table = paper_table(stored_suites(stored))
    ours = table[(table["block"] == NANO) & (table["setting"] == "B")].set_index(["method", "kl"])
    records = load_records(stored / "nano_toy")
    assert records.base is not None
    assert ours.loc[("base", "none"), "overall"] == pytest.approx(records.base.cells["overall"].mean())
    runs = next(runs for runs in records.rows if runs.row.label == "sage_grpo-dual")
    x = runs.matrix("overall")
    assert x is not None
    assert ours.loc[("sage_grpo", "dual"), "overall"] == pytest.approx(x.mean())
    assert ours.loc[("sage_grpo", "dual"), "n_seeds"] == 2
    assert pd.isna(ours.loc[("sage_grpo", "moving"), "overall"])
    assert ours.loc[("sage_grpo", "moving"), "suite"] == ""


@pytest.mark.usefixtures("unsaved")
def test_every_figure_is_drawn_from_the_suite_that_has_its_rows(stored: Path, tmp_path: Path) -> None:
    written, missing = build_paper(stored, tmp_path)
    assert missing == []
    assert set(written) == {
        *(f"{name}.csv" for name in ("fig1_noise_energy", "fig3_equalizer", "fig4_gradient_norm", "fig8_kl", "paper")),
        *("paper.md", "paper.tex"),
    }
    energy = pd.read_csv(tmp_path / "fig1_noise_energy.csv")
    assert set(energy["method"]) == {"flow_grpo", "sage_grpo"}, "a kernel without a rate has no integral"
    law = pd.read_csv(tmp_path / "fig4_gradient_norm.csv")
    assert (law["paper_law"] * law["std"]).groupby(law["row"]).agg(lambda x: x.max() / x.min()).tolist() == (
        pytest.approx([1.0] * law["row"].nunique())
    )
    assert set(pd.read_csv(tmp_path / "fig3_equalizer.csv")["row"]) == {
        *("sage_grpo-dual", "sage_grpo-fixed", "sage-off")
    }
    assert set(pd.read_csv(tmp_path / "fig8_kl.csv")["panel"]) == {"reward", "reward_group_std"}
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert text.index("Blocks do not compare") < text.index("## Setting A: published, 8.3 B model")
    assert "## Setting B: nano, miniature" in text
    assert "0.8066" in text.partition("## Setting B: published")[2].partition("## Setting B: nano")[0]
    assert "0.8066" not in text.partition("## Setting B: nano")[2]


@pytest.mark.usefixtures("unsaved")
def test_a_figure_without_records_is_left_out_with_a_sentence(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stored / "nano_toy", tmp_path / "nano_toy")
    shutil.rmtree(tmp_path / "nano_toy" / "sage-off")
    assert main(["figures", "--paper", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "fig1_noise_energy is left out: " in err
    assert "make one with `bench sde-study" in err
    assert "fig3_equalizer is left out: no suite has rows of one method with and without an equalizer" in err
    assert "fig4_gradient_norm is left out" not in err
    assert (tmp_path / "paper" / "fig4_gradient_norm.csv").is_file()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results"):
        build_paper(tmp_path, tmp_path)
    assert noise_energy(tmp_path) is None
