"""The classroom: what students get holds no answer, and what they hand in is graded whatever it does."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import psutil
import pytest

pytest.importorskip("nbgrader")
from masters import MASTERS, handed_in, hidden_lines, master, needs_sandbox, planted, reference, role

import cdlearn
from cdlearn.classroom.grader import build, find_masters
from cdlearn.classroom.grader.build import SETUP, course_api
from cdlearn.classroom.grader.grade import grade
from cdlearn.classroom.grader.page import page
from cdlearn.classroom.grader.results import Gradebook, Row, hint_of, rows_of, summary
from cdlearn.classroom.grader.submissions import LARGEST, Submission, choose, doubts, find_submissions, parts_of, slug
from cdlearn.cli import classroom as commands
from cdlearn.cli.main import main

FIRST, THIRD = "01_loop_and_score", "03_mask_and_temperature"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    build(out, install="cdlearn @ https://example.org/cdlearn.whl")
    return out


def notebook_of(release, name):
    return nbformat.read(release / name / f"{name}.ipynb", as_version=4)


def releases_of(release, *names):
    return {name: json.loads(json.dumps(notebook_of(release, name))) for name in names}


# ---- the release


def test_every_master_has_a_release_and_a_zip(release):
    assert [path.stem for path in MASTERS] == sorted(find_masters())
    for path in MASTERS:
        names = zipfile.ZipFile(release / f"{path.stem}.zip").namelist()
        assert f"{path.stem}/{path.stem}.ipynb" in names


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_the_release_holds_no_solution_no_hidden_test_and_no_output(release, path):
    text = "\n".join(cell.source for cell in notebook_of(release, path.stem).cells)
    secrets = list(hidden_lines(path.stem))
    whole = "\n".join(cell.source for cell in master(path.stem).cells)
    shown = re.sub(r"### BEGIN (SOLUTION|HIDDEN TESTS)\n.*?### END", "", whole, flags=re.S)
    assert len(secrets) > 10
    for line in secrets:
        assert line not in text or line in shown, line  # a signature is in both
    assert "HIDDEN TESTS" not in text and "BEGIN SOLUTION" not in text
    cells = notebook_of(release, path.stem).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert "../" not in text


def test_no_module_of_the_package_holds_a_hidden_test():
    text = "\n".join(file.read_text(encoding="utf-8") for file in Path(cdlearn.__file__).parent.rglob("*.py"))
    for path in MASTERS:
        assert not [line for line in hidden_lines(path.stem, "HIDDEN TESTS") if line in text]


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_release_starts_with_the_setup_cell_and_keeps_its_marks(release, path):
    notebook = notebook_of(release, path.stem)
    assert 'pip install -q "cdlearn @ https://example.org/cdlearn.whl"' in notebook.cells[1].source
    marks = [c.metadata["nbgrader"]["grade_id"] for c in notebook.cells if "nbgrader" in c.metadata]
    wanted = [c.metadata["nbgrader"]["grade_id"] for c in master(path.stem).cells if "nbgrader" in c.metadata]
    assert marks == wanted
    nbformat.validate(notebook)


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_master_states_points_that_its_cells_have(path):
    notebook = master(path.stem)
    points = sum(cell.metadata["nbgrader"]["points"] for cell in notebook.cells if role(cell, "grade"))
    assert f"{points} points" in notebook.cells[0].source and re.search("minutes|hours", notebook.cells[0].source)


# ---- what comes in


def write(notebook, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def test_submissions_are_found_in_any_layout_and_recognised_by_their_cells(release, tmp_path):
    releases = {FIRST: json.loads((release / FIRST / f"{FIRST}.ipynb").read_text(encoding="utf-8"))}
    blank = notebook_of(release, FIRST)
    write(blank, tmp_path / "ada" / FIRST / f"{FIRST}.ipynb")
    write(blank, tmp_path / "ben" / "final (2).ipynb")
    write(blank, tmp_path / f"cleo_{FIRST}.ipynb")
    write(blank, tmp_path / "dan" / ".ipynb_checkpoints" / f"{FIRST}-checkpoint.ipynb")
    write(nbformat.v4.new_notebook(), tmp_path / "eve" / "other.ipynb")
    (tmp_path / f"fay_{FIRST}.ipynb").write_text("{not json", encoding="utf-8")
    found = {one.student: one for one in find_submissions(tmp_path, releases)}
    assert {name: one.assignment for name, one in found.items()} == {
        "ada": FIRST, "ben": FIRST, "cleo": FIRST, "eve": None, "fay": FIRST}  # fmt: skip
    assert "damaged at line 1, column 2" in found["fay"].problem and "No part" in found["eve"].problem
    assert not found["ben"].problem


def found_in(folder, release, *names):
    return list(find_submissions(folder, releases_of(release, *names)))


def test_of_two_copies_the_newest_that_can_be_read_is_graded(release, tmp_path):
    blank = notebook_of(release, FIRST)
    for name, when in {"b.ipynb": 2000, "a.ipynb": 3000, "a (2).ipynb": 3000, "a (10).ipynb": 3000}.items():
        write(blank, tmp_path / "nico" / name)
        os.utime(tmp_path / "nico" / name, (when, when))
    (tmp_path / "nico" / FIRST).mkdir()
    (tmp_path / "nico" / FIRST / "new.ipynb").write_text("{", encoding="utf-8")
    write(blank, tmp_path / f"carl_{FIRST}.ipynb")
    write(blank, tmp_path / f"carl_{FIRST} (1).ipynb")
    chosen, notes = choose(found_in(tmp_path, release, FIRST))
    assert {one.student: one.file for one in chosen} == {"nico": "nico/a (10).ipynb", "carl": f"carl_{FIRST} (1).ipynb"}
    (nico,) = [note for note in notes if note.startswith("nico")]
    assert nico.endswith(f"skipped nico/{FIRST}/new.ipynb (damaged), nico/b.ipynb, nico/a.ipynb, nico/a (2).ipynb")


def test_a_notebook_of_another_assignment_is_skipped_and_counted(release, tmp_path):
    write(notebook_of(release, FIRST), tmp_path / "ada" / "one.ipynb")
    write(notebook_of(release, THIRD), tmp_path / "ada" / "three.ipynb")
    chosen, notes = choose(found_in(tmp_path, release, FIRST, THIRD), FIRST)
    assert [one.file for one in chosen] == ["ada/one.ipynb"] and notes == ["1 of another assignment skipped"]


def test_students_without_notebooks_and_notebooks_without_students_are_named(release, tmp_path):
    write(notebook_of(release, FIRST), tmp_path / "Kopie von 01 (3).ipynb")
    write(notebook_of(release, FIRST), tmp_path / f"kurt_{FIRST}.ipynb")
    (tmp_path / "paul").mkdir()
    (tmp_path / "paul" / "notes.txt").write_text("later", encoding="utf-8")
    empty, nameless = doubts(tmp_path, found_in(tmp_path, release, FIRST))
    assert empty == "no notebook from: paul" and "in: Kopie von 01 (3).ipynb (" in nameless


def test_a_link_a_pipe_and_a_large_file_are_not_read(release, tmp_path):
    """Rows 8, 14 and 20: only plain files inside the folder, and no more of them than a notebook has."""
    write(notebook_of(release, FIRST), tmp_path / "right" / "01.ipynb")
    targets = {"zero": "/dev/zero", "copied": tmp_path / "right" / "01.ipynb", "gone": "/nowhere"}
    for student, target in targets.items():
        (tmp_path / student).mkdir()
        (tmp_path / student / "01.ipynb").symlink_to(target)
    (tmp_path / "whole").symlink_to(tmp_path / "right")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "01.ipynb")
    (tmp_path / "large").mkdir()
    with open(tmp_path / "large" / "01.ipynb", "wb") as file:
        file.truncate(LARGEST + 1)
    found = {one.student: one.problem for one in found_in(tmp_path, release, FIRST)}
    assert found.pop("right") == "" and set(found) == {*targets, "pipe", "large"}
    assert all("link to another" in found[student] for student in targets)
    assert "a pipe" in found["pipe"] and "50 MB" in found["large"]


def test_marks_that_are_none_stop_nobody(release, tmp_path):
    """Row 20: `"grade_id": ["a"]`, and JSON that is no notebook."""
    notebook = notebook_of(release, FIRST)
    notebook.cells[4].metadata["nbgrader"] = {"grade_id": ["a"], "grade": True}
    write(notebook, tmp_path / "list" / "01.ipynb")
    texts = {
        "deep": "[" * 100_000,
        "number": "3",
        "cells": '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    }
    for student, text in texts.items():
        (tmp_path / student).mkdir()
        (tmp_path / student / f"{FIRST}.ipynb").write_text(text, encoding="utf-8")
    found = {one.student: one for one in found_in(tmp_path, release, FIRST)}
    assert found["list"].assignment == FIRST and not found["list"].problem
    assert all("not a notebook" in found[student].problem for student in texts)


def test_what_cannot_be_looked_at_is_named(release, tmp_path):
    """Row 21: students receive zips, and platforms add `.txt`."""
    for name in ("ada/01.zip", "ada/01.ipynb.txt"):
        (tmp_path / "ada").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"PK")
    assert doubts(tmp_path, [])[-1].startswith("not looked at: 01.ipynb.txt, 01.zip")


TURNED = "ada\u202egnp"


def test_a_name_that_turns_the_text_around_is_written_as_a_code(release, tmp_path):
    """Row 14, and nobody gets the rows of another by a character that is not seen."""
    for student in (TURNED, "ada", "ada\u200b"):
        write(notebook_of(release, FIRST), tmp_path / student / "01.ipynb")
    (tmp_path / f"{TURNED}2").mkdir()
    found = found_in(tmp_path, release, FIRST)
    assert [one.student for one in found] == ["ada", "ada\\u200b", "ada\\u202egnp"]
    assert doubts(tmp_path, found) == ["no notebook from: ada\\u202egnp2"]
    made = releases_of(release, FIRST)[FIRST]
    for one in found:
        one.notebook["cells"][0]["source"] = TURNED
        rows = rows_of(one, made, [], TURNED)
        with Gradebook(tmp_path / "out") as book:
            book.add(rows, page(one, rows, made, [], TURNED), f"{slug(one.student)}.html")
    for path in (tmp_path / "out").rglob("*.*"):
        assert not set("\u202e\u200b") & set(path.name + path.read_text(encoding="utf-8"))
    assert len(lines_of(tmp_path / "out")) == 18


def test_points_of_a_release(release):
    parts = parts_of(releases_of(release, FIRST)[FIRST])
    assert list(parts) == ["part1_scores", "part2_mask", "part3_step", "part4_loop", "part5_first_difference",
                           "part6_decisions"] and sum(part.points for part in parts.values()) == 20  # fmt: skip


@pytest.mark.parametrize("text, name", [("Ada L.", "Ada-L"), ("../../etc", "etc"), ("Zoë", "Zoe"), ("李", "student")])
def test_a_student_name_is_a_file_name(text, name):
    assert slug(text) == name


# ---- what goes out


FAILED = {"part": "my_mask", "cases": "0", "broke": "a tie stays", "mistake": "more than", "look": "the >", "got": "1"}


def event(part="part1_scores", **change):
    """What a worker says of a part."""
    said = {"part": part, "failed": {}, "replaced": [], "points_earned": False, "hint": "", "status": "wrong"}
    return said | {"seconds": 1.0} | change


def test_a_hint_is_one_line_from_the_fields_of_the_check_or_from_what_was_said():
    assert hint_of(event(failed=FAILED)) == "a tie stays; this looks like: more than"
    assert hint_of(event(failed=FAILED | {"mistake": ""})) == "a tie stays; look at: the >"
    assert (
        hint_of(event(hint="NameError: name 'x' is\nnot\x1b[31m def\u202eined")) == "NameError: name 'x' is not defined"
    )


def test_a_part_says_its_status_what_was_replaced_and_what_is_missing(release):
    made = releases_of(release, FIRST)[FIRST]
    one = Submission("mona", Path(), FIRST, file="mona/01.ipynb")
    events = [
        {"cell": 3, "error": {"kind": "NameError", "text": "no"}},
        event(status="ok", points_earned=True),
        event("part2_mask", status="not written", hint="not written yet", failed=FAILED, replaced=["my_scores"]),
        event("part3_step", hint="SyntaxError: no", replaced=["my_scores", "my_mask"]),
        event("part4_loop", status="timeout", hint="it ran longer than 60 seconds and was stopped"),
    ]
    rows = {row.part: row for row in rows_of(one, made, events, "it ran longer than 600 seconds in all")}
    statuses = ["ok", "not written", "wrong", "timeout", "not run", "not run"]
    assert [row.status for row in rows.values()] == statuses
    assert [row.points for row in rows.values()] == [3.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert rows["part2_mask"].hint == "not written yet"
    assert rows["part3_step"].hint == "SyntaxError: no; graded with a right my_scores, my_mask in place of yours"
    assert rows["part6_decisions"].hint == "it ran longer than 600 seconds in all"
    assert {row.file for row in rows.values()} == {"mona/01.ipynb"}


ROW = Row("ada", FIRST, "part1_scores", 0.0, 3.0, 1.5, "wrong", "no", "ada/01.ipynb")


def lines_of(out):
    return list(csv.DictReader((out / "grades.csv").open(encoding="utf-8")))


def test_the_csv_holds_no_formula(tmp_path):
    with Gradebook(tmp_path) as book:
        book.add([replace(ROW, student="=cmd()", hint="@SUM(1)")], "page", "x.html")
    (read,) = lines_of(tmp_path)
    assert read["student"] == "'=cmd()" and read["hint"] == "'@SUM(1)" and read["points"] == "0"


def test_results_are_on_disk_at_once_and_sorted(tmp_path):
    with Gradebook(tmp_path) as book:
        assert (tmp_path / "seed.txt").read_text(encoding="utf-8").strip() == book.seed and len(book.seed) == 32
        for number, student in enumerate(["zoe", "ada", "ben"], start=1):
            book.add([replace(ROW, student=student)], "a \ud800 page", f"{student}.html")
            assert [line["student"] for line in lines_of(tmp_path)] == sorted(["zoe", "ada", "ben"][:number])


def test_a_second_grading_into_the_same_folder_waits_and_changes_nothing(tmp_path):
    """Row 20."""
    with Gradebook(tmp_path, "one"), pytest.raises(ValueError, match="another grading writes there"):
        with Gradebook(tmp_path, "two"):
            pass
    assert (tmp_path / "seed.txt").read_text(encoding="utf-8") == "one\n"


def test_grading_again_into_the_same_folder_replaces_what_was_graded_again(tmp_path):
    hand = replace(ROW, part="part2", points=None, status="by hand")
    with Gradebook(tmp_path, "seven") as first:
        first.add([ROW, hand], "old", "ada.html")
        first.add([replace(ROW, student="ben")], "old", "ben.html")
    text = (tmp_path / "grades.csv").read_text(encoding="utf-8")
    text = text.replace("part2,,", "part2,2.5,").replace("hint,file", "hint,file,mine").replace(".ipynb", ".ipynb,late")
    (tmp_path / "grades.csv").write_text("\ufeff" + text, encoding="utf-8")
    with Gradebook(tmp_path) as again:
        again.add([replace(ROW, points=3.0, status="ok"), hand], "new", "ada.html")
        assert again.seed == "seven"
    lines = {(line["student"], line["part"]): line for line in lines_of(tmp_path)}
    assert [line["points"] for line in lines.values()] == ["3", "2.5", "0"]
    assert {line["mine"] for line in lines.values()} == {"late"}
    assert "earlier" in lines["ada", "part2"]["hint"]
    assert [(tmp_path / "feedback" / f"{name}.html").read_text() for name in ("ada", "ben")] == ["new", "old"]


def test_a_table_that_is_none_of_ours_is_not_overwritten(tmp_path):
    (tmp_path / "grades.csv").write_bytes("Schüler;Punkte\n".encode("cp1252"))
    with pytest.raises(ValueError, match="another --out"), Gradebook(tmp_path):
        pass


def test_the_table_is_in_line_and_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = replace(ROW, student="bertha", points=3.0, status="not written", hint="word " * 60)
    title, head, above, below = summary([ROW, long]).splitlines()
    assert title == f"{FIRST}: 2 submissions, 1.5 points on average"
    assert above.index("0 / 3") == below.index("3 / 3") and head.index("first") == above.index("wrong: no")
    assert below.endswith("word …") and len(below) <= 80
    other = summary([ROW, replace(ROW, assignment=THIRD, status="ok", hint="")])
    assert f"\n\n{THIRD}: 1 submission, 0.0" in other and other.endswith("0 / 3  0")


WHY = "a tie stays; this looks like: more than"
GRADED = {"grade": True, "grade_id": "part1_scores"}


def run_of(release, *cells, events=()):
    """A page of a notebook with these cells put behind the first assignment's first part."""
    made = releases_of(release, FIRST)[FIRST]
    notebook = {"cells": [*made["cells"][:4], *cells]}
    rows = [replace(ROW, student="<b>Ada</b>", hint=f"{WHY}; graded with a right my_mask in place of yours")]
    return page(Submission("<b>Ada</b>", Path(), FIRST, notebook, file="<i>.ipynb"), rows, made, events)


