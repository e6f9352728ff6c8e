"""Checks of assignment 01: the contrastive score, the mask, a step, the loop, where texts part, who was overruled."""

import math
from typing import Any

import torch
from torch import tensor

from cdlearn.classroom.checks.core import LOG_PROBS, PREFIX, Case, Part
from cdlearn.classroom.checks.models import TOY, TOY_WORDS, ScriptLM, SumLM, TableLM
from cdlearn.classroom.checks.values import bools, rows


def my_scores(expert_logits, amateur_logits, strength=1.0):
    return expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)


def my_mask(expert_logits, alpha=0.1):
    best = expert_logits.max(dim=-1, keepdim=True).values
    return expert_logits >= best + math.log(alpha)


def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    scores = my_scores(expert_logits, amateur_logits, strength)
    return scores.masked_fill(~my_mask(expert_logits, alpha), -math.inf).argmax(-1)


def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    new = []
    for _ in range(max_new_tokens):
        token = my_step(expert(ids).logits[:, -1], amateur(ids).logits[:, -1], alpha, strength)
        if token.item() == eos_id:
            return new, "eos"
        new.append(token.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, "length"


def first_difference(a, b):
    for k in range(max(len(a), len(b))):
        if a[k : k + 1] != b[k : k + 1]:
            return k
    return None


def my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
    whole = torch.cat([ids, torch.tensor([new_ids])], dim=1)  # (1, T + N)
    start = ids.shape[1] - 1
    e, a = (model(whole).logits[0, start:-1] for model in (expert, amateur))  # (N, V)
    plausible = my_mask(e, alpha).sum(-1)
    same = my_step(e, a, alpha, strength) == e.argmax(-1)
    return ["sure" if n == 1 else "agree" if s else "overruled" for n, s in zip(plausible.tolist(), same.tolist())]


def _loop(says: str, ids: list[int], most: int, expected: tuple, **options: Any) -> Case:
    models = SumLM(8, {0: 4.0, 1: 3.0}), SumLM(8, {0: 4.0, 2: -6.0, 3: 1.0})
    example = (
        "with s the sum of all ids so far modulo 8, the expert's logits are 4 for s, 3 for s + 1, and 0; the amateur's "
        f"4 for s, -6 for s + 2, 1 for s + 3, and 0. my_loop(expert, amateur, [{ids}], max_new_tokens={most}"
    )
    options = {"eos_id": 0} | options
    example += "".join(f", {key}={value}" for key, value in options.items()) + ")"
    return Case(says, (*models, tensor([ids])), expected, {"max_new_tokens": most} | options, example)


def _path(says: str, expected: list[str], **options: float) -> Case:
    example = (
        "p_expert is [.97 .01 .01 .01] after the prompt, then [.60 .30 .09 .01], [.60 .30 .05 .05]; p_amateur is "
        "[.90 .04 .03 .03], [.2 .2 .599 .001], [.90 .04 .03 .03]. my_decisions(expert, amateur, [[1, 2]], [0, 1, 1]"
    )
    example += "".join(f", {key}={value}" for key, value in options.items()) + ")"
    return Case(says, (ScriptLM(ROWS_E), ScriptLM(ROWS_A), tensor([[1, 2]]), [0, 1, 1]), expected, options, example)


# fmt: off
E, A, E2, A2 = tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.25, 0.5, 0.25]]).log()
SCORES, HALF, SCORES2 = tensor([[-0.4700036, 1.0986123, 0.6931472], [-0.5815754, -0.0526804, -0.4581454],
                                [-0.9162907, -0.9162907, 1.0296194]])
