"""Early exits, prefixes, mixtures and other tokenizers: each equals its definition, computed afresh."""

import pytest
import torch
import transformers as hf
from conftest import character_tokenizer
from test_decode import byte_tokenizer
from test_sources import CLOSE, counted, fresh, random_ids, wander
from tiny import ARCHITECTURES, tiny_model

from cdlearn import (
    SLED,
    AdaCAD,
    CachedLM,
    Contrast,
    DoLa,
    EarlyExit,
    Lookup,
    Mix,
    Prompted,
    TextSpace,
    Window,
    beam_search,
    generate,
    load_pair,
    speculate,
)
from cdlearn.scores import contrastive_scores, js_divergence, mixed_scores, sled_scores

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


@torch.no_grad()
def by_hand(model, ids, layer, final_norm=True):
    """The logits of a layer's hidden state, through final norm and head, at the last column."""
    if layer == model.config.num_hidden_layers:
        return model(ids).logits[:, -1]
    state = model(ids, output_hidden_states=True).hidden_states[layer][:, -1]
    norm = next(m for path, m in model.named_modules() if path.split(".")[-1] in FINAL_NORMS and path.count(".") <= 2)
    return model.get_output_embeddings()(norm(state) if final_norm else state)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_early_exit_is_its_layers_state_through_norm_and_head(name):
    model, ids = tiny_model(name), random_ids(1, 2, 7)
    for layer in (1, 2, 3):
        assert torch.allclose(EarlyExit(model, layer)(ids)[:, -1], by_hand(model, ids, layer), **CLOSE)
    assert torch.allclose(EarlyExit(model, 2, final_norm=False)(ids)[:, -1], by_hand(model, ids, 2, False), **CLOSE)
    assert torch.allclose(CachedLM(model)(ids)[:, -1], by_hand(model, ids, 3), **CLOSE)  # the model is untouched


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_early_exit_runs_its_layers_only_and_keeps_a_cache(name):
    model = tiny_model(name)
    ran = []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    hooks = [layer.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, layer in enumerate(layers)]
    source, ids = EarlyExit(model, 2), random_ids(2, 1, 9)
    ran.clear()  # what it was made with
    source(ids[:, :8])
    source(ids)
    [hook.remove() for hook in hooks]
    assert ran == [0, 1, 0, 1]
    reference = EarlyExit(model, 2)
    for call in wander(5, steps=20):
        reference.reset()
        real = (torch.ones_like(call[0]) if call[1] is None else call[1])[:, -call[2] :].bool()
        assert torch.allclose(source(*call)[real], fresh(reference.model, *call)[real], **CLOSE)


def test_early_exit_of_gemma2_has_its_softcap_and_its_layer_types():
    gemma2 = hf.Gemma2ForCausalLM(
        hf.Gemma2Config(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, head_dim=8,
                        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=0.5, sliding_window=5)
    ).eval()  # fmt: skip
    ids, source = random_ids(3, 1, 12), EarlyExit(gemma2, 2)
    with torch.no_grad():
        state = gemma2.model.norm(gemma2(ids, output_hidden_states=True).hidden_states[2][:, -1])
        want = torch.tanh(gemma2.lm_head(state) / 0.5) * 0.5
    assert torch.allclose(source(ids)[:, -1], want, **CLOSE)
    assert source.model.config.num_hidden_layers == 2 and gemma2.config.num_hidden_layers == 4
    for column in range(6, 13):
        assert torch.allclose(source(ids[:, :column]), EarlyExit(gemma2, 2)(ids[:, :column]), **CLOSE)


def test_static_dola_is_a_contrast_with_an_early_exit():
    model, ids = tiny_model("llama"), random_ids(4, 3, 8)
    static = Contrast(CachedLM(model), EarlyExit(model, 2))
    assert torch.allclose(static(ids, n=3), DoLa(model, layers=[2])(ids, n=3), **CLOSE)
    raw = Contrast(CachedLM(model), EarlyExit(model, 2, final_norm=False))
    assert torch.allclose(raw(ids), DoLa(model, layers=[2], final_norm=False)(ids), **CLOSE)


