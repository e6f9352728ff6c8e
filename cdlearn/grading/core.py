"""How a check runs a student's function, compares, and speaks: the property that broke, an example, expected and got.

A check is a list of cases, smallest first, and a list of known mistakes. Expected values are written out in the cases:
nothing here computes an answer. A mistake is named when it reproduces the student's output to the digit.
"""

from __future__ import annotations

import contextlib
import copy
import html
import io
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cdlearn.grading.forbidden import forbidden_uses
from cdlearn.grading.speech import call_text, show

TOLERANCE = 1e-4
PRINTED = 200  # characters of a function's own printing that a message repeats


@dataclass(frozen=True)
class Case:
    """One property on one small instance. `says` is the sentence that breaks: "the best token is always kept"."""

    says: str
    args: tuple
    expected: Any
    options: dict = field(default_factory=dict)
    example: str = ""  # in words, where the arguments alone do not tell


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: its name, the wrong function (called with the case's arguments), and what to look at."""

    name: str
    gives: Callable
    look: str


@dataclass(frozen=True)
class Result:
    """What a check found: truthy when everything holds. Shows as one green line, or as the message."""

    part: str
    cases: int = 0
    broke: str = ""
    example: str = ""
    expected: str = ""
    got: str = ""
    mistake: str = ""
    look: str = ""
    printed: str = ""

    def __bool__(self) -> bool:
        return not self.broke

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The parts of the message that are there, as (label, text)."""
        rows = [("Broke", self.broke), ("Example", self.example), ("Expected", self.expected), ("Got", self.got)]
        rows += [("This looks like", self.mistake), ("Look at", self.look), ("It printed", self.printed)]
        return [(label, text) for label, text in rows if text]

    def __str__(self) -> str:
        if self:
            return f"✓ {self.part}: {self.cases} cases hold."
        return "\n".join([f"✗ {self.part}: not yet.", *(f"  {label + ':':17}{text}" for label, text in self.lines)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if self:
            return f'<div style="border-left:4px solid #009e73;padding:2px 8px">{html.escape(str(self))}</div>'
        cell = '<td style="text-align:left;vertical-align:top;white-space:pre-wrap">'
        rows = "".join(f"<tr>{cell}<b>{a}</b></td>{cell}{html.escape(b)}</td></tr>" for a, b in self.lines)
        head = html.escape(f"✗ {self.part}: not yet.")
        return f'<div style="border-left:4px solid #d55e00;padding:2px 8px">{head}<table>{rows}</table></div>'

    def require(self) -> None:
        """Raise AssertionError with the same message unless everything holds: the line of a graded cell."""
        if not self:
            raise AssertionError(f"\n{self}")


def run_check(
    part: str,
    function: Callable,
    cases: Sequence[Case],
    mistakes: Sequence[Mistake] = (),
    *,
    forbidden: Sequence[str] = ("cdlearn",),
    tolerance: float = TOLERANCE,
) -> Result:
    """Call `function` on every case and return the first thing that breaks, or a truthy Result.

    `forbidden` names packages and functions that the student's own code may not use. The student's arguments are
    copies; a function that changes them is told so. Never raises for anything the function does, and prints nothing.
    """
    if not callable(function):
        return Result(part, broke="there is no function yet", got=show(function), look="the cell that defines it")
    uses = forbidden_uses(function, forbidden)
    if uses:
        look = "write this part yourself, with torch and plain Python" if "cdlearn" in forbidden else ""
        return Result(part, broke=f"{part} may not use {', '.join(forbidden)}", got=", ".join(uses), look=look)
    got = [_call(function, case) for case in cases]
    wrong = [k for k, case in enumerate(cases) if not got[k].right(case, tolerance)]
    if not wrong:
        return Result(part, cases=len(cases))
    return _explain(part, wrong[0], cases, got, mistakes, tolerance)


@dataclass
class _Call:
    """What one call of the student's function did."""

    value: Any = None
    error: Exception | None = None
    arguments: Any = None  # as they were after the call
    unchanged: bool = True
    printed: str = ""

    def right(self, case: Case, tolerance: float) -> bool:
        return self.error is None and self.unchanged and same(self.value, case.expected, tolerance=tolerance)


def _call(function: Callable, case: Case) -> _Call:
    args, options = copy.deepcopy((case.args, case.options))
    call, sink = _Call(), Sink()
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            call.value = function(*args, **options)
    except Exception as error:  # whatever the student's code does is an answer
        call.error = error
    call.printed, call.arguments = sink.text, [*args, *options.values()]
    call.unchanged = same((args, options), (case.args, case.options), tolerance=0)
    return call


def _explain(part: str, at: int, cases: Sequence, calls: Sequence, mistakes: Sequence, tolerance: float) -> Result:
    """The message for the first case that broke."""
    case, call = cases[at], calls[at]
    example = case.example or call_text(part, case.args, case.options)
    told = {"broke": case.says, "example": example, "expected": show(case.expected), "printed": call.printed}
    if call.error is not None:
        return Result(part, **told | _raised(call.error))
    told["got"] = show(call.value)
    if not call.unchanged:
        before = [*case.args, *case.options.values()]
        told |= {"broke": "the arguments are left as they were", "expected": show(before), "got": show(call.arguments)}
        told["mistake"] = "an in-place edit of the arguments"
        told["look"] = "operations that end in _ or assign to a slice: make a new tensor instead"
        return Result(part, **told)
    mistake = name_mistake(at, cases, calls, mistakes, tolerance)
    told |= {"mistake": mistake.name, "look": mistake.look} if mistake else {"look": kind(call.value, case.expected)}
    return Result(part, **told)


def name_mistake(
    at: int, cases: Sequence[Case], calls: Sequence[_Call], mistakes: Sequence[Mistake], tolerance: float = TOLERANCE
) -> Mistake | None:
    """Return the known mistake that gives the student's output where it is wrong and on most of the other cases.

    A mistake that would have failed where the student was right is none of the student's.
    """
    best, fits = None, 0
    for mistake in mistakes:
        hits = [same(_outcome(mistake, case), call.value, tolerance=tolerance) for case, call in zip(cases, calls)]
        if hits[at] and all(hits[:at]) and sum(hits) > fits:
            best, fits = mistake, sum(hits)
    return best


def same(a: Any, b: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Whether two values agree: tensors by shape, kind and value (-inf equals -inf), containers item by item."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
            return False
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance=tolerance) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance=tolerance) for key in a)
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or abs(a - b) <= tolerance
    if type(a) is not type(b):
        return False
    if type(a).__eq__ is object.__eq__:  # a copied model: it equals nothing but itself, and is no answer
        return True
    try:
        return bool(a == b)
    except Exception:
        return False


