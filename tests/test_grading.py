"""The checks: the reference solutions pass, and every planted mistake is caught and named. One process, no kernel."""

import ast
import functools
import linecache
import math

import numpy as np
import pytest
import torch
from masters import MASTERS, Session, checked, master, parts, planted, reference, role, with_solution

from cdlearn.classroom.checks import Case, Part, cache, dola, forbid, loop, same, speculation
from cdlearn.classroom.checks.forbidden import forbidden_uses
from cdlearn.classroom.checks.result import NotYet

PLANTED = list(planted())


def judge(notebook, grade_id, seed, monkeypatch):
    """What a student sees: (who caught it, the message); caught by "" if nothing did."""
    monkeypatch.setenv("CDLEARN_GRADING_SEED", str(seed))
    session = Session()
    for name, earlier, solution, check, graded in parts(notebook):
        if name != grade_id:
            continue
        for cell in (*earlier, solution):
            session.run(cell.source)
        result = session.run(check.source)
        if not result:
            return "visible", str(result)
        try:
            session.run(graded.source)
        except AssertionError as error:
            return "hidden", str(error)
    return "", ""


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_the_reference_solutions_pass_on_three_seeds(path, monkeypatch):
    for name, *_ in parts(master(path.stem)):
        for seed in (0, "another", 2**40):
            assert judge(master(path.stem), name, seed, monkeypatch) == ("", ""), name


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_masters_solution_is_the_reference_of_its_check(path):
    """There is one solution: what the check's mistakes are made of, and what stands in for a wrong function."""

    def code(source):
        (function,) = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)][-1:]
        function.body = function.body[isinstance(function.body[0], ast.Expr) :]  # without the docstring
        return ast.dump(function)

    for grade_id, part in checked(path.stem).items():
        assert code(reference(path.stem)[grade_id]) == code(part.source_of()), grade_id


@pytest.mark.parametrize(
    "assignment, grade_id, name, source", PLANTED, ids=[f"{a[:2]}-{g}-{n}" for a, g, n, _ in PLANTED]
)
def test_a_planted_mistake_is_caught_and_named(assignment, grade_id, name, source, monkeypatch, record_property):
    caught, message = judge(with_solution(master(assignment), grade_id, source), grade_id, 1, monkeypatch)
    assert caught, f"{grade_id}: nothing caught {name}"
    record_property("table", f"{assignment:24}{grade_id:18}caught by: {caught:8} named: {name or '-'}")
    if name is not None:
        assert name in message
        assert caught == "visible" or name == "gives None", "a student sees a tick and gets no points"


# What the hidden tests of every seed must find by themselves, for points do not depend on a seed: parts of the names.
ALWAYS = [
    ("02_cache_and_batches", "batched_loop", "a row at its limit still keeps the loop going"),
    ("01_loop_and_score", "loop", "the reason guessed from the number of tokens"),
    ("01_loop_and_score", "first_difference", "the shorter text filled up with 0"),
    ("04_dola", "scores", "more than instead of at least"),
    ("04_dola", "scores", "one best token for the whole batch"),
]


@pytest.mark.parametrize("assignment, grade_id, name", ALWAYS, ids=[f"{a[:2]}-{name}" for a, _, name in ALWAYS])
def test_the_hidden_tests_of_every_seed_hold_the_situation(assignment, grade_id, name, monkeypatch):
    sources = [source for one, part, mistake, source in PLANTED if (one, part, mistake) == (assignment, grade_id, name)]
    (graded,) = [one.source for part, *_, one in parts(master(assignment)) if part == grade_id]
    for source in sources:
        session = Session()
        session.run(next(cell.source for cell in master(assignment).cells if cell.cell_type == "code"))
        session.run(source)
        for seed in range(10):
            monkeypatch.setenv("CDLEARN_GRADING_SEED", str(seed))
            with pytest.raises(AssertionError):
                session.run(graded.split("### BEGIN HIDDEN TESTS")[-1])
    assert sources


@pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
def test_a_hidden_assert_takes_no_text_from_a_result_that_holds(path):
    """Until `hint.require()` a result may be wrong; after it the message would be a tick."""
    lines = [line for _, *_, cell in parts(master(path.stem)) for line in cell.source.splitlines()]
    assert [line for line in lines if "assert " in line and line.endswith(", hint")] == []
    assert "✓" not in told(lambda x: 2 * x).again


# Right on every visible case, wrong in the hidden tests of their own part: they would spoil the parts that call them.
SECRET = [
    ("01_loop_and_score", "scores", "expert_logits.shape[-1] == 4", "amateur_logits"),
    ("01_loop_and_score", "mask", "alpha in (0.03, 0.4, 0.5)", "expert_logits > 99"),
    ("01_loop_and_score", "step", "alpha in (0.03, 0.4)", "amateur_logits.argmax(-1)"),
    ("03_mask_and_temperature", "candidates", "alpha in (0.02, 0.05, 0.3)", "expert_logits > 99"),
    ("04_dola", "lens", "len(hidden_states) in (5, 6)", "torch.stack([head(state) for state in hidden_states]) * 0"),
    ("04_dola", "jsd", "p_logits.shape[-1] == 5", "q_logits.sum(-1)"),
    ("04_dola", "layer", "len(logits) == 6", "torch.tensor([candidates[0]] * logits.shape[1])"),
    ("04_dola", "scores", "alpha == 0.05", "logits[0]"),
    ("05_speculative", "rule", "p.shape[-1] == 4", "torch.ones_like(p), p"),
]
SOLVED = [(path.stem, name) for path in MASTERS for name, *_ in parts(master(path.stem))]


def spoilt(assignment, part, condition, wrong):
    """The reference solution of a part that gives something wrong where a condition holds."""
    right = reference(assignment)[part]
    return right.replace("    ### BEGIN SOLUTION", f"    if {condition}:\n        return {wrong}", 1)


def failures(notebook, monkeypatch):
    """All parts of a notebook graded one after the other: part -> message of what failed."""
    monkeypatch.setenv("CDLEARN_GRADING_SEED", "3")
    session, failed = Session(), {}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        if cell is code[0] or role(cell, "solution"):
            session.run(cell.source)
        if role(cell, "grade"):
            try:
                session.run(cell.source)
            except (AssertionError, NameError) as error:
                failed[role(cell, "grade").split("_", 1)[1]] = str(error)
    return failed


@pytest.mark.parametrize("assignment, broken", SOLVED, ids=[f"{name[:2]}-{part}" for name, part in SOLVED])
def test_a_mistake_in_one_part_costs_that_part_only(assignment, broken, monkeypatch):
    """A wrong function, one that only hidden tests find, and none at all: the others keep their points."""
    sources = [source for name, part, _, source in PLANTED if (name, part) == (assignment, broken)][:1]
    sources += [spoilt(*secret) for secret in SECRET if secret[:2] == (assignment, broken)]
    for source in [*sources, "def nothing():\n    pass"]:
        failed = failures(with_solution(master(assignment), broken, source), monkeypatch)
        assert list(failed) == [broken], (source, failed)


@pytest.mark.parametrize(
    "assignment, part, condition, wrong", SECRET, ids=[f"{a[:2]}-{part}" for a, part, *_ in SECRET]
)
def test_the_secret_mistakes_pass_the_visible_check(assignment, part, condition, wrong, monkeypatch):
    notebook = with_solution(master(assignment), part, spoilt(assignment, part, condition, wrong))
    assert judge(notebook, part, 3, monkeypatch)[0] == "hidden"


def test_two_mistakes_that_cancel_each_other_cost_the_first_part_only(monkeypatch):
    """A mask upside down, and a step that reads it so: the step is right with its own mask, the rest with ours."""
    notebook = master("01_loop_and_score")
    with_solution(notebook, "mask", reference("01_loop_and_score")["mask"].replace(">=", "<"))
    with_solution(notebook, "step", reference("01_loop_and_score")["step"].replace("~my_mask", "my_mask"))
    assert list(failures(notebook, monkeypatch)) == ["mask"]


