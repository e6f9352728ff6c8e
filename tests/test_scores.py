"""The algebra of the formulas, on random logits and on the ones that break naive code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, TopPLogitsWarper

from cdlearn.scores import (
    FLOOR,
    contrastive_logits,
    contrastive_scores,
    dola_scores,
    js_divergence,
    penalize_repetition,
    plausibility_mask,
    residual,
    sampling_probs,
    sled_latent,
    sled_scores,
)

INF = float("inf")
seeds = st.integers(0, 10_000)
alphas = st.floats(0.01, 1.0)
quick = settings(max_examples=40, deadline=None)


def logits(seed, *shape, scale=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def pair(seed, *shape):
    return logits(seed, *shape), logits(seed + 1, *shape)


@quick
@given(seeds, alphas)
def test_mask_is_min_p(seed, alpha):
    expert = logits(seed, 3, 50)
    probs = expert.softmax(-1)
    assert torch.equal(plausibility_mask(expert, alpha), probs >= alpha * probs.amax(-1, keepdim=True) * (1 - 1e-12))


def test_mask_keeps_ties_and_alpha_one_is_greedy():
    assert plausibility_mask(torch.tensor([2.0, 2.0, 1.0]), 1.0).tolist() == [True, True, False]
    expert, amateur = pair(0, 20, 50)
    assert torch.equal(contrastive_scores(expert, amateur, alpha=1.0).argmax(-1), expert.argmax(-1))


def test_alpha_none_keeps_all_but_impossible_tokens():
    assert plausibility_mask(torch.tensor([2.0, -50.0, -INF]), None).tolist() == [True, True, False]


def test_scores_by_hand():
    expert, amateur = torch.tensor([0.5, 0.4, 0.1]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
    scores = contrastive_scores(expert, amateur, alpha=0.5)
    assert torch.allclose(scores, torch.tensor([math.log(0.5 / 0.8), math.log(0.4 / 0.1), -INF]))
    reasoning = contrastive_logits(expert, amateur, alpha=0.5, beta=1.0)
    assert torch.allclose(reasoning, torch.tensor([2 * math.log(0.5) - math.log(0.8), math.log(0.16 / 0.1), -INF]))


@quick
@given(seeds, st.floats(0.05, 4.0), alphas)
def test_beta_form_is_strength_form_at_another_temperature(seed, beta, alpha):
    expert, amateur = pair(seed, 2, 30)
    by_beta = sampling_probs(contrastive_logits(expert, amateur, alpha=alpha, beta=beta))
    by_strength = contrastive_scores(expert, amateur, alpha=alpha, strength=beta / (1 + beta))
    assert torch.allclose(by_beta, sampling_probs(by_strength, temperature=1 / (1 + beta)), atol=1e-9)


@quick
@given(seeds, st.floats(-20, 20), st.floats(-20, 20))
def test_adding_a_constant_to_logits_changes_no_score(seed, one, other):
    expert, amateur = pair(seed, 2, 30)
    scores = contrastive_scores(expert, amateur, amateur_temperature=0.5)
    shifted = contrastive_scores(expert + one, amateur + other, amateur_temperature=0.5)
    kept = scores > -INF
    near_cut = (expert - expert.amax(-1, keepdim=True) - math.log(0.1)).abs() < 1e-9
    assert torch.allclose(scores[kept & ~near_cut], shifted[kept & ~near_cut])


@quick
@given(seeds)
def test_a_row_does_not_depend_on_its_batch(seed):
    expert, amateur = (x.float() for x in pair(seed, 4, 40))
    for function in (contrastive_scores, contrastive_logits, dola_scores, js_divergence):
        alone = torch.stack([function(e, a) for e, a in zip(expert, amateur)])
        assert torch.allclose(function(expert, amateur), alone, atol=1e-6)


def test_strength_zero_is_the_expert():
    expert, amateur = pair(3, 2, 30)
    assert torch.allclose(contrastive_scores(expert, amateur, alpha=None, strength=0), expert.log_softmax(-1))
    assert torch.allclose(contrastive_logits(expert, amateur, alpha=None, beta=0), expert)


def test_top_k_prunes_by_the_expert():
    expert, amateur = pair(4, 3, 40)
    kept = contrastive_scores(expert, amateur, alpha=None, top_k=5) > -INF
    assert torch.equal(kept, expert >= expert.topk(5).values[:, -1:])
    assert (contrastive_logits(expert, amateur, alpha=None, top_k=5) > -INF).sum(-1).tolist() == [5, 5, 5]


@pytest.mark.parametrize("function", [contrastive_scores, contrastive_logits, dola_scores])
@pytest.mark.parametrize("alpha", [0.1, None])
def test_padded_vocabulary_rows_stay_impossible(function, alpha):
    expert, amateur = pair(5, 2, 12)
    expert[:, 10:], amateur[:, 10:] = -INF, -INF
    scores = function(expert, amateur, alpha=alpha)
    assert (scores[:, 10:] == -INF).all() and not scores.isnan().any()
    assert torch.allclose(scores[:, :10], function(expert[:, :10], amateur[:, :10], alpha=alpha))


@pytest.mark.parametrize("function", [contrastive_scores, contrastive_logits])
def test_a_token_the_amateur_rules_out_scores_high_but_finite(function):
    amateur = torch.tensor([1.0, -INF, 0.0])
    scores = function(torch.tensor([1.0, 0.9, 0.8]), amateur, alpha=None)
    assert scores.isfinite().all() and int(scores.argmax()) == 1
    assert sampling_probs(scores).sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    expert, amateur = (x.to(dtype) for x in pair(6, 2, 40))
    assert contrastive_scores(expert, amateur).dtype == torch.float32
    assert torch.equal(contrastive_scores(expert, amateur), contrastive_scores(expert.float(), amateur.float()))
    assert torch.equal(plausibility_mask(expert, 0.1), plausibility_mask(expert.float(), 0.1))
    assert sampling_probs(expert).dtype == torch.float32


def test_inputs_are_never_changed():
    expert, amateur = pair(7, 2, 40)
    before = expert.clone(), amateur.clone()
    for function in (contrastive_scores, contrastive_logits, dola_scores, js_divergence):
        function(expert, amateur)
    sampling_probs(expert, temperature=0.5, top_k=5, top_p=0.5)
    penalize_repetition(expert, torch.tensor([[1, 2], [3, 3]]), penalty=1.5)
    assert torch.equal(expert, before[0]) and torch.equal(amateur, before[1])


def test_extreme_amateur_temperatures_stay_finite():
    expert, amateur = pair(8, 2, 40)
    for tau in (1e-300, 1e-3, 1e6):
        assert not contrastive_scores(expert, amateur, amateur_temperature=tau).isnan().any()


@quick
@given(seeds)
def test_js_divergence_is_symmetric_bounded_and_zero_only_for_equals(seed):
    p, q = pair(seed, 3, 25)
    divergence = js_divergence(p, q)
    assert torch.allclose(divergence, js_divergence(q, p))
    assert (divergence > 1e-6).all() and (divergence <= math.log(2) + 1e-12).all()
    assert js_divergence(p, p + 3).abs().max() < 1e-12
    m = (p.softmax(-1) + q.softmax(-1)) / 2
    textbook = [(x.softmax(-1) * (x.log_softmax(-1) - m.log())).sum(-1) for x in (p, q)]
    assert torch.allclose(divergence, sum(textbook) / 2)


def test_js_divergence_of_one_row_against_several_is_that_of_each():
    p, q = pair(9, 2, 250)
    p, q = p[:, None], torch.stack([q, q * 3, q.roll(70, -1)], 1)  # (2, 1, V), (2, 3, V)
    q[1, 1, 100:200] = -INF
    m = (p.softmax(-1) + q.softmax(-1)) / 2
    logs = p.log_softmax(-1).clamp(min=FLOOR), q.log_softmax(-1).clamp(min=FLOOR)
    textbook = sum((log.exp() * (log - m.log())).sum(-1) for log in logs) / 2
    reference = sum((m * (m.log() - log)).mean(-1) for log in logs) / 2
    assert torch.allclose(js_divergence(p, q), textbook)
    assert torch.allclose(js_divergence(p, q, convention="reference"), reference)
    assert torch.allclose(js_divergence(p.float(), q.float()), textbook.float(), atol=1e-6)


def test_js_divergence_of_disjoint_distributions_is_ln_2_and_broadcasts():
    p, q = torch.tensor([0.0, 0.0, -INF, -INF]), torch.tensor([-INF, -INF, 0.0, 0.0])
    assert js_divergence(p, q) == pytest.approx(math.log(2))
    assert js_divergence(p, torch.stack([p, q])).tolist() == pytest.approx([0, math.log(2)], abs=1e-6)


def test_dola_scores_is_the_contrast_at_strength_one():
    final, premature = pair(9, 2, 30)
    assert torch.equal(dola_scores(final, premature), contrastive_scores(final, premature, strength=1.0))


@quick
@given(seeds, st.floats(0, 5), st.integers(1, 12))
def test_sled_is_its_definition_with_every_vector_made(seed, rate, scale):
    """The official code's arithmetic: cosines over the vocabulary with a one-hot vector for every candidate."""
    final, early = logits(seed, 2, 12), logits(seed + 1, 2, 3, 12)
    scores = sled_scores(final, early, evolution_rate=rate, evolution_scale=scale)
    for row in range(2):
        best = final[row].topk(scale).indices
        latent = torch.zeros(12, dtype=torch.float64)
        for layer in early[row]:
            for token in best.tolist():
                step = layer.softmax(-1) - torch.eye(12, dtype=torch.float64)[token]
                latent[token] += torch.cosine_similarity(step, layer - final[row], dim=0).clamp(min=0) ** 2
        latent = latent / latent.sum() if latent.sum() > 0 else latent
        want = (final[row] - rate * (final[row].softmax(-1) - latent))[best]
        assert torch.allclose(scores[row, best], want, atol=1e-9)
        assert int(scores[row].isfinite().sum()) == scale
    assert torch.equal(sled_scores(final, early, evolution_rate=0).argmax(-1), final.argmax(-1))


