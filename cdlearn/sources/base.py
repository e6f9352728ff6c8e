"""What every source has, and how its call is checked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import methodcaller
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import is_int, row_max, short
from cdlearn.trace.record import Form

Kept = Callable[[], Tensor] | None  # the tokens that matter, [B, n, V] bool, made when asked for; None: all
_ASKED: dict[int, tuple[int]] = {}  # the sources that are asked right now, each with the thread that asks
# in a loop: the numbers of the rows it asks about, and how many rows it began with
PLACES: ContextVar[tuple[list[int], int] | None] = ContextVar("places", default=None)


class Source:
    """What every source has. A new method is a subclass with one function, `scores(ids, mask, n) -> [B, n, V]`.

    vocab_size; eos_token_ids: tuple of ids that end a text; max_positions: the longest context, in real tokens (None:
    no limit); device: where scores live; rewindable: whether taking tokens back is cheap (the scores are right
    either way). After a call `parts` maps names ("expert", "amateur") to raw scores [B, n, V], or [B, n, L, V] for
    several layers, and `details` other names to [B, n, ...]: what a trace records, of `parts` the candidates only.
    `settings` names the method and its numbers. unnormalised: whether scores are known up to a constant per column
    only, as a model's logits are; then a beam search, which compares columns, takes their log-softmax. forms: how the
    scores are made of `parts`, if they can be computed again with other numbers: see `Form`. inner: the names of the
    attributes that hold other sources, or lists, tuples or dicts of them.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    max_positions: int | None = None
    device: torch.device = torch.device("cpu")
    rewindable: bool = True
    unnormalised: bool = False
    settings: dict[str, Any] = {}
    forms: tuple[Form, ...] = ()
    inner: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.details: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor | None = None, n: int = 1) -> Tensor:
        """Scores of the next token after each of the last n columns.

        ids: [B, T] int. mask: [B, T], 0 where a column does not count (left padding, rejected drafts); None: all count.
        Returns [B, n, V] float32 on `device`, the caller's to keep. After a masked column the scores mean nothing.
        Raises TypeError or ValueError naming the argument, and ValueError for scores with NaN or +inf.
        """
        ids, mask = check_call(ids, mask, n)
        n = int(n)
        with self.alone():
            scores = self.scores(ids, mask, n)
        seen = scores if mask is None else scores[mask[:, -n:].to(scores.device)]
        if not seen.amax().item() < math.inf:  # NaN spreads through a maximum
            row_max(seen, "scores")
        return scores

    @torch.no_grad()
    def ask(self, ids: Tensor, mask: Tensor | None = None, n: int = 1) -> Tensor:
        """A call that does not wait for the device: for loops, which look at the numbers that they pick from."""
        with self.alone():
            return self.scores(*check_call(ids, mask, n), int(n))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps a source to one thread, which may nest: RuntimeError where another one is inside. Nobody waits."""
        mine = (get_ident(),)
        try:
            if _ASKED.setdefault(id(self), mine) != mine:
                raise RuntimeError(f"{self!r} is asked by another thread: give every thread a fork() of it.")
            yield
        finally:
            if _ASKED.get(id(self)) is mine:
                del _ASKED[id(self)]

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        """To be written by a subclass. ids: [B, T] int64 and mask: [B, T] bool or None (all ones) are on the CPU."""
        if type(self).scores_among is Source.scores_among:
            raise NotImplementedError(f"{type(self).__name__} must define scores(ids, mask, n).")
        return self.scores_among(ids, mask, n)

    def scores_among(self, ids: Tensor, mask: Tensor | None, n: int, kept: Kept = None) -> Tensor:
        """Like `scores`, told which tokens matter: for sources that pay by the token, and for those around them."""
        return self.scores(ids, mask, n)

    def reset(self) -> None:
        """Forget everything and free the caches. Never needed for right answers, only for memory."""
        self.parts, self.details = {}, {}
        _over([getattr(self, name) for name in self.inner], methodcaller("reset"))

    def fork(self) -> Source:
        """The same source over the same weights with a cache of its own, so that two prefixes do not fight for one."""
        twin = copy.copy(self)
        twin.parts, twin.details, hidden = {}, {}, []
        for name, value in vars(self).items():
            if name in self.inner:
                setattr(twin, name, _over(value, methodcaller("fork")))
                continue
            _over(value, hidden.append)
            if hidden:  # two prefixes would fight for its cache
                raise TypeError(f"{type(self).__name__}.{name} holds a source: name it in the class's `inner`.")
        return twin

    def changed(self, **settings: Any) -> Source:
        """This method with other settings, over the same parts and their caches. Raises ValueError where none can."""
        raise ValueError(f"{type(self).__name__} has no settings to change: build another source.")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if name != "method")
        return f"{type(self).__name__}({settings})"


def _over(value: Any, act: Callable[[Source], Any]) -> Any:
    """A value with `act(source)` in the place of every source in it, also in nested lists, tuples and dicts."""
    if isinstance(value, Source):
        return act(value)
    if isinstance(value, dict):
        return {key: _over(item, act) for key, item in value.items()}
    return type(value)([_over(item, act) for item in value]) if isinstance(value, (list, tuple)) else value


def settings_around(source: Source, **own: Any) -> dict[str, Any]:
    """The settings of a source around another: its own, and those of the inner one by names of their own."""
    return own | {f"source_{name}": value for name, value in source.settings.items()}


def shares(rows: int, count: int) -> list[int]:
    """Which of `count` things, dealt out evenly in order, belongs to each of a call's rows; finished rows may be gone.

    Raises ValueError where they cannot be dealt out evenly.
    """
    numbers, total = PLACES.get() or (range(rows), rows)
    if total % count:
        raise ValueError(f"prefix is a list of {count} for {total} rows: give one for every row, or for every prompt.")
    return [numbers[row * len(numbers) // rows] * count // total for row in range(rows)]


@contextmanager
def one_row(row: int, rows: int) -> Iterator[None]:
    """Around questions about several texts that are one row of a call: that row's share is theirs."""
    numbers, total = PLACES.get() or (range(rows), rows)
    outer = PLACES.set(([numbers[row * len(numbers) // rows]], total))
    try:
        yield
    finally:
        PLACES.reset(outer)


def padded(rows: Sequence[Sequence[int]], *, left: bool = True) -> tuple[Tensor, Tensor]:
    """Rows of any lengths as ids [B, T] int64, filled up with 0 on one side, and their mask [B, T] bool."""
    width = max(map(len, rows), default=0)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        here = slice(width - len(tokens), width) if left else slice(len(tokens))
        ids[row, here], mask[row, here] = torch.tensor(tokens, dtype=torch.long), 1
    return ids, mask.bool()


def float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_call(ids: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, Tensor | None]:
    """ids [B, T] int64 and mask [B, T] bool (None: all ones), both on the CPU, where matching costs no GPU wait."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError("ids must be a torch tensor of token ids, [B, T] int: wrap a list in torch.tensor([...]).")
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"ids has shape {tuple(ids.shape)}: pass [B, T] with at least one row and one column.")
    if not is_int(n) or not 1 <= n <= ids.shape[1]:
        raise ValueError(f"n is {short(n)}: pass a whole number of columns from 1 to T = {ids.shape[1]}.")
    ids = ids.to("cpu", torch.long)
    if mask is None:
        return ids, None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}: pass a [B, T] tensor of 0 and 1, or None.")
    if mask.shape != ids.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)} and ids {tuple(ids.shape)}: they must be equal.")
    mask = mask.to("cpu").bool()
    if bool(mask.all()):
        return ids, None
    if not bool(mask.any(dim=1).all()):
        raise ValueError("mask has a row of zeros only: every row needs at least one real token.")
    return ids.masked_fill(~mask, 0), mask  # whatever id marks padding, the model need not know it
