"""Checks of assignment 03: scores (`contrast.py`), laws (`laws.py`), the logit form and its translation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from cdlearn.classroom.checks.contrast import EARLIER, check_candidates, check_contrast, plausible
from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.laws import check_law, check_nucleus

__all__ = [
    "Case",
    "check_candidates",
    "check_contrast",
    "check_law",
    "check_logit_form",
    "check_nucleus",
    "check_translation",
]

# ---- part 5: my_logit_form(expert_logits, amateur_logits, *, alpha=0.1, beta=0.5) -> [..., V]

_RAW_E, _RAW_A = torch.tensor([5.0, 4.4, 3.0, 1.6]), torch.tensor([6.0, 2.8, 2.8, 4.2])
_OUT = -math.inf
_FORM = torch.tensor([4.5, 5.2, 3.1, _OUT])

FORM = [
    Case("(1 + beta) s_E - beta s_A where plausible, -inf elsewhere", (_RAW_E, _RAW_A), _FORM),
    Case("beta 0 is the expert, masked", (_RAW_E, _RAW_A), torch.tensor([5.0, 4.4, 3.0, _OUT]), {"beta": 0.0}),
    Case("beta 1", (_RAW_E, _RAW_A), torch.tensor([4.0, 6.0, 3.2, _OUT]), {"beta": 1.0}),
    Case("alpha sets the line", (_RAW_E, _RAW_A), torch.tensor([4.5, 5.2, _OUT, _OUT]), {"alpha": 0.5}),
    Case(
        "every row by itself",
        (torch.stack([_RAW_E, _RAW_E - 4]), torch.stack([_RAW_A, _RAW_A])),
        torch.stack([_FORM, _FORM - 6]),
    ),
]


def _form(mix: Callable, judge: Callable = lambda e, a, out: e, fill: float = -math.inf) -> Callable:
    """A logit form made of how the two are mixed, and whose numbers decide who is plausible."""

    def form(expert_logits, amateur_logits, *, alpha=0.1, beta=0.5):
        out = mix(expert_logits, amateur_logits, beta)
        return out.masked_fill(~plausible(judge(expert_logits, amateur_logits, out), alpha), fill)

    return form


def _mix(e, a, beta):
    return (1 + beta) * e - beta * a


def _steep(e, a, *, alpha=0.1, beta=0.5):
    return _mix(e, a, beta).masked_fill(~plausible((1 + beta) * e, alpha), -math.inf)


FORM_MISTAKES = [
    Mistake("the expert without its factor", _form(lambda e, a, b: e - b * a), "the factor of the expert: 1 + beta"),
    Mistake("the difference alone", _form(lambda e, a, b: b * (e - a)), "where the walk starts: at the expert"),
    Mistake("the amateur is added", _form(lambda e, a, b: (1 + b) * e + b * a), "the sign of the second term"),
    Mistake("expert and amateur exchanged", _form(lambda e, a, b: _mix(a, e, b)), "which of the two has 1 + beta"),
    Mistake("beta is ignored", _form(lambda e, a, b: _mix(e, a, 0.5)), "where `beta` is used"),
    Mistake(
        "log-probabilities where raw logits are asked for",
        _form(lambda e, a, b: _mix(e.log_softmax(-1), a.log_softmax(-1), b)),
        "whether a softmax is needed: this form takes the logits as they are",
    ),
    Mistake("the mask on the amateur", _form(_mix, lambda e, a, out: a), "whose logits the mask reads"),
    Mistake("the mask on the mixed logits", _form(_mix, lambda e, a, out: out), "whose logits the mask reads"),
    Mistake("the mask on the expert times 1 + beta", _steep, "what the mask reads: the expert's logits as they came"),
    Mistake("masked tokens get 0", _form(_mix, fill=0.0), "the value of who is out: 0 is not low"),
    Mistake("the mask is missing", lambda e, a, *, alpha=0.1, beta=0.5: _mix(e, a, beta), "what the absurd tokens get"),
]


def check_logit_form(function: Callable, *, cases: Sequence[Case] = FORM) -> Result:
    """Check part 5 of assignment 03: the contrast on raw logits with beta."""
    return run_check("my_logit_form", function, cases, FORM_MISTAKES, earlier=EARLIER)


# ---- part 6: my_translation(beta, temperature=1.0) -> (strength, temperature of the strength form)

TRANSLATION = [
    Case("beta 0 is strength 0, the temperature stays", (0.0,), (0.0, 1.0)),
    Case("beta 1 is strength 1/2; the logit form is twice as steep", (1.0,), (0.5, 0.5)),
    Case("beta 3", (3.0,), (0.75, 0.25)),
    Case("both are sampled at another temperature", (1.0,), (0.5, 1.0), {"temperature": 2.0}),
    Case("greedy stays greedy", (1.0,), (0.5, 0.0), {"temperature": 0.0}),
]

TRANSLATION_MISTAKES = [
    Mistake(
        "beta taken for the strength",
        lambda b, temperature=1.0: (b, temperature / (1 + b)),
        "the logit form divided by 1 + beta: what is then the amateur's factor?",
    ),
    Mistake(
        "the temperature is not translated",
        lambda b, temperature=1.0: (b / (1 + b), temperature),
        "the stretch: dividing scores by 1 + beta makes a law flatter",
    ),
    Mistake(
        "beta taken as it is",
        lambda b, temperature=1.0: (b, temperature),
        "the logit form divided by 1 + beta: what is then the amateur's factor?",
    ),
    Mistake(
        "the temperature in the wrong direction",
        lambda b, temperature=1.0: (b / (1 + b), temperature * (1 + b)),
        "which of the two forms is steeper, and what a temperature below 1 does",
    ),
    Mistake(
        "the expert's share for the amateur's",
        lambda b, temperature=1.0: (1 / (1 + b), temperature / (1 + b)),
        "the strength at beta 0: the amateur has no say there",
    ),
    Mistake(
        "the temperature is ignored",
        lambda b, temperature=1.0: (b / (1 + b), 1 / (1 + b)),
        "where `temperature` is used",
    ),
]


def check_translation(function: Callable, *, cases: Sequence[Case] = TRANSLATION) -> Result:
    """Check part 6 of assignment 03: the strength form that draws as a logit form does."""
    return run_check("my_translation", function, cases, TRANSLATION_MISTAKES)