def test_sled_by_hand_and_where_no_layer_says_anything():
    """Layers that lack a token which the last layer gained vote for it; layers equal to the last one say nothing."""
    final, early = torch.tensor([2.0, 1.9, -5.0]), torch.tensor([[2.0, -1.0, -5.0], [2.0, 0.0, -5.0]])
    top, votes = sled_latent(final, early, evolution_scale=2)
    assert top.tolist() == [0, 1] and votes.sum() == pytest.approx(1) and bool((votes[:, 1] > votes[:, 0]).all())
    assert int(sled_scores(final, early).argmax()) == 1
    same = sled_latent(final, final.expand(2, 3))[1]
    assert same.tolist() == torch.zeros(2, 3).tolist()
    assert torch.isfinite(sled_scores(final, early.index_fill(1, torch.tensor([2]), -INF))).all()


@quick
@given(seeds, st.floats(0.2, 4), st.floats(0.1, 4))
def test_top_n_sigma_keeps_what_is_near_the_best_at_every_temperature(seed, sigmas, temperature):
    scores = logits(seed, 30)
    scores[:3] = -INF  # tokens that cannot be drawn do not widen the spread
    kept = scores >= scores.max() - sigmas * scores[3:].std(correction=0)
    probs = sampling_probs(scores, temperature=temperature, top_n_sigma=sigmas)
    assert torch.equal(probs > 0, kept)
    assert torch.allclose(probs, (scores / temperature).masked_fill(~kept, -INF).softmax(-1), atol=1e-9)
    off = sampling_probs(scores, temperature=temperature, top_k=5, min_p=0.01)
    assert torch.allclose(off, sampling_probs(scores, temperature=temperature, top_k=5, min_p=0.01, top_n_sigma=1e6))


