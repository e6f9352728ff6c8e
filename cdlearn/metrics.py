"""Numbers about texts that need no model. Words are what whitespace separates, as in the papers."""

import math
from collections.abc import Sequence

from cdlearn.text import is_int, short


def ngram_counts(text: str, n: int) -> tuple[int, int]:
    """How many distinct n-grams of whitespace-separated words `text` has, and how many in all."""
    grams = _ngrams(text, n)
    return len(set(grams)), len(grams)


def rep_n(texts: Sequence[str], n: int, *, convention: str = "textbook") -> float:
    """Share of repeated n-grams in percent: `100 * (1 - distinct / total)`, 0 for texts with no n-gram at all.

    texts: continuations, one string each; n-grams are counted as distinct inside each text, then distinct and totals
    are summed over the texts. n: 1 or more. convention: "textbook", or "reference" for the code behind the published
    numbers, which leaves out the last n-gram of every text and rounds to two decimals.
    Raises TypeError for anything but a list of strings, ValueError for n below 1 or an unknown convention.
    Welleck et al., arXiv 1908.04319; the form contrastive decoding reports (arXiv 2210.15097, section 4.2).
    """
    texts = _checked(texts, n)
    if convention not in ("textbook", "reference"):
        raise ValueError(f'convention is {short(convention)}; use "textbook" or "reference".')
    grams = [_ngrams(text, n) for text in texts]
    if convention == "reference":
        grams = [row[:-1] for row in grams]
    distinct, total = sum(len(set(row)) for row in grams), sum(len(row) for row in grams)
    percent = 100 * (1 - distinct / total) if total else 0.0
    return round(percent, 2) if convention == "reference" else percent


def diversity(texts: Sequence[str], *, convention: str = "textbook") -> float:
    """The product of `1 - rep_n / 100` over n = 2, 3, 4: from 0 (one word for ever) to 1 (no word pair twice).

    texts, convention: as in `rep_n`, which counts inside each text, so the same text a hundred times is as diverse
    as once. Texts of fewer than two words repeat nothing: 1. Raises TypeError and ValueError as `rep_n` does.
    arXiv 2210.15097, section 4.2.
    """
    texts = _checked(texts)
    return math.prod(1 - rep_n(texts, n, convention=convention) / 100 for n in (2, 3, 4))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of all texts together, divided by their number of words: 0 to 1, and 0 without a word.

    texts: continuations, one string each; pooled, so that what one text says again of another counts as repeated
    (`rep_n` counts inside each text). n: 1 or more. The divisor is the number of words, as in the paper; others divide
    by the number of n-grams. Longer and more texts give lower values: compare equal numbers of words only.
    Raises TypeError for anything but a list of strings, ValueError for n below 1.
    Li et al., arXiv 1510.03055 (distinct-1 and distinct-2).
    """
    texts = _checked(texts, n)
    words = sum(len(text.split()) for text in texts)
    return len({gram for text in texts for gram in _ngrams(text, n)}) / words if words else 0.0


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _checked(texts: Sequence[str], n: int = 1) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts is a single string; pass a list of texts.")
    try:
        texts = list(texts)
    except TypeError:
        raise TypeError(f"texts is {short(texts)}; pass a list of strings.") from None
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{k}] is {short(text)}; pass strings, for a Generation its .text.")
    if not is_int(n) or n < 1:
        raise ValueError(f"n is {short(n)}; it is the length of the n-grams, a whole number from 1.")
    return texts
