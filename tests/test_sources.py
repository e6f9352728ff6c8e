"""Every source gives, however it was asked before, what a fresh full forward pass over the real tokens gives."""

import functools
import random
import threading
from contextlib import contextmanager

import pytest
import torch
from tiny import ARCHITECTURES, tiny_model

from cdlearn.loops.generate import generate
from cdlearn.scores import contrastive_logits, contrastive_scores, dola_scores, js_divergence
from cdlearn.sources import CachedLM, Contrast, DoLa, EarlyExit, Mix, Source, as_source, cached
from cdlearn.sources import dola as dola_file

CLOSE = dict(atol=1e-4, rtol=1e-4)


@torch.no_grad()
def fresh(model, ids, mask, n):
    """The logits after the last n columns, each row alone and without its masked columns: no cache, no padding."""
    rows = []
    for row_ids, row_mask in zip(ids, mask.bool()):
        logits = model(input_ids=row_ids[row_mask][None]).logits[0]
        rows.append(logits[(row_mask.cumsum(0)[-n:] - 1).clamp(min=0)])
    return torch.stack(rows)


def random_ids(seed, *shape):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def counted(model):
    """Counts forward passes and the columns that were fed."""
    passes = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield passes
    hook.remove()


def same(source, model, ids, mask=None, n=1):
    mask = torch.ones_like(ids) if mask is None else mask
    real = mask[:, -n:].bool()
    got = source(ids, mask, n)
    assert got.isfinite().all()
    return torch.allclose(got[real], fresh(model, ids, mask, n)[real], **CLOSE)


