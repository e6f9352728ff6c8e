"""Grade a folder of submissions: one process each, as many at once as there are cores, none able to hurt the others."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdlearn.classroom.grader.build import Folder, find_masters, pick, releases
from cdlearn.classroom.grader.page import page
from cdlearn.classroom.grader.results import Gradebook, Row, progress, reason_of, rows_of
from cdlearn.classroom.grader.submissions import (
    LARGEST,
    Notebook,
    Submission,
    choose,
    doubts,
    find_submissions,
    restore,
    slug,
)


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
    tell: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Grade every submission below `folder`; keeps `out/grades.csv` and `out/feedback/*.html` up to date meanwhile.

    seed: what the hidden tests draw their instances from (None: that of an earlier grading in `out`, else a fresh
    secret). jobs: processes at once (None: one per core). cell_timeout, timeout: seconds per cell and in all. memory:
    GiB of address space, 0 for no limit. `tell` gets one line per finished submission, `note` what was left out.
    Returns the rows of this grading, in order. Raises ValueError if there is nothing to grade.
    """
    masters, folder = find_masters(source), Path(folder)
    pick(masters, [assignment] if assignment else None)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder that holds the submissions.")
    found = _to_grade(folder, masters, assignment, note)
    names, book, most, rows = _file_names(found), Gradebook(Path(out), seed), jobs or _cores(), []
    limits = {"cell_timeout": cell_timeout, "total": timeout, "memory": memory}
    settings = limits | {"seed": book.seed, "one_thread": most > 1}
    with tempfile.TemporaryDirectory(prefix="cdlearn-grade-", ignore_cleanup_errors=True) as place:
        used = {one.assignment for one in found}
        made = releases({name: masters[name] for name in masters if name in used}, Path(place))
        waiting = [Job(one, made.get(one.assignment), Path(place, str(number))) for number, one in enumerate(found)]
        for done, (number, job) in enumerate(_run_all(waiting, most, settings), start=1):
            new, feedback = job.conclude()
            book.add(new, feedback, names[number])
            rows += new
            tell(f"{done} of {len(found)}: {progress(new)}")
    return sorted(rows, key=lambda row: (row.student, row.assignment, row.file))


def _to_grade(folder: Path, masters: dict[str, Path], assignment: str | None, note: Callable) -> list[Submission]:
    """The submissions that count; `note` hears of what does not."""
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in masters.items()}
    everything = list(find_submissions(folder, read))
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
    """A submission on its way: its release and folder, its process, the notebook that is run, why it was stopped.

    The folder is a course of one student, beside the course folder in which the releases were made.
    """

    submission: Submission
    release: Notebook | None
    folder: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    process: Any = None
    notebook: Notebook | None = None
    started: float = 0.0
    stopped: str = ""

    def start(self, context: Any, settings: dict) -> None:
        """Lay out the folder and start the process."""
        from cdlearn.classroom.grader import worker

        name, course = self.submission.assignment, self.folder.parent
        handed_in = self.folder / "submitted" / "student" / name
        handed_in.mkdir(parents=True)
        shutil.copy(course / "gradebook.db", self.folder)
        shutil.copytree(course / "source" / name, self.folder / "source" / name)
        self.notebook, self.started = restore(self.submission, self.release), time.monotonic()
        (handed_in / f"{name}.ipynb").write_text(json.dumps(self.notebook), encoding="utf-8")
        settings = settings | {"folder": str(self.folder), "id": self.id, "assignment": name}
        self.process = context.Process(target=worker.run, args=(settings,))
        self.process.start()

    def is_over(self, most: float) -> bool:
        """Whether the process has ended; it is stopped after `most` seconds. Nothing that it started lives on."""
        if self.process.is_alive() and time.monotonic() - self.started > most:
            self.stopped = f"it ran longer than {most} seconds in all and was stopped"
        if self.stopped or not self.process.is_alive():
            self.kill()
        return not self.process.is_alive()

    def kill(self) -> None:
        """End the process and all it started: kernels have sessions of their own, so they are found by mark."""
        import psutil

        victims = []
        for process in psutil.process_iter():
            try:
                if process.pid == self.process.pid or process.environ().get("CDLEARN_GRADING_JOB") == self.id:
                    victims += [process, *process.children(recursive=True)]
            except (psutil.Error, OSError):  # not ours, or gone
                continue
        for process in victims:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.join(10)

    def conclude(self) -> tuple[list[Row], str]:
        """The rows of the submission and its feedback page."""
        one, events, run = self.submission, _events(self.folder / "progress.jsonl"), {}
        reason = one.problem or self.stopped or reason_of(events)
        rows = rows_of(one, self.release, events, reason)
        autograded = self.folder / "autograded" / "student" / str(one.assignment) / f"{one.assignment}.ipynb"
        with contextlib.suppress(Exception):  # it may not be there, and the student's code can write into this file
            run = json.loads(autograded.read_text(encoding="utf-8")) if autograded.stat().st_size <= LARGEST else run
            return rows, page(one, rows, self.release, run, reason)
        return rows, page(one, rows, self.release, self.notebook, reason)


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
    """A clean process that has imported nbgrader once and forks for every submission; elsewhere a fresh one each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cdlearn.classroom.grader.worker", "nbgrader.apps"])
    return context


def _events(path: Path) -> list[dict]:
    """The complete lines of a progress file; a kill may have cut one."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
