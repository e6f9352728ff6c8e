"""What a trace says other settings would have done is what they do, and a flip point is where the choice flips."""

import functools
import gzip
import random

import pytest
import torch
from tiny import tiny_model

from cdlearn import CachedLM, Contrast, DoLa, Mix, Source, Trace, generate, inspect, speculate
from cdlearn.scores import NEVER, plausibility_mask
from cdlearn.show import plots
from cdlearn.show.pack import pack
from cdlearn.trace.flips import envelope
from cdlearn.trace.record import Form, Recorder

PROMPT, STEPS = [5, 6, 7], 12
NOTHING = float("-inf")


@functools.cache
def models():
    """In float64 nothing is near enough a tie that rounding decides."""
    return tiny_model("llama").double(), tiny_model("llama", seed=1).double()


def source_of(settings):
    """A source with the settings that a trace names."""
    expert, amateur = models()
    given = {name: value for name, value in settings.items() if name not in ("method", "scores", "repetition_penalty")}
    if settings["method"] == "contrastive":
        return Contrast(expert, amateur, **given)
    if settings["method"] == "dola":
        return DoLa(expert, **given)
    return Mix(list(zip(given["weights"], (expert, amateur))), alpha=given["alpha"])


def run(settings, steps=STEPS, **options):
    penalty = settings.get("repetition_penalty", 1.0)
    options = dict(max_new_tokens=steps, eos_token_ids=(), progress=False, repetition_penalty=penalty) | options
    return generate(source_of(settings), PROMPT, **options).trace


def any_alpha(rng):
    return rng.choice([0, 0.01, 0.1, 0.5, 1.0, rng.random()])


def any_contrast(rng):
    """The keywords of a random `rescore`; 0 takes the mask away."""
    changes = {"alpha": any_alpha(rng), "top_k": rng.choice([0, 1, 3, 20, 500])}
    form = rng.choice(["strength", "tau", "beta"])
    if form == "beta":
        return changes | {"beta": rng.uniform(0, 3)}
    changes["strength"] = rng.choice([0.0, rng.uniform(0, 2)])
    return changes | ({"amateur_temperature": rng.choice([0.3, 0.8, 2.0])} if form == "tau" else {})


def any_change(rng, recorded_temperature):
    """Random keywords; the form with beta needs the temperature back at 1."""
    changes = any_contrast(rng)
    return changes | ({"amateur_temperature": 1.0} if "beta" in changes and recorded_temperature != 1 else {})


def some(rng, changes):
    return {name: value for name, value in changes.items() if rng.random() < 0.7}


def as_settings(changes):
    return {name: None if (name, value) == ("alpha", 0) else value for name, value in changes.items()}


def recorded_runs():
    """Traces of every method, with the random changes that each can take."""
    rng, runs = random.Random(7), []
    for _ in range(8):
        start = {"method": "contrastive"} | as_settings(any_contrast(rng))
        runs.append((run(start), functools.partial(any_change, rng, start.get("amateur_temperature", 1.0))))
    for kept in (dict(strength=0.7), dict(beta=1.5)):
        start = {"method": "contrastive", "repetition_penalty": 1.4, "alpha": 0.05} | kept
        runs.append((run(start), lambda: {"alpha": any_alpha(rng), "strength": rng.uniform(0, 2)}))
        runs.append((run(start), lambda: {"alpha": any_alpha(rng), "beta": rng.uniform(0, 2)}))
    expert, amateur = models()
    target = Contrast(expert, amateur, alpha=0.05)
    spoken = speculate(target, amateur, PROMPT, gamma=4, max_new_tokens=STEPS, eos_token_ids=()).trace
    runs += [(spoken, lambda: any_contrast(rng))] * 2
    for divergence in ("jsd", "reference"):
        trace = run({"method": "dola", "layers": [0, 1, 2], "alpha": 0.1, "divergence": divergence})
        changes = lambda: some(rng, {"alpha": any_alpha(rng), "layer": rng.choice([0, 1, 2])})  # noqa: E731
        runs += [(trace, changes)] * 2
    for weights in ([1.5, -0.5], [0.5, 0.5]):
        trace = run({"method": "mix", "weights": weights, "alpha": None})
        runs.append((trace, lambda: {"alpha": any_alpha(rng)}))
    return runs


