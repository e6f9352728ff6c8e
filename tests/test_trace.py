"""A trace tells what the models really said at every step."""

import dataclasses

import pytest
import torch
from test_decode import byte_tokenizer, space_tokenizer
from tiny import tiny_model

from cdlearn.decode import generate
from cdlearn.scores import contrastive_scores
from cdlearn.sources import CachedLM, Contrast, DoLa
from cdlearn.trace import Recorder, token_texts

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
