"""One submission, graded by nbgrader in a process and a course folder of its own. What is known is on disk at once.

The kernel runs the student's code: under a wall limit per cell, a memory limit, and a limit on what it prints. After
every graded cell its result is written to `progress.jsonl`, so that a death later on does not take it away.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cdlearn.classroom.grader.build import course_api, use_own_programs

PRINTED = 100_000  # characters of output of one cell
FILES = 1 << 30  # bytes a student's code may write into one file
_PRIVATE = ("TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "API_KEY", "ACCESS_KEY")

# Runs in the kernel before the first cell: what a cell prints after PRINTED characters goes nowhere. Cut here, a cell
# that prints without end costs its own time and nobody's memory.
STARTUP = """
def _cut_output(limit):
    import contextlib, sys
    from IPython import get_ipython
    get_ipython()._tee = lambda channel: contextlib.nullcontext()  # IPython 9 keeps a copy of all that is printed
    used = {}
    def cut(stream, name):
        write = stream.write
        def writes(text):
            before = used.get(name, 0)
            used[name] = before + len(text)
            if before + len(text) <= limit:
                return write(text)
            if before <= limit:
                write(text[: limit - before] + "\\n... cut by the grader: one cell printed too much ...\\n")
            return len(text)
        stream.write = writes
    cut(sys.stdout, "out")
    cut(sys.stderr, "err")
    get_ipython().events.register("pre_run_cell", lambda info: used.clear())
_cut_output({limit})
del _cut_output
try:  # the installation's own import is not on the clock of the first cell
    import cdlearn.classroom.checks
    del cdlearn
except ImportError:
    pass
"""


def run(job: dict[str, Any]) -> None:
    """Grade the submission in `job["folder"]`; leaves `progress.jsonl` and, if the end was reached, `result.json`."""
    if hasattr(os, "setsid"):
        os.setsid()
        signal.alarm(job["total"] + 60)  # should the grader itself be killed, this ends too, and its kernel with it
    folder = Path(job["folder"])
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _prepare_environment(job, folder)
    _limit(job["memory"])
    result: dict[str, Any] = {}
    try:
        api = course_api(folder, **_options(job, folder))
        graded = api.autograde(job["assignment"], "student")
        if graded["success"]:
            result["grades"] = _grades(api, job["assignment"])
        else:
            result["error"] = f"{graded.get('log', '')}\n{graded.get('error', '')}".strip()[-4000:]
    except MemoryError:
        result["error"] = "MemoryError in the grader"
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _prepare_environment(job: dict[str, Any], folder: Path) -> None:
    use_own_programs()
    for name in [name for name in os.environ if any(word in name.upper() for word in _PRIVATE)]:
        del os.environ[name]
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-output.py").write_text(STARTUP.replace("{limit}", str(PRINTED)), encoding="utf-8")
    os.environ |= {
        "CDLEARN_GRADING_SEED": job["seed"],
        "CDLEARN_GRADING_JOB": job["id"],
        "IPYTHONDIR": str(folder / "ipython"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if job["one_thread"]:
        os.environ["OMP_NUM_THREADS"] = "1"


def _limit(memory: float) -> None:
    """Limit address space and file sizes of this process and all it starts, where the system can (POSIX)."""
    try:
        import resource
    except ImportError:
        return
    wanted = {"RLIMIT_FSIZE": FILES, "RLIMIT_CORE": 0} | ({"RLIMIT_AS": int(memory * 2**30)} if memory else {})
    for name, limit in wanted.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(getattr(resource, name), (limit, hard))
        except (ValueError, OSError):  # macOS refuses RLIMIT_AS
            print(f"no {name} on this system", file=sys.stderr)


def _options(job: dict[str, Any], folder: Path) -> dict[str, dict]:
    from nbgrader.converters.autograde import Autograde

    from cdlearn.classroom.grader.recording import RecordingExecute

    steps = Autograde.autograde_preprocessors.default_args[0]

    class Recording(RecordingExecute):
        progress, most = folder / "progress.jsonl", 10 * PRINTED

    return {
        "Autograde": {"autograde_preprocessors": [Recording if s.__name__ == "Execute" else s for s in steps]},
        "Execute": {"timeout": job["cell_timeout"], "startup_timeout": 180, "raise_on_iopub_timeout": False},
        "LimitOutput": {"max_lines": 200, "max_traceback": 60},
    }


def _grades(api: Any, assignment: str) -> dict[str, float | None]:
    """The gradebook's points of every part; None where a person has to look."""
    with api.gradebook as book:
        submission = book.find_submission(assignment, "student")
        grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
        return {grade.name: None if grade.auto_score is None else float(grade.auto_score) for grade in grades}
