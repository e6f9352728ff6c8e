"""Checks of assignment 04: the logit lens, the distance of two rows, candidate layers, DoLa's scores and its loop."""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, tensor

from cdlearn.classroom.checks.core import LOG_PROBS, PREFIX, Case, Part
from cdlearn.classroom.checks.models import Model, Named


def my_lens(hidden_states, norm, head):
    *early, last = hidden_states
    return torch.stack([*(head(norm(state)) for state in early), head(last)])


def my_jsd(p_logits, q_logits, weight=0.5):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    m = (1 - weight) * p + weight * q
    entropy_p, entropy_q, entropy_m = (torch.special.entr(x).sum(-1) for x in (p, q, m))
    return entropy_m - (1 - weight) * entropy_p - weight * entropy_q


def my_candidates(num_layers, half, tied):
    middle = num_layers // 2
    layers = range(middle) if half == "low" else range(middle, num_layers)
    return [layer for layer in layers if layer % 2 == 0 and not (tied and layer == 0)]


def my_layer(logits, candidates):
    distances = my_jsd(logits[-1], logits[candidates])  # (C, B)
    return torch.tensor(candidates)[distances.argmax(0)]


def my_scores(logits, layers, alpha=0.1):
    last, early = logits[-1], logits[layers, torch.arange(len(layers))]  # (B, V) each
    keep = last >= last.max(-1, keepdim=True).values + math.log(alpha)
    return (last.log_softmax(-1) - early.log_softmax(-1)).masked_fill(~keep, -math.inf)


