"""What is found out about a model by asking it a few tokens: once per model object, when something first needs it.

`holes_show` for rows with holes (ragged speculation), `goes_on_by` where a cache holds a state. With SmolLM2-135M in
float32 on one thread they cost what 2 and 5 new tokens do; what DoLa and EarlyExit ask when they are made, 3.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
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


def goes_on_by(source: Any) -> int:
    """How many tokens at once a model's state takes up rightly: any number, one (Jamba), none. Three to five passes."""
    ids, cold = few(source.vocab_size), source.fork()
    cold._feed(ids, None, 0, 2)
    for start, most in ((2, sys.maxsize), (3, 1)):
        warm = source.fork()
        warm._feed(ids[:, :start], None, 0, start - 1)
        with suppress(Exception):  # whatever an architecture raises that was not made for it
            warm._feed(ids, None, start, start)
            pairs = zip(warm._memory[start - 4 :], cold._memory[start - 4 :])
            if all(alike(ours, theirs, 1e-5) for (_, w), (_, c) in pairs for ours, theirs in zip(w, c)):
                return most
    return 0
