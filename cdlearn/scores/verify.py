"""Speculative sampling's formulas: which drafted tokens are accepted, and what is drawn after them."""

import torch
from torch import Tensor

from cdlearn.checks import check_logits, check_number, check_probs, check_shapes, check_tensor, check_word


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row, by the inverse of the cumulative distribution; [..., V], uniforms in [0, 1): [...] int."""
    probs, uniforms = check_logits(probs, "probs"), check_tensor(uniforms, "uniforms", "[...]")
    if probs.dim() > 1:
        check_shapes(uniforms, probs[..., 0], "uniforms", "the rows of probs")
    cumulative = probs.double().cumsum(dim=-1)  # (..., V); not quite 1 at the end, so the draw is scaled to it
    total = cumulative[..., -1:]
    points = uniforms.to(probs.device, torch.float64)[..., None] * total
    points = torch.minimum(points, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, points, right=True)[..., 0]


def accept_probability(p: Tensor, q: Tensor, *, lenience: float = 1.0) -> Tensor:
    """The chance to keep a drafted token: `min(1, p / q)`.

    p, q: probabilities of the same tokens under the target and under the distribution they were drawn from, any shape.
    lenience: in (0, 1]; below 1 it multiplies q, so that more is accepted and the output is no longer the target's
    (arXiv 2211.17192, appendix A.5). Where q is 0 nothing can have been drawn: 1 if p is above 0, else 0.
    Raises TypeError or ValueError naming the argument. arXiv 2302.01318, algorithm 2; 2211.17192, section 2.3.
    """
    p, q = check_probs(p, q)
    lenience = check_number(lenience, "lenience", high=1.0, open_low=True)
    p, q = p.double(), q.double() * lenience
    return torch.where(q > 0, (p / q.clamp(min=torch.finfo(q.dtype).tiny)).clamp(max=1.0), (p > 0).double())


def residual(p: Tensor, q: Tensor) -> Tensor:
    """What to draw from after a rejection: `max(p - q, 0)`, normalised. p, q: [..., V] float, each row sums to 1.

    Where nothing is left (p equals q up to rounding, so a rejection cannot happen) it is p itself. Returns [..., V]
    float64. Raises TypeError or ValueError naming the argument. arXiv 2302.01318, eq. 2 and theorem 1.
    """
    p, q = check_probs(p, q)
    rest = (p.double() - q.double()).clamp(min=0)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp(min=torch.finfo(rest.dtype).tiny), p.double())


def verify_draft(
    p: Tensor, q: Tensor, draft_tokens: Tensor, uniforms: Tensor, *, lenience: float = 1.0, target_weight: float = 1.0,
    rule: str = "token",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Speculative sampling's verification: how many drafted tokens are accepted, and the token that follows.

    p: [..., gamma + 1, V], the target's distribution at every drafted position and after the last. q: [..., gamma, V],
    those that the drafted tokens were drawn from. draft_tokens: [..., gamma] int. uniforms: [..., gamma + 1] in [0, 1):
    one for every test, the last for the token that follows. Vocabularies padded differently are aligned; the padding
    has probability 0. Returns accepted [...] int, 0 to gamma, and token [...] int: drawn from the residual after a
    rejection, from p after the last position otherwise (the bonus token). The output is distributed as p, whatever q.
    rule: "token" tests one token after the other and stops at the first that fails (arXiv 2302.01318, algorithm 2);
    "block" accepts the longest part of the draft that passes a test on the ratio of whole texts: as exact, and never
    fewer tokens on average (2403.10444, algorithm 2). lenience (see `accept_probability`; rule "token" only) and
    target_weight below 1 accept more and are NOT exact: with weight w the drafted positions are checked against
    `w p + (1 - w) q`, and a token is accepted with probability `1 - w TV(p, q)` (2604.07622).
    Raises TypeError or ValueError naming the argument.
    """
    return verified(p, q, draft_tokens, uniforms, lenience=lenience, target_weight=target_weight, rule=rule)[:2]


