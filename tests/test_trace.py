"""A trace tells what the models really said at every step."""

import dataclasses
import functools
import json

import pytest
import torch
from conftest import character_tokenizer
from test_decode import byte_tokenizer, space_tokenizer
from tiny import tiny_model

from cdlearn import Trace, speculate
from cdlearn.loops.generate import generate
from cdlearn.scores import contrastive_scores
from cdlearn.sources import CachedLM, Contrast, DoLa
from cdlearn.trace.record import Recorder
from cdlearn.trace.tables import token_texts, visible

COLUMNS = ["position", "rank", "token_id", "token", "expert_logit", "amateur_logit", "expert_prob", "amateur_prob"]
COLUMNS += ["score", "kept", "chosen"]


def recorded(candidates=256, **options):
    """A trace of 20 steps (so that two blocks are joined) and the models behind it."""
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    options = dict(max_new_tokens=20, eos_token_ids=()) | options
    got = generate(Contrast(expert, amateur), [5, 6, 7], **options)
    return got, expert, amateur


@torch.no_grad()
def test_every_number_is_the_models_own():
    got, expert, amateur = recorded()
    frame = got.trace.to_frame()
    assert list(frame.columns) == COLUMNS and len(frame) == 20 * 97
    ids = torch.tensor([[5, 6, 7, *got.token_ids[:-1]]])
    expert_logits, amateur_logits = expert(ids).logits[0, 2:], amateur(ids).logits[0, 2:]
    where = torch.tensor(frame["position"].to_numpy()), torch.tensor(frame["token_id"].to_numpy())
    expected = {
        "expert_logit": expert_logits,
        "amateur_logit": amateur_logits,
        "expert_prob": expert_logits.softmax(-1),
        "amateur_prob": amateur_logits.softmax(-1),
        "score": contrastive_scores(expert_logits, amateur_logits),
    }
    for name, values in expected.items():
        assert torch.allclose(torch.tensor(frame[name].to_numpy()), values[where], atol=1e-4), name
    assert frame["kept"].tolist() == (expected["score"][where] > -float("inf")).tolist()


def test_ranks_follow_the_expert_and_the_choice_is_the_best_score():
    got, _, _ = recorded()
    frame = got.trace.to_frame()
    assert frame[frame["chosen"]]["token_id"].tolist() == got.token_ids == got.trace.token_ids
    for position, table in frame.groupby("position"):
        assert table["rank"].tolist() == list(range(1, 98))
        assert table["expert_logit"].is_monotonic_decreasing
        assert table.loc[table["score"].idxmax(), "token_id"] == got.token_ids[position]


def test_a_choice_outside_the_candidates_is_a_row_with_its_true_rank():
    recorder = Recorder(candidates=3)
    expert = torch.arange(10.0).flip(0)[None]
    recorder.add([0], -expert, {"expert": expert}, {}, torch.tensor([9]))
    recorder.add([0], -expert, {"expert": expert}, {}, torch.tensor([1]))
    trace = recorder.trace(0, [4], steps=2, settings={}, tokenizer=None)
    frame = trace.to_frame()
    assert frame["position"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert frame["rank"].tolist() == [1, 2, 3, 10, 1, 2, 3]
    assert frame["token_id"].tolist() == [0, 1, 2, 9, 0, 1, 2]
    assert frame["chosen"].tolist() == [False, False, False, True, False, True, False]
    assert trace.to_frame(top=1)["token_id"].tolist() == [0, 9, 0, 1]


def test_probabilities_use_the_whole_vocabulary_not_the_candidates():
    recorder = Recorder(candidates=2)
    expert = torch.zeros(1, 10)
    recorder.add([0], expert, {"expert": expert}, {}, torch.tensor([0]))
    assert recorder.trace(0, [], steps=1, settings={}, tokenizer=None).to_frame()["expert_prob"][0] == pytest.approx(
        0.1
    )


def test_a_trace_keeps_candidates_not_the_vocabulary():
    model = tiny_model("llama", vocab_size=2000)
    trace = generate(model, [5], max_new_tokens=40, eos_token_ids=()).trace
    stored = [trace.candidates, trace.score, *trace.parts.values(), *trace.normalisers.values(), trace.rank]
    assert trace.candidates.shape == (40, 257)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size() for tensor in stored)


def test_waiting_rows_are_bounded():
    recorder = Recorder(numbers=100)
    for _ in range(5):
        recorder.add([0], torch.zeros(1, 60), {}, {}, torch.tensor([1]))
        assert len(recorder._waiting) <= 2
    assert len(recorder.trace(0, [], steps=5, settings={}, tokenizer=None)) == 5