def test_dola_reference_is_the_official_codes_arithmetic():
    model, ids = tiny_model("llama").double(), random_ids(5, 1, 8)
    layers = [1, 2]
    with torch.no_grad():
        outputs = model(ids, output_hidden_states=True)
        final = outputs.logits[0, -1]
        early = torch.stack([model.lm_head(outputs.hidden_states[i][0, -1]) for i in layers])
        p, q = final.softmax(-1), early.softmax(-1)
        m = (p + q) / 2
        kl = torch.nn.functional.kl_div  # kl_div(log x, y) is KL(y || x), and "none" then mean divides by V
        ones = kl(final.log_softmax(-1).expand_as(q), m, reduction="none").mean(-1)
        twos = kl(early.log_softmax(-1), m, reduction="none").mean(-1)
        want = (ones + twos) / 2
    source = DoLa(model, layers=layers, final_norm=False, divergence="reference", alpha=None)
    got = source(ids)[0, -1]
    assert torch.allclose(source.details["divergences"][0, -1], want)
    assert torch.allclose(got, final - early[want.argmax()])  # raw logits without a mask
    assert torch.allclose(js_divergence(final, early, convention="reference"), want)
    masked = DoLa(model, layers=layers, final_norm=False, divergence="reference")(ids)[0, -1]
    assert torch.allclose(masked, contrastive_scores(final, early[want.argmax()]))
    with pytest.raises(ValueError, match="divergence is 'kl'"):
        DoLa(model, divergence="kl", layers=[1])


@pytest.mark.parametrize("final_norm", [True, False])
def test_sled_reads_all_layers_and_with_no_rate_it_is_greedy(final_norm):
    model, ids = tiny_model("llama").double(), random_ids(5, 2, 8)
    source = SLED(model, evolution_rate=1.5, evolution_scale=4, final_norm=final_norm)
    assert source.layers == [0, 1, 2] and source.unnormalised
    early = torch.stack([by_hand(model, ids, layer, final_norm) for layer in source.layers], dim=1)
    want = sled_scores(model(ids).logits[:, -1], early, evolution_rate=1.5, evolution_scale=4)
    assert torch.allclose(source(ids)[:, -1], want) and source.details["layer_weights"].shape == (2, 1, 3)
    assert source.changed(evolution_rate=0.5).settings == source.settings | {"evolution_rate": 0.5}
    options = dict(max_new_tokens=12, eos_token_ids=())
    still = generate(SLED(model, evolution_rate=0), [5, 6], **options)
    assert still.token_ids == generate(model, [5, 6], **options).token_ids and still.trace.summary()
    moved = generate(source, [5, 6], **options)
    assert speculate(source, EarlyExit(model, 1), [5, 6], **options).token_ids == moved.token_ids


