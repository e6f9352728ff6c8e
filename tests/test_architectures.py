"""Every family of models: right as a full pass without a cache, or refused in words; and the page that says so."""

import gc
import re
import weakref
from pathlib import Path

import pytest
import torch
import transformers as hf
from architectures import COLUMNS, FAMILIES, STEPS, Case, early, fresh, model_of, row
from packaging.version import Version
from test_sources import counted, random_ids

from cdlearn import CachedLM, Contrast, DoLa, EarlyExit, Prompted, generate, speculate
from cdlearn.sources import probes
from cdlearn.sources.layers import ending

PAGE = (Path(__file__).parent.parent / "notebooks" / "architectures.md").read_text(encoding="utf-8")
CELLS = {cells[1]: cells[3:-1] for cells in (re.split(r" ?\| ?", text) for text in PAGE.splitlines()) if len(cells) > 3}
REASONS = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.M))
CLOSE = dict(atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_does_what_the_page_says(family):
    if FAMILIES[family][0] not in hf.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
        pytest.skip(f"transformers {hf.__version__} does not know {family}")
    if family == "Zamba 2" and Version(hf.__version__) < Version("5.23"):
        pytest.skip("the steps of 5.14 from its state differ from full passes by 0.001")
    told = {"works": "works", "works, reads again": "slow"}
    if f"transformers {hf.__version__}." not in PAGE:  # which of the two is another version's matter
        told = dict.fromkeys(told, "works")
    page = [told.get(cell) or REASONS[re.fullmatch(r"refused \((\d+)\)", cell).group(1)] for cell in CELLS[family]]
    found = {
        column: told.get({"slow": "works, reads again"}.get(cell, cell), cell) for column, cell in row(family).items()
    }
    assert found == dict(zip(COLUMNS, page)), "run `make pages`"


def test_the_page_has_every_family_and_no_other():
    assert set(CELLS) == {*FAMILIES, "family", "---"}


def test_a_padding_row_of_zeros_does_not_hide_the_scale():
    model = model_of("Granite")
    assert probes.known(ending, model)[1] == pytest.approx(1 / 8, rel=1e-3)


@pytest.mark.parametrize("family, norm", [("LFM2", "embedding_norm"), ("CTRL", "layernorm"), ("RWKV", "ln_out"),
                                          ("BioGPT", "layer_norm"), ("OPT-350M", ""), ("GPT-1", "")])  # fmt: skip
def test_the_final_norm_is_found_and_can_be_left_out(family, norm):
    model, ids = model_of(family), random_ids(1, 1, 7)
    assert probes.known(ending, model)[0] == norm
    without, within = (EarlyExit(model, 2, final_norm=final)(ids) for final in (False, True))
    assert torch.allclose(without, within, **CLOSE) == (norm == "")


def test_a_norm_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setattr("cdlearn.sources.layers._NORMS", ("norm",))
    for make in (DoLa, lambda model: EarlyExit(model, 2)):
        with pytest.raises(ValueError, match="CTRLLMHeadModel does more"):
            make(model_of("CTRL"))


def test_probes_run_once_for_a_model_object_when_first_needed():
    model = model_of("MPT")
    source, mask = CachedLM(model), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    with counted(model) as passes:
        generate(source, random_ids(2, 2, 9), attention_mask=mask, max_new_tokens=4, eos_token_ids=(), trace=False)
        assert passes == [(2, 9), (2, 1), (2, 1), (2, 1)]  # no probe where nothing needs one
        mask[1, 4:6] = 0
        source(random_ids(3, 2, 9), mask)
        assert passes[4:] == [(2, 8), (1, 6), (1, 7)]
        for twin in (source, CachedLM(model), source.fork()):
            twin.reset()
            twin(random_ids(3, 2, 9), mask)
        assert (2, 8) not in passes[5:]
    gone = weakref.ref(model)
    del model, source, twin, passes
    gc.collect()
    assert gone() is None and all(gone is not key for key in probes._FOUND)


def test_a_state_is_fed_several_tokens_or_one_by_what_the_probe_says():
    for family, want in (("Mamba", False), ("Jamba", False), ("Mamba 2", True), ("Qwen 3 Next", True)):
        model, ids = model_of(family), random_ids(4, 1, 30)
        source = CachedLM(model)
        source(ids[:, :20])
        with counted(model) as passes:
            source(ids[:, :26])
        assert passes[-1] == ((1, 6) if want else (1, 26)), family
        with counted(model) as passes:
            source(ids[:, :27])
        assert passes == [(1, 1)], family


@pytest.mark.parametrize("family", ["Mamba 2", "Bamba", "Qwen 3 Next", "Mistral, sliding window"])
def test_a_speculation_goes_back_to_the_state_before_the_draft(family):
    """Without it every check would read the prompt again: 60 tokens here, 12 rounds or more."""
    case = Case(family)
    model, prompt = case.model, random_ids(5, 1, 60)
    want = generate(model, prompt, max_new_tokens=24, eos_token_ids=(), trace=False).token_ids
    before = case.read
    made = speculate(
        model, CachedLM(model_of("Llama")), prompt, gamma=3, max_new_tokens=24, eos_token_ids=(), trace=False
    )
    assert made.token_ids == want
    assert made.stats["accepted"] < made.stats["drafted"] and case.read - before < 60 + 20 * made.stats["rounds"]


def test_a_draft_with_a_state_is_refused_by_name():
    with pytest.raises(ValueError, match="draft is CachedLM.*Mamba2ForCausalLM"):
        speculate(model_of("Llama"), model_of("Mamba 2"), [5, 6])


@pytest.mark.parametrize("start", [30, 39, 40, 41])
def test_long_rotations_change_at_their_length_and_only_there(start):
    model, ids = model_of("Phi 3, longrope"), random_ids(6, 2, 48)
    source = CachedLM(model)
    with counted(model) as passes:
        for stop in range(start, 46):
            got = source(ids[:, :stop])
            assert torch.allclose(got[:, -1], torch.stack([fresh(model, row[:stop].tolist()) for row in ids]), **CLOSE)
    fed = [columns for rows, columns in passes if rows == 2]
    assert sum(columns > 1 for columns in fed) == (2 if start <= 40 else 1)  # the prompt, and the first long text
    mask = torch.ones_like(ids)
    mask[0, :8] = 0  # one row is short and the other long
    for r, scores in enumerate(source(ids, mask, 12)):
        for k in range(12):
            text = ids[r, : 37 + k][mask[r, : 37 + k].bool()].tolist()
            assert torch.allclose(scores[k], fresh(model, text), **CLOSE)


def test_dynamic_rotations_end_where_no_cache_is_right():
    rope = dict(rope_type="dynamic", factor=4.0, rope_theta=1e4)
    kind, sizes = FAMILIES["Llama"]
    config = hf.LlamaConfig(**sizes | dict(max_position_embeddings=32, rope_parameters=rope))
    model = hf.LlamaForCausalLM(config).eval()
    with pytest.raises(ValueError, match="context of 32"):
        generate(model, [5] * 20, max_new_tokens=20)
    assert len(generate(model, [5] * 20, max_new_tokens=13, eos_token_ids=()).token_ids) == 13


def test_rwkv_and_others_that_change_while_they_run_serve_several_sources():
    for family in ("RWKV", "RecurrentGemma", "Phi 3, longrope"):
        model, ids = model_of(family), random_ids(7, 1, 9)
        exit_, whole = EarlyExit(model, 3), Contrast(model, Prompted(model, [7, 8]))  # before the model's first pass
        want = fresh(model, ids[0].tolist())
        assert torch.allclose(CachedLM(model)(ids)[0, -1], want, **CLOSE)
        for stop in (7, 8, 9):
            whole(ids[:, :stop])
        assert torch.allclose(whole.parts["expert"][0, -1], want, **CLOSE)
        assert torch.allclose(whole.parts["amateur"][0, -1], fresh(model, [7, 8, *ids[0].tolist()]), **CLOSE)
        assert torch.allclose(exit_(ids)[0, -1], early(model, ids[0].tolist(), 3), **CLOSE)
        assert torch.equal(fresh(model, ids[0].tolist()), want) and STEPS  # the model is what it was