def test_rescoring_at_200_random_settings_is_generating_at_them():
    runs, changed, late = recorded_runs(), 0, 0
    assert len(runs) == 20
    for trace, draw in runs:
        assert trace.rescore().token_ids == trace.token_ids and not bool(trace.truncated.any())
        for _ in range(10):
            changes = draw()
            new, first = trace.rescore(**changes), trace.first_change(**changes)
            steps = STEPS if first is None else first + 1
            real = run(new.settings, steps)
            assert {k: v for k, v in new.settings.items() if k != "scores"} == real.settings, changes
            assert real.token_ids == new.token_ids[:steps], (trace.settings, changes)
            assert trace.token_ids[: steps - 1] == real.token_ids[:-1] and new.recorded_ids == trace.token_ids
            assert (first is None) == (new.token_ids == trace.token_ids)
            order = real.candidates[:, :-1].argsort(dim=1), new.candidates[:steps, :-1].argsort(dim=1)
            scores = [t.score[:steps, :-1].gather(1, index) for t, index in zip((real, new), order)]
            assert torch.equal(scores[0] == NOTHING, scores[1] == NOTHING)
            assert "scores" not in new.settings  # with the whole vocabulary recorded even the constant is known
            assert torch.allclose(*(s.nan_to_num(neginf=0) for s in scores), atol=1e-8)
            assert real.rank.tolist() == new.rank[:steps].tolist()
            assert all(ranks.tolist() == new.ranks[name][:steps].tolist() for name, ranks in real.ranks.items())
            changed, late = changed + (first is not None), late + (first is not None and first > 0)
    assert changed > 60 and late > 20


def test_few_candidates_are_enough_wherever_nothing_is_truncated(monkeypatch):
    whole = run({"method": "contrastive", "alpha": 0.3, "strength": 0.5})
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=6))
    trace = run({"method": "contrastive", "alpha": 0.3, "strength": 0.5})
    exact, unknown = 0, 0
    for alpha in (0.2, 0.3, 0.5, 0.8):
        for change in (dict(strength=1.0), dict(strength=0.1), dict(amateur_temperature=0.5), dict(top_k=2)):
            few, all_ = trace.rescore(alpha=alpha, **change), whole.rescore(alpha=alpha, **change)
            beyond = (all_.score[:, 6:-1] > NOTHING).any(dim=1)
            # the last recorded one is kept: the next may be, and if it is not the last one is not known to be the last
            assert torch.equal(few.truncated, few.score[:, 5] > NOTHING) and bool(few.truncated[beyond].all())
            for p in (~few.truncated).nonzero()[:, 0].tolist():
                assert few.token_ids[p] == all_.token_ids[p]
            exact, unknown = exact + int((~few.truncated).sum()), unknown + int(beyond.sum())
    assert exact > 20 and unknown > 20
    assert trace.rescore(alpha=0).truncated.all() and "exceed" in trace.rescore(alpha=0).summary()
    constant = trace.rescore(amateur_temperature=0.5)
    assert constant.settings["scores"] == "up to a constant per position"
    full = whole.rescore(amateur_temperature=0.5)
    gap = (constant.score - full.score.gather(1, constant_columns(constant, full)))[constant.score > NOTHING]
    rows = (constant.score > NOTHING).nonzero()[:, 0]
    for row in rows.unique():
        assert float(gap[rows == row].max() - gap[rows == row].min()) < 1e-9  # one constant a position
    assert "scores" not in constant.rescore(amateur_temperature=1.0).settings


def constant_columns(few, full):
    """Where the candidates of one trace are in another."""
    return (few.candidates[:, :, None] == full.candidates[:, None, :]).long().argmax(dim=2)


