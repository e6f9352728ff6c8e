"""Speculative sampling: the target's own tokens and the target's own law, whatever the draft is."""

import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import character_tokenizer
from hypothesis import assume, given
from hypothesis import strategies as st
from test_sources import counted
from tiny import Interrupted, tiny_model

import cdlearn
from cdlearn import CachedLM, Contrast, DoLa, EarlyExit, Lookup, Mix, Prompted, TextSpace, Window, generate
from cdlearn.loops import pace
from cdlearn.scores import accept_probability, residual, sampling_probs, verify_draft
from cdlearn.scores.verify import verified
from cdlearn.sources import Source

speculate = partial(cdlearn.speculate, gamma=4)  # where a test does not say otherwise
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [20, 21], [30, 31, 32, 33], [40], [50, 51, 52], [60, 61]]


def model(seed=0, layers=2, name="llama", **options):
    # float64, so that no two tokens tie within rounding on any machine
    return tiny_model(name, seed=seed, num_hidden_layers=layers, **options).double()


def near(big, noise, seed=5):
    """A draft that mostly agrees with its target: the same weights, shaken."""
    twin = model()
    twin.load_state_dict(big.state_dict())
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(noise * weight.std().nan_to_num(0.0) * torch.randn(weight.shape, generator=random))
    return twin


TOKENIZER = character_tokenizer()
BIG = model()
SMALL = near(BIG, 0.1)
TARGETS = {
    "plain": lambda: (CachedLM(BIG), CachedLM(SMALL)),
    "stranger": lambda: (CachedLM(BIG), CachedLM(model(1, 1))),
    "itself": lambda: (CachedLM(BIG), CachedLM(BIG)),
    "early exit": lambda: (CachedLM(BIG), EarlyExit(BIG, 1)),
    "contrast": lambda: (Contrast(BIG, (small := CachedLM(SMALL)), alpha=0.02), small),
    "contrast beta": lambda: (Contrast(BIG, (small := CachedLM(model(1, 1))), beta=0.5), small),
    "dola": lambda: (DoLa(BIG, layers=[0, 1]), CachedLM(SMALL)),
    "mix": lambda: (Mix([(1.5, BIG), (-0.5, SMALL)]), CachedLM(SMALL)),
    "prompted": lambda: (Prompted(BIG, [70, 71, 72]), CachedLM(SMALL)),
    "early exit as target": lambda: (EarlyExit(BIG, 1), CachedLM(SMALL)),
    "text space": lambda: (Contrast(BIG, TextSpace(SMALL, TOKENIZER, TOKENIZER), alpha=0.3), CachedLM(SMALL)),
    "window": lambda: (Contrast(BIG, Window(SMALL, 3), alpha=0.02), Window(SMALL, 2)),
    "lookup": lambda: (CachedLM(BIG), Lookup()),
    "dola as draft": lambda: (CachedLM(BIG), DoLa(SMALL, layers=[1])),
    "mix as draft": lambda: (Contrast(BIG, SMALL, beta=0.5), Mix([(1.2, BIG), (-0.2, SMALL)])),
    "contrast as draft": lambda: (CachedLM(BIG), Contrast(SMALL, model(1, 1), alpha=0.1)),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("gamma", [1, 4, "auto"])
def test_greedy_equals_the_targets_greedy_alone_and_in_ragged_batches(name, gamma, monkeypatch):
    monkeypatch.setattr("cdlearn.loops.speculate.price_of", lambda draft, target: 1e-3)  # or no small draft would pay
    target, draft = TARGETS[name]()
    options = dict(max_new_tokens=14, eos_token_ids=())
    want = [generate(TARGETS[name]()[0], prompt, **options).token_ids for prompt in PROMPTS]
    assert [speculate(target, draft, prompt, gamma=gamma, **options).token_ids for prompt in PROMPTS] == want
    batch = speculate(target, draft, PROMPTS, gamma=gamma, **options)
    assert [g.token_ids for g in batch] == want
    kept = [g.stats["accepted"] for g in batch]
    if name == "plain":
        assert len(set(kept)) > 2 and 0 < sum(kept) < sum(g.stats["drafted"] for g in batch)  # ragged indeed


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "qwen2", "qwen3", "gemma", "mistral"])
def test_greedy_in_ragged_batches_on_every_architecture(name):
    big = tiny_model(name).double()
    target, draft = CachedLM(big), EarlyExit(big, 2)
    options = dict(max_new_tokens=10, eos_token_ids=())
    want = [generate(big, prompt, **options).token_ids for prompt in PROMPTS[:4]]
    assert [g.token_ids for g in speculate(target, draft, PROMPTS[:4], **options)] == want


