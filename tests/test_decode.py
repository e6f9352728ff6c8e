"""The loop: the same tokens as a naive one, and text, stops, seeds and streams that never disagree."""

import math
import types
import warnings

import numpy as np
import pytest
import torch
import transformers as hf
from tiny import ARCHITECTURES, tiny_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from cdlearn import Trace
from cdlearn.loops.generate import Generation, generate, pick
from cdlearn.loops.text import TextWriter
from cdlearn.scores import contrastive_scores, penalize_repetition, sampling_probs
from cdlearn.sources import CachedLM, Contrast, DoLa, Source

EMOJI = "né 🙂🙃 \N{SNOWMAN} ok"


def byte_tokenizer():
    """Byte-level BPE as GPT-2 has it: an emoji is four tokens, ' ok' is one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<pad>", "<s>", "</s>", *alphabet, "ok", "\u0120ok", "\u0120a"]
    merges = [("o", "k"), ("\u0120", "ok"), ("\u0120", "a")]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def space_tokenizer():
    """Sentencepiece style as Llama has it: a text's first space is lost, characters it does not know are bytes."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581o", "\u2581ok", "\u2581a"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "o"), ("\u2581o", "k"), ("\u2581", "a")]
    core = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = [byte_tokenizer, space_tokenizer]


class Script(Source):
    """Says what it is told to: after a prompt of `start` columns, one token id after the other."""

    vocab_size, eos_token_ids = 400, (2,)

    def __init__(self, tokens, start):
        super().__init__()
        self.tokens, self.start = tokens, start

    def scores(self, ids, mask, n):
        scores = torch.zeros(len(ids), n, self.vocab_size)
        scores[:, -1, self.tokens[ids.shape[1] - self.start]] = 9.0
        return scores


def say(tokenizer, text, *, prompt="a", more=(), **options):
    """Generate exactly `text` after `prompt`, then the tokens in `more`."""
    whole = tokenizer(prompt + text)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    assert whole[:start] == tokenizer(prompt)["input_ids"]
    tokens = whole[start:] + list(more)
    options.setdefault("max_new_tokens", len(tokens))
    return generate(Script(tokens, start), prompt, tokenizer=tokenizer, **options)


def random_prompts(seed, count, low=3, high=9, vocab=97):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=draw).tolist()
    return [torch.randint(3, vocab, (length,), generator=draw).tolist() for length in lengths]


@torch.no_grad()
def naive(expert, amateur, prompts, count):
    """Contrastive greedy decoding with no cache and no padding: everything again at every step."""
    answers = [None] * len(prompts)
    for length in {len(prompt) for prompt in prompts}:
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[i] for i in rows])
        for _ in range(count):
            scores = contrastive_scores(expert(ids).logits[:, -1], amateur(ids).logits[:, -1])
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        for row, i in enumerate(rows):
            answers[i] = ids[row, length:].tolist()
    return answers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_naive_cached_batched_and_left_padded_give_the_same_tokens(name):
    small = {"n_layer" if name == "gpt2" else "num_hidden_layers": 2}
    # float64, so that no two tokens tie within rounding on any machine
    expert, amateur = (tiny_model(name, seed=seed, **small).double() for seed in (0, 1))
    prompts = random_prompts(0, 100)
    expected = naive(expert, amateur, prompts, 6)
    assert len({tuple(tokens) for tokens in expected}) > 90  # the models do say different things
    source = Contrast(expert, amateur)
    options = dict(max_new_tokens=6, eos_token_ids=(), trace=False)
    cached = [generate(source, prompt, **options).token_ids for prompt in prompts]
    padded = [g.token_ids for i in range(0, 100, 25) for g in generate(source, prompts[i : i + 25], **options)]
    assert cached == expected and padded == expected


def test_every_source_equals_itself_recomputed():
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=1)
    prompt = [5, 6, 7, 8]
    for make in (
        lambda: CachedLM(model),
        lambda: DoLa(model, layers=[0, 1]),
        lambda: Contrast(DoLa(model, layers=[1]), amateur, beta=0.5),
    ):
        ids = list(prompt)
        for _ in range(12):
            ids.append(int(make()(torch.tensor([ids]))[0, -1].argmax()))
        assert generate(make(), prompt, max_new_tokens=12, eos_token_ids=()).token_ids == ids[4:]