def kind(got: Any, expected: Any) -> str:
    """Return a sentence when even the kind of the answer is wrong, else ""."""
    if got is None and expected is not None:
        return "the last line: a function without return gives None"
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"what you return: a tensor is asked for, this is {type(got).__name__}"
        if got.shape != expected.shape:
            return f"the shape: {list(expected.shape)} is asked for, this is {list(got.shape)}"
        if (got.dtype == torch.bool) != (expected.dtype == torch.bool):
            return f"the kind of numbers: {expected.dtype} is asked for, this is {got.dtype}"
    elif type(got) is not type(expected):
        return f"what you return: {type(expected).__name__} is asked for, this is {type(got).__name__}"
    return ""


def _outcome(mistake: Mistake, case: Case) -> Any:
    """What the mistake gives on a case; an instance on which it cannot run matches nothing."""
    args, options = copy.deepcopy((case.args, case.options))
    try:
        return mistake.gives(*args, **options)
    except Exception:
        return mistake


def _raised(error: Exception) -> dict[str, str]:
    """Say where the student's code raised what."""
    if isinstance(error, NotImplementedError):
        return {"got": "nothing: it is not written yet", "look": "the line `raise NotImplementedError()`: replace it"}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = next((f for f in reversed(frames) if "ipykernel" in f.filename or "<" in f.filename), None)
    where = where or (frames[0] if frames else None)
    look = f"line {where.lineno}: {where.line}" if where and where.line else ""
    text = " ".join(str(error).split())[:300]
    return {"got": f"{type(error).__name__}: {text}", "look": look}


class Sink(io.TextIOBase):
    """Takes what a function prints and keeps the beginning."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, piece: str) -> int:
        if len(self.text) < PRINTED:
            self.text = (self.text + piece)[:PRINTED]
        return len(piece)