@quick
@given(seeds, st.floats(0.05, 5), st.integers(0, 30), st.floats(0.01, 1.0), st.sampled_from([0.0, 0.03, 0.4, 0.999]))
def test_sampling_probs_equals_the_sorting_textbook(seed, temperature, top_k, top_p, min_p):
    scores = logits(seed, 25)
    probs = (scores / temperature).softmax(-1)
    if top_k:
        probs = probs.where(probs >= probs.sort(descending=True).values[min(top_k, 25) - 1], 0.0)
        probs = probs / probs.sum()
    best = probs.sort(descending=True)
    before = best.values.cumsum(-1) - best.values
    if ((before - top_p).abs() < 1e-9).any():
        return  # a cut on a rounding error may fall on either side
    textbook = torch.zeros(25, dtype=torch.float64).scatter(-1, best.indices, best.values.where(before < top_p, 0.0))
    textbook = textbook.where(probs >= min_p * probs.max(), 0.0)
    mine = sampling_probs(scores, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.allclose(mine, textbook / textbook.sum(), atol=1e-9)


def test_top_p_grows_beyond_its_first_guess_row_by_row():
    flat, peaked = torch.zeros(1000), torch.zeros(1000)
    flat = flat - torch.arange(1000) * 1e-4
    peaked[7] = 20.0
    probs = sampling_probs(torch.stack([flat, peaked]), top_p=0.9)
    assert 880 < int((probs[0] > 0).sum()) < 920 and int((probs[1] > 0).sum()) == 1
    assert torch.allclose(probs.sum(-1), torch.ones(2))


def test_ties_at_a_cut_are_kept():
    assert sampling_probs(torch.tensor([1.0, 1.0, 0.0]), top_k=1).tolist() == [0.5, 0.5, 0.0]
    assert sampling_probs(torch.tensor([1.0, 1.0, -9.0]), top_p=0.3).tolist() == [0.5, 0.5, 0.0]
    assert sampling_probs(torch.tensor([1.0, 1.0, 0.9]), min_p=1).tolist() == [0.5, 0.5, 0.0]


def test_min_p_is_the_plausibility_mask_of_what_is_drawn_and_transformers_own():
    scores = pair(3, 4, 60)[0]
    for temperature in (0.5, 1.0, 2.0):
        probs = sampling_probs(scores, temperature=temperature, min_p=0.2)
        assert torch.equal(probs > 0, plausibility_mask(scores / temperature, 0.2))
        warped = MinPLogitsWarper(0.2)(None, TopPLogitsWarper(0.9)(None, scores / temperature)).softmax(-1)
        assert torch.allclose(sampling_probs(scores, temperature=temperature, top_p=0.9, min_p=0.2), warped, atol=1e-6)


def test_temperature_zero_and_tiny_are_greedy():
    scores = torch.tensor([1.0, 3.0, 2.0, -INF])
    assert sampling_probs(scores, temperature=0).tolist() == [0, 1, 0, 0]
    assert sampling_probs(scores, temperature=1e-300).tolist() == [0, 1, 0, 0]


def test_repetition_penalty_divides_positive_and_multiplies_negative():
    scores = torch.tensor([[2.0, -2.0, 3.0, -INF, 5.0]])
    assert penalize_repetition(scores, torch.tensor([[0, 1, 1, 3]]), penalty=2.0).tolist() == [[1, -4, 3, -INF, 5]]
    # padding does not count, nor do ids the scores have no room for
    masked = penalize_repetition(scores, torch.tensor([[4, 0, 99]]), penalty=2.0, mask=torch.tensor([[0, 1, 1]]))
    assert masked.tolist() == [[1, -2, 3, -INF, 5]]


ROW = torch.zeros(2, 4)


def test_the_residual_by_hand():
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.2, 0.6])
    assert torch.allclose(residual(p, q), torch.tensor([0.8, 0.2, 0.0]).double())
    assert torch.equal(residual(p, p), p.double())


