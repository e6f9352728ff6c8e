"""The classroom: what students get holds no answer, and what they hand in is graded whatever it does."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader")
from masters import HOSTILE, MASTERS, handed_in, hidden_lines, master, planted, reference, role

import cdlearn
from cdlearn.classroom.checks.result import MIME
from cdlearn.classroom.grader import build, find_masters
from cdlearn.classroom.grader.build import SETUP, course_api
from cdlearn.classroom.grader.page import page, to_html
from cdlearn.classroom.grader.results import Gradebook, Row, hint_of, published, rows_of, status_of, summary
from cdlearn.classroom.grader.submissions import Submission, choose, doubts, find_submissions, parts_of, restore, slug
from cdlearn.classroom.grader.worker import SHORT, Recording
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
        assert line not in text or line in shown, line  # a signature stands in both
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
    for name, time in {"b.ipynb": 2000, "a.ipynb": 3000, "a (2).ipynb": 3000, "a (10).ipynb": 3000}.items():
        write(blank, tmp_path / "nico" / name)
        os.utime(tmp_path / "nico" / name, (time, time))
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


def test_deleted_and_unmarked_cells_come_back_where_they_stood(release, tmp_path):
    releases = releases_of(release, FIRST)
    notebook = handed_in(release / FIRST / f"{FIRST}.ipynb", reference(FIRST), drop={"part1_scores", "step", "loop"})
    for cell in notebook.cells:
        if role(cell, "solution") == "mask":
            cell.metadata = {}
    write(notebook, tmp_path / "ada.ipynb")
    (one,) = find_submissions(tmp_path, releases)
    cells = restore(one, releases[FIRST])["cells"]
    wanted = releases[FIRST]["cells"]
    for here in (cells, wanted):
        names = [c["metadata"].get("nbgrader", {}).get("grade_id") or c["source"][:30] for c in here]
        assert names == [c["metadata"].get("nbgrader", {}).get("grade_id") or c["source"][:30] for c in wanted]
    assert one.restored == ["part1_scores", "step", "loop"]
    mask = next(c for c in cells if c["metadata"].get("nbgrader", {}).get("grade_id") == "mask")
    assert "NotImplementedError" not in mask["source"]


def test_points_of_a_release(release):
    parts = parts_of(releases_of(release, FIRST)[FIRST])
    assert list(parts) == ["part1_scores", "part2_mask", "part3_step", "part4_loop", "part5_first_difference",
                           "part6_decisions"] and sum(part.points for part in parts.values()) == 20  # fmt: skip


@pytest.mark.parametrize("text, name", [("Ada L.", "Ada-L"), ("../../etc", "etc"), ("Zoë", "Zoe"), ("李", "student")])
def test_a_student_name_is_a_file_name(text, name):
    assert slug(text) == name


# ---- what goes out


FAILED = {"part": "my_mask", "cases": 0, "broke": "a tie stays", "mistake": "more than", "look": "the >", "got": "1"}


def shows(data):
    """An output as checks publish it while they are graded."""
    return {"output_type": "display_data", "metadata": {}, "data": {MIME: data, "text/plain": ""}}


def test_a_hint_is_one_line_from_the_fields_of_the_check_or_from_the_error():
    def hint(**change):
        return hint_of("NotYet", "any text", published([shows(FAILED | change)])[0])

    assert hint() == "a tie stays; this looks like: more than"
    assert hint(mistake="") == "a tie stays; look at: the >"
    assert hint(got="nothing: it is not written yet") == "not written yet"
    assert hint_of("NameError", "name 'x' is\nnot defined") == "NameError: name 'x' is not defined"
    assert status_of("AssertionError", "no", 0.0, 3.0) == "wrong"
    assert status_of("", "", 3.0, 3.0) == "ok" and status_of("", "", None, 3.0) == "by hand"


def test_what_a_cell_published_is_its_last_failed_check_and_all_that_was_replaced():
    junk = [{"output_type": "stream", "text": "x"}, shows(None), shows([]), shows({"replaced": "my_f"}), shows({})]
    replaced = [shows({"replaced": names}) for names in (["f"], ["g", "f"])]
    failed, replaced = published([shows(FAILED | {"broke": "x"}), *junk, replaced[0], shows(FAILED), replaced[1]])
    assert failed["broke"] == "a tie stays" and replaced == ["f", "g"]
    assert published(junk) == ({}, [])


def test_a_hint_names_the_line_and_the_limit_but_no_file_of_the_kernel():
    assert hint_of("SyntaxError", "expected ':' (2245281623.py, line 1)") == "SyntaxError: expected ':' (line 1)"
    assert hint_of("CellTimeoutError", "it ran longer than 60 seconds and was stopped").split()[4] == "60"


def test_once_a_cell_has_timed_out_a_cell_without_points_gets_little_time():
    runner = Recording(timeout=60)
    plain, graded = ({"metadata": {"nbgrader": {"grade": grade}}} for grade in (False, True))
    assert runner.timeout_func(plain) == runner.timeout_func(graded) == 60
    runner.slow = True
    assert runner.timeout_func(plain) == SHORT and runner.timeout_func(graded) == 60


def record(release, *cells):
    """Events of (grade_id, seconds, error, replaced): one cell after the other."""
    events, now = [], 0.0
    for number, (grade_id, seconds, error, *instead) in enumerate(cells):
        events.append({"event": "start", "cell": number, "kind": "code", "at": now})
        now += seconds
        part = parts_of(release).get(grade_id)
        told = {"ename": error, "evalue": "", "points": part and (0.0 if error else part.points), "replaced": instead}
        events.append({"event": "end", "cell": number, "grade_id": grade_id, "at": now} | told)
    return events


def test_a_part_pays_for_its_own_cells_and_says_what_was_replaced_or_missing(release):
    made = releases_of(release, FIRST)[FIRST]
    one = Submission("mona", Path(), FIRST, restored=["mask"], file="mona/01.ipynb")
    events = record(
        made,
        *[("scores", 1, ""), (None, 2, ""), ("part1_scores", 4, "")],
        *[("mask", 1, ""), ("part2_mask", 1, "NotImplementedError")],
        *[("step", 1, "SyntaxError"), ("part3_step", 1, "NameError", "my_scores", "my_mask")],
        *[(None, 60, "CellTimeoutError"), ("loop", 0.5, ""), ("part4_loop", 0.2, "", "my_step"), (None, 60, "")],
    )
    rows = {row.part: row for row in rows_of(one, made, events, "the kernel died")}
    assert rows["part1_scores"].seconds == 7 and rows["part4_loop"].seconds == 0.7
    assert rows["part2_mask"].status == "not written"
    assert rows["part2_mask"].hint == "the solution cell was missing"
    assert rows["part3_step"].hint.startswith("SyntaxError")
    assert rows["part3_step"].hint.endswith("graded with a right my_scores, my_mask in place of yours")
    assert rows["part4_loop"].status == "ok" and rows["part4_loop"].hint.startswith("graded with a right my_step in")
    assert [rows[part].status for part in list(rows)[4:]] == ["died", "not run"]
    assert {row.file for row in rows.values()} == {"mona/01.ipynb"}


ROW = Row("ada", FIRST, "part1_scores", 0.0, 3.0, 1.5, "wrong", "no", "ada/01.ipynb")


def lines_of(out):
    return list(csv.DictReader((out / "grades.csv").open(encoding="utf-8")))


def test_the_csv_holds_no_formula(tmp_path):
    Gradebook(tmp_path).add([replace(ROW, student="=cmd()", hint="@SUM(1)")], "page", "x.html")
    (read,) = lines_of(tmp_path)
    assert read["student"] == "'=cmd()" and read["hint"] == "'@SUM(1)" and read["points"] == "0"


def test_results_are_on_disk_at_once_and_sorted(tmp_path):
    book = Gradebook(tmp_path)
    assert (tmp_path / "seed.txt").read_text(encoding="utf-8").strip() == book.seed and len(book.seed) == 32
    for number, student in enumerate(["zoe", "ada", "ben"], start=1):
        book.add([replace(ROW, student=student)], "a \ud800 page", f"{student}.html")
        assert [line["student"] for line in lines_of(tmp_path)] == sorted(["zoe", "ada", "ben"][:number])


def test_grading_again_into_the_same_folder_replaces_what_was_graded_again(tmp_path):
    hand = replace(ROW, part="part2", points=None, status="by hand")
    first = Gradebook(tmp_path, "seven")
    first.add([ROW, hand], "old", "ada.html")
    first.add([replace(ROW, student="ben")], "old", "ben.html")
    text = (tmp_path / "grades.csv").read_text(encoding="utf-8")
    text = text.replace("part2,,", "part2,2.5,").replace("hint,file", "hint,file,mine").replace(".ipynb", ".ipynb,late")
    (tmp_path / "grades.csv").write_text("\ufeff" + text, encoding="utf-8")
    again = Gradebook(tmp_path)
    again.add([replace(ROW, points=3.0, status="ok"), hand], "new", "ada.html")
    assert again.seed == "seven" and Gradebook(tmp_path, "8").seed == "8"
    lines = {(line["student"], line["part"]): line for line in lines_of(tmp_path)}
    assert [line["points"] for line in lines.values()] == ["3", "2.5", "0"]
    assert {line["mine"] for line in lines.values()} == {"late"}
    assert "earlier" in lines["ada", "part2"]["hint"]
    assert [(tmp_path / "feedback" / f"{name}.html").read_text() for name in ("ada", "ben")] == ["new", "old"]


def test_a_table_that_is_none_of_ours_is_not_overwritten(tmp_path):
    (tmp_path / "grades.csv").write_bytes("Schüler;Punkte\n".encode("cp1252"))
    with pytest.raises(ValueError, match="another --out"):
        Gradebook(tmp_path)


def test_the_table_is_in_line_and_cut_between_words():
    long = replace(ROW, student="bert", assignment=THIRD, points=3.0, status="partly", hint="word " * 60)
    above, below = summary([ROW, long]).splitlines()
    assert above.index("[0]") == below.index("[3]") and above.index("ada") == below.index("bert")
    assert below.endswith("word …") and above.endswith("wrong: no")


WHY = "a tie stays; this looks like: more than"
GRADED = {"grade": True, "grade_id": "part1_scores"}


def run_of(release, *cells):
    """A page of a notebook with these cells put behind the first assignment's first part."""
    made = releases_of(release, FIRST)[FIRST]
    notebook = {"cells": [*made["cells"][:4], *cells]}
    rows = [replace(ROW, student="<b>Ada</b>", hint=f"{WHY}; graded with a right my_mask in place of yours")]
    return page(Submission("<b>Ada</b>", Path(), FIRST, file="<i>.ipynb"), rows, made, notebook)


