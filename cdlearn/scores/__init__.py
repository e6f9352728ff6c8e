"""The formulas: pure functions on logits. No models, no state, and no tensor given by a caller is ever changed.

Logits are `[..., V]`: any leading dimensions, the vocabulary last. Half precision is computed in float32. `-inf` is a
logit like any other (a token that cannot be had); NaN and +inf are errors here, so they never travel onwards.
check=False leaves out that look at the numbers, for which a GPU must wait: then the caller looks at the result.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdlearn.checks import (
    check_alpha,
    check_contrast,
    check_count,
    check_finite,
    check_list,
    check_logits,
    check_mask,
    check_number,
    check_sampling,
    check_tensor,
    check_two,
    check_word,
    row_max,
)
from cdlearn.scores.verify import accept_probability, draw, residual, verify_draft  # noqa: F401

NEVER = float("-inf")
FLOOR = -1e5  # the least log-probability of an amateur: a token it rules out must not become +inf or NaN in the score


def plausibility_mask(expert_logits: Tensor, alpha: float | None) -> Tensor:
    """The tokens an expert finds plausible: `p_E(v) >= alpha * max p_E`.

    expert_logits: [..., V] float. alpha: a ratio of probabilities; 1 keeps only the best token, 0 (or None) every token
    that is not -inf. Returns [..., V] bool; ties are kept, so at least one token always is.
    Raises ValueError for alpha outside [0, 1] and for rows with NaN, +inf, or nothing but -inf.
    Contrastive decoding, arXiv 2210.15097, eq. 2. The normaliser cancels, so raw logits do and nothing is sorted.
    """
    expert_logits = check_logits(expert_logits, "expert_logits")
    return _keep(expert_logits, row_max(expert_logits, "expert_logits"), check_alpha(alpha), top_k=0)


def contrastive_scores(
    expert_logits: Tensor, amateur_logits: Tensor, *, alpha: float | None = 0.1, strength: float = 1.0,
    amateur_temperature: float = 1.0, top_k: int = 0, check: bool = True,
) -> Tensor:  # fmt: skip
    """Contrastive decoding: `log p_E - strength * log softmax(s_A / amateur_temperature)` where plausible, else -inf.

    expert_logits, amateur_logits: [..., V] float, the same shape. strength: 0 is the expert, 1 the paper.
    top_k: also drop what is not among the expert's k most probable tokens (0: off). Returns [..., V] float, in nats.
    Raises TypeError or ValueError naming the argument. arXiv 2210.15097, eq. 3 with the mask of eq. 2.
    """
    expert, amateur = check_two(expert_logits, amateur_logits, "expert_logits", "amateur_logits")
    alpha, top_k, strength, tau = check_contrast(alpha, top_k, strength, None, amateur_temperature).values()
    keep = _keep(expert, row_max(expert, "expert_logits", check), alpha, top_k)
    if check or tau != 1:  # the best logit is subtracted first: a tiny temperature cannot overflow
        amateur_best = row_max(amateur, "amateur_logits", check)
        amateur = amateur if tau == 1 else (amateur - amateur_best) / max(tau, torch.finfo(amateur.dtype).tiny)
    amateur_logp = torch.log_softmax(amateur, dim=-1).clamp(min=FLOOR)
    return torch.where(keep, torch.sub(torch.log_softmax(expert, dim=-1), amateur_logp, alpha=strength), NEVER)


def contrastive_logits(
    expert_logits: Tensor, amateur_logits: Tensor, *, alpha: float | None = 0.1, beta: float = 0.5, top_k: int = 0,
    check: bool = True,
) -> Tensor:  # fmt: skip
    """Contrastive decoding for reasoning: `(1 + beta) * s_E - beta * s_A` where plausible, else -inf.

    Shapes, mask, top_k and errors as in `contrastive_scores`; beta: 0 is the expert, 0.5 the paper. Returns logits.
    Greedy choices equal those of `contrastive_scores` with `strength = beta / (1 + beta)`; as a distribution it is
    that one at temperature `1 / (1 + beta)`. arXiv 2309.09117, section 2.
    """
    expert, amateur = check_two(expert_logits, amateur_logits, "expert_logits", "amateur_logits")
    alpha, top_k, beta = check_contrast(alpha, top_k, beta=check_number(beta, "beta")).values()
    keep = _keep(expert, row_max(expert, "expert_logits", check), alpha, top_k)
    floored = torch.maximum(amateur, row_max(amateur, "amateur_logits", check) + FLOOR)
    return torch.where(keep, torch.sub((1 + beta) * expert, floored, alpha=beta), NEVER)


def mixed_scores(
    logits: Sequence[Tensor], weights: Sequence[float], *, alpha: float | None = None, check: bool = True
) -> Tensor:
    """A weighted sum of log-probabilities, `sum_k w_k * log p_k`: guidance, DExperts, proxy tuning.

    logits: tensors [..., V] float of one shape; weights: as many numbers. alpha: the plausibility mask of the FIRST
    (None: no mask). A token that a source with a positive weight rules out (-inf) stays out. Returns [..., V] float in
    nats; as a distribution it equals the weighted sum of raw logits, since the normalisers are row constants.
    Raises TypeError or ValueError naming the argument. arXiv 2306.17806, eq. 4; 2105.03023, eq. 2.
    """
    logits, weights = check_list(logits, "logits", "tensors"), check_list(weights, "weights", "numbers")
    if len(logits) != len(weights) or not logits:
        raise ValueError(f"logits holds {len(logits)} tensors and weights {len(weights)} numbers: pass one for each.")
    weights = [check_number(weight, f"weights[{k}]", low=-1e6, high=1e6) for k, weight in enumerate(weights)]
    first, alpha = check_logits(logits[0], "logits[0]"), check_alpha(alpha)
    keep = None if alpha is None else _keep(first, row_max(first, "logits[0]", check), alpha, top_k=0)
    total = torch.zeros_like(first)
    for k, (weight, part) in enumerate(zip(weights, logits)):
        first, part = check_two(first, part, "logits[0]", f"logits[{k}]")
        row_max(part, f"logits[{k}]", check)
        total = torch.add(total, torch.log_softmax(part, dim=-1).clamp(min=FLOOR), alpha=weight)
        if weight > 0:
            total = total.masked_fill(part == NEVER, NEVER)
    return total if keep is None else total.where(keep, NEVER)


def js_divergence(p_logits: Tensor, q_logits: Tensor, *, convention: str = "textbook", check: bool = True) -> Tensor:
    """Jensen-Shannon divergence of two next-token distributions: `(KL(p || m) + KL(q || m)) / 2`, `m = (p + q) / 2`.

    p_logits, q_logits: [..., V] float; leading dimensions broadcast. Returns [...] in nats, between 0 and ln 2.
    convention="reference": what DoLa's official code computes, `(KL(m || p) + KL(m || q)) / 2 / V`.
    Raises TypeError or ValueError naming the argument. DoLa, arXiv 2309.03883, eq. 2.
    """
    check_word(convention, "convention", ("textbook", "reference"))
    p_logits, q_logits = check_logits(p_logits, "p_logits"), check_logits(q_logits, "q_logits")
    p_rows, q_rows = p_logits.shape[-2::-1], q_logits.shape[-2::-1]
    if p_logits.shape[-1] != q_logits.shape[-1] or any(p != q and 1 not in (p, q) for p, q in zip(p_rows, q_rows)):
        shapes = f"p_logits has shape {tuple(p_logits.shape)} and q_logits {tuple(q_logits.shape)}"
        raise ValueError(f"{shapes}: trim both to the tokens they share; only leading dimensions broadcast.")
    check_finite(check, p_logits=p_logits, q_logits=q_logits)
    p = torch.softmax(p_logits, dim=-1)
    if convention == "reference":  # the floor keeps it finite where one of the two rules a token out
        m = (p + torch.softmax(q_logits, dim=-1)).div_(2)
        log_p, log_q = (torch.log_softmax(x, dim=-1).clamp_(min=FLOOR) for x in (p_logits, q_logits))
        return m.clamp(min=torch.finfo(m.dtype).tiny).log_().sub_((log_p + log_q).div_(2)).mul_(m).mean(dim=-1)
    # entropy of the mean minus mean entropy, one by one where several meet one row: a CPU's cache does not hold all
    alone = q_logits.dim() > 1 and p.shape[-2:-1] == (1,)
    several = (torch.softmax(q, dim=-1) for q in (q_logits.split(1, dim=-2) if alone else [q_logits]))
    rest = [_entropy((p + q).div_(2)) - _entropy(q) / 2 for q in several]
    return ((torch.cat(rest, dim=-1) if alone else rest[0]) - _entropy(p) / 2).clamp(min=0)  # rounding: -1e-9


def _entropy(p: Tensor) -> Tensor:
    """Entropy of distributions [..., V] in nats; a third of the time of `torch.special.entr` on a CPU."""
    return -p.clamp(min=torch.finfo(p.dtype).tiny).log_().mul_(p).sum(dim=-1)


def dola_scores(
    final_logits: Tensor, premature_logits: Tensor, *, alpha: float | None = 0.1, check: bool = True
) -> Tensor:
    """DoLa's contrast of a model with its own premature layer: `log p_final - log p_premature` where plausible.

    final_logits, premature_logits: [..., V] float, the same shape. Returns [..., V] float in nats, -inf outside the
    mask. Errors as in `contrastive_scores`, which this is with strength 1. DoLa, arXiv 2309.03883, eq. 3 and 4.
    """
    both = check_two(final_logits, premature_logits, "final_logits", "premature_logits")
    check_finite(check, final_logits=both[0], premature_logits=both[1])
    return contrastive_scores(*both, alpha=alpha, check=False)


def sled_scores(
    final_logits: Tensor, early_logits: Tensor, *, evolution_rate: float = 2.0, evolution_scale: int = 10,
    check: bool = True,
) -> Tensor:  # fmt: skip
    """SLED: the last layer's best logits moved towards where the earlier layers were heading, else -inf.

    final_logits: [..., V] float. early_logits: [..., L, V], those of the same model's earlier layers.
    evolution_scale: k, how many of the last layer's best tokens may win (V at most). evolution_rate: how far their
    logits move: `s - rate * (softmax(s) - latent)`, see `sled_latent`; 0 is greedy. Returns [..., V] float, logits.
    Raises TypeError or ValueError naming the argument. SLED, arXiv 2411.02433, algorithm 1 with one step.
    """
    rate = check_number(evolution_rate, "evolution_rate", high=1e6)
    top, votes = sled_latent(final_logits, early_logits, evolution_scale=evolution_scale, check=check)
    return sled_step(check_logits(final_logits, "final_logits"), top, votes, rate)


def sled_step(final: Tensor, top: Tensor, votes: Tensor, rate: float) -> Tensor:
    """The step of `sled_scores`, where the votes are known already: see `sled_latent`."""
    moved = final.gather(-1, top) - rate * (torch.softmax(final, dim=-1).gather(-1, top) - votes.sum(dim=-2))
    return torch.full_like(final, NEVER).scatter(-1, top, moved)


def sled_latent(
    final_logits: Tensor, early_logits: Tensor, *, evolution_scale: int = 10, check: bool = True
) -> tuple[Tensor, Tensor]:
    """What SLED reads out of the earlier layers: the last layer's best tokens [..., k], and votes [..., L, k] for them.

    Layer n votes for token i by how well the way to the last layer, `s_final - s_n`, agrees with the step from its own
    distribution to certainty of i: `max(cos(s_n - s_final, softmax(s_n) - onehot(i)), 0) ** 2`. The votes of all
    layers sum to 1 (to 0 where none agrees with any); summed over layers they are the latent distribution.
    Shapes and errors as in `sled_scores`. arXiv 2411.02433, where that step is the gradient of a KL divergence.
    """
    final, early = check_logits(final_logits, "final_logits"), check_logits(early_logits, "early_logits")
    k = min(check_count(evolution_scale, "evolution_scale"), final.shape[-1])
    if early.dim() != final.dim() + 1 or early.shape[:-2] + early.shape[-1:] != final.shape:
        shapes = f"early_logits has shape {tuple(early.shape)} and final_logits {tuple(final.shape)}"
        raise ValueError(f"{shapes}: pass [..., L, V] and [..., V].")
    check_finite(check, final_logits=final, early_logits=early)
    top = final.topk(k).indices  # (..., k)
    best = top[..., None, :].expand(*early.shape[:-1], k)
    way = (early - final[..., None, :]).nan_to_num(0.0, 0.0, 0.0)  # a token that a layer rules out says nothing
    p = torch.softmax(early, dim=-1)  # (..., L, V)
    # the one-hot vectors are never made: <p - e_i, way> = <p, way> - way_i, and |p - e_i|^2 = |p|^2 - 2 p_i + 1
    along = (p * way).sum(dim=-1, keepdim=True) - way.gather(-1, best)
    length = (p.square().sum(dim=-1, keepdim=True) - 2 * p.gather(-1, best) + 1).clamp(min=0).sqrt()
    size = length * way.norm(dim=-1, keepdim=True)
    votes = torch.where(size > 0, along / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0).clamp(min=0).square()
    total = votes.sum(dim=(-2, -1), keepdim=True)
    return top, torch.where(total > 0, votes / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


def penalize_repetition(scores: Tensor, token_ids: Tensor, *, penalty: float, mask: Tensor | None = None) -> Tensor:
    """Make tokens already in the row less likely: positive scores are divided by `penalty`, negative ones multiplied.

    scores: [B, V] float. token_ids: [B, T] int, prompt and output. mask: [B, T], 0 for padding that does not count.
    penalty: 1e-6 to 1e6; 1 changes nothing. Returns [B, V]. CTRL, arXiv 1909.05858, section 4.1, with the sign rule
    that transformers and DoLa's code use.
    """
    scores = check_logits(scores, "scores")
    penalty = check_number(penalty, "penalty", low=1e-6, high=1e6)
    token_ids = check_tensor(token_ids, "token_ids", "[B, T]", ids=True)
    if scores.dim() != 2 or token_ids.dim() != 2 or len(scores) != len(token_ids):
        shapes = f"scores has shape {tuple(scores.shape)} and token_ids {tuple(token_ids.shape)}"
        raise ValueError(f"{shapes}: pass [B, V] and [B, T] with the same B.")
    vocab = scores.shape[-1]
    token_ids = token_ids.to(scores.device, torch.long)
    # everything that does not count falls into one spare column, cut off below
    counts = (token_ids >= 0) & (token_ids < vocab)
    if mask is not None:
        counts &= check_mask(mask, "mask", token_ids, "token_ids").to(scores.device)
    seen = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
    return penalize_seen(scores, seen.scatter(1, token_ids.where(counts, vocab), True)[:, :vocab], penalty)


def penalize_seen(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """The rule of `penalize_repetition`, where it is known which tokens count: seen is bool, of the scores' shape."""
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def sampling_probs(
    scores: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
    top_n_sigma: float = 0.0, check: bool = True,
) -> Tensor:  # fmt: skip
    """The distribution a sampler draws from: top-n-sigma, temperature, then top-k, then top-p and min-p, normalised.

    scores: [..., V] float, -inf for tokens that cannot be drawn. temperature: 0 puts everything on the best token.
    top_k: 0 is off. top_p: in (0, 1], 1 is off; the smallest set of best tokens whose probability reaches top_p.
    min_p: in [0, 1], 0 is off; keeps what is at least min_p times as likely as the best token. top_n_sigma: 0 is off;
    keeps scores within that many standard deviations (of the row's scores above -inf) of the best, so that no
    temperature changes which tokens are kept. Ties at every cut are kept. Returns [..., V] float that sums to 1.
    Raises TypeError or ValueError naming the argument. Nucleus sampling: arXiv 1904.09751, eq. 3; min-p: 2407.01082,
    section 3; top-n-sigma: 2411.07641.
    """
    scores = check_logits(scores, "scores")
    temperature, top_k, top_p, min_p, sigmas = check_sampling(temperature, top_k, top_p, min_p, top_n_sigma)
    best = row_max(scores, "scores", check)
    if temperature == 0:
        return torch.zeros_like(scores).scatter(-1, scores.argmax(dim=-1, keepdim=True), 1.0)
    # subtracting the best first: a tiny temperature then drives the others to -inf, never the best to +inf
    scores = scores - best
    if sigmas:
        scores = scores.masked_fill(scores < -sigmas * _deviation(scores), NEVER)
    scores = scores / max(temperature, torch.finfo(scores.dtype).tiny)
    if 0 < top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k).values[..., -1:], NEVER)
    probs = torch.softmax(scores, dim=-1)
    if top_p < 1:
        probs = probs.masked_fill(probs < _nucleus_cut(probs, top_p, top_k), 0.0)
    if min_p > 0:  # the best score is 0 now
        probs = probs.masked_fill(scores < math.log(min_p), 0.0)
    return probs if top_p == 1 and min_p == 0 else probs / probs.sum(dim=-1, keepdim=True)


