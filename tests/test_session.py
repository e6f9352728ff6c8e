"""The student's process: cells and calls go in, data comes out, and whatever it does ends it at most."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from masters import MASTERS, SANDBOX, needs_sandbox

import cdlearn
from cdlearn.classroom.checks import loop
from cdlearn.classroom.checks.models import TableLM, filled
from cdlearn.classroom.grader.cells import defined, statements, unwritten
from cdlearn.classroom.grader.sandbox import unprotected
from cdlearn.classroom.grader.session import Session, Stopped
from cdlearn.classroom.grader.worker import graded

CELLS = """
import os
import torch
shift = 1
def add(x, by=1):
    print("adding")
    return x + by * shift
def edit(x, items):
    x.mul_(2)
    items.append(7)
def fail(x):
    return x["no"]
def two(x):
    return add(add(x))
def ask(model):
    return model(torch.tensor([[1]])).logits
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One process for the tests that leave it as it was."""
    with Session(tmp_path_factory.mktemp("session"), one_thread=True) as session:
        assert session.run(CELLS, 30) == {}
        yield session


def call(session, name, *args, helpers=None, **options):
    with session.within(20):
        return session.call(name, args, options, helpers or {})


def test_a_call_gives_the_value_and_what_was_printed(shared, capsys):
    assert call(shared, "add", torch.tensor([1.5]), by=2).tolist() == [3.5]
    assert capsys.readouterr().out == "adding\n"


def test_arguments_become_what_the_call_made_of_them(shared):
    x, items = torch.tensor([1.0, 2.0]), [1]
    call(shared, "edit", x, items)
    assert x.tolist() == [2.0, 4.0] and items == [1, 7]


def test_an_error_has_its_kind_its_text_and_the_students_line(shared):
    with pytest.raises(TypeError) as caught:
        call(shared, "fail", 3)
    assert type(caught.value).__name__ == "TypeError" and "subscriptable" in str(caught.value)
    assert caught.value.where == 'line 11: return x["no"]'


def test_a_helper_stands_in_for_one_call_only(shared):
    assert call(shared, "two", 1) == 3
    assert call(shared, "two", 1, helpers={"add": lambda x: 10 * x}) == 100
    assert call(shared, "two", 1) == 3 and shared.used("two") == {"add", "print", "shift"}
    call(shared, "add", 1, helpers={"unknown": lambda x: x})
    assert shared.there(["add", "shift", "unknown"]) == {"add": True, "shift": False}


def test_a_statement_that_fails_does_not_take_the_next_with_it(shared):
    found = shared.run("before = 1\n1 / 0\nafter = len\n", 10)
    assert found["kind"] == "ZeroDivisionError" and found["where"] == "line 2: 1 / 0"
    assert shared.there(["before", "after"]) == {"before": False, "after": True}
    assert shared.run("%matplotlib inline\n!true\nlen", 10) == {}


@pytest.mark.parametrize("source", ["def f(:", "\ud800", "x = 1\0", "-" * 100_000 + "1", "x" + ".a" * 50_000])
def test_a_cell_that_cannot_be_read_is_an_error_and_no_more(shared, source):
    assert shared.run(source, 10)["kind"] and defined(source) == [] and not unwritten(source)


def test_what_is_only_shown_can_be_left_out(shared):
    assert shared.run("1 / 0\nshown = len", 10, all_of_it=False) == {} and shared.there(["shown"]) == {"shown": True}


def test_the_package_is_not_there_and_says_so_where_an_answer_needs_it(shared):
    cells = (
        "import cdlearn.scores\nfrom cdlearn.classroom.checks import loop as checks\nchecks.check_scores(1).require()\n"
    )
    assert shared.run(cells + "from cdlearn.classroom.checks.loop import my_scores as mine", 10) == {}
    shared.run("def through(x):\n    return cdlearn.scores.contrastive(x)", 10)
    for name in ("mine", "through"):
        with pytest.raises(ImportError, match="may not use cdlearn"):
            call(shared, name, 1)


def test_from_a_model_nothing_but_its_answers_can_be_had(shared):
    assert call(shared, "ask", TableLM([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[[3.0, 4.0]]]
    reach = "def reach(model, name):\n    return model._wire.ask({'do': 'use', 'number': model._number, 'get': name})\n"
    shared.run(reach, 10)
    for name in ("__globals__", "gives", "__dict__", "count", "__init__"):
        with pytest.raises(AttributeError):
            call(shared, "reach", TableLM([[1.0]]), name)
    assert call(shared, "reach", TableLM([[1.0]]), "asked") == 0


def test_crop_0_is_refused_there_too(shared):
    shared.run("def crop(cache, tokens):\n    cache.crop(tokens)", 10)
    cache = filled([3, 5])
    call(shared, "crop", cache, -1)
    assert cache.get_seq_length() == 1
    with pytest.raises(ValueError, match="empty the cache"):
        call(shared, "crop", cache, 0)


ESCAPE = """
def escape(helper, path):
    def ask(number, **more):
        return helper._wire.ask({"do": "use", "number": number} | more)
    Part = ask(helper._number, get="__globals__")["Part"]
    evil = f"open({path!r}, 'w')\\n    scores = my_scores"
    part = Part(1, helper, [("mine", "scores = my_scores", evil, "")])
    part.known[0][1](torch.zeros(1, 2), torch.zeros(1, 2))
