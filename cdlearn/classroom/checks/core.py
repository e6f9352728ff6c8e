"""How a check runs a student's function, compares, and speaks: the property that broke, an example, expected and got.

A check is a list of cases, smallest first, and a list of known mistakes. Expected values are written out in the cases:
nothing here computes an answer. A mistake is named when it reproduces the student's output to the digit.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import html
import inspect
import io
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from cdlearn.classroom.checks.compare import TOLERANCE, kind, same
from cdlearn.classroom.checks.forbidden import forbidden_uses, names_used
from cdlearn.classroom.checks.speech import call_text, show

MIME = "application/vnd.cdlearn.result+json"  # how a result reaches the grader
PRINTED = 200  # characters of a function's own printing that a message repeats
AGAIN = 20  # calls with the same arguments that must give the same answer


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
class Part:
    """One part of an assignment: called with the student's function it checks it, on the visible cases or on others.

    number: which part of its assignment. reference: THE solution, a plain function of the file that every other place
    reads (the master's solution cell, the right functions that stand in for wrong ones, the mistakes). mistakes: rows
    (name, old text, new text, where to look): what the reference becomes when its source says `new` instead of `old`
    (two tuples: several replacements). others: mistakes that no edit of the reference gives. earlier: parts whose
    functions this one may call. raised, sure: see `run_check`. note: what is compared instead of what the function
    returns: note(value, arguments).
    """

    number: int
    reference: Callable
    cases: Sequence[Case]
    mistakes: Sequence[tuple] = ()
    others: Sequence[Mistake] = ()
    earlier: Sequence[Part] = ()
    raised: Mapping[str, str] = field(default_factory=dict)
    sure: bool = False
    note: Callable[[Any, tuple], Any] | None = None

    @property
    def name(self) -> str:
        """The name that the student's function has."""
        return self.reference.__name__

    def source_of(self, old: str | tuple[str, ...] = (), new: str | tuple[str, ...] = ()) -> str:
        """The reference's source with texts replaced, each of which it must hold."""
        source = inspect.getsource(self.reference)
        pairs = [(old, new)] if isinstance(old, str) else zip(old, new, strict=True)
        for before, after in pairs:
            assert before in source, f"{self.name} has no {before!r}"
            source = source.replace(before, after)
        return source

    @cached_property
    def known(self) -> list[Mistake]:
        """Every mistake as a function, in the order in which they are tried."""
        made = []
        for name, old, new, look in self.mistakes:
            names = dict(self.reference.__globals__)
            exec(self.source_of(old, new), names)
            made.append(Mistake(name, names[self.name], look))
        return [replace(mistake, gives=self._noted(mistake.gives)) for mistake in (*made, *self.others)]

    def _noted(self, function: Any) -> Any:
        if self.note is None or not callable(function):
            return function

        @functools.wraps(function)
        def call(*args, **options):
            return self.note(function(*args, **options), args)

        return call

    def __call__(self, function: Callable, *, cases: Sequence[Case] | None = None) -> Result:
        """Check the student's function: the first property that breaks, or a truthy Result."""
        cases = self.cases if cases is None else cases
        earlier = {part.name: (part.number, part) for part in self.earlier}
        more = {"earlier": earlier, "raised": self.raised, "sure": self.sure}
        return run_check(self.name, self._noted(function), cases, self.known, **more)

    def stand_in(self, names: dict[str, Any]) -> None:
        """Before this part is graded: a mistake in an earlier part costs that part's points only.

        names: the notebook's globals(). What is not known to be right there (a graded cell says `my_x.held = True`) is
        replaced by the reference; two mistakes may cancel each other, so the student's own are tried as well.
        """
        right = {part.name: part.own_copy() for part in self.earlier}
        own = {name: names.get(name) for name in right}
        held = {name: own[name] if getattr(own[name], "held", False) else one for name, one in right.items()}
        for helpers in (held, own, right, held):
            names.update(helpers)
            if self(names.get(self.name)):
                break
        publish(replaced=[name for name in right if names[name] is right[name]])

    def own_copy(self) -> Callable:
        """The reference as a function of a notebook, with the other references of its file beside it."""
        names = self.reference.__globals__ | {"__name__": "__main__"}
        for name, one in list(names.items()):
            if inspect.isfunction(one) and one.__module__ == self.reference.__module__:
                names[name] = type(one)(one.__code__, names, name, one.__defaults__, one.__closure__)
                names[name].__kwdefaults__ = one.__kwdefaults__
        return names[self.name]


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
        """Raise NotYet with the same message unless everything holds: the line of a graded cell."""
        if not self:
            publish(**asdict(self))
            raise NotYet(f"\n{self}")


class NotYet(AssertionError):
    """What a check says of a function that is not right yet."""


def publish(**data: Any) -> None:
    """Hand data to the grader beside what a person reads: a display message, only where it grades."""
    if os.environ.get("CDLEARN_GRADING_JOB"):
        from IPython.display import publish_display_data

        publish_display_data({MIME: data, "text/plain": ""})


def run_check(
    part: str,
    function: Callable,
    cases: Sequence[Case],
    mistakes: Sequence[Mistake] = (),
    *,
    forbidden: Sequence[str] = ("cdlearn",),
    tolerance: float = TOLERANCE,
    earlier: Mapping[str, tuple[int, Callable]] | None = None,
    raised: Mapping[str, str] | None = None,
    sure: bool = False,
) -> Result:
    """Call `function` on every case and return the first thing that breaks, or a truthy Result.

    `forbidden` names packages and functions that the student's own code may not use. The student's arguments are
    copies; a function that changes them is told so. Never raises for anything the function does, and prints nothing.

    earlier: functions of earlier parts that this one may call, `name: (part, its check)`: if one is wrong, say that.
    raised: pieces of error messages, and where to look then. sure: answers are so few (0, 1, 2) that a mistake is named
    only if it gives all of them.
    """
    if not callable(function):
        return Result(part, broke="there is no function yet", got=show(function), look="the cell that defines it")
    uses = forbidden_uses(function, forbidden)
    if uses:
        look = "write this part yourself, with torch and plain Python" if "cdlearn" in forbidden else ""
        return Result(part, broke=f"{part} may not use {', '.join(forbidden)}", got=", ".join(uses), look=look)
    calls = [_call(function, case) for case in cases]
    wrong = [k for k, case in enumerate(cases) if not calls[k].right(case, tolerance)]
    if not wrong:
        return Result(part, cases=len(cases))
    culprit = _earlier_part(part, function, earlier or {})
    if culprit is not None:  # a result with a message is falsy
        return culprit
    found = _problem(function, cases, calls, wrong, raised or {})
    if found is None:
        mistake = name_mistake(wrong, cases, calls, mistakes, tolerance, sure=sure)
        found = {"look": _hint(calls[wrong[0]].value, cases[wrong[0]].expected)}
        found = {"mistake": mistake.name, "look": mistake.look} if mistake else found
    at = found.pop("at", wrong[0])
    return Result(part, **_told(part, cases[at], calls[at]) | found)


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


def _earlier_part(part: str, function: Callable, earlier: Mapping[str, tuple[int, Callable]]) -> Result | None:
    """The message about the first function of an earlier part that this one calls and that is wrong itself."""
    names = names_used(function)
    known = getattr(inspect.unwrap(function), "__globals__", {})
    for name, (number, check) in earlier.items():
        if name not in names:
            continue
        if name not in known:
            broke = f"{part} calls {name}, and there is no {name} yet"
            return Result(part, broke=broke, look=f"part {number}: run the cell that defines it first")
        found = check(known[name])
        if not found:
            return replace(found, part=part, broke=f"{name} of part {number}, which {part} calls: {found.broke}")
    return None


def _told(part: str, case: Case, call: _Call) -> dict[str, Any]:
    """What a message says about a case in any event."""
    told = {"broke": case.says, "example": case.example or call_text(part, case.args, case.options)}
    return told | {"expected": show(case.expected), "got": show(call.value), "printed": call.printed}


def _problem(
    function: Callable, cases: Sequence[Case], calls: Sequence[_Call], wrong: Sequence[int], raised: Mapping[str, str]
) -> dict[str, Any] | None:
    """What is wrong with the first call that broke, if it is more than a wrong value: an error, an edit, chance."""
    case, call = cases[wrong[0]], calls[wrong[0]]
    if call.error is not None:
        return _raised(call.error, raised)
    if not call.unchanged:
        edited = [(k, *_edit(cases[k], calls[k])) for k in wrong if not calls[k].unchanged and not calls[k].error]
        at, before, after = next((edit for edit in edited if edit[1] != edit[2]), edited[0])  # the first one to be seen
        told = {"at": at, "expected": f"the arguments as before the call: {before}", "got": f"after the call: {after}"}
        told |= {"broke": "the arguments are left as they were", "mistake": "an in-place edit of the arguments"}
        return told | {"look": "operations that end in _ or assign to a slice: make a new tensor instead"}
    if any(not same(_call(function, case).value, call.value) for _ in range(AGAIN)):
        look = "random numbers that the function draws itself, or something that it keeps between two calls"
        return {"mistake": "the same call gives another answer every time", "look": look}
    return None


def _edit(case: Case, call: _Call) -> tuple[str, str]:
    """The arguments before a call, and after it."""
    return show([*case.args, *case.options.values()]), show(call.arguments)


def name_mistake(
    wrong: Sequence[int],
    cases: Sequence[Case],
    calls: Sequence[_Call],
    mistakes: Sequence[Mistake],
    tolerance: float = TOLERANCE,
    *,
    sure: bool = False,
) -> Mistake | None:
    """Return the known mistake that gives the student's output where it is wrong and on most of the other cases.

    A mistake that would have failed where the student was right is none of the student's. Where an answer says little
    (`sure`, or a mask that keeps nobody), it must give all of the outputs, of several cases. One number of one
    case says nothing.
    """
    value, best, fits = calls[wrong[0]].value, None, 0
    if len(cases) == 1 and _one_number(value):
        return None
    sure = sure or _keeps_nobody(value)
    for mistake in mistakes:
        hits = [same(_outcome(mistake, case), call.value, tolerance=tolerance) for case, call in zip(cases, calls)]
        if sure and (not all(hits) or len(cases) < 2):
            continue
        if all(hits[: wrong[0] + 1]) and sum(hits) > fits:
            best, fits = mistake, sum(hits)
    return best


def _one_number(value: Any) -> bool:
    """A single whole number: a token or a place that many mistakes would give."""
    whole = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.numel() == 1
    return whole or isinstance(value, int)


def _keeps_nobody(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool and not value.any()


def _hint(value: Any, expected: Any) -> str:
    """Where to look when no mistake has a name."""
    if _keeps_nobody(value) and not _keeps_nobody(expected):
        return kind(value, expected) or "the line: nobody passes it, not even the best token"
    return kind(value, expected)


def _outcome(mistake: Mistake, case: Case) -> Any:
    """What the mistake gives on a case; an instance on which it cannot run matches nothing."""
    args, options = copy.deepcopy((case.args, case.options))
    try:
        return mistake.gives(*args, **options)
    except Exception:
        return mistake


def _raised(error: Exception, known: Mapping[str, str]) -> dict[str, str]:
    """Say where the student's code raised what. known: pieces of messages, and where to look then."""
    if isinstance(error, NotImplementedError):
        return {"got": "nothing: it is not written yet", "look": "the line `raise NotImplementedError()`: replace it"}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = next((f for f in reversed(frames) if "ipykernel" in f.filename or "<" in f.filename), None)
    where = where or (frames[0] if frames else None)
    look = f"line {where.lineno}: {where.line}" if where and where.line else ""
    text = " ".join(str(error).split())[:300]
    look = next((hint for piece, hint in known.items() if piece in text), look)
    return {"got": f"{type(error).__name__}: {text}", "look": look}


class Sink(io.TextIOBase):
    """Takes what a function prints and keeps the beginning."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, piece: str) -> int:
        if len(self.text) < PRINTED:
            self.text = (self.text + piece)[:PRINTED]
        return len(piece)
