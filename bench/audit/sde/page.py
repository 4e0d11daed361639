"""The page and the files of the SDE study: data frames in, Markdown, CSV and figures out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from bench.audit.sde.figures import CONVERGENCE_STDS, LINEAR_BAND, draw
from bench.report.formatting import MISSING, markdown, number
from bench.store.files import write_files

PAGE = "sde-study.md"

CAPTIONS = {
    "energy": (
        "Whether steps inject more noise than their own rate accounts for. (a) Variance that each step injects. (b) "
        "Its part beyond the exact integral of the method's noise rate over the step, the extra energy of Euler steps "
        "in figure 1 of SAGE-GRPO (arXiv:2603.21872); without a finite integral, or without a rate, there is no "
        "mark. (c) Energy of noise beyond sigma_next^2, summed. Rows compare only at equal eta."
    ),
    "errors": "How far the last latent's variance is from that of the data, as a share of it, over the data's std.",
    "matched": "The same with eta solved so that all methods inject the same noise: exact flow, clean last step.",
    "convergence": (
        "Whether the error vanishes with more steps. Clean last step, eta as in the first table. Open marks: negative "
        "error; a dip between a solid and an open mark is a change of sign."
    ),
}
DATA = {"energy": "steps", "errors": "errors", "matched": "matched", "convergence": "convergence"}
"""Figure to the frame that it shows."""


def build_page(folder: Path, frames: Mapping[str, pd.DataFrame], title: str, command: str) -> dict[str, Path]:
    """Write sde-study.md, a CSV per frame and png and pdf per figure into `folder`: {file name: path}."""
    contents = {
        f"{name}.csv": frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()
        for name, frame in frames.items()
    }
    contents |= draw(frames)
    contents[PAGE] = _page(frames, title, command).encode()
    return write_files(folder, contents)


def main_tables(frames: Mapping[str, pd.DataFrame]) -> str:
    """Injected noise and error of each method, as sampled and isolated, and the reasons for missing numbers."""
    known = frames["summary"]["method"]  # without the deterministic sampler, which has no SDE error
    return "\n\n".join(
        [
            "## Noise and excess energy",
            _summary(frames["summary"]),
            "Variances in units of the noise's, summed over the steps with the last one as the method has it; (high): "
            "steps with sigma >= 0.9 alone. Beyond integral: injected less the integral of the method's own rate, "
            "over the steps where that exists. Excess: energy of noise in the latent beyond sigma_next^2.",
            "## Terminal variance error",
            _errors(frames["errors"], "error", 4),
            "Variance of the last latent less data std^2; last step clean (in brackets: noisy, as the method has it). "
            "The Euler step loses variance and an SDE's excess adds it, so the two cancel in part: close to 0 is "
            f"not a proof of exactness. Largest error of the mean: {frames['errors']['mean_error'].max():.1e}.",
            "## Isolated SDE error",
            _errors(frames["errors"][frames["errors"]["method"].isin(known)], "isolated_error", 3),
            "Relative variance error with the exact flow in place of the Euler step: only the noise and its "
            "correction can cause an error. Clean last step (noisy).",
            *_reasons(frames, "errors"),
        ]
    )


def _page(frames: Mapping[str, pd.DataFrame], title: str, command: str) -> str:
    stds = ", ".join(f"{std:g}" for std in CONVERGENCE_STDS)
    parts = [
        f"# {title}",
        f"Made by `{command}`.",
        "Data x0 ~ N(1, std^2), exact velocity and score; mean and variance by an exact recursion, no sampling. It "
        "measures how exact the steps are, not how well they train: the error of a network and real spectra are not "
        "part of it.",
        main_tables(frames),
        "## Matched exploration",
        _matched(frames["matched"]),
        "Isolated relative variance error, eta solved so that the noisy steps inject the same root-sum-square noise; "
        "clean last step.",
        "## Convergence",
        _convergence(frames["convergence"]),
        f"Relative variance error over the number of steps, clean last step, data std {stds}.",
        *_reasons(frames, "matched", "convergence"),
    ]
    for name, caption in CAPTIONS.items():
        scale = f" Vertical scale linear within {LINEAR_BAND:g}, shaded." if name in ("errors", "matched") else ""
        numbers = f"[{DATA[name]}.csv]({DATA[name]}.csv)"
        parts += [f"## Figure: {name}", f"![{name}]({name}.png)", f"{caption}{scale} Numbers: {numbers}."]
    return "\n\n".join(parts) + "\n"


def _cell(value: float, status: str, digits: int) -> str:
    """A signed number, or a word for the reason why it is missing."""
    if status:
        return f"invalid ({status.partition(':')[0]})" if status.startswith("step") else "none"
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _summary(frame: pd.DataFrame) -> str:
    header = [
        "method",
        "eta",
        "injected",
        "RSS",
        "beyond integral (high)",
        "excess (high)",
        "no noise at step",
        "status",
    ]
    rows = []
    for _, row in frame.iterrows():
        pairs = [
            MISSING if pd.isna(row[name]) else f"{number(row[name], 4)} ({number(row[f'{name}_high'], 4)})"
            for name in ("extra", "excess")
        ]
        rows.append(
            [
                *(str(row["method"]), _eta(row["eta"]), number(row["variance"], 3), number(row["rss"], 3)),
                *(*pairs, str(row["quiet"]) or "-"),
                "ok" if not row["status"] else f"invalid ({str(row['status']).partition(':')[0]})",
            ]
        )
    return markdown(header, rows)


def _eta(value: float) -> str:
    return MISSING if pd.isna(value) else f"{value:.4g}"


def _errors(frame: pd.DataFrame, column: str, digits: int) -> str:
    """Methods by data std, `clean (noisy)`; one number if the two are equal."""
    stds = sorted(frame["data_std"].unique())
    rows = []
    for method, lines in frame.groupby("method", sort=False):
        cells = []
        for _, own in lines.groupby("data_std"):
            texts = [_cell(row[column], str(row["status"]), digits) for _, row in own.sort_values("last").iterrows()]
            cells.append(texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]})")
        rows.append([str(method), _eta(lines["eta"].iloc[0]), *cells])
    return markdown(["method", "eta", *(f"std {std:g}" for std in stds)], rows)


def _matched(frame: pd.DataFrame) -> str:
    stds = sorted(frame["data_std"].unique())
    rows = []
    for (target, method), lines in frame[frame["last"] == "clean"].groupby(["rss", "method"], sort=False):
        cells = [_cell(row["isolated_error"], str(row["status"]), 4) for _, row in lines.iterrows()]
        rows.append([f"{target:g}", str(method), _eta(lines["eta"].iloc[0]), *cells])
    return markdown(["RSS", "method", "eta", *(f"std {std:g}" for std in stds)], rows)


def _convergence(frame: pd.DataFrame) -> str:
    counts = sorted(frame["steps"].unique())
    clean = frame[(frame["last"] == "clean") & frame["data_std"].isin(CONVERGENCE_STDS)]
    rows = []
    for (std, method), lines in clean.groupby(["data_std", "method"], sort=False):
        cells = [
            _cell(row["relative_error"], str(row["status"]), 4) for _, row in lines.sort_values("steps").iterrows()
        ]
        rows.append([f"{std:g}", str(method), *cells])
    return markdown(["std", "method", *(str(count) for count in counts)], sorted(rows, key=lambda row: float(row[0])))


def _reasons(frames: Mapping[str, pd.DataFrame], *names: str) -> list[str]:
    """The reasons for missing numbers, one line per method, amount of noise and start of the reason."""
    reasons: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        for _, row in frames[name][frames[name]["status"] != ""].iterrows():
            noise = f"RSS {row['rss']:g}, " if name == "matched" else ""
            key = (str(row["method"]), noise, str(row["status"]).partition(":")[0])
            reasons.setdefault(key, [f"- {row['method']}, {noise}{row['steps']} steps: {row['status']}"])
            reasons[key].append(str(row["steps"]))
    lines = []
    for first, *counts in reasons.values():
        others = ", ".join(dict.fromkeys(count for count in counts if count != counts[0]))
        lines.append(first + (f" The same with {others} steps." if others else ""))
    return ["Missing numbers:\n\n" + "\n".join(lines)] if lines else []