def test_sliding_windows_are_exact_far_beyond_the_window():
    # float32: transformers' eager attention takes its softmax there, where the masks of float64 overflow
    gemma2 = hf.Gemma2ForCausalLM(
        hf.Gemma2Config(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
                        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, max_position_embeddings=256)
    ).eval()  # fmt: skip
    gemma3 = hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
                            num_attention_heads=4, num_key_value_heads=2, sliding_window=6, sliding_window_pattern=2,
                            max_position_embeddings=256)
    ).eval()  # fmt: skip
    random = torch.Generator().manual_seed(0)
    for big in (gemma2, gemma3, model(name="mistral", layers=3, sliding_window=5)):
        with torch.no_grad():
            for weight in big.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn(weight.shape, generator=random) * 1.5 * weight.shape[-1] ** -0.5)
        options = dict(max_new_tokens=24, eos_token_ids=())
        want = [generate(big, prompt, **options).token_ids for prompt in PROMPTS[:3]]
        with torch.no_grad():  # and that is what the bare model says, with no cache at all
            ids = torch.tensor([PROMPTS[0]])
            for _ in range(24):
                ids = torch.cat([ids, big(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert ids[0, 3:].tolist() == want[0]
        got = speculate(big, EarlyExit(big, 2), PROMPTS[:3], **options)
        assert [g.token_ids for g in got] == want
        assert sum(g.stats["accepted"] for g in got) > 0


def test_the_shared_amateur_runs_once_per_position():
    amateur = CachedLM(SMALL)
    target = Contrast(BIG, amateur, alpha=0.02)
    with counted(SMALL) as draft_passes, counted(BIG) as target_passes:
        got = speculate(target, amateur, [5, 6, 7, 8], gamma=3, max_new_tokens=30, eos_token_ids=())
    columns = sum(width for _, width in draft_passes)
    rejected = got.stats["drafted"] - got.stats["accepted"]
    assert len(target_passes) == got.stats["rounds"] == got.stats["target_passes"]
    # the prompt and every token once, plus what was drafted in vain; a contrast of its own would double that
    assert columns <= 4 + 30 + rejected
    alone = CachedLM(SMALL)
    with counted(SMALL) as twice:
        speculate(Contrast(BIG, CachedLM(SMALL), alpha=0.02), alone, [5, 6, 7, 8], gamma=3, max_new_tokens=30,
                  eos_token_ids=())  # fmt: skip
    assert sum(width for _, width in twice) > 1.6 * columns


def test_stats_count_what_happened():
    got = speculate(BIG, BIG, [5, 6], gamma=4, max_new_tokens=11, eos_token_ids=())
    stats = got.stats
    assert (stats["rounds"], stats["drafted"], stats["accepted"], stats["tested"]) == (3, 8, 8, 8)  # 5 + 5 + 1
    assert stats["acceptance_rate"] == 1.0 and stats["tokens_per_target_pass"] == pytest.approx(11 / 3)
    assert stats["new_tokens"] == 11 and stats["exact"] is True
    never = speculate(BIG, Contrast(BIG, BIG, alpha=None, strength=3.0), [5, 6], max_new_tokens=6, eos_token_ids=())
    assert never.stats["accepted"] <= never.stats["tested"] <= never.stats["drafted"]


def test_the_trace_is_the_targets_own_and_tells_the_rounds():
    want = generate(Contrast(BIG, SMALL, alpha=0.02), [5, 6, 7], max_new_tokens=12, eos_token_ids=())
    amateur = CachedLM(SMALL)
    got = speculate(Contrast(BIG, amateur, alpha=0.02), amateur, [5, 6, 7], max_new_tokens=12, eos_token_ids=())
    assert got.trace.token_ids == want.trace.token_ids
    assert torch.allclose(got.trace.score, want.trace.score)
    assert int(got.trace.details["round"].max()) == got.stats["rounds"]
    assert int(got.trace.details["drafted"].sum()) == got.stats["accepted"]
    frame = got.trace.to_frame(top=2)
    assert {"round", "drafted", "accept_probability"} <= set(frame.columns)
    batch = speculate(Contrast(BIG, amateur, alpha=0.02), amateur, PROMPTS[:3], max_new_tokens=12, eos_token_ids=())
    for generation in batch:
        assert generation.trace.token_ids == generation.token_ids


class Table(Source):
    """A law over a few tokens that depends on every real token of the prefix: a hole taken for a token would show."""

    def __init__(self, logits, seed=0):
        super().__init__()
        self.logits, self.vocab_size, self.eos_token_ids = logits, logits.shape[1], ()

    def scores(self, ids, mask, n):
        real = torch.ones_like(ids) if mask is None else mask.long()
        state = ((ids * real).cumsum(1) + 2 * real.cumsum(1)) % len(self.logits)
        scores = self.logits[state][:, -n:]
        self.parts = {"expert": scores}
        return scores


def table(seed, spread=1.5, vocab=4, zeros=False):
    logits = spread * torch.randn(7, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if zeros:  # exact zeros, another token in every state
        logits[torch.arange(7), torch.arange(7) % vocab] = -math.inf
    return Table(logits)


def exact_law(source, prompt, length, law):
    """Every continuation of `length` tokens with its probability, by enumeration."""
    chances = {}
    for tokens in product(range(source.vocab_size), repeat=length):
        chance = 1.0
        for k in range(length):
            scores = source(torch.tensor([[*prompt, *tokens[:k]]]))[:, -1]
            sampler = {name: number for name, number in law.items() if name != "rule"}
            chance *= float(sampling_probs(scores, **sampler)[0, tokens[k]])
        chances[tokens] = chance
    return chances


def chi_square(draws, chances):
    """The statistic, its degrees of freedom, and a bound it passes once in 20,000 right samplers (Wilson-Hilferty)."""
    counts = {}
    for tokens in draws:
        counts[tuple(tokens)] = counts.get(tuple(tokens), 0) + 1
    assert all(chances[tokens] > 0 for tokens in counts)  # never a token that cannot be had
    cells = [(counts.get(tokens, 0), chance * len(draws)) for tokens, chance in chances.items() if chance > 0]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5] + (
        [(sum(c for c, _ in rare), sum(e for _, e in rare))] if rare else []
    )
    df = len(cells) - 1
    statistic = sum((count - expected) ** 2 / max(expected, 1e-9) for count, expected in cells)
    return statistic, df * (1 - 2 / (9 * df) + 3.9 * math.sqrt(2 / (9 * df))) ** 3


DRAFTS = {
    "good": lambda: table(1).logits + 0.5 * table(2).logits,
    "bad": lambda: table(3).logits,
    "identical": lambda: table(1).logits,
    "disjoint": lambda: torch.where(table(1).logits > table(1).logits.median(1, keepdim=True).values, -math.inf, 1.0),
}
LAWS = {
    "temperature": (dict(temperature=0.7), False),
    "top-k": (dict(temperature=1.2, top_k=2), False),
    "top-p": (dict(temperature=1.0, top_p=0.8), False),
    "min-p": (dict(temperature=1.5, min_p=0.3), False),
    "top-n-sigma": (dict(temperature=1.5, top_n_sigma=1.1), False),
    "block": (dict(temperature=1.0, rule="block"), False),
    "block, zeros": (dict(temperature=1.0, rule="block"), True),
    "zeros": (dict(temperature=1.0), True),
}
DRAWS = 20_000


CASES = [(draft, law, 2) for draft in DRAFTS for law in ("temperature", "top-k", "top-p", "min-p", "zeros")]
CASES += [("good", "top-n-sigma", 2), ("good", "block", 2), ("good", "block, zeros", 2)]
CASES += [("good", "temperature", "auto"), ("disjoint", "top-k", "auto"), ("identical", "zeros", "auto")]
CASES += [("good", "block", "auto"), ("disjoint", "block", "auto")]


@pytest.mark.parametrize("draft_name, law_name, gamma", CASES)
def test_the_sampling_law_is_the_targets(draft_name, law_name, gamma):
    law, zeros = LAWS[law_name]
    target = table(1, zeros=zeros)
    draft = Table(DRAFTS[draft_name]())
    length = 3 if draft_name in ("good", "disjoint") or gamma == "auto" else 2
    chances = exact_law(target, [1, 2], length, law)
    assert sum(chances.values()) == pytest.approx(1)
    found = speculate(
        target, draft, [1, 2], gamma=gamma, max_new_tokens=length, seed=11, num_return_sequences=DRAWS, trace=False,
        **law
    )  # fmt: skip
    if (draft_name, gamma) == ("good", "auto"):  # rows of one call drafted differently
        assert len({g.stats["drafted"] for g in found}) > 1
    statistic, bound = chi_square([g.token_ids for g in found], chances)
    assert statistic < bound
    if (draft_name, law_name) == ("bad", "temperature"):  # and this check does see a wrong law
        wrong = speculate(
            target, draft, [1, 2], gamma=2, lenience=0.3, max_new_tokens=length, seed=11, num_return_sequences=DRAWS,
            trace=False, **law
        )  # fmt: skip
        statistic, bound = chi_square([g.token_ids for g in wrong], chances)
        assert statistic > bound and wrong[0].stats["exact"] is False


def test_the_law_of_a_masked_contrast_with_a_real_amateur():
    small = dict(vocab_size=5, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    expert, amateur = model(0, 2, **small), CachedLM(model(1, 1, **small))
    target = Contrast(expert, amateur, alpha=0.3, strength=0.5)
    law = dict(temperature=1.0)
    chances = exact_law(target, [1, 2], 2, law)
    assert any(chance == 0 for chance in chances.values())
    draws = []
    for block in range(20):  # and in batches of a thousand, each with its own seeds
        found = speculate(target, amateur, [1, 2], gamma=2, max_new_tokens=2, seed=1000 * block,
                          num_return_sequences=1000, trace=False, eos_token_ids=(), **law)  # fmt: skip
        draws += [g.token_ids for g in found]
    statistic, bound = chi_square(draws, chances)
    assert statistic < bound


def test_row_r_draws_what_a_single_call_with_seed_plus_r_draws():
    amateur = CachedLM(SMALL)
    target = Contrast(BIG, amateur, alpha=0.02)
    options = dict(max_new_tokens=10, temperature=1.1, top_k=20, eos_token_ids=())
    batch = speculate(target, amateur, PROMPTS, seed=7, **options)
    singles = [speculate(target, amateur, prompt, seed=7 + r, **options) for r, prompt in enumerate(PROMPTS)]
    assert [g.token_ids for g in batch] == [g.token_ids for g in singles]
    pieces = []
    tokenizer = character_tokenizer()
    streamed = speculate(target, amateur, PROMPTS[0], seed=7, tokenizer=tokenizer, stream=pieces.append, **options)
    quiet = speculate(target, amateur, PROMPTS[0], seed=7, trace=False, **options)
    assert streamed.token_ids == quiet.token_ids == singles[0].token_ids
    assert "".join(pieces) == streamed.text


def test_auto_draws_alike_in_batches_and_streams_and_again():
    amateur = CachedLM(SMALL)
    target = Contrast(BIG, amateur, alpha=0.02)
    options = dict(max_new_tokens=12, temperature=0.8, eos_token_ids=(), gamma="auto")
    batch = speculate(target, amateur, PROMPTS, seed=7, **options)
    singles = [speculate(target, amateur, prompt, seed=7 + r, **options) for r, prompt in enumerate(PROMPTS)]
    assert [g.token_ids for g in batch] == [g.token_ids for g in singles]
    assert [g.stats["drafted"] for g in batch] == [g.stats["drafted"] for g in singles]


def test_auto_drafts_on_while_the_draft_is_sure_and_learns_what_that_is_worth():
    price = pace.price_of(EarlyExit(BIG, 1), Contrast(BIG, SMALL))
    assert 0.05 < price < 0.5 and pace.price_of(Lookup(), CachedLM(BIG)) == 8 * pace.COLUMN  # float64
    assert pace.price_of(CachedLM(BIG), CachedLM(BIG)) > 1

    def drafted(row, probabilities, room=99):
        row.start(room)
        for probability in probabilities:
            if not row.goes_on:
                break
            row.add(probability)
        return row.size

    row = pace.Pace("auto", 0.4)
    assert [drafted(row, p) for p in ([0.9] * 20, [0.3] * 20, [0.8, 0.6, 0.5], [0.9, 0.39])] == [9, 1, 3, 2]
    assert drafted(row, [1.0] * 30) == pace.LONGEST and drafted(row, [1.0] * 20, room=3) == 3
    for _ in range(30):  # sure of itself and wrong
        drafted(row, [0.9] * 20)
        row.judge(0, row.size > 0)
    assert drafted(row, [0.9] * 20) <= 1
    lengths = [drafted(row, [0.9] * 20) for _ in range(40)]
    assert max(lengths) <= 2 and 1 <= sum(lengths) <= 5  # now and then it is asked again
    for _ in range(200):  # and it has got better
        row.judge(row.size if drafted(row, [0.9] * 20) else 0, False)
    assert drafted(row, [0.9] * 20) > 4
    assert drafted(pace.Pace(5, 0.0), [1e-9] * 20) == 5


def test_a_draft_may_have_nothing_to_say():
    prompt = [5, 6, 7, 8, 9, 5, 6]
    want = generate(BIG, prompt, max_new_tokens=20, eos_token_ids=()).token_ids
    for gamma in (4, "auto"):
        got = speculate(BIG, Lookup(), prompt, gamma=gamma, max_new_tokens=20, eos_token_ids=())
        assert got.token_ids == want and got.stats["drafted"] < 4 * got.stats["rounds"]
    new = speculate(BIG, Lookup(longest=9, shortest=9), [5, 6], max_new_tokens=4, eos_token_ids=())
    assert new.stats["drafted"] == 0 and new.stats["rounds"] == 4


def test_a_run_says_what_it_gained_and_warns_where_it_lost(monkeypatch):
    clock = pace.Clock()
    for drafted, tokens, draft, check in ((4, 2, 9, 9), (4, 5, 0.4, 1.0), (0, 1, 0.0, 0.8), (4, 2, 0.4, 1.0)):
        clock.add(1, drafted, tokens, draft, check)  # the first round reads the prompt
    assert clock.speedup() == pytest.approx(8 * 0.8 / 3.6)
    ticks = iter(range(10**6))
    monkeypatch.setattr("cdlearn.loops.speculate.time.perf_counter", lambda: float(next(ticks)))
    with pytest.warns(UserWarning, match="0 of .* drafted tokens were accepted"):
        got = speculate(BIG, model(1, 1), [5, 6], max_new_tokens=6, eos_token_ids=(), gamma=1)
    assert got.stats["speedup"] == pytest.approx(0.5) and got.stats["mean_draft_length"] == pytest.approx(5 / 6)


@pytest.mark.filterwarnings("ignore:speculation took")
def test_a_long_greedy_run_that_loses_to_its_drafts_goes_on_without_them(monkeypatch):
    clock = pace.Clock()
    for drafted, tokens, seconds in ((4, 5, 9.0), (4, 3, 2.0), (4, 3, 2.0)):
        assert not clock.loses
        clock.add(1, drafted, tokens, 0.0, seconds)
    assert clock.loses  # for a round, to see what a plain step takes
    clock.add(1, 0, 1, 0.0, 0.5)
    assert clock.loses  # 4 s for 6 tokens, where plain steps take 3
    for _ in range(15):
        clock.add(1, 0, 1, 0.0, 0.5)
    assert not clock.loses  # another try
    clock.add(1, 4, 5, 0.0, 0.1)
    clock.add(1, 4, 5, 0.0, 0.1)
    assert not clock.loses  # 4.2 s for 16 tokens

    ticks = iter(range(10**6))  # every look at the clock is a second later: a draft's seconds count as a check's
    monkeypatch.setattr("cdlearn.loops.speculate.time.perf_counter", lambda: float(next(ticks)))
    numbers = dict(max_new_tokens=40, eos_token_ids=(), seed=0)
    other = model(1, 1)
    for temperature in (0.0, 1.0):
        want = generate(BIG, [5, 6], temperature=temperature, **numbers)
        got = speculate(BIG, other, [5, 6], gamma="auto", temperature=temperature, **numbers)
        if temperature == 0:
            tries = sum(bool(facts["draft_ids"]) for facts in got.trace.rounds)
            assert got.token_ids == want.token_ids and tries <= 6 and got.stats["rounds"] > 30
        else:  # a seed gives one text, whatever the clock says
            again = speculate(BIG, other, [5, 6], gamma="auto", temperature=temperature, **numbers)
            assert got.token_ids == again.token_ids and got.stats["drafted"] == again.stats["drafted"]


def test_eos_and_stop_strings_end_a_row_inside_the_accepted_run():
    tokenizer = character_tokenizer()
    free = generate(BIG, [5, 6, 7], max_new_tokens=20, eos_token_ids=()).token_ids
    eos = free[6]
    cut = free.index(eos)
    for target, draft in ((BIG, BIG), (BIG, SMALL)):
        got = speculate(target, draft, [5, 6, 7], gamma=5, max_new_tokens=20, eos_token_ids=(eos,))
        assert (got.token_ids, got.finish_reason) == (free[:cut], "eos")
        assert got.trace.token_ids == free[: cut + 1]
        stop = tokenizer.decode(free[3:5])
        want = generate(BIG, [5, 6, 7], tokenizer=tokenizer, stop=stop, max_new_tokens=20, eos_token_ids=())
        got = speculate(target, draft, [5, 6, 7], gamma=5, tokenizer=tokenizer, stop=stop, max_new_tokens=20,
                        eos_token_ids=())  # fmt: skip
        assert (got.text, got.token_ids, got.finish_reason) == (want.text, want.token_ids, "stop")


def test_a_repetition_penalty_is_part_of_the_law():
    options = dict(max_new_tokens=12, repetition_penalty=3.0, eos_token_ids=())
    want = [generate(BIG, prompt, **options).token_ids for prompt in PROMPTS[:4]]
    assert want != [generate(BIG, p, max_new_tokens=12, eos_token_ids=()).token_ids for p in PROMPTS[:4]]
    assert [g.token_ids for g in speculate(BIG, SMALL, PROMPTS[:4], **options)] == want


def test_a_draft_never_reaches_beyond_the_room_left():
    small = model(max_position_embeddings=12)
    longest = []
    hook = small.register_forward_pre_hook(
        lambda m, args, kwargs: longest.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    got = speculate(small, small, [5] * 6, gamma=9, max_new_tokens=7, eos_token_ids=())
    hook.remove()
    assert len(got.token_ids) == 7 and max(longest) == 11


def test_vocabularies_padded_differently():
    wide = model(3, 1, vocab_size=104)
    want = generate(BIG, [5, 6], max_new_tokens=12, eos_token_ids=()).token_ids
    for gamma in (1, 5):
        assert speculate(BIG, wide, [5, 6], gamma=gamma, max_new_tokens=12, eos_token_ids=()).token_ids == want
    speculate(BIG, wide, [5, 6], temperature=1.0, seed=0, max_new_tokens=12, eos_token_ids=())


def test_lenience_keeps_more():
    options = dict(max_new_tokens=40, temperature=1.0, eos_token_ids=(), seed=1)
    strict, loose = (speculate(BIG, model(1, 1), [5, 6], lenience=x, **options).stats for x in (1.0, 0.05))
    assert loose["accepted"] > strict["accepted"]
    greedy = [speculate(BIG, SMALL, [5, 6], lenience=x, max_new_tokens=40, eos_token_ids=()).stats for x in (1.0, 1e-6)]
    assert greedy[1]["accepted"] > greedy[0]["accepted"] and not greedy[1]["exact"]


def test_an_interrupt_returns_what_there_is():
    got = speculate(Interrupted(BIG), BIG, [5, 6], gamma=2, max_new_tokens=30, eos_token_ids=())
    assert got.finish_reason == "interrupted" and len(got.token_ids) == 9
    assert got.token_ids == generate(BIG, [5, 6], max_new_tokens=9, eos_token_ids=()).token_ids


def test_transformers_assisted_generation_says_the_same():
    expert, amateur = BIG, SMALL
    ids = torch.tensor([[5, 6, 7, 8]])
    config = hf.GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=96, pad_token_id=0)
    theirs = expert.generate(
        ids, attention_mask=torch.ones_like(ids), generation_config=config, assistant_model=amateur
    )
    plain = expert.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    ours = speculate(expert, amateur, ids, max_new_tokens=20, eos_token_ids=(96,)).token_ids
    assert torch.equal(theirs, plain) and [t for t in plain[0, 4:].tolist() if t != 96] == ours


def test_accept_probability_and_residual_by_hand():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.25, 0.6, 0.0, 0.15])
    assert accept_probability(p, q).tolist() == pytest.approx([1.0, 0.5, 1.0, 0.0])
    assert accept_probability(p, q, lenience=0.5).tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])
    assert residual(p, q).tolist() == pytest.approx([0.25 / 0.45, 0.0, 0.2 / 0.45, 0.0])
    assert residual(p, p).tolist() == pytest.approx(p.tolist())  # nothing is left: never a division by zero


