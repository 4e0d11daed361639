"""Prompts that stand in two lists of a suite, also where only case, punctuation or spaces differ."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from itertools import combinations

#: Groups of Unicode's general categories that are no part of a prompt's words: punctuation, separators, control and
#: format characters. Letters, marks, digits and symbols stay, so that two emoji are two prompts.
PASSED_OVER = "PZC"


def bare_forms(prompts: Sequence[str]) -> list[str]:
    """Each prompt in Unicode's form NFKC without case, punctuation and spaces; as it is, if nothing else is in it."""
    texts = [unicodedata.normalize("NFKC", prompt).casefold() for prompt in prompts]
    characters = set().union(*texts)
    table = {ord(each): None for each in characters if unicodedata.category(each)[0] in PASSED_OVER}
    return [text.translate(table) or text for text in texts]


def leaked(lists: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """(prompt of A, A, B) for each prompt of a list A that stands in a later list B too, by `bare_forms`.

    `lists` are names and their prompts; the result follows their order, and the order within each list.
    """
    forms = {name: bare_forms(prompts) for name, prompts in lists.items()}
    found = {name: set(texts) for name, texts in forms.items()}
    return [
        (prompt, first, second)
        for first, second in combinations(lists, 2)
        for prompt, form in zip(lists[first], forms[first], strict=True)
        if form in found[second]
    ]
