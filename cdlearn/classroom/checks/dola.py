"""Checks of assignment 04: the lens (from `lens.py`), the premature layer, DoLa's scores, the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check
from cdlearn.classroom.checks.lens import check_candidates, check_jsd, check_lens
from cdlearn.classroom.checks.models import Asked

__all__ = ["Case", "check_candidates", "check_dola", "check_jsd", "check_layer", "check_lens", "check_scores"]


def _jsd(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.softmax(-1), q.softmax(-1)
    one, two, both = (torch.special.entr(x).sum(-1) for x in (p, q, (p + q) / 2))
    return both - (one + two) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


def _logs(*rows: list[float]) -> Tensor:
    """Layers of one row of a batch: [1 + L, 1, V]."""
    return torch.tensor(rows).log()[:, None]


# ---- part 4: my_layer(logits, candidates) -> [B] int

_FINAL = [0.50, 0.43, 0.04, 0.03]
_ONE = _logs([0.02, 0.02, 0.95, 0.01], [0.80, 0.13, 0.04, 0.03], [0.52, 0.41, 0.04, 0.03], _FINAL)
_TWO = _logs([0.02, 0.02, 0.95, 0.01], [0.52, 0.41, 0.04, 0.03], [0.20, 0.73, 0.04, 0.03], _FINAL)
_RARE = _logs([0.02, 0.02, 0.95, 0.01], [0.80, 0.13, 0.04, 0.03], [0.52, 0.45, 0.03, 1e-9], _FINAL)
_STEP = _logs([0.80, 0.13, 0.04, 0.03], [0.75, 0.18, 0.04, 0.03], [0.40, 0.53, 0.04, 0.03], _FINAL)
_BOTH = torch.cat([_ONE, _TWO + 1], dim=1)

LAYER = [
    Case("the candidate that differs most from the last layer", (_ONE, [1, 2]), torch.tensor([1])),
    Case("the layer's number, not its place in the list", (_TWO, [1, 2]), torch.tensor([2])),
    Case("compared with the last layer, not with the next one", (_STEP, [1, 2]), torch.tensor([1])),
    Case("every row of the batch has its own layer", (_BOTH, [1, 2]), torch.tensor([1, 2])),
    Case("only candidates are asked", (_BOTH, [2]), torch.tensor([2, 2])),
    Case("the Jensen-Shannon divergence: one very rare token does not decide", (_RARE, [1, 2]), torch.tensor([1])),
]


def _far(distance: Callable = _jsd, pick: Callable = lambda far: far.argmax(0), every: bool = False) -> Callable:
    """A choice of layers with one thing wrong; `pick` reads distances [C, B]."""

    def gives(logits, candidates):
        offered = list(range(len(logits))) if every else list(candidates)
        return torch.tensor(offered)[pick(distance(logits[-1], logits[offered]))]

    return gives


def _against_next(logits: Tensor, candidates: list[int]) -> Tensor:
    later = [layer + 1 for layer in candidates]
    return torch.tensor(candidates)[_jsd(logits[later], logits[candidates]).argmax(0)]


LAYER_MISTAKES = [
    Mistake(
        "one layer for the whole batch",
        _far(pick=lambda far: far.mean(1).argmax().expand(far.shape[1])),
        "the dimension of the argmax: every row asks for itself",
    ),
    Mistake(
        "the place in the list, not the layer",
        lambda logits, candidates: _jsd(logits[-1], logits[candidates]).argmax(0),
        "what argmax counts: places in the list of candidates",
    ),
    Mistake("the nearest layer", _far(pick=lambda far: far.argmin(0)), "which distance wins: the largest"),
    Mistake("layers that are no candidates", _far(every=True), "which rows of `logits` are compared"),
    Mistake("KL, not Jensen-Shannon", _far(distance=_kl), "the distance: KL runs away where one row rules a token out"),
    Mistake("compared with the next layer", _against_next, "whom the candidates are compared with: logits[-1]"),
    Mistake(
        "compared with layer 0",
        lambda logits, candidates: torch.tensor(candidates)[_jsd(logits[0], logits[candidates]).argmax(0)],
        "whom the candidates are compared with: logits[-1]",
    ),
]


def check_layer(function: Callable, *, cases: Sequence[Case] = LAYER) -> Result:
    """Check part 4 of assignment 04: the premature layer of every row."""
    return run_check("my_layer", function, cases, LAYER_MISTAKES, earlier={"my_jsd": (2, check_jsd)})


# ---- part 5: my_scores(logits, layers, alpha=0.1) -> [B, V]

_S1 = _logs([0.25, 0.25, 0.25, 0.25], [0.30, 0.02, 0.60, 0.08], [0.50, 0.44, 0.04, 0.02])
_S2 = _logs([0.10, 0.20, 0.30, 0.40], [0.40, 0.30, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10])
_INF = -math.inf
_R1 = [0.5108256, 3.0910425, _INF, _INF]
_R2 = [0.0, 1.0986123, -0.4054651, -1.3862944]

SCORES = [
    Case(
        "log p_final - log p_premature where the last layer finds it plausible",
        (_S1, torch.tensor([1])),
        torch.tensor([_R1]),
    ),
    Case(
        "a constant added to a layer's logits changes nothing",
        (_S2 + torch.tensor([1.0, 2.0, -1.0])[:, None, None], torch.tensor([0])),
        torch.tensor([_R2]),
    ),
    Case("alpha sets the line", (_S1, torch.tensor([1])), torch.tensor([[_R1[0], _INF, _INF, _INF]]), {"alpha": 0.9}),
    Case(
        "every row of the batch is contrasted with its own layer",
        (torch.cat([_S1, _S2], dim=1), torch.tensor([1, 0])),
        torch.tensor([_R1, _R2]),
    ),
]  # fmt: skip


def _contrast(
    logits: Tensor,
    layers: Tensor,
    alpha: float = 0.1,
    *,
    judge: str = "final",
    log: Callable = lambda x: x.log_softmax(-1),
    sign: int = 1,
    fill: float = _INF,
) -> Tensor:
    """DoLa's scores with one thing wrong."""
    final, early = logits[-1], logits[layers, torch.arange(logits.shape[1])]
    plausible = {"final": final, "premature": early, "nobody": torch.zeros_like(final)}[judge].log_softmax(-1)
    keep = plausible >= plausible.max(-1, keepdim=True).values + math.log(alpha)
    return (sign * (log(final) - log(early))).masked_fill(~keep, fill)