def test_verify_draft_accepts_up_to_the_first_failure():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.05, 0.05]])
    count, token = verify_draft(p, q, torch.tensor([1, 0]), torch.tensor([0.99, 0.5, 0.0]))
    assert (int(count), int(token)) == (1, 1)  # 0.1 / 0.9 < 0.5: the residual is (0, .15, .65)
    count, token = verify_draft(p, q, torch.tensor([1, 0]), torch.tensor([0.99, 0.1, 0.3]))
    assert (int(count), int(token)) == (2, 2)  # both stand: the bonus token comes from the last row
    count, token = verify_draft(p[:1], q[:0], torch.zeros(0).long(), torch.tensor([0.7]))
    assert (int(count), int(token)) == (0, 1)


def sequences(length):
    return list(product(range(3), repeat=length))


def tables(seed, gamma):
    """Random next-token distributions of a target and a draft after every text of 3 tokens, some with zeros."""
    random = torch.Generator().manual_seed(seed)
    texts = [text for n in range(gamma + 1) for text in sequences(n)]
    p, q = ({t: torch.rand(3, generator=random, dtype=torch.float64) ** 3 for t in texts} for _ in range(2))
    if seed % 3 == 0:
        for text in texts[::4]:
            q[text][text.count(0) % 3] = 0.0
            p[text][(text.count(1) + 1) % 3] = 0.0
    return ({text: row / row.sum() for text, row in table.items()} for table in (p, q))