def test_rows_of_a_batch_have_their_own_traces():
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    prompts = [[5, 6, 7], [8], [9, 10]]
    together = generate(Contrast(expert, amateur), prompts, max_new_tokens=20)
    for prompt, got in zip(prompts, together):
        alone = generate(Contrast(expert, amateur), prompt, max_new_tokens=20).trace
        assert got.trace.prompt_ids == prompt and got.trace.token_ids == alone.token_ids
        assert torch.allclose(got.trace.parts["amateur"], alone.parts["amateur"], atol=1e-4)


def test_without_an_amateur_its_columns_are_empty():
    frame = generate(CachedLM(tiny_model("llama")), [5], max_new_tokens=2, eos_token_ids=()).trace.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame["amateur_logit"].isna().all() and frame["amateur_prob"].isna().all() and frame["kept"].all()


def test_dola_tells_layer_and_divergences():
    source = DoLa(tiny_model("llama"), layers=[0, 1, 2])
    trace = generate(source, [5, 6], max_new_tokens=18, eos_token_ids=()).trace
    frame = trace.to_frame(top=2)
    layers = frame.drop_duplicates("position")["premature_layer"].tolist()
    assert trace.details["divergences"].shape == (18, 3)
    assert layers == trace.details["divergences"].argmax(-1).tolist() and len(set(layers)) > 1
    assert trace.settings["method"] == "dola" and trace.settings["layers"] == [0, 1, 2]


def test_a_trace_is_immutable_and_short_to_print():
    trace = recorded()[0].trace
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.score = None
    trace.token_ids.append(5)
    assert len(trace.token_ids) == len(trace) == 20
    assert repr(trace) == "Trace(20 positions, 97 candidates each)"


def test_recording_changes_no_choice_and_penalties_stay_outside():
    plain = recorded(trace=False, repetition_penalty=3.0)[0]
    traced, expert, amateur = recorded(repetition_penalty=3.0)
    assert plain.token_ids == traced.token_ids
    source = Contrast(expert, amateur)
    first = source(torch.tensor([[5, 6, 7]]))[0, 0]
    frame = traced.trace.to_frame()
    best = frame[frame["position"] == 0].set_index("token_id")["score"]
    assert torch.allclose(torch.tensor(best.sort_index().to_numpy()), first, atol=1e-5)


def test_tokens_are_readable_with_their_spaces():
    bytes_, spaces = byte_tokenizer(), space_tokenizer()
    assert token_texts(bytes_, bytes_("a ok")["input_ids"]) == ["a", " ok"]
    assert token_texts(spaces, spaces("ok")["input_ids"]) == [" ok"]
    part = bytes_("🙂")["input_ids"][0]
    assert token_texts(bytes_, [part]) == [bytes_.convert_ids_to_tokens(part)]
    assert token_texts(None, [1, 2]) == [None, None]


def test_nothing_recorded_is_an_empty_table():
    class Stop(CachedLM):
        def scores(self, ids, mask, n):
            raise KeyboardInterrupt

    got = generate(Stop(tiny_model("llama")), [5])
    assert got.finish_reason == "interrupted" and got.token_ids == [] and len(got.trace) == 0
    assert list(got.trace.to_frame().columns) == COLUMNS


@torch.no_grad()
def test_entropy_distance_and_ranks_are_those_of_the_whole_vocabulary(monkeypatch):
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=4))
    got, expert, amateur = recorded()
    trace, ids = got.trace, torch.tensor([[5, 6, 7, *got.token_ids[:-1]]])
    rows = {"expert": expert(ids).logits[0, 2:], "amateur": amateur(ids).logits[0, 2:]}
    assert trace.candidates.shape == (20, 5) and trace.vocab_size == 97
    for name, logits in rows.items():
        p, chosen = logits.softmax(-1), logits.gather(1, torch.tensor(got.token_ids)[:, None])
        assert torch.allclose(trace.entropy[name], -(p * p.log()).sum(-1), atol=1e-4)
        assert trace.ranks[name].tolist() == ((logits > chosen).sum(-1) + 1).tolist()
    distance = (rows["expert"].softmax(-1) - rows["amateur"].softmax(-1)).abs().sum(-1) / 2
    assert torch.allclose(trace.total_variation["amateur"], distance, atol=1e-5) and float(distance.min()) > 0.1
    assert torch.equal(trace.ranks["expert"], trace.rank) and "expert" not in trace.total_variation
    frame = trace.step_frame()
    assert frame["amateur_rank"].tolist() == trace.ranks["amateur"].tolist() and len(frame) == 20
    surprisal = -rows["expert"].log_softmax(-1)[range(20), got.token_ids]
    assert torch.allclose(torch.tensor(frame["expert_surprisal"].to_numpy()), surprisal, atol=1e-4)