def test_greedy_agrees_with_transformers_generate():
    model = tiny_model("llama")
    prompt = torch.tensor([[5, 6, 7]])
    theirs = model.generate(prompt, max_new_tokens=12, do_sample=False, repetition_penalty=1.3, eos_token_id=96)
    ours = generate(model, prompt, max_new_tokens=12, repetition_penalty=1.3, eos_token_ids=(96,))
    assert ours.token_ids == [token for token in theirs[0, 3:].tolist() if token != 96]


def test_repetition_penalty_counts_prompt_and_output_but_no_padding():
    source = CachedLM(tiny_model("llama"))
    prompts = [[5, 6, 7, 8, 9, 10], [11]]
    both = generate(source, prompts, max_new_tokens=10, repetition_penalty=5.0, eos_token_ids=())
    for prompt, got in zip(prompts, both):
        ids = list(prompt)
        for _ in range(10):
            row = torch.tensor([ids])
            ids.append(int(penalize_repetition(source(row)[:, -1], row, penalty=5.0).argmax()))
        assert got.token_ids == ids[len(prompt) :]


def test_row_r_draws_what_a_single_call_with_seed_plus_r_draws():
    source = Contrast(tiny_model("llama"), tiny_model("llama", seed=1), alpha=0.02)
    options = dict(max_new_tokens=10, temperature=1.3, top_k=20, top_p=0.95)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    batch = generate(source, prompts, seed=7, **options)
    singles = [generate(source, prompt, seed=7 + r, **options) for r, prompt in enumerate(prompts)]
    assert [g.token_ids for g in batch] == [g.token_ids for g in singles]
    assert [g.stats["seed"] for g in batch] == [7, 8, 9]
    same_prompt = generate(source, [[5, 6, 7]] * 6, seed=7, **options)
    assert len({tuple(g.token_ids) for g in same_prompt}) > 3


def test_a_fresh_seed_is_told_and_repeats_the_run_and_global_state_is_untouched():
    source = CachedLM(tiny_model("llama"))
    before = torch.random.get_rng_state()
    first = generate(source, [5, 6], max_new_tokens=8, temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())
    again = generate(source, [5, 6], max_new_tokens=8, temperature=1.0, seed=first.stats["seed"])
    assert again.token_ids == first.token_ids
    assert generate(source, [5, 6], max_new_tokens=8, temperature=1.0).token_ids != first.token_ids


def test_draws_follow_the_distribution():
    scores = torch.tensor([[1.0, 0.0, -math.inf, 2.0, -1.0]])
    probs = sampling_probs(scores, temperature=0.8)[0]
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = pick(scores.expand(20_000, -1), grid, temperature=0.8).bincount(minlength=5)
    assert torch.allclose(counts / 20_000, probs, atol=1e-4)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert pick(scores.expand(2, -1), ends, temperature=0.8).tolist() == [0, 4]


@pytest.mark.parametrize("value", [float("nan"), math.inf])
def test_broken_scores_stop_the_loop(value):
    class Broken(Script):
        def scores(self, ids, mask, n):
            return super().scores(ids, mask, n).index_fill(-1, torch.tensor([3]), value)

    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"scores holds .* new token 0 of Broken\(\)"):
            generate(Broken([5], 1), [4], temperature=temperature)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_text_is_what_follows_the_prompt(make):
    tokenizer = make()
    for prompt, text in (("a", " ok" + EMOJI), ("né 🙂", "🙂🙂🙂🙂🙂🙂🙂🙂 ok"), (" ok", "aaa a a ok" * 9)):
        got = say(tokenizer, text, prompt=prompt)
        assert (got.text, got.finish_reason) == (text, "length")