def test_a_recorded_temperature_keeps_its_scores_exact_whatever_else_changes(monkeypatch):
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=10))
    start = {"method": "contrastive", "alpha": 0.3, "strength": 0.5, "amateur_temperature": 0.4}
    trace = run(start)
    new = trace.rescore(strength=0.9)
    assert "scores" not in new.settings
    real = run(start | {"strength": 0.9}, 1)
    assert torch.allclose(new.score[:1, :-1], real.score[:, :-1], atol=1e-9)


def test_a_choice_from_beyond_the_candidates_can_be_kept_and_replaced(monkeypatch):
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=3))
    trace = run({"method": "contrastive", "alpha": 0.02, "strength": 1.5})
    far = [p for p in range(STEPS) if trace.rank[p] > 3]
    assert len(far) > 3
    assert [trace.rescore().token_ids[p] for p in far] == [trace.token_ids[p] for p in far]
    assert [int(trace.rescore().rank[p]) for p in far] == [int(trace.rank[p]) for p in far]
    new = trace.rescore(strength=0.0)
    assert new.token_ids == trace.candidates[:, 0].tolist() and new.rank.eq(1).all()
    moved = new.candidates[:, -1] != trace.candidates[:, -1]
    assert new.ranks["amateur"][moved].eq(0).all()  # only the recorded choice's rank was counted


SETTINGS = [
    {"method": "contrastive", "alpha": 0.05, "strength": 0.8},
    {"method": "contrastive", "alpha": 0.05, "beta": 0.5},
    {"method": "contrastive", "alpha": None, "strength": 1.0, "top_k": 15, "amateur_temperature": 0.5},
    {"method": "contrastive", "alpha": 0.05, "strength": 0.8, "repetition_penalty": 1.5},
    {"method": "contrastive", "alpha": 0.05, "beta": 1.0, "repetition_penalty": 0.7},
    {"method": "dola", "alpha": 0.1, "layers": [0, 1, 2]},
    {"method": "mix", "alpha": 0.1, "weights": [1.5, -0.5]},
    {"method": "dola", "alpha": 0.1, "layers": [1], "repetition_penalty": 1.2},
]


def between(span):
    """Three points inside a span, two of them at its ends."""
    stop = min(span.stop, span.start + 5)
    width = stop - span.start
    return [span.start + width * part for part in (1e-5, 0.5, 1 - 1e-5)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_flip_points_are_where_rescoring_flips(settings):
    trace, flips = run(settings), 0
    for position in range(STEPS):
        found = trace.flip_points(position)
        assert not found.truncated
        spans = {"strength": found.strength, "alpha": found.alpha}
        for name, ends in (("strength", (0.0, 1.0 if "beta" in settings else float("inf"))), ("alpha", (0.0, 1.0))):
            if not spans[name]:
                assert name == "strength" and settings["method"] != "contrastive"
                continue
            assert (spans[name][0].start, spans[name][-1].stop) == ends
            for before, after in zip(spans[name], spans[name][1:]):
                assert before.stop == after.start and before.token_id != after.token_id
            flips += len(spans[name]) - 1
            for span in spans[name]:
                for value in between(span):
                    change = {name: value}
                    if name == "strength" and "beta" in settings:
                        change = {"beta": min(value / (1 - value), 1e6)}
                    assert trace.rescore(**change).token_ids[position] == span.token_id, (position, name, value)
    assert flips >= 3


def test_flip_points_name_tokens_and_know_where_the_record_ends(monkeypatch):
    from conftest import character_tokenizer

    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=4))
    trace = run({"method": "contrastive", "alpha": 0.3, "strength": 0.5}, tokenizer=character_tokenizer())
    found = trace.flip_points(2)
    logits = trace.parts["expert"][2]
    assert found.alpha[0].start == pytest.approx(float((logits[3] - logits[0]).exp()))
    assert all(span.token == trace.tokenizer.decode([span.token_id]) for span in found.alpha)
    assert found.truncated == bool(trace.truncated[2])


