"""nbgrader's Execute that notes every cell's end at once: what is known is on disk when something dies."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from nbclient.exceptions import DeadKernelError
from nbclient.util import ensure_async
from nbgrader.preprocessors import Execute
from nbgrader.utils import determine_grade, is_grade
from traitlets import default

from cdlearn.classroom.grader.report import SAYS
from cdlearn.classroom.grader.submissions import marks

GRACE = 10  # seconds an interrupted kernel has to come back
SHORT = 10  # seconds for a cell without points once a cell has timed out: it often calls what hangs
SHOWN = 4000  # characters of an error that are kept

# a graded cell's hidden block puts functions of its own in the place of wrong ones, by a call of this form
STAND_INS = re.compile(r"^stand_ins\(\)\n", re.M)
TELL = f"""for _name, _one in [*globals().items()]:
    if hasattr(_one, "__qualname__") and _one.__qualname__ == "stand_ins.<locals>." + _name:
        __import__("builtins").print({SAYS!r}.format(_name))
"""


def announce(source: str) -> str:
    """A graded cell's source that says which of the student's earlier functions it has replaced by a right one."""
    return STAND_INS.sub(lambda found: found[0] + TELL, source)


def replaced(printed: str) -> list[str]:
    """The functions that a graded cell said it replaced."""
    return re.findall(rf"^{SAYS.format('([a-zA-Z_0-9]+)')}$", printed, re.M)


class RecordingExecute(Execute):
    """Notes every cell's start and end in `progress`, and gives up on a kernel that ignores an interrupt."""

    progress: Path
    most: int  # characters that one cell may show

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.slow = False  # a cell has timed out

    def note(self, **what: Any) -> None:
        with open(self.progress, "a", encoding="utf-8") as file:
            file.write(json.dumps(what | {"at": time.time()}) + "\n")

    def output(self, outs, msg, display_id, cell_index):
        """Drop what a cell shows beyond the limit."""
        size = sum(len(str(out)) for out in outs) if len(outs) < 500 else self.most
        if size + len(str(msg["content"])) > self.most and msg["msg_type"] != "error":
            return None
        return super().output(outs, msg, display_id, cell_index)

    @default("timeout_func")
    def _limits(self):
        return self.seconds_for

    def seconds_for(self, cell) -> int:
        counts = marks(cell).get("grade") or marks(cell).get("solution")
        return self.timeout if counts or not self.slow else min(self.timeout, SHORT)

    async def on_cell_start(self, cell, cell_index):
        self.note(event="start", cell=cell_index, kind=cell.cell_type)
        if is_grade(cell):
            cell.source = announce(cell.source)

    async def on_cell_executed(self, **kwargs):
        super().on_cell_executed(**kwargs)
        cell, reply = kwargs["cell"], kwargs["execute_reply"]["content"]
        note = {"event": "end", "cell": kwargs["cell_index"], "grade_id": marks(cell).get("grade_id")}
        self.note(**note | self._outcome(cell))
        if reply.get("ename") == "CellTimeoutError":
            self.slow = True
            if not await self._back():
                await ensure_async(self.km.shutdown_kernel(now=True))
                raise DeadKernelError("the kernel ignored the interrupt")

    def _outcome(self, cell) -> dict[str, Any]:
        """The error, the points and the replacements of a cell that has run."""
        error, printed = {"ename": "", "evalue": ""}, ""
        for out in cell.outputs:
            if out.output_type == "stream":
                out.name = "stdout"  # nbgrader takes a warning on stderr for a failed test
                printed += out.text
            if out.output_type == "error":
                if out.ename == "CellTimeoutError":
                    out.evalue = f"it ran longer than {self.seconds_for(cell)} seconds and was stopped"
                error = {"ename": out.ename, "evalue": out.evalue[:SHOWN]}
        if not is_grade(cell):
            return error
        points = determine_grade(cell, self.log)[0]
        points = 0.0 if error["ename"] and points is not None else points
        return error | {"points": points, "replaced": replaced(printed)}

    async def _back(self) -> bool:
        """Whether the interrupted cell's own reply comes."""
        try:
            await ensure_async(self.kc.shell_channel.get_msg(timeout=GRACE))
        except Exception:  # queue.Empty
            return False
        return True
