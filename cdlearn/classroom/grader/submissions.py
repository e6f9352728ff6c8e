"""What students hand in: found in whatever layout, recognised by its cells, and put in order before it is graded."""

from __future__ import annotations

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
    modified: int = 0  # seconds


def marks(cell: dict) -> dict:
    """A cell's nbgrader metadata, {} if it has none."""
    found = cell.get("metadata", {}).get("nbgrader")
    return found if isinstance(found, dict) else {}


def points_of(release: Notebook) -> dict[str, float]:
    """The parts of an assignment in order: grade_id -> points."""
    return {marks(c)["grade_id"]: float(marks(c)["points"]) for c in release["cells"] if marks(c).get("grade")}


def by_hand(release: Notebook) -> set[str]:
    """The parts that a person has to grade: answers in words, which nothing runs."""
    return {marks(c)["grade_id"] for c in release["cells"] if marks(c).get("grade") and c["cell_type"] == "markdown"}


def titles(release: Notebook) -> dict[str, str]:
    """What the heading above a part calls it: grade_id -> "Part 2 · The mask"."""
    found, heading = {}, ""
    for cell in release["cells"]:
        if cell["cell_type"] == "markdown" and not marks(cell):
            line = re.match(r"#+ (Part .*)", "".join(cell["source"]))
            heading = re.sub(r" *\([^)]*\)$", "", line.group(1)) if line else heading
        elif marks(cell).get("grade"):
            found[marks(cell)["grade_id"]] = heading or marks(cell)["grade_id"]
    return found


def solutions_of(release: Notebook) -> dict[str, list[str]]:
    """The solution cells of every part: those since the part before."""
    found, waiting = {}, []
    for cell in release["cells"]:
        if marks(cell).get("grade"):
            found[marks(cell)["grade_id"]], waiting = waiting, []
        elif marks(cell).get("solution"):
            waiting.append(marks(cell)["grade_id"])
    return found


def find_submissions(folder: Path, masters: dict[str, Notebook]) -> Iterator[Submission]:
    """Every notebook below `folder`: `student/assignment/assignment.ipynb`, `student/any.ipynb` or `student.ipynb`.

    masters: the notebooks of all assignments, or their releases. The assignment is recognised by the graded cells, or
    else by a name in the path. An assignment's name in a file name is not part of the student's.
    """
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        names = [name for name in masters if name in str(inside)]
        student = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        for name in names if len(inside.parts) == 1 else ():
            student = re.sub(r" *\(\d+\)$", "", student).replace(name, "")
        student = student.strip(" _-.") or inside.stem
        submission = Submission(student, path, file=inside.as_posix())
        _read(submission)
        if submission.notebook is not None:
            submission.assignment = _recognise(submission.notebook, masters)
        submission.assignment = submission.assignment or (names[-1] if names else None)
        if submission.assignment is None and not submission.problem:
            submission.problem = "No part of an assignment is in this notebook. Hand in the one you worked in."
        yield submission


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


def doubts(folder: Path, found: list[Submission]) -> list[str]:
    """What an instructor should look at: students without a notebook, notebooks without a student."""
    students = {one.file.split("/")[0] for one in found}
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")
    without = [name for name in folders if name not in students]
    notes = [f"no notebook from: {', '.join(without)}"] if without else []
    flat = [one.file for one in found if one.file == f"{one.student}.ipynb"]
    if flat:
        notes.append(f"no student's name in: {', '.join(flat)} (expected STUDENT/... or STUDENT_ASSIGNMENT.ipynb)")
    return notes


def _age(submission: Submission) -> tuple:
    """Sorts copies: what cannot be read comes first, then by time, then `01` before `01 (2)` before `01 (10)`."""
    name = submission.file.removesuffix(".ipynb")
    numbers = [int(piece) if k % 2 else piece for k, piece in enumerate(re.split(r"([0-9]+)", name))]
    return submission.notebook is not None, submission.modified, numbers


