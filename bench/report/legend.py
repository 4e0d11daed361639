"""The words of a table in one sentence each; `docs/reference/glossary.md` has the same sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.report.data.metrics import MetricColumn

TERMS = {
    "Overall": "VQ + MQ + TA of a video, without weights.",
    "Reward": "The weighted sum of metrics that the suite trains on, measured on the videos of the evaluation.",
    "VQ": "Visual quality, one of VideoReward's three scores; higher is better.",
    "MQ": "Motion quality, one of VideoReward's three scores; higher is better.",
    "TA": "Text alignment, one of VideoReward's three scores; higher is better.",
    "CLIPScore": "2.5 times the cosine of frame and prompt in CLIP, at least 0, mean over 8 frames.",
    "PickScore": "A human preference score for images: the raw logit, mean over frames; papers also print logit / 26.",
    "HPSv2": "A human preference score for images, versions 2.0 and 2.1: the cosine, mean over frames.",
    "gold": "A formula's scores of nano clips, the quality that learned scores stand for; gold Overall is the sum of "
    "three.",
    "base": "The untrained model.",
    "baseline": "The first level of a group in an ablation.",
    "seed": "An independent training run of a row.",
    "n": "The number of seeds.",
    "bold": "The best mean of a column, and rows that the tests do not show to be worse; the number alone is no test.",
    "star": "Ends a difference whose 95 % interval excludes 0 and whose p after Holm is below 0.05.",
    "interval": "`x [lo, hi]`: a mean, and the range that contains the true one in 95 of 100 such experiments.",
    "p (Holm)": "A p-value after Holm's correction over all tests of its table.",
    "primary score": "The score that rows are compared by: Overall, or the Reward without Overall.",
    "MDE": "Minimum detectable effect: the smallest true difference that is found with a power of 80 %, after Holm's "
    "first step.",
    "at most ±m apart": "Two one-sided 5 % tests rule out a larger difference than m.",
    "exploratory": "A result that is below 0.05 by its own p, but not after the correction: a reason to test it anew.",
    "the same runs": "Two rows whose runs of equal seeds have equal scores: one result, not two.",
    "IQM": "Interquartile mean: the mean of the middle half of the values.",
    "band": "The range in which the mean over fresh seeds falls with 95 % probability if it reproduces the stored "
    "runs.",
    "sensitivity": "The same difference with other views of the prompts: random, fixed, or colours random.",
    "held-out judges": "Judges that gave no reward: the gold axes where gold was scored, else all such scores.",
    "beyond the judges": "The part of a gain in the trained score that the held-out judges do not explain.",
    "attempt": "A start of a run, as its suite logs it.",
    "search": "A suite that tries settings of each row, equally many, on validation prompts and pilot seeds.",
    "trial": "One try of a search; trial 0 is the suite's default.",
    "equal bits": "Two results are the same in every bit.",
    "gate": "A check whose failure makes a run unfit to be cited; the row gets a dagger.",
    "open": "Of the open division: the row also differs in credit, loss or learning rate, as the notes say.",
    "NFE": "Network function evaluations, counted per sample; guidance counts twice.",
    "anchor": "A frozen copy of the model that a KL policy compares the policy with.",
    "RSS": "Root of the summed squares; of the noise that a rollout injects per latent element.",
    "equalizer": "Weights of the trained steps that make their gradient norms equal (temporal gradient equalizer).",
    "gradient spread": "Largest over smallest gradient norm of the trained steps; 1 is balanced.",
    "setback": "The deepest fall of the training reward below what it had reached.",
    "share won": "Share of the pairs of a blind vote that a row wins; a tie is half a win.",
    "strength": "Of a row in a blind vote (Bradley and Terry): the difference of two is the log odds that one wins.",
    "identical pair": "A pair of a blind vote with one video on both sides, which attentive raters call a tie.",
    "vote list": "The pairs of a blind vote with their order and sides, which the number of the vote decides.",
    "KL share": "Norm of the KL term's gradient over the norm of the rest.",
}
KL_POLICIES = {
    "none": "The KL policy without a KL term.",
    "fixed": "The KL policy whose anchor is the frozen base.",
    "stepwise": "The KL policy against the policy that made the rollout.",
    "moving": "The KL policy whose anchor is a copy of the policy, renewed every 10 updates.",
    "dual": "The KL policy of SAGE-GRPO: a moving (or fixed) anchor plus the stepwise term.",
}
#: What a word looks like in a table, if it is not the word itself.
PATTERNS = {
    "n": r"\bn = \d",
    "at most ±m apart": r"at most ±\d",
    "sensitivity": r"\b[Ss]ensitivity\b",
    "beyond the judges": r"beyond the judges|BEYOND THE JUDGES",
    "attempt": r"\battempts?\b",
    "trial": r"\b[Tt]rials?\b",
    "share won": r"Share of pairs won",
    "strength": r"Strength, log odds",
    "identical pair": r"\bidentical pairs?\b",
    "vote list": r"\(list \d",
    "bold": r"\*\*-?\d",
    "star": r"\](?:\*\*)? \*",
    "interval": r"\d \[-?\d",
    "p (Holm)": r"p \(Holm\)|\(p [<\d]|, p [<\d]",
    "gate": r"†|\bgates?\b",
    "seed": r"\bseeds?\b",
    "open": r"\(open\)",
    "band": r"\bbands?\b",
}


def legend(text: str, kl_policies: Iterable[str] = (), metrics: Iterable[MetricColumn] = ()) -> list[str]:
    """One line per word that occurs in `text`, per KL policy, and per metric of an evaluator of the user's own."""
    lines = [
        f"**{term}**: {meaning}"
        for term, meaning in TERMS.items()
        if re.search(PATTERNS.get(term, rf"\b{re.escape(term)}\b"), text)
    ]
    own = [metric for metric in metrics if metric.is_own and metric.evaluator is not None]
    lines += [f"**{metric.title}**: {described(metric)}" for metric in own if metric.title in text]
    used = set(kl_policies)
    return lines + [f"**{name}**: {meaning}" for name, meaning in KL_POLICIES.items() if name in used]


def described(metric: MetricColumn) -> str:
    """Evaluator, unit and direction of a metric in one sentence."""
    unit = "" if metric.unit is None else f", unit {metric.unit}"
    direction = "higher" if metric.higher_is_better else "lower"
    return f"Metric of {metric.evaluator}{unit}; {direction} is better."
