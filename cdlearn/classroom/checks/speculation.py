"""Checks of assignment 05: the rule of speculative sampling, drafting, a round, lengths, rewinding, the contrast."""

import math

import torch
from torch import Tensor, tensor

from cdlearn.classroom.checks.core import PROBABILITIES, ROUNDED, Case, Part
from cdlearn.classroom.checks.models import TOY, TOY_WORDS, SumLM
from cdlearn.classroom.checks.values import rows


def draw(probs, u):
    """probs: [V], sums to 1. u: a number in [0, 1). The token in whose piece of the interval u falls."""
    return min(int(torch.searchsorted(probs.double().cumsum(-1), u, right=True)), len(probs) - 1)


def my_rule(p, q):
    chance = torch.where(q > 0, p / q, 1.0).clamp(max=1.0)
    rest = (p - q).clamp(min=0)
    total = rest.sum(-1, keepdim=True)
    return chance, torch.where(total > 0, rest / total, p)


def my_draft(model, ids, gamma, temperature, uniforms):
    tokens, q = [], []
    for u in uniforms:
        logits = model(ids).logits[0, -1]
        if temperature == 0:
            probs = torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
        else:
            probs = (logits / temperature).softmax(-1)
        tokens.append(draw(probs, u))
        q.append(probs)
        ids = torch.cat([ids, torch.tensor([tokens[-1:]])], dim=1)
    return tokens, torch.stack(q)


def my_verify(p, q, drafted, uniforms):
    chance, rest = my_rule(p[:-1], q)
    new = []
    for k, token in enumerate(drafted):
        if uniforms[k] >= chance[k, token]:
            return [*new, draw(rest[k], uniforms[-1])]
        new.append(token)
    return [*new, draw(p[-1], uniforms[-1])]


def my_length(rates, cost, wide):
    speeds, tokens, reach = [1.0], 1.0, 1.0
    for n, rate in enumerate(rates, start=1):
        reach *= rate
        tokens += reach
        speeds.append(tokens / (n * cost + wide))
    best = max(speeds) - 1e-9
    return next(n for n, speed in enumerate(speeds) if speed >= best)


def my_rewind(drafted, accepted, next_token):
    gone = len(drafted) - accepted
    reads = [next_token] if gone else [drafted[-1], next_token]
    return gone, max(0, gone - 1), reads


def my_distributions(expert_logits, amateur_logits, alpha, strength, temperature):
    keep = expert_logits >= expert_logits.max(-1, keepdim=True).values + math.log(alpha)
    scores = expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)
    both = scores.masked_fill(~keep, -math.inf), amateur_logits
    if temperature == 0:
        p, q = (torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).float() for x in both)
    else:
        p, q = ((x / temperature).softmax(-1) for x in both)
    return p, q


def _draft(says: str, ids: list[int], temperature: float, uniforms: list[float], tokens: list, *q: Tensor) -> Case:
    args = (SumLM(4, {0: 2.0, 1: 1.0}), tensor([ids]), len(uniforms), temperature, uniforms)
    call = f"my_draft(model, [{ids}], {len(uniforms)}, {temperature}, {uniforms})"
    example = f"with s the sum of all ids modulo 4, token s has the logit 2, s + 1 has 1, the others 0. {call}"
    return Case(says, args, (tokens, torch.stack(q)), {}, example)


def _round(says: str, drafted: list[int], uniforms: list[float], expected: list[int]) -> Case:
    p, q = tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.15, 0.25, 0.6]]), tensor([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]])
    return Case(says, (p[: len(drafted) + 1], q[: len(drafted)], drafted, uniforms), expected)


def _rewind(says: str, drafted: list[int], accepted: int, expected: tuple) -> Case:
    caches = "the target's cache ends in [.., last, 5, 6, 7], the draft's in [.., last, 5, 6]. "
    example = f"{caches if drafted == [5, 6, 7] else ''}my_rewind({drafted}, {accepted}, 8)"
    return Case(says, (drafted, accepted, 8), expected, {}, example)