@pytest.mark.parametrize("make", TOKENIZERS)
def test_streamed_pieces_are_the_text_and_whole_characters(make):
    pieces = []
    got = say(make(), " ok" + EMOJI * 3, stream=pieces.append)
    assert "".join(pieces) == got.text == " ok" + EMOJI * 3
    assert "🙂" in "".join(p for p in pieces if len(p) <= 2) and len(pieces) > 10
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_half_a_character_at_the_end_is_left_out(make):
    tokenizer, pieces = make(), []
    half = tokenizer("a🙂")["input_ids"][-4:-1]
    got = say(tokenizer, " ok", more=half, stream=pieces.append)
    assert "".join(pieces) == got.text == " ok" and got.token_ids[-3:] == half


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_prompt_that_ends_inside_a_character(make):
    tokenizer = make()
    ids = tokenizer("a🙂 ok")["input_ids"]
    start = len(tokenizer("a🙂")["input_ids"]) - 2
    got = generate(Script(ids[start:], start), ids[:start], tokenizer=tokenizer, max_new_tokens=len(ids) - start)
    assert got.text == "🙂 ok"


@pytest.mark.parametrize("size", [1, 3, 30])
def test_writer_pieces_add_up_for_random_bytes(size):
    tokenizer = byte_tokenizer()
    draw = torch.Generator().manual_seed(size)
    for _ in range(20):
        ids = torch.randint(3, len(tokenizer), (40,), generator=draw).tolist()
        pieces = []
        writer = TextWriter(tokenizer, ids[:size], emit=pieces.append)
        for token in ids[size:]:
            writer.push(token)
        writer.close()
        assert "".join(pieces) == writer.text
        tail = tokenizer.decode(ids)[-5:].rstrip("\N{REPLACEMENT CHARACTER}")
        assert writer.text.endswith(tail[-2:])


@pytest.mark.parametrize("make", TOKENIZERS)
def test_stop_strings_cut_the_text_and_are_never_streamed(make):
    tokenizer, pieces = make(), []
    got = say(tokenizer, "cab ok🙂 done", stop=["xyz", "🙂 d", "never"], stream=pieces.append)
    assert (got.text, got.finish_reason) == ("cab ok", "stop")
    assert "".join(pieces) == "cab ok"
    assert tokenizer.decode(tokenizer("a")["input_ids"] + got.token_ids) == "acab ok"


def test_the_earliest_stop_string_wins_and_near_misses_are_written():
    tokenizer, pieces = byte_tokenizer(), []
    assert say(tokenizer, "abcabd", stop=["bd", "abd"], stream=pieces.append).text == "abc"
    assert "".join(pieces) == "abc" and pieces[0] == "abc"  # 'ab' waited until 'c' made it harmless
    assert say(tokenizer, "xxab", stop="abc").text == "xxab"  # half a stop string at the end is text
    assert say(tokenizer, "aab", stop="ab").text == "a"
    nothing = say(tokenizer, "ab", stop="a")
    assert (nothing.text, nothing.token_ids, nothing.finish_reason) == ("", [], "stop")


def test_a_token_that_straddles_the_cut_is_kept():
    tokenizer = byte_tokenizer()
    got = say(tokenizer, "x ok", stop="k")
    assert got.text == "x o" and tokenizer.decode(got.token_ids) == "x ok"


def test_eos_ends_a_row_and_is_left_out_of_ids_and_text():
    tokenizer = byte_tokenizer()
    got = say(tokenizer, " ok", more=[2, 50, 50])
    assert (got.text, got.finish_reason) == (" ok", "eos")
    assert 2 not in got.token_ids and got.trace.token_ids == [*got.token_ids, 2]
    other = say(tokenizer, " ok", more=[60, 50], eos_token_ids=[60, 61])
    assert (other.text, other.finish_reason) == (" ok", "eos")
    free = say(tokenizer, " ok", more=[2, 2], eos_token_ids=())
    assert free.finish_reason == "length" and free.token_ids[-2:] == [2, 2]


def test_the_tokenizers_eos_is_used_when_the_source_has_none():
    class Silent(Script):
        eos_token_ids = ()

    assert generate(Silent([5, 2, 5], 1), [4], tokenizer=byte_tokenizer()).token_ids == [5]