SCORE = "expert_logits.log_softmax(-1) - strength * amateur_logits.log_softmax(-1)"
check_scores = Part(1, my_scores, [
    Case("the score of a token is its expert's log-probability minus its amateur's", (E, A), SCORES),
    Case("a constant added to all logits of a model changes no probability, so no score", (E + 2, A - 1), SCORES),
    Case("the strength is a factor of the amateur's log-probability", (E, A), HALF, {"strength": 0.5}),
    Case("with strength 0 the amateur has no say", (E + 2, A), E, {"strength": 0.0}),
    Case("a token far below the best keeps its log-probability", (tensor([100.0, -20.0]), tensor([-50.0, 100.0])),
         tensor([150.0, -120.0])),
    Case("every row of a batch is scored by itself", (rows(E, E2), rows(A, A2)), rows(SCORES, SCORES2)),
    Case("every position of every row is scored by itself", (rows(rows(E, E2), rows(E2, E)),
         rows(rows(A, A2), rows(A2, A))), rows(rows(SCORES, SCORES2), rows(SCORES2, SCORES))),
    *LOG_PROBS,
    ("the ratio without its logarithm", SCORE, f"({SCORE}).exp()", "a difference of logarithms"),
    ("expert and amateur exchanged", SCORE, f"-({SCORE})", "which of the two is subtracted"),
    ("the amateur is added", " - ", " + ", "the sign of the second term"),
    ("the strength is ignored", "strength * ", "", "where `strength` is used"),
    ("the strength multiplies the whole score", "return", "return strength *", "what must remain with strength 0"),
    ("the strength inside the softmax, like a temperature", "strength * amateur_logits", "(strength * amateur_logits)",
     "the order of the two operations"),
    ("the softmax over the batch instead of the vocabulary", "-1", "0", "which dimension the vocabulary is"),
])

M, M2 = tensor([[0.60, 0.30, 0.08, 0.02], [0.25, 0.25, 0.249, 0.251]]).log()
FACTOR, ROW = "what to add to the best logit for a factor alpha", "the dimension of the maximum: one for every row"
check_mask = Part(2, my_mask, [
    Case("kept is what is at least alpha times as likely as the expert's best token", (M,), bools(1, 1, 1, 0)),
    Case("alpha sets the threshold", (M,), bools(1, 1, 0, 0), {"alpha": 0.3}),
    Case("a constant added to all logits changes nothing", (M + 3,), bools(1, 1, 1, 0)),
    Case("the best token is always kept, and so is a tie", (tensor([2.0, 2.0, 1.0]),), bools(1, 1, 0), {"alpha": 1.0}),
    Case("every row of a batch has its own best token", (rows(M + 3, M2),),
         rows(bools(1, 0, 0, 0), bools(1, 1, 1, 1)), {"alpha": 0.6}),
    Case("every position of every row has its own best token", (rows(rows(M + 3, M2), rows(M2, M + 3)),),
         rows(rows(bools(1, 0, 0, 0), bools(1, 1, 1, 1)), rows(bools(1, 1, 1, 1), bools(1, 0, 0, 0))), {"alpha": 0.6}),
    ("alpha as a probability", " >= best + math.log(alpha)", ".softmax(-1) >= alpha", "what alpha is a share of"),
    ("a threshold above the best token: log alpha subtracted, or alpha times a logarithm", "+", "-", "the sign"),
    ("alpha times a logit", "best + math.log(alpha)", "alpha * best", "what the logarithm of a product is"),
    ("alpha added without its logarithm", "math.log(alpha)", "alpha", FACTOR),
    ("a logarithm to another base", "math.log(", "math.log10(", "which logarithm log-probabilities are"),
    ("the best token alone", ">= best + math.log(alpha)", "== best", "where `alpha` is used"),
    ("alpha subtracted without its logarithm", "+ math.log(alpha)", "- alpha", FACTOR),
    ("the mask upside down", ">=", "<", "what True means in the mask"),
    ("alpha is ignored", "log(alpha)", "log(0.1)", "where `alpha` is used"),
    ("more than instead of at least", ">=", ">", "the comparison where both sides are equal"),
    ("one best token for the whole batch", "dim=-1, keepdim=True).values", ")", ROW),
    ("one best token for the whole batch", " >= best + math.log(alpha)",
     ".softmax(-1) >= alpha * expert_logits.softmax(-1).max()", ROW),
])

