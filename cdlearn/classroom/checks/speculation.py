"""Checks of assignment 05: rule and drafts (`drafts.py`), rounds and lengths (`verify.py`), rewinding, contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.drafts import check_draft, check_rule
from cdlearn.classroom.checks.verify import check_length, check_verify

__all__ = ["Case", "check_draft", "check_laws", "check_length", "check_rewind", "check_rule", "check_verify"]

# ---- part 5: my_rewind(drafted, accepted, next_token) -> (target_drops, draft_drops, draft_reads)

_CACHES = "the target's cache ends in [.., last, 5, 6, 7], the draft's in [.., last, 5, 6]. "


def _rewind_case(says: str, drafted: list[int], accepted: int, expected: tuple) -> Case:
    example = f"{_CACHES if drafted == [5, 6, 7] else ''}my_rewind({drafted}, {accepted}, 8)"
    return Case(says, (drafted, accepted, 8), expected, {}, example)


REWIND = [
    _rewind_case("after a rejection both caches end in the last draft that stands", [5, 6, 7], 1, (2, 1, [8])),
    _rewind_case("all rejected: both caches end in the last token of the old text", [5, 6, 7], 0, (3, 2, [8])),
    _rewind_case("the last one rejected: the draft never read it", [5, 6, 7], 2, (1, 0, [8])),
    _rewind_case("all stand: the draft has not read its own last token", [5, 6, 7], 3, (0, 0, [7, 8])),
    _rewind_case("a draft of one token, rejected", [5], 0, (1, 0, [8])),
    _rewind_case("a draft of one token that stands", [5], 1, (0, 0, [5, 8])),
]


def _back(target: int = 0, draft: int = 0, own: bool = True, floor: bool = True) -> Callable:
    """A rewind with one thing wrong."""

    def gives(drafted, accepted, token):
        left = len(drafted) - accepted
        drops = left - 1 + draft
        reads = [drafted[-1], token] if left == 0 and own else [token]
        return max(0, left + target), max(0, drops) if floor else drops, reads

    return gives


_OFF = "count what each cache holds: the target read every draft, the draft model never read its own last one"
REWIND_MISTAKES = [
    Mistake("off by one: the draft's cache like the target's", _back(draft=1), _OFF),
    Mistake("off by one: the target's cache like the draft's", _back(target=-1), _OFF),
    Mistake("off by one: one token too many dropped", _back(target=1, draft=1), _OFF),
    Mistake("the draft's own last token forgotten", _back(own=False), "what the draft has not read when all stand"),
    Mistake("a negative number of tokens dropped", _back(floor=False), "the draft's cache when all stand"),
    Mistake(
        "what stands is dropped",
        lambda drafted, accepted, token: (accepted, max(0, accepted - 1), [token]),
        "which tokens leave the caches: those that do not stand",
    ),
    Mistake(
        "everything is dropped",
        lambda drafted, accepted, token: (len(drafted), len(drafted) - 1, [*drafted[:accepted], token]),
        "drafts that stand: their entries in the caches are right",
    ),
]


def check_rewind(function: Callable, *, cases: Sequence[Case] = REWIND) -> Result:
    """Check part 5 of assignment 05: what leaves the caches after a round, and what the draft reads next."""
    return run_check("my_rewind", function, cases, REWIND_MISTAKES)


# ---- part 6: my_laws(expert_logits, amateur_logits, alpha, strength, temperature) -> (p, q), [..., V] each

_E, _A = torch.tensor([0.60, 0.35, 0.05]).log(), torch.tensor([0.80, 0.05, 0.15]).log()
_E2, _A2 = torch.tensor([0.20, 0.20, 0.60]).log(), torch.tensor([0.05, 0.25, 0.70]).log()
_P1, _Q1 = torch.tensor([0.0967742, 0.9032258, 0.0]), torch.tensor([0.80, 0.05, 0.15])
_P2, _Q2 = torch.tensor([0.7070706, 0.1414141, 0.1515152]), torch.tensor([0.05, 0.25, 0.70])

LAWS = [
    Case(
        "p is the contrast's law where the expert finds it plausible, q the amateur's",
        (_E, _A, 0.1, 1.0, 1.0),
        (_P1, _Q1),
    ),
    Case("a constant added to a model's logits changes nothing", (_E + 2, _A - 1, 0.1, 1.0, 1.0), (_P1, _Q1)),
    Case(
        "the temperature divides the finished scores, and the amateur's logits for q",
        (_E, _A, 0.1, 1.0, 2.0),
        (torch.tensor([0.2466061, 0.7533939, 0.0]), torch.tensor([0.5941725, 0.1485431, 0.2572843])),
    ),
    Case(
        "the strength weighs the amateur in p, never in q",
        (_E, _A, 0.1, 0.5, 1.0),
        (torch.tensor([0.3, 0.7, 0.0]), _Q1),
    ),
    Case("alpha sets the line", (_E, _A, 0.9, 1.0, 1.0), (torch.tensor([1.0, 0.0, 0.0]), _Q1)),
    Case("temperature 0: both laws know one token", (_E, _A, 0.1, 1.0, 0.0), (torch.eye(3)[1], torch.eye(3)[0])),
    Case(
        "every row by itself",
        (torch.stack([_E, _E2]), torch.stack([_A, _A2]), 0.1, 1.0, 1.0),
        (torch.stack([_P1, _P2]), torch.stack([_Q1, _Q2])),
    ),
]


def _law(logits: Tensor, temperature: float, cold: bool = True) -> Tensor:
    if temperature == 0 and cold:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits / temperature).softmax(-1)


def _wrong_laws(
    *,
    judge: str = "expert",
    after: bool = False,
    fill: float = -math.inf,
    contrast: bool = True,
    weigh: bool = True,
    swap: bool = False,
    probabilities: bool = False,
    heat: Sequence[bool] = (True, True),
    warm_mask: bool = False,
    cold: Sequence[bool] = (True, True),
    draft: str = "amateur",
) -> Callable:
    """Both laws with one thing wrong, for the mistakes below."""

    def gives(expert, amateur, alpha, strength, temperature):
        e, a = (amateur, expert) if swap else (expert, amateur)
        log = (lambda x: x.softmax(-1)) if probabilities else (lambda x: x.log_softmax(-1))
        scores = log(e) - (strength if weigh else 1.0) * log(a) if contrast else log(e)
        judged = {"expert": e, "amateur": a, "nobody": torch.zeros_like(e)}[judge]
        judged = judged / temperature if warm_mask and temperature else judged
        keep = judged >= judged.max(-1, keepdim=True).values + math.log(alpha)
        masked = scores if after else scores.masked_fill(~keep, fill)
        outer = (temperature if heat[0] else 1.0) if temperature else 0.0
        p = _law(masked, outer, cold[0])
        p = p.masked_fill(~keep, 0.0) if after else p
        q_logits = amateur if draft == "amateur" else masked
        return p, _law(q_logits, (temperature if heat[1] else 1.0) if temperature else 0.0, cold[1])

    return gives


LAWS_MISTAKES = [
    Mistake(
        "q and p in the wrong order",
        lambda *args: _wrong_laws()(*args)[::-1],
        "the order of the two results: the target's law p comes first",
    ),
    Mistake(
        "the expert's law as the target", _wrong_laws(contrast=False), "p: the target is the contrast, not the expert"
    ),
    Mistake("the mask on the amateur", _wrong_laws(judge="amateur"), "who says what is plausible: the expert"),
    Mistake("the mask is missing", _wrong_laws(judge="nobody"), "tokens that the expert rules out"),
    Mistake("the mask after the softmax", _wrong_laws(after=True), "the order: p should sum to 1 over what is kept"),
    Mistake(
        "masked tokens get the score 0",
        _wrong_laws(fill=0.0),
        "the score of a token that is out: it should never be drawn",
    ),
    Mistake("the strength is ignored", _wrong_laws(weigh=False), "where `strength` is used"),
    Mistake("expert and amateur exchanged", _wrong_laws(swap=True), "which of the two is subtracted"),
    Mistake(
        "probabilities where log-probabilities belong",
        _wrong_laws(probabilities=True),
        "the two terms: are they probabilities or their logarithms?",
    ),
    Mistake(
        "the mask on tempered logits",
        _wrong_laws(warm_mask=True),
        "what the mask reads: the expert's logits before any temperature",
    ),
    Mistake(
        "q without the temperature", _wrong_laws(heat=(True, False)), "q: the law that the draft is really drawn from"
    ),
    Mistake("p without the temperature", _wrong_laws(heat=(False, True)), "p: the law that the text should follow"),
    Mistake("q is the contrast", _wrong_laws(draft="contrast"), "who drafts: the amateur, alone"),
    Mistake("dividing by temperature zero", _wrong_laws(cold=(False, False)), "temperature 0: what the scores become"),
    Mistake(
        "argmax draft with q of another law",
        lambda e, a, alpha, s, t: _soft_draft(e, a, alpha, s, t),
        "q at temperature 0",
    ),
]


def _soft_draft(expert: Tensor, amateur: Tensor, alpha: float, strength: float, temperature: float) -> tuple:
    p, q = _wrong_laws()(expert, amateur, alpha, strength, temperature)
    return p, amateur.softmax(-1) if temperature == 0 else q


def check_laws(function: Callable, *, cases: Sequence[Case] = LAWS) -> Result:
    """Check part 6 of assignment 05: the laws of speculative contrastive decoding."""
    return run_check("my_laws", function, cases, LAWS_MISTAKES)