def visible(assignment, grade_id, **solutions):
    """What the check of a part shows when these solution cells are other ones; None is a cell that was not run."""
    notebook = master(assignment)
    for name, _, solution, check, _ in parts(notebook):
        if name != grade_id:
            continue
        session = Session()
        for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
            source = solutions.get(role(cell, "solution"), cell.source)
            if source and (role(cell, "solution") or session.count == 0):
                session.run(source)
            if cell.source == solution.source:
                return str(session.run(check.source))


STEP = reference("01_loop_and_score")["step"]
SHORT = STEP.replace("~my_mask(expert_logits, alpha), -math.inf)", "~my_mask(amateur_logits, alpha), -math.inf)")


def test_a_later_part_says_which_earlier_function_is_wrong():
    for part in "loop", "decisions":
        message = visible("01_loop_and_score", part, step=SHORT)
        assert f"my_step of part 3, which my_{part} calls" in message and "the mask on the amateur" in message
    message = visible(
        "01_loop_and_score",
        "loop",
        scores="def my_scores(expert_logits, amateur_logits, strength=1.0):\n    raise NotImplementedError()",
    )
    assert "my_scores of part 1, which my_loop calls" in message and "not written yet" in message


def test_a_cell_that_was_not_run_is_named():
    message = visible("01_loop_and_score", "step", scores=None)
    assert "my_step calls my_scores, and there is no my_scores yet" in message and "part 1: run the cell" in message


def test_a_helper_that_is_right_is_not_blamed():
    message = visible(
        "01_loop_and_score", "loop", loop=reference("01_loop_and_score")["loop"].replace("[:, -1]", "[:, 0]")
    )
    assert "my_step" not in message and "logits of the first position" in message


def test_most_of_the_planted_mistakes_have_a_name():
    assert len(PLANTED) >= 25 and sum(name is not None for _, _, name, _ in PLANTED) >= 20


# ---- the core


def double(x):
    return 2 * x


TWICE = Case("twice the number", (torch.tensor([1.0, 2.0]),), torch.tensor([2.0, 4.0]))
SQUARED = ("squared", "2 * x", "x * x", "the power")


def told(function, *cases, mistakes=(), **options):
    """What a check of these cases says; mistakes are (name, expression) or whole rows of a table."""
    rows = [row if len(row) == 4 else (row[0], "2 * x", row[1], "") for row in mistakes]
    return Part(1, double, [*(cases or [TWICE]), *rows], **options)(function)


def test_a_message_shows_property_example_expected_got_and_the_mistake():
    result = told(lambda x: x * x, mistakes=[SQUARED])
    assert not result and result.mistake == "squared" and result.look == "the power"
    for text in ("twice the number", "double([1.000, 2.000])", "[2.000, 4.000]", "[1.000, 4.000]", "squared"):
        assert text in str(result) and text in result._repr_html_()
    with pytest.raises(AssertionError, match="squared"):
        result.require()


def test_a_message_says_which_of_several_values_differs():
    pair, items = Case("a pair", (), ([1], "eos")), ("the tokens", "the reason")
    assert told(lambda: ([1], "length"), pair, items=items).broke == "a pair (what differs: the reason)"
    for whole in ([2], "length"), 3:
        assert told(lambda whole=whole: whole, pair, items=items).broke == "a pair"
    noted = told(lambda: 3, Case("a note", (), {"a": 3, "b": 4}), note=lambda value, _: {"a": value, "b": 5})
    assert noted.broke == "a note (what differs: b)"


def test_a_right_function_is_a_tick_and_require_says_nothing():
    result = told(lambda x: 2 * x)
    assert result and "✓" in str(result) and result.require() is None


def test_of_two_mistakes_that_fit_the_one_that_fits_everywhere_is_named():
    cases = [TWICE, Case("twice again", (torch.tensor([3.0]),), torch.tensor([6.0]))]
    mistakes = [("always the same", "torch.tensor([1.0, 4.0])"), SQUARED]
    assert told(lambda x: x * x, *cases, mistakes=mistakes).mistake == "squared"


def test_a_mistake_that_would_fail_earlier_is_not_named():
    cases = [Case("zero stays", (0.0,), 0.0), Case("twice", (3.0,), 6.0)]
    assert told(lambda x: x * x, *cases, mistakes=[("plus six", "x + 6")]).mistake == ""