def code(source, *outputs, **marks):
    return {"cell_type": "code", "source": source, "metadata": {"nbgrader": marks}, "outputs": list(outputs)}


EVIL = "<script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>"


def test_nothing_of_a_student_runs_on_the_page(release):
    rich = {"text/html": EVIL, "text/plain": EVIL, "image/png": '"><script>', "application/javascript": "alert(1)"}
    outputs = [
        {"output_type": "display_data", "data": rich},
        {"output_type": "stream", "name": "stdout", "text": EVIL},
        {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]},
        {"output_type": "execute_result", "data": 3},
    ]
    events = [{"cell": 5, "error": {"kind": EVIL, "text": EVIL}}, event(failed=dict.fromkeys(FAILED, EVIL))]
    cells = [{"cell_type": "markdown", "source": EVIL, "metadata": {}}, code(EVIL, *outputs), code("", **GRADED)]
    text = run_of(release, *cells, events=events)
    assert text.count(html.escape(EVIL)) == 4 + 2 + 4
    assert not re.findall(r"<(?:script|iframe|link|i>|b>Ada)", text)
    assert all(src.startswith("data:image/") for src in re.findall(r"<[^>]*\bsrc=\W?([^\s>]+)", text))
    assert "default-src 'none'" in text


def test_the_page_says_who_what_and_every_thing_once(release):
    said = "✗ my_scores: not yet.\n  Broke:  a tie stays"
    check = code("check()", {"output_type": "execute_result", "data": {"text/plain": said}})
    cells = [code(SETUP), check, code("hidden = 1", **GRADED)]
    text = run_of(release, *cells, events=[event(failed=FAILED, replaced=["my_mask"])])
    assert text.count("<td><b>Broke</b></td>") == text.count("<td><b>This looks like</b></td>") == 1
    assert text.count("<td>a tie stays</td>") == 1 and text.count("a tie stays; this looks") == 1  # the table of parts
    assert text.count("<h1>") == 1
    assert not any(word in text for word in ("NotYet", "hidden = 1", "%pip"))
    assert "&lt;b&gt;Ada&lt;/b&gt;" in text and "Assignment 01 · The loop" in text and "0 of 3 points" in text
    assert text.count("Part 1 · The score") >= 2 and text.count("in place of yours") == 2  # the table and the part
    text = run_of(release, check, code("", **GRADED), events=[event(hint="new numbers")])
    assert text.count("Broke:") == 1 and "<td><b>Broke" not in text


