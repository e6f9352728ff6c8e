"""What students hand in: found in whatever layout, recognised by its cells, read without following a link."""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]
LARGEST = 50_000_000  # bytes of one notebook


@dataclass
class Submission:
    """One notebook of one student. `problem` says why it cannot be graded."""

    student: str
    path: Path
    assignment: str | None = None
    notebook: Notebook | None = None
    problem: str = ""
    file: str = ""  # below the folder of submissions


@dataclass(frozen=True)
class Part:
    """One part of an assignment, with its heading ("Part 2 · The mask")."""

    title: str
    points: float
    by_hand: bool  # an answer in words, which a person grades


def marks(cell: dict) -> dict:
    """A cell's nbgrader metadata, {} if it has none that can be read."""
    mark = cell.get("metadata", {}).get("nbgrader")
    return mark if isinstance(mark, dict) and isinstance(mark.get("grade_id"), str) else {}


def parts_of(master: Notebook) -> dict[str, Part]:
    """The parts of an assignment in order, by the grade_id of their graded cells."""
    parts, title = {}, ""
    for cell in master["cells"]:
        if marks(cell).get("grade"):
            grade_id, in_words = marks(cell)["grade_id"], cell["cell_type"] == "markdown"
            parts[grade_id] = Part(title or grade_id, float(marks(cell)["points"]), in_words)
        elif cell["cell_type"] == "markdown" and (line := re.match(r"#+ (Part .*)", "".join(cell["source"]))):
            title = re.sub(r" *\([^)]*\)$", "", line[1])
    return parts


def find_submissions(folder: Path, masters: dict[str, Notebook]) -> Iterator[Submission]:
    """Every notebook below `folder`: `student/assignment/assignment.ipynb`, `student/any.ipynb` or `student.ipynb`.

    masters: the notebooks of all assignments. The assignment is the one with the most of its graded
    cells here, or else named in the path. An assignment's name in a file name is not part of the student's.
    """
    parts = {name: parts_of(master).keys() for name, master in masters.items()}
    for path in sorted(folder.rglob("*.ipynb")):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        names = [name for name in masters if name in str(inside)]
        student = shown(inside.parts[0] if len(inside.parts) > 1 else inside.stem)
        for name in names if len(inside.parts) == 1 else ():
            student = re.sub(r" *\(\d+\)$", "", student).replace(name, "")
        one = Submission(
            student.strip(" _-.") or shown(inside.stem),
            path,
            names[-1] if names else None,
            file=shown(inside.as_posix()),
        )
        read(one, folder)
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
    folders = {shown(path.name) for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._"}
    without = sorted(folders - {one.file.split("/")[0] for one in found})
    notes = [f"no notebook from: {', '.join(without)}"] if without else []
    flat = ", ".join(one.file for one in found if one.file == f"{one.student}.ipynb")
    others = [p for p in sorted(folder.rglob("*")) if p.name.endswith((".zip", ".ipynb.txt", ".ipynb.json"))]
    notes += (
        [f"not looked at: {', '.join(shown(p.name) for p in others)} (the notebook itself is needed)"] if others else []
    )
    return notes + [f"no student's name in: {flat} (expected STUDENT/... or STUDENT_ASSIGNMENT.ipynb)"] * bool(flat)


def read(submission: Submission, folder: Path) -> None:
    """Read the file into `notebook`, or say in `problem` why that fails."""
    import nbformat

    again = "Save it in Jupyter and hand it in again."
    try:
        text = regular(submission.path, folder).decode("utf-8-sig")
        json.loads(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is missing or double is mended here
            notebook = nbformat.validator.normalize(nbformat.reads(text, as_version=4))[1]
        nbformat.validate(notebook)
    except json.JSONDecodeError as error:
        submission.problem = f"The file is damaged at line {error.lineno}, column {error.colno}. {again}"
    except OSError as error:
        submission.problem = f"{error} {again}"
    except Exception as error:  # a student's file can be anything
        submission.problem = f"The file is not a notebook ({type(error).__name__}). {again}"
    else:
        submission.notebook = json.loads(json.dumps(notebook))


def regular(path: Path, folder: Path, most: int = LARGEST) -> bytes:
    """What is in a file, if it is a plain one inside the folder, no link and no device; OSError that says why not."""
    if path.parent.resolve() != folder.resolve() / path.parent.relative_to(folder) or path.is_symlink():
        raise OSError("The file is a link to another one.")
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("The file is none that can be read: a pipe, a device or a folder.")
        if len(found := file.read(most + 1)) > most:
            raise OSError(f"The file has more than {most / 1_000_000:g} MB. Clear all outputs.")
    return found


def plain_source(cell: dict) -> str:
    """A cell's text, as in the copy that students get: there, links to the course's notebooks would lead nowhere."""
    return unlink("".join(cell["source"])).strip()


def unlink(text: str) -> str:
    """The text with the words of its links to other folders in place of the links."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)", r"\1", text)


def shown(name: str) -> str:
    """A file's name with a code in the place of each character that nobody sees: it could turn the text around."""
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c)[0] == "C" else c for c in name)


def slug(text: str) -> str:
    """A file name from any name: ASCII letters, digits, `-` and `_`."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^\w-]+", "-", plain).strip("-")[:80] or "student"
