"""What is found out about a model by asking it a few tokens: once per model object, when something first needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

TURN = threading.RLock()  # held by probes, and by passes of models that change while they run
_FOUND: WeakKeyDictionary[PreTrainedModel, dict[Any, Any]] = WeakKeyDictionary()  # nothing is written on a model


def known(measure: Callable[[Any], Any], model: PreTrainedModel, source: Any = None) -> Any:
    """What `measure` says of a model, or of a source over it: asked once for a model object."""
    with TURN, torch.no_grad():
        found = _FOUND.setdefault(model, {})
        if measure not in found:
            found[measure] = measure(source or model)
        return found[measure]


def few(vocab_size: int) -> Tensor:
    """Four tokens from the inside of a vocabulary, where none is padding: [1, 4]."""
    return torch.arange(1, 5)[None] * max(vocab_size // 5, 1) % vocab_size


def alike(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> bool:
    """Whether two tensors are equal but for rounding, to a share of the largest number (in half precision: 5%)."""
    share = 5e-2 if ours.dtype in (torch.float16, torch.bfloat16) else share
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return torch.allclose(ours, theirs, rtol=0, atol=share * float(theirs.abs().max()))


def holes_show(source: Any) -> bool:
    """Whether a masked column moves what follows (MPT: its biases count columns): one pass over two short rows."""
    ids, probe = torch.zeros(2, 8, dtype=torch.long), source.fork()
    ids[0, 4:] = ids[1, [0, 5, 6, 7]] = few(source.vocab_size)
    probe._feed(ids, ids > 0, 0, 7)
    return not all(alike(tensor[1], tensor[0]) for tensor in probe._memory[-1][1])


def takes_several(source: Any) -> bool:
    """Whether a model goes on from its state by several tokens at once (Jamba: by one): three passes over four."""
    ids, cold, warm = few(source.vocab_size), source.fork(), source.fork()
    cold._feed(ids, None, 0, 2)
    warm._feed(ids[:, :2], None, 0, 1)
    warm._feed(ids, None, 2, 2)
    pairs = zip(warm._memory[-2:], cold._memory[-2:])
    return all(alike(ours, theirs, 1e-5) for (_, warm), (_, cold) in pairs for ours, theirs in zip(warm, cold))
