"""The assignments' masters, read for the tests: solutions out, others in, cells run in one process."""

import ast
import importlib
import linecache
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from wrong_answers import WRONG

from cdlearn.classroom.checks.core import Part
from cdlearn.classroom.grader.sandbox import unprotected

ASSIGNMENTS = Path(__file__).parent.parent / "notebooks" / "assignments"
MASTERS = sorted((ASSIGNMENTS / "source").glob("*/*.ipynb"))
SANDBOX = not unprotected()
needs_sandbox = pytest.mark.skipif(
    not SANDBOX and os.environ.get("CDLEARN_REQUIRE_SANDBOX") != "1",
    reason="no sandbox on this machine (apt-get install bubblewrap); CDLEARN_REQUIRE_SANDBOX=1 makes this a failure",
)


def checked(name):
    """The parts of an assignment that its checks define: grade_id of the solution -> Part."""
    notebook = master(name)
    (module,) = re.findall(r"^from cdlearn.classroom.checks import (\w+) as checks", notebook.cells[1].source, re.M)
    module = importlib.import_module(f"cdlearn.classroom.checks.{module}")
    known = {part.name: part for part in vars(module).values() if isinstance(part, Part)}
    functions = {grade_id: function_of(solution.source) for grade_id, _, solution, _, _ in parts(notebook)}
    return {grade_id: known[function] for grade_id, function in functions.items() if function in known}


def function_of(source):
    return re.findall(r"^def (\w+)\(", source, re.M)[-1]


def planted():
    """Every planted mistake, from the checks' own tables and written by hand: (assignment, grade_id, name, source)."""
    for path in MASTERS:
        for grade_id, part in checked(path.stem).items():
            for name, old, new, _ in part.mistakes:
                yield path.stem, grade_id, name, part.source_of(old, new)
    for assignment, grade_id, name, *cell in WRONG:
        source = cell[0] if len(cell) == 1 else checked(assignment)[grade_id].source_of(*cell)
        yield assignment, grade_id, name, source


def master(name):
    return nbformat.read(ASSIGNMENTS / "source" / name / f"{name}.ipynb", as_version=4)


def hidden_lines(name, kind="(?:SOLUTION|HIDDEN TESTS)"):
    """The lines of a master that no student may get, as far as they are distinctive."""
    for cell in master(name).cells:
        for block in re.findall(rf"### BEGIN {kind}\n(.*?)### END", cell.source, re.S):
            yield from (line.strip() for line in block.splitlines() if len(line.strip()) > 40)


def role(cell, kind):
    """The grade_id of a cell that has this role ("solution" or "grade"), else None."""
    marks = cell.metadata.get("nbgrader", {})
    return marks.get("grade_id") if marks.get(kind) else None


def with_solution(notebook, grade_id, source):
    """The same notebook with one solution cell written anew."""
    (cell,) = [cell for cell in notebook.cells if role(cell, "solution") == grade_id]
    cell.source = source.strip()
    return notebook


@dataclass
class Session:
    """Cells of one notebook run one after the other, as a kernel would, with sources that `inspect` finds."""

    names: dict = field(default_factory=lambda: {"__name__": "__main__"})
    count: int = 0

    def run(self, source):
        """Run a cell; returns the value of its last line if that is an expression."""
        self.count += 1
        file = f"<cell {id(self)} {self.count}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, file, "exec"), self.names)
        return eval(compile(ast.Expression(last.value), file, "eval"), self.names) if last else None


def parts(notebook):
    """For every part: (solution's grade_id, the code cells before it that it needs, solution, check, graded cell)."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    at = [k for k, cell in enumerate(code) if role(cell, "solution")]
    for k in at:
        earlier = [cell for cell in code[:k] if cell is code[0] or role(cell, "solution")]
        graded = next(cell for cell in code[k:] if role(cell, "grade"))
        yield role(code[k], "solution"), earlier, code[k], code[k + 1], graded


def handed_in(release, solutions, *, drop=()):
    """A student's notebook: the release with solution cells filled in, and the cells with these grade_ids deleted."""
    notebook = nbformat.read(release, as_version=4)
    for cell in notebook.cells:
        if role(cell, "solution") in solutions:
            cell.source = solutions[role(cell, "solution")].strip()
    notebook.cells = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") not in drop]
    return notebook


def reference(name):
    """The solutions of a master: grade_id -> source."""
    return {role(cell, "solution"): cell.source for cell in master(name).cells if role(cell, "solution")}


HOSTILE = {
    "hangs": "while True:\n    pass",
    "ignores-interrupts": """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "kills-the-kernel": "import os\n\nos._exit(3)",
    "eats-memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(200_000_000))",
    "prints-without-end": "while True:\n    print('megabytes ' * 1000)",
}
