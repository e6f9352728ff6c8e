"""Stand-ins for causal language models whose every logit can be worked out by hand: `model(ids).logits`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

MOST = 100  # calls: the checks' texts are short, so whoever asks that often never stops


class Asked:
    """Counts how often a model is asked, and ends a loop that would not end."""

    asked = 0

    def count(self) -> None:
        self.asked += 1
        if self.asked > MOST:
            raise RuntimeError(f"the model was asked {MOST} times: does your loop end?")


class SumLM(Asked):
    """Looks at the sum of all ids so far: the logit of token `(sum + k) % V` is `steps[k]`, or 0."""

    def __init__(self, vocab_size: int, steps: dict[int, float]) -> None:
        self.vocab_size, self.steps = vocab_size, steps

    def __call__(self, ids: Tensor) -> SimpleNamespace:
        """ids: [B, T] int. Returns an object with `.logits` [B, T, V]."""
        self.count()
        row = torch.zeros(self.vocab_size)
        for step, logit in self.steps.items():
            row[step % self.vocab_size] = logit
        sums = ids.cumsum(dim=1)  # (B, T): what the prefix up to here adds up to
        shifted = (torch.arange(self.vocab_size) - sums[..., None]) % self.vocab_size  # (B, T, V)
        return SimpleNamespace(logits=row[shifted])

    def __repr__(self) -> str:
        return f"SumLM({self.vocab_size}, {self.steps})"


class ScriptLM(Asked):
    """Says the same at a position whatever the ids are: `rows[t]` are the logits after position t."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, ids: Tensor) -> SimpleNamespace:
        """ids: [B, T] int, T at most len(rows). Returns an object with `.logits` [B, T, V]."""
        self.count()
        return SimpleNamespace(logits=self.rows[: ids.shape[1]].repeat(ids.shape[0], 1, 1))

    def __repr__(self) -> str:
        return f"a ScriptLM of {len(self.rows)} positions"


class TableLM(Asked):
    """Looks at the sum of all ids so far: the logits are `rows[sum % len(rows)]`."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows

    def __call__(self, ids: Tensor) -> SimpleNamespace:
        """ids: [B, T] int. Returns an object with `.logits` [B, T, V]."""
        self.count()
        return SimpleNamespace(logits=torch.tensor(self.rows)[ids.cumsum(dim=1) % len(self.rows)])

    def __repr__(self) -> str:
        return f"TableLM({self.rows})"
