"""Grade a folder of submissions: one process each, as many at once as there are cores, none able to hurt the others."""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdlearn.classroom import worker
from cdlearn.classroom.build import find_masters, pick, releases
from cdlearn.classroom.report import Row, hint_of, own_feedback, status_of, write_csv
from cdlearn.classroom.submissions import Notebook, Submission, by_hand, find_submissions, points_of, restore, slug


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
) -> list[Row]:
    """Grade every submission below `folder`; writes `out/grades.csv` and `out/feedback/*.html`, returns the rows.

    seed: what the hidden tests draw their instances from (None: a fresh secret). jobs: processes at once (None: one per
    core). `tell` gets one line per finished submission. Raises ValueError if there is nothing to grade.
    """
    masters = pick(find_masters(source), [assignment] if assignment else None)
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the folder that holds the submissions.")
    limits = Limits(cell_timeout, timeout, memory)
    (out / "feedback").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cdlearn-grade-", ignore_cleanup_errors=True) as place:
        course = Path(place) / "course"
        course.mkdir()
        made = releases(masters, course)
        found = list(find_submissions(folder, made))
        if assignment:
            found = [one for one in found if one.assignment in (assignment, None)]
        if not found:
            raise ValueError(f"no notebook below {folder}: expected STUDENT/ASSIGNMENT.ipynb or the like.")
        seed = secrets.token_hex(16) if seed is None else str(seed)
        rows: dict[int, list[Row]] = {}
        names = _file_names(found)
        for index, job in _run_all(found, made, course, Path(place), seed, limits, jobs or _cores()):
            rows[index], page = _conclude(found[index], made, job)
            (out / "feedback" / names[index]).write_text(page, encoding="utf-8")
            tell(_line(found[index], rows[index]))
    ordered = [row for index in sorted(rows, key=lambda k: (found[k].student, found[k].path)) for row in rows[index]]
    write_csv(ordered, out / "grades.csv")
    (out / "seed.txt").write_text(seed + "\n", encoding="utf-8")
    return ordered


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file_names(found: list[Submission]) -> list[str]:
    """One HTML name per submission, readable and never twice the same."""
    names: list[str] = []
    for one in found:
        name = base = f"{slug(one.student)}_{one.assignment or 'unknown'}"
        number = 1
        while f"{name}.html" in names:
            number += 1
            name = f"{base}_{number}"
        names.append(f"{name}.html")
    return names


@dataclass
class Job:
    """A submission on its way: its folder, its process, and why it was stopped."""

    folder: Path | None = None
    id: str = ""
    process: Any = None
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
    context.set_forkserver_preload(["cdlearn.classroom.worker", "nbgrader.apps", "nbgrader.converters.autograde"])
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
    notebook = restore(submission, made[name])
    (handed_in / f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    job = Job(folder, uuid.uuid4().hex, started=time.monotonic())
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
    """The rows of a submission and its feedback page: nbgrader's where it came to its end, else ours."""
    if submission.problem:
        parts = points_of(made[submission.assignment]) if submission.assignment in made else {"": 0.0}
        name = submission.assignment or "unknown"
        rows = [Row(submission.student, name, p, 0.0, most, 0.0, "unreadable", submission.problem)
                for p, most in parts.items()]  # fmt: skip
        return rows, own_feedback(submission, rows, submission.problem)
    events = _lines(job.folder / "progress.jsonl")
    result = _json(job.folder / "result.json")
    reason = job.stopped or ("" if "grades" in result else _reason(events, result))
    rows = _rows(submission, made[submission.assignment], events, result.get("grades"), reason)
    page = job.folder / "feedback" / "student" / submission.assignment / f"{submission.assignment}.html"
    if not reason and page.exists():
        return rows, page.read_text(encoding="utf-8")
    return rows, own_feedback(submission, rows, reason or "nbgrader wrote no feedback; the points stand.")


def _rows(submission: Submission, release: Notebook, events: list, grades: dict | None, reason: str) -> list[Row]:
    """One row per part: what the gradebook and the record made while it ran agree on, else the smaller."""
    parts, in_words = points_of(release), by_hand(release)
    ends = {event["grade_id"]: event for event in events if event["event"] == "end" and event["grade_id"] in parts}
    errors = _errors_before(events, set(parts))
    rows, before, died = [], events[0]["at"] if events else 0.0, False
    for part, most in parts.items():
        end = ends.get(part)
        if part in in_words:
            rows.append(Row(submission.student, submission.assignment, part, None, most, 0.0, "by hand", ""))
            continue
        if end is None:
            status = ("stopped" if "stopped" in reason else "died") if not died else "not run"
            rows.append(Row(submission.student, submission.assignment, part, 0.0, most, 0.0, status, reason))
            died = True
            continue
        points = end["points"]
        if grades is not None and points is not None:
            points = min(points, grades.get(part) or 0.0)
        told = errors.get(part, end) if end["ename"] == "NameError" else end
        hint = hint_of(told["ename"], told["evalue"]) if told["ename"] else ""
        if part in submission.restored:
            hint = f"the graded cell was missing and was put back. {hint}".strip()
        status = status_of(told["ename"], told["evalue"], points, most)
        seconds = round(end["at"] - before, 1)
        rows.append(Row(submission.student, submission.assignment, part, points, most, seconds, status, hint))
        before = end["at"]
    return rows


def _errors_before(events: list[dict], parts: set[str]) -> dict[str, dict]:
    """For every part, the first error since the part before: why a name is missing in its graded cell."""
    found, first = {}, None
    for event in events:
        if event["event"] != "end":
            continue
        if event["grade_id"] in parts:
            if first:
                found[event["grade_id"]] = first
            first = None
        elif event["ename"] and first is None:
            first = event
    return found


def _reason(events: list[dict], result: dict) -> str:
    """Why a grading did not come to its end, in words for the student."""
    started = [event["cell"] + 1 for event in events if event["event"] == "start" and event["kind"] == "code"]
    where = f" while cell {started[-1]} ran" if started else " before the first cell"
    error = result.get("error", "the grading process itself was killed")
    if "ignored the interrupt" in error:
        return f"the kernel did not come back from a timeout and was stopped{where}"
    if "DeadKernelError" in error or "Kernel died" in error:
        return f"the kernel died{where}: a crash, an exit, or more memory than allowed"
    return f"grading ended{where}: {' '.join(error.split())[-200:]}"


def _line(submission: Submission, rows: list[Row]) -> str:
    points, most = sum(row.points or 0 for row in rows), sum(row.max for row in rows)
    bad = next((row for row in rows if row.status not in ("ok", "wrong", "not written", "partly", "by hand")), None)
    return f"{submission.student}: {points:g} / {most:g}" + (f"  ({bad.hint})" if bad else "")


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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
