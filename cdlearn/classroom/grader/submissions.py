"""What students hand in: found in whatever layout, recognised by its cells, and put in order before it is graded.

nbgrader can add missing graded cells by itself (`add_missing_cells`), but fails where the solution cell before one is
missing too, and puts no solution cell back: `restore` does both.
"""

from __future__ import annotations

import copy
import json
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]
LARGEST = 50_000_000  # bytes of one notebook


@dataclass
class Submission:
    """One notebook of one student. `problem` says why it cannot be graded; `restored` what had been deleted."""

    student: str
    path: Path
    assignment: str | None = None
    notebook: Notebook | None = None
    problem: str = ""
    restored: list[str] = field(default_factory=list)
    file: str = ""  # below the folder of submissions


@dataclass(frozen=True)
class Part:
    """One part of an assignment: its heading ("Part 2 · The mask") and the grade_ids of its solution cells."""

    title: str
    points: float
    solutions: list[str]
    by_hand: bool  # an answer in words, which a person grades


def marks(cell: dict) -> dict:
    """A cell's nbgrader metadata, {} if it has none."""
    mark = cell.get("metadata", {}).get("nbgrader")
    return mark if isinstance(mark, dict) else {}


def parts_of(release: Notebook) -> dict[str, Part]:
    """The parts of an assignment in order, by the grade_id of their graded cells."""
    parts, title, solutions = {}, "", []
    for cell in release["cells"]:
        grade_id = marks(cell).get("grade_id")
        if marks(cell).get("grade"):
            in_words = cell["cell_type"] == "markdown"
            parts[grade_id] = Part(title or grade_id, float(marks(cell)["points"]), solutions, in_words)
            solutions = []
        elif marks(cell).get("solution"):
            solutions.append(grade_id)
        elif cell["cell_type"] == "markdown" and (line := re.match(r"#+ (Part .*)", "".join(cell["source"]))):
            title = re.sub(r" *\([^)]*\)$", "", line[1])
    return parts


def find_submissions(folder: Path, masters: dict[str, Notebook]) -> Iterator[Submission]:
    """Every notebook below `folder`: `student/assignment/assignment.ipynb`, `student/any.ipynb` or `student.ipynb`.

    masters: the notebooks of all assignments, or their releases. The assignment is the one with the most of its graded
    cells here, or else named in the path. An assignment's name in a file name is not part of the student's.
    """
    parts = {name: parts_of(master).keys() for name, master in masters.items()}
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        names = [name for name in masters if name in str(inside)]
        student = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        for name in names if len(inside.parts) == 1 else ():
            student = re.sub(r" *\(\d+\)$", "", student).replace(name, "")
        one = Submission(
            student.strip(" _-.") or inside.stem, path, names[-1] if names else None, file=inside.as_posix()
        )
        _read(one)
        ids = {marks(cell).get("grade_id") for cell in one.notebook["cells"]} if one.notebook else set()
        best = max(masters, key=lambda name: len(ids & parts[name]), default=None)
        one.assignment = best if best and ids & parts[best] else one.assignment
        if one.assignment is None and not one.problem:
            one.problem = "No part of an assignment is in this notebook. Hand in the one you worked in."
        yield one


def choose(found: list[Submission], assignment: str | None = None) -> tuple[list[Submission], list[str]]:
    """What to grade: only this assignment, and of several copies the newest that can be read. And what was left out."""
    mine = [one for one in found if assignment is None or one.assignment in (assignment, None)]
    notes = [f"{len(found) - len(mine)} of another assignment skipped"] if len(mine) < len(found) else []
    copies: dict[tuple[str, str], list[Submission]] = {}
    for one in mine:
        copies.setdefault((one.student, one.assignment or one.file), []).append(one)
    chosen = []
    for (student, name), several in copies.items():
        *older, newest = sorted(several, key=_age)
        chosen.append(newest)
        if older:
            skipped = ", ".join(one.file + (" (damaged)" if one.problem else "") for one in older)
            notes.append(f"{student}, {name}: graded {newest.file}, the newest; skipped {skipped}")
    return chosen, notes


def _age(submission: Submission) -> tuple:
    """Sorts copies: what cannot be read comes first, then by time, then `01` before `01 (2)` before `01 (10)`."""
    pieces = re.split(r"([0-9]+)", submission.file.removesuffix(".ipynb"))
    numbers = [int(piece) if k % 2 else piece for k, piece in enumerate(pieces)]
    return submission.notebook is not None, int(submission.path.lstat().st_mtime), numbers


