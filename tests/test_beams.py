"""Beam search: equal to a brute-force search that recomputes everything, by each rule."""

import math
from itertools import product

import pytest
import torch
from conftest import character_tokenizer
from tiny import Interrupted, tiny_model

from cdlearn import CachedLM, Contrast, DoLa, Prompted, beam_search, generate
from cdlearn.scores import contrastive_scores

EXPERT = tiny_model("llama", num_hidden_layers=2).double()
AMATEUR = tiny_model("gpt2", n_layer=1, seed=1).double()
PROMPTS = [[5, 6, 7], [9, 10, 11, 12], [40]]


@torch.no_grad()
def scores_of(ids, **numbers):
    ids = torch.tensor([ids])
    return contrastive_scores(EXPERT(ids).logits[0, -1], AMATEUR(ids).logits[0, -1], **numbers)


def brute_force(prompt, num_beams, steps, eos=(), **numbers):
    """Sum of scores, ended hypotheses stay: one fresh pass a hypothesis and step."""
    beams = [((), 0.0, False)]
    for _ in range(steps):
        rivals = [beam for beam in beams if beam[2]]
        for tokens, total, done in beams:
            if done:
                continue
            scores = scores_of([*prompt, *tokens], **numbers)
            rivals += [
                ((*tokens, token), total + float(score), token in eos)
                for token, score in enumerate(scores)
                if score > -math.inf
            ]
        beams = sorted(rivals, key=lambda beam: -beam[1])[:num_beams]
        if all(done for _, _, done in beams):
            break
    return beams


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("numbers", [dict(alpha=0.05), dict(alpha=None, strength=0.4), dict(alpha=1.0)])
def test_sum_equals_brute_force(num_beams, numbers):
    source = Contrast(EXPERT, AMATEUR, **numbers)
    for prompt in PROMPTS:
        want = brute_force(prompt, num_beams, 6, **numbers)
        got = beam_search(source, prompt, num_beams=num_beams, max_new_tokens=6, eos_token_ids=(),
                          num_return_sequences=min(num_beams, len(want)))  # fmt: skip
        got = got if isinstance(got, list) else [got]
        assert [tuple(g.token_ids) for g in got] == [tokens for tokens, _, _ in want][: len(got)]
        assert [g.stats["score"] for g in got] == pytest.approx([total for _, total, _ in want][: len(got)])


def test_sum_with_an_eos_equals_brute_force():
    free = beam_search(Contrast(EXPERT, AMATEUR), PROMPTS[0], num_beams=3, max_new_tokens=6, eos_token_ids=())
    for eos in (free.token_ids[1], free.token_ids[3]):
        want = brute_force(PROMPTS[0], 3, 6, eos=(eos,))
        got = beam_search(Contrast(EXPERT, AMATEUR), PROMPTS[0], num_beams=3, max_new_tokens=6, eos_token_ids=(eos,))
        tokens, total, done = want[0]
        assert got.token_ids == [t for t in tokens if t != eos] and got.stats["score"] == pytest.approx(total)
        assert got.finish_reason == ("eos" if done else "length")


@pytest.mark.parametrize("steps", [2, 3])
def test_beams_of_a_bare_model_find_the_likeliest_text(steps):
    """As many beams as texts, so nothing is lost: the best is the argmax of the exact log-probabilities."""
    model = tiny_model("llama", vocab_size=5, seed=3).double()
    texts = list(product(range(5), repeat=steps))
    whole = torch.tensor([[1, 4, *text] for text in texts])
    with torch.no_grad():
        logp = model(whole).logits[:, 1:-1].log_softmax(-1)  # (5 ** steps, steps, V)
    totals = logp.gather(-1, whole[:, 2:, None])[..., 0].sum(-1)
    best = int(totals.argmax())
    for source in (CachedLM(model), Prompted(model, [1])):
        ids = [4] if isinstance(source, Prompted) else [1, 4]
        got = beam_search(source, ids, num_beams=5**steps, max_new_tokens=steps, eos_token_ids=())
        assert got.token_ids == list(texts[best]) and got.stats["score"] == pytest.approx(float(totals[best]))


def test_the_logit_form_adds_up_log_probabilities():
    source = Contrast(EXPERT, AMATEUR, beta=0.5, alpha=0.01)
    got = beam_search(source, PROMPTS[0], num_beams=3, max_new_tokens=5, eos_token_ids=())
    ids = torch.tensor([[*PROMPTS[0], *got.token_ids]])
    logp = source(ids[:, :-1], None, 5)[0].log_softmax(-1)
    assert got.stats["score"] == pytest.approx(float(logp.gather(-1, ids[0, -5:, None]).sum()), abs=1e-6)


def test_one_beam_is_greedy_for_every_source():
    for source in (CachedLM(EXPERT), Contrast(EXPERT, AMATEUR), DoLa(EXPERT, layers=[0, 1])):
        for prompt in PROMPTS:
            greedy = generate(source, prompt, max_new_tokens=8, eos_token_ids=())
            beam = beam_search(source, prompt, num_beams=1, max_new_tokens=8, eos_token_ids=())
            assert beam.token_ids == greedy.token_ids
            assert torch.allclose(beam.trace.score, greedy.trace.score) and beam.trace.token_ids == greedy.token_ids