def test_the_envelope_of_lines_by_hand():
    import numpy as np

    a, b = np.array([0.0, -1.0, -1.0, -9.0]), np.array([0.0, -1.0, -2.0, -2.0])
    assert envelope(a, b, 0, float("inf")) == [(0, 0), (0.5, 2)]
    assert envelope(a, b, 0, 0.4) == [(0, 0)]
    assert envelope(np.array([1.0, 1.0]), np.array([0.0, -1.0]), 0, 9) == [
        (0, 1)
    ]  # a tie at the start, then the faster


def test_several_flip_points_make_several_spans_in_order():
    trace = run({"method": "contrastive", "alpha": None, "strength": 1.0})
    spans = [trace.flip_points(p).strength for p in range(STEPS)]
    assert max(map(len, spans)) >= 4
    for row, found in enumerate(spans):
        assert found[0].token_id == int(trace.candidates[row, 0])  # strength 0 is the expert alone


def test_a_sampled_text_is_compared_with_greedy_not_with_its_draws():
    trace = run({"method": "contrastive", "alpha": 0.1, "strength": 1.0}, temperature=1.5, seed=1)
    assert trace.rescore().token_ids != trace.token_ids and trace.first_change() is None
    assert trace.rescore().recorded_ids == trace.token_ids
    assert trace.first_change(strength=0.0) is not None


def test_rescoring_twice_is_rescoring_once():
    trace = run({"method": "contrastive", "alpha": 0.1, "strength": 1.0, "repetition_penalty": 1.3})
    twice, once = trace.rescore(strength=0.1).rescore(alpha=0.01), trace.rescore(strength=0.1, alpha=0.01)
    assert twice.token_ids == once.token_ids and twice.settings == once.settings
    assert twice.recorded_ids == once.recorded_ids == trace.token_ids
    assert trace.token_ids == trace.rescore().token_ids  # and the trace itself is as it was


