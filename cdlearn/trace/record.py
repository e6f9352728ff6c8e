"""What happened at every step of a generation, as data: the candidates, not the vocabulary, so O(N) numbers a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

CANDIDATES = 256
TENSORS = ("candidates", "score", "rank")  # the fields of a record that are one tensor
NAMED = ("parts", "normalisers", "entropy", "total_variation", "ranks")  # and those that are one for each part
_ON_CPU = 300_000  # numbers that wait on a CPU: beyond its cache, copying rows together costs more than it saves


@dataclass(frozen=True)
class Form:
    """What scores are made of, `over - t * against`, so that they can be computed again with other numbers.

    over, against: part name -> weight, sums of the parts' log-probabilities; of their logits where `raw` (None: where
    there is no mask). knob: the setting that is t, "strength" or "beta"; None: t is 1 and stays. share: whether the
    strength is t / (1 + t). tempered: the part whose logits are divided by the setting amateur_temperature first.
    A mask, settings "alpha" and "top_k", is that of the part "expert".
    """

    over: dict[str, float]
    against: dict[str, float] = field(default_factory=dict)
    knob: str | None = None
    share: bool = False
    raw: bool | None = False
    tempered: str | None = None


# contrastive decoding's two forms, see `scores.contrastive_scores` and `scores.contrastive_logits`
CONTRAST = (
    Form({"expert": 1.0}, {"amateur": 1.0}, knob="strength", tempered="amateur"),
    Form({"expert": 1.0}, {"amateur": 1.0, "expert": -1.0}, knob="beta", share=True, raw=True),
)


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """One row of a generation, step by step; P positions, N candidates, and the chosen token as a last extra column.

    candidates: [P, N + 1] token ids, the expert's best first. parts: name -> [P, N + 1] raw logits of "expert",
    "amateur", ...; a part with layers, DoLa's "layers", is [P, L, N + 1]. score: [P, N + 1] what the source returned,
    -inf where not kept, before any repetition penalty or temperature. rank: [P] the chosen token's rank with the
    expert, 1 is its best. details: name -> [P, ...], such as DoLa's "premature_layer". settings: the source's method
    and numbers, and a repetition_penalty other than 1. The last position may be the EOS that ended the text.
    Measured over the whole vocabulary of `vocab_size` tokens, name -> [P] (or [P, L]): normalisers (logsumexp),
    entropy (nats), total_variation (the distance of every other part from the expert), ranks (of the chosen token with
    each part; 0 where a rescored trace cannot know it).
    rounds: speculation's rounds, see `speculate`. recorded: the tokens of the text, where `rescore` chose others.
    forms: what the scores can be computed again from, the one whose knob is a setting first; none: nothing can change.
    """

    prompt_ids: list[int]
    candidates: Tensor
    score: Tensor
    parts: dict[str, Tensor]
    normalisers: dict[str, Tensor]
    rank: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    vocab_size: int | None = None
    entropy: dict[str, Tensor] = field(default_factory=dict)
    total_variation: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    recorded: list[int] | None = None
    forms: tuple[Form, ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """The token chosen at every position."""
        return self.candidates[:, -1].tolist()

    def __len__(self) -> int:
        return len(self.candidates)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} positions, {self.candidates.shape[1] - 1} candidates each)"

    @property
    def recorded_ids(self) -> list[int]:
        """The tokens of the recorded text: those every position was really computed after."""
        return self.token_ids if self.recorded is None else list(self.recorded)


class Recorder:
    """Collects steps. Whole rows of scores wait a few steps only, then they are cut to the candidates."""

    makes: type[Record] = Record  # `Trace`, once it is defined: loops need not know what a record can tell

    def __init__(self, *, candidates: int = CANDIDATES, steps: int = 16, numbers: int = 12_000_000) -> None:
        self.size, self.steps, self.numbers = candidates, steps, numbers
        self._rows: Sequence[int] = ()
        self._waiting: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]] = []
        self._blocks: list[tuple[Sequence[int], dict[str, Any]]] = []
        self._rounds: dict[int, list[dict[str, Any]]] = {}
        self._vocab: int | None = None

    def add(
        self, rows: Sequence[int], score: Tensor, parts: dict[str, Tensor], details: dict[str, Tensor], chosen: Tensor
    ) -> None:
        """One step of some batch rows: score [b, V], parts name -> [b, V] or [b, L, V], details name -> [b, ...]."""
        # one stack of many steps costs far less than many small calls, and keeps at most `numbers` numbers waiting
        size = score.numel() + sum(part.numel() for part in parts.values())
        limit = min(self.numbers, _ON_CPU) if score.device.type == "cpu" else self.numbers
        if self._waiting and (rows != self._rows or (len(self._waiting) + 1) * size > limit):
            self._cut()
        self._rows = list(rows)
        self._waiting.append((score, parts if "expert" in parts else {"expert": score} | parts, details, chosen))
        if len(self._waiting) >= self.steps:
            self._cut()

    def _cut(self) -> None:
        score = _stack([step[0] for step in self._waiting])  # (S, b, V)
        parts = {name: _stack([step[1][name] for step in self._waiting]) for name in self._waiting[0][1]}
        details = {name: _stack([step[2][name] for step in self._waiting]) for name in self._waiting[0][2]}
        chosen = _stack([step[3] for step in self._waiting]).to(score.device)[..., None]  # (S, b, 1)
        expert = parts["expert"]
        self._vocab = expert.shape[-1]
        best = expert.topk(min(self.size, expert.shape[-1])).indices
        candidates = torch.cat([best, chosen], dim=-1)  # (S, b, N + 1)
        probs = expert.softmax(dim=-1) if len(parts) > 1 else None
        block: dict[str, Any] = {"candidates": candidates, "score": score.gather(-1, candidates), "details": details}
        block |= {name: {} for name in NAMED}
        for name, part in parts.items():
            # a part with layers one by one: a CPU's cache holds a row of the vocabulary, not all of them
            layers = part.unbind(dim=2) if part.dim() > candidates.dim() else [part]
            found = [_measured(layer, candidates, None if part is expert else probs) for layer in layers]
            for what in found[0]:
                values = [facts[what] for facts in found]
                block[what][name] = values[0] if layers[0] is part else torch.stack(values, dim=2)
        block["rank"] = block["ranks"]["expert"]
        self._blocks.append((self._rows, _map(block, Tensor.cpu)))
        self._waiting = []

    def add_round(self, row: int, facts: dict[str, Any]) -> None:
        """A round of speculation of one batch row, in plain Python numbers."""
        self._rounds.setdefault(row, []).append(facts)

    def trace(self, row: int, prompt_ids: list[int], *, steps: int, **facts: Any) -> Record:
        """The first `steps` steps of one batch row. facts: the record's settings, forms and tokenizer."""
        if self._waiting:
            self._cut()
        mine = [_map(block, itemgetter((slice(None), rows.index(row)))) for rows, block in self._blocks if row in rows]
        if not mine:
            empty = torch.zeros(0, 1)
            return self.makes(prompt_ids, empty.long(), empty, {}, {}, empty[:, 0].long(), **facts)
        rounds = self._rounds.get(row, [])
        return self.makes(prompt_ids, **_join(mine, steps), vocab_size=self._vocab, rounds=rounds, **facts)


