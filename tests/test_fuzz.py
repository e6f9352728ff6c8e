"""Bad values at every door: each public name x each of its arguments x the table below.

A value is taken, or it is a TypeError or ValueError that names the argument. Kinds say which values must be taken and
which must not: numpy integers are whole numbers, numpy floats are numbers, True is neither.
"""

import inspect
import math
import numbers
import re
import signal
from fractions import Fraction

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import character_tokenizer
from tiny import tiny_model

import cdlearn
from cdlearn import hf, metrics, plots, scores, widgets

LOOP, DEEP = [1], []
LOOP.append(LOOP)
for _ in range(100_000):
    DEEP = [DEEP]


class Sulky:
    """Cannot be printed, compared or asked for its truth."""

    __hash__ = None

    def __repr__(self):
        raise RuntimeError("no name")

    def __eq__(self, other):
        raise RuntimeError("no comparison")

    def __bool__(self):
        raise RuntimeError("no truth")


VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**30, 10**400,
    0.0, 0.5, -0.5, 1.5, 1e-50, 5e-324, 1e300, math.nan, math.inf, -math.inf, 1j, Fraction(1, 2),
    np.int64(1), np.uint8(3), np.int64(-1), np.float32(0.5), np.float64(math.nan), np.float16(math.inf), np.bool_(True),
    np.array(1), np.array(0.5), np.array([0.5]), np.array([]), np.array([[5, 6]]), np.array(["a"]),
    torch.tensor(1), torch.tensor(0.5), torch.tensor(True), torch.tensor([]), torch.tensor([5, 6]),
    torch.zeros(0, 3), torch.tensor([[math.nan, 1.0]]), torch.tensor([[1j]]), torch.ones(2, 3, 4),
    "", "abc", "\ud800", "\0", "a" * 2000, b"abc",
    [], [1], [5, 6], [None], ["a"], ["a", 1], [math.nan], [[]], [[5, 6], [7]], [[1.5]], [10**30], LOOP, DEEP,
    (), (1, 2), {}, {"a": 1}, {1: [2]}, set(), object(), Sulky(), int, len, range(3),
]  # fmt: skip


# ---- kinds: for a value True (it must be taken), False (it must not) or None (either)


def whole(low=1, high=math.inf, none=False):
    def judge(value):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Integral):
            return value is None and none
        return None if low <= value and 1000 < value <= high else low <= value <= high  # large ones may not fit

    return judge


def real(low=0.0, high=math.inf, above=False, none=False):
    def judge(value):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            return value is None and none
        if value > 10**301 or not math.isfinite(value) or not low <= value <= high or (above and value == low):
            return False
        return None if value > 1e5 or 0 < value < 1e-40 else True  # a formula may refuse extremes

    return judge


def flag(none=False):
    return lambda value: none if value is None else isinstance(value, (bool, np.bool_))


def kind(*types, none=False):
    """None of other types; of these, what fits."""
    return lambda value: none if value is None else None if isinstance(value, types) else False


def word(*known):
    return lambda value: isinstance(value, str) and value in known


def never(value):
    return False


def only_none(value):
    return value is None


