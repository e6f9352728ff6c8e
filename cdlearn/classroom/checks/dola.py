"""Checks of assignment 04: the premature layer, DoLa's scores, the loop (the lens is in `lens.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, tensor

from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.lens import check_candidates, check_jsd, check_lens, my_jsd, my_lens
from cdlearn.classroom.checks.models import Asked

__all__ = ["Case", "check_candidates", "check_dola", "check_jsd", "check_layer", "check_lens", "check_scores"]


def my_layer(logits, candidates):
    """logits: [1 + L, B, V] float, all layers of one position. candidates: a list of layers. Returns [B] int."""
    distances = my_jsd(logits[-1], logits[candidates])  # (C, B)
    return torch.tensor(candidates)[distances.argmax(0)]


def _logs(*rows: list[float]) -> Tensor:
    """Layers of one row of a batch: [1 + L, 1, V]."""
    return tensor(rows).log()[:, None]


# fmt: off
_FAR, _FINAL = [0.02, 0.02, 0.95, 0.01], [0.50, 0.43, 0.04, 0.03]
_ONE = _logs(_FAR, [0.80, 0.13, 0.04, 0.03], [0.52, 0.41, 0.04, 0.03], _FINAL)
_TWO = _logs(_FAR, [0.52, 0.41, 0.04, 0.03], [0.20, 0.73, 0.04, 0.03], _FINAL)
_RARE = _logs(_FAR, [0.80, 0.13, 0.04, 0.03], [0.52, 0.45, 0.03, 1e-9], _FINAL)
_STEP = _logs([0.80, 0.13, 0.04, 0.03], [0.75, 0.18, 0.04, 0.03], [0.40, 0.53, 0.04, 0.03], _FINAL)
_BOTH = torch.cat([_ONE, _TWO + 1], dim=1)
_LAST, _PICK = "my_jsd(logits[-1], ", "torch.tensor(candidates)[distances.argmax(0)]"
_WHOM = "whom the candidates are compared with: logits[-1]"

check_layer = Part(4, my_layer, [
    Case("the candidate that differs most from the last layer", (_ONE, [1, 2]), tensor([1])),
    Case("the layer's number, not its place in the list", (_TWO, [1, 2]), tensor([2])),
    Case("compared with the last layer, not with the next one", (_STEP, [1, 2]), tensor([1])),
    Case("every row of the batch has its own layer", (_BOTH, [1, 2]), tensor([1, 2])),
    Case("only candidates are asked", (_BOTH, [2]), tensor([2, 2])),
    Case("the Jensen-Shannon divergence: one very rare token does not decide", (_RARE, [1, 2]), tensor([1])),
], [
    ("one layer for the whole batch", "distances.argmax(0)", "distances.mean(1).argmax().expand(distances.shape[1])",
     "the dimension of the argmax: every row asks for itself"),
    ("the place in the list, not the layer", _PICK, "distances.argmax(0)",
     "what argmax counts: places in the list of candidates"),
    ("the nearest layer", "argmax", "argmin", "which distance wins: the largest"),
    ("layers that are no candidates", ("logits[candidates]", "torch.tensor(candidates)"),
     ("logits", "torch.arange(len(logits))"), "which rows of `logits` are compared"),
    ("KL, not Jensen-Shannon", f"{_LAST}logits[candidates])",
     "torch.nn.functional.kl_div(logits[candidates].log_softmax(-1), logits[-1].log_softmax(-1).expand_as("
     "logits[candidates]), reduction='none', log_target=True).sum(-1)",
     "the distance: KL runs away where one row rules a token out"),
    ("compared with the next layer", _LAST, "my_jsd(logits[[k + 1 for k in candidates]], ", _WHOM),
    ("compared with layer 0", _LAST, "my_jsd(logits[0], ", _WHOM),
], earlier=[check_jsd])
# fmt: on


def my_scores(logits, layers, alpha=0.1):
    """logits: [1 + L, B, V] float. layers: [B] int, one for each row. Returns [B, V], -inf outside the mask."""
    last, early = logits[-1], logits[layers, torch.arange(len(layers))]  # (B, V) each
    keep = last >= last.max(-1, keepdim=True).values + math.log(alpha)
    return (last.log_softmax(-1) - early.log_softmax(-1)).masked_fill(~keep, -math.inf)


# fmt: off
_S1 = _logs([0.25, 0.25, 0.25, 0.25], [0.30, 0.02, 0.60, 0.08], [0.50, 0.44, 0.04, 0.02])
_S2 = _logs([0.10, 0.20, 0.30, 0.40], [0.40, 0.30, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10])
_R1, _R2 = [0.5108256, 3.0910425, -math.inf, -math.inf], [0.0, 1.0986123, -0.4054651, -1.3862944]
_KEEP = "last >= last.max(-1, keepdim=True).values + math.log(alpha)"
_ROWS = "logits[layers, torch.arange(len(layers))]"

check_scores = Part(5, my_scores, [
    Case("log p_final - log p_premature where the last layer finds it plausible", (_S1, tensor([1])), tensor([_R1])),
    Case("a constant added to a layer's logits changes nothing",
         (_S2 + tensor([1.0, 2.0, -1.0])[:, None, None], tensor([0])), tensor([_R2])),
    Case("alpha sets the line", (_S1, tensor([1])), tensor([[_R1[0], *[-math.inf] * 3]]), {"alpha": 0.9}),
    Case("every row of the batch is contrasted with its own layer",
         (torch.cat([_S1, _S2], dim=1), tensor([1, 0])), tensor([_R1, _R2])),
], [
    ("the mask on the premature layer", _KEEP, _KEEP.replace("last", "early"),
     "who says what is plausible: the last layer"),
    ("the mask is missing", ".masked_fill(~keep, -math.inf)", "", "the score of tokens that the last layer rules out"),
    ("raw logits where log-probabilities belong", ".log_softmax(-1)", "", "whether both rows were normalised first"),
    ("probabilities where log-probabilities belong", ".log_softmax(-1)", ".softmax(-1)",
     "the two terms: are they probabilities or their logarithms?"),
    ("the layers exchanged", "(last.log_softmax(-1) - early.log_softmax(-1))",
     "(early.log_softmax(-1) - last.log_softmax(-1))", "which of the two is subtracted"),
    ("masked tokens get the score 0", "-math.inf", "0.0", "the score of a token that is out: 0 may be the best"),
    ("alpha is ignored", "math.log(alpha)", "math.log(0.1)", "where `alpha` is used"),
    ("the layer of the first row for all rows", _ROWS, "logits[layers[0]]", "which layer each row is contrasted with"),
    ("the layer below the last for all rows", _ROWS, "logits[-2]", "where `layers` is used"),
])
# fmt: on


class LayersLM(Asked):
    """Every layer looks at the sum s of all ids: token (s + k) % 4 has the k-th number of its row for even or odd s.

    Early states are log-probabilities with the other sign, for the norm changes it.
    """

    even = tensor([[0.01, 0.01, 0.01, 0.97], [0.90, 0.08, 0.0002, 0.0198], [0.40, 0.55, 0.03, 0.02],
                   [0.52, 0.40, 0.04, 0.04]]).log()  # fmt: skip
    odd = tensor([[0.01, 0.01, 0.01, 0.97], [0.40, 0.47, 0.07, 0.06], [0.05, 0.87, 0.06, 0.02],
                  [0.52, 0.40, 0.04, 0.04]]).log()  # fmt: skip

    def __call__(self, ids: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """ids: [B, T] int. Returns `.logits` [B, T, 4], and `.hidden_states`, 4 tensors [B, T, 4]."""
        self.count()
        sums = ids.cumsum(1)[..., None]  # (B, T, 1)
        turned = (torch.arange(4) - sums) % 4  # (B, T, 4): the k of every token
        layers = [torch.where(sums % 2 == 0, self.even[k][turned], self.odd[k][turned]) for k in range(4)]
        states = (*(-state for state in layers[:-1]), layers[-1])
        return SimpleNamespace(logits=layers[-1], hidden_states=states if output_hidden_states else None)


class Flip:
    """The norm of `LayersLM`."""

    def __call__(self, state: Tensor) -> Tensor:
        return -state


class Same:
    """The head of `LayersLM`: its states have one number per token."""

    def __call__(self, state: Tensor) -> Tensor:
        return state.clone()


def my_dola(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1):
    """ids: [1, T] int. Returns (new, layers): lists of max_new_tokens token ids and premature layers."""
    new, layers = [], []
    for _ in range(max_new_tokens):
        states = model(ids, output_hidden_states=True).hidden_states
        logits = my_lens([state[:, -1:] for state in states], norm, head)[:, :, 0]  # (1 + L, 1, V)
        layer = my_layer(logits, candidates)
        token = my_scores(logits, layer, alpha).argmax(-1)
        new.append(token.item())
        layers.append(layer.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, layers


def _loop(
    says: str, ids: list[int], most: int, expected: tuple, candidates: Sequence[int] = (1, 2), alpha: float = 0.1
) -> Case:
    example = (
        "with s the sum of all ids modulo 4, the last layer says s with .52, s + 1 with .40. Layer 1 says .90 .08 for "
        "even s, .40 .47 for odd s; layer 2 says .40 .55 and .05 .87; layer 0 is far always. The norm changes the sign "
        "of an early state, the head changes nothing. "
        f"my_dola(model, norm, head, [{ids}], {list(candidates)}, max_new_tokens={most}"
        + (")" if alpha == 0.1 else f", alpha={alpha})")
    )
    args = (LayersLM(), Flip(), Same(), tensor([ids]), list(candidates))
    return Case(says, args, expected, {"max_new_tokens": most, "alpha": alpha}, example)


# fmt: off
_LENS, _CHOICE = "my_lens([state[:, -1:] for state in states], norm, head)", "my_layer(logits, candidates)"
_TOKEN = "my_scores(logits, layer, alpha)"
_CHOOSER = "what chooses the token: the scores of part 5"

check_dola = Part(6, my_dola, [
    _loop("one step: the far layer is subtracted", [1, 3], 1, ([1], [1])),
    _loop("the layer is chosen anew at every step", [1, 3], 2, ([1, 1], [1, 2])),
    _loop("every step reads the whole prefix", [1, 3], 4, ([1, 1, 3, 1], [1, 2, 1, 2])),
    _loop("one candidate is the static form", [1, 3], 3, ([0, 0, 0], [2, 2, 2]), [2]),
    _loop("one candidate is the static form", [1, 2], 2, ([3, 3], [1, 1]), [1]),
    _loop("alpha sets the line of the mask", [1, 3], 1, ([0], [1]), alpha=0.9),
    _loop("with max_new_tokens=0 there is nothing to do", [1, 3], 0, ([], [])),
], [
    ("the final norm forgotten", _LENS, "torch.stack([head(state[:, -1:]) for state in states])",
     "the states: read them through your lens"),
    ("the last layer alone", _TOKEN, "logits[-1]", _CHOOSER),
    ("the premature layer alone", _TOKEN, "logits[layer[0]]", _CHOOSER),
    ("the layer is chosen once", _CHOICE, f"layer if new else {_CHOICE}",
     "where the layer is chosen: inside the loop"),
    ("the mask is missing", _TOKEN, "my_scores(logits, layer, 1e-30)",
     "what may win: only what the last layer finds plausible"),
    ("alpha is ignored", _TOKEN, "my_scores(logits, layer)", "whether `alpha` reaches the scores"),
    ("layers that are no candidates", _CHOICE, "my_layer(logits, [0, 1, 2])",
     "where `candidates` is used"),
    ("logits of the first position", "[:, -1:]", "[:, :1]", "the column: which one has read it all"),
    ("only the last token is fed", "model(ids, ", "model(ids[:, -1:], ", "what the model reads: the whole prefix"),
    ("one token too many", "range(max_new_tokens)", "range(max_new_tokens + 1)", "how often the loop runs"),
], earlier=[check_lens, check_jsd, check_layer, check_scores])
# fmt: on
