"""Grade a folder of submissions: one process each, as many at once as there are cores, none able to hurt the others."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlearn.classroom.grader import worker
from cdlearn.classroom.grader.build import find_masters, pick, releases
from cdlearn.classroom.grader.gradebook import Gradebook
from cdlearn.classroom.grader.page import page
from cdlearn.classroom.grader.report import Row, progress
from cdlearn.classroom.grader.rows import reason_of, rows_of, unreadable
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


@dataclass
class Limits:
    """What one submission may use. `memory` in GiB of address space, 0 for none; times in seconds."""

    cell: int = 60
    total: int = 600
    memory: float = 4.0


def grade(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    source: str | os.PathLike | None = None,
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
    secret). jobs: processes at once (None: one per core). `tell` gets one line per finished submission, `note` what was
    left out. Returns the rows of this grading, in order. Raises ValueError if there is nothing to grade.
    """
    masters = find_masters(source)
    pick(masters, [assignment] if assignment else None)
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder that holds the submissions.")
    found = _to_grade(folder, masters, assignment, note)
    book, limits = Gradebook(Path(out), seed), Limits(cell_timeout, timeout, memory)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cdlearn-grade-", ignore_cleanup_errors=True) as place:
        course = Path(place) / "course"
        course.mkdir()
        made = releases(
            {name: masters[name] for name in masters if any(one.assignment == name for one in found)}, course
        )
        names = _file_names(found)
        for done, (index, job) in enumerate(
            _run_all(found, made, course, Path(place), book.seed, limits, jobs or _cores()), start=1
        ):
            new, feedback = _conclude(found[index], made, job)
            book.add(new, feedback, names[index])
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
    """A submission on its way: its folder, its process, the notebook that is run, and why it was stopped."""

    folder: Path | None = None
    id: str = ""
    process: Any = None
    notebook: Notebook | None = None
    started: float = 0.0
    stopped: str = ""


def _run_all(
    found: list[Submission], made: dict[str, Notebook], course: Path, place: Path, seed: str, limits: Limits, jobs: int
) -> Iterator[tuple[int, Job]]:
    """Yield (index, job) as submissions finish; what cannot be graded at once."""
    waiting = list(range(len(found)))
    running: dict[int, Job] = {}
    context = _context()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index = waiting.pop(0)
                if found[index].problem:
                    yield index, Job()
                    continue
                running[index] = _start(found[index], made, course, place / str(index), seed, limits, jobs, context)
            for index, job in list(running.items()):
                if job.process.is_alive() and time.monotonic() - job.started > limits.total:
                    job.stopped = f"it ran longer than {limits.total} seconds in all and was stopped"
                    _kill(job)
                if not job.process.is_alive():
                    _kill(job)  # whatever the student's code started
                    del running[index]
                    yield index, job
                    shutil.rmtree(job.folder, ignore_errors=True)
            time.sleep(0.1)
    finally:
        for job in running.values():
            _kill(job)


def _context() -> Any:
    """A clean process that has imported nbgrader once and forks for every submission; elsewhere a fresh one each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    worker_module = "cdlearn.classroom.grader.worker"
    context.set_forkserver_preload([worker_module, "nbgrader.apps", "nbgrader.converters.autograde"])
    return context


def _start(
    submission: Submission, made: dict, course: Path, folder: Path, seed: str, limits: Limits, jobs: int, context: Any
) -> Job:
    """Lay out a course folder of one student and start its process."""
    name = submission.assignment
    handed_in = folder / "submitted" / "student" / name
    handed_in.mkdir(parents=True)
    shutil.copy(course / "gradebook.db", folder / "gradebook.db")
    shutil.copytree(course / "source" / name, folder / "source" / name)
    job = Job(folder, uuid.uuid4().hex, notebook=restore(submission, made[name]), started=time.monotonic())
    (handed_in / f"{name}.ipynb").write_text(json.dumps(job.notebook), encoding="utf-8")
    settings = {"folder": str(folder), "id": job.id, "assignment": name, "seed": seed, "one_thread": jobs > 1}
    settings |= {"cell_timeout": limits.cell, "total": limits.total, "memory": limits.memory}
    job.process = context.Process(target=worker.run, args=(settings,), daemon=False)
    job.process.start()
    return job


def _kill(job: Job) -> None:
    """End the job's process and all it started: kernels have sessions of their own, so they are found by mark."""
    import psutil

    victims = []
    for process in psutil.process_iter():
        try:
            if process.pid == job.process.pid or process.environ().get("CDLEARN_GRADING_JOB") == job.id:
                victims += [process, *process.children(recursive=True)]
        except (psutil.Error, OSError):  # not ours, or gone
            continue
    for process in victims:
        try:
            process.kill()
        except psutil.Error:
            continue
    job.process.join(10)


def _conclude(submission: Submission, made: dict[str, Notebook], job: Job) -> tuple[list[Row], str]:
    """The rows of a submission and its feedback page."""
    release = made.get(submission.assignment)
    if submission.problem:
        rows = unreadable(submission, release)
        return rows, page(submission, rows, release, None, submission.problem)
    events = _lines(job.folder / "progress.jsonl")
    result = _json(job.folder / "result.json")
    reason = job.stopped or ("" if "grades" in result else reason_of(events, result))
    rows = rows_of(submission, release, events, result.get("grades"), reason)
    run = _json(job.folder / "autograded" / "student" / submission.assignment / f"{submission.assignment}.ipynb")
    try:
        return rows, page(submission, rows, release, run if "cells" in run else job.notebook, reason)
    except Exception:  # the student's code can write into this file
        return rows, page(submission, rows, release, job.notebook, reason)


def _lines(path: Path) -> list[dict]:
    """The complete lines of a progress file; the last may have been cut by a kill."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