def test_what_cannot_change_is_refused_with_a_reason():
    expert, amateur = models()
    plain = generate(CachedLM(expert), PROMPT, max_new_tokens=3).trace
    with pytest.raises(ValueError, match="method is 'plain'.*trace a Contrast"):
        plain.rescore(strength=0.5)
    with pytest.raises(ValueError, match="method is 'plain'"):
        plain.flip_points(0)
    assert not plain.truncated.any()
    dola = run({"method": "dola", "alpha": 0.1, "layers": [0, 1]}, 3)
    with pytest.raises(ValueError, match="strength=0.5 cannot change in a trace of 'dola': what can is alpha, layer"):
        dola.rescore(strength=0.5)
    with pytest.raises(ValueError, match=r"layer is 2: the trace's candidate layers are \[0, 1\]"):
        dola.rescore(layer=2)
    contrast = run({"method": "contrastive", "alpha": 0.1, "strength": 1.0}, 3)
    for changes, kind, reason in [
        (dict(strength=1.0, beta=1.0), ValueError, "two forms, choose one"),
        (dict(strength=-1), ValueError, "strength is -1: pass a number at least 0"),
        (dict(alpha=2.0), ValueError, "alpha is 2.0"),
        (dict(alpha="x"), TypeError, "alpha is 'x': pass a number"),
        (dict(alpha=False), TypeError, "alpha is False"),
        (dict(top_k=-1), ValueError, "top_k is -1"),
        (dict(amateur_temperature=0), ValueError, "amateur_temperature is 0"),
        (dict(beta=1.0, amateur_temperature=0.5), ValueError, "not part of the beta form"),
        (dict(layer=1), ValueError, "layer=1 cannot change in a trace of 'contrastive'"),
    ]:
        with pytest.raises(kind, match=reason):
            contrast.rescore(**changes)
    for position, kind in ((3, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="position is"):
            contrast.flip_points(position)
    mixed = run({"method": "mix", "alpha": 0.1, "weights": [1.0, -0.5]}, 3)
    with pytest.raises(ValueError, match="what can is alpha"):
        mixed.rescore(beta=0.5)


def test_a_penalty_and_an_unknown_normaliser_do_not_go_together(monkeypatch):
    monkeypatch.setattr("cdlearn.loops.run.Recorder", functools.partial(Recorder, candidates=6))
    trace = run({"method": "contrastive", "alpha": 0.3, "strength": 0.5, "repetition_penalty": 1.3})
    assert trace.rescore(strength=0.4).settings["repetition_penalty"] == 1.3
    with pytest.raises(ValueError, match="amateur_temperature is 0.5.*repetition_penalty"):
        trace.rescore(amateur_temperature=0.5)


class Three(Source):
    """A source from outside the package: log p_E - t (0.6 log p_A + 0.4 log p_B) among what the expert's mask keeps."""

    inner = ("expert", "amateur", "second")
    forms = (Form({"expert": 1.0}, {"amateur": 0.6, "second": 0.4}, knob="strength"),)

    def __init__(self, models, strength=0.5, alpha=0.02):
        super().__init__()
        self.expert, self.amateur, self.second = map(CachedLM, models)
        self.vocab_size, self.strength, self.alpha = self.expert.vocab_size, strength, alpha
        self.settings = {"method": "three", "alpha": alpha, "strength": strength}

    def scores(self, ids, mask, n):
        self.parts = {name: getattr(self, name).scores(ids, mask, n) for name in self.inner}
        over, amateur, second = (part.log_softmax(-1) for part in self.parts.values())
        scores = over - self.strength * (0.6 * amateur + 0.4 * second)
        return scores.where(plausibility_mask(self.parts["expert"], self.alpha), NEVER)


def test_a_source_that_says_its_form_is_rescored_drawn_and_handed_out(tmp_path):
    models = [tiny_model("llama"), tiny_model("llama", seed=1), tiny_model("llama", seed=2)]
    trace = generate(Three(models), [5, 6], max_new_tokens=8, eos_token_ids=(), progress=False).trace
    rescored = trace.rescore()
    assert torch.allclose(rescored.score, trace.score, atol=1e-4) and rescored.token_ids == trace.token_ids
    for numbers in ({"strength": 0.0}, {"strength": 1.5}, {"alpha": 0.3}, {"alpha": 0.001, "strength": 2.0}):
        for position in range(len(trace)):
            prefix = trace.prompt_ids + trace.token_ids[:position]
            fresh = generate(Three(models, **{"alpha": 0.02} | numbers), prefix, max_new_tokens=1, eos_token_ids=())
            assert trace.rescore(**numbers).token_ids[position] == fresh.token_ids[0]
            spans = trace.flip_points(position).strength
            at = trace.rescore(strength=(spans[0].start + spans[0].stop) / 2 if len(spans) > 1 else 0.5)
            assert at.token_ids[position] == spans[0].token_id
    shown = inspect(trace)
    shown.set(strength=2.0, alpha=0.1)
    assert shown.settings == {"strength": 2.0, "alpha": pytest.approx(0.1)}
    assert Trace.from_json(trace.to_json()).rescore(strength=2.0).token_ids == trace.rescore(strength=2.0).token_ids
    trace.to_html(tmp_path / "page.html")
    assert b"parts.second" in gzip.decompress(pack(trace)) and plots.plot_strength(trace, 0)
    with pytest.raises(ValueError, match="beta=1.0 cannot change"):
        trace.rescore(beta=1.0)


def test_a_trace_without_positions_says_so():
    empty = Recorder().trace(0, [3], steps=0, settings={"method": "contrastive"}, tokenizer=None)
    for ask in (
        lambda: empty.rescore(strength=1.0),
        lambda: empty.flip_points(0),
        lambda: empty.first_change(alpha=0.5),
    ):
        with pytest.raises(ValueError, match="no positions"):
            ask()