ZEBRA, SURE, EVEN, RATIO, ROW_OF_4, STRONG = (tuple(tensor(pair).log()[:, None]) for pair in (  # (1, V) each
    [[0.60, 0.30, 0.08, 0.0199, 0.0001], [0.80, 0.03, 0.03, 0.139, 1e-6]],
    [[0.970, 0.020, 0.005, 0.004, 0.001], [0.99, 0.001, 0.004, 0.004, 0.001]],
    [[0.24, 0.02, 0.26, 0.25, 0.23], [0.20, 0.20, 0.20, 0.20, 0.20]],
    [[0.52, 0.40, 0.08], [0.22, 0.15, 0.63]], [[0.01, 0.30, 0.60, 0.09], [0.01, 0.05, 0.90, 0.04]],
    [[0.60, 0.30, 0.10], [0.40, 0.25, 0.35]],
))
MASKED, FILLED = "my_mask(expert_logits, alpha)", "scores.masked_fill(~my_mask(expert_logits, alpha), -math.inf)"
check_step = Part(3, my_step, [
    Case("the plausible token with the best score wins", ZEBRA, tensor([1])),
    Case("where one token is plausible, the amateur changes nothing", SURE, tensor([0])),
    Case("a ratio decides, not a difference of probabilities", RATIO, tensor([1])),
    Case("a token's number is its place in the whole row, also after a token that is out", ROW_OF_4, tensor([1])),
    Case("with strength 0 the expert's best token wins", ZEBRA, tensor([0]), {"strength": 0.0}),
    Case("a token that is out stays out, however low all other scores are", EVEN, tensor([2]), {"strength": 0.0}),
    Case("a strength above 1 counts as it is", STRONG, tensor([1]), {"strength": 2.0}),
    Case("alpha sets the threshold", ZEBRA, tensor([0]), {"alpha": 0.6}),
    Case("every row of a batch decides by itself",
         tuple(torch.cat([one, two + 4]) for one, two in zip(ZEBRA, SURE)), tensor([1, 0])),
    ("the mask is missing, or reads the scores", FILLED, "scores", "which tokens may win, and what decides that"),
    ("the mask upside down", "~", "", "what True means in the mask"),
    ("expert and amateur exchanged", "    scores =",
     "    expert_logits, amateur_logits = amateur_logits, expert_logits\n    scores =", "which is subtracted"),
    ("a place among the kept tokens, not in the row", f"{FILLED}.argmax(-1)",
     f"torch.stack([row[keep].argmax() for row, keep in zip(scores, {MASKED})])",
     "what argmax counts in a row without the masked tokens"),
    ("the best score starts at 0", f"return {FILLED}.argmax(-1)",
     f"best = {FILLED}.max(-1)\n    return torch.where(best.values > 0, best.indices, 0)",
     "the sign that all scores may have"),
    ("the mask on the amateur", "my_mask(expert", "my_mask(amateur", "whose logits the mask reads"),
    ("masked tokens get the score 0", "-math.inf", "0.0", "whether a score of 0 is low"),
    ("masked tokens get the score -1", "math.inf", "1", "whether a score of -1 is low"),
    ("the expert alone", FILLED, "expert_logits", "where the amateur's logits are used"),
    ("the amateur alone", FILLED, "amateur_logits", "where the expert's logits are used"),
    ("probabilities where log-probabilities belong", "my_scores(expert_logits, amateur_logits, strength)",
     "expert_logits.softmax(-1) - strength * amateur_logits.softmax(-1)",
     "the two terms of the score"),
    ("the strength is ignored", "amateur_logits, strength", "amateur_logits", "where `strength` is used"),
    ("alpha is ignored", ", alpha)", ", 0.1)", "where `alpha` is used"),
    ("one best token for the whole batch", MASKED, "(expert_logits >= expert_logits.max() + math.log(alpha))", ROW),
], earlier=[check_scores, check_mask], sure=True)

