"""Checks of assignment 01, parts 1 to 3: the contrastive score, the mask, one step."""

from __future__ import annotations

import math

import torch
from torch import tensor

from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.values import bools


def my_scores(expert_logits, amateur_logits, strength=1.0):
    """expert_logits, amateur_logits: [..., V] float. Returns the scores, [..., V]; no mask yet."""
    return expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)


# fmt: off
_E, _A = tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]).log()
_E2, _A2 = tensor([[0.1, 0.2, 0.7], [0.25, 0.5, 0.25]]).log()
_SCORES = tensor([-0.4700036, 1.0986123, 0.6931472])
_LOG_E, _LOG_A, _BOTH = "expert_logits.log_softmax(-1)", "amateur_logits.log_softmax(-1)", ".log_softmax(-1)"

check_scores = Part(1, my_scores, [
    Case("the score of a token is its expert's log-probability minus its amateur's", (_E, _A), _SCORES),
    Case("a constant added to all logits of a model changes no probability, so no score", (_E + 2, _A - 1), _SCORES),
    Case("the strength is a factor of the amateur's log-probability", (_E, _A),
         tensor([-0.5815754, -0.0526804, -0.4581454]), {"strength": 0.5}),
    Case("with strength 0 the amateur has no say", (_E + 2, _A), _E, {"strength": 0.0}),
    Case("every row of a batch is scored by itself", (torch.stack([_E, _E2]), torch.stack([_A, _A2])),
         torch.stack([_SCORES, tensor([-0.9162907, -0.9162907, 1.0296194])])),
], [
    ("probabilities where log-probabilities belong", _BOTH, ".softmax(-1)",
     "the two terms: are they probabilities or their logarithms?"),
    ("the ratio without its logarithm", f"{_LOG_E} - strength * {_LOG_A}",
     "expert_logits.softmax(-1) / amateur_logits.softmax(-1) ** strength",
     "the score is a logarithm of this ratio: a difference"),
    ("expert and amateur exchanged", f"{_LOG_E} - strength * {_LOG_A}", f"strength * {_LOG_A} - {_LOG_E}",
     "which of the two is subtracted: what the amateur likes should cost"),
    ("raw logits where log-probabilities belong", _BOTH, "",
     "whether each row was normalised: logits are log-probabilities only up to a constant"),
    ("the amateur is added", " - ", " + ", "the sign of the second term"),
    ("the strength is ignored", "strength * ", "", "where `strength` is used"),
    ("the strength multiplies the whole score", f"{_LOG_E} - strength * {_LOG_A}",
     f"strength * ({_LOG_E} - {_LOG_A})", "what `strength` multiplies: with strength 0 the expert must remain"),
    ("the strength inside the softmax, like a temperature", f"strength * {_LOG_A}",
     "(strength * amateur_logits).log_softmax(-1)", "the order: normalise the amateur's logits first, then weigh them"),
    ("the softmax over the batch instead of the vocabulary", _BOTH, ".log_softmax(0)",
     "the dimension: the vocabulary is the last one, -1"),
])
# fmt: on


def my_mask(expert_logits, alpha=0.1):
    """expert_logits: [..., V] float. alpha: in (0, 1]. Returns [..., V] bool: True is kept."""
    best = expert_logits.max(dim=-1, keepdim=True).values
    return expert_logits >= best + math.log(alpha)


# fmt: off
_M, _M2 = tensor([[0.60, 0.30, 0.08, 0.02], [0.25, 0.25, 0.249, 0.251]]).log()
_CUT, _ALL, _MANY = "best + math.log(alpha)", "expert_logits.max(dim=-1, keepdim=True).values", "expert_logits >= "
_ROW = "the dimension of the maximum: one for every row"

check_mask = Part(2, my_mask, [
    Case("kept is what is at least alpha times as likely as the expert's best token", (_M,), bools(1, 1, 1, 0)),
    Case("alpha sets the threshold", (_M,), bools(1, 1, 0, 0), {"alpha": 0.3}),
    Case("a constant added to all logits changes nothing", (_M + 3,), bools(1, 1, 1, 0)),
    Case("the best token is always kept, and so is a tie", (tensor([2.0, 2.0, 1.0]),), bools(1, 1, 0), {"alpha": 1.0}),
    Case("every row of a batch has its own best token", (torch.stack([_M + 3, _M2]),),
         torch.stack([bools(1, 0, 0, 0), bools(1, 1, 1, 1)]), {"alpha": 0.6}),
], [
    ("alpha as a probability", f"{_MANY}{_CUT}", "expert_logits.softmax(-1) >= alpha",
     "what alpha is a share of: the best token's probability, not 1"),
    ("a line above the best token: log alpha subtracted, or alpha times a logarithm", "+ math", "- math",
     "the sign of log alpha, and that a factor of a probability is a summand of its logarithm"),
    ("alpha times a logit", _CUT, "alpha * best", "a factor of a probability is a summand of its logarithm"),
    ("alpha added without its logarithm", _CUT, "best + alpha", "what to add to the best logit for a factor alpha"),
    ("alpha subtracted without its logarithm", _CUT, "best - alpha",
     "what to add to the best logit for a factor alpha"),
    ("the mask upside down", ">=", "<", "what True means here: the token is kept"),
    ("alpha is ignored", "log(alpha)", "log(0.1)", "where `alpha` is used: 0.1 is only its usual value"),
    ("more than instead of at least", ">=", ">",
     "the comparison where both sides are equal: with alpha 1 the best token must stay"),
    ("one best token for the whole batch", _ALL, "expert_logits.max()", _ROW),
    ("one best token for the whole batch", f"{_MANY}{_CUT}",
     "expert_logits.softmax(-1) >= alpha * expert_logits.softmax(-1).max()", _ROW),
])
# fmt: on


