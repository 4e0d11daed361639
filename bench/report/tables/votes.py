"""The tables of a user study, from the votes of its raters: `results/<suite>/tables/user_study.{md,csv,tex}`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from bench.report import formatting
from bench.report.data.preferences import ALL, FAST_SECONDS, LEAST, PASSED_TIES, VIRTUAL_TIES
from bench.report.data.published import FOLDER as PUBLISHED
from bench.report.data.selection import method_title
from bench.report.data.vote_files import PAIR, QUESTIONS, SESSION
from bench.report.legend import legend
from bench.report.tables.latex import Caption, latex_table
from bench.report.tables.main import FOLDER, LEGEND, NOTES, VERDICT, bullets
from bench.report.tables.notes import nano_warning
from bench.report.tables.screen import narrow, wrapped
from bench.report.tables.sections import Table
from bench.report.tables.user_study import EVERYONE, WITHOUT, UserStudy
from bench.store.files import write_files

NAME, PUBLISHED_NAME = "user_study", "sage_grpo_user_study"
SHARES, PAIRS, STRENGTHS = "Share of pairs won, %", "Row against row, % won", "Strength, log odds"
ANSWERS = "What the shares rest on"
CHECKS = {
    "side": "left among the decided answers, %",
    "repeat": "same answer on a repeated pair, %",
    "identical": "ties on identical pairs, %",
    "agreement": "two raters agree on a pair, %",
    "chance": "the same by chance, %",
}
DEFINITIONS = [
    "A tie is half a win for each. Only a pair's first showing counts; repeats and identical pairs are checks.",
    "Intervals (95 %) are over raters and prompts, both random, by a variance that is robust to clusters in two ways; "
    f"none below {LEAST} raters or prompts. Each is of one number, without a correction for many. Training seeds are "
    "taken as they are.",
    "Strength: Bradley and Terry's model. The difference of two rows is the log odds that one wins; mean 0. "
    f"Virtual ties added between each two rows, to keep it finite: {VIRTUAL_TIES:g}.",
    "Left among the decided answers: exact binomial interval, answers taken as independent. Agreement by chance: a "
    "side drawn at random, with this share of ties.",
]


def write_user_study(study: UserStudy, folder: Path) -> dict[str, Path]:
    """Write user_study.md, .csv and .tex into the tables of a suite's folder, atomically: {file name: path}."""
    return write_files(folder / FOLDER, render_user_study(study))


def render_user_study(study: UserStudy) -> dict[str, str]:
    """The text of each file."""
    return {
        f"{NAME}.md": user_study_text(study, wide=True),
        f"{NAME}.csv": formatting.csv(study.table),
        f"{NAME}.tex": _tex(study),
    }


def user_study_text(study: UserStudy, wide: bool = False) -> str:
    """The study as Markdown, in at most 100 columns unless it is `wide`."""
    lines = bullets if wide else wrapped

    def table(section: Table, keys: int = 1) -> str:
        return formatting.markdown(*section) if wide else narrow(section, keys)

    parts = [f"# {study.votes.suite}: user study", f"## {VERDICT.replace('runs', 'votes')}", lines(verdict(study))]
    for title, section in sections(study).items():
        parts += [f"## {title}", table(section, 2 if title.startswith(PAIRS) else 1)]
    parts += [f"## {NOTES}", lines(notes(study))]
    sentence, section = published(study)
    parts += ["## The published study", lines([sentence]), table(section, 2)]
    parts += [f"## {LEGEND}", lines(legend("\n".join(parts)))]
    return "\n\n".join(parts) + "\n"


def _tex(study: UserStudy) -> str:
    head = "% Written by `bench votes` from the raters' files and the run records; needs the package booktabs.\n"
    suite, tables = study.votes.suite, []
    for number, (title, section) in enumerate(sections(study).items(), 1):
        below = notes(study) if number == 1 else []
        caption = Caption(f"{suite}: {title}", f"tab:{suite}-votes-{number}", " ".join(below))
        tables.append(latex_table(section, caption))
    return head + "\n".join(tables)