def chance_of(table, text, start=0):
    return math.prod(float(table[text[:k]][text[k]]) for k in range(start, len(text)))


def emitted(p, q, gamma, stops=None, points=400, **rule):
    """The exact distribution of the first gamma + 1 tokens that rounds of verification give, and the mean accepted.

    stops: text -> whether the draft ends there, a length that depends on what was drafted.
    """
    law, mean = dict.fromkeys(sequences(gamma + 1), 0.0), 0.0
    drafts = {next((t[:n] for n in range(gamma) if stops and stops(t[:n])), t) for t in sequences(gamma)}
    last = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    for draft in drafts:
        chance, n = chance_of(q, draft), len(draft)
        if chance == 0:
            continue
        ps, qs = (torch.stack([t[draft[:k]] for k in range(m)]) if m else torch.zeros(0, 3).double()
                  for t, m in ((p, n + 1), (q, n)))  # fmt: skip
        tokens, options = torch.tensor(draft).long(), dict(lenience=1.0, target_weight=1.0, rule="token") | rule
        tests = verified(ps, qs, tokens, torch.zeros(n + 1), **options)[2].tolist()
        for accepted in range(n + 1):
            if options["rule"] == "block":
                of = ([1.0, *tests][accepted]) * math.prod(1 - x for x in tests[accepted:])
            else:
                of = math.prod(tests[:accepted]) * (1 - tests[accepted] if accepted < n else 1.0)
            if of < 1e-15:
                continue
            u = torch.tensor([0.0 if k < accepted else 0.999999999 for k in range(n)]).expand(points, n)
            rows = (tensor.expand(points, *tensor.shape) for tensor in (ps, qs, tokens))
            count, following = verify_draft(*rows, torch.cat([u, last[:, None]], dim=1), **options)
            assert set(count.tolist()) == {accepted}
            mean += chance * of * accepted
            for token, share in enumerate((torch.bincount(following, minlength=3) / points).tolist()):
                head = (*draft[:accepted], token)
                for text in law:
                    if share and text[: len(head)] == head:
                        law[text] += chance * of * share * chance_of(p, text, len(head))
    return law, mean