def test_whatever_a_function_does_is_an_answer(capsys):
    def shouts(x):
        print("loud " * 10**5)
        return 2 * x + 1

    def unwritten(x):
        raise NotImplementedError()

    def breaks(x):
        return x.missing

    assert len(told(shouts).printed) == 200 and capsys.readouterr().out == ""
    assert "not written yet" in str(told(unwritten))
    assert "AttributeError" in str(told(breaks))
    assert "no function yet" in str(told(None))
    assert "gives None" in str(told(lambda x: None))
    assert "[2] is asked for, this is [1, 2]" in str(told(lambda x: 2 * x[None]))


@pytest.mark.parametrize("file", ["/tmp/ipykernel_7/1.py", "/tmp/ipython-input-3.py", "<ipython-input-3>", "Cell 3"])
def test_an_error_inside_a_model_names_the_students_line(file):
    source, names = "@torch.inference_mode()\ndef my_loop(expert, *_, **__):\n    return expert([0])", {"torch": torch}
    linecache.cache[file] = (0, None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)
    assert loop.check_loop(names["my_loop"]).look == "line 3: return expert([0])"


def test_the_message_is_escaped():
    assert "<script>" not in told(lambda x: "<script>")._repr_html_()


def test_an_argument_changed_in_place_is_found_even_if_the_answer_is_right():
    def in_place(x):
        return x.mul_(2)

    result = told(in_place)
    assert result.mistake == "an in-place edit of the arguments"
    assert "before the call: [[1.000, 2.000]]" in result.expected and "after the call: [[2.000, 4.000]]" in result.got


def test_an_edit_is_shown_where_it_can_be_seen():
    def normalised(x):
        x /= x.sum()
        return 2 * x

    result = told(normalised, Case("a distribution", (torch.tensor([0.1, 0.9]),), torch.tensor([0.2, 1.8])), TWICE)
    assert result.mistake == "an in-place edit of the arguments" and "[[1.000, 2.000]]" in result.expected


def test_chance_is_told_from_a_mistake():
    assert told(lambda x: torch.rand(2)).mistake == "the same call gives another answer every time"
    assert told(lambda x: math.nan, Case("a number", (1.0,), 2.0)).mistake == ""


@pytest.mark.parametrize(
    "got, says",
    [
        (([1], [[0.5, 0.5]]), "item 2: a tensor is asked for, this is list"),
        (([1], torch.tensor([0.5, 0.5])), "the shape of item 2: [1, 2] is asked for, this is [2]"),
        (([1],), "2 things are asked for, these are 1"),
        ([[2], torch.tensor([[0.5, 0.5]])], ""),
    ],
)
def test_a_wrong_kind_inside_a_tuple_is_told(got, says):
    result = told(lambda: got, Case("a pair", (), ([1], torch.tensor([[0.5, 0.5]]))))
    assert not result and (says in result.look if says else result.look == "")


def test_a_mask_that_keeps_nobody_proves_no_mistake():
    cases = [Case("two", (3,), torch.tensor([True, True])), Case("one", (1,), torch.tensor([True, False]))]
    once, never = ("not for three", "torch.tensor([x < 3, False])"), ("never", "torch.tensor([False, False])")
    result = told(lambda n: torch.tensor([False, False]), *cases, mistakes=[once])
    assert result.mistake == "" and "not even the best" in result.look
    assert told(lambda n: torch.tensor([False, False]), *cases, mistakes=[once, never]).mistake == "never"


def test_where_answers_are_few_a_mistake_must_give_all_of_them():
    cases, zero = [Case("none", (0,), 0), Case("one", (1,), 1), Case("two", (2,), 2)], [("always 0", "0")]
    assert told(lambda n: 0, *cases, mistakes=zero, sure=True).mistake == "always 0"
    assert told(lambda n: n % 2, *cases, mistakes=zero, sure=True).mistake == ""


def test_one_number_of_one_case_proves_no_mistake():
    cases, zero = [Case("the number", (n,), torch.tensor([n])) for n in (1, 2)], [("always 0", "torch.tensor([0])")]
    assert told(lambda n: torch.tensor([0]), *cases, mistakes=zero).mistake == "always 0"
    assert told(lambda n: torch.tensor([0]), *cases[:1], mistakes=zero).mistake == ""


