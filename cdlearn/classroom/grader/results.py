"""What grading leaves behind: a row per part with its points, status and hint; the table of them all; the CSV."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import secrets
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cdlearn.classroom.checks.result import LABELS
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


def hint_of(found: Event) -> str:
    """One line: of a failed check's fields what broke and the mistake's name or where to look, else what was said."""
    failed = (found.get("failed") or {}) if found["status"] != "not written" else {}
    looks = {"this looks like": failed.get("mistake"), "look at": failed.get("look")}
    label = next((label for label in looks if looks[label]), None)
    hint = failed.get("broke", found.get("hint", "")) + (f"; {label}: {looks[label]}" if label else "")
    return " ".join(visible(hint).split())[:300]


def told(found: Event) -> list[tuple[str, str]]:
    """What a part's message says, as (label, text): a failed check's fields, or the hint."""
    failed = found.get("failed") or {}
    pairs = [(label, visible(failed[name])) for name, label in LABELS.items() if failed.get(name)]
    return pairs or ([("It said", visible(found["hint"]))] if found["hint"] else [])


def visible(text: str) -> str:
    """A text without colours, and without characters that nobody sees: they could turn its direction around."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))


def rows_of(one: Submission, master: Notebook | None, events: list[Event], reason: str) -> list[Row]:
    """One row per part. events: what the worker sent; reason: why it did not come to its end, empty if it did.

    master: None if the file cannot be recognised.
    """
    parts = parts_of(master) if master else {"": Part("", 0.0, False)}
    graded, rows = {event["part"]: event for event in events if "part" in event}, []
    for name, part in parts.items():
        if one.problem:
            result = 0.0, 0.0, "unreadable", one.problem
        elif part.by_hand:
            result = None, 0.0, "by hand", ""
        elif name in graded:
            result = _graded(part, graded[name])
        else:
            result = 0.0, 0.0, "not run", reason
        points, *others = result
        rows.append(Row(one.student, one.assignment or "unknown", name, points, part.points, *others, one.file))
    return rows


def _graded(part: Part, found: Event) -> tuple:
    """Points, seconds, status and hint of a part that was graded."""
    status, hint = found["status"], hint_of(found)
    if found["replaced"] and status != "not written":
        instead = f"graded with a right {', '.join(found['replaced'])} in place of yours"
        hint = f"{hint}; {instead}" if hint else instead
    return part.points * found["points_earned"], found["seconds"], status, hint


def score(rows: Sequence[Row]) -> str:
    """Points of all: `17 / 20`."""
    return f"{sum(row.points or 0 for row in rows):g} / {sum(row.max for row in rows):g}"


def progress(rows: Sequence[Row]) -> str:
    """One finished submission, in one line."""
    bad = next((row for row in rows if row.status not in ("ok", "wrong", "not written", "by hand")), None)
    return f"{rows[0].student}, {rows[0].assignment}: {score(rows)}" + (f"  ({_short(bad.hint)})" if bad else "")


def summary(rows: Sequence[Row]) -> str:
    """A table for the terminal: per assignment a line for each submission, with what is first not right in it."""
    submissions: dict[str, dict[tuple[str, str], list[Row]]] = {}
    for row in sorted(rows, key=lambda row: (row.assignment, row.student, row.file)):
        submissions.setdefault(row.assignment, {}).setdefault((row.student, row.file), []).append(row)
    wide = shutil.get_terminal_size((120, 24)).columns
    lines: list[str] = []
    for assignment, several in submissions.items():
        mean = sum(row.points or 0 for parts in several.values() for row in parts) / len(several)
        table = [("student", "points", "parts", "first not right")]
        for (student, _), parts in several.items():
            points = " ".join("?" if row.points is None else f"{row.points:g}" for row in parts)
            bad = next((row for row in parts if row.status != "ok"), None)
            table.append((student, score(parts), points, _note(bad) if bad else ""))
        one, two, three, _ = (max(map(len, column)) for column in zip(*table))
        room = max(30, wide - one - two - three - 6)
        lines += [
            "",
            f"{assignment}: {len(several)} submission{'s' * (len(several) != 1)}, {mean:.1f} points on average",
        ]
        lines += [f"{a:{one}}  {b:>{two}}  {c:{three}}  {_short(d, room)}".rstrip() for a, b, c, d in table]
    return "\n".join(lines[1:])


