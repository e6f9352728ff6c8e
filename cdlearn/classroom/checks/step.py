"""Checks of assignment 01, parts 1 to 3: the contrastive score, the mask, one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check

# ---- part 1: my_scores(expert_logits, amateur_logits, strength=1.0) -> [..., V]

_E, _A = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
_E2, _A2 = torch.tensor([0.1, 0.2, 0.7]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
_SCORES = torch.tensor([-0.4700036, 1.0986123, 0.6931472])

SCORES = [
    Case("the score of a token is its expert's log-probability minus its amateur's", (_E, _A), _SCORES),
    Case("a constant added to all logits of a model changes no probability, so no score", (_E + 2, _A - 1), _SCORES),
    Case(
        "the strength is a factor of the amateur's log-probability",
        (_E, _A),
        torch.tensor([-0.5815754, -0.0526804, -0.4581454]),
        {"strength": 0.5},
    ),
    Case("with strength 0 the amateur has no say", (_E + 2, _A), _E, {"strength": 0.0}),
    Case(
        "every row of a batch is scored by itself",
        (torch.stack([_E, _E2]), torch.stack([_A, _A2])),
        torch.stack([_SCORES, torch.tensor([-0.9162907, -0.9162907, 1.0296194])]),
    ),
]


def _log(logits: Tensor, dim: int = -1) -> Tensor:
    return torch.log_softmax(logits, dim=dim)


SCORES_MISTAKES = [
    Mistake(
        "probabilities where log-probabilities belong",
        lambda e, a, strength=1.0: e.softmax(-1) - strength * a.softmax(-1),
        "the two terms: are they probabilities or their logarithms?",
    ),
    Mistake(
        "the ratio without its logarithm",
        lambda e, a, strength=1.0: e.softmax(-1) / a.softmax(-1) ** strength,
        "the score is a logarithm of this ratio: a difference",
    ),
    Mistake(
        "expert and amateur exchanged",
        lambda e, a, strength=1.0: strength * _log(a) - _log(e),
        "which of the two is subtracted: what the amateur likes should cost",
    ),
    Mistake(
        "raw logits where log-probabilities belong",
        lambda e, a, strength=1.0: e - strength * a,
        "whether each row was normalised: logits are log-probabilities only up to a constant",
    ),
    Mistake(
        "the amateur is added",
        lambda e, a, strength=1.0: _log(e) + strength * _log(a),
        "the sign of the second term",
    ),
    Mistake("the strength is ignored", lambda e, a, strength=1.0: _log(e) - _log(a), "where `strength` is used"),
    Mistake(
        "the strength multiplies the whole score",
        lambda e, a, strength=1.0: strength * (_log(e) - _log(a)),
        "what `strength` multiplies: with strength 0 the expert must remain",
    ),
    Mistake(
        "the strength inside the softmax, like a temperature",
        lambda e, a, strength=1.0: _log(e) - _log(strength * a),
        "the order: normalise the amateur's logits first, then weigh them",
    ),
    Mistake(
        "the softmax over the batch instead of the vocabulary",
        lambda e, a, strength=1.0: _log(e, 0) - strength * _log(a, 0),
        "the dimension: the vocabulary is the last one, -1",
    ),
]


def check_scores(function: Callable, *, cases: Sequence[Case] = SCORES) -> Result:
    """Check part 1 of assignment 01: the contrastive score of every token from two rows of logits."""
    return run_check("my_scores", function, cases, SCORES_MISTAKES)


# ---- part 2: my_mask(expert_logits, alpha=0.1) -> [..., V] bool

_M = torch.tensor([0.60, 0.30, 0.08, 0.02]).log()
_M2 = torch.tensor([0.25, 0.25, 0.249, 0.251]).log()


def _bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


MASK = [
    Case("kept is what is at least alpha times as likely as the expert's best token", (_M,), _bools(1, 1, 1, 0)),
    Case("alpha sets the line", (_M,), _bools(1, 1, 0, 0), {"alpha": 0.3}),
    Case("a constant added to all logits changes nothing", (_M + 3,), _bools(1, 1, 1, 0)),
    Case(
        "the best token is always kept, and so is a tie",
        (torch.tensor([2.0, 2.0, 1.0]),),
        _bools(1, 1, 0),
        {"alpha": 1.0},
    ),
    Case(
        "every row of a batch has its own best token",
        (torch.stack([_M + 3, _M2]),),
        torch.stack([_bools(1, 0, 0, 0), _bools(1, 1, 1, 1)]),
        {"alpha": 0.6},
    ),
]


def _best(logits: Tensor) -> Tensor:
    return logits.max(dim=-1, keepdim=True).values


MASK_MISTAKES = [
    Mistake(
        "alpha as a probability",
        lambda e, alpha=0.1: e.softmax(-1) >= alpha,
        "what alpha is a share of: the best token's probability, not 1",
    ),
    Mistake(
        "a line above the best token: log alpha subtracted, or alpha times a logarithm",
        lambda e, alpha=0.1: e >= _best(e) - math.log(alpha),
        "the sign of log alpha, and that a factor of a probability is a summand of its logarithm",
    ),
    Mistake(
        "alpha times a logit",
        lambda e, alpha=0.1: e >= alpha * _best(e),
        "a factor of a probability is a summand of its logarithm",
    ),
    Mistake(
        "alpha added without its logarithm",
        lambda e, alpha=0.1: e >= _best(e) + alpha,
        "what to add to the best logit for a factor alpha",
    ),
    Mistake(
        "alpha subtracted without its logarithm",
        lambda e, alpha=0.1: e >= _best(e) - alpha,
        "what to add to the best logit for a factor alpha",
    ),
    Mistake(
        "the mask upside down",
        lambda e, alpha=0.1: e < _best(e) + math.log(alpha),
        "what True means here: the token is kept",
    ),
    Mistake(
        "alpha is ignored",
        lambda e, alpha=0.1: e >= _best(e) + math.log(0.1),
        "where `alpha` is used: 0.1 is only its usual value",
    ),
    Mistake(
        "more than instead of at least",
        lambda e, alpha=0.1: e > _best(e) + math.log(alpha),
        "the comparison where both sides are equal: with alpha 1 the best token must stay",
    ),
    Mistake(
        "one best token for the whole batch",
        lambda e, alpha=0.1: e >= e.max() + math.log(alpha),
        "the dimension of the maximum: one for every row",
    ),
    Mistake(
        "one best token for the whole batch",
        lambda e, alpha=0.1: e.softmax(-1) >= alpha * e.softmax(-1).max(),
        "the dimension of the maximum: one for every row",
    ),
]


def check_mask(function: Callable, *, cases: Sequence[Case] = MASK) -> Result:
    """Check part 2 of assignment 01: which tokens the expert finds plausible."""
    return run_check("my_mask", function, cases, MASK_MISTAKES)


# ---- part 3: my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0) -> [B] token ids

_ZEBRA = torch.tensor([[0.60, 0.30, 0.08, 0.0199, 0.0001]]).log(), torch.tensor([[0.80, 0.03, 0.03, 0.139, 1e-6]]).log()
_SURE = (
    torch.tensor([[0.970, 0.020, 0.005, 0.004, 0.001]]).log(),
    torch.tensor([[0.99, 0.001, 0.004, 0.004, 0.001]]).log(),
)
_OUT_FIRST = torch.tensor([[0.01, 0.30, 0.60, 0.09]]).log(), torch.tensor([[0.01, 0.05, 0.90, 0.04]]).log()
_EVEN = torch.tensor([[0.24, 0.02, 0.26, 0.25, 0.23]]).log(), torch.tensor([[0.20, 0.20, 0.20, 0.20, 0.20]]).log()
_CLOSE = torch.tensor([[0.52, 0.40, 0.08]]).log(), torch.tensor([[0.22, 0.15, 0.63]]).log()

STEP = [
    Case("the plausible token with the best score wins", _ZEBRA, torch.tensor([1])),
    Case("where one token is plausible, the amateur changes nothing", _SURE, torch.tensor([0])),
    Case("a ratio decides, not a difference of probabilities", _CLOSE, torch.tensor([1])),
    Case(
        "a token's number is its place in the whole row, also behind a token that is out", _OUT_FIRST, torch.tensor([1])
    ),
    Case("with strength 0 the expert's best token wins", _ZEBRA, torch.tensor([0]), {"strength": 0.0}),
    Case("who is out stays out, however low the scores of all others are", _EVEN, torch.tensor([2]), {"strength": 0.0}),
    Case("alpha sets the line", _ZEBRA, torch.tensor([0]), {"alpha": 0.6}),
    Case(
        "every row of a batch decides by itself",
        tuple(torch.cat([_ZEBRA[k], _SURE[k] + 4]) for k in (0, 1)),
        torch.tensor([1, 0]),
    ),
]


def _pick(e: Tensor, a: Tensor, keep: Tensor | None, strength: float, fill: float = -math.inf) -> Tensor:
    scores = _log(e) - strength * _log(a)
    return (scores if keep is None else scores.masked_fill(~keep, fill)).argmax(-1)


def _keep(logits: Tensor, alpha: float) -> Tensor:
    return logits >= _best(logits) + math.log(alpha)


def _among_kept(e: Tensor, a: Tensor, alpha: float = 0.1, strength: float = 1.0) -> Tensor:
    rows = zip(_log(e) - strength * _log(a), _keep(e, alpha))
    return torch.stack([scores[keep].argmax() for scores, keep in rows])


def _above_zero(e: Tensor, a: Tensor, alpha: float = 0.1, strength: float = 1.0) -> Tensor:
    scores = (_log(e) - strength * _log(a)).masked_fill(~_keep(e, alpha), -math.inf)
    return torch.where(scores.max(-1).values > 0, scores.argmax(-1), 0)


STEP_MISTAKES = [
    Mistake(
        "the mask is missing, or reads the scores",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, None, strength),
        "what may win: only tokens that the expert finds plausible. The best score passes any mask of scores",
    ),
    Mistake(
        "the mask upside down",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, ~_keep(e, alpha), strength),
        "what True means in the mask, and who gets the low score: the tokens that are out",
    ),
    Mistake(
        "expert and amateur exchanged",
        lambda e, a, alpha=0.1, strength=1.0: _pick(a, e, _keep(a, alpha), strength),
        "the order of the arguments",
    ),
    Mistake(
        "a place among the kept tokens, not in the row",
        _among_kept,
        "what argmax counts: a row without the masked tokens is shorter, so its numbers are no token ids",
    ),
    Mistake("the best score starts at 0", _above_zero, "what the loop starts with: all scores may be negative"),
    Mistake(
        "the mask on the amateur",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, _keep(a, alpha), strength),
        "whose logits the mask reads: plausible is what the expert finds plausible",
    ),
    Mistake(
        "masked tokens get the score 0",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, _keep(e, alpha), strength, fill=0.0),
        "the score of a token that is out: 0 is not low, scores may be negative",
    ),
    Mistake(
        "masked tokens get the score -1",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, _keep(e, alpha), strength, fill=-1.0),
        "the score of a token that is out: it must be below any other",
    ),
    Mistake(
        "the expert alone",
        lambda e, a, alpha=0.1, strength=1.0: e.argmax(-1),
        "where the amateur's logits are used",
    ),
    Mistake(
        "probabilities where log-probabilities belong",
        lambda e, a, alpha=0.1, strength=1.0: (
            (e.softmax(-1) - strength * a.softmax(-1)).masked_fill(~_keep(e, alpha), -math.inf).argmax(-1)
        ),
        "the two terms of the score: are they probabilities or their logarithms?",
    ),
    Mistake(
        "the strength is ignored",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, _keep(e, alpha), 1.0),
        "where `strength` is used",
    ),
    Mistake(
        "alpha is ignored",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, _keep(e, 0.1), strength),
        "where `alpha` is used: 0.1 is only its usual value",
    ),
    Mistake(
        "one best token for the whole batch",
        lambda e, a, alpha=0.1, strength=1.0: _pick(e, a, e >= e.max() + math.log(alpha), strength),
        "the dimension of the maximum: one for every row",
    ),
]


def check_step(function: Callable, *, cases: Sequence[Case] = STEP) -> Result:
    """Check part 3 of assignment 01: the token that one contrastive step picks, for every row."""
    earlier = {"my_scores": (1, check_scores), "my_mask": (2, check_mask)}
    return run_check("my_step", function, cases, STEP_MISTAKES, earlier=earlier)
