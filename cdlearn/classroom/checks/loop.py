"""Checks of assignment 01: one step (from `step.py`), the loop, where two texts part, and what the contrast changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.models import ScriptLM, SumLM, TableLM
from cdlearn.classroom.checks.step import check_mask, check_scores, check_step

__all__ = [
    "Case",
    "check_decisions",
    "check_first_difference",
    "check_loop",
    "check_mask",
    "check_scores",
    "check_step",
]

# ---- part 4: my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0) -> (new ids, reason)

_EARLIER = {"my_scores": (1, check_scores), "my_mask": (2, check_mask), "my_step": (3, check_step)}

# The expert prefers the sum of all ids (modulo 8), then the sum plus 1; the amateur knows only the first of the two,
# and finds the sum plus 2 absurd. So a contrastive step says the sum plus 1, and token 0 ends the text.
_EXPERT, _AMATEUR = SumLM(8, {0: 4.0, 1: 3.0}), SumLM(8, {0: 4.0, 2: -6.0, 3: 1.0})
_TOY = (
    "with s the sum of all ids so far modulo 8, the expert's logits are 4 for s, 3 for s + 1, and 0; the amateur's "
    "4 for s, -6 for s + 2, 1 for s + 3, and 0; eos_id=0. "
)


def _loop_case(says: str, ids: list[int], max_new_tokens: int, expected: tuple, **options: Any) -> Case:
    settings = {"eos_id": 0, "max_new_tokens": max_new_tokens} | options
    extra = "".join(f", {key}={value}" for key, value in options.items())
    example = f"{_TOY}my_loop(expert, amateur, [{ids}], max_new_tokens={max_new_tokens}{extra})"
    return Case(says, (_EXPERT, _AMATEUR, torch.tensor([ids])), expected, settings, example)


LOOP = [
    _loop_case("one step: the last position's logits of both models choose the token", [3, 5], 1, ([1], "length")),
    _loop_case("the next step reads everything so far, the new token too", [3, 5], 2, ([1, 2], "length")),
    _loop_case("at most max_new_tokens new tokens, whatever the prompt's length", [3, 5], 3, ([1, 2, 4], "length")),
    _loop_case("the end-of-text token ends the loop and stays out of the result", [3, 5], 9, ([1, 2, 4], "eos")),
    _loop_case("an end-of-text token at once gives no tokens", [3, 4], 9, ([], "eos")),
    _loop_case("with max_new_tokens=0 there is nothing to do", [3, 5], 0, ([], "length")),
    _loop_case("with strength 0 it is greedy decoding of the expert", [3, 6], 3, ([1, 2, 4], "length"), strength=0.0),
    _loop_case("alpha sets the line: 0.01 lets s + 2 in, e^-4 of the best", [3, 5], 1, ([2], "length"), alpha=0.01),
]


def _wrong_loop(
    *,
    column: int = -1,
    mask: bool = True,
    whole: bool = True,
    amateur_reads_on: bool = True,
    keep_eos: bool = False,
    stops: bool = True,
    limit: Callable = lambda prompt, most: most,
    weigh: Callable = lambda strength: strength,
    line: Callable = lambda alpha: alpha,
    grows: bool = True,
    swap: bool = False,
) -> Callable:
    """A loop with one thing wrong, for the mistakes below."""

    def loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
        new, prompt = [], ids
        for _ in range(limit(ids.shape[1], max_new_tokens)):
            e = expert(ids if whole else ids[:, -1:]).logits[0, column]
            a = amateur((ids if whole else ids[:, -1:]) if amateur_reads_on else prompt).logits[0, column]
            e, a = (a, e) if swap else (e, a)
            scores = e.log_softmax(-1) - weigh(strength) * a.log_softmax(-1)
            if mask:
                scores = scores.masked_fill(e < e.max() + math.log(line(alpha)), -math.inf)
            token = int(scores.argmax())
            if token == eos_id and (keep_eos or stops):
                return new + [token] * keep_eos, "eos"
            new.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1) if grows else ids
        return new, "length"

    return loop


LOOP_MISTAKES = [
    Mistake("the expert alone", _wrong_loop(weigh=lambda s: 0.0), "where the amateur's logits are used"),
    Mistake("expert and amateur exchanged", _wrong_loop(swap=True), "the order of the arguments in each call"),
    Mistake("the strength is ignored", _wrong_loop(weigh=lambda s: 1.0), "whether `strength` reaches your step"),
    Mistake("alpha is ignored", _wrong_loop(line=lambda alpha: 0.1), "whether `alpha` reaches your step"),
    Mistake(
        "the new token is not added to what the models read",
        _wrong_loop(grows=False),
        "what `ids` is in the next step: the list of new tokens is not what the models read",
    ),
    Mistake("the mask is missing", _wrong_loop(mask=False), "what may win: only tokens the expert finds plausible"),
    Mistake(
        "logits of the first position", _wrong_loop(column=0), "the column of [1, T, V]: which one has read it all"
    ),
    Mistake(
        "only the last token is fed",
        _wrong_loop(whole=False),
        "what the models read: without a cache they need the whole prefix, every time",
    ),
    Mistake(
        "the amateur never reads the new tokens",
        _wrong_loop(amateur_reads_on=False),
        "what the amateur reads from the second step on",
    ),
    Mistake(
        "the end-of-text token in the result", _wrong_loop(keep_eos=True), "the order: test for the end, then append"
    ),
    Mistake("no stop at the end of the text", _wrong_loop(stops=False), "what happens when the token is eos_id"),
    Mistake(
        "the prompt counted as new tokens",
        _wrong_loop(limit=lambda prompt, most: max(0, most - prompt)),
        "what max_new_tokens counts: new tokens, not the row's length",
    ),
    Mistake("one token too many", _wrong_loop(limit=lambda prompt, most: most + 1), "how often the loop runs"),
    Mistake("one token too few", _wrong_loop(limit=lambda prompt, most: most - 1), "how often the loop runs"),
]


def check_loop(function: Callable, *, cases: Sequence[Case] = LOOP) -> Result:
    """Check part 4 of assignment 01: greedy contrastive decoding with its two ways to end."""
    column = {"converted to Scalar": "the column: `.logits` is [1, T, V], and one position of it is the next token's"}
    return run_check("my_loop", function, cases, LOOP_MISTAKES, earlier=_EARLIER, raised=column)


# ---- part 5: first_difference(a, b) -> position or None

FIRST = [
    Case("the position of the first token that differs, from 0", ([3, 1, 4], [3, 1, 5]), 2),
    Case("they may part at once", ([7, 1, 4], [3, 1, 4]), 0),
    Case("later differences do not count", ([3, 1, 4, 1], [3, 2, 4, 2]), 1),
    Case("a text that goes on differs where the other one ends", ([3, 1], [3, 1, 4]), 2),
    Case("equal texts differ nowhere: None", ([3, 1, 4], [3, 1, 4]), None),
    Case("two empty texts differ nowhere", ([], []), None),
]


def _differences(a: list[int], b: list[int]) -> list[int]:
    return [k for k, (x, y) in enumerate(zip(a, b)) if x != y]


FIRST_MISTAKES = [
    Mistake(
        "counted from 1",
        lambda a, b: next((k + 1 for k in _differences(a, b)), None),
        "where counting starts: the first position is 0",
    ),
    Mistake("the last difference", lambda a, b: max(_differences(a, b), default=None), "when to stop looking"),
    Mistake(
        "the shorter text hides the rest",
        lambda a, b: next(iter(_differences(a, b)), None),
        "zip: it ends with the shorter of the two",
    ),
    Mistake(
        "a length where nothing differs",
        lambda a, b: next(iter(_differences(a, b)), min(len(a), len(b))),
        "what equal texts should give",
    ),
    Mistake("the token, not its position", lambda a, b: next(a[k] for k in _differences(a, b)), "what is returned"),
    Mistake(
        "how many differ", lambda a, b: len(_differences(a, b)), "what is returned: a place, not a number of places"
    ),
]


def check_first_difference(function: Callable, *, cases: Sequence[Case] = FIRST) -> Result:
    """Check part 5 of assignment 01: where two lists of token ids part."""
    return run_check("first_difference", function, cases, FIRST_MISTAKES)


# ---- part 6: my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0) -> one word for every new token

_ROWS_E = torch.tensor([
    [0.40, 0.30, 0.20, 0.10],  # position 0: nobody asked
    [0.97, 0.01, 0.01, 0.01],  # after the prompt: the expert is sure
    [0.60, 0.30, 0.09, 0.01],  # three plausible, the amateur knows neither of the first two
    [0.60, 0.30, 0.05, 0.05],  # two plausible, the amateur knows the first
    [0.10, 0.10, 0.10, 0.70],  # after the last token: nothing follows
]).log()  # fmt: skip
_ROWS_A = torch.tensor([
    [0.10, 0.10, 0.70, 0.10],
    [0.90, 0.04, 0.03, 0.03],
    [0.20, 0.20, 0.599, 0.001],
    [0.90, 0.04, 0.03, 0.03],
    [0.25, 0.25, 0.25, 0.25],
]).log()  # fmt: skip
_THREE = ["sure", "agree", "overruled"]
_PATH = (
    "p_expert is [.97 .01 .01 .01] after the prompt, then [.60 .30 .09 .01], [.60 .30 .05 .05]; p_amateur is "
    "[.90 .04 .03 .03], [.2 .2 .599 .001], [.90 .04 .03 .03]. "
)


def _path_case(says: str, expected: list[str], **options: float) -> Case:
    ids, new = torch.tensor([[1, 2]]), [0, 1, 1]
    extra = "".join(f", {key}={value}" for key, value in options.items())
    example = f"{_PATH}my_decisions(expert, amateur, {ids.tolist()}, {new}{extra})"
    return Case(says, (ScriptLM(_ROWS_E), ScriptLM(_ROWS_A), ids, new), expected, options, example)


_TABLE = (
    "if the ids so far sum to 0 modulo 3, p_expert is [.97 .01 .01 .01] and p_amateur [.90 .04 .03 .03]; if to 1, "
    "[.60 .30 .09 .01] and [.2 .2 .599 .001]; if to 2, [.60 .30 .05 .05] and [.90 .04 .03 .03]. "
    "my_decisions(expert, amateur, [[1, 2]], [1, 1, 2])"
)
_TABLES = (TableLM(_ROWS_E[1:4].tolist()), TableLM(_ROWS_A[1:4].tolist()))
_READ = (*_TABLES, torch.tensor([[1, 2]]), [1, 1, 2])

DECISIONS = [
    _path_case('"sure", "agree" or "overruled" for every new token, read at the position before it', _THREE),
    _path_case("strength 0 overrules nobody", ["sure", "agree", "agree"], strength=0.0),
    _path_case("alpha decides who is sure", ["sure", "sure", "sure"], alpha=0.9),
    Case("the models read the given text, whatever the contrast would have written", _READ, _THREE, {}, _TABLE),
]


def _wrong_decisions(*, shift: int = 0, sure: bool = True, mask: bool = True, rival: str = "expert") -> Callable:
    """A list of decisions with one thing wrong, for the mistakes below."""

    def decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
        whole = torch.cat([ids, torch.tensor([new_ids], dtype=ids.dtype)], dim=1)
        start = ids.shape[1] - 1 + shift
        e, a = (model(whole).logits[0, start : start + len(new_ids)].log_softmax(-1) for model in (expert, amateur))
        keep = e >= e.max(-1, keepdim=True).values + math.log(alpha)
        choice = (e - strength * a).masked_fill(~keep & torch.tensor(mask), -math.inf).argmax(-1)
        best = (a if rival == "amateur" else e).argmax(-1)
        if rival == "path":
            choice = torch.tensor(new_ids)
        words = torch.where(choice == best, 1, 2).masked_fill((keep.sum(-1) == 1) & torch.tensor(sure), 0)
        return [_THREE[k] for k in words.tolist()]

    return decisions


def _own_text(expert, amateur, ids, new_ids, **options) -> list[str]:
    words = []
    for _ in new_ids:
        e, a = (model(ids).logits[0, -1].log_softmax(-1) for model in (expert, amateur))
        words += _wrong_decisions()(expert, amateur, ids, [0], **options)
        keep = e >= e.max() + math.log(options.get("alpha", 0.1))
        choice = (e - options.get("strength", 1.0) * a).masked_fill(~keep, -math.inf).argmax()
        ids = torch.cat([ids, choice[None, None]], dim=1)
    return words


DECISIONS_MISTAKES = [
    Mistake("its own text instead of the given one", _own_text, "what the models read: `new_ids`, not what was chosen"),
    Mistake(
        "one position too late",
        _wrong_decisions(shift=1),
        "the columns: the logits after position t are about the token at t + 1",
    ),
    Mistake("one position too early", _wrong_decisions(shift=-1), "the columns: the prompt's last one counts first"),
    Mistake("nobody is sure", _wrong_decisions(sure=False), "the steps where one token alone is plausible"),
    Mistake("the mask is missing", _wrong_decisions(mask=False), "which tokens the contrast may choose"),
    Mistake("compared with the amateur's best", _wrong_decisions(rival="amateur"), "whom the contrast can overrule"),
    Mistake(
        "the text's token for the contrast's", _wrong_decisions(rival="path"), "what the contrast would choose here"
    ),
]


def check_decisions(function: Callable, *, cases: Sequence[Case] = DECISIONS) -> Result:
    """Check part 6 of assignment 01: what the contrast did at every step of a given text."""
    return run_check("my_decisions", function, cases, DECISIONS_MISTAKES, earlier=_EARLIER)
