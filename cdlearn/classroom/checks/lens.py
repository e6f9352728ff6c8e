"""Checks of assignment 04, parts 1 to 3: the logit lens, the distance of two rows, the candidate layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check

# ---- part 1: my_lens(hidden_states, norm, head) -> [1 + L, B, T, V]


class TopNorm:
    """A final norm to follow by hand: divide by the largest size of an entry, then double entry 0."""

    def __call__(self, state: Tensor) -> Tensor:
        scaled = state / state.abs().amax(dim=-1, keepdim=True)
        return torch.cat([2 * scaled[..., :1], scaled[..., 1:]], dim=-1)

    def __repr__(self) -> str:
        return "norm"


class SumHead:
    """A head from two numbers to three logits: both numbers, and their sum."""

    def __call__(self, state: Tensor) -> Tensor:
        return torch.cat([state, state.sum(dim=-1, keepdim=True)], dim=-1)

    def __repr__(self) -> str:
        return "head"


_TOY = "norm divides by the largest size, then doubles entry 0; head gives both entries and their sum. "


def _lens_case(says: str, states: list, logits: list) -> Case:
    hidden = tuple(torch.tensor(state) for state in states)
    example = f"{_TOY}my_lens({states}, norm, head)"
    return Case(says, (hidden, TopNorm(), SumHead()), torch.tensor(logits), {}, example)


LENS = [
    _lens_case(
        "an early state goes through norm and head, the last one is normed already",
        [[[[2.0, 4.0]]], [[[1.0, 0.5]]]],
        [[[[1.0, 1.0, 2.0]]], [[[1.0, 0.5, 1.5]]]],
    ),
    _lens_case(
        "every layer, every row of the batch: [1 + L, B, T, V]",
        [[[[2.0, 4.0]], [[4.0, 1.0]]], [[[-2.0, 1.0]], [[0.0, 3.0]]], [[[1.0, 0.5]], [[2.0, 1.0]]]],
        [
            [[[1.0, 1.0, 2.0]], [[2.0, 0.25, 2.25]]],
            [[[-2.0, 0.5, -1.5]], [[0.0, 1.0, 1.0]]],
            [[[1.0, 0.5, 1.5]], [[2.0, 1.0, 3.0]]],
        ],
    ),
]

LENS_MISTAKES = [
    Mistake(
        "the final norm forgotten",
        lambda states, norm, head: torch.stack([head(state) for state in states]),
        "what stands between the last layer and the head in the model: early states have not been through it",
    ),
    Mistake(
        "the last state normed twice",
        lambda states, norm, head: torch.stack([head(norm(state)) for state in states]),
        "hidden_states[-1]: transformers has put it through the norm already",
    ),
    Mistake(
        "the norm behind the head",
        lambda states, norm, head: torch.stack([*(norm(head(s)) for s in states[:-1]), head(states[-1])]),
        "the order: the norm works on states, the head makes logits of what it gives",
    ),
    Mistake(
        "the norm on the last state only",
        lambda states, norm, head: torch.stack([*(head(s) for s in states[:-1]), head(norm(states[-1]))]),
        "which of the states is normed already: it is one alone, and not an early one",
    ),
    Mistake(
        "layer 0 left out",
        lambda states, norm, head: torch.stack([*(head(norm(s)) for s in states[1:-1]), head(states[-1])]),
        "state 0, the embedding: it belongs to the answer, 1 + L rows",
    ),
    Mistake(
        "the last layer left out",
        lambda states, norm, head: torch.stack([head(norm(s)) for s in states[:-1]]),
        "the last state: it needs no norm, but it needs the head",
    ),
    Mistake(
        "probabilities where logits belong",
        lambda states, norm, head: torch.stack([*(head(norm(s)) for s in states[:-1]), head(states[-1])]).softmax(-1),
        "what is asked for: logits, as they come from the head",
    ),
]


def check_lens(function: Callable, *, cases: Sequence[Case] = LENS) -> Result:
    """Check part 1 of assignment 04: the logits of every layer."""
    return run_check("my_lens", function, cases, LENS_MISTAKES)


# ---- part 2: my_jsd(p_logits, q_logits) -> [...] in nats

_P, _Q = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
_SURE, _NEVER = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
_HALF = torch.tensor([0.0, 0.0])

JSD = [
    Case("half of KL(p || m) and half of KL(q || m), where m is the mean", (_P, _Q), torch.tensor(0.0521220)),
    Case("it is symmetric", (_Q, _P), torch.tensor(0.0521220)),
    Case("a constant added to all logits changes no probability", (_P + 2, _Q - 1), torch.tensor(0.0521220)),
    Case("equal rows are 0 apart", (_P, _P + 1), torch.tensor(0.0)),
    Case("a token of probability 0 adds nothing, and is no nan", (_HALF, _SURE), torch.tensor(0.2157616)),
    Case("rows that share no token are ln 2 apart", (_SURE, _NEVER), torch.tensor(math.log(2))),
    Case(
        "every row by itself, and one row against many",
        (_P + 1, torch.stack([_Q, _P, _Q + 3])),
        torch.tensor([0.0521220, 0.0, 0.0521220]),
    ),
]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1)


def _with_mean(rule: Callable) -> Callable:
    """A mistake from a rule on p, q and their mean m."""

    def gives(p_logits, q_logits):
        p, q = (logits.softmax(-1) for logits in (p_logits, q_logits))
        return rule(p, q, (p + q) / 2)

    return gives


def _raw(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q = (logits.softmax(-1) for logits in (p_logits, q_logits))
    log_m = ((p + q) / 2).log()
    return ((p * (p_logits - log_m)).sum(-1) + (q * (q_logits - log_m)).sum(-1)) / 2


def _mean_of_logits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    p, q, m = p_logits.softmax(-1), q_logits.softmax(-1), ((p_logits + q_logits) / 2).softmax(-1)
    return (_kl(p, m) + _kl(q, m)) / 2


_ORDER = "the order: what is the first argument of KL, and whose probabilities weigh the logarithms?"
JSD_MISTAKES = [
    Mistake("raw logits where log-probabilities belong", _raw, "the logarithms: are they of numbers that sum to 1?"),
    Mistake("the arguments of KL exchanged", _with_mean(lambda p, q, m: (_kl(m, p) + _kl(m, q)) / 2), _ORDER),
    Mistake(
        "exchanged and averaged over the vocabulary, as in DoLa's official code",
        _with_mean(lambda p, q, m: (_kl(m, p) + _kl(m, q)) / 2 / p.shape[-1]),
        _ORDER,
    ),
    Mistake("KL, not Jensen-Shannon", _with_mean(lambda p, q, m: _kl(p, q)), "whom both are compared with: m"),
    Mistake(
        "one half of the sum is missing",
        _with_mean(lambda p, q, m: _kl(p, m)),
        "what happens when p and q trade places",
    ),
    Mistake(
        "the mean of both KL without m",
        _with_mean(lambda p, q, m: (_kl(p, q) + _kl(q, p)) / 2),
        "whom both are compared with: m",
    ),
    Mistake("twice too much", _with_mean(lambda p, q, m: _kl(p, m) + _kl(q, m)), "the factor before each KL"),
    Mistake(
        "bits where nats belong",
        _with_mean(lambda p, q, m: (_kl(p, m) + _kl(q, m)) / 2 / math.log(2)),
        "the base of the logarithm: the natural one",
    ),
    Mistake(
        "the square root of the divergence",
        _with_mean(lambda p, q, m: ((_kl(p, m) + _kl(q, m)) / 2).sqrt()),
        "the last operation",
    ),
    Mistake(
        "the mean over the vocabulary",
        _with_mean(lambda p, q, m: (_kl(p, m) + _kl(q, m)) / 2 / p.shape[-1]),
        "what is done over the vocabulary: a sum",
    ),
    Mistake("the mean of the logits", _mean_of_logits, "what m is the mean of: probabilities"),
    Mistake(
        "0 times the logarithm of 0",
        _with_mean(lambda p, q, m: ((p * (p.log() - m.log())).sum(-1) + (q * (q.log() - m.log())).sum(-1)) / 2),
        "a token of probability 0: 0 * log 0 should count 0 (torch.special.entr knows that, torch.where helps)",
    ),
]


def check_jsd(function: Callable, *, cases: Sequence[Case] = JSD) -> Result:
    """Check part 2 of assignment 04: the Jensen-Shannon divergence of rows of logits."""
    return run_check("my_jsd", function, cases, JSD_MISTAKES)


# ---- part 3: my_candidates(num_layers, half, tied) -> a list of layers

CANDIDATES = [
    Case("the lower half: even layers below the middle", (8, "low", False), [0, 2]),
    Case("the upper half: even layers from the middle on, never the last", (8, "high", False), [4, 6]),
    Case("tied embeddings: layer 0 only repeats its input", (8, "low", True), [2]),
    Case("an odd middle: 10 layers part at 5", (10, "low", True), [2, 4]),
    Case("an odd middle: 10 layers part at 5", (10, "high", True), [6, 8]),
    Case("an odd number of layers is halved downwards", (9, "high", False), [4, 6, 8]),
]


def _layers(step: int = 2, last: int = 0, zero: bool = False, middle: int = 0) -> Callable:
    """Candidates with one thing wrong."""

    def gives(n, half, tied):
        start, stop = (0, n // 2 + middle) if half == "low" else (n // 2, n + last)
        return [k for k in range(start, stop) if k % step == 0 and (zero or k > 0 or not tied)]

    return gives


CANDIDATES_MISTAKES = [
    Mistake(
        "the last layer as a candidate", _layers(last=1), "the end: the last layer would be contrasted with itself"
    ),
    Mistake("odd layers too", _layers(step=1), "which layers are offered: every second one"),
    Mistake("layer 0 in spite of tied embeddings", _layers(zero=True), "what `tied` forbids"),
    Mistake("the middle in both halves", _layers(middle=1), "where the lower half ends: before the middle"),
    Mistake(
        "the halves exchanged",
        lambda n, half, tied: _layers()(n, "high" if half == "low" else "low", tied),
        "which half is low: layers are counted from the input",
    ),
]


def check_candidates(function: Callable, *, cases: Sequence[Case] = CANDIDATES) -> Result:
    """Check part 3 of assignment 04: which layers may be the amateur."""
    return run_check("my_candidates", function, cases, CANDIDATES_MISTAKES)
