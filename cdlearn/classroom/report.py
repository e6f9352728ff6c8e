"""What grading leaves behind: a CSV with one row per part, and one feedback HTML per student."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cdlearn.classroom.submissions import Submission, marks


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


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows; text that a spreadsheet would take for a formula is quoted."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            cells = asdict(row) | {"points": "" if row.points is None else f"{row.points:g}", "max": f"{row.max:g}"}
            writer.writerow({name: _harmless(value) for name, value in cells.items()})


def _harmless(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def hint_of(ename: str, evalue: str) -> str:
    """One line from an error: the property that broke and the mistake's name or where to look, or the error itself."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", evalue)
    said = dict(re.findall(r"^  (Broke|This looks like|Look at): +(.*)$", text, re.M))
    if "Broke" in said:
        more = [label for label in ("This looks like", "Look at") if label in said][:1]
        looks = "".join(f"; {label.lower()}: {said[label]}" for label in more)
        if "not written yet" in text:
            return "not written yet"
        return f"{said['Broke']}{looks}"[:300]
    if ename in ("CellTimeoutError", "MemoryError"):
        return (
            f"a cell {'ran longer' if ename == 'CellTimeoutError' else 'took more memory'} than allowed and was stopped"
        )
    return " ".join(f"{ename}: {text}".split())[:300]


def status_of(ename: str, evalue: str, points: float | None, most: float) -> str:
    """One or two words for a graded cell."""
    if points is None:
        return "by hand"
    if not ename:
        return "ok" if points >= most else "partly"
    if ename == "NotImplementedError" or "not written yet" in evalue:
        return "not written"
    return {"CellTimeoutError": "timeout", "MemoryError": "memory"}.get(ename, "wrong")


def own_feedback(submission: Submission, rows: Sequence[Row], reason: str) -> str:
    """The page for a submission that nbgrader could not finish: the parts, the reason, the cells. All of it escaped."""
    esc = html.escape
    total = sum(row.points or 0 for row in rows)
    most = sum(row.max for row in rows)
    table = "".join(
        f"<tr><td>{esc(row.part)}</td><td>{row.points or 0:g} / {row.max:g}</td><td>{esc(row.status)}</td>"
        f"<td>{esc(row.hint)}</td></tr>"
        for row in rows
    )
    cells = []
    for cell in (submission.notebook or {"cells": []})["cells"]:
        name = f" <small>{esc(str(marks(cell)['grade_id']))}</small>" if marks(cell).get("grade_id") else ""
        cells.append(f"<li>{esc(cell['cell_type'])}{name}<pre>{esc(cell['source'][:20_000])}</pre></li>")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{esc(submission.assignment or "feedback")}</title>
<style>body {{ font-family: sans-serif; max-width: 60em; margin: 2em auto }} td, th {{ padding: .2em .8em;
text-align: left; vertical-align: top }} pre {{ background: #f5f5f5; padding: .5em; overflow: auto }}</style></head>
<body><h1>{esc(submission.assignment or "No assignment")}: {total:g} of {most:g} points</h1>
<p><b>The notebook could not be graded to its end.</b> {esc(reason)}</p>
<table><tr><th>part</th><th>points</th><th>status</th><th>hint</th></tr>{table}</table>
<h2>What was handed in</h2><ol>{"".join(cells)}</ol></body></html>
"""


def summary(rows: Sequence[Row]) -> str:
    """A table for the terminal: one line per submission, points per part, the total."""
    lines = []
    students: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        students.setdefault((row.assignment, row.student), []).append(row)
    width = max((len(student) for _, student in students), default=0)
    for (assignment, student), parts in students.items():
        total, most = sum(row.points or 0 for row in parts), sum(row.max for row in parts)
        points = " ".join("?" if row.points is None else f"{row.points:g}" for row in parts)
        worst = next((row for row in parts if row.status != "ok"), None)
        note = f"{worst.status}: {worst.hint}" if worst else ""
        lines.append(f"{assignment:22} {student:{width}} {total:5g} / {most:g}  [{points}]  {note}"[:180].rstrip())
    return "\n".join(lines)
