"""The folder that grading leaves behind: `grades.csv`, `seed.txt` and `feedback/`, kept up to date row by row."""

from __future__ import annotations

import csv
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from cdlearn.classroom.grader.report import Row

COLUMNS = [field.name for field in fields(Row)]


class Gradebook:
    """One folder of results. An earlier grading there stays, but for the submissions that are graded again.

    seed: what the hidden tests draw from; None: what the folder's `seed.txt` says, else a fresh secret.
    """

    def __init__(self, out: Path, seed: str | None = None) -> None:
        self.path = out / "grades.csv"
        self.columns, self.lines = _read(self.path)
        self.pages = out / "feedback"
        self.pages.mkdir(parents=True, exist_ok=True)
        kept = out / "seed.txt"
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
        self.lines += [_keep(old.get(line["part"], {}), line) for line in new]
        self.lines.sort(key=_whose)
        self._write()

    def _write(self) -> None:
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
    cells = asdict(row) | {"points": "" if row.points is None else f"{row.points:g}", "max": f"{row.max:g}"}
    return {name: _harmless(str(value)) for name, value in cells.items()}


def _harmless(text: str) -> str:
    """Text that a spreadsheet would take for a formula is quoted."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _whose(line: dict[str, str]) -> tuple[str, str, str]:
    known = line["assignment"] != "unknown"
    return line["student"], line["assignment"], "" if known else line.get("file", "")


def _keep(old: dict[str, str], new: dict[str, str]) -> dict[str, str]:
    """The new line with the instructor's own columns, and points that a person gave."""
    if new["status"] == "by hand" and old.get("points"):
        new = new | {"points": old["points"], "hint": "points of an earlier grading: still right?"}
    return old | new