def _read(submission: Submission) -> None:
    import nbformat

    again = "Save it in Jupyter and hand it in again."
    try:
        submission.modified = int(submission.path.stat().st_mtime)
        if submission.path.stat().st_size > LARGEST:
            submission.problem = f"The file has more than {LARGEST // 1_000_000} MB. Clear all outputs. {again}"
            return
        text = submission.path.read_text(encoding="utf-8-sig")
        json.loads(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing or double is mended below
            notebook = nbformat.reads(text, as_version=4)
        notebook = nbformat.validator.normalize(notebook)[1]
        nbformat.validate(notebook)
    except json.JSONDecodeError as error:
        submission.problem = f"The file is damaged at line {error.lineno}, column {error.colno}. {again}"
        return
    except Exception as error:  # a student's file can be anything
        submission.problem = f"The file is not a notebook ({type(error).__name__}). {again}"
        return
    submission.notebook = json.loads(nbformat.writes(notebook))
    for cell in submission.notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def _recognise(notebook: Notebook, masters: dict[str, Notebook]) -> str | None:
    """The assignment with the most of its graded cells here."""
    ids = {marks(cell).get("grade_id") for cell in notebook["cells"]}
    hits = {name: len(ids & set(points_of(master))) for name, master in masters.items()}
    best = max(hits, key=hits.get, default=None)
    return best if best and hits[best] else None


def restore(submission: Submission, release: Notebook) -> Notebook:
    """The notebook to grade: every solution and graded cell of the release is there, in order.

    A solution cell that lost its metadata is found again by the function it defines. A cell that is missing is put
    back where it stood, a solution blank. nbgrader then writes the graded cells anew, hidden tests included.
    """
    cells = [dict(cell) for cell in submission.notebook["cells"]]
    last = -1  # a graded cell never comes before what it grades
    for position, original in enumerate(release["cells"]):
        if not (marks(original).get("grade") or marks(original).get("solution")):
            continue
        grade_id = marks(original)["grade_id"]
        here = next((k for k, cell in enumerate(cells) if marks(cell).get("grade_id") == grade_id), None)
        if here is None and marks(original).get("solution"):
            here = _defining(original, cells)
            if here is not None:
                cells[here]["metadata"] = {"nbgrader": dict(marks(original))}
        if here is None:
            here = _place(release["cells"][:position], cells)
            here = max(here, last + 1) if marks(original).get("grade") else here
            copy = json.loads(json.dumps(original))
            cells.insert(here, copy | {"id": f"restored-{len(submission.restored)}"})
            submission.restored.append(grade_id)
        last = here
    for cell in cells:
        if not marks(cell).get("grade_id"):
            cell.get("metadata", {}).pop("nbgrader", None)
    kernel = {"kernelspec": release["metadata"]["kernelspec"]}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


def _place(before: list[dict], cells: list[dict]) -> int:
    """Behind the nearest of the cells before it that is still there: known by its grade_id, else by its text."""
    for cell in reversed(before):
        for k, other in enumerate(cells):
            same = marks(cell) or same_text(cell, other)
            if same and marks(cell).get("grade_id") == marks(other).get("grade_id"):
                return k + 1
    return 0


def same_text(cell: dict, other: dict) -> bool:
    """Whether two cells say the same; the copy that students get has no links."""
    return cell["cell_type"] == other["cell_type"] and unlink(cell["source"]).strip() == unlink(other["source"]).strip()


def unlink(text: str) -> str:
    """Links to the course's notebooks lead nowhere from a student's folder: keep their words."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)", r"\1", text)


def _defining(original: dict, cells: list[dict]) -> int | None:
    """The last unmarked code cell that defines the function of this solution cell."""
    name = re.search(r"^def (\w+)\(", original["source"], re.M)
    if name is None:
        return None
    line = re.compile(rf"^def {name.group(1)}\(", re.M)
    found = [k for k, c in enumerate(cells) if c["cell_type"] == "code" and not marks(c) and line.search(c["source"])]
    return found[-1] if found else None


def slug(text: str) -> str:
    """A file name from any name: ASCII letters, digits, `-` and `_`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w-]+", "-", plain).strip("-")[:80] or "student"
