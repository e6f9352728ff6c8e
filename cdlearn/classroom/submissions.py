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


def find_submissions(folder: Path, releases: dict[str, Notebook]) -> Iterator[Submission]:
    """Every notebook below `folder`: `student/assignment/assignment.ipynb`, `student/any.ipynb` or `student.ipynb`.

    The assignment is recognised by the graded cells, or else by a name in the path. An assignment's name in a file
    name is not part of the student's.
    """
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        names = [name for name in releases if name in str(inside)]
        student = inside.parts[0] if len(inside.parts) > 1 else inside.stem
        for name in names if len(inside.parts) == 1 else ():
            student = student.replace(name, "")
        student = student.strip(" _-.") or inside.stem
        submission = Submission(student, path)
        _read(submission)
        if submission.notebook is not None:
            submission.assignment = _recognise(submission.notebook, releases)
        submission.assignment = submission.assignment or (names[-1] if names else None)
        if submission.assignment is None and not submission.problem:
            submission.problem = "no assignment of these masters: no graded cell of one, and no name of one in the path"
        yield submission


def _read(submission: Submission) -> None:
    import nbformat

    if submission.path.stat().st_size > LARGEST:
        submission.problem = f"the file has more than {LARGEST // 1_000_000} MB"
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing or double is mended below
            notebook = nbformat.read(submission.path, as_version=4)
        notebook = nbformat.validator.normalize(notebook)[1]
        nbformat.validate(notebook)
    except Exception as error:  # a student's file can be anything
        submission.problem = f"not a notebook: {type(error).__name__}: {str(error)[:100]}"
        return
    submission.notebook = json.loads(nbformat.writes(notebook))
    for cell in submission.notebook["cells"]:
        cell["source"] = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None


def _recognise(notebook: Notebook, releases: dict[str, Notebook]) -> str | None:
    """The assignment with the most of its graded cells here."""
    ids = {marks(cell).get("grade_id") for cell in notebook["cells"]}
    hits = {name: len(ids & set(points_of(release))) for name, release in releases.items()}
    best = max(hits, key=hits.get, default=None)
    return best if best and hits[best] else None


def restore(submission: Submission, release: Notebook) -> Notebook:
    """The notebook to grade: every solution and graded cell of the release is there, in order.

    A solution cell that lost its metadata is found again by the function it defines. A cell that is missing is put
    back behind its predecessor, a solution blank. nbgrader then writes the graded cells anew, hidden tests included.
    """
    cells = [dict(cell) for cell in submission.notebook["cells"]]
    counted = [cell for cell in release["cells"] if marks(cell).get("grade") or marks(cell).get("solution")]
    at = -1
    for original in counted:
        grade_id = marks(original)["grade_id"]
        here = next((k for k, cell in enumerate(cells) if marks(cell).get("grade_id") == grade_id), None)
        if here is None and marks(original).get("solution"):
            here = _defining(original, cells)
            if here is not None:
                cells[here]["metadata"] = {"nbgrader": dict(marks(original))}
        if here is None:
            here = at + 1
            cells.insert(here, json.loads(json.dumps(original)) | {"id": f"restored-{here}"})
            submission.restored.append(grade_id)
        at = max(at, here)
    for cell in cells:
        if not marks(cell).get("grade_id"):
            cell.get("metadata", {}).pop("nbgrader", None)
    kernel = {"kernelspec": release["metadata"]["kernelspec"]}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


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