def code(source, *outputs, **marks):
    return {"cell_type": "code", "source": source, "metadata": {"nbgrader": marks}, "outputs": list(outputs)}


EVIL = "<script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>"


def test_nothing_of_a_student_runs_on_the_page(release):
    rich = {"text/html": EVIL, "text/plain": EVIL, "image/png": '"><script>', "application/javascript": "alert(1)"}
    outputs = [
        {"output_type": "display_data", "data": rich},
        {"output_type": "stream", "name": "stdout", "text": EVIL},
        {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]},
    ]
    text = run_of(release, {"cell_type": "markdown", "source": EVIL, "metadata": {}}, code(EVIL, *outputs))
    assert text.count(html.escape(EVIL)) == 6
    assert not re.findall(r"<(?:script|iframe|link|i>|b>Ada)", text)
    assert all(src.startswith("data:image/") for src in re.findall(r"<[^>]*\bsrc=\W?([^\s>]+)", text))
    assert "default-src 'none'" in text


def test_the_page_says_who_what_and_every_thing_once(release):
    said = "✗ my_scores: not yet.\n  Broke:  a tie stays"
    error = {"output_type": "error", "ename": "NotYet", "evalue": f"\n{said}", "traceback": []}
    check = code("check()", {"output_type": "execute_result", "data": {"text/plain": said}})
    graded = code("hidden = 1", shows({"replaced": ["my_mask"]}), shows(FAILED), error, **GRADED)
    text = run_of(release, code(SETUP), check, graded)
    assert text.count("<td><b>Broke</b></td>") == text.count("<td><b>This looks like</b></td>") == 1
    assert text.count("<td>a tie stays</td>") == 1 and text.count("a tie stays; this looks") == 1  # the table of parts
    assert text.count("<h1>") == 1
    assert not any(word in text for word in ("NotYet", "hidden = 1", "%pip"))
    assert "&lt;b&gt;Ada&lt;/b&gt;" in text and "Assignment 01 · The loop" in text and "0 of 3 points" in text
    assert text.count("Part 1 · The score") >= 2 and text.count("in place of yours") == 2  # the table and the part
    other = error | {"evalue": said.replace("a tie", "new numbers")}
    text = run_of(release, check, code("", other, **GRADED))  # nothing published: the text as it is
    assert text.count("Broke:") == 2 and "<td><b>Broke" not in text


