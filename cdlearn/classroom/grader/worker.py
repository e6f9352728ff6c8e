"""One submission, graded in a process of its own: the student's cells run elsewhere, the master's tests run here.

What a part earned is sent through a pipe as soon as it is known; the student's process holds no end of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdlearn.classroom.checks.result import NotYet
from cdlearn.classroom.grader.build import SETUP
from cdlearn.classroom.grader.cells import defined, unwritten
from cdlearn.classroom.grader.sandbox import adopt
from cdlearn.classroom.grader.session import Proxy, Session, Stopped
from cdlearn.classroom.grader.submissions import Notebook, marks, plain_source

SHORT = 10  # seconds for a cell that defines no answer, once one has timed out: it often calls what hangs


def run(job: dict[str, Any], results: Any) -> None:
    """Grade `job["notebook"]` by `job["master"]`; sends {"cell": ...} and {"part": ...} and closes the pipe."""
    adopt()
    os.environ["CDLEARN_GRADING_SEED"] = job["seed"]
    options = {"memory": job["memory"], "one_thread": job["one_thread"]}
    options |= {"seconds": job["cell_timeout"], "total": job["total"]}
    for told in graded(job["notebook"], job["master"], Path(job["folder"]), **options):
        results.send(told)
    results.close()


def graded(
    notebook: Notebook, master: Notebook, folder: Path, *, seconds: float = 60, total: float = 600, **options: Any
) -> Iterator[dict[str, Any]]:
    """What happened, one after the other: {"cell": number, "error": ...} of the student's, {"part": name, ...} graded.

    A part is graded where its graded cell is, and if it is not right there, again after the last cell. The tests
    are the master's, whatever the notebook holds. Answers may import cdlearn where the master's own first cell
    does. seconds: for a cell, and for the test of a part. total: for everything; {"reason": ...} says if it was less.
    """
    tests = {marks(cell)["grade_id"]: "".join(cell["source"]) for cell in master["cells"] if _is_code(cell, "grade")}
    given = {plain_source(cell) for cell in master["cells"] if cell["cell_type"] == "code" and not marks(cell)}
    answers = {marks(c)["grade_id"]: defined(c["source"]) for c in master["cells"] if _is_code(c, "solution")}
    asked = re.findall(r"\bcheck_\w+\(\s*(\w+)", " ".join(tests.values()))  # also what no marked cell defines
    functions = list(dict.fromkeys([*(name for names in answers.values() for name in names), *asked]))
    code = ["".join(cell["source"]) for cell in master["cells"] if cell["cell_type"] == "code"]
    code = [source for source in code if not source.startswith(SETUP[:40])]
    first = next((source for source in code if " as checks" in source), code[0])
    real = "\nimport cdlearn\n" in f"\n{first}\n"
    until = time.monotonic() + total
    with Session(folder, real=real, **options) as session, session.within(total):
        grader = _Grader(session, first, functions, seconds)
        open_parts, slow = dict(tests), False
        for number, cell in enumerate(notebook["cells"]):
            if time.monotonic() > until:
                break
            name = marks(cell).get("grade_id")
            if marks(cell).get("grade"):
                if name in open_parts and (found := grader.part(name, tests[name]))["points_earned"]:
                    del open_parts[name]
                    yield found
                continue
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.startswith(SETUP[:40]):
                continue
            most = min(SHORT, seconds) if slow and not defined(source) else seconds
            try:
                if unwritten(source) and all(session.there(defined(source)).get(name) for name in defined(source)):
                    continue  # the stub comes after what was written elsewhere
                error = session.run(source, most, all_of_it=plain_source(cell) not in given)
            except Stopped as stopped:
                error = {"kind": stopped.status, "text": str(stopped)}
                slow = slow or stopped.status == "timeout"
            if error:
                grader.errors |= dict.fromkeys([*defined(source), *answers.get(name, ())], error)
                yield {"cell": number, "error": error}
        for name in open_parts:
            if time.monotonic() < until:
                yield grader.part(name, tests[name])
        if time.monotonic() > until:
            yield {"reason": f"it ran longer than {total:g} seconds in all and was stopped"}


class _Grader:
    """The tests of one assignment on the functions that a session holds."""

    def __init__(self, session: Session, first: str, functions: list[str], seconds: float) -> None:
        self.session, self.seconds, self.functions = session, seconds, functions
        self.errors: dict[str, dict[str, str]] = {}  # function -> the error of the cell that should define it
        self.base: dict[str, Any] = {"__name__": "__graded__"}
        exec(first, self.base)
        self.proxies = {name: Proxy(session, name, functions) for name in functions}
        if pair := self.base.get("pair"):
            session.wire.named = {"pair": pair, "pair.expert": pair.expert, "pair.amateur": pair.amateur}

    def part(self, name: str, test: str) -> dict[str, Any]:
        """Run a part's test: its status, hint, seconds, a failed check's fields, the functions that were replaced."""
        began, told = time.monotonic(), {"part": name, "failed": {}, "replaced": [], "points_earned": False, "hint": ""}
        names = dict(self.base)
        try:
            self.session.begin()
            there = self.session.there(self.functions)
            for function, proxy in self.proxies.items():
                proxy.names = proxy.__globals__ = names
                if function in there:
                    names[function] = proxy if there[function] else None
            silent = contextlib.redirect_stdout(io.StringIO())
            with self.session.within(self.seconds), silent:
                exec(compile(test, "<graded cell>", "exec", optimize=0), names)  # also under PYTHONOPTIMIZE
            told |= {"status": "ok", "points_earned": True}
        except Stopped as stopped:
            told |= {"status": stopped.status, "hint": str(stopped)}
        except Exception as error:  # the tests of a wrong function may fail in any way
            told |= self._said(error)
        right = [other for other in self.functions if other in names and callable(names[other])]
        told["replaced"] = [other for other in right if names[other] is not self.proxies[other]]
        return told | {"seconds": round(time.monotonic() - began, 1)}

    def _said(self, error: Exception) -> dict[str, Any]:
        """The status and the hint of an error that a test raised."""
        if isinstance(error, NotYet):
            failed = {name: str(value) for name, value in asdict(error.args[0]).items()}
            if "not written yet" in failed["got"]:
                return {"status": "not written", "hint": "not written yet", "failed": failed}
            return {"status": "wrong", "failed": failed}
        if isinstance(error, NameError) and error.name in self.functions:
            cell = self.errors.get(error.name)
            if cell is None:
                return {"status": "not written", "hint": f"there is no {error.name}"}
            if cell["kind"] in ("timeout", "memory", "died"):
                return {"status": cell["kind"], "hint": cell["text"]}
            return {"status": "wrong", "hint": f"{cell['kind']}: {cell['text']}"}
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return {"status": "wrong", "hint": kind + " ".join(str(error).split())}


def _is_code(cell: dict, role: str) -> bool:
    return bool(marks(cell).get(role)) and cell["cell_type"] == "code"
