"""Checks of assignment 05, parts 1 to 3: the rule of speculative sampling, drafting, a round."""

from __future__ import annotations

import torch
from torch import tensor

from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.models import SumLM


def draw(law, u):
    """law: [V], sums to 1. u: a number in [0, 1). Cut the interval by the law: the token in whose piece u falls."""
    return min(int(torch.searchsorted(law.double().cumsum(-1), u, right=True)), len(law) - 1)


def my_rule(p, q):
    """p, q: [..., V] float, every row a law. Returns (chance, rest), [..., V] each."""
    chance = torch.where(q > 0, p / q, 1.0).clamp(max=1.0)
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return chance, torch.where(total > 0, rest / total, p)


# fmt: off
_P, _Q, _CHANCE, _REST = tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.625, 1.0, 1.0], [0.0, 2 / 3, 1 / 3]])
_P2, _Q2, _CHANCE2, _REST2 = tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [1.0, 0.4, 1.0], [1.0, 0.0, 0.0]])
_SCALED, _QUOTIENT = "torch.where(total > 0, rest / total, p)", "torch.where(q > 0, p / q, 1.0)"

check_rule = Part(1, my_rule, [
    Case("min(1, p / q), and max(p - q, 0) scaled to sum 1", (_P, _Q), (_CHANCE, _REST)),
    Case("where q is 0 nothing is drafted, and the chance is 1", (_P2, _Q2), (_CHANCE2, _REST2)),
    Case("two equal laws: everything stands, and what is left is p", (_P, _P), (torch.ones(3), _P)),
    Case("every row by itself", (torch.stack([_P, _P2]), torch.stack([_Q, _Q2])),
         (torch.stack([_CHANCE, _CHANCE2]), torch.stack([_REST, _REST2]))),
    Case("in a batch, too, p is what is left in the rows where both laws are equal",
         (torch.stack([_P, _P]), torch.stack([_Q, _P])),
         (torch.stack([_CHANCE, torch.ones(3)]), torch.stack([_REST, _P]))),
], [
    ("p = q decided for the whole batch", _SCALED, "p if torch.equal(p, q) else rest / total",
     "rows of a batch: in one of them nothing is left, in another one something is"),
    ("p and q exchanged", "    chance = ", "    p, q = q, p\n    chance = ",
     "which law is whose: p is the target's, q the draft's"),
    ("the residual is not renormalised", "rest / total", "rest", "the sum of the second result: a law sums to 1"),
    ("the residual is not renormalised", _SCALED, "rest", "the sum of the second result: a law sums to 1"),
    ("the absolute difference", "(p - q).clamp(min=0)", "(p - q).abs()",
     "tokens of which the draft has too much: they were proposed often enough"),
    ("p again after a rejection", _SCALED, "p", "the second result: only what p has above q"),
    ("q - p instead of p - q", "p - q", "q - p",
     "which law has too much where: a rejected token should not come back"),
    ("the softmax of the difference", _SCALED, "rest.softmax(-1)",
     "how numbers of which some are 0 become a law: divide by their sum"),
    ("0 divided by 0", _SCALED, "rest / total", "what happens when nothing is left: p equals q"),
    ("one sum for the whole batch", _SCALED, "p if torch.equal(p, q) else rest / rest.sum()",
     "the dimension of the sum: every row is a law"),
    ("q / p instead of p / q", "q > 0, p / q", "p > 0, q / p", "the fraction in the first result"),
    ("the chance above 1", ".clamp(max=1.0)", "", "chances end at 1"),
    ("p / q where q is 0", _QUOTIENT, "(p / q)", "tokens that neither law can say: 0 / 0 is nan"),
    ("min(p, q), not a chance", _QUOTIENT, "torch.minimum(p, q)",
     "the first result: given that the token was drafted, how often does it stand?"),
])
# fmt: on


def my_draft(model, ids, gamma, temperature, uniforms):
    """ids: [1, T] int. uniforms: gamma numbers in [0, 1). Returns (tokens, q): a list of gamma ids, and [gamma, V]."""
    tokens, laws = [], []
    for u in uniforms:
        logits = model(ids).logits[0, -1]
        if temperature == 0:
            law = torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
        else:
            law = (logits / temperature).softmax(-1)
        tokens.append(draw(law, u))
        laws.append(law)
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], dim=1)
    return tokens, torch.stack(laws)


def _draft(says: str, ids: list[int], temperature: float, uniforms: list[float], tokens: list, laws: list) -> Case:
    args = (SumLM(4, {0: 2.0, 1: 1.0}), tensor([ids]), len(uniforms), temperature, uniforms)
    call = f"my_draft(model, [{ids}], {len(uniforms)}, {temperature}, {uniforms})"
    example = f"with s the sum of all ids modulo 4, token s has the logit 2, s + 1 has 1, the others 0. {call}"
    return Case(says, args, (tokens, torch.stack(laws)), {}, example)


# fmt: off
_WARM, _COLD, _HOT = tensor([2.0, 1.0, 0.0, 0.0]).softmax(-1), tensor([4.0, 2.0, 0.0, 0.0]).softmax(-1), torch.eye(4)
_BEST = "torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()"
_OTHER = "argmax draft with q of another law"
_LOOK = "q: the law the token was really drawn from; who always takes the best token draws from a one-hot law"

