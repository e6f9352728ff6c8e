"""Checks of assignment 05: rule, drafts and rounds (`drafts.py`); here lengths, rewinding, the contrast."""

from __future__ import annotations

import math

import torch
from torch import tensor

from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.drafts import check_draft, check_rule, check_verify

__all__ = ["Case", "check_draft", "check_laws", "check_length", "check_rewind", "check_rule", "check_verify"]


def my_length(rates, cost, wide):
    """rates: list of chances. cost: of a draft step. wide: of the target's pass in all. Returns the best length."""
    speeds, tokens, reach = [1.0], 1.0, 1.0
    for n, rate in enumerate(rates, start=1):
        reach *= rate
        tokens += reach
        speeds.append(tokens / (n * cost + wide))
    best = max(speeds) - 1e-9
    return next(n for n, speed in enumerate(speeds) if speed >= best)


# fmt: off
_COST, _SPEED = "n * cost + wide", "speeds.append(tokens / (n * cost + wide))"

check_length = Part(4, my_length, [
    Case("tokens of a round over its cost: 1.9 / 1.3 beats 1 and 2.08 / 1.6", ([0.9, 0.2], 0.3, 1.0), 1),
    Case("a draft counts only if all before it stand: 2.12 / 1.5 loses to 1.8 / 1.25", ([0.8, 0.4], 0.25, 1.0), 1),
    Case("0 drafts are plain decoding: speed 1, here better than 1.4 / 1.7", ([0.4, 0.4], 0.3, 1.4), 0),
    Case("the bonus belongs to every round: 1.5 / 1.4, 1.75 / 1.6, 1.875 / 1.8", ([0.5, 0.5, 0.5], 0.2, 1.2), 2),
    Case("a longer draft pays where drafts are cheap", ([0.9, 0.9, 0.9, 0.9], 0.05, 1.0), 4),
    Case("a bad place early is worse than a bad place late", ([0.2, 0.9, 0.9], 0.1, 1.0), 3),
    Case("of equal speeds the shortest: 1.5 / 1.5", ([0.5], 0.5, 1.0), 0),
    Case("a longer draft may pay where a shorter one does not: 1.5 / 1.6, 2 / 1.7", ([0.5, 1.0], 0.1, 1.5), 2),
], [
    ("stops at the first decline", _SPEED, f"{_SPEED}\n        if speeds[-1] <= speeds[-2] + 1e-9:\n            break",
     "when to stop looking: the speed may fall and then rise above its old best"),
    ("the wide pass paid for every column", _COST, "n * cost + (n + 1) * wide",
     "what `wide` is: the whole pass over all columns"),
    ("the last rate for all drafts", "tokens += reach", "tokens = 1 + n * rate",
     "how often a draft counts: all before it must stand too, each with a rate of its own"),
    ("one less than the best length", "next(n", "next(max(0, n - 1)", "what n counts: rates[0] belongs to n = 1"),
    ("one more than the best length", "next(n", "next(n + 1", "what n counts: without drafts it is 0"),
    ("the bonus token forgotten", "[1.0], 1.0", "[1.0], 0.0", "the tokens of a round: 1 follows in any case"),
    ("the rates are added", "tokens += reach", "tokens += rate",
     "how often the second draft counts: the first must stand too"),
    ("one mean rate for all places", "reach *= rate", "reach *= sum(rates) / len(rates)",
     "the rates: every place has its own"),
    ("only rounds in which all stand", "tokens += reach", "tokens = 1 + n * reach",
     "rounds in which some drafts stand: they give tokens too"),
    ("the cost of the drafts is missing", _COST, "wide", "what a round costs: drafts that are dropped too"),
    ("the wide pass costs 1", _COST, "n * cost + 1", "what the target's pass over many columns costs"),
    ("the target's pass is missing", _COST, "n * cost", "what a round costs: drafts and one pass"),
    ("plain decoding pays the wide pass", "[1.0]", "[1 / wide]", "length 0: its speed is 1 by definition"),
    ("plain decoding is left out", "[1.0]", "[-1.0]", "length 0: it is a choice, too"),
    ("the longest of equal speeds", "next(n", "max(n", "what to do with equal speeds"),
], sure=True)
# fmt: on


def my_rewind(drafted, accepted, next_token):
    """drafted: list of ids. accepted: 0 to len(drafted). Returns (target_drops, draft_drops, draft_reads)."""
    gone = len(drafted) - accepted
    reads = [next_token] if gone else [drafted[-1], next_token]
    return gone, max(0, gone - 1), reads


def _rewind(says: str, drafted: list[int], accepted: int, expected: tuple) -> Case:
    caches = "the target's cache ends in [.., last, 5, 6, 7], the draft's in [.., last, 5, 6]. "
    example = f"{caches if drafted == [5, 6, 7] else ''}my_rewind({drafted}, {accepted}, 8)"
    return Case(says, (drafted, accepted, 8), expected, {}, example)


# fmt: off
_OFF = "count what each cache holds: the target read every draft, the draft model never read its own last one"

