"""Assignments 01, 02, 03, 05: a mistake is named when a student makes it; the checks' model behaves like a real one."""

import pytest
import torch
from masters import Session, master, planted, role, with_solution
from transformers import DynamicCache

from cdlearn.classroom.checks import (
    cache,
    columns,
    contrast,
    drafts,
    forms,
    laws,
    loop,
    run_check,
    speculation,
    step,
    verify,
)
from cdlearn.classroom.checks.cachelm import TOY, PositionLM, filled

LISTS = [(columns, "HEAD LOOP READ"), (cache, "ENDINGS PAD BATCH"), (contrast, "CANDIDATES CONTRAST")]
LISTS += [
    (laws, "LAW NUCLEUS"),
    (forms, "FORM TRANSLATION"),
    (step, "SCORES MASK STEP"),
    (loop, "LOOP FIRST DECISIONS"),
]
LISTS += [(drafts, "RULE DRAFT"), (verify, "VERIFY LENGTH"), (speculation, "REWIND LAWS")]
MADE = [
    (name, mistake, getattr(module, name), getattr(module, f"{name}_MISTAKES"))
    for module, names in LISTS
    for name in names.split()
    for mistake in getattr(module, f"{name}_MISTAKES")
]


@pytest.mark.parametrize("part, mistake, cases, mistakes", MADE, ids=[f"{m[0]}-{m[1].name}" for m in MADE])
def test_a_student_who_makes_a_mistake_is_told_its_name(part, mistake, cases, mistakes):
    result = run_check(part, mistake.gives, cases, mistakes, forbidden=())
    assert not result and result.mistake == mistake.name and result.look == mistake.look


def test_the_examples_are_small():
    for case in [case for _, _, cases, _ in MADE for case in cases]:
        assert not case.args or all(x.numel() <= 16 for x in case.args if isinstance(x, torch.Tensor)), case.says


def test_a_mistake_in_the_candidates_costs_that_part_only(monkeypatch):
    monkeypatch.setenv("CDLEARN_GRADING_SEED", "5")
    name = "03_mask_and_temperature"
    sources = [source for a, part, _, source in planted() if (a, part) == (name, "candidates")]
    for source in [*sources, "def nothing():\n    pass"]:
        session, failed = Session(), []
        notebook = with_solution(master(name), "candidates", source)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in [cell for k, cell in enumerate(code) if k == 0 or role(cell, "solution") or role(cell, "grade")]:
            try:
                session.run(cell.source)
            except (AssertionError, NameError):
                failed.append(role(cell, "grade"))
        assert failed == ["part1_candidates"]


# ---- the model with a cache


def test_the_toy_says_the_sum_of_token_times_position():
    logits = TOY(torch.tensor([[3, 5, 5]])).logits  # 3, then 3 + 10, then 3 + 10 + 15: modulo 8
    assert logits.argmax(-1).tolist() == [[3, 5, 4]] and logits.topk(2).indices[0, 1].tolist() == [5, 6]


def test_the_toy_with_a_cache_equals_the_toy_without():
    ids, cache = torch.tensor([[3, 1, 4, 1, 5]]), DynamicCache(config=TOY.config)
    whole = TOY(ids).logits
    pieces = [TOY(ids[:, a:b], past_key_values=cache).logits for a, b in ((0, 2), (2, 3), (3, 5))]
    assert torch.equal(torch.cat(pieces, dim=1), whole) and cache.get_seq_length() == 5
    cache.crop(-3)
    assert torch.equal(TOY(ids[:, 2:], past_key_values=cache).logits, whole[:, 2:])
    assert filled([3, 1]).get_seq_length() == 2


def test_the_toy_needs_mask_and_positions_for_padding():
    row, padded = torch.tensor([[3, 2]]), torch.tensor([[7, 7, 3, 2]])
    mask, positions = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 0, 1]])
    truth, model = TOY(row).logits[:, -1], PositionLM(8, TOY.steps)
    assert torch.equal(model(padded, attention_mask=mask, position_ids=positions).logits[:, -1], truth)
    assert not torch.equal(model(padded, attention_mask=mask).logits[:, -1], truth)
    assert not torch.equal(model(padded, position_ids=positions).logits[:, -1], truth)
    with pytest.raises(ValueError, match="attention_mask"):
        model(padded, attention_mask=mask[:, 1:])
    assert len(model.fed) == 4
