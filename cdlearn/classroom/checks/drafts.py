"""Checks of assignment 05, parts 1 and 2: the rule of speculative sampling, drafting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.models import SumLM

# ---- part 1: my_rule(p, q) -> (chance [..., V], rest [..., V])

_P, _Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.8, 0.1, 0.1])
_CHANCE, _REST = torch.tensor([0.625, 1.0, 1.0]), torch.tensor([0.0, 2 / 3, 1 / 3])
_P2, _Q2 = torch.tensor([0.6, 0.4, 0.0]), torch.tensor([0.0, 1.0, 0.0])
_CHANCE2, _REST2 = torch.tensor([1.0, 0.4, 1.0]), torch.tensor([1.0, 0.0, 0.0])
_ONES = torch.ones(3)

RULE = [
    Case("min(1, p / q), and max(p - q, 0) scaled to sum 1", (_P, _Q), (_CHANCE, _REST)),
    Case("where q is 0 nothing is drafted, and the chance is 1", (_P2, _Q2), (_CHANCE2, _REST2)),
    Case("two equal laws: everything stands, and what is left is p", (_P, _P), (_ONES, _P)),
    Case(
        "every row by itself",
        (torch.stack([_P, _P2]), torch.stack([_Q, _Q2])),
        (torch.stack([_CHANCE, _CHANCE2]), torch.stack([_REST, _REST2])),
    ),
    Case(
        "in a batch, too, p is what is left in the rows where both laws are equal",
        (torch.stack([_P, _P]), torch.stack([_Q, _P])),
        (torch.stack([_CHANCE, _ONES]), torch.stack([_REST, _P])),
    ),
]


def chance_of(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(q > 0, p / q, 1.0).clamp(max=1.0)


def scaled(rest: Tensor, p: Tensor) -> Tensor:
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)


def rest_of(p: Tensor, q: Tensor) -> Tensor:
    return scaled((p - q).clamp(min=0), p)


def _rule(chance: Callable = chance_of, rest: Callable = rest_of) -> Callable:
    return lambda p, q: (chance(p, q), rest(p, q))


def _whole(p: Tensor, q: Tensor) -> Tensor:
    above = (p - q).clamp(min=0)
    return p if torch.equal(p, q) else above / above.sum(-1, keepdim=True)


RULE_MISTAKES = [
    Mistake(
        "p = q decided for the whole batch",
        _rule(rest=_whole),
        "rows of a batch: in one of them nothing is left, in another one something is",
    ),
    Mistake(
        "p and q exchanged",
        _rule(lambda p, q: chance_of(q, p), lambda p, q: scaled((q - p).clamp(min=0), p)),
        "which law is whose: p is the target's, q the draft's",
    ),
    Mistake(
        "the residual is not renormalised",
        _rule(rest=lambda p, q: torch.where((p > q).any(-1, keepdim=True), (p - q).clamp(min=0), p)),
        "the sum of the second result: a law sums to 1",
    ),
    Mistake(
        "the residual is not renormalised",
        _rule(rest=lambda p, q: (p - q).clamp(min=0)),
        "the sum of the second result: a law sums to 1",
    ),
    Mistake(
        "the absolute difference",
        _rule(rest=lambda p, q: scaled((p - q).abs(), p)),
        "tokens of which the draft has too much: they were proposed often enough",
    ),
    Mistake("p again after a rejection", _rule(rest=lambda p, q: p), "the second result: only what p has above q"),
    Mistake(
        "q - p instead of p - q",
        _rule(rest=lambda p, q: scaled((q - p).clamp(min=0), p)),
        "which law has too much where: a rejected token should not come back",
    ),
    Mistake(
        "the softmax of the difference",
        _rule(rest=lambda p, q: (p - q).clamp(min=0).softmax(-1)),
        "how numbers of which some are 0 become a law: divide by their sum",
    ),
    Mistake(
        "0 divided by 0",
        _rule(rest=lambda p, q: (p - q).clamp(min=0) / (p - q).clamp(min=0).sum(-1, keepdim=True)),
        "what happens when nothing is left: p equals q",
    ),
    Mistake(
        "one sum for the whole batch",
        _rule(rest=lambda p, q: p if p.equal(q) else (p - q).clamp(min=0) / (p - q).clamp(min=0).sum()),
        "the dimension of the sum: every row is a law",
    ),
    Mistake("q / p instead of p / q", _rule(chance=lambda p, q: chance_of(q, p)), "the fraction in the first result"),
    Mistake("the chance above 1", _rule(chance=lambda p, q: torch.where(q > 0, p / q, 1.0)), "chances end at 1"),
    Mistake(
        "p / q where q is 0",
        _rule(chance=lambda p, q: (p / q).clamp(max=1.0)),
        "tokens that neither law can say: 0 / 0 is nan",
    ),
    Mistake(
        "min(p, q), not a chance",
        _rule(chance=torch.minimum),
        "the first result: given that the token was drafted, how often does it stand?",
    ),
]


def check_rule(function: Callable, *, cases: Sequence[Case] = RULE) -> Result:
    """Check part 1 of assignment 05: the chance to keep each token, and the law after a rejection."""
    return run_check("my_rule", function, cases, RULE_MISTAKES)


# ---- part 2: my_draft(model, ids, gamma, temperature, uniforms) -> (tokens, q [gamma, V])

_DRAFT = SumLM(4, {0: 2.0, 1: 1.0})
_LAW = torch.tensor([2.0, 1.0, 0.0, 0.0]).softmax(-1)
_COLD = torch.tensor([4.0, 2.0, 0.0, 0.0]).softmax(-1)
_HOT = torch.eye(4)


def _draft_case(says: str, ids: list[int], temperature: float, uniforms: list[float], tokens: list, laws: list) -> Case:
    gamma = len(uniforms)
    call = f"my_draft(model, [{ids}], {gamma}, {temperature}, {uniforms})"
    example = f"with s the sum of all ids modulo 4, token s has the logit 2, s + 1 has 1, the others 0. {call}"
    args = (_DRAFT, torch.tensor([ids]), gamma, temperature, uniforms)
    return Case(says, args, (tokens, torch.stack(laws)), {}, example)


DRAFT = [
    _draft_case("one token, and the law that it was drawn from", [1, 3], 1.0, [0.7], [1], [_LAW]),
    _draft_case("every draft reads the drafts before it", [1, 3], 1.0, [0.7, 0.7], [1, 2], [_LAW, _LAW.roll(1)]),
    _draft_case("every draft has a number of its own", [1, 3], 1.0, [0.7, 0.1], [1, 1], [_LAW, _LAW.roll(1)]),
    _draft_case("the law after the temperature", [1, 3], 0.5, [0.9], [1], [_COLD]),
    _draft_case(
        "temperature 0: the best token, and a law that knows only it",
        [1, 2],
        0.0,
        [0.5, 0.1],
        [3, 2],
        [_HOT[3], _HOT[2]],
    ),
]


def draw(law: Tensor, u: float) -> int:
    """law: [V]. The token in whose piece of the interval from 0 to 1 the number u falls."""
    return min(int(torch.searchsorted(law.double().cumsum(-1), u, right=True)), len(law) - 1)


def _wrong_draft(
    *,
    greedy: str = "right",
    temper: bool = True,
    factor: bool = False,
    column: int = -1,
    reads: bool = True,
    number: Callable = lambda us, k: us[k],
    cool: bool = True,
) -> Callable:
    """A draft with one thing wrong, for the mistakes below. greedy: when the best token is taken with a soft law."""

    def gives(model, ids, gamma, temperature, uniforms):
        tokens, laws = [], []
        for k in range(gamma):
            u = number(uniforms, k)
            logits = model(ids).logits[0, column]
            cold = temperature == 0 and greedy != "divide"
            scale = (1 / temperature if factor else temperature) if temper and not cold else 1.0
            law = (logits / scale).softmax(-1)
            best = greedy == "always" or cold
            token = int(logits.argmax()) if best else draw(law, u)
            one_hot = cold and greedy == "right"
            law = law if cool else logits.softmax(-1)
            laws.append(torch.eye(len(law))[token] if one_hot else law)
            tokens.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1) if reads else ids
        return tokens, torch.stack(laws)

    return gives


_OTHER_LAW = "q: the law the token was really drawn from; who always takes the best token draws from a one-hot law"
DRAFT_MISTAKES = [
    Mistake("argmax draft with q of another law", _wrong_draft(greedy="always"), _OTHER_LAW),
    Mistake("argmax draft with q of another law", _wrong_draft(greedy="cold"), _OTHER_LAW),
    Mistake("q without the temperature", _wrong_draft(cool=False), "q: the law that the token was really drawn from"),
    Mistake(
        "the first number for every draft", _wrong_draft(number=lambda us, k: us[0]), "which number draws the k-th"
    ),
    Mistake("dividing by temperature zero", _wrong_draft(greedy="divide"), "what the logits become at temperature 0"),
    Mistake("the temperature is ignored", _wrong_draft(temper=False), "where `temperature` is used"),
    Mistake("the temperature multiplies", _wrong_draft(factor=True), "a low temperature makes the law sharper"),
    Mistake(
        "the draft does not read its own tokens", _wrong_draft(reads=False), "what the model reads at the next step"
    ),
    Mistake("logits of the first position", _wrong_draft(column=0), "the column: which one has read it all"),
]


_COLUMN = {
    "searchsorted": "the law: one row [V] of numbers. `.logits` is [1, T, V]: which position is about the next token?"
}


def check_draft(function: Callable, *, cases: Sequence[Case] = DRAFT) -> Result:
    """Check part 2 of assignment 05: drafted tokens and the laws they were drawn from."""
    result = run_check("my_draft", function, cases, DRAFT_MISTAKES, raised=_COLUMN)
    if "another answer every time" in result.mistake:
        return replace(result, look="who draws: the k-th token is draw(law, uniforms[k])")
    return result