@torch.no_grad()
def reference_by_hand(prompt, num_beams, steps, alpha, strength, tau):
    """The official rule of arXiv 2210.15097's code, from its description, one hypothesis at a time, without an EOS."""
    beams = [((), 0.0)]
    for step in range(steps):
        pairs = []
        for tokens, total in beams:
            ids = torch.tensor([[*prompt, *tokens]])
            logp = EXPERT(ids).logits[0, -1].log_softmax(-1)
            top = logp.argsort(descending=True)
            cut = torch.full_like(logp, -math.inf)
            cut[top[:50]] = logp[top[:50]] - logp[top[:50]].logsumexp(-1)
            bound = min(float(cut.max()) + math.log(alpha), float(cut[top[1]]))
            masked = torch.where(cut >= bound, cut, -math.inf)
            against = AMATEUR(ids).logits[0, -1].log_softmax(-1) / tau
            for token in range(97):
                rank = total + float(masked[token]) if step == 0 else float(logp[token])
                pairs.append((rank, (*tokens, token), total + float(masked[token]) - strength * float(against[token])))
        pairs = sorted(pairs, key=lambda pair: -pair[0])[: 2 * num_beams]
        beams = [(tokens, total) for _, tokens, total in pairs if total > -math.inf]
        beams = sorted(beams, key=lambda beam: -beam[1])[:num_beams]
    return [(tokens, total / (len(prompt) + steps)) for tokens, total in beams]


@pytest.mark.parametrize("numbers", [dict(alpha=0.1, strength=1.0, tau=1.0), dict(alpha=0.3, strength=0.5, tau=0.5)])
def test_reference_equals_the_official_rule_by_hand(numbers):
    source = Contrast(EXPERT, AMATEUR, alpha=numbers["alpha"], strength=numbers["strength"],
                      amateur_temperature=numbers["tau"])  # fmt: skip
    for prompt in PROMPTS:
        want = reference_by_hand(prompt, 4, 6, **numbers)
        got = beam_search(source, prompt, num_beams=4, convention="reference", max_new_tokens=6, eos_token_ids=(),
                          num_return_sequences=2)  # fmt: skip
        assert [tuple(g.token_ids) for g in got] == [tokens for tokens, _ in want[:2]]
        assert [g.stats["score"] for g in got] == pytest.approx([score for _, score in want[:2]])


def test_reference_ends_with_an_eos():
    source = Contrast(EXPERT, AMATEUR)
    free = beam_search(source, PROMPTS[0], convention="reference", num_beams=2, max_new_tokens=6, eos_token_ids=())
    got = beam_search(source, PROMPTS[0], convention="reference", num_beams=2, max_new_tokens=6,
                      eos_token_ids=(free.token_ids[2],), num_return_sequences=2)  # fmt: skip
    assert any(g.finish_reason == "eos" for g in got)


def test_several_prompts_stop_strings_and_text():
    tokenizer = character_tokenizer()
    source = Contrast(EXPERT, AMATEUR)
    options = dict(num_beams=3, max_new_tokens=8, tokenizer=tokenizer, eos_token_ids=())
    batch = beam_search(source, PROMPTS, **options)
    assert [g.token_ids for g in batch] == [beam_search(source, p, **options).token_ids for p in PROMPTS]
    assert all(g.text == tokenizer.decode(g.token_ids) for g in batch)
    stop = tokenizer.decode(batch[0].token_ids[2:4])
    stopped = beam_search(source, PROMPTS[0], stop=stop, **options)
    assert stop not in stopped.text and len(stopped.trace) <= 8


def test_an_interrupt_returns_the_best_so_far():
    got = beam_search(Interrupted(EXPERT), PROMPTS[0], num_beams=3, max_new_tokens=9, eos_token_ids=())
    assert got.finish_reason == "interrupted" and len(got.token_ids) == 3
    whole = beam_search(EXPERT, PROMPTS[0], num_beams=3, max_new_tokens=3, eos_token_ids=())
    assert got.trace.token_ids == got.token_ids == whole.token_ids
    assert torch.allclose(got.trace.score, whole.trace.score, atol=1e-5)
    several = beam_search(Interrupted(EXPERT), PROMPTS, num_beams=3, max_new_tokens=9, num_return_sequences=2)
    assert [len(one.trace) for one in several] == [len(one.token_ids) for one in several] and len(several[0].trace) == 3
    assert {one.finish_reason for one in several} == {"interrupted"}


BAD_CALLS = [
    (dict(num_beams=0), ValueError, "num_beams is 0"),
    (dict(num_beams=2**31), ValueError, "num_beams"),
    (dict(num_beams="5"), TypeError, "num_beams is '5'"),
    (dict(num_beams=2, num_return_sequences=3), ValueError, "num_return_sequences is 3"),
    (dict(convention="paper"), ValueError, "convention is 'paper'"),
    (dict(max_new_tokens=0), ValueError, "max_new_tokens is 0"),
]


@pytest.mark.parametrize("options, kind, message", BAD_CALLS)
def test_bad_input_is_named(options, kind, message):
    with pytest.raises(kind, match=message):
        beam_search(Contrast(EXPERT, AMATEUR), [5], **options)
    with pytest.raises(ValueError, match="its own|strength"):
        beam_search(Contrast(EXPERT, AMATEUR, beta=0.5), [5], convention="reference")