# fmt: off
P, Q, CHANCE, REST = tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.625, 1.0, 1.0], [0.0, 2 / 3, 1 / 3]])
P2, Q2, CHANCE2, REST2 = tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [1.0, 0.4, 1.0], [1.0, 0.0, 0.0]])
SCALED, QUOTIENT = "torch.where(total > 0, rest / total, p)", "torch.where(q > 0, p / q, 1.0)"
SUM = "the sum of the second result: a distribution sums to 1"
check_rule = Part(1, my_rule, [
    Case("min(1, p / q), and max(p - q, 0) scaled to sum 1", (P, Q), (CHANCE, REST)),
    Case("where q is 0 nothing is drafted, and the chance is 1", (P2, Q2), (CHANCE2, REST2)),
    Case("two equal distributions: everything is accepted, and what is left is p", (P, P), (torch.ones(3), P)),
    Case("every row by itself", (rows(P, P2), rows(Q, Q2)), (rows(CHANCE, CHANCE2), rows(REST, REST2))),
    Case("in a batch, too, p is what is left in the rows where p equals q", (rows(P, P), rows(Q, P)),
         (rows(CHANCE, torch.ones(3)), rows(REST, P))),
    ("p = q decided for the whole batch", SCALED, "p if torch.equal(p, q) else rest / total", "rows that differ"),
    ("p and q exchanged", "(p, q)", "(q, p)", "which distribution is the target's, and which the draft's"),
    ("the residual is not renormalised", "rest / total", "rest", SUM),
    ("the residual is not renormalised", SCALED, "rest", SUM),
    ("the absolute difference", ".clamp(min=0)", ".abs()", "tokens of which the draft has too much"),
    ("p again after a rejection", SCALED, "p", "the second result: only what p has above q"),
    ("q - p instead of p - q", "p - q", "q - p", "which of the two has too much where a draft is rejected"),
    ("the softmax of the difference", SCALED, "rest.softmax(-1)", "how numbers of which some are 0 get the sum 1"),
    ("0 divided by 0", SCALED, "rest / total", "what happens when nothing is left: p equals q"),
    ("one sum for the whole batch", SCALED, "p if torch.equal(p, q) else rest / rest.sum()", "the dimension"),
    ("q / p instead of p / q", "q > 0, p / q", "p > 0, q / p", "the fraction in the first result"),
    ("the chance above 1", ".clamp(max=1.0)", "", "chances end at 1"),
    ("p / q where q is 0", QUOTIENT, "(p / q)", "tokens that neither p nor q can say"),
    ("min(p, q), not a chance", QUOTIENT, "torch.minimum(p, q)", "the chance, given that the token was drafted"),
])

WARM, COLD, HOT = tensor([2.0, 1.0, 0.0, 0.0]).softmax(-1), tensor([4.0, 2.0, 0.0, 0.0]).softmax(-1), torch.eye(4)
OTHER, KEPT, TEMPERED = "argmax draft with another q", "q.append(probs)", "logits / temperature"
DRAWN = "q: what the token was really drawn from"
check_draft = Part(2, my_draft, [
    _draft("one token, and the distribution it was drawn from", [1, 3], 1.0, [0.7], [1], WARM),
    _draft("every draft reads the drafts before it", [1, 3], 1.0, [0.7, 0.7], [1, 2], WARM, WARM.roll(1)),
    _draft("every draft has a number of its own", [1, 3], 1.0, [0.7, 0.1], [1, 1], WARM, WARM.roll(1)),
    _draft("the distribution after the temperature", [1, 3], 0.5, [0.9], [1], COLD),
    _draft("temperature 0: the best token, a one-hot distribution", [1, 2], 0.0, [0.5, 0.1], [3, 2], HOT[3], HOT[2]),
    Case("every draft is the last of the row", (TOY, tensor([[3, 5]]), 2, 0.0, [0.5, 0.1]),
         ([5, 4], torch.eye(8)[[5, 4]]), {}, f"{TOY_WORDS}my_draft(model, [[3, 5]], 2, 0.0, [0.5, 0.1])"),
    (OTHER, ("draw(probs, u)", "torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()"),
     ("int(logits.argmax())", "logits.softmax(-1)"), DRAWN),
    (OTHER, KEPT, "q.append((logits / (temperature or 1)).softmax(-1))", DRAWN),
    ("q without the temperature", KEPT, "q.append(logits.softmax(-1) if temperature else probs)", DRAWN),
    ("the first number for every draft", "probs, u", "probs, uniforms[0]", "which number draws the k-th"),
    ("dividing by temperature zero", "temperature == 0", "False", "what the logits become at temperature 0"),
    ("the temperature is ignored", TEMPERED, "logits", "where `temperature` is used"),
    ("the temperature multiplies", TEMPERED, "logits * temperature", "what a low temperature does to a distribution"),
    ("the draft does not read its own tokens", "ids =", "more =", "what the model reads at the next step"),
    ("the draft before the prompt", "[ids, torch.tensor([tokens[-1:]])]", "[torch.tensor([tokens[-1:]]), ids]",
     "the order in which prompt and draft are joined"),
    ("logits of the first position", "[0, -1]", "[0, 0]", "the column: which one has read it all"),
], raised={
    "searchsorted": "draw: it takes one row [V]. `.logits` is [1, T, V]: which position is about the next token?",
    "another answer every time": "who draws: the k-th token is draw(probs, uniforms[k])",
})