def test_a_damaged_file_is_explained_once(tmp_path, capsys):
    for student in ("ivan", "jana"):
        (tmp_path / "in" / student).mkdir(parents=True)
        (tmp_path / "in" / student / "x.ipynb").write_text('{\n "cells": [', encoding="utf-8")
    (tmp_path / "in" / "paul").mkdir()
    assert main(["grade", str(tmp_path / "in")]) == 0
    out = capsys.readouterr()
    assert "no notebook from: paul" in out.out and "2 of 2: jana, unknown: 0 / 0" in out.err
    text = (tmp_path / "in-graded" / "feedback" / "ivan_unknown.html").read_text(encoding="utf-8")
    assert text.count("damaged at line 2, column 12. Save it in Jupyter and hand it in again.") == 1
    assert "handed in</h2>" not in text and "{" not in text.split("</style>")[1]


def test_an_interrupt_leaves_what_is_graded(tmp_path, capsys, monkeypatch):
    for student in ("ivan", "jana"):
        (tmp_path / student).mkdir()
        (tmp_path / student / "x.ipynb").write_text("{", encoding="utf-8")

    def interrupted(*args, tell, real=commands.grade, **options):
        def stop(line):
            raise KeyboardInterrupt

        return real(*args, tell=stop, **options)

    monkeypatch.setattr(commands, "grade", interrupted)
    assert main(["grade", str(tmp_path), "--out", str(tmp_path / "out")]) == 130
    assert "same seed" in capsys.readouterr().out and (tmp_path / "out" / "seed.txt").exists()
    assert [line["student"] for line in lines_of(tmp_path / "out")] == ["ivan"]