def test_impossible_tokens_do_not_become_nan():
    recorder, never = Recorder(candidates=2), -float("inf")
    expert, amateur = torch.tensor([[0.0, 0.0, never, never]]), torch.tensor([[never, 1.0, never, never]])
    recorder.add([0], expert, {"expert": expert, "amateur": amateur}, {}, torch.tensor([1]))
    trace = recorder.trace(0, [], steps=1, settings={}, tokenizer=None)
    assert trace.entropy["expert"].item() == pytest.approx(0.6931, abs=1e-4) and trace.entropy["amateur"].item() == 0
    assert trace.total_variation["amateur"].item() == pytest.approx(0.5)


@torch.no_grad()
def test_dola_keeps_every_candidate_layers_logits_of_the_candidates():
    model = tiny_model("llama")
    trace = generate(DoLa(model, layers=[2, 0, 1]), [5, 6], max_new_tokens=18, eos_token_ids=()).trace
    assert trace.parts["layers"].shape == (18, 3, 98) and trace.normalisers["layers"].shape == (18, 3)
    ids = torch.tensor([[5, 6, *trace.token_ids[:-1]]])
    states = model(ids, output_hidden_states=True).hidden_states
    for k, layer in enumerate([2, 0, 1]):
        logits = model.lm_head(model.model.norm(states[layer]))[0, 1:]  # (18, V)
        assert torch.allclose(trace.parts["layers"][:, k], logits.gather(1, trace.candidates), atol=1e-4)
        assert torch.allclose(trace.normalisers["layers"][:, k], logits.logsumexp(-1), atol=1e-4)
        chosen = trace.details["premature_layer"] == layer
        assert torch.equal(trace.parts["layers"][chosen, k], trace.parts["amateur"][chosen])
    assert "layers_logit" not in trace.to_frame(top=1).columns and "layers_rank" not in trace.step_frame().columns