def check_rule(rule: str, lenience: float, target_weight: float) -> tuple[float, float]:
    """How drafts are verified, see `verify_draft`: the two numbers."""
    check_word(rule, "rule", ("token", "block"))
    lenience = check_number(lenience, "lenience", high=1.0, open_low=True)
    if rule == "block" and lenience < 1:
        raise ValueError(f"lenience is {lenience} with rule='block': it is known for rule='token' only.")
    return lenience, check_number(target_weight, "target_weight", high=1.0)


def verified(
    p: Tensor, q: Tensor, draft_tokens: Tensor, uniforms: Tensor, *, lenience: float, target_weight: float, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What `verify_draft` returns, and the chances [..., gamma] that the uniforms were held against."""
    gamma = check_tensor(draft_tokens, "draft_tokens", "[..., gamma]", ids=True).shape[-1]
    p, q = check_logits(p, "p"), check_tensor(q, "q", "[..., gamma, V]")
    check_shapes(draft_tokens, q[..., 0], "draft_tokens", "the rows of q")
    check_shapes(check_tensor(uniforms, "uniforms", "[..., gamma + 1]"), p[..., 0], "uniforms", "the rows of p")
    check_shapes(uniforms[..., 1:], draft_tokens, "uniforms, one of them left out,", "draft_tokens")
    lenience, target_weight = check_rule(rule, lenience, target_weight)
    vocab = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(probs, (0, vocab - probs.shape[-1])) for probs in (p, q))
    draft_tokens, uniforms = draft_tokens.to(p.device), uniforms.to(p.device, torch.float64)
    if gamma == 0:
        return draft_tokens.long().sum(dim=-1), draw(p[..., 0, :], uniforms[..., 0]), uniforms[..., 1:]
    if target_weight < 1:
        p = torch.cat([torch.lerp(q.to(p.dtype), p[..., :-1, :], target_weight), p[..., -1:, :]], dim=-2)
    chosen = draft_tokens[..., None]
    chosen_p, chosen_q = p[..., :-1, :].gather(-1, chosen), q.gather(-1, chosen)
    if rule == "block":
        check_probs(p[..., :-1, :], q)
        chances, joint = _block_chances(p, q, (chosen_p.double() / chosen_q)[..., 0])
        passed = (uniforms[..., :-1] < chances) * torch.arange(1, gamma + 1, device=p.device)
        accepted = passed.amax(dim=-1)  # (...): the longest part, whatever became of shorter ones
    else:
        chances = accept_probability(chosen_p, chosen_q, lenience=lenience)[..., 0]
        accepted, joint = (uniforms[..., :-1] < chances).long().cumprod(dim=-1).sum(dim=-1), torch.ones_like(chances)
    at = accepted[..., None, None]
    stopped_p = p.take_along_dim(at, dim=-2)[..., 0, :]  # (..., V)
    at = at.clamp(max=gamma - 1)
    stopped_q = q.take_along_dim(at, dim=-2)[..., 0, :]
    left = residual(joint.take_along_dim(at[..., 0], dim=-1) * stopped_p, stopped_q)
    left = torch.where((accepted < gamma)[..., None], left, stopped_p.double())
    return accepted, draw(left, uniforms[..., -1]), chances


def _block_chances(p: Tensor, q: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Block verification, arXiv 2403.10444: the chance of each length 1 to gamma, and the joint ratio before it.

    ratios: [..., gamma], p / q of the drafted tokens. The joint ratio starts at 1 and is `min(1, joint * ratio)` after
    each token: the chance that a draft is kept at least so far.
    """
    joint = [torch.ones_like(ratios[..., 0])]
    for ratio in ratios.nan_to_num(posinf=1.0).unbind(dim=-1):  # 0 / 0: a token that neither can draw
        joint.append((joint[-1] * ratio).clamp(max=1.0))
    whole, joint = joint[-1][..., None], torch.stack(joint[:-1], dim=-1)  # (..., 1), (..., gamma)
    later = joint[..., 1:]
    rest = (later[..., None] * p[..., 1:-1, :] - q[..., 1:, :]).clamp(min=0).sum(dim=-1)  # what a residual would hold
    chances = torch.where(rest + 1 > later, rest / (rest + 1 - later).clamp(min=1e-300), 1.0)
    return torch.cat([chances, whole], dim=-1), joint