def test_nothing_to_grade_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert main(["grade", str(tmp_path / "in")]) == 1
    assert "no notebook" in capsys.readouterr().err and not (tmp_path / "in-graded").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_make_asks_for_the_folder_before_it_installs(tmp_path):
    def make(*arguments):
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        here = {"cwd": Path(cdlearn.__file__).parents[1], "capture_output": True, "text": True, "env": own}
        return subprocess.run(["make", *arguments, f"VENV={tmp_path / 'venv'}"], **here)

    assert "which folder?" in make("grade").stdout
    assert "no folder /nowhere" in make("grade", "FOLDER=/nowhere").stdout
    assert not (tmp_path / "venv").exists()
    assert all(line.startswith(("make ", "Each makes")) for line in make("help").stdout.splitlines())


def test_the_commands_say_where_the_masters_are(tmp_path, capsys):
    assert main(["assignments", str(tmp_path / "out"), "--source", str(tmp_path)]) == 1
    assert "repository" in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "none")]) == 1
    assert "no folder" in capsys.readouterr().err
    assert main(["grade", str(tmp_path), "--assignment", "07"]) == 1
    assert FIRST in capsys.readouterr().err


def test_own_programs_come_first(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/usr/bin")
    for _ in range(2):
        course_api(tmp_path)
    assert os.environ["PATH"] == os.pathsep.join([os.path.dirname(sys.executable), "/usr/bin"])


# ---- a class, graded once with everything that breaks a grader


def role_of(notebook, kind, grade_id):
    return next(k for k, cell in enumerate(notebook.cells) if role(cell, kind) == grade_id)


def in_one_cell(solutions):
    return nbformat.v4.new_code_cell("\n\n".join(solutions.values()))


R = reference(FIRST)
NAMES = (
    "sum = 0; kept = first = steps = token = rows = got = row = case = tried = hint = right = 5\nfrom numpy import *\n"
)
PARTIAL = """
import functools, sys
print("a warning", file=sys.stderr)
from helper import difference
def base(kind, expert_logits, amateur_logits, strength=1.0):
    return difference(expert_logits, strength * amateur_logits.log_softmax(-1))
my_scores = functools.partial(base, "log")
"""
CALLABLE = """
class Mask:
    def __call__(self, expert_logits, alpha=0.1):
        best = expert_logits.max(dim=-1, keepdim=True).values
        return expert_logits >= best + math.log(alpha)
my_mask = Mask()
"""
DIFFERENCE = """
def first_difference(a, b):
    return next((k for k in range(len(a) + len(b)) if a[k : k + 1] != b[k : k + 1]), None)
"""
ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __getattr__(self, name): return Always()
    def __iter__(self): return iter([])
def my_scores(*args, **options): return Always()
"""
PATCHED = """
import ast, builtins
torch.allclose = torch.equal = builtins.all = lambda *args, **options: True
class Strip(ast.NodeTransformer):
    def visit_Assert(self, node): return None
get_ipython().ast_transformers.append(Strip())
def my_mask(*args, **options): return None
"""
READS = """
import os
def my_step(*args, **options):
    found = [os.environ.get("CDLEARN_GRADING_SEED")]
    for folder in {paths}:
        for place, _, files in os.walk(folder):
            for name in files:
                try:
                    found.append(open(os.path.join(place, name)).read(99))
                    open(os.path.join(place, name), "w").write("mine now")
                except OSError:
                    pass
    raise RuntimeError("it found " + repr(found))
"""
STRAY = """
import subprocess, sys
code = "import os,time\\nif os.fork()==0:\\n os.setsid()\\n if os.fork()==0:\\n"
code += "  open({mark!r},'w')\\n  time.sleep({seconds})"
subprocess.Popen([sys.executable, "-c", code], env={{}}).wait()
def my_loop(*args, **options):
    return [1, 2, 4], "length"
"""
FRAMES = """
def first_difference(a, b):
    import gc, inspect
    for one in gc.get_objects():
        if inspect.isfunction(one) and one.__name__ == "first_difference" and one is not first_difference:
            return one(a, b)
    return inspect.stack()[-1].frame.f_globals
"""
SECONDS = 98_765


def strays(seconds):
    """Processes that a stray of this test is."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if f"time.sleep({seconds})" in " ".join(one.info["cmdline"] or ())
    ]