def _wrong(**options: object) -> Callable:
    return lambda logits, layers, alpha=0.1: _contrast(logits, layers, alpha, **options)


SCORES_MISTAKES = [
    Mistake("the mask on the premature layer", _wrong(judge="premature"), "who says what is plausible: the last layer"),
    Mistake("the mask is missing", _wrong(judge="nobody"), "the score of tokens that the last layer rules out"),
    Mistake(
        "raw logits where log-probabilities belong", _wrong(log=lambda x: x), "whether both rows were normalised first"
    ),
    Mistake(
        "probabilities where log-probabilities belong",
        _wrong(log=lambda x: x.softmax(-1)),
        "the two terms: are they probabilities or their logarithms?",
    ),
    Mistake("the layers exchanged", _wrong(sign=-1), "which of the two is subtracted"),
    Mistake("masked tokens get the score 0", _wrong(fill=0.0), "the score of a token that is out: 0 may be the best"),
    Mistake("alpha is ignored", lambda logits, layers, alpha=0.1: _contrast(logits, layers), "where `alpha` is used"),
    Mistake(
        "the layer of the first row for all rows",
        lambda logits, layers, alpha=0.1: _contrast(logits, layers[:1].expand(len(layers)), alpha),
        "which layer each row is contrasted with",
    ),
    Mistake(
        "the layer below the last for all rows",
        lambda logits, layers, alpha=0.1: _contrast(logits, torch.full_like(layers, len(logits) - 2), alpha),
        "where `layers` is used",
    ),
]


def check_scores(function: Callable, *, cases: Sequence[Case] = SCORES) -> Result:
    """Check part 5 of assignment 04: the contrast of the last layer with each row's premature layer."""
    return run_check("my_scores", function, cases, SCORES_MISTAKES)


# ---- part 6: my_dola(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1) -> (new ids, layers)


class LayersLM(Asked):
    """Every layer looks at the sum s of all ids: token (s + k) % 4 has the k-th number of its row for even or odd s.

    Early states are log-probabilities with the other sign, for the norm changes it.
    """

    even = torch.tensor([
        [0.01, 0.01, 0.01, 0.97], [0.90, 0.08, 0.0002, 0.0198], [0.40, 0.55, 0.03, 0.02], [0.52, 0.40, 0.04, 0.04]
    ]).log()  # fmt: skip
    odd = torch.tensor([
        [0.01, 0.01, 0.01, 0.97], [0.40, 0.47, 0.07, 0.06], [0.05, 0.87, 0.0600, 0.0200], [0.52, 0.40, 0.04, 0.04]
    ]).log()  # fmt: skip

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


