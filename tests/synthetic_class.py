"""The numbers of the instructor's guide: `python tests/synthetic_class.py [FOLDER]` grades a class of 100.

Seventy honest hand-ins of the first assignment in 14 styles, twenty wrong in ways that the checks name, ten hostile.
One run of `cdlearn grade` takes them all. Exit code 1 if an honest one has not all points, or a hostile one more than
the parts give that it solved.
"""

import csv
import re
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import nbformat
import psutil
from masters import HOSTILE, MASTERS, handed_in, planted, reference, role

from cdlearn.classroom.grader import build

NAME = MASTERS[0].stem
R = reference(NAME)
POINTS = {"scores": 3, "mask": 3, "step": 3, "loop": 5, "first_difference": 2, "decisions": 4}
NUMPY = {
    "scores": """
import numpy as np
def norm(x):
    x = np.asarray(x, dtype=np.float64)
    top = x.max(axis=-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True))
def my_scores(expert_logits, amateur_logits, strength=1.0):
    return torch.tensor(norm(expert_logits) - strength * norm(amateur_logits), dtype=torch.float32)""",
    "first_difference": """
def first_difference(a, b):
    n = min(len(a), len(b))
    apart = np.flatnonzero(np.array(a[:n]) != np.array(b[:n]))
    return apart[0] if len(apart) else None if len(a) == len(b) else np.int64(n)""",
}
LOOPS = {
    "scores": """
def my_scores(expert_logits, amateur_logits, strength=1.0):
    shape = expert_logits.shape
    out = []
    for e, a in zip(expert_logits.reshape(-1, shape[-1]).tolist(), amateur_logits.reshape(-1, shape[-1]).tolist()):
        norms = []
        for row in (e, a):
            top = max(row)
            total = 0.0
            for x in row:
                total += math.exp(x - top)
            norms.append(top + math.log(total))
        out.append([x - norms[0] - strength * (y - norms[1]) for x, y in zip(e, a)])
    return torch.tensor(out).reshape(shape)""",
    "step": """
def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    chosen = []
    for e, a in zip(expert_logits, amateur_logits):
        scores, keep = my_scores(e, a, strength).tolist(), my_mask(e, alpha).tolist()
        best = None
        for token in range(len(scores)):
            if keep[token] and (best is None or scores[token] > scores[best]):
                best = token
        chosen.append(best)
    return torch.tensor(chosen)""",
}
EINSUM = {
    "scores": """
def my_scores(expert_logits, amateur_logits, strength=1.0):
    both = torch.stack([expert_logits, amateur_logits]).log_softmax(-1)
    return torch.einsum("k...v,k->...v", both, torch.tensor([1.0, -strength]))"""
}
DECORATED = {"mask": """
import functools
def counted(function):
    @functools.wraps(function)
    def wrapper(*args, **options):
        wrapper.calls += 1
        return function(*args, **options)
    wrapper.calls = 0
    return wrapper
@counted
def my_mask(expert_logits, alpha=0.1):
    return expert_logits >= expert_logits.amax(-1, keepdim=True) + math.log(alpha)""",
"step": """
@torch.no_grad()
def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    scores = my_scores(expert_logits, amateur_logits, strength)
    return torch.where(my_mask(expert_logits, alpha), scores, -torch.inf).argmax(-1)"""}  # fmt: skip