@pytest.mark.parametrize("seed", range(6))
def test_block_verification_is_exact_and_never_accepts_less(seed):
    """Every text of three tokens by enumeration: arXiv 2403.10444, theorems 1 and 2; drafts of any length too."""
    p, q = tables(seed, 2)
    exact = {text: chance_of(p, text) for text in sequences(3)}
    (block, longer), (token, shorter) = (emitted(p, q, 2, rule=rule) for rule in ("block", "token"))
    for law in (block, token, emitted(p, q, 2, rule="block", stops=lambda text: text and text[-1] == 1)[0]):
        assert law == pytest.approx(exact, abs=4e-3)
    assert longer >= shorter - 1e-9 and (seed != 5 or longer > shorter + 0.02), (longer, shorter)
    p, q = tables(seed, 1)  # with one drafted token there is nothing to look ahead to
    assert emitted(p, q, 1, rule="block")[1] == pytest.approx(emitted(p, q, 1)[1])


def test_the_ensemble_is_accepted_with_one_minus_w_times_tv_and_says_that_it_is_not_exact():
    """arXiv 2604.07622: the first token is distributed as w p + (1 - w) q, and by either rule."""
    p, q = tables(1, 1)
    distance = float((p[()] - q[()]).abs().sum()) / 2
    for weight, rule in product((1.0, 0.6, 0.0), ("token", "block")):
        law, accepted = emitted(p, q, 1, target_weight=weight, rule=rule)
        assert accepted == pytest.approx(1 - weight * distance)
        first = [sum(chance for text, chance in law.items() if text[0] == token) for token in range(3)]
        assert first == pytest.approx((weight * p[()] + (1 - weight) * q[()]).tolist(), abs=4e-3)
    options = dict(max_new_tokens=40, temperature=1.0, eos_token_ids=(), seed=1)
    exact, mixed, draft = (speculate(BIG, model(1, 1), [5, 6], target_weight=w, **options).stats for w in (1, 0.3, 0))
    assert exact["accepted"] < mixed["accepted"] < draft["accepted"] == draft["drafted"]
    assert exact["exact"] and not mixed["exact"]


