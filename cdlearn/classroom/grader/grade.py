"""Grade a folder of submissions: one process each, as many at once as there are cores, none able to hurt the others."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdlearn.classroom.grader.build import Folder, find_masters, pick
from cdlearn.classroom.grader.page import page
from cdlearn.classroom.grader.results import Event, Gradebook, Row, missing, progress, rows_of
from cdlearn.classroom.grader.sandbox import end_all, unprotected
from cdlearn.classroom.grader.submissions import (
    Notebook,
    Submission,
    choose,
    doubts,
    find_submissions,
    parts_of,
    read,
    regular,
    slug,
)

BESIDE, LARGEST_BESIDE = 20, 1_000_000  # files that are handed in with a notebook, and bytes of one
GRACE = 90  # seconds beyond the limit until a process is ended that does not end by itself


def grade(
    folder: Folder,
    out: Folder,
    *,
    source: Folder | None = None,
    assignment: str | None = None,
    seed: str | None = None,
    jobs: int | None = None,
    cell_timeout: int = 60,
    timeout: int = 600,
    memory: float = 4.0,
    roster: Folder | None = None,
    tell: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Grade every submission below `folder`; keeps `out/grades.csv` and `out/feedback/*.html` up to date meanwhile.

    seed: what the hidden tests draw their instances from (None: that of an earlier grading in `out`, else a fresh
    secret). jobs: processes at once (None: one per core). cell_timeout, timeout: seconds per cell and in all. memory:
    GiB of address space, 0 for no limit. roster: a file with a student per line, or a CSV with a column "student" or
    the students first: whoever handed in nothing gets rows as well, with 0 points. `tell` gets one line per finished
    submission, `note` what was left out.
    Returns the rows of this grading, in order. Raises ValueError if there is nothing to grade.
    """
    masters, folder = find_masters(source), Path(folder)
    pick(masters, [assignment] if assignment else None)
    students = [] if roster is None else _students(roster)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder that holds the submissions.")
    if why := unprotected():
        note(why)
    known = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in masters.items()}
    found = _to_grade(folder, known, assignment, note)
    names, most, rows = _file_names(found), jobs or _cores(), []
    settings = {"cell_timeout": cell_timeout, "total": timeout, "memory": memory, "one_thread": most > 1}
    place = tempfile.TemporaryDirectory(prefix="cdlearn-grade-", ignore_cleanup_errors=True)
    with Gradebook(Path(out), seed) as book, place:
        settings["seed"] = book.seed
        waiting = [Job(one, known.get(one.assignment), Path(place.name, str(k)), folder) for k, one in enumerate(found)]
        for done, (number, job) in enumerate(_run_all(waiting, most, settings), start=1):
            new, feedback = job.conclude()
            book.add(new, feedback, names[number])
            rows += new
            tell(f"{done} of {len(found)}: {progress(new)}")
        for student, name in _absent(students, rows, assignment, note):
            rows += (new := missing(student, name, known[name]))
            book.add(new)
    return sorted(rows, key=lambda row: (row.student, row.assignment, row.file))


def check_notebook(path: Path) -> list[tuple[str, Event]]:
    """A student's own run: (title, what was found) for every part, by the tests in the notebook itself."""
    from cdlearn.classroom.grader.worker import graded

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the notebook that you will hand in.")
    one = Submission("", path)
    read(one, path.parent)
    if one.problem:
        raise ValueError(f"{path}: {one.problem}")
    parts = {name: part.title for name, part in parts_of(one.notebook).items() if not part.by_hand}
    if not parts:
        raise ValueError(f"{path}: no part of an assignment is in this notebook.")
    with tempfile.TemporaryDirectory(prefix="cdlearn-check-") as place:
        copy_others(path, Path(place), path.parent)
        events = {event.get("part"): event for event in graded(one.notebook, one.notebook, Path(place))}
    return [(title, events[name]) for name, title in parts.items()]


def copy_others(notebook: Path, folder: Path, root: Path) -> None:
    """What was handed in beside the notebook, a module for instance: small plain files."""
    others = [path for path in sorted(notebook.parent.iterdir()) if path.suffix not in (".ipynb", ".zip")]
    for path in others[:BESIDE]:
        with contextlib.suppress(OSError):
            (folder / path.name).write_bytes(regular(path, root, LARGEST_BESIDE))


def _students(roster: Folder) -> list[str]:
    """The names of a class list."""
    try:
        with open(roster, newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line and any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"roster {roster} cannot be read ({error}): give a text file, one student per line.") from None
    heads = [cell.strip().lower() for cell in lines[0]] if lines else []
    column, start = (heads.index("student"), 1) if "student" in heads else (0, 0)
    names = [line[column].strip() for line in lines[start:] if len(line) > column]
    return list(dict.fromkeys(filter(None, names)))


