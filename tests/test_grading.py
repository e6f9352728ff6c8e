"""The checks: the reference solutions pass, and every planted mistake is caught and named. One process, no kernel."""

import pytest
import torch
from masters import MASTERS, Session, master, parts, planted, role, with_solution

from cdlearn.grading import Case, Mistake, forbid, run_check, same
from cdlearn.grading.forbidden import forbidden_uses

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


@pytest.mark.parametrize(
    "assignment, grade_id, name, source", PLANTED, ids=[f"{a[:2]}-{g}-{n}" for a, g, n, _ in PLANTED]
)
def test_a_planted_mistake_is_caught_and_named(assignment, grade_id, name, source, monkeypatch, record_property):
    caught, message = judge(with_solution(master(assignment), grade_id, source), grade_id, 1, monkeypatch)
    assert caught, f"{grade_id}: nothing caught {name}"
    record_property("table", f"{assignment:24}{grade_id:18}caught by: {caught:8} named: {name or '-'}")
    if name is not None:
        assert name in message


SOLVED = [(path.stem, name) for path in MASTERS for name, *_ in parts(master(path.stem))]


@pytest.mark.parametrize("assignment, broken", SOLVED, ids=[f"{name[:2]}-{part}" for name, part in SOLVED])
def test_a_mistake_in_one_part_costs_that_part_only(assignment, broken, monkeypatch):
    """A wrong function, and none at all: the other parts keep their points."""
    monkeypatch.setenv("CDLEARN_GRADING_SEED", "3")
    sources = [source for name, part, _, source in PLANTED if (name, part) == (assignment, broken)][:1]
    for source in [*sources, "def nothing():\n    pass"]:
        session, failed = Session(), {}
        notebook = with_solution(master(assignment), broken, source)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in code:
            if cell is code[0] or role(cell, "solution"):
                session.run(cell.source)
            if role(cell, "grade"):
                try:
                    session.run(cell.source)
                except (AssertionError, NameError) as error:
                    failed[role(cell, "grade").split("_", 1)[1]] = str(error)
        assert list(failed) == [broken], failed


def test_most_of_the_planted_mistakes_have_a_name():
    assert len(PLANTED) >= 25 and sum(name is not None for _, _, name, _ in PLANTED) >= 20


# ---- the core

DOUBLE = [Case("twice the number", (torch.tensor([1.0, 2.0]),), torch.tensor([2.0, 4.0]))]


def test_a_message_shows_property_example_expected_got_and_the_mistake():
    mistakes = [Mistake("squared", lambda x: x * x, "the power")]
    result = run_check("double", lambda x: x * x, DOUBLE, mistakes)
    assert not result and result.mistake == "squared" and result.look == "the power"
    for text in ("twice the number", "double([1.000, 2.000])", "[2.000, 4.000]", "[1.000, 4.000]", "squared"):
        assert text in str(result) and text in result._repr_html_()
    with pytest.raises(AssertionError, match="squared"):
        result.require()


def test_a_right_function_is_a_tick_and_require_says_nothing():
    result = run_check("double", lambda x: 2 * x, DOUBLE)
    assert result and "✓" in str(result) and result.require() is None


def test_of_two_mistakes_that_fit_the_one_that_fits_everywhere_is_named():
    cases = [*DOUBLE, Case("twice again", (torch.tensor([3.0]),), torch.tensor([6.0]))]
    mistakes = [
        Mistake("always the same", lambda x: torch.tensor([1.0, 4.0]), ""),
        Mistake("squared", lambda x: x * x, ""),
    ]
    assert run_check("double", lambda x: x * x, cases, mistakes).mistake == "squared"


def test_a_mistake_that_would_fail_earlier_is_not_named():
    cases = [Case("zero stays", (0.0,), 0.0), Case("twice", (3.0,), 6.0)]
    assert run_check("double", lambda x: x * x, cases, [Mistake("plus six", lambda x: x + 6, "")]).mistake == ""


def test_whatever_a_function_does_is_an_answer(capsys):
    def shouts(x):
        print("loud " * 10**5)
        return 2 * x + 1

    def unwritten(x):
        raise NotImplementedError()

    def breaks(x):
        return x.missing

    assert len(run_check("double", shouts, DOUBLE).printed) == 200 and capsys.readouterr().out == ""
    assert "not written yet" in str(run_check("double", unwritten, DOUBLE))
    assert "AttributeError" in str(run_check("double", breaks, DOUBLE))
    assert "no function yet" in str(run_check("double", None, DOUBLE))
    assert "gives None" in str(run_check("double", lambda x: None, DOUBLE))
    assert "[2] is asked for, this is [1, 2]" in str(run_check("double", lambda x: 2 * x[None], DOUBLE))


def test_the_message_is_escaped():
    assert "<script>" not in run_check("double", lambda x: "<script>", DOUBLE)._repr_html_()


def test_an_argument_changed_in_place_is_found_even_if_the_answer_is_right():
    def in_place(x):
        return x.mul_(2)

    assert run_check("double", in_place, DOUBLE).mistake == "an in-place edit of the arguments"


@pytest.mark.parametrize(
    "a, b, equal",
    [
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), True),
        (torch.tensor([1.0]), torch.tensor([1.0 + 1e-6]), True),
        (torch.tensor([1.0]), torch.tensor([[1.0]]), False),
        (torch.tensor([1]), torch.tensor([True]), False),
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


def by_string(x):
    import importlib

    return importlib.import_module("cdlearn.scores")


def by_method(x):
    return x.generate()


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


def test_a_function_whose_source_is_lost_is_still_read(monkeypatch):
    names = {}
    exec("import cdlearn as c\ndef good(x):\n    return x + 1\ndef bad(x):\n    return c.scores\n", names)
    exec("def worse(x):\n    import cdlearn.scores\n    return x.generate", names)
    assert forbidden_uses(names["good"], ["cdlearn"]) == []
    assert forbidden_uses(names["bad"], ["cdlearn"]) == ["c"]
    assert len(forbidden_uses(names["worse"], ["cdlearn", "generate"])) >= 2


def test_the_syntax_tree_finds_a_package_under_any_name():
    for function in (uses_helper, by_alias, by_string, by_default, by_closure(same), same, lambda x: same(x, x)):
        assert forbidden_uses(function, ["cdlearn"]), function
    assert forbidden_uses(by_method, ["generate"]) == ["x.generate"]
    assert forbidden_uses(clean, ["cdlearn", "generate"]) == []
    assert "cannot be read" in forbidden_uses(print, ["cdlearn"])[0]
    with pytest.raises(AssertionError, match="x.generate"):
        forbid(by_method, "generate")
