"""Checks of assignment 03: who may compete, the contrast's scores, a sampler's distribution, top-p, the logit form."""

import math

import torch
from torch import Tensor, tensor

from cdlearn.classroom.checks.core import LOG_PROBS, Case, Part
from cdlearn.classroom.checks.values import bools, rows


def log(*values: float) -> Tensor:
    """Logarithms of a row of numbers; that of 0 is -inf."""
    return tensor(values).log()


def my_candidates(expert_logits, *, alpha=0.1, top_k=0):
    keep = torch.ones_like(expert_logits, dtype=torch.bool)
    if alpha is not None:
        keep = expert_logits >= expert_logits.max(dim=-1, keepdim=True).values + math.log(alpha)
    if 0 < top_k < expert_logits.shape[-1]:
        keep = keep & (expert_logits >= expert_logits.topk(top_k).values[..., -1:])
    return keep


def my_contrast(expert_logits, amateur_logits, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0):
    keep = my_candidates(expert_logits, alpha=alpha, top_k=top_k)
    scores = expert_logits.log_softmax(-1) - strength * (amateur_logits / tau).log_softmax(-1)
    return scores.masked_fill(~keep, -math.inf)


def my_distribution(scores, keep, temperature=1.0):
    scores = scores.masked_fill(~keep, -math.inf)
    if temperature == 0:
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
    return (scores / temperature).softmax(-1)


def my_nucleus(probs, p):
    ranked, order = probs.sort(dim=-1, descending=True)
    inside = ranked.cumsum(-1) - ranked < p  # what all better tokens have
    kept = probs * torch.zeros_like(inside).scatter(-1, order, inside)
    return kept / kept.sum(-1, keepdim=True)


def my_logit_form(expert_logits, amateur_logits, *, alpha=0.1, beta=0.5):
    mixed = (1 + beta) * expert_logits - beta * amateur_logits
    return mixed.masked_fill(~my_candidates(expert_logits, alpha=alpha), -math.inf)


def my_translation(beta, temperature=1.0):
    return beta / (1 + beta), temperature / (1 + beta)


# fmt: off
C, SURE, MIXED = log(0.48, 0.30, 0.17, 0.045, 0.005), log(0.95, 0.03, 0.012, 0.007, 0.001), log(0.1, 0.3, 0.2, 0.4)
SUMMAND = "a factor of a probability is a summand of its logarithm"
check_candidates = Part(1, my_candidates, [
    Case("alpha alone: at least alpha times as likely as the best token", (C,), bools(1, 1, 1, 0, 0)),
    Case("top_k alone: the k best tokens", (C,), bools(1, 1, 0, 0, 0), {"alpha": None, "top_k": 2}),
    Case("neither: alpha=None and top_k=0 keep all tokens", (C,), bools(1, 1, 1, 1, 1), {"alpha": None}),
    Case("both: what passes one rule and the other", (C,), bools(1, 1, 0, 0, 0), {"top_k": 2}),
    Case("both, the other way round", (C,), bools(1, 1, 0, 0, 0), {"alpha": 0.5, "top_k": 4}),
    Case("the best are the likeliest, whatever their places", (MIXED,), bools(0, 1, 0, 1), {"alpha": None, "top_k": 2}),
    Case("more than there are: top_k=9 of five tokens is no limit", (C,), bools(1, 1, 1, 0, 0), {"top_k": 9}),
    Case("every row has its own best tokens", (rows(SURE, C - 4),), rows(bools(1, 0, 0, 0, 0), bools(1, 1, 1, 0, 0))),
    Case("every row has its own k best", (rows(SURE, C - 4),), rows(bools(1, 1, 0, 0, 0), bools(1, 1, 0, 0, 0)),
         {"alpha": None, "top_k": 2}),
    ("alpha as a probability", " >= expert_logits.max(dim=-1, keepdim=True).values + math.log(alpha)",
     ".softmax(-1) >= alpha", "what alpha is a share of"),
    ("alpha subtracted without its logarithm", "+ math.log(alpha)", "- alpha", SUMMAND),
    ("a threshold above the best token: log alpha subtracted, or alpha times a logarithm", "+ math.log", "- math.log",
     f"the sign of log alpha, and that {SUMMAND}"),
    ("no token is left out", "return keep", "return torch.ones_like(keep)", "what the two rules do to the result"),
    ("top_k=0 keeps nobody", "return keep", "return keep & (top_k > 0)", "what top_k=0 means"),
    ("one of the two rules is enough", "keep & (", "(keep if alpha else ~keep) | (", "how the two rules are joined"),
    ("top_k is ignored", "0 < top_k < expert_logits.shape[-1]", "False", "where `top_k` is used"),
    ("alpha is ignored", "log(alpha)", "log(0.1)", "where `alpha` is used"),
    ("the k-th best is left out", ">= expert_logits.topk", "> expert_logits.topk", "the comparison with the k-th best"),
    ("the first k columns", "expert_logits >= expert_logits.topk(top_k).values[..., -1:]",
     "torch.arange(keep.shape[-1]) < top_k", "what the order of the vocabulary says"),
    ("one best token for the whole batch", "dim=-1, keepdim=True).values", ")", "the dimension of the maximum"),
    ("the k best of the whole batch", "topk(top_k)", "flatten().topk(top_k)", "the dimension of topk: k for every row"),
])