def test_nothing_of_what_a_check_published_runs(release):
    forged = {name: EVIL for name in (*FAILED, EVIL)}
    error = {"output_type": "error", "ename": "NotYet", "evalue": "✗ no", "traceback": []}
    text = run_of(release, code("", shows(forged), shows({"replaced": [EVIL]}), error, **GRADED))
    assert "<script" not in text and text.count(f"<td>{html.escape(EVIL)}</td>") == 4


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_formulas_need_no_network(path):
    source = "\n".join(c.source for c in master(path.stem).cells if c.cell_type == "markdown")
    text = to_html(source)
    assert text.count("<img") == re.sub(r"(`+).+?\1", "", source.replace("$$", "$"), flags=re.S).count("$") / 2
    assert "$" not in re.sub(r"<code>.*?</code>|<img[^>]*>", "", text, flags=re.S)
    assert re.findall(r'src="(.{10})', text) == ["data:image"] * text.count("<img")
    assert next(iter(parts_of(master(path.stem)).values())).title.startswith("Part 1 · ")


def test_an_unknown_command_in_a_formula_stays_readable():
    assert to_html(r"so $\nosuchcommand{x}$") == "<p>so <code>\\nosuchcommand{x}</code></p>\n"


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


# ---- the round trip, through nbgrader, one kernel per submission