def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    """expert_logits, amateur_logits: [B, V] float. Returns the chosen token ids, [B] int."""
    scores = my_scores(expert_logits, amateur_logits, strength)
    return scores.masked_fill(~my_mask(expert_logits, alpha), -math.inf).argmax(-1)


def _two(expert: list[float], amateur: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor([expert]).log(), tensor([amateur]).log()


# fmt: off
_ZEBRA = _two([0.60, 0.30, 0.08, 0.0199, 0.0001], [0.80, 0.03, 0.03, 0.139, 1e-6])
_SURE = _two([0.970, 0.020, 0.005, 0.004, 0.001], [0.99, 0.001, 0.004, 0.004, 0.001])
_EVEN = _two([0.24, 0.02, 0.26, 0.25, 0.23], [0.20, 0.20, 0.20, 0.20, 0.20])
_MASKED = "my_mask(expert_logits, alpha)"
_PICK = f"scores.masked_fill(~{_MASKED}, -math.inf).argmax(-1)"
_HEAD = "    scores = my_scores(expert_logits, amateur_logits, strength)\n"

check_step = Part(3, my_step, [
    Case("the plausible token with the best score wins", _ZEBRA, tensor([1])),
    Case("where one token is plausible, the amateur changes nothing", _SURE, tensor([0])),
    Case("a ratio decides, not a difference of probabilities",
         _two([0.52, 0.40, 0.08], [0.22, 0.15, 0.63]), tensor([1])),
    Case("a token's number is its place in the whole row, also after a token that is out",
         _two([0.01, 0.30, 0.60, 0.09], [0.01, 0.05, 0.90, 0.04]), tensor([1])),
    Case("with strength 0 the expert's best token wins", _ZEBRA, tensor([0]), {"strength": 0.0}),
    Case("who is out stays out, however low the scores of all others are", _EVEN, tensor([2]), {"strength": 0.0}),
    Case("alpha sets the threshold", _ZEBRA, tensor([0]), {"alpha": 0.6}),
    Case("every row of a batch decides by itself", tuple(torch.cat([_ZEBRA[k], _SURE[k] + 4]) for k in (0, 1)),
         tensor([1, 0])),
], [
    ("the mask is missing, or reads the scores", _PICK, "scores.argmax(-1)",
     "what may win: only tokens that the expert finds plausible. The best score passes any mask of scores"),
    ("the mask upside down", "~my_mask", "my_mask",
     "what True means in the mask, and who gets the low score: the tokens that are out"),
    ("expert and amateur exchanged", _HEAD,
     "    expert_logits, amateur_logits = amateur_logits, expert_logits\n" + _HEAD, "the order of the arguments"),
    ("a place among the kept tokens, not in the row", _PICK,
     f"torch.stack([row[keep].argmax() for row, keep in zip(scores, {_MASKED})])",
     "what argmax counts: a row without the masked tokens is shorter, so its numbers are no token ids"),
    ("the best score starts at 0", f"return {_PICK}",
     f"best = scores.masked_fill(~{_MASKED}, -math.inf).max(-1)\n"
     "    return torch.where(best.values > 0, best.indices, 0)",
     "what the loop starts with: all scores may be negative"),
    ("the mask on the amateur", _MASKED, "my_mask(amateur_logits, alpha)",
     "whose logits the mask reads: plausible is what the expert finds plausible"),
    ("masked tokens get the score 0", "-math.inf", "0.0",
     "the score of a token that is out: 0 is not low, scores may be negative"),
    ("masked tokens get the score -1", "-math.inf", "-1.0",
     "the score of a token that is out: it must be below any other"),
    ("the expert alone", f"return {_PICK}", "return expert_logits.argmax(-1)", "where the amateur's logits are used"),
    ("probabilities where log-probabilities belong", "my_scores(expert_logits, amateur_logits, strength)",
     "expert_logits.softmax(-1) - strength * amateur_logits.softmax(-1)",
     "the two terms of the score: are they probabilities or their logarithms?"),
    ("the strength is ignored", "amateur_logits, strength)\n", "amateur_logits, 1.0)\n", "where `strength` is used"),
    ("alpha is ignored", _MASKED, "my_mask(expert_logits, 0.1)", "where `alpha` is used: 0.1 is only its usual value"),
    ("one best token for the whole batch", _MASKED, "(expert_logits >= expert_logits.max() + math.log(alpha))", _ROW),
], earlier=[check_scores, check_mask])
# fmt: on