class Class:
    """Hand-ins of the first assignment, their grading by one command, and what came of it."""

    def __init__(self, release, folder):
        self.release, self.folder, self.out = release / FIRST / f"{FIRST}.ipynb", folder / "in", folder / "out"

    def hand_in(self, student, solutions, edit=lambda notebook: None):
        notebook = handed_in(self.release, solutions)
        edit(notebook)
        write(notebook, self.folder / student / "01.ipynb")

    def grade(self, **environment):
        command = [
            sys.executable,
            "-m",
            "cdlearn",
            "grade",
            str(self.folder),
            "--out",
            str(self.out),
            "--seed",
            "7-seed",
        ]
        environment = (
            os.environ | {"COLUMNS": "100", "PYTHONPATH": str(Path(cdlearn.__file__).parents[1])} | environment
        )
        done = subprocess.run([*command, "--cell-timeout", "5"], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        self.table, self.progress, self.rows = done.stdout, done.stderr, {}
        for row in lines_of(self.out):
            self.rows.setdefault(row["student"], {})[row["part"]] = row

    def points(self, student):
        return [row["points"] for row in self.rows[student].values()]

    def statuses(self, student):
        return [row["status"] for row in self.rows[student].values()]

    def page(self, student):
        (path,) = [p for p in (self.out / "feedback").iterdir() if re.match(rf"{slug(student)}(-....)?_0", p.name)]
        return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def graded(release, tmp_path_factory):
    """With the sandbox, under PYTHONOPTIMIZE: five hand-ins with several attacks each, three that need no process."""
    made = Class(release, tmp_path_factory.mktemp("class"))

    def copied(notebook):
        at = role_of(notebook, "solution", "loop")
        notebook.cells.insert(at + 1, nbformat.from_dict({**notebook.cells[at], "id": "copy"}))
        notebook.cells.insert(2, nbformat.v4.new_code_cell(NAMES))
        notebook.cells[5].metadata["nbgrader"] = {"grade_id": ["a"], "grade": True}

    made.hand_in("honest", R | {"scores": PARTIAL, "mask": CALLABLE, "first_difference": DIFFERENCE}, copied)
    right = "def difference(a, b):\n    return a.log_softmax(-1) - b\n"
    (made.folder / "honest" / "helper.py").write_text(right, encoding="utf-8")

    def tampered(notebook):
        notebook.cells.insert(2, in_one_cell(R))
        for cell in notebook.cells:
            if role(cell, "grade"):
                cell.source, cell.metadata["nbgrader"]["points"] = "pass", 100
        notebook.cells = [cell for cell in notebook.cells if not role(cell, "solution")]

    made.hand_in("one-cell", {}, tampered)

    def moved(notebook):
        notebook.cells.sort(key=lambda cell: bool(role(cell, "grade")))

    names = "scores", "mask", "step"
    imported = {name: f"from cdlearn.classroom.checks.loop import my_{name}" for name in names}
    made.hand_in("moved", R | imported, moved)
    reads = READS.format(paths=[str(made.folder), str(made.out), str(MASTERS[0].parent)])
    stray = STRAY.format(mark="/tmp/stray", seconds=SECONDS)
    evil = {"scores": ALWAYS, "mask": PATCHED, "step": reads, "loop": stray, "first_difference": FRAMES}
    made.hand_in("evil", evil | {"decisions": "my_decisions = lambda *a, **o: my_step"})
    limits = {"loop": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
              "first_difference": "import os\nos._exit(3)", "decisions": "while True: print('x' * 9999)"}  # fmt: skip
    assignment, grade_id, made.mistake, source = next(one for one in planted() if one[1] == "mask")
    assert assignment == FIRST
    made.hand_in("limits", R | limits | {grade_id: source})
    for student, target in {"zero": "/dev/zero", "link": made.folder / "honest" / "01.ipynb"}.items():
        (made.folder / student).mkdir()
        (made.folder / student / f"{FIRST}.ipynb").symlink_to(target)
    (made.folder / f"{TURNED}_{FIRST}.ipynb").write_text("{", encoding="utf-8")
    made.grade(PYTHONOPTIMIZE="1")
    return made


@needs_sandbox
@pytest.mark.parametrize("student", ["honest", "one-cell"])
def test_honest_styles_get_all_points(graded, student):
    """Rows 10, 12, 15, 16, 20, 21: names, partials, callable objects, copied cells, one cell, a module of their own."""
    assert graded.points(student) == ["3", "3", "3", "5", "2", "4"], graded.rows[student]


@needs_sandbox
def test_whatever_evil_does_it_earns_nothing(graded):
    """Rows 9, 11, 13: fake equality, patched functions, AST transformers, frames, strays; the files of others."""
    assert set(graded.points("evil")) == {"0"}
    assert "it found [None]" in html.unescape(graded.page("evil"))
    assert "7-seed" not in "".join(path.read_text(encoding="utf-8") for path in (graded.out / "feedback").iterdir())
    assert strays(SECONDS) == []
    assert (graded.out / "seed.txt").read_text(encoding="utf-8") == "7-seed\n"


@needs_sandbox
def test_moved_cells_and_imported_answers_give_the_points_of_what_is_solved(graded):
    """Rows 17 and 19."""
    assert graded.points("moved") == ["0", "0", "0", "5", "2", "4"]
    assert html.unescape(graded.page("moved")).count("<td>ImportError: an answer may not use cdlearn") == 3
    assert "graded with a right my_scores, my_mask, my_step" in graded.rows["moved"]["part4_loop"]["hint"]


@needs_sandbox
def test_a_limit_costs_its_own_part_and_is_named(graded):
    assert graded.points("limits") == ["3", "0", "3", "0", "0", "0"]
    assert graded.statuses("limits") == ["ok", "wrong", "ok", "timeout", "died", "timeout"]
    hints = [row["hint"] for row in graded.rows["limits"].values()]
    assert hints[3].startswith("it ran longer than 5 seconds") and hints[4].startswith("the process died")


@needs_sandbox
def test_links_and_devices_are_not_followed(graded):
    """Rows 8 and 14."""
    for student in ("zero", "link"):
        assert set(graded.points(student)) == {"0"} and set(graded.statuses(student)) == {"unreadable"}


@needs_sandbox
def test_the_page_of_a_mistake_names_it_and_holds_no_hidden_test(graded):
    text = html.unescape(graded.page("limits"))
    assert graded.mistake in text and graded.mistake in graded.rows["limits"]["part2_mask"]["hint"]
    assert "HIDDEN TESTS" not in text and "CDLEARN_GRADING_SEED" not in text
    assert "graded with a right my_mask" in text


@needs_sandbox
def test_every_page_says_whose_it_is_and_fetches_nothing(graded):
    for student, parts in graded.rows.items():
        text = graded.page(student)
        (file,) = {row["file"] for row in parts.values()}
        assert f"<b>{student}</b>" in text and file in text, student
        assert "<script" not in text and not re.search(r"(src|href)=.http", text), student


@needs_sandbox
def test_the_command_ends_with_a_table_that_a_person_can_read(graded):
    lines = graded.table.splitlines()
    assert lines[0].startswith(f"{FIRST}: 8 submissions, ") and lines[1].split()[:2] == ["student", "points"]
    assert max(map(len, lines[:10])) <= 100 and "\u202e" not in graded.table + graded.progress
    (line,) = [line for line in lines if line.startswith("limits ")]
    assert re.match(r"limits +6 / 20  3 0 3 0 0 0  wrong: kept is what is", line)
    assert "no sandbox" not in graded.table and "8 of 8" in graded.progress


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="strays are found on Linux only")
def test_without_the_sandbox_a_line_says_so_and_strays_end_as_well(release, tmp_path):
    """Row 9: a double fork without the grader's environment."""
    made, mark = Class(release, tmp_path), tmp_path / "it ran"
    made.hand_in("stray", R | {"loop": STRAY.format(mark=str(mark), seconds=SECONDS + 1)})
    made.grade(PATH=os.path.dirname(sys.executable))
    assert made.points("stray") == ["3", "3", "3", "0", "2", "4"]
    (line,) = [line for line in made.table.splitlines() if line.startswith("no sandbox")]
    assert "bubblewrap" in line and "your files" in line
    until = time.monotonic() + 5
    while strays(SECONDS + 1) and time.monotonic() < until:
        time.sleep(0.1)
    assert mark.exists() and strays(SECONDS + 1) == []