def sections(study: UserStudy) -> dict[str, Table]:
    """Title to heads and lines of each section."""
    content: dict[str, Table] = {}
    for name, frame in study.numbers.items():
        end = "" if name == EVERYONE else f", {name}"
        order, titles = _by_result(frame), study.titles
        total = frame[frame["against"] == ALL]
        content[f"{SHARES}{end}"] = _cells(_percent(total), order, titles, "share", 0)
        content[f"{PAIRS}{end}"] = _pairs(_percent(frame), order, titles)
        content[f"{STRENGTHS}{end}"] = _cells(total, order, titles, "strength", 2)
        content[f"{ANSWERS}{end}"] = _answers(total, order, titles)
    return {**content, "Checks": _checks(study.checks)}


def verdict(study: UserStudy) -> list[str]:
    """What the votes say, one sentence per question: the row that won most, and what it is told apart from."""
    suite = study.suite
    warning = [nano_warning(study.votes.suite, suite.config)] if suite is not None and suite.nano else []
    frame = _percent(study.numbers[EVERYONE])
    return [*warning, *(_sentence(frame[frame["question"] == name], name, study.titles) for name in QUESTIONS)]


def _sentence(frame: pd.DataFrame, question: str, titles: dict[str, str]) -> str:
    best = _by_result(frame)[0]
    against = frame[frame["row"] == best].set_index("against")
    others = against.drop(index=ALL)
    apart = (others["share_lo"] > 50).to_numpy()
    beaten, alike = ("; ".join(titles[label] for label in others.index[which]) for which in (apart, ~apart))
    share = formatting.interval(pd.Series(against.loc[ALL]), "share", 0).replace(" [", " % [")
    text = f"{QUESTIONS[question]}: {titles[best]} won the largest share of its pairs, {share}."
    text += f" More than half against: {beaten}." if beaten else ""
    return f"{text} Not told apart from: {alike}." if alike else text


def notes(study: UserStudy) -> list[str]:
    """Raters and their checks, what is left out, and how the numbers are made."""
    return [*_counts(study), *_rater_notes(study), *_missing(study), *DEFINITIONS]


def _counts(study: UserStudy) -> list[str]:
    shown = study.votes.answers.drop_duplicates([*SESSION, "order"])
    pairs, blind = shown[shown["kind"] == PAIR], study.raters["colour_blind"].value_counts()
    return [
        f"Raters: {len(study.raters)}. Pairs shown: {len(shown)}, of which {len(pairs)} count; the others are repeats "
        f"and identical pairs. Prompts: {pairs['prompt_index'].nunique()}. Training seeds: {pairs['seed'].nunique()}.",
        f"Raters who say that they are colour-blind: {blind.get('yes', 0)}; that they are not: {blind.get('no', 0)}; "
        f"who say nothing: {blind.get('unsaid', 0)}. All are counted.",
    ]


def _rater_notes(study: UserStudy) -> list[str]:
    table, length = study.raters, study.votes.answers.groupby(SESSION)["order"].max()
    both = f"; numbers are given with all raters and {WITHOUT}" if WITHOUT in study.numbers else ""
    unchecked = table.loc[table["passed"].isna(), "alias"]
    fast = [f"`{line.alias}` {line.fast}" for line in table[table["fast"] > 0].itertuples()]
    shorter = [
        f"`{line.alias}` {line.order} (list {line.vote})"
        for line in length[length < length.max()].reset_index().itertuples()
    ]
    return [
        f"Failed on identical pairs (at most {100 * PASSED_TIES:g} % of the answers are ties): "
        f"{_names(study.failed) or 'nobody'}{both}.",
        *([f"Saw no identical pair: {_names(unchecked)}."] if len(unchecked) else []),
        f"Answers within {FAST_SECONDS:g} s after the pair was shown: {', '.join(fast) or 'none'}; they are counted.",
        *([f"Pairs of lists shorter than the longest ({length.max()}): {', '.join(shorter)}."] if shorter else []),
    ]


def _names(aliases: Iterable[str]) -> str:
    return ", ".join(f"`{alias}`" for alias in aliases)


