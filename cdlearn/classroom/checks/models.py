"""Stand-ins for causal language models whose every logit can be worked out by hand: `model(ids).logits`."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GPT2Config

MOST = 100  # calls: the checks' texts are short, so whoever asks that often never stops


class Named:
    """A function that messages show by its name."""

    def __init__(self, name: str, gives: Callable) -> None:
        self.name, self.gives = name, gives

    def __call__(self, state: Tensor) -> Tensor:
        return self.gives(state)

    def __repr__(self) -> str:
        return self.name


class Model(Named):
    """A model that counts how often it is asked, and ends a loop that would not end."""

    asked = 0

    def count(self) -> None:
        self.asked += 1
        if self.asked > MOST:
            raise RuntimeError(f"the model was asked {MOST} times: does your loop end?")

    def __call__(self, ids: Tensor, **options: Any) -> SimpleNamespace:
        """ids: [B, T] int. Returns an object with `.logits` [B, T, V]."""
        self.count()
        return self.gives(ids, **options)


def _after(sums: Tensor, vocab_size: int, steps: dict[int, float]) -> Tensor:
    """Logits [B, T, V] after sums [B, T] of what the prefixes add up to: token `(sum + k) % V` has `steps[k]`, or 0."""
    row = torch.zeros(vocab_size)
    for step, logit in steps.items():
        row[step % vocab_size] = logit
    return row[(torch.arange(vocab_size) - sums[..., None]) % vocab_size]


def SumLM(vocab_size: int, steps: dict[int, float]) -> Model:
    """Looks at the sum of all ids so far: the logit of token `(sum + k) % V` is `steps[k]`, or 0."""
    name = f"SumLM({vocab_size}, {steps})"
    return Model(name, lambda ids: SimpleNamespace(logits=_after(ids.cumsum(dim=1), vocab_size, steps)))


def ScriptLM(rows: Tensor) -> Model:
    """Says the same at a position whatever the ids are: `rows[t]` are the logits after position t."""
    name = f"a ScriptLM of {len(rows)} positions"
    return Model(name, lambda ids: SimpleNamespace(logits=rows[: ids.shape[1]].repeat(ids.shape[0], 1, 1)))


def TableLM(rows: list[list[float]]) -> Model:
    """Looks at the sum of all ids so far: the logits are `rows[sum % len(rows)]`."""
    return Model(f"TableLM({rows})", lambda ids: SimpleNamespace(logits=torch.tensor(rows)[ids.cumsum(1) % len(rows)]))


class PositionLM(Model):
    """Looks at the sum of token * (position + 1) over the columns it may see: token `(sum + k) % V` gets `steps[k]`.

    Keeps its columns in a DynamicCache and takes the arguments of a transformers model. `fed` notes what it was given.
    """

    def __init__(self, vocab_size: int, steps: dict[int, float]) -> None:
        self.name, self.steps, self.vocab_size, self.fed = f"PositionLM({vocab_size}, {steps})", steps, vocab_size, []
        no_ends = {"bos_token_id": None, "eos_token_id": None}
        self.config = GPT2Config(n_layer=1, n_head=1, n_embd=1, vocab_size=vocab_size, **no_ends)

    def __call__(
        self, input_ids, *, attention_mask=None, position_ids=None, past_key_values=None, use_cache=1, logits_to_keep=0
    ) -> SimpleNamespace:
        """input_ids: [B, n] int. Returns an object with `.logits` [B, n, V] and `.past_key_values`, a DynamicCache."""
        B, n = input_ids.shape
        if n == 0:
            raise ValueError("input_ids has no columns: there is nothing to read, so there are no new logits")
        self.fed.append(input_ids.tolist())
        self.count()
        cache = DynamicCache(config=self.config) if past_key_values is None else past_key_values
        start = cache.get_seq_length()
        if position_ids is None:  # as most models do: columns are positions
            position_ids = torch.arange(start, start + n).expand(B, n)
        if position_ids.shape not in ((B, n), (1, n)):
            raise ValueError(f"position_ids is {[*position_ids.shape]}, but the new tokens of this call are {[B, n]}")
        ids, positions = cache.update(*(x[:, None, :, None].float() for x in (input_ids, position_ids)), 0)
        terms = (ids * (positions + 1))[:, 0, :, 0]  # (B, columns)
        if attention_mask is not None:
            if attention_mask.shape != terms.shape:
                held, given = list(terms.shape), list(attention_mask.shape)
                raise ValueError(f"attention_mask is {given}, but cache and new tokens together are {held}")
            terms = terms * attention_mask
        logits = _after(terms.cumsum(1)[:, start:].long(), self.vocab_size, self.steps)  # (B, n, V)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:], past_key_values=cache)


TOY = PositionLM(8, {0: 4.0, 1: 3.0})
TOY_WORDS = "the model's best token is the sum of token * (position + 1) modulo 8, positions from 0. "


def filled(tokens: Sequence[int]) -> DynamicCache:
    """A cache that holds these tokens, as PositionLM keeps them."""
    from cdlearn.classroom.grader.wire import strict_cache  # as it is in the grader's other process

    cache = strict_cache(config=TOY.config)
    PositionLM(8, {})(torch.tensor([list(tokens)]), past_key_values=cache)
    return cache