REDRAWN = "draw(rest[k], uniforms[-1])"
check_verify = Part(3, my_verify, [
    _round("a draft that p likes better than q does is accepted, and a bonus token follows", [1], [0.99, 0.3], [1, 1]),
    _round("a number below min(1, p / q) keeps the draft", [0], [0.6, 0.9], [0, 2]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.4], [1]),
    _round("a rejected draft is replaced by a draw from the residual, and that is all", [0], [0.7, 0.82], [2]),
    _round("everything after the first rejection is dropped", [0, 1], [0.7, 0.1, 0.4], [1]),
    _round("the residual is that of the rejected place", [1, 0], [0.1, 0.3, 0.9], [1, 1]),
    _round("the bonus comes from what p says after the last draft", [0, 0], [0.6, 0.1, 0.5], [0, 0, 2]),
    Case("what p never says is never accepted", (tensor([[0.0, 0.5, 0.5], [0.2, 0.3, 0.5]]),
         tensor([[0.5, 0.25, 0.25]]), [0], [0.0, 0.4]), [1]),
    ("the bonus token forgotten", "[*new, draw(p[-1], uniforms[-1])]", "new", "what follows the last draft"),
    ("continuing after the first rejection", f"return [*new, {REDRAWN}]", f"token = {REDRAWN}", "when the round ends"),
    ("the rejected draft stays", REDRAWN, f"token, {REDRAWN}", "which tokens are returned after a rejection"),
    ("nothing in place of the rejected draft", f", {REDRAWN}", "", "what takes the place of a rejected draft"),
    ("a bonus after a rejection", REDRAWN, f"{REDRAWN}, draw(p[-1], uniforms[-1])", "when the bonus is due"),
    ("the bonus from the row before the last draft", "draw(p[-1]", "draw(p[-2]", "which row of p the bonus comes from"),
    ("the residual of the first place", "rest[k]", "rest[0]", "which rows of p and q make the residual"),
    ("p again after a rejection", "rest[k]", "p[k]", "what a new token is drawn from after a rejection"),
    ("the number of the rejected draft used again", REDRAWN, "draw(rest[k], uniforms[k])",
     "which number draws the new token"),
    ("the absolute difference", "rest[k]", "(x := (p[k] - q[k]).abs()) / x.sum()", "what the draft has too much of"),
    ("the residual is not renormalised", "rest[k]", "(p[k] - q[k]).clamp(min=0)",
     "the sum of what a new token is drawn from"),
    ("kept where it should be rejected", ">=", "<", "the comparison of the number with the chance"),
    ("kept where the number equals the chance", ">=", ">", "the comparison, with a chance of 0 for example"),
    ("one number for all drafts", "uniforms[k] >=", "uniforms[0] >=", "which number belongs to which draft"),
    ("q / p instead of p / q", "new = []", "chance, new = my_rule(q, p[:-1])[0], []", "the chance to keep a draft"),
    ("p, not p / q", "chance[k", "p[k", "the chance to keep a draft"),
], [check_rule], sure=True)

