"""The classroom: what students get holds no answer, and what they hand in is graded whatever it does."""

import csv
import json
import re
import zipfile
from itertools import zip_longest
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("nbgrader")
from masters import HOSTILE, MASTERS, handed_in, hidden_lines, master, planted, reference, role

import cdlearn
from cdlearn.classroom import build, find_masters
from cdlearn.classroom.build import use_own_programs
from cdlearn.classroom.report import Row, hint_of, own_feedback, status_of, write_csv
from cdlearn.classroom.submissions import Submission, find_submissions, points_of, restore, slug
from cdlearn.cli import main

FIRST = "01_loop_and_score"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    out = tmp_path_factory.mktemp("release")
    build(out, install="cdlearn @ https://example.org/cdlearn.whl")
    return out


def notebook_of(release, name):
    return nbformat.read(release / name / f"{name}.ipynb", as_version=4)


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
    assert "not a notebook" in found["fay"].problem and "no assignment" in found["eve"].problem
    assert not found["ben"].problem


def test_deleted_and_unmarked_cells_come_back(release, tmp_path):
    releases = {FIRST: json.loads((release / FIRST / f"{FIRST}.ipynb").read_text(encoding="utf-8"))}
    for cell in releases[FIRST]["cells"]:
        cell["source"] = "".join(cell["source"])
    notebook = handed_in(release / FIRST / f"{FIRST}.ipynb", reference(FIRST), drop={"part1_scores", "step"})
    for cell in notebook.cells:
        if role(cell, "solution") == "mask":
            cell.metadata = {}
    write(notebook, tmp_path / "ada.ipynb")
    (one,) = find_submissions(tmp_path, releases)
    cells = restore(one, releases[FIRST])["cells"]
    marks = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell["metadata"]]
    assert marks == [
        c["metadata"]["nbgrader"]["grade_id"] for c in releases[FIRST]["cells"] if "nbgrader" in c["metadata"]
    ]
    assert one.restored == ["part1_scores", "step"]
    mask = next(c for c in cells if c["metadata"].get("nbgrader", {}).get("grade_id") == "mask")
    assert "NotImplementedError" not in mask["source"]


def test_points_of_a_release(release):
    parts = points_of(json.loads((release / FIRST / f"{FIRST}.ipynb").read_text(encoding="utf-8")))
    assert list(parts) == ["part1_scores", "part2_mask", "part3_step", "part4_loop", "part5_first_difference",
                           "part6_decisions"] and sum(parts.values()) == 20  # fmt: skip


@pytest.mark.parametrize("text, name", [("Ada L.", "Ada-L"), ("../../etc", "etc"), ("Zoë", "Zoe"), ("李", "student")])
def test_a_student_name_is_a_file_name(text, name):
    assert slug(text) == name


# ---- what goes out


def test_a_hint_is_one_line():
    message = (
        "\n✗ my_mask: not yet.\n  Broke:           a tie stays\n  This looks like: more than\n  Look at:         it"
    )
    assert hint_of("AssertionError", message) == "a tie stays; this looks like: more than"
    assert hint_of("NameError", "name 'x' is\nnot defined") == "NameError: name 'x' is not defined"
    assert status_of("AssertionError", message, 0.0, 3.0) == "wrong"
    assert status_of("", "", 3.0, 3.0) == "ok" and status_of("", "", None, 3.0) == "by hand"


def test_the_csv_holds_no_formula_and_our_page_no_script(tmp_path):
    row = Row("=cmd()", FIRST, "part1", 0.0, 3.0, 1.5, "wrong", "@SUM(1)")
    write_csv([row], tmp_path / "grades.csv")
    (read,) = csv.DictReader((tmp_path / "grades.csv").open(encoding="utf-8"))
    assert read["student"] == "'=cmd()" and read["hint"] == "'@SUM(1)" and read["points"] == "0"
    cells = [{"cell_type": "code", "source": "<script>alert(1)</script>", "metadata": {}}]
    page = own_feedback(Submission("<b>", tmp_path, FIRST, {"cells": cells}), [row], "<i>died</i>")
    assert "<script>" not in page and "<i>" not in page and "0 of 3 points" in page