# ---- a student's own run


@pytest.mark.parametrize(
    "case, says, code",
    [
        ("right", ["✓ Part 1 · The score: ok", "6 of 6 parts hold in a clean run."], 0),
        ("wrong", ["✗ Part 2 · The mask: wrong", "This looks like:", "4 of 6 parts hold"], 1),
        ("none", ["no file"], 1),
        ("damaged", ["damaged at line 1"], 1),
        ("other", ["no part of an assignment"], 1),
    ],
)
def test_check_tells_a_student_what_the_grader_will_see(release, tmp_path, capsys, case, says, code):
    path = tmp_path / "mine.ipynb"
    if case == "right":  # written elsewhere, the stubs deleted
        notebook = handed_in(release / FIRST / f"{FIRST}.ipynb", {}, drop=R.keys())
        notebook.cells.insert(2, in_one_cell(R))
        write(notebook, path)
    elif case == "wrong":
        source = next(source for _, grade_id, _, source in planted() if grade_id == "mask")
        solutions = {part: one for part, one in (R | {"mask": source}).items() if part != "decisions"}
        write(handed_in(release / FIRST / f"{FIRST}.ipynb", solutions), path)
        says = [*says, "✗ Part 6 · What the contrast changed: not written"]
    elif case == "damaged":
        path.write_text("{", encoding="utf-8")
    elif case == "other":
        write(nbformat.v4.new_notebook(), path)
    assert main(["check", str(path)]) == code
    out = capsys.readouterr()
    assert all(text in out.out + out.err for text in says), out


