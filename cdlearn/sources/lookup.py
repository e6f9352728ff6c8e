"""Drafts without a model: what followed the last time."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from cdlearn.checks import check_count
from cdlearn.scores import NEVER
from cdlearn.sources.base import Source


class Lookup(Source):
    """Prompt lookup, a draft for `speculate`: the token that followed the latest earlier occurrence of the last tokens.

    longest, shortest: how many tokens must agree; the longest agreement counts. The token found has the score 0, all
    others have -inf; where nothing is found a row is -inf throughout, which tells `speculate` to draft nothing. It pays
    where a text repeats its prompt: code, summaries, answers that quote. Prompt lookup decoding: A. Saxena, 2023.
    """

    vocab_size = sys.maxsize  # whatever the ids are: it proposes what it has seen
    settings = {"method": "lookup"}

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        super().__init__()
        self.longest = check_count(longest, "longest")
        self.shortest = check_count(shortest, "shortest", high=self.longest)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        scores = torch.full((len(ids), n, int(ids.max()) + 1), NEVER)  # (B, n, V): as many as it takes
        for row, tokens in enumerate(ids):
            for k in range(n):
                stop = ids.shape[1] - n + k + 1
                found = self._find(tokens[:stop] if mask is None else tokens[:stop][mask[row, :stop]])
                if found is not None:
                    scores[row, k, found] = 0.0
        self.parts = {"expert": scores}
        return scores

    def _find(self, tokens: Tensor) -> int | None:
        """tokens: [T]. The token after the latest earlier occurrence of the last ones."""
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            agree = (tokens.unfold(0, size, 1)[:-1] == tokens[-size:]).all(dim=1).nonzero()
            if len(agree):
                return int(tokens[int(agree[-1]) + size])
        return None