def test_the_block_rule_in_a_run():
    """Greedy text is the target's, a batch's rows draw as they do alone, and the trace holds what was tested."""
    options = dict(max_new_tokens=20, eos_token_ids=(), rule="block")
    want = generate(BIG, [5, 6], max_new_tokens=20, eos_token_ids=()).token_ids
    assert speculate(BIG, SMALL, [5, 6], **options).token_ids == want
    options |= dict(temperature=1.0)
    for gamma in ("auto", 4):
        batch = speculate(BIG, SMALL, PROMPTS, seed=7, gamma=gamma, **options)
        singles = [
            speculate(BIG, SMALL, prompt, seed=7 + r, gamma=gamma, **options) for r, prompt in enumerate(PROMPTS)
        ]
        assert [g.token_ids for g in batch] == [g.token_ids for g in singles] and batch[0].stats["exact"]
    later = 0
    for facts in [facts for g in batch for facts in g.trace.rounds if facts["next_id"] is not None]:
        passed = [u < h for u, h in zip(facts["u"], facts["accept_probability"])]
        assert facts["accepted"] == max([k + 1 for k, on in enumerate(passed) if on], default=0)
        later += not all(passed[: facts["accepted"]])
    assert later > 0  # a part that failed inside a longer one that passed


def test_one_position_by_enumeration():
    """Over a fine grid of random numbers the emitted first token has the law p, for any q."""
    draw = torch.Generator().manual_seed(0)
    grid = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    for _ in range(3):
        p, q = (torch.randn(5, generator=draw).mul(2).softmax(0).double() for _ in range(2))
        law = torch.zeros(5, dtype=torch.float64)
        for token in range(5):
            u = torch.cartesian_prod(grid, grid)
            count, next_token = verify_draft(
                p.expand(len(u), 2, 5), q.expand(len(u), 1, 5), torch.full((len(u), 1), token), u
            )
            first = torch.where(count > 0, token, next_token)
            law += q[token] * torch.bincount(first, minlength=5) / len(u)
        assert torch.allclose(law, p, atol=5e-3)