check_length = Part(4, my_length, [
    Case("tokens per round over its cost: 1.9 / 1.3 beats 1 and 2.08 / 1.6", ([0.9, 0.2], 0.3, 1.0), 1),
    Case("a draft counts only if all before it do: 2.12 / 1.5 loses to 1.8 / 1.25", ([0.8, 0.4], 0.25, 1.0), 1),
    Case("0 drafts are plain decoding: speed 1, here better than 1.4 / 1.7", ([0.4, 0.4], 0.3, 1.4), 0),
    Case("the bonus belongs to every round: 1.5 / 1.4, 1.75 / 1.6, 1.875 / 1.8", ([0.5, 0.5, 0.5], 0.2, 1.2), 2),
    Case("a longer draft pays where drafts are cheap", ([0.9, 0.9, 0.9, 0.9], 0.05, 1.0), 4),
    Case("a bad place early is worse than a bad place late", ([0.2, 0.9, 0.9], 0.1, 1.0), 3),
    Case("of equal speeds the shortest: 1.5 / 1.5", ([0.5], 0.5, 1.0), 0),
    Case("a longer draft may pay where a shorter one does not: 1.5 / 1.6, 2 / 1.7", ([0.5, 1.0], 0.1, 1.5), 2),
    ("stops at the first decline", "wide))", "wide))\n        if speeds[-1] <= speeds[-2] + 1e-9:\n            break",
     "whether the speed can fall and rise again"),
    ("the wide pass paid for every column", "+ wide", "+ (n + 1) * wide", "what `wide` counts"),
    ("the last rate for all drafts", "+= reach", "= 1 + n * rate", "how often the second draft counts"),
    ("one less than the best length", "next(n", "next(max(0, n - 1)", "what n counts: rates[0] belongs to n = 1"),
    ("one more than the best length", "next(n", "next(n + 1", "what n counts: without drafts it is 0"),
    ("the bonus token forgotten", "[1.0], 1.0", "[1.0], 0.0", "which token follows in any case"),
    ("the rates are added", "+= reach", "+= rate", "how often the second draft counts"),
    ("one mean rate for all places", "*= rate", "*= sum(rates) / len(rates)", "the rates: every place has its own"),
    ("only rounds in which all are accepted", "+=", "= 1 + n *", "what a round with some accepted drafts gives"),
    ("the cost of the drafts is missing", "n * cost + ", "", "what a round costs"),
    ("the wide pass costs 1", "+ wide", "+ 1", "what the target's pass over many columns costs"),
    ("the target's pass is missing", " + wide", "", "what a round costs"),
    ("plain decoding pays the wide pass", "[1.0]", "[1 / wide]", "length 0: its speed is 1 by definition"),
    ("plain decoding is left out", "[1.0]", "[-1.0]", "length 0: it is a choice, too"),
    ("the longest of equal speeds", "next(n", "max(n", "what to do with equal speeds"),
], sure=True)

OFF = "count what each cache holds: the target read every draft, the draft model never read its own last one"
check_rewind = Part(5, my_rewind, [
    _rewind("after a rejection both caches end in the last accepted draft", [5, 6, 7], 1, (2, 1, [8])),
    _rewind("all rejected: both caches end in the last token of the old text", [5, 6, 7], 0, (3, 2, [8])),
    _rewind("the last one rejected: the draft never read it", [5, 6, 7], 2, (1, 0, [8])),
    _rewind("all accepted: the draft has not read its own last token", [5, 6, 7], 3, (0, 0, [7, 8])),
    _rewind("a draft of one token, rejected", [5], 0, (1, 0, [8])),
    _rewind("a draft of one token, accepted", [5], 1, (0, 0, [5, 8])),
    ("off by one: the draft's cache like the target's", "max(0, gone - 1)", "gone", OFF),
    ("off by one: the target's cache like the draft's", "return gone", "return max(0, gone - 1)", OFF),
    ("off by one: one token too many dropped", "gone, max(0, gone - 1)", "gone + 1, gone", OFF),
    ("the draft's own last token forgotten", "drafted[-1], ", "", "what the draft has not read when all are accepted"),
    ("a negative number of tokens dropped", "max(0, gone - 1)", "gone - 1", "the draft's cache when all are accepted"),
    ("what is accepted is dropped", "gone, max(0, gone - 1), reads", "accepted, max(0, accepted - 1), [next_token]",
     "which tokens leave the caches"),
    ("everything is dropped", (" - accepted", "[next_token] if"), ("", "[*drafted[:accepted], next_token] if"),
     "which entries are still right"),
])

