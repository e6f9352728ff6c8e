"""What grading leaves behind: a row per part with its points, status and hint; the table of them all; the CSV."""

from __future__ import annotations

import csv
import os
import re
import secrets
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cdlearn.classroom.checks.result import MIME
from cdlearn.classroom.grader.submissions import Notebook, Part, Submission, parts_of

Event = dict[str, Any]


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


COLUMNS = [field.name for field in fields(Row)]


def published(outputs: Iterable[dict]) -> tuple[dict[str, str], list[str]]:
    """What a cell's outputs hold as data: a failed check's fields, {} for none; functions that were replaced."""
    fields, replaced = {}, {}
    for out in outputs:
        data = out.get("data", {}).get(MIME)  # a student's code can publish anything
        if isinstance(data, dict) and "broke" in data:
            fields = {name: str(value) for name, value in data.items()}
        elif isinstance(data, dict) and isinstance(data.get("replaced"), list):
            replaced |= dict.fromkeys(map(str, data["replaced"]))
    return fields, list(replaced)


def hint_of(ename: str, evalue: str, failed: dict[str, str] | None = None) -> str:
    """One line: of a failed check's fields what broke and the mistake's name or where to look, else the error."""
    text = plain(evalue)
    if failed:
        if "not written yet" in failed.get("got", ""):
            return "not written yet"
        looks = {"this looks like": failed.get("mistake"), "look at": failed.get("look")}
        label = next((label for label in looks if looks[label]), None)
        return (failed["broke"] + (f"; {label}: {looks[label]}" if label else ""))[:300]
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


def rows_of(one: Submission, release: Notebook | None, events: list[Event], reason: str) -> list[Row]:
    """One row per part: what the gradebook and the record made while it ran agree on, else the smaller.

    events: the lines of the record, the last with the gradebook's points if the end was reached; else `reason` says
    why not. release: None if the file cannot be recognised.
    """
    parts, rows = parts_of(release) if release else {"": Part("", 0.0, [], False)}, []
    runs, ended = _runs(events, parts), "stopped" if "stopped" in reason else "died"
    for name, part in parts.items():
        if one.problem:
            result = 0.0, 0.0, "unreadable", one.problem
        elif part.by_hand:
            result = None, 0.0, "by hand", ""
        elif name in runs:
            result = _graded(name, part, runs[name], events[-1].get("grades"), one.restored)
        else:
            result, ended = (0.0, 0.0, ended, reason), "not run"
        points, *others = result
        rows.append(Row(one.student, one.assignment or "unknown", name, points, part.points, *others, one.file))
    return rows


def _graded(name: str, part: Part, run: list[Event], grades: dict | None, restored: list[str]) -> tuple:
    """Points, seconds, status and hint of a graded cell that ran. run: the ends of the part's cells, it comes last."""
    last = error = run[-1]
    points = last["points"]
    if grades is not None and points is not None:
        points = min(points, grades.get(name) or 0.0)
    if last["ename"] == "NameError":  # why the name is missing
        error = next(event for event in run if event["ename"])
    hints = [hint_of(error["ename"], error["evalue"], error.get("failed"))] if error["ename"] else []
    status = status_of(error["ename"], error["evalue"], points, part.points)
    if set(part.solutions) & set(restored) and status == "not written":
        hints = ["the solution cell was missing"]
    if name in restored:
        hints.append("the graded cell was missing and was put back")
    if last.get("replaced") and status != "not written":
        hints.append(f"graded with a right {', '.join(last['replaced'])} in place of yours")
    return points, round(sum(event["seconds"] for event in run), 1), status, "; ".join(hints)


def _runs(events: list[Event], parts: dict[str, Part]) -> dict[str, list[Event]]:
    """For every part that was graded, the ends of its own cells: from its first solution to its graded cell."""
    started = {event["cell"]: event["at"] for event in events if event["event"] == "start"}
    ends = [e | {"seconds": e["at"] - started.get(e["cell"], e["at"])} for e in events if e["event"] == "end"]
    at = {end["grade_id"]: k for k, end in enumerate(ends) if end["grade_id"]}
    runs = {}
    for name in parts.keys() & at.keys():
        own = [at[cell] for cell in (*parts[name].solutions, name) if cell in at]
        runs[name] = ends[min(k for k in own if k <= at[name]) : at[name] + 1]
    return runs