@st.composite
def two_laws(draw):
    rows = [draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=5, max_size=5)) for _ in range(2)]
    return [torch.tensor(row, dtype=torch.float64) / sum(row) for row in rows if sum(row) > 0]


@given(two_laws())
def test_accepting_or_redrawing_gives_the_target_whatever_the_draft(laws):
    assume(len(laws) == 2)
    p, q = laws
    keep = accept_probability(p, q)
    rejected = (q * (1 - keep)).sum()
    assert torch.allclose(q * keep + rejected * residual(p, q), p, atol=1e-9)
    assert (q * keep).sum() == pytest.approx(1 - float((p - q).abs().sum()) / 2)  # 1 - TV


def mamba():
    return hf.MambaForCausalLM(hf.MambaConfig(vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=2)).eval()


def test_a_stream_that_asks_the_target_changes_no_trace():
    tokenizer, options = character_tokenizer(), dict(gamma=3, max_new_tokens=12, eos_token_ids=())
    target, draft = Contrast(tiny_model("llama"), tiny_model("llama", seed=1)), tiny_model("llama", seed=1)
    quiet = cdlearn.speculate(target.fork(), draft, "abc", tokenizer=tokenizer, **options)
    for touch in (lambda _: target(torch.tensor([[9, 8, 7, 6]])), lambda _: target(torch.tensor([[9]]))):
        got = cdlearn.speculate(target, draft, "abc", tokenizer=tokenizer, stream=touch, **options)
        assert got.token_ids == quiet.token_ids
        for name, part in quiet.trace.parts.items():
            assert torch.allclose(got.trace.parts[name], part, atol=1e-4)
    short = cdlearn.speculate(target, draft, "abc", tokenizer=tokenizer, **options | {"max_new_tokens": np.uint8(12)})
    assert short.token_ids == quiet.token_ids