def _deviation(scores: Tensor) -> Tensor:
    """The standard deviation of each row's numbers above -inf: [..., V] -> [..., 1]."""
    there = scores > NEVER
    count = there.sum(dim=-1, keepdim=True)
    mean = scores.where(there, 0.0).sum(dim=-1, keepdim=True) / count
    return ((scores - mean).where(there, 0.0).square().sum(dim=-1, keepdim=True) / count).sqrt()


def _nucleus_cut(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """The smallest probability inside the nucleus: [..., V] -> [..., 1]."""
    size = probs.shape[-1]
    k = min(top_k or 64, size)  # sort only what the nucleus needs: the k that are left, or 64, 512, ... until enough
    while True:
        top = probs.topk(k).values  # (..., k), best first
        before = top.cumsum(dim=-1) - top  # probability already covered before each token
        if k == size or bool((before[..., -1] >= top_p).all()):
            break
        k = min(8 * k, size)
    return top.gather(-1, (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1) - 1)  # a top_p may round to 0


def _keep(expert: Tensor, best: Tensor, alpha: float | None, top_k: int) -> Tensor:
    """The kept set of every contrastive variant: [..., V] bool."""
    keep = expert > NEVER if alpha is None else expert >= best + math.log(alpha)
    if 0 < top_k < expert.shape[-1]:
        keep = keep & (expert >= expert.topk(top_k).values[..., -1:])
    return keep
