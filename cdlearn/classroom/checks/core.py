"""How a check runs a student's function, compares, and speaks: the property that broke, an example, expected and got.

A check is a table: cases, smallest first, then known mistakes. Expected values are written out in the cases: nothing
here computes an answer. A mistake is named when it reproduces the student's output to the digit.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cdlearn.classroom.checks.forbidden import forbidden_uses, names_used
from cdlearn.classroom.checks.result import Result
from cdlearn.classroom.checks.values import kind, same, show

PRINTED = 200  # characters of a function's own printing that a message repeats
LIBRARIES = "site-packages", "dist-packages", sysconfig.get_path("stdlib"), str(Path(__file__).parents[2])
AGAIN = 20  # calls with the same arguments that must give the same answer
# mistakes of several assignments: with log-probabilities, and in a loop that feeds the whole prefix at every step
# fmt: off
PROBABILITIES, ROUNDED, RAW = LOG_PROBS = (
    ("probabilities where log-probabilities belong", "log_softmax", "softmax", "what the two terms are logarithms of"),
    ("the logarithm of a softmax: -inf where a probability rounds to 0", ".log_softmax(-1)", ".softmax(-1).log()",
     "a token whose logit is far below the best"),
    ("raw logits where log-probabilities belong", ".log_softmax(-1)", "", "whether each row was normalised"),
)
JOIN = "torch.cat([ids, token[:, None]], dim=1)"
PREFIX = (
    ("the new tokens are not collected", "new.append(token.item())", "pass", "what is put into the list of new tokens"),
    ("the new token is not added to what is read", "ids =", "more =", "what `ids` is at the next step"),
    ("the new token before the prompt", JOIN, "torch.cat([token[:, None], ids], dim=1)", "in which order `ids` grows"),
    ("only the new token is fed after the first step", JOIN, "token[:, None]", "what is read at the second step"),
    ("one token too many", "tokens)", "tokens + 1)", "how often the loop runs"),
)
# fmt: on


@dataclass(frozen=True)
class Case:
    """One property on one small instance. `says` is the sentence that breaks: "the best token is always kept"."""

    says: str
    args: tuple
    expected: Any
    options: dict = field(default_factory=dict)
    example: str = ""  # in words, where the arguments alone do not tell


@dataclass(frozen=True)
class Part:
    """One part of an assignment: called with the student's function it checks it, on the visible cases or on others.

    number: which part of its assignment. reference: THE solution, a plain function of the file that every other place
    reads (the master's solution cell, the right functions that stand in for wrong ones, the mistakes). table: cases,
    then mistakes (name, old text, new text, where to look): what the reference becomes when its source says `new`
    instead of `old` (two tuples: several replacements). earlier: parts whose functions this one may call: if one is
    wrong, say that. raised: pieces of error messages, or of what is said about chance, and where to look then. sure:
    answers are so few (0, 1, 2) that a mistake is named only if it gives all of them. items: what the several values
    that it returns are called, so that a message can say which of them differs. note: what is compared instead of
    what the function returns: note(value, arguments).
    """

    number: int
    reference: Callable
    table: Sequence[Case | tuple]
    earlier: Sequence[Part] = ()
    raised: Mapping[str, str] = field(default_factory=dict)
    sure: bool = False
    items: Sequence[str] = ()
    note: Callable[[Any, tuple], Any] = lambda value, _: value

    @property
    def name(self) -> str:
        return self.reference.__name__

    @property
    def cases(self) -> list[Case]:
        return [row for row in self.table if isinstance(row, Case)]

    @property
    def mistakes(self) -> list[tuple]:
        return [row for row in self.table if isinstance(row, tuple)]

    def source_of(self, old: str | tuple[str, ...] = (), new: str | tuple[str, ...] = ()) -> str:
        """The reference's source with texts replaced, each of which it must hold."""
        source = inspect.getsource(self.reference)
        for before, after in [(old, new)] if isinstance(old, str) else zip(old, new, strict=True):
            assert before in source, f"{self.name} has no {before!r}"
            source = source.replace(before, after)
        return source

    @cached_property
    def known(self) -> list[tuple[str, Callable, str]]:
        """Every mistake as (name, function, where to look), in the order in which they are tried."""
        made = []
        for name, old, new, look in self.mistakes:
            names = dict(self.reference.__globals__)
            exec(self.source_of(old, new), names)
            made.append((name, names[self.name], look))
        return made

    def __call__(self, function: Callable, *, cases: Sequence[Case] | None = None) -> Result:
        """Call the student's function on every case: the first thing that breaks, or a truthy Result.

        It may not use this package. The arguments are copies; a function that changes them is told so. Never raises
        for anything the function does, and prints nothing.
        """
        if not callable(function):
            told = {"broke": "there is no function yet", "got": show(function), "look": "the cell that defines it"}
            return Result(self.name, **told)
        if uses := forbidden_uses(function, ["cdlearn"]):
            look = "write this part yourself, with torch and plain Python"
            return Result(self.name, broke=f"{self.name} may not use cdlearn", got=", ".join(uses), look=look)
        calls = [_Call(function, case, self.note) for case in (self.cases if cases is None else cases)]
        first = next((k for k, call in enumerate(calls) if not call.right), None)
        if first is None:
            return Result(self.name, cases=len(calls))
        if (culprit := self._culprit(function)) is not None:  # a result with a message is falsy
            return culprit
        call, found = self._explained(function, calls, first)
        case = call.case
        typed = [show(value) for value in case.args] + [f"{name}={show(value)}" for name, value in case.options.items()]
        example = case.example or f"{self.name}({', '.join(typed)})"
        told = {"broke": case.says + self._differs(call.value, case.expected), "example": example}
        told |= {"expected": show(case.expected), "got": show(call.value), "printed": call.printed}
        return Result(self.name, **told | found)

    def _differs(self, value: Any, expected: Any) -> str:
        """Which of several things is not as expected, in words; nothing if all of them are not."""
        if self.items and isinstance(value, (tuple, list)):
            value, expected = (dict(zip(self.items, both)) for both in (value, expected))
        if not isinstance(value, dict) or not isinstance(expected, dict) or value.keys() != expected.keys():
            return ""
        wrong = [name for name in expected if not same(value[name], expected[name])]
        return f" (what differs: {', '.join(wrong)})" if len(wrong) < len(expected) else ""

    def _culprit(self, function: Callable) -> Result | None:
        """The message about the first function of an earlier part that this one calls and that is wrong itself."""
        used, there = names_used(function), getattr(inspect.unwrap(function), "__globals__", {})
        for part in self.earlier:
            if part.name not in used:
                continue
            if part.name not in there:
                broke = f"{self.name} calls {part.name}, and there is no {part.name} yet"
                return Result(self.name, broke=broke, look=f"part {part.number}: run the cell that defines it first")
            if getattr(there[part.name], "__code__", None) is part.reference.__code__:
                continue  # it stands in for the student's
            if not (found := part(there[part.name])):
                broke = f"{part.name} of part {part.number}, which {self.name} calls: {found.broke}"
                return replace(found, part=self.name, broke=broke)
        return None

    def _explained(self, function: Callable, calls: Sequence[_Call], first: int) -> tuple[_Call, dict[str, str]]:
        """An error, an edit, chance, a known mistake, a wrong kind: the call to show, and what to say of it."""
        call = calls[first]
        if call.error is not None:
            return call, self._of_error(call.error)
        if call.edit:  # of several the first that can be seen in three decimals
            call = next((one for one in calls if one.edit and one.edit[0] != one.edit[1] and not one.error), call)
            return call, {
                "broke": "the arguments are left as they were",
                "expected": f"the arguments as before the call: {call.edit[0]}",
                "got": f"after the call: {call.edit[1]}",
                "mistake": "an in-place edit of the arguments",
                "look": "what ends in _, assigns to a slice or changes a list (`insert`, `append`): make a new one",
            }
        if not all(call.is_given_by(function) for _ in range(AGAIN)):
            name = "the same call gives another answer every time"
            look = "random numbers that the function draws itself, or something that it keeps between two calls"
            return call, {"mistake": name, "look": self._look(name, look)}
        if mistake := self._known_mistake(calls, first):
            return call, {"mistake": mistake[0], "look": mistake[2]}
        look = kind(call.value, call.case.expected)
        if not look and _keeps_nobody(call.value) and not _keeps_nobody(call.case.expected):
            look = "the threshold: no token passes it, not even the best"
        return call, {"look": look}

    def _of_error(self, error: Exception) -> dict[str, str]:
        """What the student's code raised, and where."""
        if isinstance(error, NotImplementedError):
            look = "the line `raise NotImplementedError()`: replace it"
            return {"got": "nothing: it is not written yet", "look": look}
        where = getattr(error, "where", None)  # of a call in another process
        if where is None:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.line]
            own = [frame for frame in frames if not any(part in frame.filename for part in LIBRARIES)]
            where = next((f"line {frame.lineno}: {frame.line}" for frame in own[-1:]), "")
        text = " ".join(str(error).split())[:300]
        return {"got": f"{type(error).__name__}: {text}", "look": self._look(text, where)}

    def _look(self, text: str, otherwise: str) -> str:
        return next((look for piece, look in self.raised.items() if piece in text), otherwise)

    def _known_mistake(self, calls: Sequence[_Call], first: int) -> tuple[str, Callable, str] | None:
        """The known mistake that gives the student's output where it is first wrong and on most of the other cases.

        Where an answer says little (`sure`, or a mask that keeps nobody), it must give all of the outputs, of several
        cases. One whole number (a token, a place) of one case says nothing: many mistakes would give it.
        """
        value, best, most = calls[first].value, None, 0
        whole = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.numel() == 1
        sure = self.sure or _keeps_nobody(value)
        if len(calls) == 1 and (sure or whole or value is None or isinstance(value, int)):
            return None
        for mistake in self.known:
            hits = [call.is_given_by(mistake[1]) for call in calls]
            if all(hits if sure else hits[: first + 1]) and sum(hits) > most:
                best, most = mistake, sum(hits)
        return best

    def stand_in(self, names: dict[str, Any]) -> None:
        """Before this part is graded: a mistake in an earlier part costs that part's points only.

        names: the notebook's globals(). What is not known to be right there (a graded cell says `my_x.held = True`) is
        replaced by the reference; two mistakes may cancel each other, so the student's own are tried as well.
        """
        right = {part.name: part.reference for part in self.earlier}
        own = {name: names.get(name) for name in right}
        held = {name: own[name] if getattr(own[name], "held", False) else one for name, one in right.items()}
        for helpers in (held, own, right, held):
            names.update(helpers)
            if self(names.get(self.name)):
                break


class _Call:
    """One call of a function on a case, and what it did. edit: the arguments before and after, if it changed them."""

    def __init__(self, function: Callable, case: Case, note: Callable) -> None:
        args, options = copy.deepcopy((case.args, case.options))
        self.case, self.note, sink = case, note, _Sink()
        self.value = self.error = self.edit = None
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                self.value = note(function(*args, **options), args)
        except Exception as error:  # whatever the student's code does is an answer
            self.error = error
        self.printed = sink.text
        if not same((args, options), (case.args, case.options), tolerance=0):
            self.edit = show([*case.args, *case.options.values()]), show([*args, *options.values()])
        self.right = not self.error and not self.edit and same(self.value, case.expected)

    def is_given_by(self, function: Callable) -> bool:
        """Whether a function gives the same value, or the same kind of error."""
        other = _Call(function, self.case, self.note)
        return type(other.error).__name__ == type(self.error).__name__ and same(self.value, other.value)


class _Sink(io.TextIOBase):
    """Takes what a function prints and keeps the beginning."""

    text = ""

    def write(self, piece: str) -> int:
        self.text += piece[: PRINTED - len(self.text)]
        return len(piece)


def _keeps_nobody(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and not value.any()