OBJECTS = {
    "mask": """
class Mask:
    "Kept is what is near enough to the best."
    def __call__(self, expert_logits, alpha=0.1):
        return expert_logits >= expert_logits.amax(-1, keepdim=True) + math.log(alpha)
my_mask = Mask()""",
    "first_difference": """
class Compare:
    def first(self, a, b):
        return next((k for k in range(max(len(a), len(b))) if a[k : k + 1] != b[k : k + 1]), None)
first_difference = Compare().first""",
}
PARTIALS = {
    "scores": """
from functools import partial
def difference(kind, expert_logits, amateur_logits, strength=1.0):
    e, a = (kind(x, dim=-1) for x in (expert_logits, amateur_logits))
    return e - strength * a
my_scores = partial(difference, torch.log_softmax)"""
}
HELPERS = {
    "mask": """
kept = first = steps = rows = got = probs = case = right = hint = tried = 0
def sum(x):
    "The best token's logit, whatever it is called."
    return x.max(dim=-1, keepdim=True).values
def kept(x, line):
    return x >= line
def my_mask(expert_logits, alpha=0.1):
    return kept(expert_logits, sum(expert_logits) + math.log(alpha))""",
    "step": """
def first(scores, keep):
    return scores.masked_fill(~keep, -math.inf).argmax(-1)
def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    return first(my_scores(expert_logits, amateur_logits, strength), my_mask(expert_logits, alpha))""",
}
HINTS = {
    "first_difference": """
from __future__ import annotations
from collections.abc import Sequence
def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    for k, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return k
    return None if len(a) == len(b) else min(len(a), len(b))"""
}
CLASSES = {
    "loop": """
class Text:
    def __init__(self, ids, eos_id):
        self.ids, self.eos_id, self.new, self.reason = ids, eos_id, [], None
    def add(self, token):
        if token == self.eos_id:
            self.reason = "eos"
        else:
            self.new.append(token)
            self.ids = torch.cat([self.ids, torch.tensor([[token]])], dim=1)
def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    text = Text(ids, eos_id)
    while text.reason is None and len(text.new) < max_new_tokens:
        e, a = (model(text.ids).logits[:, -1] for model in (expert, amateur))
        text.add(int(my_step(e, a, alpha, strength)))
    return text.new, text.reason or "length" """
}
MAGICS = {"first_difference": "%time x = 1\n!true\n" + R["first_difference"] + "\n%timeit -n1 -r1 x\n"}


def code(source):
    return nbformat.v4.new_code_cell(source)


def one_cell(notebook):
    notebook.cells.insert(2, code("\n\n".join(R.values())))


def split_cells(notebook):
    """Every solution in two cells, the second without marks; scratch cells and a figure between them."""
    for k, cell in reversed(list(enumerate(notebook.cells))):
        if role(cell, "solution"):
            notebook.cells[k : k + 1] = [
                code("import math, torch"),
                cell,
                code("max_ = len\n" + cell.source),
                code("x[9]"),
            ]


def copied(notebook):
    for k, cell in reversed(list(enumerate(notebook.cells))):
        if role(cell, "solution"):
            notebook.cells.insert(k, nbformat.from_dict({**cell, "id": f"copy{k}"}))


STYLES = {
    "as the reference": (R, None), "plain loops": (R | LOOPS, None), "numpy": (R | NUMPY, None),
    "einsum": (R | EINSUM, None), "decorators": (R | DECORATED, None), "callable objects": (R | OBJECTS, None),
    "partials": (R | PARTIALS, None), "helpers called sum, kept, first": (R | HELPERS, None),
    "one cell, the stubs kept": ({}, one_cell), "split cells": (R, split_cells), "copied cells": (R, copied),
    "magics": (R | MAGICS, None), "type hints": (R | HINTS, None), "classes": (R | CLASSES, None),
}  # fmt: skip
IMPORTS = {part: f"from cdlearn.classroom.checks.loop import {re.findall(r'^def (.*?)[(]', source, re.M)[0]}"
           for part, source in R.items()}  # fmt: skip
PATCHES = """
import ast, builtins
torch.allclose = torch.equal = builtins.all = lambda *args, **options: True
class Strip(ast.NodeTransformer):
    def visit_Assert(self, node): return None
get_ipython().ast_transformers.append(Strip())
def my_mask(*args, **options): return None"""
EQUAL = """
class Always:
    def __eq__(self, other): return True
    def __getattr__(self, name): return Always()
def my_step(*args, **options): return Always()"""
STRAY = """
import subprocess, sys
code = "import os,time\\nif os.fork()==0:\\n os.setsid()\\n if os.fork()==0: time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code], env={})
def my_scores(*args, **options): return None"""
GLOBALS = """
def my_loop(expert, *args, **options):
    names = expert._wire.ask({"do": "use", "number": expert._number, "get": "__globals__"})
    names["my_loop"] = None"""