LISTS, ARRAYS = (list, tuple, range, type(iter([]))), (np.ndarray, torch.Tensor)
TENSOR, TEXTS = kind(torch.Tensor), kind(*LISTS, *ARRAYS)
KINDS = {
    "alpha": real(high=1, none=True), "strength": real(high=1e6, none=None), "beta": real(high=1e6, none=None),
    "amateur_temperature": real(above=True), "top_k": whole(0), "temperature": real(), "top_p": real(0, 1, above=True),
    "min_p": real(high=1), "top_n_sigma": real(high=1e6), "evolution_rate": real(high=1e6), "evolution_scale": whole(),
    "target_weight": real(high=1), "lenience": real(0, 1, above=True), "penalty": real(1e-6, 1e6),
    "repetition_penalty": real(1e-6, 1e6), "masked": kind(numbers.Real), "weights": TEXTS, "remember": whole(),
    "n": whole(),
    "k": whole(high=256), "layer": whole(high=3), "longest": whole(), "shortest": whole(high=3), "gamma": whole(),
    "num_beams": whole(high=2**16), "num_return_sequences": whole(high=2**16), "max_new_tokens": whole(high=250),
    "seed": whole(0, 2**63 - 1, none=True), "batch_size": whole(), "position": whole(0, 2), "candidates": whole(),
    "top": whole(none=True), "trace": flag(), "check": flag(), "final_norm": flag(), "chat": flag(),
    "max_bytes": kind(numbers.Integral), "progress": flag(none=True),
    "convention": word("sum", "textbook", "reference"),
    "rule": word("token", "block"), "divergence": word("jsd", "reference"),
    "path": kind(str), "text": kind(str, *LISTS, *ARRAYS), "texts": TEXTS,
    "prompt": kind(str, *LISTS, *ARRAYS), "prompts": TEXTS, "choices": TEXTS, "rows": TEXTS, "continuation": kind(str),
    "prefix": kind(str, dict, *LISTS, *ARRAYS), "system": kind(str, none=True),
    "attention_mask": lambda value: True if value is None else False if isinstance(value, (str, bytes, dict)) else None,
    "stop": kind(str, list, tuple, none=True),
    "eos_token_ids": kind(numbers.Integral, set, *LISTS, *ARRAYS, none=True),
    "layers": kind(str, dict, *LISTS, *ARRAYS), "logits": TEXTS, "mask": kind(torch.Tensor, none=True),
    "device": kind(str, *LISTS), "dtype": kind(str, *LISTS), "ax": only_none, "compare": only_none,
    "stream": kind(type, type(len), none=True),
}  # fmt: skip
KINDS |= dict.fromkeys("tokenizer expert_tokenizer expert amateur source model target draft".split(), never)
KINDS |= dict.fromkeys("with_context without_context weighted generation metric".split(), never) | {"width": whole()}
KINDS |= dict.fromkeys(
    "expert_logits amateur_logits p_logits q_logits final_logits premature_logits early_logits".split(), TENSOR
)
KINDS |= dict.fromkeys("scores probs uniforms p q draft_tokens token_ids ids".split(), TENSOR)
FILES = ("path", "expert", "amateur", "tokenizer")  # may be an OSError too, which names the file
EXEMPT = {
    "Generation": "made by the loops",
    "Pair": "made by load_pair",
    "Source": "abstract: calls of two of its subclasses are here",
    "Trace": "made by the loops or read from a file, see test_trace_files.py",
    "widgets.Inspector": "made by inspect",
    "scores.penalize_seen": "the rule inside penalize_repetition, after its checks",
    "scores.sled_step": "the step inside sled_scores, after its checks",
    "hf.SourceConfig": "made by as_causal_lm",
    "hf.SourceForCausalLM": "made by as_causal_lm",
    "hf.contrastive_generate": "called by transformers, its numbers go to ContrastiveLogitsProcessor",
    ("stream", int): "a callable: what it raises is its own",
}