E, A = log(0.5, 0.3, 0.15, 0.04, 0.01), log(0.6, 0.05, 0.05, 0.28, 0.02)
BASE, HALF = log(0.5 / 0.6, 0.3 / 0.05, 0.15 / 0.05, 0, 0), log(0.5 / 0.6**0.5, 0.3 / 0.05**0.5, 0.15 / 0.05**0.5, 0, 0)
TEMPERED = log(0.5 / 0.36, 0.3 / 0.0025, 0.15 / 0.0025, 0, 0) + math.log(0.4438)  # 0.4438: the sum of the squares
FILLED = "_logits.masked_fill(~keep, -math.inf)"
FIRST = "the order: log p is that of the whole vocabulary, so normalise before anybody is left out"
PROBABLE = "masked_fill(~keep, -math.inf)\n    keep = my_candidates(scores, alpha=None, top_k=top_k)"
check_contrast = Part(2, my_contrast, [
    Case("log p_E - log p_A for who may compete, -inf for all others", (E, A), BASE),
    Case("constants added to the logits change nothing", (E + 3, A - 2), BASE),
    Case("tau divides the amateur's logits, then they are normalised", (E, A), TEMPERED, {"tau": 0.5}),
    Case("the strength is a factor of the amateur's log-probability", (E, A), HALF, {"strength": 0.5}),
    Case("with strength 0 the expert remains", (E + 3, A), log(0.5, 0.3, 0.15, 0, 0), {"strength": 0.0}),
    Case("top_k counts the expert's tokens", (E, A), log(0.5 / 0.6, 6, 0, 0, 0), {"top_k": 2}),
    Case("alpha sets the threshold", (E, A), log(0.5 / 0.6, 6, 0, 0, 0), {"alpha": 0.4}),
    Case("without alpha and top_k everybody has a score", (E, A), log(0.5 / 0.6, 6, 3, 1 / 7, 0.5), {"alpha": None}),
    Case("a token far below the best keeps its log-probability", (tensor([100.0, -20.0]), tensor([-50.0, 100.0])),
         tensor([150.0, -120.0]), {"alpha": None}),
    Case("every row by itself", (rows(E, A), rows(A, A)), rows(BASE, log(1, 0, 0, 1, 0))),
    ("the mask on the amateur", "my_candidates(expert", "my_candidates(amateur", "whose logits the mask reads"),
    ("the mask on the scores", "~keep", "~my_candidates(scores, alpha=alpha, top_k=top_k)", "what the mask reads"),
    ("the mask is missing", "alpha=alpha", "alpha=None", "what tokens get that the expert finds absurd"),
    ("masked tokens get the score 0", "-math.inf", "0.0", "the exponential of 0"),
    ("the amateur's temperature after its softmax", "(amateur_logits / tau).log_softmax(-1)",
     "amateur_logits.log_softmax(-1) / tau", "the order of the two operations"),
    ("multiplied by tau", "/ tau", "* tau", "what a temperature does to logits: it divides"),
    ("tau is ignored", " / tau", "", "where `tau` is used"),
    ("the expert is tempered too", "expert_logits.log", "(expert_logits / tau).log", "whose temperature tau is"),
    *LOG_PROBS,
    ("the strength is ignored", "strength * ", "", "where `strength` is used"),
    ("the mask before the softmax", ("_logits.log", "_logits / tau"), (f"{FILLED}.log", f"{FILLED} / tau"), FIRST),
    ("the mask before the softmax", "_logits.log", f"{FILLED}.log", FIRST),
    ("top_k on the scores", (", top_k=top_k", "return scores"), ("", f"scores = scores.{PROBABLE}\n    return scores"),
     "whose k best are counted"),
], earlier=[check_candidates])

