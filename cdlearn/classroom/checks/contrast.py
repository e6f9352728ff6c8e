"""Checks of assignment 03, parts 1 and 2: who may compete, and the masked contrastive scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check


def log(*values: float) -> Tensor:
    """Logarithms of a row of numbers; that of 0 is -inf."""
    return torch.tensor(values).log()


def bools(*values: int) -> Tensor:
    """A row of True and False, written with 1 and 0."""
    return torch.tensor(values, dtype=torch.bool)


def best(logits: Tensor) -> Tensor:
    """logits: [..., V]. Returns the largest of every row, [..., 1]."""
    return logits.max(dim=-1, keepdim=True).values


def top(logits: Tensor, k: int) -> Tensor:
    """logits: [..., V]. Returns [..., V] bool: the k largest of every row; k = 0 is all."""
    return logits >= logits.topk(min(k or logits.shape[-1], logits.shape[-1])).values[..., -1:]


# ---- part 1: my_candidates(expert_logits, *, alpha=0.1, top_k=0) -> [..., V] bool

_C, _SURE, _MIXED = log(0.48, 0.30, 0.17, 0.045, 0.005), log(0.95, 0.03, 0.012, 0.007, 0.001), log(0.1, 0.3, 0.2, 0.4)

CANDIDATES = [
    Case("alpha alone: at least alpha times as likely as the best token", (_C,), bools(1, 1, 1, 0, 0)),
    Case("top_k alone: the k best tokens", (_C,), bools(1, 1, 0, 0, 0), {"alpha": None, "top_k": 2}),
    Case("neither: alpha=None and top_k=0 keep everybody", (_C,), bools(1, 1, 1, 1, 1), {"alpha": None}),
    Case("both: who passes the one and the other", (_C,), bools(1, 1, 0, 0, 0), {"top_k": 2}),
    Case("both, the other way round", (_C,), bools(1, 1, 0, 0, 0), {"alpha": 0.5, "top_k": 4}),
    Case("the best are the likeliest, wherever they stand", (_MIXED,), bools(0, 1, 0, 1), {"alpha": None, "top_k": 2}),
    Case("more than there are: top_k=9 of five tokens is no limit", (_C,), bools(1, 1, 1, 0, 0), {"top_k": 9}),
    Case(
        "every row has its own best tokens",
        (torch.stack([_SURE, _C - 4]),),
        torch.stack([bools(1, 0, 0, 0, 0), bools(1, 1, 1, 0, 0)]),
    ),
    Case(
        "every row has its own k best",
        (torch.stack([_SURE, _C - 4]),),
        torch.stack([bools(1, 1, 0, 0, 0), bools(1, 1, 0, 0, 0)]),
        {"alpha": None, "top_k": 2},
    ),
]


def _candidates(
    line: Callable, count: Callable = top, join: Callable = torch.logical_and, *, zero: bool = True
) -> Callable:
    """A choice of candidates made of a rule for alpha, a rule for k, and how they are joined.

    zero: whether top_k=0 switches the count off.
    """

    def candidates(expert_logits, *, alpha=0.1, top_k=0):
        everybody = torch.ones_like(expert_logits, dtype=torch.bool)
        first = everybody if alpha is None else line(expert_logits, alpha)
        return join(first, count(expert_logits, top_k) if top_k else everybody & zero)

    return candidates


def plausible(logits: Tensor, alpha: float) -> Tensor:
    """logits: [..., V]. Returns [..., V] bool: at least alpha times as likely as the best of the row."""
    return logits >= best(logits) + math.log(alpha)


CANDIDATES_MISTAKES = [
    Mistake(
        "alpha as a probability",
        _candidates(lambda e, alpha: e.softmax(-1) >= alpha),
        "what alpha is a share of: the best token's probability, not 1",
    ),
    Mistake(
        "alpha subtracted without its logarithm",
        _candidates(lambda e, alpha: e >= best(e) - alpha),
        "a factor of a probability is a summand of its logarithm",
    ),
    Mistake(
        "a line above the best token: log alpha subtracted, or alpha times a logarithm",
        _candidates(lambda e, alpha: e >= best(e) - math.log(alpha)),
        "the sign of log alpha, and that a factor of a probability is a summand of its logarithm",
    ),
    Mistake(
        "top_k=0 keeps nobody",
        _candidates(plausible, zero=False),
        "what top_k=0 means: the rule is switched off",
    ),
    Mistake(
        "one of the two rules is enough",
        _candidates(plausible, join=lambda a, b: a & b if bool(a.all() or b.all()) else a | b),
        "how the two rules are joined: a token must pass both",
    ),
    Mistake("top_k is ignored", _candidates(plausible, count=lambda e, k: e > -math.inf), "where `top_k` is used"),
    Mistake("alpha is ignored", _candidates(lambda e, alpha: plausible(e, 0.1)), "where `alpha` is used"),
    Mistake(
        "the k-th best is left out",
        _candidates(plausible, count=lambda e, k: e > e.topk(min(k, e.shape[-1])).values[..., -1:]),
        "the comparison with the k-th best: it is one of the k",
    ),
    Mistake(
        "the first k columns",
        _candidates(plausible, count=lambda e, k: (torch.arange(e.shape[-1]) < k).expand_as(e)),
        "the order of the vocabulary: it says nothing about who is likely",
    ),
    Mistake(
        "one best token for the whole batch",
        _candidates(lambda e, alpha: e >= e.max() + math.log(alpha)),
        "the dimension of the maximum: one for every row",
    ),
    Mistake(
        "the k best of the whole batch",
        _candidates(plausible, count=lambda e, k: e >= e.flatten().topk(min(k, e.numel())).values[-1]),
        "the dimension of topk: k for every row",
    ),
]


def check_candidates(function: Callable, *, cases: Sequence[Case] = CANDIDATES) -> Result:
    """Check part 1 of assignment 03: which tokens may compete, by alpha and by number."""
    return run_check("my_candidates", function, cases, CANDIDATES_MISTAKES)


EARLIER = {"my_candidates": (1, check_candidates)}

# ---- part 2: my_contrast(expert_logits, amateur_logits, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0) -> [..., V]

_E, _A = log(0.5, 0.3, 0.15, 0.04, 0.01), log(0.6, 0.05, 0.05, 0.28, 0.02)
_BASE = log(0.5 / 0.6, 0.3 / 0.05, 0.15 / 0.05, 0, 0)
_HALF = log(0.5 / 0.36, 0.3 / 0.0025, 0.15 / 0.0025, 0, 0) + math.log(0.4438)  # 0.4438: the sum of the squares

CONTRAST = [
    Case("log p_E - log p_A for who may compete, -inf for all others", (_E, _A), _BASE),
    Case("constants added to the logits change nothing", (_E + 3, _A - 2), _BASE),
    Case("tau divides the amateur's logits, then they are normalised", (_E, _A), _HALF, {"tau": 0.5}),
    Case(
        "the strength is a factor of the amateur's log-probability",
        (_E, _A),
        log(0.5 / 0.6**0.5, 0.3 / 0.05**0.5, 0.15 / 0.05**0.5, 0, 0),
        {"strength": 0.5},
    ),
    Case("with strength 0 the expert remains", (_E + 3, _A), log(0.5, 0.3, 0.15, 0, 0), {"strength": 0.0}),
    Case("top_k counts the expert's tokens", (_E, _A), log(0.5 / 0.6, 6, 0, 0, 0), {"top_k": 2}),
    Case("alpha sets the line", (_E, _A), log(0.5 / 0.6, 6, 0, 0, 0), {"alpha": 0.4}),
    Case(
        "without alpha and top_k everybody has a score",
        (_E, _A),
        log(0.5 / 0.6, 6, 3, 0.04 / 0.28, 0.5),
        {"alpha": None},
    ),
    Case(
        "every row by itself",
        (torch.stack([_E, _A]), torch.stack([_A, _A])),
        torch.stack([_BASE, log(1, 0, 0, 1, 0)]),
    ),
]


def _contrast(
    *,
    by: str = "expert",
    fill: float = -math.inf,
    normal: Callable = lambda logits: logits.log_softmax(-1),
    temper: Callable = lambda a, tau, normal: normal(a / tau),
    weigh: Callable = lambda strength: strength,
    both: bool = False,
) -> Callable:
    """Masked scores with one thing wrong, for the mistakes below. `by`: whose numbers decide who may compete."""

    def contrast(expert_logits, amateur_logits, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0):
        log_e = normal(expert_logits / tau if both else expert_logits)
        scores = log_e - weigh(strength) * temper(amateur_logits, tau, normal)
        judge = {"expert": expert_logits, "amateur": amateur_logits, "scores": scores, "nobody": expert_logits}[by]
        keep = top(judge, top_k)
        if alpha is not None and by != "nobody":
            keep = keep & plausible(judge, alpha)
        return scores.masked_fill(~keep, fill)

    return contrast


def _mask_first(both: bool) -> Callable:
    """Masks the logits and normalises what is left: the expert's alone, or both models'."""

    def contrast(e, a, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0):
        keep = top(e, top_k) & (plausible(e, alpha) if alpha is not None else True)
        log_e = e.masked_fill(~keep, -math.inf).log_softmax(-1)
        log_a = ((a.masked_fill(~keep, -math.inf) if both else a) / tau).log_softmax(-1)
        return (log_e - strength * log_a).masked_fill(~keep, -math.inf)

    return contrast


def _count_scores(expert_logits, amateur_logits, *, top_k=0, **options):
    scores = _contrast()(expert_logits, amateur_logits, **options)
    return scores.masked_fill(~top(scores, top_k), -math.inf)


_FIRST = "the order: log p is that of the whole vocabulary, so normalise before anybody is left out"
CONTRAST_MISTAKES = [
    Mistake(
        "the mask on the amateur",
        _contrast(by="amateur"),
        "whose logits the mask reads: plausible is what the expert finds plausible",
    ),
    Mistake(
        "the mask on the scores",
        _contrast(by="scores"),
        "whose numbers the mask reads: a high score is no sign of being plausible",
    ),
    Mistake("the mask is missing", _contrast(by="nobody"), "what tokens get that the expert finds absurd"),
    Mistake("masked tokens get the score 0", _contrast(fill=0.0), "the score of who is out: 0 is not low"),
    Mistake(
        "the amateur's temperature after its softmax",
        _contrast(temper=lambda a, tau, normal: normal(a) / tau),
        "the order: divide the amateur's logits first, then normalise",
    ),
    Mistake(
        "multiplied by tau",
        _contrast(temper=lambda a, tau, normal: normal(a * tau)),
        "what a temperature does to logits: it divides",
    ),
    Mistake("tau is ignored", _contrast(temper=lambda a, tau, normal: normal(a)), "where `tau` is used"),
    Mistake("the expert is tempered too", _contrast(both=True), "whose temperature tau is: the amateur's alone"),
    Mistake(
        "raw logits where log-probabilities belong",
        _contrast(normal=lambda logits: logits),
        "whether each row was normalised",
    ),
    Mistake(
        "probabilities where log-probabilities belong",
        _contrast(normal=lambda logits: logits.softmax(-1)),
        "the two terms: are they probabilities or their logarithms?",
    ),
    Mistake("the strength is ignored", _contrast(weigh=lambda strength: 1.0), "where `strength` is used"),
    Mistake("the mask before the softmax", _mask_first(both=True), _FIRST),
    Mistake("the mask before the softmax", _mask_first(both=False), _FIRST),
    Mistake("top_k on the scores", _count_scores, "whose k best are counted: the expert's"),
]


def check_contrast(function: Callable, *, cases: Sequence[Case] = CONTRAST) -> Result:
    """Check part 2 of assignment 03: contrastive scores with mask, strength, tau and top_k."""
    return run_check("my_contrast", function, cases, CONTRAST_MISTAKES, earlier=EARLIER)