def wander(seed, steps=40):
    """Random (ids, mask, n): growth, rewinding, holes, reordered, changed, fewer and new rows."""
    random_ = random.Random(seed)
    ids = random_ids(seed, 3, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for step in range(steps):
        what = random_.choice(["feed", "feed", "feed", "rewind", "hole", "reorder", "new", "fewer", "change"])
        grow = random_.randint(1, 3)
        if what == "feed" and ids.shape[1] < 40:
            ids = torch.cat([ids, random_ids(seed * 1000 + step, len(ids), grow)], 1)
            mask = torch.cat([mask, mask.new_ones(len(ids), grow)], 1)
        elif what == "rewind" and ids.shape[1] - grow >= 6:
            ids, mask = ids[:, :-grow], mask[:, :-grow]
        elif what == "hole" and int(mask[-1].sum()) > grow + 2:
            mask = mask.clone()
            mask[-1, -grow - 1 : -1] = 0
        elif what == "reorder":
            rows = [random_.randrange(len(ids)) for _ in range(3)]
            ids, mask = ids[rows], mask[rows]
        elif what == "new" and random_.random() < 0.3:
            ids = random_ids(seed * 1000 + step, 2, 6)
            mask = torch.ones_like(ids)
        elif what == "fewer":
            ids, mask = ids[:2], mask[:2]
        elif what == "change":
            ids = ids.clone()
            ids[0, -2] = random_.randrange(3, 97)
        yield ids, mask, random_.randint(1, 4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_random_operations_match_a_fresh_pass(name):
    model = tiny_model(name)
    source = CachedLM(model)
    assert all(same(source, model, *call) for call in wander(1))


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_with_a_sliding_window(seed):
    model = tiny_model("mistral", sliding_window=5)
    source = CachedLM(model)
    assert all(same(source, model, *call) for call in wander(seed))


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_left_padding_is_invisible_whatever_id_pads(name):
    model = tiny_model(name)
    ids = random_ids(2, 2, 9)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    ids[0, :5] = 50_000  # e.g. an added pad token outside the vocabulary
    clean = ids.where(mask.bool(), 0)
    assert torch.allclose(CachedLM(model)(ids, mask, 3), fresh(model, clean, mask, 3), **CLOSE)


def test_each_new_column_is_fed_once_and_memory_answers_repeats():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(3, 2, 12)
    with counted(model) as passes:
        first = source(ids[:, :8])
        assert passes == [(2, 8)]
        for column in range(9, 13):
            source(ids[:, :column])
        assert passes[1:] == [(2, 1)] * 4
        window = source(ids, n=5)  # the last five columns were scored one by one: nothing to compute
        again = source(ids[:, :8])
        assert len(passes) == 5
    assert torch.equal(window[:, 0], first[:, 0]) and torch.equal(again, first)


def test_columns_whose_scores_were_not_kept_are_computed_again():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(4, 1, 12)
    source(ids)
    with counted(model) as passes:
        assert same(source, model, ids, n=4)
    assert passes[0] == (1, 4)


def test_rewinding_feeds_only_what_is_new_and_equals_never_having_fed():
    model = tiny_model("qwen2")
    source, ids = CachedLM(model), random_ids(5, 1, 12)
    source(ids, n=6)
    other = torch.cat([ids[:, :8], random_ids(6, 1, 3)], 1)
    with counted(model) as passes:
        rewound = source(other, n=4)
    assert passes == [(1, 3)]
    assert torch.allclose(rewound, CachedLM(model)(other, n=4), **CLOSE)


def test_beams_find_their_parents_without_a_new_prefill():
    model = tiny_model("gpt2")
    source, ids = CachedLM(model), random_ids(7, 3, 8)
    source(ids)
    beams = torch.cat([ids[[2, 2, 0, 1]], random_ids(8, 4, 1)], 1)
    with counted(model) as passes:
        got = source(beams, n=2)
    assert passes == [(4, 1)]
    assert torch.allclose(got, fresh(model, beams, torch.ones_like(beams), 2), **CLOSE)


def test_rejected_tokens_stay_as_holes_and_cost_no_second_feed():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(9, 2, 10)
    source(ids, n=4)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 8:10] = 0
    longer = torch.cat([ids, random_ids(10, 2, 2)], 1)
    with counted(model) as passes:
        assert same(source, model, longer, mask, n=2)
    assert passes[:2] == [(2, 8), (2, 2)]  # the first asks whether holes show


def test_an_interrupted_forward_leaves_no_half_cache():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(11, 1, 6)
    source(ids[:, :5])

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        source(ids)
    hook.remove()
    assert same(source, model, ids, n=3)


def test_prefill_never_makes_logits_of_the_whole_prompt():
    model = tiny_model("llama")
    shapes = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    CachedLM(model)(random_ids(12, 1, 30), n=2)
    hook.remove()
    assert shapes == [2]


@pytest.mark.parametrize("make", [CachedLM, lambda model: DoLa(model, layers=[0, 2])])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "sliding"])
def test_a_long_prompt_in_pieces_is_the_prompt_in_one(name, make, monkeypatch):
    model = (tiny_model("mistral", sliding_window=5) if name == "sliding" else tiny_model(name)).double()
    whole, ids, mask = make(model), random_ids(40, 2, 17), torch.ones(2, 17, dtype=torch.long)
    mask[0, :9] = 0  # two pieces of the first row are padding only
    monkeypatch.setattr(cached, "_PIECE", 4)
    source, more = make(model), random_ids(41, 2, 3)
    for real, n in ((None, 1), (mask, 6), (mask, 1)):
        source.reset(), whole.reset()
        assert torch.allclose(source(ids, real, n), whole(ids, real, n), atol=1e-9)
        longer = None if real is None else torch.cat([real, torch.ones_like(more)], 1)
        assert torch.allclose(source(torch.cat([ids, more], 1), longer), whole(torch.cat([ids, more], 1), longer))
    source.reset()
    sizes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    assert all(torch.allclose(source(ids[:, :T]), make(model)(ids[:, :T]), atol=1e-9) for T in (17, 12, 16))
    hook.remove()
    assert sizes[:5] == [4, 4, 4, 4, 1] and max(sizes) == 4


def test_pieces_are_for_caches_of_columns_and_smaller_where_a_model_makes_every_logit(monkeypatch):
    import transformers as hf

    class Whole(hf.LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
            inputs = dict(attention_mask=attention_mask, position_ids=position_ids)
            return super().forward(input_ids, past_key_values=past_key_values, use_cache=use_cache, **inputs)

    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model, shapes, ids = Whole(hf.LlamaConfig(**sizes)).eval(), [], random_ids(42, 1, 40)
    monkeypatch.setattr(cached, "_PIECE", 128)
    hook = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape[1]))
    got = CachedLM(model)(ids, n=3)
    hook.remove()
    assert shapes == [16, 16, 8] and torch.allclose(got, model(ids).logits[:, -3:], **CLOSE)
    rope = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, rope_theta=1e4)
    rope["original_max_position_embeddings"] = 64
    for other in (hf.MambaForCausalLM(hf.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1)).eval(),
                  tiny_model("llama", rope_parameters=rope)):  # fmt: skip
        with counted(other) as passes:
            CachedLM(other)(random_ids(43, 1, 200))
        assert passes == [(1, 200)]