def spoken(**options):
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    draft = Contrast(expert, amateur, alpha=None, strength=0.2)  # close enough to the expert that some tokens stand
    return speculate(expert, draft, [5, 6, 7], gamma=4, max_new_tokens=30, eos_token_ids=(), **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_tell_the_whole_story_of_a_speculation(temperature):
    got = spoken(temperature=temperature, seed=3)
    rounds, text = got.trace.rounds, []
    assert len(rounds) == got.stats["rounds"] and {facts["next_kind"] for facts in rounds} == {"residual", "bonus"}
    for facts in rounds:
        count, size = facts["accepted"], len(facts["draft_ids"])
        assert facts["position"] == len(text)
        text += [*facts["draft_ids"][:count], *([] if facts["next_id"] is None else [facts["next_id"]])]
        for p, q, chance in zip(facts["p"], facts["q"], facts["accept_probability"]):
            assert chance == pytest.approx(min(1, p / q), abs=1e-5)
        if temperature:
            assert all(u < chance for u, chance in zip(facts["u"][:count], facts["accept_probability"]))
            assert count == size or facts["u"][count] >= facts["accept_probability"][count]
        elif count < size:
            assert facts["p"][count] == 0 and facts["total_variation"][count] == 1
        assert all(0 <= distance <= 1 + 1e-6 for distance in facts["total_variation"])
        assert len(facts["total_variation"]) == size and sum(prob for _, prob in facts["next_distribution"]) <= 1 + 1e-5
    assert text == got.token_ids
    assert sum(facts["accepted"] for facts in rounds) == got.stats["accepted"]
    assert sum(len(facts["draft_ids"]) for facts in rounds) == got.stats["drafted"]


def test_the_law_behind_a_round_and_its_number_give_the_token():
    drawn = 0
    for facts in spoken(temperature=0.08, seed=4).trace.rounds:
        law = sorted(facts["next_distribution"])  # the draw goes up the token ids
        if facts["next_id"] is None or sum(prob for _, prob in law) < 1 - 1e-5:
            continue
        total = 0.0
        for token, prob in law:
            total += prob
            if facts["next_u"] < total:
                assert token == facts["next_id"]
                drawn += 1
                break
    assert drawn >= 3


def test_rows_of_a_batch_have_their_own_rounds_and_without_a_trace_there_are_none():
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    options = dict(gamma=4, max_new_tokens=9, eos_token_ids=(), seed=1, temperature=1.0)
    together = speculate(expert, amateur, [[5, 6, 7], [8]], **options)
    alone = speculate(expert, amateur, [8], **options | {"seed": 2})
    assert [facts["draft_ids"] for facts in together[1].trace.rounds] == [f["draft_ids"] for f in alone.trace.rounds]
    assert speculate(expert, amateur, [8], **options, trace=False).trace is None
    assert generate(expert, [8], max_new_tokens=2).trace.rounds == []


def same(trace, other):
    assert trace.to_frame().equals(other.to_frame()) and trace.step_frame().equals(other.step_frame())
    for field in dataclasses.fields(trace):
        ours, theirs = getattr(trace, field.name), getattr(other, field.name)
        if isinstance(ours, torch.Tensor):
            ours, theirs = {"": ours}, {"": theirs}
        if isinstance(ours, dict) and any(isinstance(value, torch.Tensor) for value in ours.values()):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert value.dtype == theirs[name].dtype
                assert torch.allclose(value, theirs[name], rtol=0, atol=0, equal_nan=True)
        elif field.name != "tokenizer":
            assert ours == theirs, field.name


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("double", [False, True])
def test_json_and_back_is_the_same_trace(double, tmp_path):
    tokenizer = character_tokenizer()
    expert, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    if double:
        expert, amateur = expert.double(), amateur.double()
    options = dict(tokenizer=tokenizer, max_new_tokens=20, eos_token_ids=())
    contrast = generate(Contrast(expert, amateur), "what", **options, repetition_penalty=1.3).trace
    strange = {"strange": torch.full((20,), float("nan")), "endless": torch.full((20, 2), float("inf"))}
    contrast = dataclasses.replace(contrast, details=strange)
    dola = generate(DoLa(expert, layers=[0, 1]), "what", **options).trace
    spoken = speculate(expert, amateur, "what", gamma=4, **options, temperature=1.0, seed=1).trace
    assert bool((contrast.score == -float("inf")).any()) and contrast.score.dtype == expert.dtype
    for trace in (contrast, dola, spoken, contrast.rescore(strength=0.1)):
        text = trace.to_json()
        json.loads(text, parse_constant=refuse)
        same(trace, Trace.from_json(text))
        same(trace, Trace.from_json(text, tokenizer=tokenizer))
    for name in ("trace.json", "trace.json.gz"):
        contrast.save(tmp_path / name)
        same(contrast, Trace.load(tmp_path / name))
    assert (tmp_path / "trace.json.gz").stat().st_size < (tmp_path / "trace.json").stat().st_size / 2
    same(dola.rescore(alpha=0.5), Trace.from_json(dola.to_json()).rescore(alpha=0.5))


def test_a_trace_without_a_tokenizer_or_a_step_goes_to_json_too():
    trace = recorded()[0].trace
    same(trace, Trace.from_json(trace.to_json()))
    empty = Recorder().trace(0, [3], steps=0, settings={"method": "plain"}, tokenizer=None)
    assert len(Trace.from_json(empty.to_json())) == 0 and "0 positions" in empty.summary()


def test_what_is_not_a_trace_is_refused_with_a_reason(tmp_path):
    good = json.loads(recorded()[0].trace.to_json())
    for change, reason in [
        ({"version": 2}, "version is 2: this cdlearn reads version 1"),
        ({"format": "something"}, "not a trace"),
        ({"score": {"dtype": "object", "shape": [1], "values": [1]}}, "damaged trace"),
        ({"candidates": good["candidates"] | {"shape": [3, 3]}}, "damaged trace"),
        ({"parts": None}, "damaged trace"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Trace.from_json(json.dumps(good | change))
    del good["rank"]
    with pytest.raises(ValueError, match="damaged trace"):
        Trace.from_json(json.dumps(good))
    with pytest.raises(ValueError, match="text is not JSON"):
        Trace.from_json("{")
    with pytest.raises(TypeError, match="text is a dict"):
        Trace.from_json(good)
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "nowhere.json")
    (tmp_path / "bad.json.gz").write_bytes(b"not compressed")
    with pytest.raises(ValueError, match="bad.json.gz"):
        Trace.load(tmp_path / "bad.json.gz")


def test_a_summary_is_short_and_names_what_happened():
    text = recorded()[0].trace.summary()
    assert "contrastive (alpha=0.1" in text and "20 positions, 97 of 97 tokens recorded" in text
    assert "mean total-variation distance" in text and " at 0x" not in text and text.count("\n") <= 6
    dola = generate(DoLa(tiny_model("llama"), layers=[0, 1]), [5], max_new_tokens=4, eos_token_ids=()).trace.summary()
    assert "premature layers: " in dola
    got = spoken(temperature=1.0, seed=3)
    assert f"{got.stats['accepted']} of {got.stats['drafted']} drafted tokens accepted" in got.trace.summary()


def test_waiting_layers_count_as_much_as_scores():
    recorder = Recorder(numbers=1000)
    for _ in range(5):
        parts = {"expert": torch.zeros(1, 60), "layers": torch.zeros(1, 9, 60)}
        recorder.add([0], torch.zeros(1, 60), parts, {}, torch.tensor([1]))
        assert len(recorder._waiting) <= 2


def test_what_the_eye_would_miss_is_made_visible():
    assert visible(" a\n\t\x07", 5) == "␣a↵⇥\\x07"
    assert visible(None, 5) == "#5" and visible("", 5) == "(empty)"
    assert visible("a" * 20, 5, longest=4) == "aaa…" and visible("<b>$x$</b>", 1) == "<b>$x$</b>"
