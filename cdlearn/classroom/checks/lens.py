"""Checks of assignment 04, parts 1 to 3: the logit lens, the distance of two rows, the candidate layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, tensor

from cdlearn.classroom.checks.core import Case, Part


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


def my_lens(hidden_states, norm, head):
    """hidden_states: 1 + L tensors [B, T, width]. norm, head: functions of a tensor. Returns [1 + L, B, T, V]."""
    *early, last = hidden_states
    return torch.stack([*(head(norm(state)) for state in early), head(last)])


def _lens(says: str, states: list, logits: list) -> Case:
    example = "norm divides by the largest size, then doubles entry 0; head gives both entries and their sum. "
    example += f"my_lens({states}, norm, head)"
    return Case(says, (tuple(map(tensor, states)), TopNorm(), SumHead()), tensor(logits), {}, example)


# fmt: off
_EACH = "head(norm(state))"

check_lens = Part(1, my_lens, [
    _lens("an early state goes through norm and head, the last one is normed already",
          [[[[2.0, 4.0]]], [[[1.0, 0.5]]]], [[[[1.0, 1.0, 2.0]]], [[[1.0, 0.5, 1.5]]]]),
    _lens("every layer, every row of the batch: [1 + L, B, T, V]",
          [[[[2.0, 4.0]], [[4.0, 1.0]]], [[[-2.0, 1.0]], [[0.0, 3.0]]], [[[1.0, 0.5]], [[2.0, 1.0]]]],
          [[[[1.0, 1.0, 2.0]], [[2.0, 0.25, 2.25]]], [[[-2.0, 0.5, -1.5]], [[0.0, 1.0, 1.0]]],
           [[[1.0, 0.5, 1.5]], [[2.0, 1.0, 3.0]]]]),
], [
    ("the final norm forgotten", _EACH, "head(state)",
     "what stands between the last layer and the head in the model: early states have not been through it"),
    ("the last state normed twice", "head(last)", "head(norm(last))",
     "hidden_states[-1]: transformers has put it through the norm already"),
    ("the norm behind the head", _EACH, "norm(head(state))",
     "the order: the norm works on states, the head makes logits of what it gives"),
    ("the norm on the last state only", (_EACH, "head(last)"), ("head(state)", "head(norm(last))"),
     "which of the states is normed already: it is one alone, and not an early one"),
    ("layer 0 left out", "in early", "in early[1:]", "state 0, the embedding: it belongs to the answer, 1 + L rows"),
    ("the last layer left out", ", head(last)", "", "the last state: it needs no norm, but it needs the head"),
    ("probabilities where logits belong", "head(last)])", "head(last)]).softmax(-1)",
     "what is asked for: logits, as they come from the head"),
])
# fmt: on


def my_jsd(p_logits, q_logits):
    """p_logits, q_logits: [..., V] float, leading dimensions broadcast. Returns [...] in nats."""
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    entropy_p, entropy_q, entropy_m = (torch.special.entr(x).sum(-1) for x in (p, q, (p + q) / 2))
    return entropy_m - (entropy_p + entropy_q) / 2


_END = "entropy_m - (entropy_p + entropy_q) / 2"


def _kl(rule: str, mean: str = "(p + q) / 2") -> str:
    """A distance made of Kullback-Leibler divergences instead of entropies."""
    return f"(lambda kl, m: {rule})(lambda a, b: (a * (a / b).log()).nansum(-1), {mean})"


# fmt: off
_P, _Q = tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]).log()
_SURE, _NEVER = tensor([[0.0, -math.inf], [-math.inf, 0.0]])
_RAW = "((p * (p_logits - m.log())).sum(-1) + (q * (q_logits - m.log())).sum(-1)) / 2"
_ORDER = "the order: what is the first argument of KL, and whose probabilities weigh the logarithms?"

check_jsd = Part(2, my_jsd, [
    Case("half of KL(p || m) and half of KL(q || m), where m is the mean", (_P, _Q), tensor(0.0521220)),
    Case("it is symmetric", (_Q, _P), tensor(0.0521220)),
    Case("a constant added to all logits changes no probability", (_P + 2, _Q - 1), tensor(0.0521220)),
    Case("equal rows are 0 apart", (_P, _P + 1), tensor(0.0)),
    Case("a token of probability 0 adds nothing, and is no nan", (torch.zeros(2), _SURE), tensor(0.2157616)),
    Case("rows that share no token are ln 2 apart", (_SURE, _NEVER), tensor(math.log(2))),
    Case("every row by itself, and one row against many", (_P + 1, torch.stack([_Q, _P, _Q + 3])),
         tensor([0.0521220, 0.0, 0.0521220])),
], [
    ("raw logits where log-probabilities belong", _END, _kl(_RAW),
     "the logarithms: are they of numbers that sum to 1?"),
    ("the arguments of KL exchanged", _END, _kl("(kl(m, p) + kl(m, q)) / 2"), _ORDER),
    ("exchanged and averaged over the vocabulary, as in DoLa's official code", _END,
     _kl("(kl(m, p) + kl(m, q)) / 2 / p.shape[-1]"), _ORDER),
    ("KL, not Jensen-Shannon", _END, _kl("kl(p, q)"), "whom both are compared with: m"),
    ("one half of the sum is missing", _END, _kl("kl(p, m)"), "what happens when p and q trade places"),
    ("the mean of both KL without m", _END, _kl("(kl(p, q) + kl(q, p)) / 2"), "whom both are compared with: m"),
    ("twice too much", _END, f"2 * ({_END})", "the factor before each KL"),
    ("bits where nats belong", _END, f"({_END}) / math.log(2)", "the base of the logarithm: the natural one"),
    ("the square root of the divergence", _END, f"({_END}).clamp(min=0).sqrt()", "the last operation"),
    ("the mean over the vocabulary", _END, f"({_END}) / p.shape[-1]", "what is done over the vocabulary: a sum"),
    ("the mean of the logits", _END, _kl("(kl(p, m) + kl(q, m)) / 2", "((p_logits + q_logits) / 2).softmax(-1)"),
     "what m is the mean of: probabilities"),
    ("0 times the logarithm of 0", "torch.special.entr(x)", "(-x * x.log())",
     "a token of probability 0: 0 * log 0 should count 0 (torch.special.entr knows that, torch.where helps)"),
])
# fmt: on


def my_candidates(num_layers, half, tied):
    """num_layers: int. half: "low" or "high". tied: bool. Returns a list of layers, smallest first."""
    middle = num_layers // 2
    layers = range(middle) if half == "low" else range(middle, num_layers)
    return [layer for layer in layers if layer % 2 == 0 and not (tied and layer == 0)]


# fmt: off
check_candidates = Part(3, my_candidates, [
    Case("the lower half: even layers below the middle", (8, "low", False), [0, 2]),
    Case("the upper half: even layers from the middle on, never the last", (8, "high", False), [4, 6]),
    Case("tied embeddings: layer 0 only repeats its input", (8, "low", True), [2]),
    Case("an odd middle: 10 layers part at 5", (10, "low", True), [2, 4]),
    Case("an odd middle: 10 layers part at 5", (10, "high", True), [6, 8]),
    Case("an odd number of layers is halved downwards", (9, "high", False), [4, 6, 8]),
], [
    ("the last layer as a candidate", "range(middle, num_layers)", "range(middle, num_layers + 1)",
     "the end: the last layer would be contrasted with itself"),
    ("odd layers too", "layer % 2 == 0 and ", "", "which layers are offered: every second one"),
    ("layer 0 in spite of tied embeddings", " and not (tied and layer == 0)", "", "what `tied` forbids"),
    ("the middle in both halves", "range(middle) if", "range(middle + 1) if",
     "where the lower half ends: before the middle"),
    ("the halves exchanged", 'half == "low"', 'half == "high"',
     "which half is low: layers are counted from the input"),
])
# fmt: on
