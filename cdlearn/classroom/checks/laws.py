"""Checks of assignment 03, parts 3 and 4: the law that a sampler draws from, and the nucleus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cdlearn.classroom.checks.contrast import best, bools, log
from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check

# ---- part 3: my_law(scores, keep, temperature=1.0) -> [..., V] probabilities

_S, _K = log(1, 3, 4, 2), bools(1, 1, 0, 1)

LAW = [
    Case("who is out has probability 0, the others share 1", (_S, _K), torch.tensor([1, 3, 0, 2]) / 6),
    Case("a constant changes nothing: scores may all be negative", (_S - 9, _K), torch.tensor([1, 3, 0, 2]) / 6),
    Case("below 1 the best gain", (_S, _K), torch.tensor([1, 9, 0, 4]) / 14, {"temperature": 0.5}),
    Case(
        "above 1 the others gain",
        (2 * _S, _K),
        torch.tensor([1, 3, 0, 2]) / 6,
        {"temperature": 2.0},
    ),
    Case("temperature 0 is greedy among the kept", (_S, _K), torch.tensor([0.0, 1, 0, 0]), {"temperature": 0.0}),
    Case(
        "temperature 0 with two equals: the first of them",
        (torch.tensor([1.0, 2.0, 2.0]), bools(1, 1, 1)),
        torch.tensor([0.0, 1, 0]),
        {"temperature": 0.0},
    ),
    Case(
        "a tiny temperature is no problem for large scores",
        (torch.tensor([90.0, 91.0, 95.0]), bools(1, 1, 0)),
        torch.tensor([0.0, 1, 0]),
        {"temperature": 0.01},
    ),
    Case(
        "every row by itself",
        (torch.stack([_S, _S]), torch.stack([_K, bools(1, 0, 1, 0)])),
        torch.stack([torch.tensor([1, 3, 0, 2]) / 6, torch.tensor([1, 0, 4, 0]) / 5]),
    ),
    Case(
        "every row by itself, at temperature 0 too",
        (torch.stack([_S, _S]), torch.stack([_K, bools(1, 0, 1, 0)])),
        torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]]),
        {"temperature": 0.0},
    ),
]


def _one_hot(scores):
    return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)


def _law(hot: Callable, cold: Callable = lambda s, keep: _one_hot(s.masked_fill(~keep, -math.inf))) -> Callable:
    """A law made of a rule for temperatures above 0 and one for 0."""

    def law(scores, keep, temperature=1.0):
        return hot(scores, keep, temperature) if temperature > 0 else cold(scores, keep)

    return law


def _soft(s, keep, T):
    return (s.masked_fill(~keep, -math.inf) / T).softmax(-1)


LAW_MISTAKES = [
    Mistake(
        "the mask after the softmax",
        _law(lambda s, keep, T: (s / T).softmax(-1) * keep),
        "the sum of the result: who is out must not take a share away",
    ),
    Mistake(
        "masked tokens get the score 0",
        _law(lambda s, keep, T: (s * keep / T).softmax(-1)),
        "the score of who is out: 0 is a score like any other, and its exponential is 1",
    ),
    Mistake("the mask upside down", _law(lambda s, keep, T: _soft(s, ~keep, T)), "what True means: the token is kept"),
    Mistake("the mask is missing", _law(lambda s, keep, T: (s / T).softmax(-1)), "where `keep` is used"),
    Mistake("the temperature is ignored", _law(lambda s, keep, T: _soft(s, keep, 1.0)), "where `temperature` is used"),
    Mistake(
        "multiplied by the temperature",
        _law(lambda s, keep, T: _soft(s, keep, 1 / T)),
        "what a temperature does to scores: it divides",
    ),
    Mistake(
        "the temperature after the softmax",
        _law(lambda s, keep, T: _soft(s, keep, 1.0) / T),
        "the order: divide the scores first, then take the softmax",
    ),
    Mistake(
        "division by temperature zero",
        _law(_soft, lambda s, keep: _soft(s, keep, 0.0)),
        "what temperature 0 means: greedy. It needs a branch of its own",
    ),
    Mistake(
        "a temperature of nearly zero for zero",
        _law(_soft, lambda s, keep: _soft(s, keep, 1e-6)),
        "two equals at temperature 0: one of them must get everything",
    ),
    Mistake(
        "all that are equal at temperature 0",
        _law(_soft, lambda s, keep: (s == best(s.masked_fill(~keep, -math.inf))).float()),
        "two equals at temperature 0: one of them must get everything",
    ),
    Mistake(
        "temperature 0 without the mask", _law(_soft, lambda s, keep: _one_hot(s)), "who competes at temperature 0"
    ),
    Mistake(
        "exponentials without care",
        _law(lambda s, keep, T: (s / T).exp() * keep / ((s / T).exp() * keep).sum(-1, keepdim=True)),
        "the size of exp(scores / T): it overflows. softmax takes the maximum away first",
    ),
]


def check_law(function: Callable, *, cases: Sequence[Case] = LAW) -> Result:
    """Check part 3 of assignment 03: the probabilities that a sampler draws from."""
    return run_check("my_law", function, cases, LAW_MISTAKES)


# ---- part 4: my_nucleus(probs, p) -> [..., V]

_N, _N_MIXED = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.15, 0.5, 0.05, 0.3])

NUCLEUS = [
    Case("the best tokens until they reach p, then renormalised", (_N, 0.75), torch.tensor([0.625, 0.375, 0, 0])),
    Case("the token that crosses the line comes in", (_N, 0.85), torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95),
    Case("a p below the best token keeps that token", (_N, 0.2), torch.tensor([1.0, 0, 0, 0])),
    Case("p = 1 keeps all", (_N, 1.0), _N),
    Case(
        "as soon as the sum is exactly p, the set is complete",
        (torch.tensor([0.5, 0.25, 0.125, 0.125]), 0.75),
        torch.tensor([2 / 3, 1 / 3, 0, 0]),
    ),
    Case("the result has the order of the vocabulary", (_N_MIXED, 0.75), torch.tensor([0, 0.625, 0, 0.375])),
    Case(
        "every row by itself",
        (torch.stack([_N, torch.tensor([0.1, 0.1, 0.7, 0.1])]), 0.65),
        torch.tensor([[0.625, 0.375, 0, 0], [0, 0, 1, 0]]),
    ),
]


def _nucleus(
    *,
    inside: Callable = lambda before, own, p: before < p,
    back: Callable = lambda kept, order: kept.scatter(-1, order, kept),
    normal: bool = True,
    down: bool = True,
    ranks: bool = False,
) -> Callable:
    """A nucleus with one thing wrong; `inside` reads what stands before a token, its own probability, and p.

    back: how the mask is put back. ranks: the sorted row itself is the result.
    """

    def nucleus(probs, p):
        ranked, order = probs.sort(-1, descending=down)
        kept = inside(ranked.cumsum(-1) - ranked, ranked, p)
        left = ranked * kept if ranks else probs * back(kept, order)
        return left / left.sum(-1, keepdim=True) if normal else left

    return nucleus


NUCLEUS_MISTAKES = [
    Mistake(
        "the crossing token is left out",
        _nucleus(inside=lambda before, own, p: before + own <= p),
        "the token with which the sum reaches p: it belongs to the set",
    ),
    Mistake(
        "the crossing token is left out, but for the best",
        _nucleus(inside=lambda before, own, p: (before + own <= p) | (before < 1e-6)),
        "the token with which the sum reaches p: it belongs to the set",
    ),
    Mistake(
        "one token too many",
        _nucleus(inside=lambda before, own, p: torch.cat([before[..., :1] < 2, before[..., :-1] < p], dim=-1)),
        "when to stop: as soon as the sum reaches p",
    ),
    Mistake(
        "the mask stays in sorted order",
        _nucleus(back=lambda kept, order: kept),
        "which token each place of the sorted row stands for: carry the mask back",
    ),
    Mistake(
        "the result stays in sorted order",
        _nucleus(ranks=True),
        "which token each place of the sorted row stands for: carry the probabilities back",
    ),
    Mistake(
        "put back with gather",
        _nucleus(back=lambda kept, order: kept.gather(-1, order)),
        "the direction: gather reads from the places in `order`, and you want to write to them",
    ),
    Mistake(
        "one token too many where the sum is exactly p",
        _nucleus(inside=lambda before, own, p: before <= p),
        "the comparison where both sides are equal: the sum must be at least p, not more",
    ),
    Mistake("not renormalised", _nucleus(normal=False), "the sum of the result"),
    Mistake("the worst tokens first", _nucleus(down=False), "the direction of the sort"),
    Mistake("p as a line for one token", _nucleus(inside=lambda before, own, p: own >= 1 - p), "what reaches p: a sum"),
    Mistake(
        "p as a share of the best",
        _nucleus(inside=lambda before, own, p: own >= (1 - p) * own.max(-1, keepdim=True).values),
        "what reaches p: a sum. A share of the best is min-p",
    ),
]


def check_nucleus(function: Callable, *, cases: Sequence[Case] = NUCLEUS) -> Result:
    """Check part 4 of assignment 03: top-p."""
    return run_check("my_nucleus", function, cases, NUCLEUS_MISTAKES)
