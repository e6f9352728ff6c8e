"""An amateur with another tokenizer, compared in the space of texts."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cdlearn.checks import BROKEN, check_tokenizer
from cdlearn.scores import NEVER
from cdlearn.sources.base import Kept, Source, one_row, padded, settings_around
from cdlearn.sources.cached import as_source

_CHUNK = 64  # candidate texts in one forward pass


class TextSpace(Source):
    """A model that speaks other tokens, scoring the expert's: log p(text + candidate) - log p(text) in its own tokens.

    model: a source or transformers model. tokenizer: its own. expert_tokenizer: the one whose ids come in. Use it as an
    amateur: `Contrast(expert, TextSpace(amateur, its_tokenizer, expert_tokenizer))` asks for the tokens that the
    expert's mask keeps; asked alone, it scores the whole vocabulary, which is slow. Special tokens other than EOS, and
    tokens that end inside a character, have no text to compare: they get the median of the others in the row.
    Scores are log-probabilities of texts in nats, -inf for tokens nobody asked for.
    """

    inner = ("source",)

    def __init__(self, model: Source | PreTrainedModel, tokenizer: Any, expert_tokenizer: Any) -> None:
        super().__init__()
        check_tokenizer(tokenizer)
        check_tokenizer(expert_tokenizer, "expert_tokenizer")
        self.source = as_source(model).fork()
        self.tokenizer, self.expert_tokenizer = tokenizer, expert_tokenizer
        self.vocab_size = len(expert_tokenizer)
        eos = expert_tokenizer.eos_token_id
        self.eos_token_ids = () if eos is None else (eos,)
        self.device = self.source.device
        self.settings = settings_around(self.source, method="text space")
        self._special = set(expert_tokenizer.all_special_ids)
        self._rows: list[Source] = []  # a cache for each row: their texts have nothing in common

    def fork(self) -> TextSpace:
        return TextSpace(self.source, self.tokenizer, self.expert_tokenizer)

    def reset(self) -> None:
        super().reset()
        self._rows.clear()

    def scores_among(self, ids: Tensor, mask: Tensor | None, n: int, kept: Kept = None) -> Tensor:
        scores = torch.full((len(ids), n, self.vocab_size), NEVER)
        wanted = scores == NEVER if kept is None else kept().to("cpu")[..., : self.vocab_size]
        while len(self._rows) < len(ids):
            self._rows.append(self.source.fork())
        for row in range(len(ids)):
            for k in range(n):
                stop = ids.shape[1] - n + k + 1
                real = torch.ones(stop, dtype=torch.bool) if mask is None else mask[row, :stop]
                if not bool(real[-1]):
                    scores[row, k] = 0.0  # after a masked column nothing is promised
                    continue
                candidates = wanted[row, k].nonzero()[:, 0].tolist()
                with one_row(row, len(ids)):
                    found = self._compare(self._rows[row], ids[row, :stop][real].tolist(), candidates)
                scores[row, k, candidates] = found
        scores = scores.to(self.device)
        self.parts = {"expert": scores}
        return scores

    def _compare(self, source: Source, prefix: list[int], candidates: list[int]) -> Tensor:
        """log p(text + candidate) - log p(text) for every candidate: [K]."""
        text = self._text(prefix)
        base = self._encode(text)
        texts = [None if c in self._special else self._text([*prefix, c]) for c in candidates]
        longer = [None if t is None or t.endswith(BROKEN) or t == text else self._encode(t) for t in texts]
        ends = self.tokenizer.eos_token_id
        for k, candidate in enumerate(candidates):
            if candidate in self.eos_token_ids and ends is not None:
                longer[k] = [*base, ends]
        known = [tokens for tokens in longer if tokens is not None]
        if not known:
            return torch.zeros(len(candidates))
        # every text shares its beginning with the others: the part after it is what differs in probability
        shared = len(os.path.commonprefix([base, *known]))
        logp = self._tails(source, [base, *known], max(1, min(shared, *(len(tokens) - 1 for tokens in known))))
        known_scores = iter((logp[1:] - logp[0]).tolist())
        values = torch.tensor([float("nan") if tokens is None else next(known_scores) for tokens in longer])
        return values.where(~values.isnan(), values.nanmedian())

    def _tails(self, source: Source, texts: list[list[int]], shared: int) -> Tensor:
        """The log-probability of every text's tokens after the first `shared` ones: [K]."""
        totals = []
        for at in range(0, len(texts), _CHUNK):
            ids, real = padded(texts[at : at + _CHUNK], left=False)
            # after the last shared token, ..., the last but one
            logits = source(ids, real, ids.shape[1] - shared + 1)[:, :-1]
            tail, counts = ids[:, shared:], real[:, shared:]
            logp = logits.log_softmax(dim=-1).cpu().gather(-1, tail[..., None])[..., 0]  # (K, T - shared)
            totals.append(logp.where(counts, 0.0).sum(dim=1))
        return torch.cat(totals)

    def _text(self, ids: list[int]) -> str:
        return self.expert_tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _encode(self, text: str) -> list[int]:
        ids = list(self.tokenizer(text)["input_ids"])
        if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # tokenizers that close every text would end it before the candidate
        start = self.tokenizer.bos_token_id
        if not ids or (start is not None and ids[0] != start and len(ids) < 2):
            ids = [start if start is not None else self.tokenizer.eos_token_id or 0, *ids]
        return ids