check_rewind = Part(5, my_rewind, [
    _rewind("after a rejection both caches end in the last draft that stands", [5, 6, 7], 1, (2, 1, [8])),
    _rewind("all rejected: both caches end in the last token of the old text", [5, 6, 7], 0, (3, 2, [8])),
    _rewind("the last one rejected: the draft never read it", [5, 6, 7], 2, (1, 0, [8])),
    _rewind("all stand: the draft has not read its own last token", [5, 6, 7], 3, (0, 0, [7, 8])),
    _rewind("a draft of one token, rejected", [5], 0, (1, 0, [8])),
    _rewind("a draft of one token that stands", [5], 1, (0, 0, [5, 8])),
], [
    ("off by one: the draft's cache like the target's", "max(0, gone - 1)", "gone", _OFF),
    ("off by one: the target's cache like the draft's", "return gone", "return max(0, gone - 1)", _OFF),
    ("off by one: one token too many dropped", "gone, max(0, gone - 1)", "gone + 1, gone", _OFF),
    ("the draft's own last token forgotten", "[drafted[-1], next_token]", "[next_token]",
     "what the draft has not read when all stand"),
    ("a negative number of tokens dropped", "max(0, gone - 1)", "gone - 1", "the draft's cache when all stand"),
    ("what stands is dropped", "gone, max(0, gone - 1), reads", "accepted, max(0, accepted - 1), [next_token]",
     "which tokens leave the caches: those that do not stand"),
    ("everything is dropped", "gone, max(0, gone - 1), reads",
     "len(drafted), len(drafted) - 1, [*drafted[:accepted], next_token]",
     "drafts that stand: their entries in the caches are right"),
])
# fmt: on


def my_laws(expert_logits, amateur_logits, alpha, strength, temperature):
    """expert_logits, amateur_logits: [..., V] float. Returns (p, q), the two laws, [..., V] each."""
    keep = expert_logits >= expert_logits.max(-1, keepdim=True).values + math.log(alpha)
    scores = expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)
    both = scores.masked_fill(~keep, -math.inf), amateur_logits
    if temperature == 0:
        p, q = (torch.nn.functional.one_hot(x.argmax(-1), x.shape[-1]).float() for x in both)
    else:
        p, q = ((x / temperature).softmax(-1) for x in both)
    return p, q


# fmt: off
_E, _A = tensor([0.60, 0.35, 0.05]).log(), tensor([0.80, 0.05, 0.15]).log()
_E2, _A2 = tensor([0.20, 0.20, 0.60]).log(), tensor([0.05, 0.25, 0.70]).log()
_P1, _Q1 = tensor([0.0967742, 0.9032258, 0.0]), tensor([0.80, 0.05, 0.15])
_P2, _Q2 = tensor([0.7070706, 0.1414141, 0.1515152]), tensor([0.05, 0.25, 0.70])
_MASKED, _MASK = "scores.masked_fill(~keep, -math.inf)", "expert_logits >= expert_logits.max"
_AMATEUR, _OF_BOTH = "amateur_logits >= amateur_logits.max", "((x / temperature).softmax(-1) for x in both)"
_SCORES = "expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)"
_TURNED = "amateur_logits.log_softmax(-1) - strength * expert_logits.log_softmax(-1)"

check_laws = Part(6, my_laws, [
    Case("p is the contrast's law where the expert finds it plausible, q the amateur's",
         (_E, _A, 0.1, 1.0, 1.0), (_P1, _Q1)),
    Case("a constant added to a model's logits changes nothing", (_E + 2, _A - 1, 0.1, 1.0, 1.0), (_P1, _Q1)),
    Case("the temperature divides the finished scores, and the amateur's logits for q", (_E, _A, 0.1, 1.0, 2.0),
         (tensor([0.2466061, 0.7533939, 0.0]), tensor([0.5941725, 0.1485431, 0.2572843]))),
    Case("the strength weighs the amateur in p, never in q", (_E, _A, 0.1, 0.5, 1.0), (tensor([0.3, 0.7, 0.0]), _Q1)),
    Case("alpha sets the line", (_E, _A, 0.9, 1.0, 1.0), (tensor([1.0, 0.0, 0.0]), _Q1)),
    Case("temperature 0: both laws know one token", (_E, _A, 0.1, 1.0, 0.0), (torch.eye(3)[1], torch.eye(3)[0])),
    Case("every row by itself", (torch.stack([_E, _E2]), torch.stack([_A, _A2]), 0.1, 1.0, 1.0),
         (torch.stack([_P1, _P2]), torch.stack([_Q1, _Q2]))),
], [
    ("q and p in the wrong order", "return p, q", "return q, p",
     "the order of the two results: the target's law p comes first"),
    ("the expert's law as the target", _SCORES, "expert_logits.log_softmax(-1)",
     "p: the target is the contrast, not the expert"),
    ("the mask on the amateur", _MASK, _AMATEUR, "who says what is plausible: the expert"),
    ("the mask is missing", _MASKED, "scores", "tokens that the expert rules out"),
    ("the mask after the softmax", (_MASKED, "return p"), ("scores", "return p * keep"),
     "the order: p should sum to 1 over what is kept"),
    ("masked tokens get the score 0", "-math.inf", "0.0",
     "the score of a token that is out: it should never be drawn"),
    ("the strength is ignored", "strength * ", "", "where `strength` is used"),
    ("expert and amateur exchanged", (_MASK, _SCORES), (_AMATEUR, _TURNED), "which of the two is subtracted"),
    ("probabilities where log-probabilities belong", "log_softmax", "softmax",
     "the two terms: are they probabilities or their logarithms?"),
    ("the mask on tempered logits", "math.log(alpha)", "math.log(alpha) * (temperature or 1)",
     "what the mask reads: the expert's logits before any temperature"),
    ("q without the temperature", _OF_BOTH, "(both[0] / temperature).softmax(-1), both[1].softmax(-1)",
     "q: the law that the draft is really drawn from"),
    ("p without the temperature", _OF_BOTH, "both[0].softmax(-1), (both[1] / temperature).softmax(-1)",
     "p: the law that the text should follow"),
    ("q is the contrast", "in both", "in both[:1] * 2", "who drafts: the amateur, alone"),
    ("dividing by temperature zero", "temperature == 0", "False", "temperature 0: what the scores become"),
    ("argmax draft with q of another law", "return p, q", "return p, q if temperature else amateur_logits.softmax(-1)",
     "q at temperature 0"),
])
# fmt: on
