"""One submission, graded by nbgrader in a process and a course folder of its own. What is known is on disk at once.

The kernel runs the student's code: under a wall limit per cell, a memory limit, and a limit on what it prints. After
every cell its end is written to `progress.jsonl`, so that a death later on does not take a result away.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from nbclient.exceptions import DeadKernelError
from nbclient.util import ensure_async
from nbgrader.converters.autograde import Autograde
from nbgrader.preprocessors import Execute
from nbgrader.utils import determine_grade, is_grade
from traitlets import Unicode, default

from cdlearn.classroom.grader.build import course_api
from cdlearn.classroom.grader.results import published
from cdlearn.classroom.grader.submissions import marks

GRACE = 10  # seconds an interrupted kernel has to come back
SHORT = 10  # seconds for a cell without points once a cell has timed out: it often calls what hangs
PRINTED = 100_000  # characters of output of one cell
SHOWN = 10 * PRINTED  # what a cell may show in all, pictures too
ERROR = 4000  # characters of an error that are kept
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
    def cut(stream):
        write = stream.write
        def writes(text):
            before = used.get(write, 0)
            used[write] = before + len(text)
            if before + len(text) <= limit:
                return write(text)
            if before <= limit:
                write(text[: limit - before] + "\\n... cut by the grader: one cell printed too much ...\\n")
            return len(text)
        stream.write = writes
    cut(sys.stdout)
    cut(sys.stderr)
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
    """Grade the submission in `job["folder"]`; `progress.jsonl` there ends with the grades or the error."""
    if hasattr(os, "setsid"):
        os.setsid()
        signal.alarm(job["total"] + 60)  # should the grader itself be killed, this ends too, and its kernel with it
    folder, name = Path(job["folder"]), job["assignment"]
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _prepare_environment(job, folder)
    _limit(job["memory"])
    steps = [Recording if step is Execute else step for step in Autograde.autograde_preprocessors.default_args[0]]
    options: dict[str, dict] = {
        "Autograde": {"autograde_preprocessors": steps},
        "Recording": {"progress": str(folder / "progress.jsonl")},
        "Execute": {"timeout": job["cell_timeout"], "startup_timeout": 180, "raise_on_iopub_timeout": False},
        "LimitOutput": {"max_lines": 200, "max_traceback": 60},
    }
    try:
        api = course_api(folder, **options)
        graded = api.autograde(name, "student")
        result: dict[str, Any] = {"error": f"{graded.get('log', '')}\n{graded.get('error', '')}".strip()[-4000:]}
        if graded["success"]:
            with api.gradebook as book:
                (notebook,) = book.find_submission(name, "student").notebooks
                result = {"grades": {grade.name: grade.auto_score for grade in notebook.grades}}
    except MemoryError:
        result = {"error": "MemoryError in the grader"}
    note(folder / "progress.jsonl", event="result", **result)


def note(progress: str | Path, **what: Any) -> None:
    """Write one line of the record."""
    with open(progress, "a", encoding="utf-8") as file:
        file.write(json.dumps(what | {"at": time.time()}) + "\n")


def _prepare_environment(job: dict[str, Any], folder: Path) -> None:
    for name in [name for name in os.environ if any(word in name.upper() for word in _PRIVATE)]:
        del os.environ[name]
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-output.py").write_text(STARTUP.replace("{limit}", str(PRINTED)), encoding="utf-8")
    os.environ |= {"CDLEARN_GRADING_SEED": job["seed"], "CDLEARN_GRADING_JOB": job["id"]}
    os.environ |= {"IPYTHONDIR": str(folder / "ipython"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"} | ({"OMP_NUM_THREADS": "1"} if job["one_thread"] else {})


def _limit(memory: float) -> None:
    """Limit address space and file sizes of this process and all it starts, where the system can (POSIX)."""
    try:
        import resource
    except ImportError:
        return
    wanted = {resource.RLIMIT_FSIZE: FILES, resource.RLIMIT_CORE: 0}
    for kind, limit in (wanted | ({resource.RLIMIT_AS: int(memory * 2**30)} if memory else {})).items():
        hard = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class Recording(Execute):
    """nbgrader's Execute that notes every cell's start and end, and gives up on a kernel that ignores an interrupt."""

    progress = Unicode(help="the file of the notes").tag(config=True)
    slow = False  # a cell has timed out

    def output(self, outs, msg, display_id, cell_index):
        """Drop what a cell shows beyond the limit."""
        size = sum(len(str(out)) for out in outs) if len(outs) < 500 else SHOWN
        if size + len(str(msg["content"])) > SHOWN and msg["msg_type"] != "error":
            return None
        return super().output(outs, msg, display_id, cell_index)

    @default("timeout_func")
    def _limits(self):
        return self.seconds_for

    def seconds_for(self, cell) -> int:
        counts = marks(cell).get("grade") or marks(cell).get("solution")
        return self.timeout if counts or not self.slow else min(self.timeout, SHORT)

    async def on_cell_start(self, cell, cell_index):
        note(self.progress, event="start", cell=cell_index, kind=cell.cell_type)

    async def on_cell_executed(self, **kwargs):
        super().on_cell_executed(**kwargs)
        cell, reply = kwargs["cell"], kwargs["execute_reply"]["content"]
        outcome = {"cell": kwargs["cell_index"], "grade_id": marks(cell).get("grade_id")} | self._outcome(cell)
        note(self.progress, event="end", **outcome)
        if reply.get("ename") == "CellTimeoutError":
            self.slow = True
            try:  # the interrupted cell's own reply
                await ensure_async(self.kc.shell_channel.get_msg(timeout=GRACE))
            except Exception as error:  # queue.Empty
                await ensure_async(self.km.shutdown_kernel(now=True))
                raise DeadKernelError("the kernel ignored the interrupt") from error

    def _outcome(self, cell) -> dict[str, Any]:
        """The error of a cell that has run, what its check published, and the points of a graded one."""
        failed, replaced = published(cell.outputs)
        end = {"ename": "", "evalue": "", "failed": failed, "replaced": replaced}
        for out in cell.outputs:
            if out.output_type == "stream":
                out.name = "stdout"  # nbgrader takes a warning on stderr for a failed test
            if out.output_type == "error":
                if out.ename == "CellTimeoutError":
                    out.evalue = f"it ran longer than {self.seconds_for(cell)} seconds and was stopped"
                end |= {"ename": out.ename, "evalue": out.evalue[:ERROR]}
        if is_grade(cell):
            points = determine_grade(cell, self.log)[0]
            end["points"] = 0.0 if end["ename"] and points is not None else points
        return end