E0, A0 = tensor([[0.05, 0.35, 0.60], [0.01, 0.10, 0.89]]).log()
E, A, E2, A2 = tensor([[0.60, 0.35, 0.05], [0.80, 0.05, 0.15], [0.20, 0.20, 0.60], [0.05, 0.25, 0.70]]).log()
RIGHT_P, RIGHT_P2 = tensor([0.0967742, 0.9032258, 0.0]), tensor([0.7070706, 0.1414141, 0.1515152])
RIGHT_Q = A.exp()
MASK, OF_BOTH = "expert_logits >= expert_logits.max", "((x / temperature).softmax(-1) for x in both)"
OF_AMATEUR, FILLED = MASK.replace("expert", "amateur"), ".masked_fill(~keep, -math.inf)"
check_distributions = Part(6, my_distributions, [
    Case("p is the contrast where it is plausible, q the amateur", (E, A, 0.1, 1.0, 1.0), (RIGHT_P, RIGHT_Q)),
    Case("a constant added to a model's logits changes nothing", (E + 2, A - 1, 0.1, 1.0, 1.0), (RIGHT_P, RIGHT_Q)),
    Case("the temperature divides the finished scores, and the amateur's logits for q", (E, A, 0.1, 1.0, 2.0),
         (tensor([0.2466061, 0.7533939, 0.0]), tensor([0.5941725, 0.1485431, 0.2572843]))),
    Case("the strength weighs the amateur in p, never in q", (E, A, 0.1, 0.5, 1.0), (tensor([0.3, 0.7, 0.0]), RIGHT_Q)),
    Case("alpha sets the threshold", (E, A, 0.9, 1.0, 1.0), (tensor([1.0, 0.0, 0.0]), RIGHT_Q)),
    Case("temperature 0: both are one-hot", (E0, A0, 0.1, 1.0, 0.0), (torch.eye(3)[1], torch.eye(3)[2])),
    Case("a token far below the best keeps its log-probability", (tensor([1.0, 0.0]), tensor([0.0, -200.0]), 0.1, 1.0,
         1.0), (tensor([0.0, 1.0]), tensor([1.0, 0.0]))),
    Case("every row by itself", (rows(E, E2), rows(A, A2), 0.1, 1.0, 1.0),
         (rows(RIGHT_P, RIGHT_P2), rows(RIGHT_Q, A2.exp()))),
    ("q and p in the wrong order", "p, q\n", "q, p\n", "the order of the two results: the target's p comes first"),
    ("the expert as the target", " - strength * amateur_logits.log_softmax(-1)", "", "what the target is"),
    ("the mask on the amateur", MASK, OF_AMATEUR, "who says what is plausible: the expert"),
    ("the mask is missing", FILLED, "", "tokens that the expert rules out"),
    ("the mask after the softmax", (FILLED, "return p"), ("", "return p * keep"), "the sum of p"),
    ("masked tokens get the score 0", "-math.inf", "0.0", "the score of a token that is out: it should never be drawn"),
    ("the strength is ignored", "strength * ", "", "where `strength` is used"),
    ("expert and amateur exchanged", (MASK, "expert_logits.log_softmax(-1) - strength * amateur"),
     (OF_AMATEUR, "amateur_logits.log_softmax(-1) - strength * expert"), "which of the two is subtracted"),
    PROBABILITIES, ROUNDED,
    ("the mask on tempered logits", "math.log(alpha)", "math.log(alpha) * (temperature or 1)", "what the mask reads"),
    ("q without the temperature", OF_BOTH, "(both[0] / temperature).softmax(-1), both[1].softmax(-1)",
     "what the token was drawn from"),
    ("p without the temperature", OF_BOTH, "both[0].softmax(-1), (both[1] / temperature).softmax(-1)",
     "what the text should follow"),
    ("q is the contrast", "in both", "in both[:1] * 2", "who drafts: the amateur, alone"),
    ("dividing by temperature zero", "temperature == 0", "False", "temperature 0: what the scores become"),
    (OTHER, "return p, q", "return p, q if temperature else amateur_logits.softmax(-1)", "q at temperature 0"),
])
