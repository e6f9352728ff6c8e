"""transformers' generate() over any source, and contrastive decoding as a logits processor."""

import math

import pytest
import torch
import transformers as hf
from conftest import character_tokenizer
from tiny import ARCHITECTURES, tiny_model

from cdlearn import CachedLM, Contrast, DoLa, EarlyExit, Prompted, generate
from cdlearn.hf import ContrastiveLogitsProcessor, as_causal_lm, contrastive_generate
from cdlearn.scores import contrastive_logits, contrastive_scores

EXPERT = tiny_model("llama", num_hidden_layers=2).double()
AMATEUR = tiny_model("gpt2", n_layer=1, seed=1).double()
PROMPT = torch.tensor([[5, 6, 7, 8]])
NEVER_ENDS = dict(eos_token_id=None, pad_token_id=0)


def tokens(model, ids=PROMPT, **options):
    """What generate() adds to the prompts."""
    mask = options.pop("attention_mask", torch.ones_like(ids))
    options = dict(max_new_tokens=10, do_sample=False, **NEVER_ENDS) | options
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_our_loop_and_the_processor(name):
    expert = tiny_model(name, seed=3).double()
    source = Contrast(expert, AMATEUR, alpha=0.05)
    want = generate(source, PROMPT, max_new_tokens=10, eos_token_ids=()).token_ids
    assert tokens(as_causal_lm(source)) == [want]
    assert tokens(expert, logits_processor=[ContrastiveLogitsProcessor(AMATEUR, alpha=0.05)]) == [want]


@pytest.mark.parametrize("source", [Contrast(EXPERT, AMATEUR, beta=0.5), DoLa(EXPERT, layers=[0, 1]),
                                    EarlyExit(EXPERT, 1), Prompted(EXPERT, [50, 51])])  # fmt: skip