# ---- the class list


@pytest.mark.parametrize(
    "text",
    ["ann\nbob\n\n  cleo \n", "student,mail\nann,a@x\nbob,b@x\ncleo,c@x\n", "mail,Student\na,ann\nb,bob\nc,cleo\n"],
)
def test_nobody_on_the_roster_is_missing_from_the_tables(tmp_path, text):
    for student in ("ann", "zoe"):
        (tmp_path / "in" / student).mkdir(parents=True)
        (tmp_path / "in" / student / f"{FIRST}.ipynb").write_text("no notebook")
    (tmp_path / "roster.csv").write_text(text, encoding="utf-8-sig")
    notes, out = [], tmp_path / "out"
    rows = grade(tmp_path / "in", out, roster=tmp_path / "roster.csv", note=notes.append)
    lines = list(csv.DictReader((out / "grades.csv").open(encoding="utf-8")))
    assert len(rows) == len(lines)
    status = {line["student"]: {line["status"]} for line in lines}
    assert status == {"ann": {"unreadable"}, "zoe": {"unreadable"}, "bob": {"missing"}, "cleo": {"missing"}}
    assert {line["assignment"] for line in lines} == {FIRST} and any("not on the roster: zoe" in note for note in notes)
    totals = list(csv.DictReader((out / "totals.csv").open(encoding="utf-8")))
    assert [line["student"] for line in totals] == ["ann", "bob", "cleo", "zoe"]
    assert all(line["total"] == line[FIRST] == "0" for line in totals)
    assert [path.name for path in (out / "feedback").glob("*.html") if "bob" in path.name] == []


def test_totals_are_sums_and_a_hand_graded_part_counts_once_it_has_points(tmp_path):
    def row(student, assignment, part, points):
        return Row(student, assignment, part, points, 4.0, 0.0, "ok", "")

    with Gradebook(tmp_path) as book:
        book.add([row("ann", FIRST, "a", 3.0), row("ann", FIRST, "b", 2.5)])
        book.add([row("ann", THIRD, "a", 1.0), row("ann", THIRD, "b", None)])
        book.add([row("bob", THIRD, "a", 4.0)])
    totals = list(csv.DictReader((tmp_path / "totals.csv").open(encoding="utf-8")))
    assert totals == [
        {"student": "ann", FIRST: "5.5", THIRD: "1", "total": "6.5"},
        {"student": "bob", FIRST: "0", THIRD: "4", "total": "4"},
    ]


def test_a_roster_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "in" / "ann" / f"{FIRST}.ipynb").write_text("no notebook")
    with pytest.raises(ValueError, match="roster .*none.csv cannot be read"):
        grade(tmp_path / "in", tmp_path / "out", roster=tmp_path / "none.csv")