def reason_of(events: list[Event]) -> str:
    """Why a grading did not come to its end, in words for the student; empty if it did."""
    last = events[-1] if events else {}
    if "grades" in last:
        return ""
    started = [event["cell"] + 1 for event in events if event["event"] == "start" and event["kind"] == "code"]
    where = f" while cell {started[-1]} ran" if started else " before the first cell"
    error = last.get("error", "the grading process itself was killed")
    if "ignored the interrupt" in error:
        return f"the kernel did not come back from a timeout and was stopped{where}"
    if "DeadKernelError" in error or "Kernel died" in error:
        return f"the kernel died{where}: a crash, an exit, or more memory than allowed"
    return f"grading ended{where}: {' '.join(error.split())[-200:]}"


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
    one, two, three, four, _ = (max(map(len, column)) for column in zip(*lines))
    return "\n".join(f"{a:{one}}  {b:{two}}  {c:>{three}}  {d:{four}}  {e}".rstrip() for a, b, c, d, e in lines)


def _short(text: str, width: int = 90) -> str:
    """The text's beginning, cut between two words."""
    return textwrap.shorten(text, width, placeholder=" …")


class Gradebook:
    """A folder with `grades.csv`, `seed.txt` and `feedback/`. What is not graded again stays as it was.

    seed: what the hidden tests draw from; None: what the folder's `seed.txt` says, else a fresh secret.
    """

    def __init__(self, out: Path, seed: str | None = None) -> None:
        self.path, self.pages, kept = out / "grades.csv", out / "feedback", out / "seed.txt"
        self.columns, self.lines = _read(self.path)
        self.pages.mkdir(parents=True, exist_ok=True)
        if seed is None and kept.exists():
            seed = kept.read_text(encoding="utf-8").strip()
        self.seed = secrets.token_hex(16) if seed is None else str(seed)
        kept.write_text(self.seed + "\n", encoding="utf-8")

    def add(self, rows: Sequence[Row], page: str, name: str) -> None:
        """Write the rows of one submission, in the place of its old ones, and its page."""
        (self.pages / name).write_text(page, encoding="utf-8", errors="replace")
        new = [_line(row) for row in rows]
        whose = _whose(new[0])
        old = {line["part"]: line for line in self.lines if _whose(line) == whose}
        self.lines = [line for line in self.lines if _whose(line) != whose]
        self.lines += [_merged(old.get(line["part"], {}), line) for line in new]
        self.lines.sort(key=_whose)
        fresh = self.path.with_suffix(".new")
        with open(fresh, "w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.lines)
        os.replace(fresh, self.path)  # whole at any time


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and lines of an earlier grading; columns of the instructor's own are kept."""
    if not path.exists():
        return COLUMNS, []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            lines, columns = list(reader), list(reader.fieldnames or ())
    except UnicodeDecodeError:
        lines, columns = [], []
    if not set(COLUMNS) <= {*columns, "file"}:
        raise ValueError(
            f"{path} is not a table of this grader any more. Save it as UTF-8 text with commas, or give another --out."
        )
    return [*columns, *(name for name in COLUMNS if name not in columns)], lines


def _line(row: Row) -> dict[str, str]:
    """The row as text; what a spreadsheet would take for a formula is quoted."""
    cells = asdict(row) | {"points": "" if row.points is None else f"{row.points:g}", "max": f"{row.max:g}"}
    return {name: re.sub(r"\A(?=[=+@\t\r-])", "'", str(value)) for name, value in cells.items()}


def _whose(line: dict[str, str]) -> tuple[str, str, str]:
    known = line["assignment"] != "unknown"
    return line["student"], line["assignment"], "" if known else line.get("file", "")


def _merged(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """The new line with the instructor's own columns, and points that a person gave."""
    if new["status"] == "by hand" and old.get("points"):
        new = new | {"points": old["points"], "hint": "points of an earlier grading: still right?"}
    return old | new