def my_dola(model, norm, head, ids, candidates, *, hold, max_new_tokens, alpha=0.1):
    new, layers = [], []
    for step in range(max_new_tokens):
        states = model(ids, output_hidden_states=True).hidden_states
        logits = my_lens([state[:, -1:] for state in states], norm, head)[:, :, 0]  # (1 + L, 1, V)
        if step % hold == 0:
            layer = my_layer(logits, candidates)
        token = my_scores(logits, layer, alpha).argmax(-1)
        new.append(token.item())
        layers.append(layer.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, layers


def _lens(says: str, states: list, logits: list) -> Case:
    def norm(state: Tensor) -> Tensor:
        scaled = state / state.abs().amax(dim=-1, keepdim=True)
        return torch.cat([2 * scaled[..., :1], scaled[..., 1:]], dim=-1)

    head = Named("head", lambda state: torch.cat([state, state.sum(-1, keepdim=True)], dim=-1))
    words = "norm divides by the largest size, then doubles entry 0; head gives both entries and their sum. "
    args = tuple(map(tensor, states)), Named("norm", norm), head
    return Case(says, args, tensor(logits), {}, f"{words}my_lens({states}, norm, head)")


def _logs(*layers: list[float]) -> Tensor:
    """Layers of one row of a batch, given as probabilities: log-probabilities, [1 + L, 1, V]."""
    return tensor(layers).log()[:, None]


def _layers(ids: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
    """Every layer looks at s, the sum of token * position: token (s + k) % 4 has the k-th number of its row for s even
    or odd. Early states are log-probabilities moved one place to the left, for the norm moves them to the right."""
    sums = (ids * torch.arange(1, 1 + ids.shape[1])).cumsum(1)[..., None]  # (B, T, 1)
    turned = (torch.arange(4) - sums) % 4  # (B, T, 4): the k of every token
    *early, last = (torch.where(sums % 2 == 0, even[turned], odd[turned]) for even, odd in zip(S_EVEN, S_ODD))
    states = (*(state.roll(-1, -1) for state in early), last)
    return SimpleNamespace(logits=last, hidden_states=states if output_hidden_states else None)


def _dola(says: str, ids: list[int], most: int, expected: tuple, offered: Sequence[int] = (1, 2), **more) -> Case:
    words = (
        "with s the sum of token * position modulo 4, positions from 1, the numbers are the probabilities of s and "
        "s + 1. The last layer says .52 .40. After the norm, layer 1 says .90 .08 for even s and .40 .47 for odd s; "
        "layer 2 says .40 .55 and .05 .87; layer 0 is always far. The norm moves the numbers of an early state one "
        "token on, the head changes nothing. "
        f"my_dola(model, norm, head, [{ids}], {list(offered)}"
    )
    options = {"hold": 1, "max_new_tokens": most} | more
    words += "".join(f", {name}={value}" for name, value in options.items()) + ")"
    model, head = Model("a LayersLM", _layers), Named("head", torch.clone)
    norm = Named("norm", lambda state: state.roll(1, -1))
    return Case(says, (model, norm, head, tensor([ids]), list(offered)), expected, options, words)


# fmt: off
check_lens = Part(1, my_lens, [
    _lens("an early state goes through norm and head, the last one is normed already",
          [[[[2.0, 4.0]]], [[[1.0, 0.5]]]], [[[[1.0, 1.0, 2.0]]], [[[1.0, 0.5, 1.5]]]]),
    _lens("every layer, every row of the batch: [1 + L, B, T, V]",
          [[[[2.0, 4.0]], [[4.0, 1.0]]], [[[-2.0, 1.0]], [[0.0, 3.0]]], [[[1.0, 0.5]], [[2.0, 1.0]]]],
          [[[[1.0, 1.0, 2.0]], [[2.0, 0.25, 2.25]]], [[[-2.0, 0.5, -1.5]], [[0.0, 1.0, 1.0]]],
           [[[1.0, 0.5, 1.5]], [[2.0, 1.0, 3.0]]]]),
    ("the final norm forgotten", "norm(state)", "state", "what the model does between its last layer and the head"),
    ("the last state normed twice", "(last)", "(norm(last))", "what hidden_states[-1] has been through already"),
    ("the norm after the head", "head(norm(", "norm(head(", "the order of norm and head"),
    ("the norm on the last state only", ("norm(state)", "head(last)"), ("state", "head(norm(last))"),
     "which of the states has been normed already"),
    ("layer 0 left out", "in early", "in early[1:]", "state 0, the embedding"),
    ("the last layer left out", ", head(last)", "", "the last state"),
    ("probabilities where logits belong", ")])", ")]).softmax(-1)", "what is asked for: logits"),
])

P, Q, APART = tensor([0.5, 0.3, 0.2]).log(), tensor([0.8, 0.1, 0.1]).log(), 0.0521220  # P and Q are so far apart
EVEN, SURE, NEVER = tensor([0.0, 0.0]), tensor([0.0, -math.inf]), tensor([-math.inf, 0.0])
JSD, MEAN = "return entropy_m - (1 - weight) * entropy_p - weight * entropy_q", "(1 - weight) * p + weight * q"
KLS, BACK = (f"(1 - weight) * kl({a}) + weight * kl({b})" for a, b in (("p, m", "q, m"), ("m, p", "m, q")))
WHOSE = "whose share `weight` is: that of q, in m and in the result"
KL = "kl = lambda a, b: torch.where(a > 0, a * (a.log() - b.log()), 0.0).sum(-1)\n    return "
ORDER = "the order: what is the first argument of KL, and whose probabilities weigh the logarithms?"
check_jsd = Part(2, my_jsd, [
    Case("with weight 0.5: half of KL(p || m) and half of KL(q || m), where m is the mean", (P, Q), tensor(APART)),
    Case("with weight 0.5 it is symmetric", (Q, P), tensor(APART)),
    Case("the weight is the share of q, in m and in the result", (P, Q), tensor(0.0377920), {"weight": 0.25}),
    Case("with the rest of the weight, the rows trade places", (Q, P), tensor(0.0377920), {"weight": 0.75}),
    Case("with weight 0 only p is left, and p is what m is", (P, Q), tensor(0.0), {"weight": 0.0}),
    Case("a constant added to all logits changes no probability", (P + 2, Q - 1), tensor(APART)),
    Case("equal rows are 0 apart", (P, P + 1), tensor(0.0)),
    Case("a token of probability 0 adds nothing, and is no nan", (EVEN, SURE), tensor(0.2157616)),
    Case("rows that share no token are ln 2 apart", (SURE, NEVER), tensor(math.log(2))),
    Case("every row by itself, one against many", (P + 1, torch.stack([Q, P, Q + 3])), tensor([APART, 0.0, APART])),
    ("the weight is ignored: the divergence of notebook 06", "    p, q =", "    weight = 0.5\n    p, q =", WHOSE),
    ("the weights exchanged", "    p, q =", "    weight = 1 - weight\n    p, q =", WHOSE),
    ("the plain mean for m", MEAN, "(p + q) / 2", WHOSE),
    ("the plain mean for m", (MEAN, JSD), ("(p + q) / 2", KL + KLS), WHOSE),
    ("the weight in m alone", JSD, KL + "(kl(p, m) + kl(q, m)) / 2", WHOSE),
    ("raw logits where log-probabilities belong", "- (1 - weight) * entropy_p - weight * entropy_q",
     "+ (1 - weight) * (p * p_logits).sum(-1) + weight * (q * q_logits).sum(-1)",
     "the logarithms"),
    ("the arguments of KL exchanged", JSD, f"{KL}{BACK}", ORDER),
    ("exchanged and averaged over the vocabulary, as in DoLa's code", JSD, f"{KL}({BACK}) / p.shape[-1]", ORDER),
    ("KL, not Jensen-Shannon", JSD, KL + "kl(p, q)", "what both are compared with: m"),
    ("one half of the sum is missing", JSD, KL + "kl(p, m)", "what happens when p and q trade places"),
    ("the mean of both KL without m", JSD, KL + "(kl(p, q) + kl(q, p)) / 2", "what both are compared with: m"),
    ("the factors are missing", JSD, KL + "kl(p, m) + kl(q, m)", "the factor before each KL"),
    ("bits where nats belong", ".sum(-1)", ".sum(-1) / math.log(2)", "the base of the logarithm: the natural one"),
    ("the square root of the divergence", JSD, f"{KL}({KLS}).sqrt()", "the last operation"),
    ("the mean over the vocabulary", ".sum(-1)", ".mean(-1)", "what is done over the vocabulary: a sum"),
    ("the mean of the logits", (MEAN, JSD),
     ("((1 - weight) * p_logits + weight * q_logits).softmax(-1)", KL + KLS),
     "what m is the mean of"),
    ("0 times the logarithm of 0", "torch.special.entr(x)", "-(x * x.log())", "a token of probability 0"),
], raised={"unexpected keyword argument 'weight'": "`weight`: the divergence of notebook 06 has none, this one does"})

check_candidates = Part(3, my_candidates, [
    Case("the lower half: even layers below the middle", (8, "low", False), [0, 2]),
    Case("the upper half: even layers from the middle on, never the last", (8, "high", False), [4, 6]),
    Case("tied embeddings: layer 0 only repeats its input", (8, "low", True), [2]),
    Case("an odd middle: 10 layers part at 5", (10, "low", True), [2, 4]),
    Case("an odd middle: 10 layers part at 5", (10, "high", True), [6, 8]),
    Case("tied embeddings: they concern no layer of the upper half", (12, "high", True), [6, 8, 10]),
    Case("an odd number of layers is halved downwards, with or without layer 0", (9, "low", True), [2]),
    Case("an odd number of layers is halved downwards", (9, "high", False), [4, 6, 8]),
    ("the last layer as a candidate", ", num_layers)", ", num_layers + 1)", "where the upper half ends"),
    ("odd layers too", "layer % 2 == 0 and ", "", "which layers are offered: every second one"),
    ("every second layer from an odd middle on", ("range(middle, num_layers)", "layer % 2 == 0"),
     ("range(middle, num_layers, 2)", '(half == "high" or layer % 2 == 0)'), "the first even layer from the middle on"),
    ("layer 0 in spite of tied embeddings", " and not (tied and layer == 0)", "", "what `tied` forbids"),
    ("half of the list of even layers", "middle = num_layers // 2",
     "even = range(2 * tied, num_layers, 2)\n    middle = even[len(even) // 2]", "what is halved: the model"),
    ("half of an odd number rounded up", "num_layers // 2", "(num_layers + 1) // 2", "how an odd number is halved"),
    ("the middle in both halves", "(middle) if", "(middle + 1) if", "where the lower half ends: before the middle"),
    ("the halves exchanged", '"low"', '"high"', "which half is low: layers are counted from the input"),
])

LAST, FAR = [0.50, 0.43, 0.04, 0.03], [0.80, 0.13, 0.04, 0.03]
ODD, NEAR = [0.02, 0.02, 0.95, 0.01], [0.52, 0.41, 0.04, 0.03]
ONE, TWO = _logs(ODD, FAR, NEAR, LAST), _logs(ODD, NEAR, [0.20, 0.73, 0.04, 0.03], LAST)
TIE = _logs(ODD, FAR, FAR, LAST)
RARE = _logs(ODD, FAR, [0.52, 0.45, 0.03, 1e-9], LAST)
STEP = _logs(FAR, [0.75, 0.18, 0.04, 0.03], [0.40, 0.53, 0.04, 0.03], LAST)
BOTH = torch.cat([ONE, TWO + 1], dim=1)
WHOM = "what the candidates are compared with: logits[-1]"
check_layer = Part(4, my_layer, [
    Case("the candidate that differs most from the last layer", (ONE, [1, 2]), tensor([1])),
    Case("the layer's number, not its place in the list", (TWO, [1, 2]), tensor([2])),
    Case("compared with the last layer, not with the next one", (STEP, [1, 2]), tensor([1])),
    Case("every row of the batch has its own layer", (BOTH, [2, 1]), tensor([1, 2])),
    Case("only candidates are asked", (BOTH, [2]), tensor([2, 2])),
    Case("of two that are equally far, the first in the list", (TIE, [2, 1]), tensor([2])),
    Case("the Jensen-Shannon divergence: one very rare token does not decide", (RARE, [1, 2]), tensor([1])),
    ("one layer for the whole batch", "argmax(0)", "mean(1).argmax().expand(logits.shape[1])", "the dimension"),
    ("the place in the list, not the layer", "torch.tensor(candidates)[distances.argmax(0)]", "distances.argmax(0)",
     "what argmax counts"),
    ("the nearest layer", "argmax", "argmin", "which distance wins: the largest"),
    ("layers that are no candidates", ("logits[candidates]", "torch.tensor(candidates)"),
     ("logits", "torch.arange(len(logits))"), "which rows of `logits` are compared"),
    ("KL, not Jensen-Shannon", "distances = my_jsd(logits[-1], logits[candidates])",
     "p, q = logits[-1].softmax(-1), logits[candidates].softmax(-1)\n    distances = (p * (p / q).log()).sum(-1)",
     "the distance where one row rules a token out"),
    ("compared with the next layer", "logits[-1]", "logits[[layer + 1 for layer in candidates]]", WHOM),
    ("compared with layer 0", "logits[-1]", "logits[0]", WHOM),
    ("a tie does not go to the first in the list", "distances.argmax(0)", "-1 - distances.flip(0).argmax(0)",
     "which of two equals is taken"),
], earlier=[check_jsd], sure=True)

S1 = _logs([0.25, 0.25, 0.25, 0.25], [0.30, 0.02, 0.60, 0.08], [0.50, 0.44, 0.04, 0.02])
S2 = _logs([0.10, 0.20, 0.30, 0.40], [0.40, 0.30, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10])
FLAT = _logs([0.10, 0.20, 0.30, 0.40], [0.40, 0.30, 0.20, 0.10], [0.25, 0.25, 0.249, 0.251])
R3, ROW = [0.9162907, 0.2231436, -0.1863296, -0.4660117], "the dimension of the maximum: one for every row"
R1, R2 = [0.5108256, 3.0910425, -math.inf, -math.inf], [0.0, 1.0986123, -0.4054651, -1.3862944]
check_scores = Part(5, my_scores, [
    Case("log p_final - log p_premature where the last layer finds it plausible", (S1, tensor([1])), tensor([R1])),
    Case("constants change nothing", (S2 + tensor([1.0, 2.0, -1.0])[:, None, None], tensor([0])), tensor([R2])),
    Case("alpha sets the threshold", (S1, tensor([1])), tensor([[R1[0], *3 * [-math.inf]]]), {"alpha": 0.9}),
    Case("a token far below the best keeps its log-probability",
         (tensor([[[0.0, -200.0]], [[0.0, 0.0]]]), tensor([0])), tensor([[-0.6931472, 199.3068528]])),
    Case("every row is contrasted with its own layer", (torch.cat([S1, S2], dim=1), tensor([1, 0])), tensor([R1, R2])),
    Case("the best token is always kept, and so is a tie", (tensor([[[0.0, 0, 0]], [[2.0, 2, 1]]]), tensor([0])),
         tensor([[0.2366175, 0.2366175, -math.inf]]), {"alpha": 1.0}),
    Case("every row of a batch has its own best token", (torch.cat([S1 + 3, FLAT], dim=1), tensor([1, 0])),
         tensor([R1, R3]), {"alpha": 0.6}),
    ("the mask on the premature layer", "last >= last", "early >= early", "who says what is plausible: the last layer"),
    ("the mask is missing", ".masked_fill(~keep, -math.inf)", "", "the score of tokens that the last layer rules out"),
    *LOG_PROBS,
    ("the layers exchanged", "last.log_softmax(-1) - early", "early.log_softmax(-1) - last", "which is subtracted"),
    ("masked tokens get the score 0", "-math.inf", "0.0", "the score of a token that is out: 0 may be the best"),
    ("alpha is ignored", "log(alpha)", "log(0.1)", "where `alpha` is used"),
    ("more than instead of at least", ">=", ">", "the comparison where both sides are equal"),
    ("one best token for the whole batch", "last.max(-1, keepdim=True).values", "last.max()", ROW),
    ("one best token for the whole batch", "last >= last.max(-1, keepdim=True).values + math.log(alpha)",
     "last.softmax(-1) >= alpha * last.softmax(-1).max()", ROW),
    ("the layer of the first row for all rows", "[layers,", "[layers[0],", "which layer each row is contrasted with"),
    ("the layer below the last for all rows", "[layers,", "[-2,", "where `layers` is used"),
])

ENDS = [0.01, 0.01, 0.01, 0.97], [0.52, 0.40, 0.04, 0.04]
S_EVEN = _logs(ENDS[0], [0.90, 0.08, 0.0002, 0.0198], [0.40, 0.55, 0.03, 0.02], ENDS[1])[:, 0]
S_ODD = _logs(ENDS[0], [0.40, 0.47, 0.07, 0.06], [0.05, 0.87, 0.06, 0.02], ENDS[1])[:, 0]
TOKEN, CHOSEN = "my_scores(logits, layer, alpha)", "what chooses the token: the scores of part 5"
check_dola = Part(6, my_dola, [
    _dola("one step: the far layer is subtracted", [2, 1], 1, ([1], [1])),
    _dola("with hold=1 the layer is chosen anew at every step", [2, 1], 2, ([1, 3], [1, 2])),
    _dola("every step reads the whole prefix", [2, 1], 4, ([1, 3, 3, 3], [1, 2, 2, 1])),
    _dola("a chosen layer serves for `hold` tokens", [2, 1], 5, ([1, 3, 3, 2, 3], [1, 1, 2, 2, 1]), hold=2),
    _dola("a chosen layer serves for `hold` tokens", [1, 3], 5, ([3, 0, 0, 1, 3], [2, 2, 2, 1, 1]), hold=3),
    _dola("one candidate is the static form", [2, 1], 3, ([0, 0, 0], [2, 2, 2]), [2]),
    _dola("one candidate is the static form", [1, 2], 3, ([1, 1, 1], [1, 1, 1]), [1]),
    _dola("alpha sets the threshold of the mask", [2, 1], 1, ([0], [1]), alpha=0.9),
    _dola("with max_new_tokens=0 there is nothing to do", [2, 1], 0, ([], [])),
    ("the final norm forgotten", "norm, head)[", "torch.clone, head)[", "what your lens does"),
    ("the final norm twice", "norm, head)[", "lambda state: norm(norm(state)), head)[", "what your lens does"),
    ("the last state normed twice", "[state[:, -1:] for state in states]",
     "[*(state[:, -1:] for state in states[:-1]), norm(states[-1][:, -1:])]",
     "what hidden_states[-1] has been through already"),
    ("the last layer alone", TOKEN, "logits[-1]", CHOSEN),
    ("the premature layer alone", TOKEN, "logits[layer[0]]", CHOSEN),
    ("the layer is chosen at every step, as in notebook 06", "step % hold == 0", "True", "where `hold` is used"),
    ("the layer is chosen once", "step % hold == 0", "step == 0", "when the layer is chosen anew"),
    ("the layer is held for hold + 1 tokens", "step % hold", "step % (hold + 1)", "how many tokens share a layer"),
    *PREFIX,
    ("the layers are not collected", "layers.append(layer.item())", "pass", "what is put into the second list"),
    ("the mask is missing", "layer, alpha", "layer, 1e-30", "what may win: only what the last layer finds plausible"),
    ("alpha is ignored", "layer, alpha", "layer", "whether `alpha` reaches the scores"),
    ("layers that are no candidates", ", candidates)\n", ", list(range(len(logits))))\n", "where `candidates` is used"),
    ("logits of the first position", "[:, -1:]", "[:, :1]", "the column: which one has read it all"),
    ("only the last token is fed", "model(ids,", "model(ids[:, -1:],", "what the model reads: the whole prefix"),
], earlier=[check_lens, check_jsd, check_layer, check_scores], sure=True, items=("the tokens", "the layers"), raised={
        "converted to Scalar": "the column: the lens gives [1 + L, 1, T, V], one position of it is the next token's",
        "unexpected keyword argument 'hold'": "`hold`: the loop of notebook 06 has none, this one does"})
