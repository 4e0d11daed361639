"""How many seeds a difference needs: the spread of seeds and prompts as measured, and the power of the t test."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bench.report.data.statistics import CONFIDENCE, detectable_effect, mean_squares, standard_error

#: Search for the number of seeds ends here.
MOST_SEEDS = 100


def seeds_needed(difference: npt.ArrayLike, tests: int = 1, most: int = MOST_SEEDS) -> int | None:
    """The smallest number of seeds with which the mean of `difference[seed, prompt]` is detected if it is true.

    Detected: by a two-sided t test at 5 % over `tests` (Bonferroni, the first step of Holm), with a power of 80 %, on
    the same number of prompts. The variance components of seeds, prompts and rest count as they are estimated here
    (`two_way`), those below 0 as 0. None if `most` seeds do not suffice, or with fewer than two seeds or prompts.
    """
    x = np.asarray(difference, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2:
        return None
    seeds, prompts = x.shape
    by_seed, by_prompt, rest = mean_squares(x)
    of_seeds, of_prompts = max(by_seed - rest, 0.0) / prompts, max(by_prompt - rest, 0.0) / seeds
    effect = abs(float(x.mean()))
    for n in range(2, most + 1):
        squares = (rest + prompts * of_seeds, rest + n * of_prompts, rest)
        limit = detectable_effect(*standard_error(squares, n, prompts), confidence=1 - (1 - CONFIDENCE) / tests)
        if not math.isnan(limit) and limit <= effect:
            return n
    return None