def doubts(folder: Path, found: list[Submission]) -> list[str]:
    """What an instructor should look at: students without a notebook, notebooks without a student."""
    folders = {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"}
    without = sorted(folders - {one.file.split("/")[0] for one in found})
    notes = [f"no notebook from: {', '.join(without)}"] if without else []
    flat = ", ".join(one.file for one in found if one.file == f"{one.student}.ipynb")
    return notes + [f"no student's name in: {flat} (expected STUDENT/... or STUDENT_ASSIGNMENT.ipynb)"] * bool(flat)


def _read(submission: Submission) -> None:
    """Read the file into `notebook`, without outputs, or say in `problem` why that fails."""
    import nbformat

    again = "Save it in Jupyter and hand it in again."
    try:
        if submission.path.stat().st_size > LARGEST:
            submission.problem = f"The file has more than {LARGEST // 1_000_000} MB. Clear all outputs. {again}"
            return
        text = submission.path.read_text(encoding="utf-8-sig")
        json.loads(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing or double is mended here
            notebook = nbformat.validator.normalize(nbformat.reads(text, as_version=4))[1]
        nbformat.validate(notebook)
    except json.JSONDecodeError as error:
        submission.problem = f"The file is damaged at line {error.lineno}, column {error.colno}. {again}"
        return
    except Exception as error:  # a student's file can be anything
        submission.problem = f"The file is not a notebook ({type(error).__name__}). {again}"
        return
    submission.notebook = json.loads(json.dumps(notebook))
    for cell in submission.notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def restore(submission: Submission, release: Notebook) -> Notebook:
    """The notebook to grade: every solution and graded cell of the release is there, in order.

    A solution cell that lost its metadata is found again by the function it defines. A cell that is missing is put
    back where it was, a solution blank. nbgrader then writes the graded cells anew, hidden tests included.
    """
    cells = [dict(cell) for cell in submission.notebook["cells"]]
    last = -1  # a graded cell never comes before what it grades
    for position, original in enumerate(release["cells"]):
        mark = marks(original)
        if not (mark.get("grade") or mark.get("solution")):
            continue
        names = [_name(cell) for cell in cells]
        here = names.index(mark["grade_id"]) if mark["grade_id"] in names else None
        if here is None and mark.get("solution"):
            here = _defining(original, cells)
            if here is not None:
                cells[here]["metadata"] = {"nbgrader": dict(mark)}
        if here is None:  # after the nearest of the cells before it that is still there
            before = [_name(cell) for cell in release["cells"][:position] if _name(cell) in names]
            here = names.index(before[-1]) + 1 if before else 0
            here = max(here, last + 1) if mark.get("grade") else here
            cells.insert(here, copy.deepcopy(original) | {"id": f"restored-{len(submission.restored)}"})
            submission.restored.append(mark["grade_id"])
        last = here
    for cell in cells:
        if not marks(cell).get("grade_id"):
            cell.get("metadata", {}).pop("nbgrader", None)
    kernel = {"kernelspec": release["metadata"]["kernelspec"]}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def _name(cell: dict) -> str:
    """What a cell is known by: its grade_id, or its text."""
    return marks(cell).get("grade_id") or plain_source(cell)


def _defining(original: dict, cells: list[dict]) -> int | None:
    """The last unmarked code cell that defines the function of this solution cell."""
    head = re.search(r"^def \w+\(", original["source"], re.M)
    line = re.compile(f"^{re.escape(head[0])}" if head else r"\Z.", re.M)
    found = [k for k, c in enumerate(cells) if c["cell_type"] == "code" and not marks(c) and line.search(c["source"])]
    return found[-1] if found else None


def plain_source(cell: dict) -> str:
    """A cell's text, as in the copy that students get: there, links to the course's notebooks would lead nowhere."""
    return unlink("".join(cell["source"])).strip()


def unlink(text: str) -> str:
    """The text with the words of its links to other folders in place of the links."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)", r"\1", text)


def slug(text: str) -> str:
    """A file name from any name: ASCII letters, digits, `-` and `_`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w-]+", "-", plain).strip("-")[:80] or "student"