check_loop = Part(4, my_loop, [
    _loop("one step: the last position's logits of both models choose the token", [3, 5], 1, ([1], "length")),
    _loop("the next step reads everything so far, the new token too", [3, 1], 2, ([5, 2], "length")),
    Case("the new token is the last of the row", (TOY, TOY, tensor([[3, 5]])), ([5, 4], "length"),
         {"eos_id": 0, "max_new_tokens": 2, "strength": 0.0},
         f"{TOY_WORDS}my_loop(model, model, [[3, 5]], eos_id=0, max_new_tokens=2, strength=0.0)"),
    _loop("at most max_new_tokens new tokens, whatever the prompt's length", [3, 5], 3, ([1, 2, 4], "length")),
    _loop("the end-of-text token ends the loop and stays out of the result", [3, 5], 9, ([1, 2, 4], "eos")),
    _loop('an end-of-text token on the last permitted step ends the text too: "eos"', [3, 5], 4, ([1, 2, 4], "eos")),
    _loop("the end-of-text token is eos_id, not 0", [3, 5], 9, ([1, 2], "eos"), eos_id=4),
    _loop("an end-of-text token at once gives no tokens", [3, 4], 9, ([], "eos")),
    _loop("with max_new_tokens=0 there is nothing to do", [3, 5], 0, ([], "length")),
    _loop("with strength 0 it is greedy decoding of the expert", [3, 6], 3, ([1, 2, 4], "length"), strength=0.0),
    _loop("alpha sets the threshold: 0.01 lets s + 2 in, e^-4 of the best", [3, 5], 1, ([2], "length"), alpha=0.01),
    ("the expert alone", "alpha, strength)\n", "alpha, 0.0)\n", "where the amateur's logits are used"),
    ("expert and amateur exchanged", "expert(ids).logits[:, -1], amateur", "amateur(ids).logits[:, -1], expert",
     "which of the two is subtracted"),
    ("the strength is ignored", ", strength)", ")", "whether `strength` reaches your step"),
    ("alpha is ignored", "alpha, strength)", "strength=strength)", "where `alpha` is used"),
    *PREFIX,
    ("eos tested on one model's best token", "token.item() ==", "expert(ids).logits[0, -1].argmax() ==",
     "which token ends the text"),
    ("the mask is missing", ("my_step", "alpha, strength)\n"), ("my_scores", "strength).argmax(-1)\n"), "what may win"),
    ("logits of the first position", "[:, -1]", "[:, 0]", "the column of [1, T, V]: which one has read it all"),
    ("only the last token is fed", "(ids).", "(ids[:, -1:]).", "what the models read at a step"),
    ("the amateur never reads the new tokens",
     ("new = []", "amateur(ids)"), ("new, prompt = [], ids", "amateur(prompt)"),
     "what the amateur reads at the second step"),
    ("the end-of-text token in the result", 'new, "eos"', '[*new, eos_id], "eos"', "append or test: which first"),
    ("the reason guessed from the number of tokens", 'new, "eos"',
     'new, "eos" if len(new) < max_new_tokens - 1 else "length"', "which test ended the loop: that is the reason"),
    ("no stop at the end of the text", "token.item() == eos_id", "False", "what happens when the token is eos_id"),
    ("the prompt counted as new tokens", "tokens)", "tokens - ids.shape[1])", "what max_new_tokens counts"),
    ("one token too few", "tokens)", "tokens - 1)", "how often the loop runs"),
], [check_scores, check_mask, check_step], sure=True, items=("the tokens", "the reason"),
    raised={"converted to Scalar": "the column: `.logits` is [1, T, V], and one position of it is the next token's"})

OVER = "what happens after the end of the shorter text"
check_first_difference = Part(5, first_difference, [
    Case("the position of the first token that differs, from 0", ([3, 1, 4], [3, 1, 5]), 2),
    Case("they may differ at position 0", ([7, 1, 4], [3, 1, 4]), 0),
    Case("later differences do not count", ([3, 1, 4, 1], [3, 2, 4, 2]), 1),
    Case("a text that goes on differs where the other one ends", ([3, 1], [3, 1, 4]), 2),
    Case("a token 0 is a token: a text that goes on with it differs there, too", ([2, 0], [2]), 1),
    Case("equal texts differ nowhere: None", ([3, 1, 4], [3, 1, 4]), None),
    Case("two empty texts differ nowhere", ([], []), None),
    ("position 0 taken for nothing", "return k\n", "return k or None\n", "what `or` and `if` make of the number 0"),
    ("counted from 1", (" k\n", "max"), (" k + 1\n", "min"), "where counting starts: the first position is 0"),
    ("the last difference", "range(max(len(a), len(b)))", "range(min(len(a), len(b)))[::-1]", "when to stop looking"),
    ("the shorter text hides the rest", "max", "min", OVER),
    ("only the length of the first text counts", ("max(len(a), len(b))", "a[k : k + 1] != b[k : k + 1]"),
     ("len(a)", "a[k] != b[k]"), OVER),
    ("the shorter text filled up with 0", "a[k : k + 1] != b[k : k + 1]", "(a + [0] * 99)[k] != (b + [0] * 99)[k]",
     "zip_longest: a fillvalue that is no token"),
    ("a length where nothing differs", "return None", "return len(a)", "what equal texts should give"),
    ("the token, not its position", "return k\n", "return a[k]\n", "what is returned"),
    ("how many differ", "for k", "return sum(x != y for x, y in zip(a, b))\n    for k", "what is returned"),
], sure=True)

