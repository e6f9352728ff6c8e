"""How many tokens a draft proposes in a round, and what that was worth."""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import check_count, check_word, is_int, short
from cdlearn.sources import Source

LONGEST = 24  # tokens that "auto" drafts at most
COLUMN = 0.02  # what a column more costs, in passes over one, per byte of a number: 0.04 in bfloat16, 0.08 in float32
_BINS = 8  # of the draft's probability, each with its own acceptance rate
_TRUST = 8  # tests after which a bin's own acceptance weighs as much as the draft's word
_MEMORY = 0.9  # how much of the acceptance of first tokens is remembered per round
_REST = 16  # rounds without a draft after which one is tried again
_LONG = 5.0  # seconds; of a slower run that lost to its drafts the user is told
_TRIED = 3.0  # seconds of rounds with drafts after which a greedy run asks whether they pay


class Pace:
    """The draft length of one row: a fixed one, or ("auto") on while the draft is likely to be accepted.

    With "auto" a draft goes on while the chance that all of it is accepted exceeds the price of one more token. The
    chance is the product of the draft's own probabilities of its best tokens, each corrected by the acceptance seen at
    such probabilities; the price is a pass of the draft, as a share of the target's by the weights that both read.
    Nothing is timed here: a seed gives one text. The length depends on the tokens before it only, so the distribution
    stays exact. (Greedy text does not depend on the draft lengths at all: there `Clock.loses` may stop the drafts.)
    """

    def __init__(self, gamma: int | str, price: float) -> None:
        self.longest, self.price = LONGEST if gamma == "auto" else int(gamma), price  # price 0: none stops the draft
        self._seen = [[0.0, 0.0] for _ in range(_BINS)]  # accepted, tested
        self._first = 1.0  # the acceptance of first tokens, of late
        self._idle = 0

    def start(self, room: int) -> None:
        """Begin a round in which at most `room` tokens can be drafted."""
        self._room, self._chance, self._bins = min(room, self.longest), 1.0, []
        if self._first < self.price and self._idle < _REST:  # not even one token pays
            self._room, self._idle = 0, self._idle + 1
        else:
            self._idle = 0

    @property
    def goes_on(self) -> bool:
        return len(self._bins) < self._room and self._chance >= self.price

    def add(self, probability: float) -> None:
        """A token was drafted, and this is the probability of the draft's best token there."""
        self._bins.append(min(int(probability * _BINS), _BINS - 1))
        accepted, tested = self._seen[self._bins[-1]]
        self._chance *= (accepted + _TRUST * probability) / (tested + _TRUST)

    def stop(self) -> None:
        """The draft has nothing more to say."""
        self._room = len(self._bins)

    @property
    def size(self) -> int:
        return len(self._bins)

    def judge(self, accepted: int, rejected: bool) -> None:
        """The round is over: so many tokens were accepted, and whether the next one was rejected."""
        for k, bin_ in enumerate(self._bins[: accepted + rejected]):
            self._seen[bin_][0] += k < accepted
            self._seen[bin_][1] += 1
        if accepted + rejected:
            self._first = _MEMORY * self._first + (1 - _MEMORY) * (accepted > 0)


def check_gamma(gamma: Any) -> None:
    """A whole number of at least 1, or "auto"."""
    if is_int(gamma):
        check_count(gamma, "gamma")
    elif isinstance(gamma, str):
        check_word(gamma, "gamma", ("auto",))
    else:
        raise TypeError(f'gamma is {short(gamma)}: pass "auto" or a whole number of at least 1.')


def price_of(draft: Source, target: Source) -> float:
    """What a drafted token costs, in passes of the target."""
    numbers, size = _read(target).tolist()
    return COLUMN * size / numbers + _read(draft)[1].item() / size if size else 4 * COLUMN + 0.3


def _read(source: Any) -> Tensor:
    """How many numbers a pass of a source reads, and their bytes: [2]."""
    if isinstance(source, (list, tuple)):
        return sum(map(_read, source), torch.zeros(2, dtype=torch.float64))
    read = getattr(getattr(source, "model", None), "parameters", list)()
    own = torch.tensor([[0, 0], *([one.numel(), one.nbytes] for one in read)]).sum(dim=0)
    return own + _read([getattr(source, name) for name in getattr(source, "inner", ())])


class Clock:
    """What the rounds of a run took, and what plain decoding would have; of a batch, while all its rows are there."""

    def __init__(self) -> None:
        self._checks: dict[int, list[float]] = {}  # drafted tokens -> seconds of the target's passes
        self._took, self._tokens, self._rounds, self._most = 0.0, 0.0, -1, 0  # the first round reads the prompt
        self._drafts, self._gained, self._idle = 0.0, 0.0, 0  # of rounds with a draft; how many there were without

    def add(self, rows: int, drafted: int, tokens: float, draft_seconds: float, check_seconds: float) -> None:
        """A round: the most tokens that a row drafted, the mean of what the rows gained."""
        self._rounds, self._most = self._rounds + 1, max(self._most, rows)
        if self._rounds and rows == self._most:  # the steps of a few rows say nothing about those of many
            self._checks.setdefault(drafted, []).append(check_seconds)
            self._took, self._tokens = self._took + draft_seconds + check_seconds, self._tokens + tokens
            self._idle = 0 if drafted else self._idle + 1
            if drafted:
                self._drafts, self._gained = self._drafts + draft_seconds + check_seconds, self._gained + tokens

    @property
    def loses(self) -> bool:
        """Whether a greedy run goes on without a draft: in long runs, where drafts took longer than their tokens.

        A pass over several tokens may cost as much as two or three (float32 on some CPUs): no price can know that. One
        round without a draft shows what a plain step takes; later every so many rounds a draft is tried again.
        """
        if self._drafts < _TRIED or self._idle >= _REST:
            return False
        return 0 not in self._checks or self._drafts > 1.02 * self._gained * statistics.median(self._checks[0])

    def speedup(self) -> float | None:
        """Estimated, over plain decoding, whose steps cost what the narrowest passes seen did; None before a round."""
        if not self._checks:
            return None
        return self._tokens * statistics.median(self._checks[min(self._checks)]) / max(self._took, 1e-9)

    def warn(self, accepted: int, drafted: int) -> None:
        """Say once that speculation did not pay, where it cost the user seconds."""
        speedup = self.speedup()
        if speedup is not None and speedup < 0.95 and self._took > _LONG:
            warnings.warn(
                f"speculation took about {1 / speedup:.2f} times as long as plain decoding would have ({accepted} of "
                f"{drafted} drafted tokens were accepted): use a cheaper or better draft, or generate.", stacklevel=3,
            )  # fmt: skip