def _loop_case(
    says: str, ids: list[int], most: int, expected: tuple, candidates: Sequence[int] = (1, 2), alpha: float = 0.1
) -> Case:
    example = (
        "with s the sum of all ids modulo 4, the last layer says s with .52, s + 1 with .40. Layer 1 says .90 .08 for "
        "even s, .40 .47 for odd s; layer 2 says .40 .55 and .05 .87; layer 0 is far always. The norm changes the sign "
        "of an early state, the head changes nothing. "
        f"my_dola(model, norm, head, [{ids}], {list(candidates)}, max_new_tokens={most}"
        + (")" if alpha == 0.1 else f", alpha={alpha})")
    )
    args = (LayersLM(), Flip(), Same(), torch.tensor([ids]), list(candidates))
    return Case(says, args, expected, {"max_new_tokens": most, "alpha": alpha}, example)


DOLA = [
    _loop_case("one step: the far layer is subtracted", [1, 3], 1, ([1], [1])),
    _loop_case("the layer is chosen anew at every step", [1, 3], 2, ([1, 1], [1, 2])),
    _loop_case("every step reads the whole prefix", [1, 3], 4, ([1, 1, 3, 1], [1, 2, 1, 2])),
    _loop_case("one candidate is the static form", [1, 3], 3, ([0, 0, 0], [2, 2, 2]), [2]),
    _loop_case("one candidate is the static form", [1, 2], 2, ([3, 3], [1, 1]), [1]),
    _loop_case("alpha sets the line of the mask", [1, 3], 1, ([0], [1]), alpha=0.9),
    _loop_case("with max_new_tokens=0 there is nothing to do", [1, 3], 0, ([], [])),
]


def _wrong_dola(
    *,
    norm_early: bool = True,
    mask: float | None = None,
    column: int = -1,
    whole: bool = True,
    once: bool = False,
    who: str = "contrast",
    every: bool = False,
    extra: int = 0,
) -> Callable:
    """A loop with one thing wrong, for the mistakes below."""

    def loop(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1):
        new, layers = [], []
        for _ in range(max_new_tokens + extra):
            *early, last = model(ids if whole else ids[:, -1:], output_hidden_states=True).hidden_states
            early = [norm(state) if norm_early else state for state in early]
            logits = head(torch.stack([*early, last])[:, :, column])  # (1 + L, 1, V)
            chosen = _far(every=every)(logits, candidates)
            chosen = torch.tensor(layers[:1]) if once and layers else chosen
            scores = _contrast(logits, chosen, alpha if mask is None else mask)
            scores = {"contrast": scores, "final": logits[-1], "premature": logits[chosen[0]]}[who]
            new.append(int(scores.argmax()))
            layers.append(int(chosen))
            ids = torch.cat([ids, torch.tensor([new[-1:]])], dim=1)
        return new, layers

    return loop


DOLA_MISTAKES = [
    Mistake("the final norm forgotten", _wrong_dola(norm_early=False), "the states: read them through your lens"),
    Mistake("the last layer alone", _wrong_dola(who="final"), "what chooses the token: the scores of part 5"),
    Mistake("the premature layer alone", _wrong_dola(who="premature"), "what chooses the token: the scores of part 5"),
    Mistake("the layer is chosen once", _wrong_dola(once=True), "where the layer is chosen: inside the loop"),
    Mistake("the mask is missing", _wrong_dola(mask=1e-30), "what may win: only what the last layer finds plausible"),
    Mistake("alpha is ignored", _wrong_dola(mask=0.1), "whether `alpha` reaches the scores"),
    Mistake("layers that are no candidates", _wrong_dola(every=True), "where `candidates` is used"),
    Mistake("logits of the first position", _wrong_dola(column=0), "the column: which one has read it all"),
    Mistake("only the last token is fed", _wrong_dola(whole=False), "what the model reads: the whole prefix"),
    Mistake("one token too many", _wrong_dola(extra=1), "how often the loop runs"),
]


_EARLIER = {"my_lens": (1, check_lens), "my_jsd": (2, check_jsd), "my_layer": (4, check_layer)}
_EARLIER |= {"my_scores": (5, check_scores)}


def check_dola(function: Callable, *, cases: Sequence[Case] = DOLA) -> Result:
    """Check part 6 of assignment 04: greedy DoLa, the layer chosen at every token."""
    return run_check("my_dola", function, cases, DOLA_MISTAKES, earlier=_EARLIER)