def calls(folder):
    """name -> (what is called, arguments that are right, kinds where they differ from KINDS)."""
    model, other, tokenizer = tiny_model("llama"), tiny_model("llama", seed=1), character_tokenizer()
    contrast = cdlearn.Contrast(model, other)
    run = dict(tokenizer=tokenizer, max_new_tokens=2, progress=False)
    loop, drawn = dict(source=model, prompt="ab", **run), dict(temperature=1.0, seed=1)
    traced, dola = (
        cdlearn.generate(source, "ab", **run | {"max_new_tokens": 3}, eos_token_ids=()).trace
        for source in (contrast, cdlearn.DoLa(model, layers=[0, 1]))
    )
    rounds = cdlearn.speculate(model, other, "ab", **run, gamma=2).trace
    pair = cdlearn.load_pair(model, other, tokenizer=tokenizer)
    chat = cdlearn.load_pair(model, other, tokenizer=character_tokenizer(chat_template="{{ messages[0].content }}"))
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    probs, ids, uniforms = logits.softmax(dim=-1), torch.tensor([[5, 6, 7]]), torch.rand(1, 2)
    traced.save(folder / "trace.json")
    unset = dict(strength=real(high=1e6, none=True), beta=real(high=1e6, none=True), top_k=whole(0, none=True))
    unset |= dict(amateur_temperature=real(above=True, none=True), layer=only_none)
    file, named = dict(tokenizer=only_none), {"expert": only_none, "tokenizer": kind(str, none=None)}
    score, one = dict(source=model, tokenizer=tokenizer), torch.tensor([[3]])
    return {
        "CachedLM": (cdlearn.CachedLM, dict(model=model)),
        "CachedLM()": (cdlearn.CachedLM(model).__call__, dict(ids=ids), {"n": whole(high=3)}),
        "Contrast": (cdlearn.Contrast, dict(expert=model, amateur=other)),
        "Contrast()": (contrast.__call__, dict(ids=ids), {"n": whole(high=3)}),
        "DoLa": (cdlearn.DoLa, dict(model=model)),
        "SLED": (cdlearn.SLED, dict(model=model)),
        "AdaCAD": (cdlearn.AdaCAD, dict(with_context=model, without_context=other)),
        "EarlyExit": (cdlearn.EarlyExit, dict(model=model, layer=2)),
        "Lookup": (cdlearn.Lookup, {}),
        "Mix": (cdlearn.Mix, dict(weighted=[(1.0, model), (-0.5, other)])),
        "Prompted": (cdlearn.Prompted, dict(source=model, prefix="abc", tokenizer=tokenizer)),
        "TextSpace": (cdlearn.TextSpace, dict(model=model, tokenizer=tokenizer, expert_tokenizer=tokenizer)),
        "Window": (cdlearn.Window, dict(source=model, k=3)),
        "generate": (cdlearn.generate, loop),
        "generate, drawn": (cdlearn.generate, loop | drawn),
        "beam_search": (cdlearn.beam_search, loop | {"num_beams": 3}, {"num_return_sequences": whole(high=3)}),
        "speculate": (cdlearn.speculate, dict(target=model, draft=other, prompt="ab", **run, gamma=2) | drawn),
        "inspect": (cdlearn.inspect, dict(generation=traced), {"source": only_none}),
        "load_pair": (cdlearn.load_pair, dict(expert=model, amateur=other, tokenizer=tokenizer), named),
        "load_expert": (cdlearn.load_expert, dict(expert=model), named),
        "Pair.prompt": (pair.prompt, dict(text="a")),
        "Pair.prompt, chat": (chat.prompt, dict(text="a")),
        "Pair.describe": (pair.describe, {}),
        "Trace.rescore": (traced.rescore, {}, unset),
        "Trace.rescore, DoLa": (dola.rescore, {}, dict.fromkeys(unset, only_none) | {"layer": whole(0, 1, none=True)}),
        "Trace.first_change": (traced.first_change, {}, unset),
        "Trace.flip_points": (traced.flip_points, dict(position=1)),
        "Trace.to_frame": (traced.to_frame, {}),
        "Trace.step_frame": (traced.step_frame, {}),
        "Trace.summary": (traced.summary, {}),
        "Trace.to_json": (traced.to_json, {}),
        "Trace.save": (traced.save, dict(path=folder / "saved.json")),
        "Trace.load": (cdlearn.Trace.load, dict(path=folder / "trace.json"), file),
        "Trace.from_json": (cdlearn.Trace.from_json, dict(text=traced.to_json()), file | {"text": kind(str, bytes)}),
        "Trace.to_html": (traced.to_html, dict(path=folder / "page.html")),
        "hf.as_causal_lm": (hf.as_causal_lm, dict(source=model)),
        "hf.ContrastiveLogitsProcessor": (hf.ContrastiveLogitsProcessor, dict(amateur=other)),
        "widgets.Inspector.set": (widgets.inspect(traced).set, dict(strength=1.0), unset),
        "metrics.ngram_counts": (metrics.ngram_counts, dict(text="a b", n=1)),
        "metrics.rep_n": (metrics.rep_n, dict(texts=["a b"], n=1)),
        "metrics.diversity": (metrics.diversity, dict(texts=["a b"])),
        "metrics.distinct_n": (metrics.distinct_n, dict(texts=["a b"], n=1)),
        "metrics.encode_pair": (metrics.encode_pair, dict(tokenizer=tokenizer, prompt="a", continuation="b")),
        "metrics.token_log_probs": (metrics.token_log_probs, dict(source=model, rows=[([5], [6])])),
        "metrics.choice_scores": (metrics.choice_scores, dict(prompt="a", choices=["b"]) | score),
        "metrics.perplexity": (metrics.perplexity, dict(prompts=["a"], texts=["b"]) | score),
        "scores.plausibility_mask": (scores.plausibility_mask, dict(expert_logits=logits, alpha=0.1)),
        "scores.contrastive_scores": (scores.contrastive_scores, dict(expert_logits=logits, amateur_logits=logits)),
        "scores.contrastive_logits": (scores.contrastive_logits, dict(expert_logits=logits, amateur_logits=logits)),
        "scores.mixed_scores": (scores.mixed_scores, dict(logits=[logits, logits], weights=[1.0, -0.5])),
        "scores.js_divergence": (scores.js_divergence, dict(p_logits=logits, q_logits=logits)),
        "scores.dola_scores": (scores.dola_scores, dict(final_logits=logits, premature_logits=logits)),
        "scores.sled_scores": (scores.sled_scores, dict(final_logits=logits, early_logits=logits[:, None])),
        "scores.sled_latent": (scores.sled_latent, dict(final_logits=logits, early_logits=logits[:, None])),
        "scores.penalize_repetition": (
            scores.penalize_repetition, dict(scores=logits, token_ids=torch.tensor([[1], [2]]), penalty=1.2)
        ),
        "scores.sampling_probs": (scores.sampling_probs, dict(scores=logits, top_p=0.9)),
        "scores.draw": (scores.draw, dict(probs=probs, uniforms=uniforms[0])),
        "scores.accept_probability": (scores.accept_probability, dict(p=probs, q=probs)),
        "scores.residual": (scores.residual, dict(p=probs, q=probs)),
        "scores.verify_draft": (
            scores.verify_draft, dict(p=probs[None], q=probs[None, :1], draft_tokens=one, uniforms=uniforms)
        ),
        "plots.plot_step": (plots.plot_step, dict(trace=traced, position=1), {"trace": never, "top": whole()}),
        "plots.plot_strength": (plots.plot_strength, dict(trace=traced, position=1), {"trace": never}),
        "plots.plot_trajectory": (plots.plot_trajectory, dict(trace=traced), {"trace": never}),
        "plots.plot_strip": (plots.plot_strip, dict(trace=traced), {"trace": never}),
        "plots.plot_layers": (plots.plot_layers, dict(trace=dola), {"trace": never}),
        "plots.plot_rounds": (plots.plot_rounds, dict(trace=rounds), {"trace": never}),
    }  # fmt: skip