BAD_CALLS = [
    (lambda: plausibility_mask([1.0], 0.1), TypeError, "expert_logits"),
    (lambda: plausibility_mask(torch.tensor([1, 2]), 0.1), TypeError, "expert_logits"),
    (lambda: plausibility_mask(torch.zeros(2, 0), 0.1), ValueError, "expert_logits"),
    (lambda: plausibility_mask(ROW, -0.1), ValueError, "alpha is -0.1"),
    (lambda: plausibility_mask(ROW, 1.5), ValueError, "alpha is 1.5"),
    (lambda: plausibility_mask(ROW, float("nan")), ValueError, "alpha"),
    (lambda: plausibility_mask(ROW, "0.1"), TypeError, "alpha"),
    (lambda: plausibility_mask(ROW, True), TypeError, "alpha"),
    (lambda: contrastive_scores(ROW, ROW[:, :3]), ValueError, "amateur_logits"),
    (lambda: contrastive_scores(ROW, ROW, strength=-1), ValueError, "strength is -1"),
    (lambda: contrastive_scores(ROW, ROW, strength=INF), ValueError, "strength"),
    (lambda: contrastive_scores(ROW, ROW, amateur_temperature=0), ValueError, "amateur_temperature is 0"),
    (lambda: contrastive_scores(ROW, ROW, top_k=-1), ValueError, "top_k is -1"),
    (lambda: contrastive_scores(ROW, ROW, top_k=1.5), TypeError, "top_k"),
    (lambda: contrastive_scores(ROW / 0, ROW), ValueError, "expert_logits holds NaN"),
    (lambda: contrastive_scores(ROW, ROW / 0), ValueError, "amateur_logits holds NaN"),
    (lambda: contrastive_scores(ROW + INF, ROW), ValueError, r"\+inf"),
    (lambda: contrastive_scores(ROW - INF, ROW), ValueError, "nothing but -inf"),
    (lambda: contrastive_logits(ROW, ROW, beta=-0.1), ValueError, "beta is -0.1"),
    (lambda: contrastive_logits(ROW, ROW / 0), ValueError, "amateur_logits holds NaN"),
    (lambda: js_divergence(ROW, ROW[:, :3]), ValueError, "q_logits"),
    (lambda: js_divergence(ROW, ROW / 0), ValueError, "q_logits holds NaN"),
    (lambda: dola_scores(ROW, ROW[:1]), ValueError, "premature_logits"),
    (lambda: dola_scores(ROW, None), TypeError, "premature_logits"),
    (lambda: sampling_probs(ROW, temperature=-1), ValueError, "temperature is -1"),
    (lambda: sampling_probs(ROW, top_p=0), ValueError, "top_p is 0"),
    (lambda: sampling_probs(ROW, top_p=1.1), ValueError, "top_p is 1.1"),
    (lambda: sampling_probs(ROW, min_p=1.1), ValueError, "min_p is 1.1"),
    (lambda: sampling_probs(ROW, min_p="a"), TypeError, "min_p is 'a'"),
    (lambda: sampling_probs(ROW, top_n_sigma=-1), ValueError, "top_n_sigma is -1"),
    (lambda: sled_scores(ROW, ROW), ValueError, "early_logits has shape"),
    (lambda: sled_scores(ROW, ROW[None], evolution_rate=-1), ValueError, "evolution_rate is -1"),
    (lambda: sled_scores(ROW, ROW[:, None], evolution_scale=0), ValueError, "evolution_scale is 0"),
    (lambda: sled_latent(ROW, ROW[:, None] / 0), ValueError, "early_logits holds NaN"),
    (lambda: sampling_probs(ROW / 0), ValueError, "scores holds NaN"),
    (lambda: penalize_repetition(ROW, torch.zeros(1, 1).long(), penalty=1.2), ValueError, "token_ids"),
    (lambda: penalize_repetition(ROW, torch.zeros(2, 1), penalty=1.2), TypeError, "token_ids"),
    (lambda: dola_scores(ROW / 0, ROW), ValueError, "final_logits holds NaN"),
    (lambda: dola_scores(ROW, ROW / 0), ValueError, "premature_logits holds NaN"),
    (lambda: js_divergence(ROW, torch.cat([ROW, ROW])), ValueError, "q_logits"),
    (lambda: penalize_repetition(ROW, torch.zeros(2, 1), penalty=0), ValueError, "penalty is 0"),
]


@pytest.mark.parametrize("call, kind, message", BAD_CALLS, ids=range(len(BAD_CALLS)))
def test_bad_input_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