def two_planted():
    """Two named planted mistakes for the whole grader; the others, and all references, are graded in one process."""
    by_assignment = {}
    for assignment, grade_id, name, source in planted():
        if name:
            by_assignment.setdefault(assignment, {}).setdefault(grade_id, (assignment, grade_id, name, source))
    lists = [list(parts.values()) for parts in by_assignment.values()]
    return [row for turn in zip_longest(*lists) for row in turn if row][:2]


def class_of_students(release, folder):
    """What needs a kernel of its own: a reference, two planted mistakes, tampered tests, and five that are hostile."""
    made = {}

    def hand_in(student, name, solutions, drop=(), edit=lambda notebook: None):
        notebook = handed_in(release / name / f"{name}.ipynb", solutions, drop=drop)
        edit(notebook)
        write(notebook, folder / student / f"{name}.ipynb")

    hand_in("reference", THIRD, reference(THIRD))
    for name, grade_id, mistake, source in two_planted():
        made[f"planted-{name[:2]}-{grade_id}"] = (grade_id, mistake)
        hand_in(f"planted-{name[:2]}-{grade_id}", name, reference(name) | {grade_id: source})

    def tamper(notebook):
        for cell in notebook.cells:
            if role(cell, "grade"):
                cell.source, cell.metadata["nbgrader"]["points"] = "pass", 100

    zero = {"scores": "def my_scores(expert_logits, amateur_logits, strength=1.0):\n    return 0"}
    hand_in("tampered", FIRST, zero, drop={"part2_mask"}, edit=tamper)
    warns = 'import sys; print("a warning", file=sys.stderr)'
    noisy = reference(FIRST)["scores"].replace("### BEGIN", f"{warns}\n    ### BEGIN")
    for name, source in HOSTILE.items():  # what they print on stderr before costs nothing
        hand_in(name, FIRST, reference(FIRST) | {"loop": source, "scores": noisy})
    (folder / f"broken_{FIRST}.ipynb").write_text("{", encoding="utf-8")
    return made


@pytest.mark.slow
def test_round_trip(release, tmp_path, capsys, record_property):
    made = class_of_students(release, tmp_path / "in")
    options = ["--out", str(tmp_path / "out"), *"--seed 7 --cell-timeout 15 --timeout 240 --memory 2.5".split()]
    assert main(["grade", str(tmp_path / "in"), *options]) == 0
    record_property("table", capsys.readouterr().out)
    rows = {}
    with open(tmp_path / "out" / "grades.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["student"], []).append(row)
    share = {
        name: sum(float(r["points"] or 0) for r in rs) / sum(float(r["max"]) for r in rs) for name, rs in rows.items()
    }
    for student, parts in rows.items():
        (feedback,) = (tmp_path / "out" / "feedback").glob(f"{slug(student)}*.html")
        text = feedback.read_text(encoding="utf-8")
        assert f"<b>{student}</b>" in text and parts[0]["file"] in text, student
        assert "<script" not in text and not re.search(r"(src|href)=.http", text), student
    assert share["reference"] == 1 and share["tampered"] == 0 and share["broken"] == 0
    for student, (_, mistake) in made.items():
        assert share[student] < 1, student
        (feedback,) = (tmp_path / "out" / "feedback").glob(f"{student}*.html")
        text = html.unescape(feedback.read_text(encoding="utf-8"))
        assert mistake in text and "HIDDEN TESTS" not in text and "CDLEARN_GRADING_SEED" not in text
        assert any(mistake in row["hint"] for row in rows[student])
    wanted = {"hangs": "timeout", "prints-without-end": "timeout", "eats-memory": "memory"}
    wanted |= {"kills-the-kernel": "died", "ignores-interrupts": "stopped"}
    for student, status in wanted.items():
        parts = {row["part"]: row for row in rows[student]}
        assert parts["part4_loop"]["status"] == status and parts["part4_loop"]["points"] == "0", student
        assert all(parts[part]["points"] == "3" for part in ("part1_scores", "part2_mask", "part3_step")), student
    assert {row["part"]: row for row in rows["hangs"]}["part4_loop"]["hint"].startswith("it ran longer than 15 ")
    assert any("graded with a right my_" in row["hint"] for name in made for row in rows[name] if row["status"] == "ok")
    assert float(rows["hangs"][4]["seconds"]) < 15 < float(rows["hangs"][3]["seconds"])