"""


def test_a_function_that_stands_in_is_no_way_into_the_graders_process(shared, tmp_path):
    """From a helper's globals to the checks' own Part, which makes functions of texts: it opened a file out there."""
    assert shared.run(ESCAPE, 10) == {}
    with pytest.raises(AttributeError, match="__globals__"):
        call(shared, "escape", loop.my_step, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


STEAL = "import gc\n[kernel] = [x for x in gc.get_objects() if type(x).__name__ == 'Kernel' and hasattr(x, 'sink')]\n"
FORGED = {  # what the process writes for an answer, and what that is here
    "no json\n": Stopped,
    "[]\n": Stopped,
    '{"value": {"config": {}}}\n': ValueError,
    '{"error": {"kind": "ExceptionGroup"}, "after": 3}\n': Exception,
    '{"ask": {"number": [], "get": 1}, "caches": 7}\n{"error": {"kind": "KeyError"}}\n': KeyError,
}


def test_a_forged_reply_is_an_error_of_the_students(tmp_path):
    with Session(tmp_path, one_thread=True) as session:
        assert (
            session.run(f"{STEAL}def f(reply):\n    kernel.sink.write(reply.encode())\n    kernel.sink.flush()", 20)
            == {}
        )
        for reply, error in FORGED.items():
            with pytest.raises(error):
                call(session, "f", reply)
            session.close()
        forged = "kernel.sink.write(b'{\"error\": 5}\\n')\nkernel.sink.flush()\n"
        assert session.run(forged, 20) == {"kind": "", "text": "", "where": ""}


ENDINGS = {
    "hangs": ("while True: pass", "timeout", "it ran longer than 2 seconds and was stopped"),
    "holds its breath": (
        "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
        "timeout",
        "",
    ),
    "prints": ("while True: print('megabytes ' * 1000)", "timeout", ""),
    "writes without a line's end": (STEAL + "while True: kernel.sink.write(b'x' * 10**6)", "died", ""),
    "exits": ("os._exit(3)", "died", "the process died"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "died", ""),
    "eats": ("hoard = []\nwhile True: hoard.append(bytearray(10**8))", "memory", ""),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_that_ends_is_started_again_with_everything_but_what_it_died_of(tmp_path, ending):
    source, status, text = ENDINGS[ending]
    with Session(tmp_path, one_thread=True, memory=3) as session:
        session.run("import os\nkept = len", 20)
        try:
            error = session.run(f"before = len\n{source}\nafter = len", 2 if status == "timeout" else 20)
            assert status == "memory" and error["kind"] == "MemoryError"
        except Stopped as stopped:
            assert stopped.status == status and text in str(stopped)
            assert session.there(["kept", "before", "after"]) == {"kept": True, "before": True}


def test_questions_without_end_are_ended(tmp_path):
    quick = "def f(model):\n    while True:\n        try: model(torch.tensor([[1]]))\n        except Exception: pass\n"
    slow = "import time\ndef g(model):\n    while True:\n        time.sleep(0.1)\n        model.asked\n"
    with Session(tmp_path, one_thread=True) as session:
        session.run("import torch\n" + quick + slow, 20)
        with pytest.raises(Stopped, match="asked the models 2000 times"):
            call(session, "f", TableLM([[1.0]]))
        session.ready()
        began = time.monotonic()
        with pytest.raises(Stopped, match="longer than 1 seconds"), session.within(1):
            session.call("g", (TableLM([[1.0]]),), {}, {})
        assert time.monotonic() - began < 5


@needs_sandbox
def test_in_the_sandbox_there_is_nothing_of_anybody_else(tmp_path):
    (tmp_path / "mine.py").write_text("answer = 42\n")
    look = """
