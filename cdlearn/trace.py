"""What happened at every step of a generation, in O(N) memory a step: the candidates, not the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cdlearn import counterfactual, flips, tables, tracefile
from cdlearn.flips import FlipPoints
from cdlearn.tables import token_texts

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 256
_ON_CPU = 300_000  # numbers that wait on a CPU: beyond its cache, copying rows together costs more than it saves


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
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

    @property
    def token_ids(self) -> list[int]:
        """The token chosen at every position."""
        return self.candidates[:, -1].tolist()

    def __len__(self) -> int:
        return len(self.candidates)

    def __repr__(self) -> str:
        return f"Trace({len(self)} positions, {self.candidates.shape[1] - 1} candidates each)"

    def _repr_html_(self) -> str:
        from cdlearn.render import trace_html  # only where somebody looks

        return trace_html(self)

    def to_html(self, path: str | Path, *, candidates: int = 24) -> None:
        """Write a self-contained page with working sliders: a handout that needs neither Python nor a network."""
        from cdlearn.handout import write

        write(self, path, candidates=candidates)

    @property
    def recorded_ids(self) -> list[int]:
        """The tokens of the recorded text: those every position was really computed behind."""
        return self.token_ids if self.recorded is None else list(self.recorded)

    @property
    def truncated(self) -> Tensor:
        """[P] bool: where the kept set may reach beyond the recorded candidates, so that `rescore` may miss a token."""
        return counterfactual.truncated(self, self.settings)

    def rescore(
        self,
        strength: float | None = None,
        alpha: float | None = None,
        amateur_temperature: float | None = None,
        top_k: int | None = None,
        beta: float | None = None,
        layer: int | None = None,
    ) -> Trace:
        """The same text with other settings, without a model: `token_ids` are greedy's picks at each recorded prefix.

        None leaves a setting as it was; alpha=0 takes the mask away. `strength` and `beta` are two forms, giving one
        leaves the other. A contrast can change all but `layer`, DoLa `alpha` and `layer` (one candidate layer at every
        position instead of the most divergent), a mixture `alpha`. The picks are exact wherever the result's
        `truncated` is False; what would follow the first changed token is another text, see `first_change`. With
        another amateur_temperature the scores hold up to a constant per position (settings["scores"] says so): its
        normaliser needs the whole vocabulary. Details and rounds stay those of the recorded run.
        Raises ValueError for a method with nothing to change or a setting it does not have.
        """
        return counterfactual.rescore(
            self,
            strength=strength,
            alpha=alpha,
            amateur_temperature=amateur_temperature,
            top_k=top_k,
            beta=beta,
            layer=layer,
        )

    def first_change(self, **settings: Any) -> int | None:
        """The first position where greedy picks another token at these settings (as in `rescore`), None if nowhere.

        Up to and including it, `rescore(...).token_ids` is what `generate` gives at these settings. What it is compared
        with are greedy's picks at the recorded settings, also where the text was sampled.
        """
        changed = (counterfactual.picks(self) != counterfactual.picks(self, **settings)).nonzero()
        return int(changed[0]) if len(changed) else None

    def flip_points(self, position: int) -> FlipPoints:
        """Where greedy's pick at a position flips as one setting moves and the others stay: see `FlipPoints`.

        Exact and in closed form: scores are linear in the strength, so the winners are the upper envelope of lines, and
        alpha only lets candidates in one after the other. Raises ValueError as `rescore` does.
        """
        return flips.flip_points(self, position)

    def to_json(self) -> str:
        """The whole trace as strict JSON text, token texts included; `from_json` gives the very same numbers back.

        JSON has no infinities and no NaN: they become the texts "-inf", "inf" and "nan"; so do settings it cannot say.
        """
        return tracefile.to_json(self, token_texts)

    @classmethod
    def from_json(cls, text: str, *, tokenizer: Any = None) -> Trace:
        """A trace from `to_json`'s text; without a tokenizer it shows the token texts stored in it.

        Raises ValueError for text that is no trace, or one of a newer format.
        """
        return tracefile.from_json(cls, text, tokenizer)

    def save(self, path: str | Path) -> None:
        """Write `to_json()` to a file, compressed if its name ends in .gz."""
        tracefile.save(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Any = None) -> Trace:
        """Read what `save` wrote. Raises OSError for the file, ValueError for its content."""
        return cls.from_json(tracefile.load(path), tokenizer=tokenizer)

    def summary(self) -> str:
        """A few lines of text: the settings, the choices, and how sure and how different the models were."""
        return tables.summary(self)

    def step_frame(self) -> pd.DataFrame:
        """A tidy table, one row per position: what `to_frame` cannot say of a single candidate.

        Columns: position, token_id, token, then for "expert", "amateur", ... `expert_surprisal` (of the chosen token)
        and `expert_entropy` in nats, `expert_rank` (of the chosen token) and `amateur_tv` (total-variation distance
        from the expert), then `truncated` and the details with one value a position. Parts with layers are left out.
        """
        return tables.step_frame(self)

    def to_frame(self, *, top: int | None = None) -> pd.DataFrame:
        """A tidy table, one row per position and candidate; `top` keeps the expert's best few and the chosen token.

        Columns: position (0 is the first new token), rank (1 is the expert's best), token_id, token (None without a
        tokenizer), expert_logit, amateur_logit, expert_prob, amateur_prob (NaN without an amateur), score, kept,
        chosen, then the same pair of columns for any other part, and one column per detail with one value a position.
        """
        return tables.to_frame(self, top)


class Recorder:
    """Collects steps for `Trace`. Whole rows of scores wait a few steps only, then they are cut to the candidates."""

    def __init__(self, *, candidates: int = CANDIDATES, steps: int = 16, numbers: int = 12_000_000) -> None:
        self.size, self.steps, self.numbers = candidates, steps, numbers
        self._rows: Sequence[int] = ()
        self._waiting: list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor], Tensor]] = []
        self._blocks: list[tuple[Sequence[int], dict[str, Any]]] = []
        self._rounds: dict[int, list[dict[str, Any]]] = {}
        self._vocab: int | None = None

    def add(
        self,
        rows: Sequence[int],
        score: Tensor,
        parts: dict[str, Tensor],
        details: dict[str, Tensor],
        chosen: Tensor,
    ) -> None:
        """One step of some batch rows: score [b, V], parts name -> [b, V] or [b, L, V], details name -> [b, ...]."""
        # one stack of many steps costs far less than many small calls, and keeps at most `numbers` numbers waiting
        size = score.numel() + sum(part.numel() for part in parts.values())
        limit = min(self.numbers, _ON_CPU) if score.device.type == "cpu" else self.numbers
        if self._waiting and (rows != self._rows or (len(self._waiting) + 1) * size > limit):
            self._cut()
        self._rows = list(rows)
        self._waiting.append((score, parts or {"expert": score}, details, chosen))
        if len(self._waiting) >= self.steps:
            self._cut()

    def _cut(self) -> None:
        score = _stack([step[0] for step in self._waiting])  # (S, b, V)
        parts = {name: _stack([step[1][name] for step in self._waiting]) for name in self._waiting[0][1]}
        details = {name: _stack([step[2][name] for step in self._waiting]) for name in self._waiting[0][2]}
        chosen = _stack([step[3] for step in self._waiting]).to(score.device)[..., None]  # (S, b, 1)
        expert = parts.get("expert", score)
        self._vocab = expert.shape[-1]
        best = expert.topk(min(self.size, expert.shape[-1])).indices
        candidates = torch.cat([best, chosen], dim=-1)  # (S, b, N + 1)
        probs = expert.softmax(dim=-1) if len(parts) > 1 else None
        block: dict[str, Any] = {"candidates": candidates, "score": score.gather(-1, candidates), "details": details}
        block |= {name: {} for name in ("parts", "normalisers", "entropy", "total_variation", "ranks")}
        for name, part in parts.items():
            for what, value in _measured(part, candidates, None if part is expert else probs).items():
                block[what][name] = value
        block["rank"] = block["ranks"]["expert"] if "expert" in parts else _rank(expert, expert.gather(-1, chosen))
        self._blocks.append((self._rows, _map(block, Tensor.cpu)))
        self._waiting = []

    def add_round(self, row: int, facts: dict[str, Any]) -> None:
        """A round of speculation of one batch row, in plain Python numbers."""
        self._rounds.setdefault(row, []).append(facts)

    def trace(self, row: int, prompt_ids: list[int], *, steps: int, settings: dict[str, Any], tokenizer: Any) -> Trace:
        """The first `steps` steps of one batch row."""
        if self._waiting:
            self._cut()
        mine = [_map(block, itemgetter((slice(None), rows.index(row)))) for rows, block in self._blocks if row in rows]
        if not mine:
            empty = torch.zeros(0, 1)
            return Trace(prompt_ids, empty.long(), empty, {}, {}, empty[:, 0].long(), {}, settings, tokenizer)
        whole = _join(mine, steps)
        return Trace(
            prompt_ids=prompt_ids,
            **whole,
            settings=dict(settings),
            tokenizer=tokenizer,
            vocab_size=self._vocab,
            rounds=self._rounds.get(row, []),
        )


def _measured(part: Tensor, candidates: Tensor, expert_probs: Tensor | None) -> dict[str, Tensor]:
    """What is kept of whole rows: part [S, b, V] or [S, b, L, V], candidates [S, b, N + 1], expert_probs [S, b, V]."""
    if part.dim() > candidates.dim():  # a part with layers
        candidates = candidates[..., None, :].expand(*part.shape[:-1], -1)
        expert_probs = None if expert_probs is None else expert_probs[..., None, :]
    logits = part.gather(-1, candidates)
    normaliser = part.logsumexp(dim=-1)
    probs = part.softmax(dim=-1)
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