def test_callers_may_write_into_what_they_get_and_into_what_they_gave():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(13, 1, 6)
    scores = source(ids)
    expected = scores.clone()
    scores.zero_()
    assert torch.equal(source(ids), expected)
    ids[0, 0] = (ids[0, 0] + 1) % 97
    assert same(source, model, ids)


def test_works_after_use_in_inference_mode():
    model = tiny_model("llama")
    source, ids = CachedLM(model), random_ids(14, 1, 8)
    with torch.inference_mode():
        source(ids[:, :6])
    assert same(source, model, ids[:, :7]) and same(source, model, ids, n=2)


def test_half_precision_models_give_float32_scores():
    model = tiny_model("llama").to(torch.bfloat16)
    assert CachedLM(model)(random_ids(15, 1, 4)).dtype == torch.float32
    assert Contrast(model, model)(random_ids(15, 1, 4)).dtype == torch.float32


def test_eos_ids_limits_and_vocabulary_come_from_the_model():
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = [2, 7]
    source = CachedLM(model)
    assert (source.vocab_size, source.eos_token_ids, source.max_positions) == (97, (2, 7), 256)
    assert source.rewindable and str(source.device) == "cpu" and " at 0x" not in repr(source)


def test_a_recurrent_model_is_recomputed_exactly():
    import transformers as hf

    config = hf.MambaConfig(vocab_size=97, hidden_size=16, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = hf.MambaForCausalLM(config).eval()
    source = CachedLM(model)
    assert not source.rewindable
    assert all(same(source, model, *call) for call in wander(3, steps=12))


@pytest.mark.parametrize("numbers", [dict(), dict(strength=0.4, amateur_temperature=0.5), dict(beta=0.5, top_k=7)])
def test_contrast_is_its_formula_on_its_parts(numbers):
    expert, amateur = tiny_model("llama"), tiny_model("qwen2", seed=1)
    source = Contrast(expert, amateur, alpha=0.2, **numbers)
    formula = contrastive_logits if "beta" in numbers else contrastive_scores
    for ids, mask, n in wander(4, steps=15):
        real = mask[:, -n:].bool()
        want = formula(fresh(expert, ids, mask, n), fresh(amateur, ids, mask, n), alpha=0.2, **numbers)
        assert torch.allclose(source(ids, mask, n)[real], want[real], **CLOSE)
    assert torch.allclose(source.parts["amateur"][real], fresh(amateur, ids, mask, n)[real], **CLOSE)


def test_contrast_trims_padded_vocabularies_and_takes_the_smaller_context():
    expert, amateur = tiny_model("llama", vocab_size=104), tiny_model("llama", max_position_embeddings=64)
    expert.generation_config.eos_token_id = 9
    source, ids = Contrast(expert, amateur), random_ids(16, 1, 5)
    assert (source.vocab_size, source.eos_token_ids, source.max_positions) == (97, (9,), 64)
    want = contrastive_scores(expert(ids).logits[:, -1:, :97], amateur(ids).logits[:, -1:])
    assert torch.allclose(source(ids), want, **CLOSE)
    assert source.parts["expert"].shape == source.parts["amateur"].shape == (1, 1, 97)


def test_a_shared_amateur_is_computed_once():
    amateur = CachedLM(tiny_model("llama", seed=1))
    source, ids = Contrast(tiny_model("llama"), amateur), random_ids(17, 1, 9)
    with counted(amateur.model) as passes:
        amateur(ids[:, :6])
        for column in (7, 8, 9):
            amateur(ids[:, :column])
        source(ids, n=3)
    assert len(passes) == 4


def test_contrasts_nest():
    base, small = tiny_model("llama"), tiny_model("llama", seed=1)
    inner, ids = Contrast(base, small, alpha=None, strength=0.3), random_ids(18, 1, 6)
    assert torch.allclose(Contrast(inner, small, strength=0.0, alpha=None)(ids), inner(ids).log_softmax(-1), **CLOSE)


@torch.no_grad()
def dola_by_hand(model, norm, ids, layers, final_norm):
    outputs = model(ids, output_hidden_states=True)
    final, head = outputs.logits[0, -1], model.get_output_embeddings()
    early = [
        head(norm(outputs.hidden_states[i][0, -1]) if final_norm else outputs.hidden_states[i][0, -1]) for i in layers
    ]
    divergences = torch.stack([js_divergence(final, logits) for logits in early])
    return dola_scores(final, early[int(divergences.argmax())]), layers[int(divergences.argmax())], divergences


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "gemma"])
@pytest.mark.parametrize("final_norm", [True, False])
def test_dola_chooses_by_divergence_at_every_row_and_position(name, final_norm):
    model = tiny_model(name)
    norm = next(m for path, m in model.named_modules() if path.split(".")[-1] in ("norm", "ln_f", "final_layer_norm")
                and path.count(".") <= 2)  # fmt: skip
    layers = [0, 1, 2]
    source, ids = DoLa(model, layers=layers, final_norm=final_norm), random_ids(19, 4, 9)
    source(ids[:, :6])
    got = source(ids, n=3)
    for row in range(4):
        for back in (1, 2, 3):
            prefix = ids[row : row + 1, : 9 - back + 1]
            want, layer, divergences = dola_by_hand(model, norm, prefix, layers, final_norm)
            assert torch.allclose(got[row, -back], want, **CLOSE)
            assert int(source.details["premature_layer"][row, -back]) == layer
            assert torch.allclose(source.details["divergences"][row, -back], divergences, **CLOSE)
    if name == "llama":
        assert len(source.details["premature_layer"].unique()) > 1  # rows and positions really differ