def _missing(study: UserStudy) -> list[str]:
    texts = [f"{study.votes.copies} lines stand in two files and count once."] if study.votes.copies else []
    if study.suite is None:
        texts.append(
            f"No records of suite {study.votes.suite}: the votes are not checked against its runs and videos, rows "
            "have no titles, and no file is written. Name the records with --suite FOLDER."
        )
    if study.without_votes:
        texts.append(f"Without votes, so not in a table: {', '.join(study.without_votes)}.")
    passed = study.numbers.get(WITHOUT, frame := study.numbers[EVERYONE])
    if lost := [title for label, title in study.titles.items() if label not in set(passed["row"])]:
        texts.append(f"Without votes of raters who passed: {', '.join(lost)}.")
    apart = frame.loc[(frame["against"] == ALL) & frame["strength"].isna(), "question"].unique()
    if len(apart):
        texts.append(f"No strengths ({', '.join(apart)}): the pairs leave rows in groups that never met.")
    return texts


def published(study: UserStudy) -> tuple[str, Table]:
    """What the paper reports, and why it does not compare."""
    about = json.loads((PUBLISHED / f"{PUBLISHED_NAME}.json").read_text(encoding="utf-8"))
    winner, lines = method_title(about["method"]), []
    for _, line in pd.read_csv(PUBLISHED / f"{PUBLISHED_NAME}.csv").iterrows():
        cells = [formatting.number(100 * line[about["questions"][question]], 1) for question in QUESTIONS]
        lines.append([winner, method_title(line["opponent"]), *cells])
    reason = "its clips, prompts and raters are other ones"
    if study.suite is not None and study.suite.nano:
        reason = "nano's clips are not the published model's"
    sentence = (
        f"{about['title']}: {about['raters']} raters, {about['prompts']} prompts, intervals unknown. It does not "
        f"compare with the votes above: {reason}."
    )
    return sentence, (["Row", "against", *QUESTIONS], lines)


def _by_result(frame: pd.DataFrame) -> list[str]:
    """Labels by their share won, mean over the questions, the largest first; equal ones in the order of the rows."""
    won = frame[frame["against"] == ALL].groupby("row", sort=False)["share"].mean()
    return list(won.sort_values(ascending=False, kind="stable").index)


def _cells(frame: pd.DataFrame, order: Sequence[str], titles: dict[str, str], name: str, digits: int) -> Table:
    """One line per row: a number of each question with its interval."""
    lines = {(line["row"], line["question"]): formatting.interval(line, name, digits) for _, line in frame.iterrows()}
    return (
        ["Row", *QUESTIONS],
        [[titles[row], *(lines.get((row, question), formatting.MISSING) for question in QUESTIONS)] for row in order],
    )


def _percent(frame: pd.DataFrame) -> pd.DataFrame:
    names = ["share", "share_lo", "share_hi"]
    return frame.assign(**{name: 100 * frame[name] for name in names})


def _answers(frame: pd.DataFrame, order: Sequence[str], titles: dict[str, str]) -> Table:
    """One line per row: numbers of raters, of prompts, of pairs, and of ties by question."""
    lines = []
    for row in order:
        part = frame[frame["row"] == row]
        counts = part.iloc[0][["raters", "prompts", "pairs"]]
        lines.append([titles[row], *map(str, counts), *map(str, part["ties"])])
    return ["Row", "raters", "prompts", "pairs", *(f"ties, {question}" for question in QUESTIONS)], lines


def _pairs(frame: pd.DataFrame, order: Sequence[str], titles: dict[str, str]) -> Table:
    """One line per two rows that met: share won by the one that won more pairs in all."""
    lines = []
    for row, other in itertools.combinations(order, 2):
        met = frame[(frame["row"] == row) & (frame["against"] == other)]
        if len(met):
            cells = [formatting.interval(line, "share", 0) for _, line in met.iterrows()]
            lines.append([titles[row], titles[other], *cells, str(met["pairs"].iloc[0])])
    return ["Row", "against", *QUESTIONS, "pairs"], lines


def _checks(frame: pd.DataFrame) -> Table:
    """One line per check, with the number of answers or of pairs of raters that it rests on."""
    percent = pd.DataFrame({"value": frame["value"], "value_lo": frame["lo"], "value_hi": frame["hi"]}) * 100
    lines = []
    for check, text in CHECKS.items():
        part = percent[frame["check"] == check]
        cells = [
            formatting.interval(line, "value", 0) if check == "side" else formatting.number(line["value"], 0)
            for _, line in part.iterrows()
        ]
        lines.append([text, *cells, ", ".join(map(str, frame.loc[part.index, "n"]))])
    return ["Check", *QUESTIONS, "answers"], lines
