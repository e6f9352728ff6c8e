"""What grading says of a part: its row, its status, its hint, and the table of them all for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

SAYS = "graded with a right {} in place of yours"  # what a graded cell prints, and a hint repeats


@dataclass(frozen=True)
class Row:
    """One part of one submission. `points` is None where a person has to grade."""

    student: str
    assignment: str
    part: str
    points: float | None
    max: float
    seconds: float
    status: str
    hint: str
    file: str = ""


def hint_of(ename: str, evalue: str) -> str:
    """One line from an error: the mistake's name, or the property that broke, or the error itself."""
    text = plain(evalue)
    said = dict(re.findall(r"^  (Broke|This looks like|Look at): +(.*)$", text, re.M))
    if "Broke" in said:
        label = next((label for label in ("This looks like", "Look at") if label in said), None)
        looks = f"; {label.lower()}: {said[label]}" if label else ""
        if "not written yet" in text:
            return "not written yet"
        return f"{said['Broke']}{looks}"[:300]
    if ename == "CellTimeoutError":
        return text or "it ran longer than allowed and was stopped"
    if ename == "MemoryError":
        return "it took more memory than allowed and was stopped"
    return " ".join(f"{ename}: {text}".split())[:300]


def plain(text: str) -> str:
    """An error's text without colours, and without the file name that the kernel gave to a cell."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"\(\d+\.py, line (\d+)\)", r"(line \1)", text)


def status_of(ename: str, evalue: str, points: float | None, most: float) -> str:
    """One or two words for a graded cell."""
    if points is None:
        return "by hand"
    if not ename:
        return "ok" if points >= most else "partly"
    if ename == "NotImplementedError" or "not written yet" in evalue:
        return "not written"
    return {"CellTimeoutError": "timeout", "MemoryError": "memory"}.get(ename, "wrong")


def score(rows: Sequence[Row]) -> str:
    """Points of all: `17 / 20`."""
    return f"{sum(row.points or 0 for row in rows):g} / {sum(row.max for row in rows):g}"


def progress(rows: Sequence[Row]) -> str:
    """One finished submission, in one line."""
    bad = next((row for row in rows if row.status not in ("ok", "wrong", "not written", "partly", "by hand")), None)
    return f"{rows[0].student}, {rows[0].assignment}: {score(rows)}" + (f"  ({_short(bad.hint)})" if bad else "")


def summary(rows: Sequence[Row]) -> str:
    """A table for the terminal: one line per submission, the total, points per part, the first that is not right."""
    submissions: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        submissions.setdefault((row.assignment, row.student, row.file), []).append(row)
    lines = []
    for (assignment, student, _), parts in sorted(submissions.items()):
        points = " ".join("?" if row.points is None else f"{row.points:g}" for row in parts)
        worst = next((row for row in parts if row.status != "ok"), None)
        note = worst.status if worst else ""
        if worst and worst.hint and not worst.hint.startswith(note):
            note += f": {worst.hint}"
        lines.append((assignment, student, score(parts), f"[{points}]", _short(note)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    padded = [
        (a.ljust(widths[0]), b.ljust(widths[1]), c.rjust(widths[2]), d.ljust(widths[3]), e) for a, b, c, d, e in lines
    ]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def _short(text: str, width: int = 90) -> str:
    """The text's beginning, cut between two words."""
    return textwrap.shorten(text, width, placeholder=" …")