S, K = log(1, 3, 4, 2), bools(1, 1, 0, 1)
S2, K2, SIXTHS = rows(S, S), rows(K, bools(1, 0, 1, 0)), tensor([1, 3, 0, 2]) / 6
RAW, RAWER, SOFT = "scores = scores", "raw, scores = scores, scores", "(scores / temperature).softmax(-1)"
TIE = "two equals at temperature 0: one of them must get everything"
check_distribution = Part(3, my_distribution, [
    Case("who is out has probability 0, the others share 1", (S, K), SIXTHS),
    Case("a constant changes nothing: scores may all be negative", (S - 900, K), SIXTHS),
    Case("below 1 the best gain", (S, K), tensor([1, 9, 0, 4]) / 14, {"temperature": 0.5}),
    Case("above 1 the others gain", (2 * S, K), SIXTHS, {"temperature": 2.0}),
    Case("temperature 0 is greedy among the kept", (S, K), tensor([0.0, 1, 0, 0]), {"temperature": 0.0}),
    Case("temperature 0 with two equals: the first of them", (tensor([1.0, 2.0, 2.0]), bools(1, 1, 1)),
         tensor([0.0, 1, 0]), {"temperature": 0.0}),
    Case("a tiny temperature is no problem for large scores", (tensor([90.0, 91.0, 95.0]), bools(1, 1, 0)),
         tensor([0.0, 1, 0]), {"temperature": 0.01}),
    Case("every row by itself", (S2, K2), rows(SIXTHS, tensor([1, 0, 4, 0]) / 5)),
    Case("every row by itself, at temperature 0 too", (S2, K2), torch.eye(4)[1:3], {"temperature": 0.0}),
    ("the mask after the softmax", (RAW, SOFT), (RAWER, "(raw / temperature).softmax(-1) * keep"),
     "the sum of the result"),
    ("masked tokens get the score 0", "(scores /", "(scores.masked_fill(~keep, 0) /", "the exponential of 0"),
    ("the mask upside down", (RAW, "(scores /"), (RAWER, "(raw.masked_fill(keep, -math.inf) /"), "what True means"),
    ("the mask is missing", (RAW, "(scores /"), (RAWER, "(raw /"), "where `keep` is used"),
    ("the temperature is ignored", " / temperature", "", "where `temperature` is used"),
    ("multiplied by the temperature", "/ temp", "* temp", "what a temperature does to scores: it divides"),
    ("the temperature after the softmax", SOFT, "scores.softmax(-1) / temperature", "the order of the two operations"),
    ("division by temperature zero", "temperature == 0", "False", "what temperature 0 means"),
    ("a temperature of nearly zero for zero", "temperature == 0", "(temperature := max(temperature, 1e-6)) < 0", TIE),
    ("all that are equal at temperature 0", "torch.zeros_like(scores)",
     "(scores == scores.max(-1, keepdim=True).values).float()", TIE),
    ("temperature 0 without the mask", (RAW, "scores.argmax"), (RAWER, "raw.argmax"), "who competes at temperature 0"),
    ("exponentials without care", (RAW, SOFT),
     (RAWER, "torch.nn.functional.normalize((raw / temperature).exp() * keep, p=1, dim=-1)"),
     "the size of exp(scores / T)"),
])

N, N_MIXED, TOP = tensor([[0.5, 0.3, 0.15, 0.05], [0.15, 0.5, 0.05, 0.3], [0.625, 0.375, 0, 0]])
BEFORE, BACK = "ranked.cumsum(-1) - ranked < p", "torch.zeros_like(inside).scatter(-1, order, inside)"
CROSSING = "the token with which the sum reaches p: it belongs to the set"
check_nucleus = Part(4, my_nucleus, [
    Case("the best tokens until they reach p, then renormalised", (N, 0.75), TOP),
    Case("the token that crosses p comes in", (N, 0.85), tensor([0.5, 0.3, 0.15, 0]) / 0.95),
    Case("a p below the best token keeps that token", (N, 0.2), tensor([1.0, 0, 0, 0])),
    Case("p = 1 keeps all", (N, 1.0), N),
    Case("a sum of exactly p is enough", (tensor([0.5, 0.25, 0.125, 0.125]), 0.75), tensor([2 / 3, 1 / 3, 0, 0])),
    Case("the result has the order of the vocabulary", (N_MIXED, 0.75), tensor([0, 0.625, 0, 0.375])),
    Case("every row by itself", (rows(N, tensor([0.1, 0.1, 0.7, 0.1])), 0.65), rows(TOP, torch.eye(4)[2])),
    ("the crossing token is left out", "- ranked <", "<=", CROSSING),
    ("the crossing token is left out, but for the best", BEFORE,
     "(ranked.cumsum(-1) <= p) | (ranked.cumsum(-1) - ranked < 1e-6)", CROSSING),
    ("one token too many", "kept =", "inside = torch.cat([inside[..., :1], inside[..., :-1]], dim=-1)\n    kept =",
     "when to stop: as soon as the sum reaches p"),
    ("the mask stays in sorted order", BACK, "inside", "the way back to the vocabulary"),
    ("the result stays in sorted order", f"probs * {BACK}", "ranked * inside", "the way back to the vocabulary"),
    ("put back with gather", BACK, "inside.gather(-1, order)",
     "the direction: gather reads from the places in `order`, and you want to write to them"),
    ("one token too many where the sum is exactly p", "< p", "<= p",
     "the comparison where both sides are equal: the sum must be at least p, not more"),
    ("not renormalised", " / kept.sum(-1, keepdim=True)", "", "the sum of the result"),
    ("no token is left out", "< p", "< 2", "where `p` is used"),
    ("a softmax of what sums to 1 already", "probs.sort", "probs.softmax(-1).sort", "what `probs` holds"),
    ("the worst tokens first", "descending=True", "descending=False", "the direction of the sort"),
    ("p as a threshold for one token", BEFORE, "ranked >= 1 - p", "what reaches p: a sum"),
    ("p as a share of the best", BEFORE, "ranked >= (1 - p) * ranked[..., :1]", "what reaches p: a sum"),
])