def test_every_source_and_left_padded_batches(source):
    prompts = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    want = [generate(source, prompt, max_new_tokens=8, eos_token_ids=()).token_ids for prompt in prompts]
    ids = torch.tensor([[0] * (4 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (4 - len(p)) + [1] * len(p) for p in prompts])
    model = as_causal_lm(source)
    assert tokens(model, ids, attention_mask=mask, max_new_tokens=8) == want
    assert tokens(model, ids, attention_mask=mask, max_new_tokens=8, use_cache=False) == want


def test_processors_that_leave_no_number_are_refused_and_others_right():
    masked, plain = as_causal_lm(Contrast(EXPERT, AMATEUR)), as_causal_lm(EXPERT)
    with pytest.raises(ValueError, match="guidance_scale"):
        tokens(masked, guidance_scale=1.5)
    assert tokens(plain, guidance_scale=1.5) == tokens(EXPERT, guidance_scale=1.5) != tokens(plain)
    with pytest.raises(ValueError, match="guidance_scale"):  # every token that is kept is ruled out
        tokens(as_causal_lm(Contrast(EXPERT, AMATEUR, alpha=1.0)), suppress_tokens=list(range(97)))
    assert tokens(masked, num_beams=3, suppress_tokens=[5]) == tokens(masked, num_beams=3, bad_words_ids=[[5]])
    with pytest.raises(TypeError, match="attention_mask"):
        ContrastiveLogitsProcessor(AMATEUR, attention_mask="left")


def test_the_processor_in_left_padded_batches():
    ids, mask = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    processor = ContrastiveLogitsProcessor(AMATEUR, alpha=0.05, attention_mask=mask)
    want = [generate(Contrast(EXPERT, AMATEUR, alpha=0.05), p, max_new_tokens=8, eos_token_ids=()).token_ids
            for p in ([5, 6], [7, 8, 9, 10])]  # fmt: skip
    assert tokens(EXPERT, ids, attention_mask=mask, max_new_tokens=8, logits_processor=[processor]) == want


def brute_force_beams(score, prompt, num_beams, steps):
    """The best hypothesis by the sum of `score(ids) -> [V]`, everything computed again at every step."""
    beams = [((), 0.0)]
    for _ in range(steps):
        rivals = []
        for found, total in beams:
            row = score(torch.tensor([[*prompt, *found]]))
            rivals += [((*found, token), total + float(value)) for token, value in enumerate(row) if value > -math.inf]
        beams = sorted(rivals, key=lambda beam: -beam[1])[:num_beams]
    return list(beams[0][0])


@torch.no_grad()
def logits(ids):
    return EXPERT(ids).logits[0, -1], AMATEUR(ids).logits[0, -1]


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("numbers", [dict(alpha=0.05), dict(alpha=0.05, beta=0.7)])
def test_beams_of_the_model_log_softmax_the_scores(num_beams, numbers):
    formula = contrastive_logits if "beta" in numbers else contrastive_scores
    got = tokens(as_causal_lm(Contrast(EXPERT, AMATEUR, **numbers)), num_beams=num_beams, max_new_tokens=6)
    want = brute_force_beams(
        lambda ids: formula(*logits(ids), **numbers).log_softmax(-1), PROMPT[0].tolist(), num_beams, 6
    )
    assert got == [want]


@pytest.mark.parametrize("num_beams", [2, 4])
@pytest.mark.parametrize("numbers", [dict(alpha=0.05), dict(alpha=0.05, beta=0.7)])
def test_beams_of_the_processor_add_the_scores_as_they_are(num_beams, numbers):
    formula = contrastive_logits if "beta" in numbers else contrastive_scores

    def score(ids):  # transformers hands a processor log-probabilities under beam search
        expert, amateur = logits(ids)
        return formula(expert.log_softmax(-1), amateur, **numbers)

    got = tokens(EXPERT, num_beams=num_beams, max_new_tokens=6,
                 logits_processor=[ContrastiveLogitsProcessor(AMATEUR, **numbers)])  # fmt: skip
    assert got == [brute_force_beams(score, PROMPT[0].tolist(), num_beams, 6)]


@pytest.mark.parametrize("numbers", [dict(alpha=0.05), dict(alpha=0.05, beta=0.7)])
def test_a_custom_generate_is_our_loop(numbers):
    ours, custom = Contrast(EXPERT, AMATEUR, **numbers), dict(custom_generate=contrastive_generate, amateur=AMATEUR)
    for prompts in ([[5, 6, 7, 8]], [[5, 6], [7, 8, 9, 10]]):  # the second batch is padded on the left
        ids = torch.tensor([[0] * (len(prompts[-1]) - len(p)) + p for p in prompts])
        mask = (ids > 0).long()
        made = [generate(ours, p, max_new_tokens=10, eos_token_ids=(), repetition_penalty=1.3) for p in prompts]
        got = tokens(EXPERT, ids, attention_mask=mask, repetition_penalty=1.3, **custom, **numbers)
        assert got == [one.token_ids for one in made]
        processor = ContrastiveLogitsProcessor(AMATEUR, attention_mask=mask, **numbers)
        by_hand = tokens(EXPERT, ids, attention_mask=mask, logits_processor=[processor], num_beams=3)
        assert tokens(EXPERT, ids, attention_mask=mask, num_beams=3, **custom, **numbers) == by_hand


def test_a_custom_generate_draws_from_the_contrast():
    custom = dict(custom_generate=contrastive_generate, amateur=AMATEUR, alpha=0.05, do_sample=True, top_k=0)
    torch.manual_seed(0)
    drawn = torch.tensor(tokens(EXPERT, max_new_tokens=1, num_return_sequences=4000, temperature=2.0, **custom))[:, 0]
    probs = (Contrast(EXPERT, AMATEUR, alpha=0.05)(PROMPT)[0, -1] / 2).softmax(-1)
    counts = torch.bincount(drawn, minlength=97).double()
    assert not counts[probs == 0].any()
    kept = probs > 0
    chi2 = ((counts - 4000 * probs)[kept] ** 2 / (4000 * probs)[kept]).sum()
    free = int(kept.sum()) - 1
    assert free > 3 and chi2 < free + 4 * math.sqrt(2 * free)
    with pytest.raises(ValueError, match="choose one"):
        tokens(EXPERT, strength=1, beta=1, **custom)


def test_sampling_several_sequences_stopping_and_scores():
    model = as_causal_lm(Contrast(EXPERT, AMATEUR, alpha=0.05))
    torch.manual_seed(0)
    found = tokens(model, do_sample=True, num_return_sequences=5)
    assert len(found) == 5 and len({tuple(row) for row in found}) > 1
    kept = Contrast(EXPERT, AMATEUR, alpha=0.05)(PROMPT)[0, -1] > -math.inf
    assert all(kept[row[0]] for row in found)
    free = tokens(model)[0]
    assert tokens(model, eos_token_id=free[3])[0] == free[: free.index(free[3]) + 1]
    tokenizer = character_tokenizer()
    stop = tokenizer.decode(free[2:4])
    assert tokens(model, stop_strings=[stop], tokenizer=tokenizer)[0] == free[:4]
    full = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=2, do_sample=False,
                          return_dict_in_generate=True, output_logits=True, **NEVER_ENDS)  # fmt: skip
    assert torch.allclose(full.logits[0].double(), Contrast(EXPERT, AMATEUR, alpha=0.05)(PROMPT)[:, -1], atol=1e-5)