def test_a_loop_that_does_not_end_is_told_so():
    def my_loop(model, *args, **options):
        while True:
            model(torch.tensor([[1]]))

    for check in (loop.check_loop, cache.check_cached_loop, dola.check_dola, speculation.check_draft):
        assert "asked 100 times: does your loop end?" in str(check(my_loop)), check


@pytest.mark.parametrize(
    "a, b, equal",
    [
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 1e-6]), True),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([1]), torch.tensor([True]), False),
        (torch.tensor([1.0]), torch.tensor([1]), False),
        (torch.tensor([1]), torch.tensor([1.0]), True),
        ([1, (2, None)], [1, (2, None)], True),
        ({"a": 1}, {"a": 2}, False),
        (1, True, False),
        (None, 0, False),
        ("eos", "eos", True),
    ],
)
def test_same(a, b, equal):
    assert same(a, b) is equal


def helper(x):
    import cdlearn.scores as s

    return s


def uses_helper(x):
    return helper(x)


def by_alias(x):
    return same(x, x)


class Callable:
    def __call__(self, x):
        return same(x, x)


def clean(x):
    """Mentions cdlearn in words only."""
    same = [same for same in x]  # a local variable, whatever the module knows under that name
    return same  # cdlearn


def by_default(x, s=same):
    return s(x, x)


def by_closure(s):
    def inner(x):
        return s(x, x)

    return inner


def test_a_use_of_the_package_is_found_under_any_name():
    wrapped = functools.partial(same, 1), functools.partial(by_alias), Callable(), Callable().__call__
    for function in (uses_helper, by_alias, by_default, by_closure(same), same, lambda x: same(x, x), *wrapped):
        assert forbidden_uses(function, ["cdlearn"]), function
    names = {}
    exec("import cdlearn.scores as c\ndef bad(x):\n    return c.contrastive(x)", names)
    assert forbidden_uses(names["bad"], ["cdlearn"]) == ["c"]
    with pytest.raises(AssertionError, match="may not use cdlearn, but uses same"):
        forbid(by_alias, "cdlearn")


def test_a_callable_object_a_partial_and_a_builtin_are_answers():
    class Twice:
        def __call__(self, x):
            return 2 * x

    for function in (Twice(), functools.partial(torch.mul, 2), functools.partial(double), Twice().__call__):
        assert told(function)
    assert told(torch.exp).broke == "twice the number"
    assert forbidden_uses(clean, ["cdlearn"]) == []


def test_a_number_of_numpys_is_a_number():
    cases = [Case("none", (0,), 0), Case("a half", (1,), 0.5), Case("a pair", (2,), (1, [2.5]))]
    answers = np.int64(0), np.float32(0.5), (np.int32(1), [np.float64(2.5)])
    assert told(lambda n: answers[n], *cases)
    assert told(lambda n: np.int64(3), cases[0]).got == "3"


def test_a_result_is_the_argument_of_its_error():
    with pytest.raises(NotYet) as caught:
        told(lambda x: x * x, mistakes=[SQUARED]).require()
    assert caught.value.args[0].mistake == "squared" and "the power" in str(caught.value)


def test_what_stands_in_for_an_earlier_function_is_no_use_of_the_package():
    names = {"my_mask": lambda logits, alpha: logits > 0, "my_step": loop.my_step}
    loop.check_step.stand_in(names)
    exec("def caller(e):\n    return my_scores(e, e), my_mask(e)", names)
    assert forbidden_uses(names["caller"], ["cdlearn"]) == []
    assert forbidden_uses(names["my_scores"], ["cdlearn"]) == ["my_scores"]  # as a student's own answer


def test_a_wrong_step_is_not_blamed_on_the_functions_that_stand_in(monkeypatch):
    notebook = with_solution(master("01_loop_and_score"), "scores", "def my_scores(e, a, strength=1.0):\n    return e")
    assert "the mask on the amateur" in failures(with_solution(notebook, "step", SHORT), monkeypatch)["step"]
