"""From the record of one submission's run to its rows: points, seconds, status, hint, part by part."""

from __future__ import annotations

from functools import partial
from typing import Any

from cdlearn.classroom.grader.report import SAYS, Row, hint_of, status_of
from cdlearn.classroom.grader.submissions import Notebook, Submission, by_hand, points_of, solutions_of

Event = dict[str, Any]


def unreadable(submission: Submission, release: Notebook | None) -> list[Row]:
    """The rows of a file that cannot be graded at all."""
    parts = points_of(release) if release else {"": 0.0}
    name = submission.assignment or "unknown"
    return [
        Row(submission.student, name, part, 0.0, most, 0.0, "unreadable", submission.problem, submission.file)
        for part, most in parts.items()
    ]


def rows_of(
    submission: Submission, release: Notebook, events: list[Event], grades: dict | None, reason: str
) -> list[Row]:
    """One row per part: what the gradebook and the record made while it ran agree on, else the smaller.

    events: the lines of the record. grades: the gradebook's points, None if the end was not reached; then `reason`
    says why.
    """
    in_words = by_hand(release)
    runs = _runs(events, solutions_of(release))
    rows, died = [], False
    for part, most in points_of(release).items():
        row = partial(Row, submission.student, submission.assignment, part, max=most, file=submission.file)
        if part in in_words:
            rows.append(row(None, seconds=0.0, status="by hand", hint=""))
        elif part in runs:
            rows.append(_graded(row, part, runs[part], grades, submission, release))
        else:
            status = ("stopped" if "stopped" in reason else "died") if not died else "not run"
            rows.append(row(0.0, seconds=0.0, status=status, hint=reason))
            died = True
    return rows


def _graded(row: partial, part: str, run: list[Event], grades: dict | None, submission: Submission, release) -> Row:
    """The row of a part whose graded cell ran. run: the ends of its cells, the graded one last."""
    end, most = run[-1], row.keywords["max"]
    points = end["points"]
    if grades is not None and points is not None:
        points = min(points, grades.get(part) or 0.0)
    told = end
    if end["ename"] == "NameError":  # why the name is missing
        told = next((event for event in run if event["ename"]), end)
    hints = [hint_of(told["ename"], told["evalue"])] if told["ename"] else []
    status = status_of(told["ename"], told["evalue"], points, most)
    if set(solutions_of(release)[part]) & set(submission.restored):
        hints = ["the solution cell was missing"] if status == "not written" else hints
    if part in submission.restored:
        hints.append("the graded cell was missing and was put back")
    if end.get("replaced") and status != "not written":
        hints.append(SAYS.format(", ".join(end["replaced"])))
    seconds = round(sum(event["seconds"] for event in run), 1)
    return row(points, seconds=seconds, status=status, hint="; ".join(hints))


def _runs(events: list[Event], solutions: dict[str, list[str]]) -> dict[str, list[Event]]:
    """For every part that was graded, the ends of its own cells: from its first solution to its graded cell."""
    ends, started = [], {}
    for event in events:
        if event["event"] == "start":
            started[event["cell"]] = event["at"]
        else:
            ends.append(event | {"seconds": event["at"] - started.get(event["cell"], event["at"])})
    at = {event["grade_id"]: k for k, event in enumerate(ends) if event["grade_id"]}
    runs = {}
    for part, names in solutions.items():
        if part in at:
            first = min([at[name] for name in names if name in at and at[name] < at[part]], default=at[part])
            runs[part] = ends[first : at[part] + 1]
    return runs


def reason_of(events: list[Event], result: dict) -> str:
    """Why a grading did not come to its end, in words for the student."""
    started = [event["cell"] + 1 for event in events if event["event"] == "start" and event["kind"] == "code"]
    where = f" while cell {started[-1]} ran" if started else " before the first cell"
    error = result.get("error", "the grading process itself was killed")
    if "ignored the interrupt" in error:
        return f"the kernel did not come back from a timeout and was stopped{where}"
    if "DeadKernelError" in error or "Kernel died" in error:
        return f"the kernel died{where}: a crash, an exit, or more memory than allowed"
    return f"grading ended{where}: {' '.join(error.split())[-200:]}"
