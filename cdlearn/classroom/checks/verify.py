"""Checks of assignment 05, parts 3 and 4: verifying a round, and how long a draft should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.drafts import chance_of, check_rule, draw, rest_of, scaled

# ---- part 3: my_verify(p, q, drafted, uniforms) -> a list of tokens

_P3 = torch.stack([torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.7, 0.2]), torch.tensor([0.15, 0.25, 0.6])])
_Q3 = torch.stack([torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.6, 0.2, 0.2])])


def _round(says: str, drafted: list[int], uniforms: list[float], expected: list[int]) -> Case:
    n = len(drafted)
    return Case(says, (_P3[: n + 1], _Q3[:n], drafted, uniforms), expected)


VERIFY = [
    _round("a draft that p likes better than q does stands, and a bonus token follows", [1], [0.99, 0.3], [1, 1]),
    _round("a number below min(1, p / q) keeps the draft", [0], [0.6, 0.9], [0, 2]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.4], [1]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.82], [2]),
    _round("everything behind the first rejection is dropped", [0, 1], [0.7, 0.1, 0.4], [1]),
    _round("the residual is that of the rejected place", [1, 0], [0.5, 0.3, 0.9], [1, 1]),
    _round("the bonus comes from the law behind the last draft", [0, 1], [0.1, 0.9, 0.5], [0, 1, 2]),
]


def _wrong_verify(
    *,
    chance: Callable = chance_of,
    law: Callable = rest_of,
    above: bool = False,
    bonus: bool = True,
    bonus_at: int = -1,
    stops: bool = True,
    keeps: bool = False,
    replaces: bool = True,
    place: int | None = None,
    always_bonus: bool = False,
    again: bool = False,
) -> Callable:
    """A verification with one thing wrong, for the mistakes below."""

    def gives(p, q, drafted, uniforms):
        out = []
        for k, token in enumerate(drafted):
            if (uniforms[k] < float(chance(p[k], q[k])[token])) != above:
                out.append(token)
                continue
            at = k if place is None else place
            out += [token] * keeps + ([draw(law(p[at], q[at]), uniforms[k if again else -1])] if replaces else [])
            if stops:
                return out + ([draw(p[-1], uniforms[-1])] if always_bonus else [])
        return out + ([draw(p[bonus_at], uniforms[-1])] if bonus else [])

    return gives


VERIFY_MISTAKES = [
    Mistake(
        "the bonus token forgotten",
        _wrong_verify(bonus=False),
        "what follows when every draft stands: p has one row more",
    ),
    Mistake(
        "continuing after the first rejection",
        _wrong_verify(stops=False),
        "the drafts behind a rejection: they continue a text that is not there",
    ),
    Mistake("the rejected draft stays", _wrong_verify(keeps=True), "which tokens are returned after a rejection"),
    Mistake(
        "nothing in place of the rejected draft",
        _wrong_verify(replaces=False),
        "what takes the place of a rejected draft",
    ),
    Mistake(
        "a bonus after a rejection", _wrong_verify(always_bonus=True), "when the bonus is due: when every draft stands"
    ),
    Mistake(
        "the bonus from the law before the last draft",
        _wrong_verify(bonus_at=-2),
        "which row of p the bonus comes from",
    ),
    Mistake("the residual of the first place", _wrong_verify(place=0), "which rows of p and q make the residual"),
    Mistake(
        "p again after a rejection",
        _wrong_verify(law=lambda p, q: p),
        "the law after a rejection: the residual of part 1",
    ),
    Mistake(
        "the number of the rejected draft used again",
        _wrong_verify(again=True),
        "which number draws the new token: the last one, which nobody has looked at",
    ),
    Mistake(
        "the absolute difference",
        _wrong_verify(law=lambda p, q: scaled((p - q).abs(), p)),
        "the law after a rejection",
    ),
    Mistake(
        "the residual is not renormalised",
        _wrong_verify(law=lambda p, q: (p - q).clamp(min=0)),
        "the law after a rejection: it should sum to 1",
    ),
    Mistake(
        "kept where it should be rejected", _wrong_verify(above=True), "the comparison of the number with the chance"
    ),
    Mistake("q / p instead of p / q", _wrong_verify(chance=lambda p, q: chance_of(q, p)), "the chance to keep a draft"),
    Mistake("p, not p / q", _wrong_verify(chance=lambda p, q: p), "the chance to keep a draft"),
]


def check_verify(function: Callable, *, cases: Sequence[Case] = VERIFY) -> Result:
    """Check part 3 of assignment 05: which tokens a round gives."""
    return run_check("my_verify", function, cases, VERIFY_MISTAKES, earlier={"my_rule": (1, check_rule)})


# ---- part 4: my_length(rates, cost, wide) -> the draft length with the best speed

LENGTH = [
    Case("tokens of a round over its cost: 1.9 / 1.3 beats 1 and 2.08 / 1.6", ([0.9, 0.2], 0.3, 1.0), 1),
    Case("a draft counts only if all before it stand: 2.12 / 1.5 loses to 1.8 / 1.25", ([0.8, 0.4], 0.25, 1.0), 1),
    Case("0 drafts are plain decoding: speed 1, here better than 1.4 / 1.7", ([0.4, 0.4], 0.3, 1.4), 0),
    Case("the bonus belongs to every round: 1.5 / 1.4, 1.75 / 1.6, 1.875 / 1.8", ([0.5, 0.5, 0.5], 0.2, 1.2), 2),
    Case("a longer draft pays where drafts are cheap", ([0.9, 0.9, 0.9, 0.9], 0.05, 1.0), 4),
    Case("a bad place early is worse than a bad place late", ([0.2, 0.9, 0.9], 0.1, 1.0), 3),
    Case("of equal speeds the shortest: 1.5 / 1.5", ([0.5], 0.5, 1.0), 0),
    Case("a longer draft may pay where a shorter one does not: 1.5 / 1.6, 2 / 1.7", ([0.5, 1.0], 0.1, 1.5), 2),
]


def _stands(rates: Sequence[float], n: int) -> list[float]:
    return [math.prod(rates[:k]) for k in range(1, n + 1)]


def _best(
    *,
    tokens: Callable = lambda rates, n: 1 + sum(_stands(rates, n)),
    price: Callable = lambda n, cost, wide: n * cost + wide,
    plain: Callable = lambda wide: 1.0,
    shortest: bool = True,
) -> Callable:
    """A choice of the draft length with one thing wrong."""

    def gives(rates, cost, wide):
        speeds = [plain(wide)] + [tokens(rates, n) / price(n, cost, wide) for n in range(1, len(rates) + 1)]
        best = max(speeds) - 1e-9
        places = [n for n, speed in enumerate(speeds) if speed >= best]
        return places[0 if shortest else -1]

    return gives


def _first_decline(rates: Sequence[float], cost: float, wide: float) -> int:
    best, speed = 0, 1.0
    for n in range(1, len(rates) + 1):
        new = (1 + sum(_stands(rates, n))) / (n * cost + wide)
        if new <= speed + 1e-9:
            return best
        best, speed = n, new
    return best


LENGTH_MISTAKES = [
    Mistake(
        "stops at the first decline",
        _first_decline,
        "when to stop looking: the speed may fall and then rise above its old best",
    ),
    Mistake(
        "the wide pass paid for every column",
        _best(price=lambda n, c, w: n * c + (n + 1) * w),
        "what `wide` is: the whole pass over all columns",
    ),
    Mistake(
        "the last rate for all drafts",
        _best(tokens=lambda r, n: 1 + n * r[n - 1]),
        "how often a draft counts: all before it must stand too, each with a rate of its own",
    ),
    Mistake(
        "one less than the best length",
        lambda rates, cost, wide: max(0, _best()(rates, cost, wide) - 1),
        "what n counts: rates[0] belongs to n = 1",
    ),
    Mistake(
        "one more than the best length",
        lambda rates, cost, wide: 1 + _best()(rates, cost, wide),
        "what n counts: without drafts it is 0",
    ),
    Mistake(
        "the bonus token forgotten",
        _best(tokens=lambda r, n: sum(_stands(r, n))),
        "the tokens of a round: 1 follows in any case",
    ),
    Mistake(
        "the rates are added",
        _best(tokens=lambda r, n: 1 + sum(r[:n])),
        "how often the second draft counts: the first must stand too",
    ),
    Mistake(
        "one mean rate for all places",
        _best(tokens=lambda r, n: 1 + sum((sum(r) / len(r)) ** k for k in range(1, n + 1))),
        "the rates: every place has its own",
    ),
    Mistake(
        "only rounds in which all stand",
        _best(tokens=lambda r, n: 1 + n * _stands(r, n)[-1]),
        "rounds in which some drafts stand: they give tokens too",
    ),
    Mistake(
        "the cost of the drafts is missing",
        _best(price=lambda n, c, w: w),
        "what a round costs: drafts that are dropped too",
    ),
    Mistake(
        "the wide pass costs 1",
        _best(price=lambda n, c, w: n * c + 1),
        "what the target's pass over many columns costs",
    ),
    Mistake(
        "the target's pass is missing", _best(price=lambda n, c, w: n * c), "what a round costs: drafts and one pass"
    ),
    Mistake(
        "plain decoding pays the wide pass", _best(plain=lambda w: 1 / w), "length 0: its speed is 1 by definition"
    ),
    Mistake("plain decoding is left out", _best(plain=lambda w: -1.0), "length 0: it is a choice, too"),
    Mistake("the longest of equal speeds", _best(shortest=False), "what to do with equal speeds"),
]


def check_length(function: Callable, *, cases: Sequence[Case] = LENGTH) -> Result:
    """Check part 4 of assignment 05: the draft length by the speed formula."""
    return run_check("my_length", function, cases, LENGTH_MISTAKES, sure=True)
