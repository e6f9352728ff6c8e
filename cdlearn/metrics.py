"""Numbers about texts that need no model."""

from collections.abc import Sequence


def ngram_counts(text: str, n: int) -> tuple[int, int]:
    """How many distinct n-grams of whitespace-separated words `text` has, and how many in all."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)), len(grams)


def rep_n(texts: Sequence[str], n: int) -> float:
    """Share of repeated n-grams in percent: `100 * (1 - distinct / total)`, 0 for texts with no n-gram at all.

    texts: continuations, one string each; n-grams are counted as distinct inside each text, then distinct and totals
    are summed over the texts. n: 1 or more. Raises TypeError for a single string, ValueError for n below 1.
    Welleck et al., arXiv 1908.04319; the form contrastive decoding reports (arXiv 2210.15097, section 4.2), unrounded.
    """
    if isinstance(texts, str):
        raise TypeError("texts is a single string; pass a list of texts.")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n is {n!r}; it is the length of the n-grams, a whole number from 1.")
    counts = [ngram_counts(text, n) for text in texts]
    distinct, total = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return 100 * (1 - distinct / total) if total else 0.0