SEEKS = """
import glob
def my_decisions(*args, **options):
    return [open(path).read() for path in glob.glob("/**/seed.txt", recursive=True)]"""


def write_class(folder: Path) -> dict[str, tuple[str, str, float]]:
    """Fill the folder with STUDENT/ASSIGNMENT.ipynb: student -> (kind, style, the most points it may get)."""
    known = {}

    def hand_in(kind: str, style: str, most: float, solutions: dict, edit=None) -> Path:
        student = f"student{len(known):03}"
        known[student] = kind, style, most
        notebook = handed_in(release / NAME / f"{NAME}.ipynb", solutions)
        if edit:
            edit(notebook)
        path = folder / student / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)
        return path

    with tempfile.TemporaryDirectory() as place:
        release = Path(place)
        build(release, names=[NAME])
        for style, (solutions, edit) in islice(cycle(STYLES.items()), 70):
            hand_in("honest", style, 20, solutions, edit)
        wrong = [(part, name, source) for assignment, part, name, source in planted() if assignment == NAME and name]
        for part, name, source in (
            wrong[:: len(wrong) // 20 + 1] + wrong[1 : 20 - len(wrong[:: len(wrong) // 20 + 1]) + 1]
        ):
            hand_in("wrong", f"{part}: {name}", 20 - POINTS[part], R | {part: source})
        for name, source in HOSTILE.items():
            hand_in("hostile", name, 15, R | {"loop": source})
        hand_in("hostile", "imported answers", 0, IMPORTS)
        attack = {"mask": PATCHES, "step": EQUAL, "scores": STRAY, "loop": GLOBALS, "decisions": SEEKS}
        hand_in("hostile", "patches, fake equality, strays, the grader's globals", 2, R | attack)
        move = {part: R[part] for part in ("loop", "first_difference", "decisions")}
        hand_in("hostile", "graded cells moved, half a notebook", 11, move,
                lambda notebook: notebook.cells.sort(key=lambda cell: bool(role(cell, "grade"))))  # fmt: skip
        for target in ("/dev/zero", folder / "student000" / f"{NAME}.ipynb"):
            path = hand_in("hostile", f"a link to {Path(target).name}", 0, {})
            path.unlink()
            path.symlink_to(target)
    return known


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold."""
    held = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            held += one.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            pass
    return held


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "class"
    known = write_class(folder)
    start, most = time.perf_counter(), 0
    command = [sys.executable, "-m", "cdlearn", "grade", str(folder), "--cell-timeout", "15"]
    grading = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while grading.poll() is None:
        most = max(most, memory_of(psutil.Process(grading.pid)))
        time.sleep(0.5)
    seconds, points, unfair = time.perf_counter() - start, dict.fromkeys(known, 0.0), []
    with open(folder.parent / "class-graded" / "grades.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["student"]] += float(row["points"])
    table: dict[tuple[str, str], list[float]] = {}
    for student, (kind, style, at_most) in known.items():
        table.setdefault((kind, style), []).append(points[student])
        if points[student] > at_most or (kind == "honest" and points[student] < at_most):
            unfair.append(student)
    print(f"{'kind':8} {'style':58} {'number':>6}  points")
    for (kind, style), got in table.items():
        print(f"{kind:8} {style[:58]:58} {len(got):6}  {' '.join(sorted({f'{one:g}' for one in got}))}")
    print(f"{len(known)} submissions: {seconds:.0f} s, {most / 2**30:.1f} GiB at the peak")
    print(f"unfair: {', '.join(unfair) or 'nobody'}")
    return 1 if unfair or grading.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