ROW = torch.tensor([0.5, 0.5])
BAD_CALLS = [
    (lambda: speculate(BIG, SMALL, [5], gamma=0), ValueError, "gamma is 0"),
    (lambda: speculate(BIG, SMALL, [5], gamma=2.5), TypeError, "gamma is 2.5"),
    (lambda: speculate(BIG, SMALL, [5], gamma="often"), ValueError, "gamma is .often.: pass .auto."),
    (lambda: speculate(BIG, SMALL, [5], lenience=0), ValueError, "lenience is 0"),
    (lambda: speculate(BIG, SMALL, [5], lenience=1.5), ValueError, "lenience is 1.5"),
    (lambda: speculate(BIG, SMALL, [5], rule="blocks"), ValueError, "rule is 'blocks'"),
    (lambda: speculate(BIG, SMALL, [5], rule="block", lenience=0.5), ValueError, "lenience is 0.5"),
    (lambda: speculate(BIG, SMALL, [5], target_weight=2, temperature=1.0), ValueError, "target_weight is 2"),
    (lambda: speculate(BIG, SMALL, [5], target_weight=0.5), ValueError, "target_weight is 0.5 at temperature 0"),
    (lambda: speculate(BIG, SMALL, [5], top_n_sigma=-1, temperature=1.0), ValueError, "top_n_sigma is -1"),
    (lambda: speculate(BIG, "gpt2", [5]), TypeError, "draft is a str"),
    (lambda: speculate(BIG, mamba(), [5]), ValueError, "draft is .*state cannot be taken back"),
    (lambda: speculate(BIG, model(max_position_embeddings=16), [5], max_new_tokens=20), ValueError, "context of 16"),
    (lambda: speculate(BIG, SMALL, [5], temperature=-1), ValueError, "temperature is -1"),
    (lambda: speculate(BIG, SMALL, [5], num_return_sequences=0), ValueError, "num_return_sequences is 0"),
    (lambda: accept_probability(ROW, ROW[:1]), ValueError, "p has shape"),
    (lambda: accept_probability(ROW * -3, ROW), ValueError, "p holds numbers outside"),
    (lambda: residual(ROW, ROW * 9), ValueError, "q holds numbers outside"),
    (lambda: verify_draft(ROW[None], ROW[None], torch.zeros(1).long(), ROW), ValueError, "draft_tokens|uniforms"),
    (lambda: verify_draft(ROW[None], ROW[None], [0], ROW), TypeError, "draft_tokens"),
    (lambda: verify_draft(ROW[None], ROW[None], torch.zeros(1).long(), 0.5), TypeError, "uniforms"),
]


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_input_is_named_before_any_work(call, kind, message):
    calls = []
    hook = BIG.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(kind, match=message):
        call()
    hook.remove()
    assert not calls