check_draft = Part(2, my_draft, [
    _draft("one token, and the law that it was drawn from", [1, 3], 1.0, [0.7], [1], [_WARM]),
    _draft("every draft reads the drafts before it", [1, 3], 1.0, [0.7, 0.7], [1, 2], [_WARM, _WARM.roll(1)]),
    _draft("every draft has a number of its own", [1, 3], 1.0, [0.7, 0.1], [1, 1], [_WARM, _WARM.roll(1)]),
    _draft("the law after the temperature", [1, 3], 0.5, [0.9], [1], [_COLD]),
    _draft("temperature 0: the best token, and a law that knows only it",
           [1, 2], 0.0, [0.5, 0.1], [3, 2], [_HOT[3], _HOT[2]]),
], [
    (_OTHER, ("draw(law, u)", _BEST), ("int(logits.argmax())", "logits.softmax(-1)"), _LOOK),
    (_OTHER, "laws.append(law)", "laws.append((logits / (temperature or 1)).softmax(-1))", _LOOK),
    ("q without the temperature", "laws.append(law)", "laws.append(logits.softmax(-1) if temperature else law)",
     "q: the law that the token was really drawn from"),
    ("the first number for every draft", "draw(law, u)", "draw(law, uniforms[0])", "which number draws the k-th"),
    ("dividing by temperature zero", "temperature == 0", "False", "what the logits become at temperature 0"),
    ("the temperature is ignored", "logits / temperature", "logits", "where `temperature` is used"),
    ("the temperature multiplies", "logits / temperature", "logits * temperature",
     "a low temperature makes the law sharper"),
    ("the draft does not read its own tokens", "ids = torch", "more = torch", "what the model reads at the next step"),
    ("logits of the first position", "[0, -1]", "[0, 0]", "the column: which one has read it all"),
], raised={
    "searchsorted": "the law: one row [V] of numbers. `.logits` is [1, T, V]: which position is about the next token?",
    "another answer every time": "who draws: the k-th token is draw(law, uniforms[k])",
})
# fmt: on


def my_verify(p, q, drafted, uniforms):
    """p: [gamma + 1, V]. q: [gamma, V]. drafted: gamma ids. uniforms: gamma + 1 numbers. Returns a list of ids."""
    chance, rest = my_rule(p[:-1], q)
    new = []
    for k, token in enumerate(drafted):
        if uniforms[k] >= chance[k, token]:
            return [*new, draw(rest[k], uniforms[-1])]
        new.append(token)
    return [*new, draw(p[-1], uniforms[-1])]


def _round(says: str, drafted: list[int], uniforms: list[float], expected: list[int]) -> Case:
    p, q = tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.15, 0.25, 0.6]]), tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]])
    return Case(says, (p[: len(drafted) + 1], q[: len(drafted)], drafted, uniforms), expected)


# fmt: off
_REDRAWN = "draw(rest[k], uniforms[-1])"

check_verify = Part(3, my_verify, [
    _round("a draft that p likes better than q does stands, and a bonus token follows", [1], [0.99, 0.3], [1, 1]),
    _round("a number below min(1, p / q) keeps the draft", [0], [0.6, 0.9], [0, 2]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.4], [1]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.82], [2]),
    _round("everything behind the first rejection is dropped", [0, 1], [0.7, 0.1, 0.4], [1]),
    _round("the residual is that of the rejected place", [1, 0], [0.5, 0.3, 0.9], [1, 1]),
    _round("the bonus comes from the law behind the last draft", [0, 1], [0.1, 0.9, 0.5], [0, 1, 2]),
], [
    ("the bonus token forgotten", "[*new, draw(p[-1], uniforms[-1])]", "new",
     "what follows when every draft stands: p has one row more"),
    ("continuing after the first rejection", f"return [*new, {_REDRAWN}]", f"token = {_REDRAWN}",
     "the drafts behind a rejection: they continue a text that is not there"),
    ("the rejected draft stays", _REDRAWN, f"token, {_REDRAWN}", "which tokens are returned after a rejection"),
    ("nothing in place of the rejected draft", f"[*new, {_REDRAWN}]", "new",
     "what takes the place of a rejected draft"),
    ("a bonus after a rejection", _REDRAWN, f"{_REDRAWN}, draw(p[-1], uniforms[-1])",
     "when the bonus is due: when every draft stands"),
    ("the bonus from the law before the last draft", "draw(p[-1]", "draw(p[-2]", "which row of p the bonus comes from"),
    ("the residual of the first place", "rest[k]", "rest[0]", "which rows of p and q make the residual"),
    ("p again after a rejection", "rest[k]", "p[k]", "the law after a rejection: the residual of part 1"),
    ("the number of the rejected draft used again", _REDRAWN, "draw(rest[k], uniforms[k])",
     "which number draws the new token: the last one, which nobody has looked at"),
    ("the absolute difference", "rest[k]", "(p[k] - q[k]).abs() / (p[k] - q[k]).abs().sum()",
     "the law after a rejection"),
    ("the residual is not renormalised", "rest[k]", "(p[k] - q[k]).clamp(min=0)",
     "the law after a rejection: it should sum to 1"),
    ("kept where it should be rejected", ">=", "<", "the comparison of the number with the chance"),
    ("q / p instead of p / q", "    new = []", "    chance, new = my_rule(q, p[:-1])[0], []",
     "the chance to keep a draft"),
    ("p, not p / q", "chance[k, token]", "p[k, token]", "the chance to keep a draft"),
], earlier=[check_rule])
# fmt: on
