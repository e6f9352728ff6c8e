"""What happened at every step of a generation, in O(N) memory a step: the candidates, not the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 256


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One row of a generation, step by step; P positions, N candidates, and the chosen token as a last extra column.

    candidates: [P, N + 1] token ids, the expert's best first. parts: name -> [P, N + 1] raw logits of "expert",
    "amateur", ... normalisers: name -> [P] logsumexp over the whole vocabulary. score: [P, N + 1] what the source
    returned, -inf where not kept, before any repetition penalty or temperature. rank: [P] the chosen token's rank with
    the expert, 1 is its best. details: name -> [P, ...], such as DoLa's "premature_layer". settings: the source's
    method and numbers. The last position may be the EOS that ended the text.
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

    @property
    def token_ids(self) -> list[int]:
        """The token chosen at every position."""
        return self.candidates[:, -1].tolist()

    def __len__(self) -> int:
        return len(self.candidates)

    def __repr__(self) -> str:
        return f"Trace({len(self)} positions, {self.candidates.shape[1] - 1} candidates each)"

    def to_frame(self, *, top: int | None = None) -> pd.DataFrame:
        """A tidy table, one row per position and candidate; `top` keeps the expert's best few and the chosen token.

        Columns: position (0 is the first new token), rank (1 is the expert's best), token_id, token (None without a
        tokenizer), expert_logit, amateur_logit, expert_prob, amateur_prob (NaN without an amateur), score, kept,
        chosen, then the same pair of columns for any other part, and one column per detail with one value a position.
        """
        import pandas as pd

        positions, width = self.candidates.shape
        chosen = self.candidates == self.candidates[:, -1:]  # (P, N + 1)
        ranks = torch.arange(1, width + 1).repeat(positions, 1)
        ranks[:, -1] = self.rank
        shown = torch.ones_like(chosen)
        shown[:, -1] = ~chosen[:, :-1].any(dim=1)  # the extra column matters only for a token outside the candidates
        if top is not None:
            shown &= (ranks <= top) | chosen
        position = torch.arange(positions)[:, None].expand_as(shown)[shown]
        token_ids = self.candidates[shown].tolist()
        columns: dict[str, Any] = {
            "position": position.numpy(),
            "rank": ranks[shown].numpy(),
            "token_id": token_ids,
            "token": token_texts(self.tokenizer, token_ids),
        }
        names = ["expert", "amateur"] + [name for name in self.parts if name not in ("expert", "amateur")]
        nothing = torch.full(self.score.shape, float("nan"))
        logits = {name: self.parts.get(name, nothing) for name in names}
        probs = {
            name: (logits[name] - self.normalisers[name][:, None]).exp() if name in self.parts else nothing
            for name in names
        }
        columns |= {f"{name}_logit": logits[name][shown].numpy() for name in names[:2]}
        columns |= {f"{name}_prob": probs[name][shown].numpy() for name in names[:2]}
        columns["score"] = self.score[shown].numpy()
        columns["kept"] = (self.score > float("-inf"))[shown].numpy()
        columns["chosen"] = chosen[shown].numpy()
        columns |= {f"{name}_logit": logits[name][shown].numpy() for name in names[2:]}
        columns |= {f"{name}_prob": probs[name][shown].numpy() for name in names[2:]}
        columns |= {name: values[position].numpy() for name, values in self.details.items() if values.dim() == 1}
        return pd.DataFrame(columns)


class Recorder:
    """Collects steps for `Trace`. Whole rows of scores wait a few steps only, then they are cut to the candidates."""

    def __init__(self, *, candidates: int = CANDIDATES, steps: int = 16, numbers: int = 4_000_000) -> None:
        self.size, self.steps, self.numbers = candidates, steps, numbers
        self._rows: Sequence[int] = ()
        self._waiting: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]] = []
        self._blocks: list[tuple[Sequence[int], dict[str, Any]]] = []

    def add(
        self,
        rows: Sequence[int],
        score: Tensor,
        parts: dict[str, Tensor],
        details: dict[str, Tensor],
        chosen: Tensor,
    ) -> None:
        """One step of some batch rows: score [b, V], parts name -> [b, V], details name -> [b, ...], chosen [b]."""
        # one stack of many steps costs far less than many small calls, and keeps at most `numbers` numbers waiting
        if self._waiting and (rows != self._rows or len(self._waiting) * score.numel() > self.numbers):
            self._cut()
        self._rows = list(rows)
        self._waiting.append((score, parts or {"expert": score}, details, chosen))
        if len(self._waiting) >= self.steps:
            self._cut()

    def _cut(self) -> None:
        score = torch.stack([step[0] for step in self._waiting])  # (S, b, V)
        parts = {name: torch.stack([step[1][name] for step in self._waiting]) for name in self._waiting[0][1]}
        details = {name: torch.stack([step[2][name] for step in self._waiting]) for name in self._waiting[0][2]}
        chosen = torch.stack([step[3] for step in self._waiting]).to(score.device)[..., None]  # (S, b, 1)
        expert = parts.get("expert", score)
        best = expert.topk(min(self.size, expert.shape[-1])).indices
        candidates = torch.cat([best, chosen], dim=-1)  # (S, b, N + 1)
        block = {
            "candidates": candidates,
            "score": score.gather(-1, candidates),
            "rank": (expert > expert.gather(-1, chosen)).sum(dim=-1) + 1,
            "parts": {name: part.gather(-1, candidates) for name, part in parts.items()},
            "normalisers": {name: part.logsumexp(dim=-1) for name, part in parts.items()},
            "details": details,
        }
        self._blocks.append((self._rows, _map(block, Tensor.cpu)))
        self._waiting = []

    def trace(self, row: int, prompt_ids: list[int], *, steps: int, settings: dict[str, Any], tokenizer: Any) -> Trace:
        """The first `steps` steps of one batch row."""
        if self._waiting:
            self._cut()
        mine = [_map(block, itemgetter((slice(None), rows.index(row)))) for rows, block in self._blocks if row in rows]
        if not mine:
            empty = torch.zeros(0, 1)
            return Trace(prompt_ids, empty.long(), empty, {}, {}, empty[:, 0].long(), {}, settings, tokenizer)
        whole = _join(mine, steps)
        return Trace(prompt_ids=prompt_ids, **whole, settings=dict(settings), tokenizer=tokenizer)


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str | None]:
    """Each token alone as text: its leading space kept; the raw token where it is only part of a character."""
    if tokenizer is None:
        return [None] * len(token_ids)
    texts = {}
    for token_id in set(token_ids):
        raw = tokenizer.convert_ids_to_tokens(token_id)
        raw = "" if raw is None else str(raw)
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if "\N{REPLACEMENT CHARACTER}" in text:
            text = raw
        elif raw.startswith("\u2581") and not text.startswith(" "):
            text = " " + text  # sentencepiece decoders drop the space in front of a lone token
        texts[token_id] = text
    return [texts[token_id] for token_id in token_ids]


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