# nobody asks after position 0 and after the last token; between them the expert is sure, then three are plausible and
# the amateur knows neither of the first two, then two are plausible and the amateur knows the first
ROWS_E = tensor([[0.40, 0.30, 0.20, 0.10], [0.97, 0.01, 0.01, 0.01], [0.60, 0.30, 0.09, 0.01],
                 [0.60, 0.30, 0.05, 0.05], [0.10, 0.10, 0.10, 0.70]]).log()
ROWS_A = tensor([[0.10, 0.10, 0.70, 0.10], [0.90, 0.04, 0.03, 0.03], [0.20, 0.20, 0.599, 0.001],
                 [0.90, 0.04, 0.03, 0.03], [0.25, 0.25, 0.25, 0.25]]).log()
STEP, THREE = "my_step(e, a, alpha, strength)", ["sure", "agree", "overruled"]
check_decisions = Part(6, my_decisions, [
    _path('"sure", "agree" or "overruled" for every new token, read at the position before it', THREE),
    _path("strength 0 overrules nobody", ["sure", "agree", "agree"], strength=0.0),
    _path("alpha decides who is sure", ["sure", "sure", "sure"], alpha=0.9),
    _path("alpha decides what the contrast may choose", ["agree", "overruled", "overruled"], alpha=0.01),
    Case("the models read the given text, whatever the contrast would have written",
         (TableLM(ROWS_E[1:4].tolist()), TableLM(ROWS_A[1:4].tolist()), tensor([[2, 2]]), [1, 1, 2]),
         ["agree", "overruled", "sure"], {},
         "if the ids so far sum to 0 modulo 3, p_expert is [.97 .01 .01 .01] and p_amateur [.90 .04 .03 .03]; if to 1, "
         "[.60 .30 .09 .01] and [.2 .2 .599 .001]; if to 2, [.60 .30 .05 .05] and [.90 .04 .03 .03]. "
         "my_decisions(expert, amateur, [[2, 2]], [1, 1, 2])"),
    ("one position too late", ("shape[1] - 1", "start:-1"), ("shape[1]", "start:"),
     "which column predicts the first new token"),
    ("the prompt is missing", ("torch.cat([ids, torch.tensor([new_ids])], dim=1)", "start:-1"),
     ("torch.tensor([new_ids])", ":"), "what the models read: the prompt and the text"),
    ("one position too early", ("shape[1] - 1", "start:-1"), ("shape[1] - 2", "start:-2"),
     "which column predicts the first new token"),
    ("alpha is ignored", STEP, "my_step(e, a, strength=strength)", "where `alpha` is used"),
    ("the strength is ignored", ", strength)", ")", "where `strength` is used"),
    ("nobody is sure", "n == 1", "False", "the steps where one token alone is plausible"),
    ("the mask is missing", STEP, "my_scores(e, a, strength).argmax(-1)", "which tokens may win"),
    ("compared with the amateur's best", "== e.argmax", "== a.argmax", "which choice the contrast can overrule"),
    ("the text's token for the contrast's", STEP, "torch.tensor(new_ids)", "what the contrast would choose here"),
    ("its own text instead of the given one", "whole = torch.cat([ids, torch.tensor([new_ids])], dim=1)",
     "whole = ids\n    for _ in new_ids:\n        e, a = (model(whole).logits[:, -1] for model in (expert, amateur))\n"
     f"        whole = torch.cat([whole, {STEP}[:, None]], 1)", "which text the models read"),
], [check_scores, check_mask, check_step])