def test_dola_reads_the_heads_weights_once_for_all_layers():
    model, ids = tiny_model("llama"), random_ids(6, 1, 8)
    source = DoLa(model, layers=[0, 1, 2])
    shapes = []
    hook = model.lm_head.register_forward_hook(lambda m, args, out: shapes.append(tuple(out.shape)))
    source(ids)
    hook.remove()
    assert shapes == [(1, 1, 4, 97)]
    assert torch.allclose(source.parts["expert"][:, -1], model(ids).logits[:, -1], **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_prompted_equals_the_longer_prompt(name):
    model = tiny_model(name)
    prefix = [60, 61, 62]
    source = Prompted(model, prefix)
    for ids, mask, n in wander(6, steps=25):
        whole = torch.cat([torch.tensor(prefix).expand(len(ids), -1), ids], 1)
        whole_mask = torch.cat([torch.ones(len(ids), 3).long(), mask], 1)
        real = mask[:, -n:].bool()
        assert torch.allclose(source(ids, mask, n)[real], fresh(model, whole, whole_mask, n)[real], **CLOSE)


def test_prompted_keeps_one_bos_in_ragged_batches():
    model = tiny_model("llama")
    source = Prompted(model, [1, 60, 61])
    ids = torch.tensor([[0, 0, 1, 7, 8], [5, 6, 7, 8, 9], [0, 1, 20, 21, 22]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    want = [[1, 60, 61, 7, 8], [1, 60, 61, 5, 6, 7, 8, 9], [1, 60, 61, 20, 21, 22]]
    for n in (1, 2):
        got = source(ids, mask, n)
        for row in range(3):
            with torch.no_grad():
                assert torch.allclose(got[row], model(torch.tensor([want[row]])).logits[0, -n:], **CLOSE)
    alone = source(torch.tensor([[1]]))
    with torch.no_grad():
        assert torch.allclose(alone[0, -1], model(torch.tensor([[1, 60, 61]])).logits[0, -1], **CLOSE)


def test_a_dict_gives_every_row_its_own_prefix_also_inside_a_template():
    model = tiny_model("llama").double()
    reads = {(5, 6): [1, 60, 5, 6], (5, 6, 7): [1, 61, 62, 63, 5, 7], (8,): [70, 8], (9, 10, 11): [9]}
    source = Prompted(model, {prompt: read for prompt, read in reads.items()})
    rows, options = [list(prompt) for prompt in reads], dict(max_new_tokens=9, eos_token_ids=())
    want = [generate(model, read, **options).token_ids for read in reads.values()]
    assert [g.token_ids for g in generate(source, rows, **options)] == want  # and its rows end one by one:
    eos = want[1][3]
    ends = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in want]
    assert [g.token_ids for g in generate(source, rows, **options | {"eos_token_ids": (eos,)})] == ends
    assert [g.token_ids for g in speculate(source, EarlyExit(model, 1), rows, gamma=3, **options)] == want
    tokenizer = character_tokenizer()
    texts = Prompted(model, {"a cab": "b: a cab"}, tokenizer=tokenizer)
    got = generate(texts, "a cab", tokenizer=tokenizer, **options).text
    assert got == generate(model, "b: a cab", tokenizer=tokenizer, **options).text
    assert source.max_positions == 256 - 3 and Prompted(model, {(5, 6): [5]}).max_positions == 257


def test_a_list_gives_every_prompt_of_a_batch_its_own_prefix():
    """Rows that end, repeats of a prompt, beams and equal prompts: each is what it would be alone."""
    model = tiny_model("llama").double()
    prefixes, prompts = [[60, 61], [70], [80, 81, 82]], [[5, 6], [5, 6], [7]]
    options, single = dict(max_new_tokens=9, eos_token_ids=()), [Prompted(model, prefix) for prefix in prefixes]
    source = Prompted(model, prefixes)
    options |= {"eos_token_ids": (generate(single[0], [5, 6], **options).token_ids[3],)}  # the first row ends early
    want = [generate(one, prompt, **options).token_ids for one, prompt in zip(single, prompts)]
    assert [g.token_ids for g in generate(source, prompts, **options)] == want and len({*map(len, want)}) > 1
    assert [g.token_ids for g in speculate(source, EarlyExit(model, 1), prompts, gamma=3, **options)] == want
    assert [g.token_ids for g in beam_search(source, prompts, num_beams=3, max_new_tokens=5)] == [
        beam_search(one, prompt, num_beams=3, max_new_tokens=5).token_ids for one, prompt in zip(single, prompts)
    ]
    drawn = dict(temperature=1.5, num_return_sequences=2, seed=3) | options
    got = [g.token_ids for g in generate(Contrast(source, Window(source, 3), alpha=0.01), prompts, **drawn)]
    for k, (one, prompt) in enumerate(zip(single, prompts)):
        alone = generate(Contrast(one, Window(one, 3), alpha=0.01), prompt, **drawn | {"seed": 3 + 2 * k})
        assert got[2 * k : 2 * k + 2] == [g.token_ids for g in alone]
    tokenizer = character_tokenizer()
    space = Contrast(model, TextSpace(source, tokenizer, tokenizer), alpha=0.2)
    texts = [g.token_ids for g in generate(space, prompts, max_new_tokens=3, eos_token_ids=())]
    assert texts == [
        generate(Contrast(model, TextSpace(one, tokenizer, tokenizer), alpha=0.2), prompt, max_new_tokens=3,
                 eos_token_ids=()).token_ids for one, prompt in zip(single, prompts)
    ]  # fmt: skip
    written = Prompted(model, ["ab", "c"], tokenizer=tokenizer)(random_ids(3, 2, 4))
    assert torch.equal(written[1], Prompted(model, "c", tokenizer=tokenizer)(random_ids(3, 2, 4))[1])
    with pytest.raises(ValueError, match="prefix is a list of 3 for 2 rows"):
        source(random_ids(3, 2, 4))


def test_adacad_is_the_contrast_whose_beta_is_the_divergence_in_bits():
    """arXiv 2409.07394: row by row; where the context changes nothing it is the model itself."""
    model, ids = tiny_model("llama").double(), random_ids(4, 3, 5)
    source = AdaCAD(Prompted(model, [60, 61, 62]), model)
    scores = source(ids, n=2)
    beta = source.details["beta"]
    p, q = source.parts["expert"], source.parts["amateur"]
    assert torch.allclose(beta, js_divergence(p, q) / torch.tensor(2.0).double().log()) and beta.shape == (3, 2)
    for row in range(3):
        fixed = Contrast(Prompted(model, [60, 61, 62]), model, alpha=None, beta=float(beta[row, -1]))
        assert torch.allclose(scores[row, -1], fixed(ids[row : row + 1])[0, -1])
    assert torch.allclose(AdaCAD(model, model)(ids), CachedLM(model)(ids))
    masked = AdaCAD(Prompted(model, [60, 61, 62]), model, alpha=0.3)(ids)
    assert torch.equal(masked.isfinite()[:, -1], p[:, -1] >= p[:, -1].amax(-1, keepdim=True) + torch.tensor(0.3).log())
    run = generate(source, [5, 6], max_new_tokens=4, eos_token_ids=())
    assert run.trace.details["beta"].shape == (4,) and source.changed(alpha=0.3).alpha == 0.3


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_window_sees_the_last_tokens_only(k):
    model = tiny_model("llama").double()
    source = Window(model, k)
    for ids, mask, n in wander(9, steps=15):
        got = source(ids, mask, n)
        for row in range(len(ids)):
            for column in range(n):
                stop = ids.shape[1] - n + column + 1
                if mask[row, stop - 1]:
                    seen = ids[row, :stop][mask[row, :stop].bool()][-k:]
                    with torch.no_grad():
                        assert torch.allclose(got[row, column], model(seen[None]).logits[0, -1], atol=1e-9)
    amateur = Window(model, k)
    contrast = generate(Contrast(model, amateur, alpha=0.3), [5, 6, 7, 8], max_new_tokens=6, eos_token_ids=())
    assert len(contrast.trace.token_ids) == 6 and amateur.max_positions is None


def test_lookup_finds_what_followed_the_latest_longest_agreement():
    def found(tokens, **options):
        best = Lookup(**options)(torch.tensor([tokens])).max(-1)
        return int(best.indices[0, -1])

    assert found([5, 6, 7, 8, 5, 6]) == 7
    assert found([5, 6, 7, 9, 6, 8, 5, 6]) == 7  # two agree: rather than 8, which followed the 6 later
    assert found([5, 6, 7, 9, 6, 8, 5, 6], longest=1) == 5 + 3
    assert found([4, 4]) == 4
    ids = torch.tensor([[0, 0, 5, 6, 5], [7, 8, 9, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    scores = Lookup().ask(ids, mask, 2)
    assert scores.shape == (2, 2, 10) and scores.argmax(-1)[:, -1].tolist() == [6, 9]
    assert not scores[0, 0].isfinite().any()  # nothing to say after 5 6
    with pytest.raises(ValueError, match="nothing but -inf"):  # a draft, not a decoder
        generate(Lookup(), [1, 2, 3])


def test_one_model_behind_two_prefixes_keeps_two_caches():
    source = CachedLM(tiny_model("llama"))
    pair = Contrast(Prompted(source, [60, 61, 62]), Prompted(source, [70]), alpha=None, strength=0.5)
    with counted(source.model) as passes:
        generate(pair, [5, 6], max_new_tokens=6, eos_token_ids=())
    assert passes == [(1, 5), (1, 3)] + [(1, 1)] * 10
    assert pair.expert.max_positions == 253 and pair.max_positions == 253


def test_context_aware_decoding_guidance_and_proxy_tuning_are_mixtures():
    model, other, third = (tiny_model("llama", seed=s) for s in range(3))
    ids = random_ids(7, 2, 6)
    yes, no = Prompted(model, [60, 61]), Prompted(model, [70])
    raw_yes, raw_no = yes(ids)[:, -1], no(ids)[:, -1]
    mixed = Mix([(1.5, yes), (-0.5, no)])(ids)[:, -1]
    assert torch.allclose(mixed.softmax(-1), (1.5 * raw_yes - 0.5 * raw_no).softmax(-1), **CLOSE)
    guided = raw_no.log_softmax(-1) + 2 * (raw_yes.log_softmax(-1) - raw_no.log_softmax(-1))
    assert torch.allclose(Mix([(2.0, yes), (-1.0, no)])(ids)[:, -1], guided, **CLOSE)
    with torch.no_grad():
        base, tuned, anti = (m(ids).logits[:, -1] for m in (model, other, third))
    got = Mix([(1, model), (0.7, other), (-0.7, third)])(ids)[:, -1]
    assert torch.allclose(got.softmax(-1), (base + 0.7 * (tuned - anti)).softmax(-1), **CLOSE)
    masked = Mix([(1, model), (0.7, other), (-0.7, third)], alpha=0.2)(ids)[:, -1]
    keep = base >= base.max(-1, keepdim=True).values + torch.tensor(0.2).log()
    assert torch.equal(masked > -torch.inf, keep) and torch.allclose(masked[keep], got[keep], **CLOSE)


def test_a_mixture_of_one_is_its_source_and_strength_is_a_mixture():
    model, amateur, ids = tiny_model("llama"), tiny_model("gpt2", seed=1), random_ids(8, 1, 5)
    assert torch.allclose(Mix([(1, model)])(ids), model(ids).logits[:, -1:].log_softmax(-1), **CLOSE)
    contrast, mix = Contrast(model, amateur, strength=0.6), Mix([(1, model), (-0.6, amateur)], alpha=0.1)
    assert torch.allclose(contrast(ids), mix(ids), **CLOSE)
    assert set(mix.parts) == {"expert", "amateur"}


def test_a_token_ruled_out_by_a_positive_source_stays_out():
    p, q = torch.tensor([0.0, 1.0, -torch.inf]), torch.tensor([-torch.inf, 0.0, 0.0])
    got = mixed_scores([p, q], [1.0, -0.5])
    assert got[2] == -torch.inf and got[0].isfinite() and not got.isnan().any()
    assert mixed_scores([p, q], [1.0, 0.5])[0] == -torch.inf


def test_text_space_with_the_same_tokenizer_is_the_model_itself():
    tokenizer, model = character_tokenizer(), tiny_model("llama", seed=1)
    source, ids = TextSpace(model, tokenizer, tokenizer), random_ids(9, 2, 6)
    want = model(ids).logits[:, -1].log_softmax(-1)
    got = source(ids)[:, -1]
    plain = torch.arange(97) > 2
    assert torch.allclose(got[:, plain], want[:, plain], **CLOSE)
    assert torch.allclose(got[:, 2], want[:, 2], **CLOSE)  # EOS is EOS
    assert torch.allclose(got[:, 0], got[:, 2:].median(-1).values, **CLOSE)  # padding has no text


def test_contrast_with_text_space_is_the_plain_contrast_where_tokenizers_agree():
    tokenizer = character_tokenizer()
    expert, amateur = tiny_model("llama").double(), tiny_model("gpt2", seed=1).double()
    options = dict(max_new_tokens=10, eos_token_ids=(), tokenizer=tokenizer)
    for alpha in (0.1, 0.01):
        plain = generate(Contrast(expert, amateur, alpha=alpha), ["hello", "a b"], **options)
        text = generate(
            Contrast(expert, TextSpace(amateur, tokenizer, tokenizer), alpha=alpha), ["hello", "a b"], **options
        )
        assert [g.token_ids for g in text] == [g.token_ids for g in plain]


def test_text_space_inside_others_scores_what_the_expert_keeps():
    """Alone it would read 97 candidates a step: what is around it passes on which ones matter."""
    tokenizer = character_tokenizer()
    expert, amateur = tiny_model("llama").double(), tiny_model("gpt2", seed=1).double()
    text = TextSpace(amateur, tokenizer, tokenizer)
    ids = tokenizer(["hello", "ab ab"], return_tensors="pt").input_ids
    insides = {
        "Mix": (Mix([(1.5, expert), (-0.5, text)], alpha=0.3), Mix([(1.5, expert), (-0.5, amateur)], alpha=0.3)),
        "Prompted": (Contrast(expert, Prompted(text, [40, 41]), alpha=0.3),
                     Contrast(expert, Prompted(amateur, [40, 41]), alpha=0.3)),
        "Prompted in Mix": (Mix([(1, expert), (-0.5, Prompted(text, [40, 41]))], alpha=0.3),
                            Mix([(1, expert), (-0.5, Prompted(amateur, [40, 41]))], alpha=0.3)),
        "Mix in Contrast": (Contrast(expert, Mix([(0.7, amateur), (0.3, text)]), alpha=0.3),
                            Contrast(expert, amateur, alpha=0.3)),
    }  # fmt: skip
    for name, (ours, plain) in insides.items():
        with counted(amateur) as passes:
            got = ours(ids, None, 2)
        kept = got > float("-inf")
        assert max(rows for rows, _ in passes) <= int(kept.sum(-1).max()) + 1 < 20, name
        want = plain(ids, None, 2)
        assert torch.equal(kept, want > float("-inf")), name
        if name != "Mix in Contrast":  # up to what a row is normalised by
            assert torch.allclose(got.softmax(-1), want.softmax(-1), **CLOSE), name


def test_text_space_with_another_tokenizer_is_the_difference_of_two_texts():
    ours, theirs = byte_tokenizer(), character_tokenizer()
    amateur = tiny_model("llama", seed=1).double()
    source = TextSpace(amateur, theirs, ours)
    prompt = ours("cab ok")["input_ids"]
    got = source(torch.tensor([prompt]))[0, -1]

    @torch.no_grad()
    def logp(text):
        ids = torch.tensor([theirs(text)["input_ids"]])
        return amateur(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()

    base = logp("cab ok")
    for token in (" ok", " a", "ok", "z"):
        (token_id,) = ours(token)["input_ids"]
        assert got[token_id] == pytest.approx(float(logp("cab ok" + token) - base), abs=1e-5)
    expert = tiny_model("llama", vocab_size=len(ours))
    found = generate(Contrast(expert, source), ["cab", "a"], tokenizer=ours, max_new_tokens=6, eos_token_ids=())
    assert all(len(g.token_ids) == 6 for g in found)
    with counted(amateur) as passes:
        generate(Contrast(expert, source), "a cab is ok", tokenizer=ours, max_new_tokens=4, eos_token_ids=())
    assert all(width <= 10 for _, width in passes[1:])  # the common prefix is not read again


def test_every_source_forgets_what_it_holds():
    tokenizer, ids = character_tokenizer(), random_ids(12, 2, 8)
    model, amateur = tiny_model("llama"), tiny_model("gpt2", seed=1)
    inner = CachedLM(model)
    for source, get in (
        (Contrast(inner, amateur), lambda s: s.amateur),
        (Mix([(1, inner), (0.5, amateur)]), lambda s: s.sources[1]),
        (Prompted(model, [7, 8]), lambda s: s.source),
        (Window(model, 4), lambda s: s.source),
        (Contrast(model, Prompted(DoLa(model, layers=[1]), [7])), lambda s: s.amateur.source),
        (TextSpace(model, tokenizer, tokenizer), lambda s: s._rows[0]),
        (EarlyExit(model, 2), lambda s: s),
        (Lookup(), None),
    ):
        want, cached = source(ids), get and get(source)
        assert get is None or cached._cache is not None
        source.reset()
        assert get is None or isinstance(source, TextSpace) or cached._cache is None
        assert torch.allclose(source(ids), want, **CLOSE)
    source = TextSpace(model, tokenizer, tokenizer)
    source(ids), source.reset()
    assert source._rows == []


def test_the_early_checkpoint_is_an_amateur():
    pair, early = load_pair(), load_pair(amateur="early").amateur
    got = generate(Contrast(pair.expert, early, beta=0.5), "Ada had a red", tokenizer=pair.tokenizer, max_new_tokens=12)
    assert got.text


def shared_layers():
    model = tiny_model("llama")
    model.config.num_kv_shared_layers = 1
    return model


MODEL = tiny_model("llama")
BAD_CALLS = [
    (lambda: EarlyExit(MODEL, 0), ValueError, "layer is 0"),
    (lambda: EarlyExit(MODEL, 4), ValueError, "1 to 3"),
    (lambda: EarlyExit(MODEL, "low"), TypeError, "layer is 'low'"),
    (lambda: EarlyExit("gpt2", 1), TypeError, "model is a str"),
    (lambda: EarlyExit(shared_layers(), 1), TypeError, "LlamaForCausalLM keeps its layers"),
    (lambda: Prompted(MODEL, "hello"), TypeError, "tokenizer"),
    (lambda: Prompted(MODEL, []), ValueError, "no tokens"),
    (lambda: Prompted(MODEL, [5] * 3000), ValueError, "prefix has 3000 tokens"),
    (lambda: Prompted(MODEL, [97]), ValueError, "vocabulary of 97"),
    (lambda: Prompted(MODEL, 5), TypeError, "prefix is 5"),
    (lambda: Prompted(MODEL, {}), ValueError, "prefix is an empty dict"),
    (lambda: Prompted(MODEL, {(5,): [97]}), ValueError, "vocabulary of 97"),
    (lambda: generate(Prompted(MODEL, {(5, 6): [7]}), [6, 5]), ValueError, r"begins with ids \[6, 5\]"),
    (lambda: Prompted(MODEL, [[5], []]), ValueError, "prefix has no tokens"),
    (lambda: Prompted(MODEL, [[5], 6]), TypeError, "prefix is 6"),
    (lambda: AdaCAD(MODEL, "gpt2"), TypeError, "without_context is a str"),
    (lambda: AdaCAD(MODEL, MODEL, alpha=2), ValueError, "alpha is 2"),
    (lambda: SLED(MODEL, layers="some"), ValueError, "layers is 'some'"),
    (lambda: SLED(MODEL, evolution_scale=1.5), TypeError, "evolution_scale is 1.5"),
    (lambda: Window(MODEL, 0), ValueError, "k is 0"),
    (lambda: Window(MODEL, 257), ValueError, "k is 257: pass 1 to 256"),
    (lambda: Lookup(2, 3), ValueError, "shortest is 3: pass 1 to 2"),
    (lambda: Mix([]), ValueError, "empty"),
    (lambda: Mix([MODEL]), TypeError, "pairs"),
    (lambda: Mix([("1", MODEL)]), TypeError, "weighted"),
    (lambda: Mix([(float("nan"), MODEL)]), ValueError, "weighted"),
    (lambda: Mix([(1, MODEL)], alpha=2), ValueError, "alpha is 2"),
    (lambda: Mix([(1, MODEL), (1, tiny_model("llama", vocab_size=3000))]), ValueError, "97 and 3000.*TextSpace"),
    (lambda: Contrast(MODEL, tiny_model("llama", vocab_size=3000)), ValueError, "97 and 3000.*TextSpace"),
    (lambda: TextSpace(MODEL, None, character_tokenizer()), TypeError, "tokenizer is None: pass a"),
    (lambda: CachedLM(hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1,
                                                                num_heads=1)).eval()), TypeError, "encoder-decoder"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


EVERY_SOURCE = {
    "contrast": lambda m, a: Contrast(m, a, alpha=0.2),
    "nested contrast": lambda m, a: Contrast(Contrast(m, a, alpha=None, beta=0.3), EarlyExit(m, 1), strength=0.4),
    "dola": lambda m, a: DoLa(m, layers=[0, 1, 2]),
    "early exit": lambda m, a: EarlyExit(m, 2),
    "mix": lambda m, a: Mix([(1, m), (0.5, a), (-0.5, EarlyExit(m, 1))], alpha=0.1),
    "prompted": lambda m, a: Contrast(Prompted(m, [60, 61, 62]), m, alpha=None),
    "window": lambda m, a: Contrast(m, Window(m, 4), alpha=None),
}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "qwen2"])
@pytest.mark.parametrize("name", EVERY_SOURCE)
def test_asked_in_any_order_a_source_says_what_a_new_one_says(name, architecture):
    """Growth, rewinding, holes, reordered and changed rows: incremental equals computed afresh."""
    models = tiny_model(architecture).double(), tiny_model("qwen2", seed=1).double()
    source = EVERY_SOURCE[name](*models)
    for ids, mask, n in wander(7, steps=14):
        real = mask[:, -n:].bool()
        want = EVERY_SOURCE[name](*models)(ids, mask, n)
        assert torch.allclose(source(ids, mask, n)[real], want[real], atol=1e-6)


def test_asked_in_any_order_text_space_says_what_a_new_one_says():
    tokenizer, model = character_tokenizer(), tiny_model("llama", seed=1).double()
    source = TextSpace(model, tokenizer, tokenizer)
    for ids, mask, n in wander(8, steps=6):
        real = mask[:, -n:].bool()
        want = TextSpace(model, tokenizer, tokenizer)(ids, mask, n)
        assert torch.allclose(source(ids, mask, n)[real], want[real], atol=1e-6)