def test_finished_rows_leave_the_batch_and_change_nothing_for_the_others():
    model = tiny_model("llama")
    prompts = random_prompts(3, 6)
    free = [generate(model, prompt, max_new_tokens=12, eos_token_ids=()).token_ids for prompt in prompts]
    eos = tuple({free[0][2], free[1][5], free[2][8]})
    sizes = []
    hook = model.register_forward_pre_hook(lambda m, a, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    together = generate(CachedLM(model), prompts, max_new_tokens=12, eos_token_ids=eos)
    hook.remove()
    for tokens, got in zip(free, together):
        cut = next((i for i, token in enumerate(tokens) if token in eos), 12)
        assert got.token_ids == tokens[:cut] and got.finish_reason == ("eos" if cut < 12 else "length")
        assert len(got.trace) == min(cut + 1, 12)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_an_interrupt_returns_what_there_is():
    class Interrupted(Script):
        def scores(self, ids, mask, n):
            if ids.shape[1] - self.start == 4:
                raise KeyboardInterrupt
            return super().scores(ids, mask, n)

    tokenizer, pieces = byte_tokenizer(), []
    tokens = tokenizer(" ok ok a a a")["input_ids"]
    got = generate(Interrupted(tokens, 1), "a", tokenizer=tokenizer, stop="azz", stream=pieces.append)
    assert (got.finish_reason, got.text, got.token_ids) == ("interrupted", " ok ok a a", tokens[:4])
    assert "".join(pieces) == got.text and got.trace.token_ids == tokens[:4]


def test_an_interrupt_inside_the_stream_loses_and_doubles_nothing():
    tokenizer, pieces = byte_tokenizer(), []

    def stream(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    got = say(tokenizer, "bcdefgh", stream=stream)
    assert got.finish_reason == "interrupted" and got.text == "".join(pieces) == "bcd"


def test_a_transformers_streamer_gets_prompt_and_tokens(capsys):
    tokenizer = byte_tokenizer()
    say(tokenizer, " ok🙂", stream=hf.TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.strip() == "ok🙂"
    streamer = hf.TextIteratorStreamer(tokenizer, skip_prompt=True)
    got = say(tokenizer, " ok🙂", stream=streamer)
    assert "".join(streamer) == got.text


def test_several_return_sequences_are_rows_with_their_own_seeds():
    model = tiny_model("llama")
    options = dict(max_new_tokens=8, temperature=1.0, eos_token_ids=())
    found = generate(model, [[5, 6], [7]], num_return_sequences=3, seed=4, **options)
    singles = [generate(model, p, seed=4 + k, **options) for k, p in enumerate([[5, 6]] * 3 + [[7]] * 3)]
    assert [g.token_ids for g in found] == [g.token_ids for g in singles]
    assert len(generate(model, [5, 6], num_return_sequences=2, **options)) == 2
    with pytest.raises(ValueError, match="one row"):
        generate(model, [5, 6], num_return_sequences=2, tokenizer=byte_tokenizer(), stream=hf.TextStreamer(None))


def test_several_prompts_stream_with_their_row():
    tokenizer, pieces = byte_tokenizer(), {0: "", 1: ""}

    def stream(piece, row):
        pieces[row] += piece

    tokens = tokenizer(" ok a")["input_ids"]
    texts = generate(Script(tokens, 2), ["ab", "bc"], tokenizer=tokenizer, max_new_tokens=len(tokens), stream=stream)
    assert [g.text for g in texts] == [pieces[0], pieces[1]] == [" ok a", " ok a"]


def test_streaming_changes_no_draw():
    tokenizer, model = byte_tokenizer(), tiny_model("llama", vocab_size=262)
    options = dict(tokenizer=tokenizer, max_new_tokens=12, temperature=1.0, seed=3)
    plain = generate(model, "abc", **options)
    streamed = generate(model, "abc", stream=lambda piece: None, **options)
    assert plain.token_ids == streamed.token_ids and plain.text == streamed.text


def test_prompts_in_every_form_are_the_same_prompt():
    tokenizer, model = byte_tokenizer(), CachedLM(tiny_model("llama", vocab_size=262))
    ids = tokenizer("abc ok")["input_ids"]
    options = dict(max_new_tokens=5, tokenizer=tokenizer)
    forms = ["abc ok", ids, tuple(ids), torch.tensor(ids), torch.tensor([ids]), tokenizer("abc ok")]
    first = generate(model, "abc ok", **options)
    assert all(generate(model, form, **options).token_ids == first.token_ids for form in forms)
    padded = torch.tensor([[0, 0, *ids]])
    masked = generate(model, padded, attention_mask=torch.tensor([[0, 0] + [1] * len(ids)]), **options)
    assert masked.token_ids == first.token_ids and masked.stats["prompt_tokens"] == len(ids)
    listed = generate(model, ["abc ok"], **options)
    assert isinstance(listed, list) and listed[0].token_ids == first.token_ids
    assert isinstance(first, Generation)
    assert isinstance(generate(model, torch.tensor([ids, ids]), **options), list)


def test_an_empty_prompt_starts_from_bos_or_says_what_is_missing():
    tokenizer, model = byte_tokenizer(), tiny_model("llama", vocab_size=262)
    assert generate(model, "", tokenizer=tokenizer, max_new_tokens=3).trace.prompt_ids == [1]
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no BOS"):
        generate(model, "", tokenizer=tokenizer)


def test_without_a_tokenizer_there_is_no_text():
    got = generate(tiny_model("llama"), [5, 6], max_new_tokens=3)
    assert got.text is None and len(got.token_ids) == 3


def test_the_context_may_be_filled_but_not_overrun():
    model = tiny_model("gpt2", n_positions=16)
    assert len(generate(model, [5] * 10, max_new_tokens=7, eos_token_ids=()).token_ids) == 7
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="max_new_tokens=7 or less"):
        generate(model, [5] * 10, max_new_tokens=8)
    with pytest.raises(ValueError, match="shorten the prompt"):
        generate(model, [[5] * 17, [6]], max_new_tokens=1)
    assert not calls


def test_stats_and_repr_are_plain():
    got = generate(tiny_model("llama"), [5, 6], max_new_tokens=4, eos_token_ids=(), trace=False)
    assert got.trace is None and got.stats["new_tokens"] == 4 and got.stats["prompt_tokens"] == 2
    assert got.stats["tokens_per_second"] == pytest.approx(4 / got.stats["seconds"])
    assert repr(got) == "Generation(None, 4 tokens, finish_reason='length')"


def test_progress_shows_when_asked_and_nothing_is_printed_otherwise(capsys, monkeypatch):
    model = tiny_model("llama")
    generate(model, [5], max_new_tokens=3)
    assert capsys.readouterr() == ("", "")
    generate(model, [5], max_new_tokens=3, eos_token_ids=(), progress=True)
    assert "3" in capsys.readouterr().err


MODEL = tiny_model("llama", vocab_size=262)
BAD_CALLS = [
    (lambda: generate("gpt2", "a"), TypeError, r"source is a str: .*load_expert\('gpt2'\).expert"),
    (lambda: generate(types.SimpleNamespace(expert=1, amateur=2), "a"), TypeError, "pass its .expert, or Contrast"),
    (lambda: generate(MODEL, "a", tokenizer="gpt2"), TypeError, "tokenizer is 'gpt2': pass a transformers tokenizer"),
    (lambda: generate(MODEL, "a"), TypeError, "tokenizer"),
    (lambda: generate(MODEL, 5), TypeError, "prompt"),
    (lambda: generate(MODEL, []), TypeError, "prompt"),
    (lambda: generate(MODEL, ["a", 5]), TypeError, "prompt"),
    (lambda: generate(MODEL, [[5], []]), ValueError, "without a token"),
    (lambda: generate(MODEL, torch.ones(2, 2)), TypeError, "prompt"),
    (lambda: generate(MODEL, [5, 262]), ValueError, "token 262"),
    (lambda: generate(MODEL, [5, -1]), ValueError, "token -1"),
    (lambda: generate(MODEL, [5], max_new_tokens=0), ValueError, "max_new_tokens is 0"),
    (lambda: generate(MODEL, [5], max_new_tokens=2.0), TypeError, "max_new_tokens"),
    (lambda: generate(MODEL, [5], temperature=-1), ValueError, "temperature is -1"),
    (lambda: generate(MODEL, [5], top_p=0), ValueError, "top_p is 0"),
    (lambda: generate(MODEL, [5], top_k=-2), ValueError, "top_k is -2"),
    (lambda: generate(MODEL, [5], repetition_penalty=0), ValueError, "repetition_penalty is 0"),
    (lambda: generate(MODEL, [5], seed="x"), TypeError, "seed"),
    (lambda: generate(MODEL, [5], seed=-1), ValueError, "seed is -1"),
    (lambda: generate(MODEL, [5], stop="x"), TypeError, "tokenizer"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), stop=""), ValueError, "stop"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), stop=[5]), TypeError, "stop"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), attention_mask=[[1]]), ValueError, "attention_mask"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), stream=5), TypeError, "stream"),
    (lambda: generate(MODEL, [5], stream=print), TypeError, "tokenizer"),
    (lambda: generate(MODEL, [5], eos_token_ids="x"), TypeError, "eos_token_ids"),
    (lambda: generate(MODEL, torch.tensor([[5, 6]]), attention_mask=[[1, 0]]), ValueError, "left"),
    (lambda: generate(MODEL, torch.tensor([[5, 6]]), attention_mask=[[1]]), ValueError, "attention_mask"),
    (lambda: pick(torch.zeros(1, 3), None, temperature=1.0), ValueError, "uniforms"),
    (lambda: generate(MODEL, {}), TypeError, "prompt"),
    (lambda: generate(MODEL, {"input_ids": [5, 6], "attention_mask": "ab"}), TypeError, "attention_mask"),
    (lambda: generate(MODEL, [5, 6], attention_mask=[0.0, -1e9]), ValueError, "attention_mask"),
    (lambda: generate(MODEL, [5, 6], attention_mask=[[1, object()]]), TypeError, "attention_mask"),
    (lambda: generate(MODEL, "a\ud800", tokenizer=byte_tokenizer()), ValueError, "prompt"),
    (lambda: generate(MODEL, [10**30]), ValueError, "prompt"),
    (lambda: generate(MODEL, [5], num_return_sequences=2**40), ValueError, "num_return_sequences"),
    (lambda: generate(MODEL, [5], repetition_penalty=1e-50), ValueError, "repetition_penalty"),
    (lambda: generate(MODEL, ["a", "b"], tokenizer=byte_tokenizer(), stream=lambda text: None), TypeError, "stream"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), stream=lambda: None), TypeError, "stream"),
    (lambda: generate(MODEL, "a", tokenizer=byte_tokenizer(), trace="no"), TypeError, "trace"),
]