import glob, os, socket
from mine import answer
def look(paths):
    seen = [path for path in paths if os.path.exists(path)]
    try:
        socket.create_connection(("127.0.0.1", 22), 1)
    except OSError as error:
        seen.append(error.errno == 111)
    others = [name for name in os.listdir(".") if name.endswith(".py")]
    return [answer, os.getpid() < 20, os.environ.get("CDLEARN_GRADING_SEED"), others, seen]
def write(path):
    open(path, "w")
"""
    os.environ["CDLEARN_GRADING_SEED"] = "secret"
    try:
        with Session(tmp_path, one_thread=True) as session:
            assert session.run(look, 20) == {}
            hidden = [str(path) for path in (tmp_path, MASTERS[0], Path(__file__), Path(cdlearn.__file__))]
            assert call(session, "look", hidden) == [42, True, None, ["mine.py"], [True]]
            for path in ("/usr/x", "mine.py"):
                with pytest.raises(OSError):
                    call(session, "write", path)
    finally:
        del os.environ["CDLEARN_GRADING_SEED"]


@pytest.mark.skipif(not SANDBOX and os.environ.get("CDLEARN_REQUIRE_SANDBOX") != "1", reason="no sandbox")
def test_ci_has_the_sandbox_it_asked_for():
    assert SANDBOX, unprotected()


def test_without_the_sandbox_a_line_says_what_is_not_protected(monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    unprotected.cache_clear()
    try:
        assert "bubblewrap" in unprotected() and "network" in unprotected() and "\n" not in unprotected()
    finally:
        monkeypatch.undo()
        unprotected.cache_clear()


def test_a_statement_keeps_its_lines_and_its_decorators():
    source = "@a\n@b\ndef f():\n    return 1\n%time x = 1\n"
    first, second = (text for text, _ in statements(source))
    assert first.startswith("@a\n@b\ndef f") and second.startswith("#\n#\n#\n#\nget_ipython()")


# ---- a worker: a whole notebook


def notebook(*cells):
    """Cells (source, grade_id or "", "solution" or "grade"), the way nbgrader marks them."""
    made = []
    for source, *mark in cells:
        marks = {"grade_id": mark[0], mark[1]: True, "points": 2} if mark else {}
        made.append({"cell_type": "code", "source": source, "metadata": {"nbgrader": marks}, "outputs": []})
    return {"cells": made}


STUB = 'def {}(x):\n    """What it does."""\n    raise NotImplementedError()'
TEST = "assert {}(2) == 4"
MASTER = notebook(
    ("import torch",), *[cell for name in ("one", "two", "three") for cell in (
        (STUB.format(name), name, "solution"), (TEST.format(name), f"part_{name}", "grade"))],
)  # fmt: skip


def tried(tmp_path, *cells, **options):
    """What a hand-in of these cells comes to: part -> (right, status, hint)."""
    events = graded(
        notebook(("import torch",), *cells), MASTER, tmp_path, **{"seconds": 3, "one_thread": True} | options
    )
    return {
        e["part"]: (e["points_earned"], e["status"], e["hint"]) if "part" in e else None for e in events if "part" in e
    }


def test_a_stub_behind_a_function_that_is_written_is_nobody(tmp_path):
    """Row 16: the stubs are kept, everything is written in one cell before, after or without them."""
    right = "def one(x):\n    return 2 * x\ntwo = three = one"
    stubs = [(STUB.format(name), name, "solution") for name in ("one", "two", "three")]
    for cells in ([(right,), *stubs], [*stubs, (right,)], [(right,)]):
        assert all(earned for earned, *_ in tried(tmp_path, *cells).values())
    found = tried(tmp_path, *stubs)
    assert {status for _, status, _ in found.values()} == {"wrong"}  # a plain assert: no check that says more
    assert unwritten(STUB.format("one")) and not unwritten("def one(x):\n    return 1") and not unwritten("")


def test_a_cell_that_hangs_or_dies_is_named_in_its_parts_hint(tmp_path):
    found = tried(tmp_path, ("while True: pass", "one", "solution"), ("import os\nos._exit(1)", "two", "solution"),
                  ("import time\ndef three(x):\n    time.sleep(9)", "three", "solution"))  # fmt: skip
    assert found["part_one"] == (False, "timeout", "it ran longer than 3 seconds and was stopped")
    assert found["part_two"][:2] == (False, "died") and "the process died" in found["part_two"][2]
    assert found["part_three"] == (False, "timeout", "it ran longer than 3 seconds and was stopped")


def test_the_calls_of_a_part_have_one_limit_together_and_so_has_everything(tmp_path):
    slow = "import time\ndef one(x):\n    time.sleep(1)\n    return 4\ntwo = three = one"
    master = notebook(
        ("",), (STUB.format("one"), "one", "solution"), ("for _ in range(99): one(1)", "part_one", "grade")
    )
    began = time.monotonic()
    (found,) = graded(notebook((slow,)), master, tmp_path, seconds=3, one_thread=True)
    assert found["status"] == "timeout" and time.monotonic() - began < 15
    *_, last = graded(notebook((slow,), ("while True: pass",)), master, tmp_path, seconds=60, total=6, one_thread=True)
    assert last == {"reason": "it ran longer than 6 seconds in all and was stopped"}


def test_after_a_timeout_a_cell_that_defines_nothing_gets_little_time(tmp_path, monkeypatch):
    monkeypatch.setattr("cdlearn.classroom.grader.worker.SHORT", 1)
    began = time.monotonic()
    cells = [("while True: pass",), ("import time\ntime.sleep(20)",), ("one = two = three = lambda x: 2 * x",)]
    assert all(earned for earned, *_ in tried(tmp_path, *cells, seconds=4).values())
    assert time.monotonic() - began < 20


def test_optimised_python_tests_as_any_other(tmp_path):
    """Row 18: PYTHONOPTIMIZE removes no assert of a test."""
    code = "import json, sys\nfrom pathlib import Path\nfrom cdlearn.classroom.grader.worker import graded\n"
    code += "a, b = map(json.loads, sys.argv[1:])\nprint([e['points_earned'] for e in graded(a, b, Path('.'))])"
    wrong = notebook(("one = two = lambda x: 4\nthree = lambda x: 5",))
    env = os.environ | {"PYTHONOPTIMIZE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, json.dumps(wrong), json.dumps(MASTER)]
    done = subprocess.run(command, env=env | {"PYTHONPATH": str(Path(cdlearn.__file__).parents[1])}, cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "[True, True, False]\n", done.stderr


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_the_references_get_all_points(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CDLEARN_GRADING_SEED", "any")
    master = json.loads(path.read_text(encoding="utf-8"))
    events = list(graded(master, master, tmp_path, one_thread=True))
    parts = [event for event in events if "part" in event]
    assert parts == events and len(parts) >= 2
    assert [event for event in parts if not event["points_earned"] or event["status"] != "ok"] == []