def test_streamers_see_every_token():
    class Listener:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    listener = Listener()
    new = tokens(as_causal_lm(Contrast(EXPERT, AMATEUR)), streamer=listener)[0]
    assert listener.seen == [*PROMPT[0].tolist(), *new, "end"]


@pytest.mark.parametrize("assistant", ["amateur", "early exit", "itself"])
def test_assisted_generation_gives_the_same_tokens(assistant):
    model = as_causal_lm(Contrast(EXPERT, AMATEUR, alpha=0.05))
    helper = {"amateur": AMATEUR, "early exit": as_causal_lm(EarlyExit(EXPERT, 1)), "itself": EXPERT}[assistant]
    assert tokens(model, assistant_model=helper, max_new_tokens=16) == tokens(model, max_new_tokens=16)
    assert tokens(EXPERT, assistant_model=as_causal_lm(AMATEUR), max_new_tokens=16) == tokens(EXPERT, max_new_tokens=16)


def test_each_new_token_costs_one_forward_of_each_model():
    widths = []
    hooks = [m.register_forward_pre_hook(lambda m, a, kw: widths.append(kw["input_ids"].shape[1]), with_kwargs=True)
             for m in (EXPERT, AMATEUR)]  # fmt: skip
    tokens(as_causal_lm(Contrast(EXPERT, AMATEUR)), num_beams=3, max_new_tokens=5)
    [hook.remove() for hook in hooks]
    assert sorted(widths) == [1] * 8 + [4, 4]


def test_pipelines_take_it_without_a_word(caplog, recwarn, monkeypatch):
    monkeypatch.setattr(hf.utils.logging.get_logger("transformers"), "propagate", True)
    pipe = hf.pipeline(
        "text-generation", model=as_causal_lm(Contrast(EXPERT, AMATEUR)), tokenizer=character_tokenizer()
    )
    out = pipe("hello", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert out.startswith("hello") and len(out) == 10
    said = [record.message for record in caplog.records] + [str(w.message) for w in recwarn]
    assert not [line for line in said if "not supported" in line or "cdlearn" in line], said


def test_forward_gives_logits_of_all_or_the_last_columns():
    source = Contrast(EXPERT, AMATEUR)
    model = as_causal_lm(source)
    assert torch.equal(model(PROMPT).logits, source(PROMPT, None, 4))
    assert model(PROMPT, logits_to_keep=2).logits.shape == (1, 2, 97)
    first = model(PROMPT[:, :3], use_cache=True)
    second = model(PROMPT[:, 3:], past_key_values=first.past_key_values)
    assert torch.allclose(second.logits, source(PROMPT))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(PROMPT, attention_mask=torch.ones(1, 2))
    assert model.device == EXPERT.device and model.config.vocab_size == 97 and model.to("cpu") is model


def test_eos_comes_from_the_source():
    assert as_causal_lm(CachedLM(EXPERT)).generation_config.eos_token_id == [2]


BAD_CALLS = [
    (lambda: as_causal_lm("gpt2"), TypeError, "source is a str"),
    (lambda: ContrastiveLogitsProcessor(AMATEUR, alpha=2), ValueError, "alpha is 2"),
    (lambda: ContrastiveLogitsProcessor(AMATEUR, strength=1, beta=1), ValueError, "choose one"),
    (lambda: ContrastiveLogitsProcessor(AMATEUR, beta=1, amateur_temperature=2), ValueError, "amateur_temperature"),
    (lambda: ContrastiveLogitsProcessor(AMATEUR, attention_mask=torch.ones(2, 3))(PROMPT, torch.zeros(1, 97)),
     ValueError, "attention_mask has shape"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