def test_numpy_numbers_are_numbers():
    plain = dict(temperature=1.0, seed=2, max_new_tokens=9, top_k=3, repetition_penalty=1.5, num_return_sequences=2)
    kinds = dict(temperature=np.float32, seed=np.int64, max_new_tokens=np.uint8, top_k=np.uint8,
                 repetition_penalty=np.float64, num_return_sequences=np.int8)  # fmt: skip
    theirs = {name: kinds[name](value) for name, value in plain.items()}
    ours, same = (generate(MODEL, [5], eos_token_ids=(), **options) for options in (plain, theirs))
    assert [one.token_ids for one in ours] == [one.token_ids for one in same]
    assert Trace.from_json(same[0].trace.to_json()).settings == ours[0].trace.settings


def test_a_nucleus_smaller_than_a_float_is_the_best_token():
    greedy = generate(MODEL, [5], max_new_tokens=4, eos_token_ids=()).token_ids
    assert generate(MODEL, [5], max_new_tokens=4, eos_token_ids=(), temperature=1.0, top_p=1e-50).token_ids == greedy


def test_a_repetition_penalty_of_the_models_own_is_said_once():
    model = tiny_model("llama", seed=9)
    model.generation_config.repetition_penalty = 1.3
    with pytest.warns(UserWarning, match="repetition_penalty=1.3"):
        generate(Contrast(model, MODEL, alpha=0.5), [5], max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, [5], max_new_tokens=1)
        generate(Contrast(MODEL, tiny_model("llama", seed=8)), [5], max_new_tokens=1)


def test_a_setting_that_changes_nothing_is_said():
    with pytest.warns(UserWarning, match="top_k=5, .*change nothing at temperature 0"):
        generate(MODEL, [5], top_k=5, max_new_tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(MODEL, [5], top_k=5, temperature=1.0, max_new_tokens=1)


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_input_is_named_before_any_work(call, kind, message):
    calls = []
    hook = MODEL.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(kind, match=message):
        call()
    hook.remove()
    assert not calls