def _absent(
    students: list[str], rows: list[Row], assignment: str | None, note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """(student, assignment) for everyone on the roster without a hand-in; `note` hears of those who are not on it."""
    there = {(row.student, row.assignment) for row in rows}
    if students and (strangers := sorted({student for student, _ in there} - {*students})):
        note(f"not on the roster: {', '.join(strangers)}")
    wanted = [assignment] if assignment else sorted({name for _, name in there} - {"unknown"})
    return [(student, name) for name in wanted for student in students if (student, name) not in there]


def _to_grade(folder: Path, masters: dict[str, Notebook], assignment: str | None, note: Callable) -> list[Submission]:
    """The submissions that count; `note` hears of what does not."""
    everything = list(find_submissions(folder, masters))
    found, notes = choose(everything, assignment)
    for text in (*notes, *doubts(folder, everything)):
        note(text)
    if not found:
        which = f" of {assignment}" if assignment else ""
        raise ValueError(f"no notebook{which} below {folder}: expected STUDENT/ASSIGNMENT.ipynb or the like.")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file_names(found: list[Submission]) -> list[str]:
    """One HTML name per submission, readable, the same the next time, and never twice the same."""
    names: list[str] = []
    for one in found:
        student = slug(one.student)
        if one.student not in (student, student.replace("-", " ")):  # two names may look alike without their accents
            student += "-" + hashlib.sha256(one.student.encode(errors="replace")).hexdigest()[:4]
        name = base = f"{student}_{one.assignment or 'unknown'}"
        number = 1
        while f"{name}.html" in names:
            number += 1
            name = f"{base}_{number}"
        names.append(f"{name}.html")
    return names


@dataclass
class Job:
    """A submission on its way: its master, a folder for the files beside it, its process, what that has sent."""

    submission: Submission
    master: Notebook | None
    folder: Path
    root: Path
    process: Any = None
    results: Any = None
    events: list[Event] = field(default_factory=list)
    started: float = 0.0
    reason: str = ""

    def start(self, context: Any, settings: dict) -> None:
        """Lay out the folder and start the process."""
        from cdlearn.classroom.grader import worker

        self.folder.mkdir(parents=True)
        if self.submission.path.parent != self.root:  # a folder of everybody's
            copy_others(self.submission.path, self.folder, self.root)
        job = settings | {"folder": str(self.folder), "notebook": self.submission.notebook, "master": self.master}
        self.results, end = context.Pipe(duplex=False)
        self.process, self.started = context.Process(target=worker.run, args=(job, end)), time.monotonic()
        self.process.start()
        end.close()

    def is_over(self, most: float) -> bool:
        """Whether the process has ended; it ends by itself after about `most` seconds."""
        late = time.monotonic() - self.started > most + GRACE and self.process.is_alive()
        if late:
            self.kill()
        ended = not self.process.is_alive()
        with contextlib.suppress(EOFError, OSError):
            while self.results.poll():  # what it said last is there once it has ended
                self.events.append(self.results.recv())
        if ended:
            reasons = [event["reason"] for event in self.events if "reason" in event]
            reasons += [f"it ran longer than {most:g} seconds in all and was stopped"] * late
            reasons += ["the grader's own process ended: tell whoever looks after it"] * bool(self.process.exitcode)
            self.reason = next(iter(reasons), "")
        return ended

    def kill(self) -> None:
        """End the process and what it started."""
        end_all(self.process.pid)
        self.process.join(10)

    def conclude(self) -> tuple[list[Row], str]:
        """The rows of the submission and its feedback page."""
        one, reason = self.submission, self.submission.problem or self.reason
        rows = rows_of(one, self.master, self.events, reason)
        return rows, page(one, rows, self.master, self.events, reason)


def _run_all(waiting: list[Job], most: int, settings: dict) -> Iterator[tuple[int, Job]]:
    """Yield (number, job) as submissions finish, `most` at once; what cannot be graded in its turn."""
    queue, running, context = list(enumerate(waiting)), {}, _context()
    try:
        while queue or running:
            while queue and len(running) < most:
                number, job = queue.pop(0)
                if job.submission.problem:
                    yield number, job
                else:
                    job.start(context, settings)
                    running[number] = job
            for number, job in list(running.items()):
                if job.is_over(settings["total"]):
                    del running[number]
                    yield number, job
                    shutil.rmtree(job.folder, ignore_errors=True)
            time.sleep(0.1)
    finally:
        for job in running.values():
            job.kill()


def _context() -> Any:
    """A clean process that has imported once and forks for every submission; elsewhere a fresh one each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cdlearn.classroom.grader.worker", "cdlearn.classroom.checks"])
    return context
