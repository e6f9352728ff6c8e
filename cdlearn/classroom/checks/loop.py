"""Checks of assignment 01: the loop, where two texts part, what the contrast changed (one step is in `step.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import tensor

from cdlearn.classroom.checks.core import Case, Mistake, Part
from cdlearn.classroom.checks.models import ScriptLM, SumLM, TableLM
from cdlearn.classroom.checks.step import check_mask, check_scores, check_step, my_mask, my_scores, my_step  # noqa: F401


def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    """ids: [1, T] int. Returns (new, reason): a list of token ids, and "eos" or "length"."""
    new = []
    for _ in range(max_new_tokens):
        token = my_step(expert(ids).logits[:, -1], amateur(ids).logits[:, -1], alpha, strength)
        if token.item() == eos_id:
            return new, "eos"
        new.append(token.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, "length"


# The expert prefers the sum of all ids (modulo 8), then the sum plus 1; the amateur knows only the first of the two,
# and finds the sum plus 2 absurd. So a contrastive step says the sum plus 1, and token 0 ends the text.
_MODELS = SumLM(8, {0: 4.0, 1: 3.0}), SumLM(8, {0: 4.0, 2: -6.0, 3: 1.0})
_TOY = (
    "with s the sum of all ids so far modulo 8, the expert's logits are 4 for s, 3 for s + 1, and 0; the amateur's "
    "4 for s, -6 for s + 2, 1 for s + 3, and 0; eos_id=0. "
)


def _loop(says: str, ids: list[int], most: int, expected: tuple, **options: Any) -> Case:
    extra = "".join(f", {key}={value}" for key, value in options.items())
    example = f"{_TOY}my_loop(expert, amateur, [{ids}], max_new_tokens={most}{extra})"
    return Case(says, (*_MODELS, tensor([ids])), expected, {"eos_id": 0, "max_new_tokens": most} | options, example)


# fmt: off
_STEP = "my_step(expert(ids).logits[:, -1], amateur(ids).logits[:, -1], alpha, strength)"
_LIMIT = "range(max_new_tokens)"

check_loop = Part(4, my_loop, [
    _loop("one step: the last position's logits of both models choose the token", [3, 5], 1, ([1], "length")),
    _loop("the next step reads everything so far, the new token too", [3, 5], 2, ([1, 2], "length")),
    _loop("at most max_new_tokens new tokens, whatever the prompt's length", [3, 5], 3, ([1, 2, 4], "length")),
    _loop("the end-of-text token ends the loop and stays out of the result", [3, 5], 9, ([1, 2, 4], "eos")),
    _loop("an end-of-text token at once gives no tokens", [3, 4], 9, ([], "eos")),
    _loop("with max_new_tokens=0 there is nothing to do", [3, 5], 0, ([], "length")),
    _loop("with strength 0 it is greedy decoding of the expert", [3, 6], 3, ([1, 2, 4], "length"), strength=0.0),
    _loop("alpha sets the threshold: 0.01 lets s + 2 in, e^-4 of the best", [3, 5], 1, ([2], "length"), alpha=0.01),
], [
    ("the expert alone", "alpha, strength)\n", "alpha, 0.0)\n", "where the amateur's logits are used"),
    ("expert and amateur exchanged", "my_step(expert(ids).logits[:, -1], amateur(ids)",
     "my_step(amateur(ids).logits[:, -1], expert(ids)", "the order of the arguments in each call"),
    ("the strength is ignored", "alpha, strength)\n", "alpha)\n", "whether `strength` reaches your step"),
    ("alpha is ignored", "alpha, strength)\n", "strength=strength)\n", "whether `alpha` reaches your step"),
    ("the new token is not added to what the models read", "        ids = torch", "        more = torch",
     "what `ids` is in the next step: the list of new tokens is not what the models read"),
    ("the mask is missing", _STEP,
     "my_scores(expert(ids).logits[:, -1], amateur(ids).logits[:, -1], strength).argmax(-1)",
     "what may win: only tokens the expert finds plausible"),
    ("logits of the first position", "[:, -1], a", "[:, 0], a", "the column of [1, T, V]: which one has read it all"),
    ("only the last token is fed", "(ids).", "(ids[:, -1:]).",
     "what the models read: without a cache they need the whole prefix, every time"),
    ("the amateur never reads the new tokens",
     ("    new = []\n", "amateur(ids)"), ("    new, prompt = [], ids\n", "amateur(prompt)"),
     "what the amateur reads from the second step on"),
    ("the end-of-text token in the result", 'return new, "eos"', 'return [*new, eos_id], "eos"',
     "the order: test for the end, then append"),
    ("no stop at the end of the text", "token.item() == eos_id", "False", "what happens when the token is eos_id"),
    ("the prompt counted as new tokens", _LIMIT, "range(max_new_tokens - ids.shape[1])",
     "what max_new_tokens counts: new tokens, not the row's length"),
    ("one token too many", _LIMIT, "range(max_new_tokens + 1)", "how often the loop runs"),
    ("one token too few", _LIMIT, "range(max_new_tokens - 1)", "how often the loop runs"),
], earlier=[check_scores, check_mask, check_step], raised={
    "converted to Scalar": "the column: `.logits` is [1, T, V], and one position of it is the next token's",
})
# fmt: on


def first_difference(a, b):
    """a, b: lists of token ids. Returns the first position where they differ, counted from 0, or None."""
    for k in range(max(len(a), len(b))):
        if a[k : k + 1] != b[k : k + 1]:
            return k
    return None


# fmt: off
_TURN, _LONGER = "            return k\n", "range(max(len(a), len(b)))"

check_first_difference = Part(5, first_difference, [
    Case("the position of the first token that differs, from 0", ([3, 1, 4], [3, 1, 5]), 2),
    Case("they may part at once", ([7, 1, 4], [3, 1, 4]), 0),
    Case("later differences do not count", ([3, 1, 4, 1], [3, 2, 4, 2]), 1),
    Case("a text that goes on differs where the other one ends", ([3, 1], [3, 1, 4]), 2),
    Case("equal texts differ nowhere: None", ([3, 1, 4], [3, 1, 4]), None),
    Case("two empty texts differ nowhere", ([], []), None),
], [
    ("counted from 1", (_TURN, _LONGER), ("            return k + 1\n", "range(min(len(a), len(b)))"),
     "where counting starts: the first position is 0"),
    ("the last difference", _LONGER, "reversed(range(min(len(a), len(b))))", "when to stop looking"),
    ("the shorter text hides the rest", _LONGER, "range(min(len(a), len(b)))",
     "zip: it ends with the shorter of the two"),
    ("a length where nothing differs", "return None", "return len(a)", "what equal texts should give"),
    ("the token, not its position", _TURN, "            return a[k]\n", "what is returned"),
    ("how many differ", f"{_LONGER}:\n        if a[k : k + 1] != b[k : k + 1]:\n{_TURN}    return None",
     "[0]:\n        return sum(x != y for x, y in zip(a, b))", "what is returned: a place, not a number of places"),
])
# fmt: on


def my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
    """ids: [1, T] int, the prompt. new_ids: a list of N token ids. Returns a list of N words."""
    whole = torch.cat([ids, torch.tensor([new_ids])], dim=1)  # (1, T + N)
    start = ids.shape[1] - 1
    e, a = (model(whole).logits[0, start:-1] for model in (expert, amateur))  # (N, V)
    plausible = my_mask(e, alpha).sum(-1)
    same = my_step(e, a, alpha, strength) == e.argmax(-1)
    return ["sure" if n == 1 else "agree" if s else "overruled" for n, s in zip(plausible.tolist(), same.tolist())]


def _own_text(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
    words = []
    for _ in new_ids:
        words += my_decisions(expert, amateur, ids, [0], alpha, strength)
        token = my_step(*(model(ids).logits[:, -1] for model in (expert, amateur)), alpha, strength)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return words


# fmt: off
_ROWS_E = tensor([
    [0.40, 0.30, 0.20, 0.10],  # position 0: nobody asked
    [0.97, 0.01, 0.01, 0.01],  # after the prompt: the expert is sure
    [0.60, 0.30, 0.09, 0.01],  # three plausible, the amateur knows neither of the first two
    [0.60, 0.30, 0.05, 0.05],  # two plausible, the amateur knows the first
    [0.10, 0.10, 0.10, 0.70],  # after the last token: nothing follows
]).log()
_ROWS_A = tensor([[0.10, 0.10, 0.70, 0.10], [0.90, 0.04, 0.03, 0.03], [0.20, 0.20, 0.599, 0.001],
                  [0.90, 0.04, 0.03, 0.03], [0.25, 0.25, 0.25, 0.25]]).log()
_THREE = ["sure", "agree", "overruled"]
_PATH = (
    "p_expert is [.97 .01 .01 .01] after the prompt, then [.60 .30 .09 .01], [.60 .30 .05 .05]; p_amateur is "
    "[.90 .04 .03 .03], [.2 .2 .599 .001], [.90 .04 .03 .03]. "
)
_TABLE = (
    "if the ids so far sum to 0 modulo 3, p_expert is [.97 .01 .01 .01] and p_amateur [.90 .04 .03 .03]; if to 1, "
    "[.60 .30 .09 .01] and [.2 .2 .599 .001]; if to 2, [.60 .30 .05 .05] and [.90 .04 .03 .03]. "
    "my_decisions(expert, amateur, [[1, 2]], [1, 1, 2])"
)


def _path(says: str, expected: list[str], **options: float) -> Case:
    ids, new = tensor([[1, 2]]), [0, 1, 1]
    extra = "".join(f", {key}={value}" for key, value in options.items())
    example = f"{_PATH}my_decisions(expert, amateur, {ids.tolist()}, {new}{extra})"
    return Case(says, (ScriptLM(_ROWS_E), ScriptLM(_ROWS_A), ids, new), expected, options, example)


check_decisions = Part(6, my_decisions, [
    _path('"sure", "agree" or "overruled" for every new token, read at the position before it', _THREE),
    _path("strength 0 overrules nobody", ["sure", "agree", "agree"], strength=0.0),
    _path("alpha decides who is sure", ["sure", "sure", "sure"], alpha=0.9),
    Case("the models read the given text, whatever the contrast would have written",
         (TableLM(_ROWS_E[1:4].tolist()), TableLM(_ROWS_A[1:4].tolist()), tensor([[1, 2]]), [1, 1, 2]),
         _THREE, {}, _TABLE),
], [
    ("one position too late", ("shape[1] - 1", "start:-1"), ("shape[1]", "start:"),
     "the columns: the logits after position t are about the token at t + 1"),
    ("one position too early", ("shape[1] - 1", "start:-1"), ("shape[1] - 2", "start:-2"),
     "the columns: the prompt's last one counts first"),
    ("nobody is sure", "n == 1", "False", "the steps where one token alone is plausible"),
    ("the mask is missing", "my_step(e, a, alpha, strength)", "my_scores(e, a, strength).argmax(-1)",
     "which tokens the contrast may choose"),
    ("compared with the amateur's best", "== e.argmax", "== a.argmax", "whom the contrast can overrule"),
    ("the text's token for the contrast's", "my_step(e, a, alpha, strength)", "torch.tensor(new_ids)",
     "what the contrast would choose here"),
], [
    Mistake("its own text instead of the given one", _own_text, "what the models read: `new_ids`, not what was chosen"),
], earlier=[check_scores, check_mask, check_step])
# fmt: on