def test_the_commands_say_where_the_masters_are(tmp_path, capsys):
    assert main(["assignments", str(tmp_path / "out"), "--source", str(tmp_path)]) == 1
    assert "repository" in capsys.readouterr().err
    assert main(["grade", str(tmp_path / "none")]) == 1
    assert "no folder" in capsys.readouterr().err
    assert main(["grade", str(tmp_path), "--assignment", "07"]) == 1
    assert FIRST in capsys.readouterr().err


def test_own_programs_come_first(monkeypatch):
    import os
    import sys

    monkeypatch.setenv("PATH", "/usr/bin")
    use_own_programs()
    use_own_programs()
    assert os.environ["PATH"] == os.pathsep.join([os.path.dirname(sys.executable), "/usr/bin"])


# ---- the round trip, through nbgrader, one kernel per submission


def six_planted():
    """Six named planted mistakes for the whole grader: every assignment in turn, another part each time."""
    by_assignment = {}
    for assignment, grade_id, name, source in planted():
        if name:
            by_assignment.setdefault(assignment, {}).setdefault(grade_id, (assignment, grade_id, name, source))
    lists = [list(parts.values()) for parts in by_assignment.values()]
    return [row for turn in zip_longest(*lists) for row in turn if row][:6]


def class_of_students(release, folder):
    """Reference, blank, six planted mistakes, tampered tests, and five that are hostile."""
    made = {}

    def hand_in(student, name, solutions, drop=(), edit=lambda notebook: None):
        notebook = handed_in(release / name / f"{name}.ipynb", solutions, drop=drop)
        edit(notebook)
        write(notebook, folder / student / f"{name}.ipynb")

    for path in MASTERS:
        hand_in(f"reference-{path.stem[:2]}", path.stem, reference(path.stem))
    hand_in("blank", FIRST, {})
    for name, grade_id, mistake, source in six_planted():
        made[f"planted-{name[:2]}-{grade_id}"] = (grade_id, mistake)
        hand_in(f"planted-{name[:2]}-{grade_id}", name, reference(name) | {grade_id: source})

    def tamper(notebook):
        for cell in notebook.cells:
            if role(cell, "grade"):
                cell.source, cell.metadata["nbgrader"]["points"] = "pass", 100

    hand_in(
        "tampered",
        FIRST,
        {"scores": "def my_scores(expert_logits, amateur_logits, strength=1.0):\n    return 0"},
        drop={"part2_mask"},
        edit=tamper,
    )
    noisy = reference(FIRST)["scores"].replace(
        "### BEGIN", 'import sys; print("a warning", file=sys.stderr)\n    ### BEGIN'
    )
    for name, source in HOSTILE.items():  # what they print on stderr before costs nothing
        hand_in(name, FIRST, reference(FIRST) | {"loop": source, "scores": noisy})
    (folder / f"broken_{FIRST}.ipynb").write_text("{", encoding="utf-8")
    return made


@pytest.mark.slow
def test_round_trip(release, tmp_path, capsys, record_property):
    made = class_of_students(release, tmp_path / "in")
    options = ["--out", str(tmp_path / "out"), "--seed", "7", "--cell-timeout", "20", "--timeout", "240"]
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
        pages = list((tmp_path / "out" / "feedback").glob(f"{slug(student)}_*.html"))
        assert pages and parts, student
    for path in MASTERS:
        mine = [r for r in rows[f"reference-{path.stem[:2]}"] if r["status"] != "by hand"]
        assert all(r["points"] == r["max"] for r in mine), path.stem
    assert share["blank"] == 0 and share["tampered"] == 0 and share["broken"] == 0
    assert {r["status"] for r in rows["blank"]} == {"not written"}
    for student, (_, mistake) in made.items():
        assert share[student] < 1, student
        (page,) = (tmp_path / "out" / "feedback").glob(f"{student}_*.html")
        text = page.read_text(encoding="utf-8").replace("&#39;", "'")
        assert mistake in text and "HIDDEN TESTS" not in text and "CDLEARN_GRADING_SEED" not in text
        assert any(mistake in row["hint"] for row in rows[student])
    wanted = {"hangs": "timeout", "prints-without-end": "timeout", "eats-memory": "memory"}
    wanted |= {"kills-the-kernel": "died", "ignores-interrupts": "stopped"}
    for student, status in wanted.items():
        parts = {row["part"]: row for row in rows[student]}
        assert parts["part4_loop"]["status"] == status and parts["part4_loop"]["points"] == "0", student
        assert all(parts[part]["points"] == "3" for part in ("part1_scores", "part2_mask", "part3_step")), student