RAW_E, RAW_A, OUT = tensor([5.0, 4.4, 3.0, 1.6]), tensor([6.0, 2.8, 2.8, 4.2]), -math.inf
FORM = tensor([4.5, 5.2, 3.1, OUT])
check_logit_form = Part(5, my_logit_form, [
    Case("(1 + beta) s_E - beta s_A where plausible, -inf elsewhere", (RAW_E, RAW_A), FORM),
    Case("beta 0 is the expert, masked", (RAW_E, RAW_A), tensor([5.0, 4.4, 3.0, OUT]), {"beta": 0.0}),
    Case("beta 1", (RAW_E, RAW_A), tensor([4.0, 6.0, 3.2, OUT]), {"beta": 1.0}),
    Case("alpha sets the threshold", (RAW_E, RAW_A), tensor([4.5, 5.2, OUT, OUT]), {"alpha": 0.5}),
    Case("every row by itself", (rows(RAW_E, RAW_E - 4), rows(RAW_A, RAW_A)), rows(FORM, FORM - 6)),
    ("the expert without its factor", "(1 + beta) * ", "", "the factor of the expert: 1 + beta"),
    ("the difference alone", "(1 + beta)", "beta", "where the walk starts: at the expert"),
    ("the amateur is added", "- beta", "+ beta", "the sign of the second term"),
    ("expert and amateur exchanged", ("* expert", "- beta * amateur"), ("* amateur", "- beta * expert"),
     "which of the two has 1 + beta"),
    ("beta is ignored", ("(1 + beta)", "- beta"), ("1.5", "- 0.5"), "where `beta` is used"),
    ("log-probabilities where raw logits are asked for", ("* expert_logits", "* amateur_logits"),
     ("* expert_logits.log_softmax(-1)", "* amateur_logits.log_softmax(-1)"),
     "whether this form needs a softmax"),
    ("the mask on the amateur", "candidates(expert", "candidates(amateur", "whose logits the mask reads"),
    ("the mask on the mixed logits", "candidates(expert_logits", "candidates(mixed", "whose logits the mask reads"),
    ("the mask on (1 + beta) expert", "candidates(expert", "candidates((1 + beta) * expert", "what the mask reads"),
    ("masked tokens get 0", "-math.inf", "0.0", "the value of who is out: 0 is not low"),
    ("the mask is missing", "alpha=alpha", "alpha=None", "what the absurd tokens get"),
], earlier=[check_candidates])

FACTOR = "the logit form divided by 1 + beta: what is then the amateur's factor?"
check_translation = Part(6, my_translation, [
    Case("beta 0 is strength 0, the temperature stays", (0.0,), (0.0, 1.0)),
    Case("beta 1 is strength 1/2; the logit form is twice as steep", (1.0,), (0.5, 0.5)),
    Case("beta 3", (3.0,), (0.75, 0.25)),
    Case("both are sampled at another temperature", (1.0,), (0.5, 1.0), {"temperature": 2.0}),
    Case("greedy stays greedy", (1.0,), (0.5, 0.0), {"temperature": 0.0}),
    ("beta taken for the strength", "beta / (1 + beta)", "beta", FACTOR),
    ("the temperature is not translated", "temperature / (1 + beta)", "temperature", "the common factor of all scores"),
    ("beta taken as it is", " / (1 + beta)", "", FACTOR),
    ("the temperature in the wrong direction", "temperature /", "temperature *", "which of the two forms is steeper"),
    ("the expert's share for the amateur's", "beta /", "1 /", "the strength at beta 0: the amateur has no say there"),
    ("the temperature is ignored", "temperature /", "1 /", "where `temperature` is used"),
])