def test_sources_over_one_model_do_not_hear_each_other_in_threads():
    model = tiny_model("llama").double()
    dola, plain = DoLa(model, layers=[0, 1]), CachedLM(model)
    prompts = [random_ids(50 + k, 1, 4 + k % 5) for k in range(16)]

    def write(source, into):
        for ids in prompts:
            into.append(generate(source, ids, max_new_tokens=4, eos_token_ids=(), trace=False).token_ids)

    team = [dola, DoLa(model, layers=[1, 2]), plain, plain.fork()]
    alone, beside = [[] for _ in team], [[] for _ in team]
    for pair in zip(team, alone):
        write(*pair)
    threads = [threading.Thread(target=write, args=pair) for pair in zip(team, beside)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert beside == alone and len(alone[-1]) == 16


@pytest.mark.parametrize("places", [{"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}])
def test_a_dispatched_model_runs_the_layers_of_the_source(places):
    accelerate = pytest.importorskip("accelerate")
    model, ids = tiny_model("llama"), random_ids(23, 2, 7)
    makes = (lambda: DoLa(model, layers=[0, 1]), lambda: EarlyExit(model, 2))
    want = [make()(ids, n=2) for make in makes]
    accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    ran = []
    hook = model.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    assert all(torch.equal(make()(ids, n=2), scores) for make, scores in zip(makes, want))
    hook.remove()
    assert ran == [2]  # by DoLa when it is asked, and never by the early exit


@pytest.mark.parametrize("bias", [False, True])
def test_whichever_product_with_the_head_was_fastest_dola_says_the_same(bias, monkeypatch):
    model, ids = tiny_model("llama", vocab_size=60_000), random_ids(24, 2, 9)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(60_000)) if bias else None
    source = DoLa(model, layers=[0, 2])
    want = [source(ids[:, :length]) for length in range(4, 9)]
    assert source._times == {}  # a small head, or one in half precision, has one product: the same bits every time
    source.reset()
    monkeypatch.setattr(dola_file, "_LARGE", 0)
    for length in range(4, 9):
        assert torch.allclose(source(ids[:, :length]), want[length - 4], **CLOSE)
    assert all(seconds > 0 for seconds in source._times[6])  # all three were tried


def test_dola_buckets():
    sixteen = tiny_model("llama", num_hidden_layers=16)
    tied = tiny_model("llama", num_hidden_layers=16, tie_word_embeddings=True)
    assert DoLa(sixteen, layers="low").layers == [0, 2, 4, 6]
    assert DoLa(sixteen, layers="high").layers == [8, 10, 12, 14]
    assert DoLa(tied, layers="low").layers == [2, 4, 6]
    with pytest.raises(ValueError, match="tied"):
        DoLa(tiny_model("llama", tie_word_embeddings=True), layers="low")


def test_dola_reads_softcapped_and_scaled_logits():
    import transformers as hf

    gemma2 = hf.Gemma2ForCausalLM(
        hf.Gemma2Config(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
                        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=2.0)
    ).eval()  # fmt: skip
    granite = hf.GraniteForCausalLM(
        hf.GraniteConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, logits_scaling=8.0, tie_word_embeddings=False)
    ).eval()  # fmt: skip
    for model, scale in ((gemma2, 1.0), (granite, 1 / 8)):
        source, ids = DoLa(model, layers=[1, 2]), random_ids(20, 1, 6)
        source(ids)
        assert source._scale == pytest.approx(scale, rel=1e-3)
        assert torch.allclose(source.parts["expert"], model(ids).logits[:, -1:], **CLOSE)


def test_as_source_wraps_models_only():
    model = tiny_model("llama")
    source = as_source(model)
    assert isinstance(source, CachedLM) and as_source(source) is source
    for wrong in ("gpt2", None, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="model is a"):
            as_source(wrong)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        CachedLM(tiny_model("llama").train())


IDS = torch.tensor([[3, 4, 5]])
BAD_CALLS = [
    ([[3, 4]], {}, TypeError, "ids"),
    (IDS.float(), {}, TypeError, "ids"),
    (IDS[0], {}, ValueError, "ids has shape"),
    (IDS[:, :0], {}, ValueError, "ids has shape"),
    (IDS + 97, {}, ValueError, "vocabulary of 97"),
    (IDS - 9, {}, ValueError, "vocabulary of 97"),
    (IDS, {"n": 0}, ValueError, "n is 0"),
    (IDS, {"n": 4}, ValueError, "n is 4"),
    (IDS, {"mask": [[1, 1, 1]]}, TypeError, "mask"),
    (IDS, {"mask": torch.ones(1, 2)}, ValueError, "mask has shape"),
    (IDS, {"mask": torch.zeros(1, 3)}, ValueError, "zeros only"),
    (torch.full((1, 257), 3), {}, ValueError, "256"),
]


@pytest.mark.parametrize("ids, more, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_calls_are_named(ids, more, kind, message):
    source = CachedLM(tiny_model("llama"))
    with pytest.raises(kind, match=message):
        source(ids, **more)


def test_bad_settings_are_named():
    model = tiny_model("llama")
    for settings, message in (
        (dict(strength=1.0, beta=0.5), "both"),
        (dict(alpha=2), "alpha"),
        (dict(beta=0.5, amateur_temperature=0.5), "amateur_temperature"),
        (dict(strength=-1), "strength"),
    ):
        with pytest.raises(ValueError, match=message):
            Contrast(model, model, **settings)
    for layers in ("middle", [], [0, 0], [3], [-1], [0.5]):
        with pytest.raises(ValueError, match="layers"):
            DoLa(model, layers=layers)
    with pytest.raises(TypeError, match="layers"):
        DoLa(model, layers=2)
    with pytest.raises(ValueError, match="remember"):
        CachedLM(model, remember=0)


def test_a_new_method_is_one_function():
    class Uniform(Source):
        vocab_size = 5

        def scores(self, ids, mask, n):
            return torch.zeros(len(ids), n, 5)

    assert Uniform()(IDS, n=2).shape == (1, 2, 5)
    with pytest.raises(NotImplementedError, match="scores"):
        Source()(IDS)


def test_a_fork_shares_no_cache_wherever_a_source_hides():
    tiny = functools.partial(CachedLM, tiny_model("llama"))

    class Several(Source):
        inner = ("pair", "named", "rows")

        def __init__(self):
            super().__init__()
            self.pair, self.rows = (tiny(), "word", tiny()), [[tiny()]]
            self.named = {"a": tiny()}

    whole = Several()
    twin = whole.fork()
    for get in (lambda s: s.pair[0], lambda s: s.named["a"], lambda s: s.rows[0][0]):
        old, new = get(whole), get(twin)
        assert new is not old and new.model is old.model
    assert twin.pair[1] == "word" and isinstance(twin.pair, tuple)
    whole.hidden = {"b": tiny()}
    with pytest.raises(TypeError, match="Several.hidden"):
        whole.fork()


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts how often a number of a model's output is read: a GPU would make the host wait each time."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [Contrast, lambda a, b: DoLa(a), lambda a, b: Mix([(1, a), (-0.5, b)], alpha=0.1)])
def test_scores_are_asked_without_a_wait_for_the_device(make):
    source = make(tiny_model("llama", num_hidden_layers=4), tiny_model("llama", seed=1))
    with Waits() as waits:
        source.ask(torch.tensor([[5, 6, 7, 8]]))
    assert waits.count == 0
    with Waits() as waits:
        source(torch.tensor([[5, 6, 7, 8]]))
    assert waits.count == 1  # the look at the result


def test_numbers_that_are_none_are_named_with_the_part_that_holds_them():
    broken = tiny_model("llama", seed=1)
    broken.lm_head.weight.data[5] = float("nan")
    source = Contrast(tiny_model("llama"), broken)
    with pytest.raises(ValueError, match="amateur's row holds NaN.*new token 0 of Contrast"):
        generate(source, [5, 6], max_new_tokens=3)
    with pytest.raises(ValueError, match="scores holds NaN"):
        source(torch.tensor([[5, 6]]))