def _measured(part: Tensor, candidates: Tensor, expert_probs: Tensor | None) -> dict[str, Tensor]:
    """What is kept of whole rows: part [S, b, V], candidates [S, b, N + 1], expert_probs [S, b, V]."""
    logits = part.gather(-1, candidates)
    probs = part.softmax(dim=-1)
    normaliser = part.amax(dim=-1) - probs.amax(dim=-1).log()  # logsumexp without a second pass of exponentials
    mean = torch.linalg.vecdot(probs, part)
    if bool(mean.isnan().any()):  # an impossible token's 0 * -inf
        mean = torch.linalg.vecdot(probs, part.clamp(min=torch.finfo(part.dtype).min))
    found = {"parts": logits, "normalisers": normaliser, "entropy": (normaliser - mean).clamp(min=0)}
    if expert_probs is not None and expert_probs.shape[-1] == part.shape[-1]:
        found["total_variation"] = (1 - torch.minimum(expert_probs, probs).sum(dim=-1)).clamp(min=0)
    return found | {"ranks": _rank(part, logits[..., -1:])}


def _rank(part: Tensor, chosen: Tensor) -> Tensor:
    """1 and how many are above the chosen one: part [..., V], chosen [..., 1]. Adding floats is faster than bools."""
    return torch.gt(part, chosen, out=torch.empty_like(part, dtype=torch.float32)).sum(dim=-1).long() + 1


def _stack(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def _map(block: dict[str, Any], change: Any) -> dict[str, Any]:
    return {name: _map(value, change) if isinstance(value, dict) else change(value) for name, value in block.items()}


def _join(blocks: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Blocks one after the other, cut to `steps`."""
    first = blocks[0]
    return {
        name: _join([block[name] for block in blocks], steps)
        if isinstance(first[name], dict)
        else torch.cat([block[name] for block in blocks])[:steps].clone()
        for name in first
    }