OPTIONS = {  # of those that pass **options on
    "load_expert": ("device", "dtype", "tokenizer", "progress"),
    "Trace.first_change": ("strength", "alpha", "amateur_temperature", "top_k", "beta", "layer"),
    "widgets.Inspector.set": ("strength", "alpha", "amateur_temperature"),
}


def arguments(name, call):
    taken = inspect.signature(call).parameters.values()
    own = [parameter.name for parameter in taken if parameter.kind is not parameter.VAR_KEYWORD]
    return [*own, *OPTIONS.get(name, ())]


class Hangs(BaseException):
    """A call took more than five seconds."""


def hangs(*_):
    raise Hangs


def answer(call, good, name, value, wanted):
    """What is wrong with how a value is answered; None where nothing is."""
    try:
        call(**good | {name: value})
    except (OSError, TypeError, ValueError) as error:
        file = name in FILES and getattr(error, "filename", None) is not None
        if isinstance(error, OSError) and name not in FILES:
            return f"{type(error).__name__}: {error}"
        if not file and not re.search(rf"\b{name}\b", str(error)):
            return f"does not name it: {error}"
        return f"refused: {error}" if wanted is True else None
    except (Exception, Hangs) as error:
        return f"{type(error).__name__}: {error}"
    return "taken" if wanted is False else None


def shown(value):
    try:
        return repr(value)[:40]
    except Exception:
        return f"a {type(value).__name__}"


@pytest.mark.filterwarnings("ignore")
def test_every_value_is_taken_or_refused_by_name(tmp_path, monkeypatch, request):
    monkeypatch.setattr("cdlearn.loops.run.watched", lambda: False)
    monkeypatch.chdir(tmp_path)
    if hasattr(signal, "SIGALRM"):
        monkeypatch.setattr(signal, "_before", signal.signal(signal.SIGALRM, hangs), raising=False)
        request.addfinalizer(lambda: signal.setitimer(signal.ITIMER_REAL, 0))  # whatever happens, no later test is hit
    wrong, count = [], 0
    for name, (call, good, *kinds) in calls(tmp_path).items():
        call(**good)
        for argument in arguments(name, call):
            judge = (kinds[0] if kinds else {}).get(argument, KINDS[argument])
            for value in [*VALUES, iter([1, 2])]:
                if (argument, value if isinstance(value, type) else None) in EXEMPT:
                    continue
                if hasattr(signal, "setitimer"):
                    signal.setitimer(signal.ITIMER_REAL, 5.0)
                found = answer(call, good, argument, value, judge(value))
                count += 1
                if found:
                    wrong.append(f"{name}({argument}={shown(value)}): {found[:200]}")
            plt.close("all")
    lines = "\n".join(wrong).encode("ascii", "backslashreplace").decode()
    assert not wrong, f"{len(wrong)} of {count}:\n{lines}"
    assert count > 15_000


def test_every_public_name_is_fuzzed_or_exempt(tmp_path):
    own = {"metrics": metrics, "scores": scores, "hf": hf, "plots": plots, "widgets": widgets}
    public = {name for name in cdlearn.__all__ if name not in own} | {"inspect"}
    for door, module in own.items():
        known = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        made = {name: getattr(module, name) for name in known}
        here = {"plots": "cdlearn.show.plots"}.get(door, module.__name__)
        public |= {f"{door}.{name}" for name, value in made.items() if getattr(value, "__module__", "") == here}
    for owner in (cdlearn.Trace, cdlearn.Pair):
        public |= {f"{owner.__name__}.{name}" for name, value in inspect.getmembers(owner) if not name.startswith("_")
                   and inspect.isroutine(value)}  # fmt: skip
    fuzzed = {name.split(",")[0].removesuffix("()") for name in calls(tmp_path)}
    assert public - fuzzed - EXEMPT.keys() == set()
    assert {name for name in EXEMPT if isinstance(name, str)} <= public | {"widgets.Inspector"}