def _note(row: Row) -> str:
    return row.hint if row.hint.startswith(row.status) else f"{row.status}: {row.hint}".removesuffix(": ")


def _short(text: str, width: int = 90) -> str:
    """The text's beginning, cut between two words."""
    return textwrap.shorten(text, width, placeholder=" …")


def missing(student: str, assignment: str, master: Notebook) -> list[Row]:
    """The rows of a student of the roster who handed in nothing."""
    parts = parts_of(master).items()
    return [
        Row(student, assignment, name, 0.0, part.points, 0.0, "missing", "nothing was handed in")
        for name, part in parts
    ]


class Gradebook:
    """A folder with `grades.csv`, `totals.csv`, `seed.txt` and `feedback/`. What is not graded again stays as it was.

    seed: what the hidden tests draw from; None: what the folder's `seed.txt` says, else a fresh secret.
    """

    def __init__(self, out: Path, seed: str | None = None) -> None:
        self.path, self.pages, self.seed = out / "grades.csv", out / "feedback", seed

    def __enter__(self) -> Gradebook:
        """Hold the folder, since two gradings into it would lose the rows of one, and read what is there."""
        self.pages.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path.with_name("grades.lock"), "w")  # noqa: SIM115
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise ValueError(f"{self.path.parent}: another grading writes there. Wait, or give --out.") from None
        self.columns, self.lines = _read(self.path)
        kept = self.path.with_name("seed.txt")
        if self.seed is None and kept.exists():
            self.seed = kept.read_text(encoding="utf-8").strip()
        self.seed = secrets.token_hex(16) if self.seed is None else str(self.seed)
        kept.write_text(self.seed + "\n", encoding="utf-8")
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock.close()

    def add(self, rows: Sequence[Row], page: str = "", name: str = "") -> None:
        """Write the rows of one submission, in the place of its old ones, and its page."""
        if name:
            (self.pages / name).write_text(page, encoding="utf-8", errors="replace")
        new = [_line(row) for row in rows]
        whose = _whose(new[0])
        old = {line["part"]: line for line in self.lines if _whose(line) == whose}
        self.lines = [line for line in self.lines if _whose(line) != whose]
        self.lines += [_merged(old.get(line["part"], {}), line) for line in new]
        self.lines.sort(key=_whose)
        _write(self.path, self.columns, self.lines)
        _write(self.path.with_name("totals.csv"), *_totals(self.lines))


def _write(path: Path, columns: list[str], lines: list[dict[str, str]]) -> None:
    """A table, whole at any time."""
    fresh = path.with_suffix(".new")
    with open(fresh, "w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    os.replace(fresh, path)


def _totals(lines: list[dict[str, str]]) -> tuple[list[str], list[dict[str, str]]]:
    """One line per student, one column per assignment; parts that a person has still to grade count nothing yet."""
    names = sorted({line["assignment"] for line in lines})
    sums: dict[str, dict[str, float]] = {}
    for line in lines:
        own = sums.setdefault(line["student"], dict.fromkeys([*names, "total"], 0.0))
        for name in (line["assignment"], "total"):
            with contextlib.suppress(ValueError):  # empty, or the instructor's own word
                own[name] += float(line["points"])
    return ["student", *names, "total"], [
        {"student": student} | {name: f"{points:g}" for name, points in own.items()} for student, own in sums.items()
    ]


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
    return {name: re.sub(r"\A(?=[=+@\t\r-])", "'", visible(str(value))) for name, value in cells.items()}


def _whose(line: dict[str, str]) -> tuple[str, str, str]:
    known = line["assignment"] != "unknown"
    return line["student"], line["assignment"], "" if known else line.get("file", "")


def _merged(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """The new line with the instructor's own columns, and points that a person gave."""
    if new["status"] == "by hand" and old.get("points"):
        new = new | {"points": old["points"], "hint": "points of an earlier grading: still right?"}
    return old | new
