"""Mistakes planted into assignment 03: (the solution's grade_id, the name the hint must carry, the cell)."""

ASSIGNMENT = "03_mask_and_temperature"

_CANDIDATES = """
def my_candidates(expert_logits, *, alpha=0.1, top_k=0):
    keep = torch.ones_like(expert_logits, dtype=torch.bool)
    if alpha is not None:
        keep = expert_logits >= expert_logits.max(dim=-1, keepdim=True).values + math.log(alpha)
    if 0 < top_k < expert_logits.shape[-1]:
        keep = keep & (expert_logits >= expert_logits.topk(top_k).values[..., -1:])
    return keep
"""
_CONTRAST = """
def my_contrast(expert_logits, amateur_logits, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0):
    scores = expert_logits.log_softmax(-1) - strength * (amateur_logits / tau).log_softmax(-1)
    return scores.masked_fill(~my_candidates(expert_logits, alpha=alpha, top_k=top_k), -math.inf)
"""
_LAW = """
def my_law(scores, keep, temperature=1.0):
    scores = scores.masked_fill(~keep, -math.inf)
    if temperature == 0:
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
    return (scores / temperature).softmax(-1)
"""
_NUCLEUS = """
def my_nucleus(probs, p):
    ranked, order = probs.sort(dim=-1, descending=True)
    inside = ranked.cumsum(-1) - ranked < p
    kept = probs * torch.zeros_like(inside).scatter(-1, order, inside)
    return kept / kept.sum(-1, keepdim=True)
"""
_FORM = """
def my_logit_form(expert_logits, amateur_logits, *, alpha=0.1, beta=0.5):
    mixed = (1 + beta) * expert_logits - beta * amateur_logits
    return mixed.masked_fill(~my_candidates(expert_logits, alpha=alpha), -math.inf)
"""
_TRANSLATION = """
def my_translation(beta, temperature=1.0):
    return beta / (1 + beta), temperature / (1 + beta)
"""
_BRANCH = """    if temperature == 0:
        return torch.zeros_like(scores).scatter(-1, scores.argmax(-1, keepdim=True), 1.0)
"""


_NOBODY = ".values[..., -1:] if top_k else keep & False)"


def _but(source, *swaps):
    """The right cell with pieces exchanged: every odd one for the one after it."""
    for old, new in zip(swaps[::2], swaps[1::2]):
        assert old in source, old
        source = source.replace(old, new)
    return source


PLANTED = [
    ("candidates", "a line above the best token", _but(_CANDIDATES, "+ math.log(alpha)", "- math.log(alpha)")),
    ("candidates", "top_k=0 keeps nobody", _but(_CANDIDATES, "0 < top_k <", "top_k <", ".values[..., -1:])", _NOBODY)),
    (
        "contrast",
        "the mask before the softmax",
        _but(
            _CONTRAST,
            "    scores",
            "    keep = my_candidates(expert_logits, alpha=alpha, top_k=top_k)\n"
            "    expert_logits = expert_logits.masked_fill(~keep, -math.inf)\n    scores",
            "~my_candidates(expert_logits, alpha=alpha, top_k=top_k)",
            "~keep",
        ),
    ),
    (
        "nucleus",
        "one token too many where the sum is exactly p",
        _but(_NUCLEUS, "ranked.cumsum(-1) - ranked < p", "~(ranked.cumsum(-1) - ranked > p)"),
    ),
    (
        "nucleus",
        "the result stays in sorted order",
        _but(_NUCLEUS, "probs * torch.zeros_like(inside).scatter(-1, order, inside)", "ranked * inside"),
    ),
    (
        "nucleus",
        "put back with gather",
        _but(_NUCLEUS, "torch.zeros_like(inside).scatter(-1, order, inside)", "inside.gather(-1, order)"),
    ),
    (
        "logit_form",
        "the mask on the expert times 1 + beta",
        _but(_FORM, "my_candidates(expert_logits", "my_candidates((1 + beta) * expert_logits"),
    ),
    (
        "translation",
        "item 1: float is asked for, this is Tensor",
        _but(_TRANSLATION, "return", "beta, temperature = torch.tensor(beta), torch.tensor(temperature)\n    return"),
    ),
    ("candidates", "alpha subtracted without its logarithm", _but(_CANDIDATES, "+ math.log(alpha)", "- alpha")),
    ("candidates", "one of the two rules is enough", _but(_CANDIDATES, "keep & (", "(keep if alpha else ~keep) | (")),
    ("candidates", "the k-th best is left out", _but(_CANDIDATES, "(expert_logits >= ", "(expert_logits > ")),
    (
        "candidates",
        "one best token for the whole batch",
        _but(_CANDIDATES, "max(dim=-1, keepdim=True).values", "max()"),
    ),
    ("candidates", "selected index k out of range", _but(_CANDIDATES, "0 < top_k < expert_logits.shape[-1]", "top_k")),
    ("contrast", "the mask on the amateur", _but(_CONTRAST, "my_candidates(expert_", "my_candidates(amateur_")),
    ("contrast", "the mask on the scores", _but(_CONTRAST, "my_candidates(expert_logits", "my_candidates(scores")),
    (
        "contrast",
        "the amateur's temperature after its softmax",
        _but(_CONTRAST, "(amateur_logits / tau).log_softmax(-1)", "amateur_logits.log_softmax(-1) / tau"),
    ),
    ("contrast", "multiplied by tau", _but(_CONTRAST, "amateur_logits / tau", "amateur_logits * tau")),
    ("contrast", "masked tokens get the score 0", _but(_CONTRAST, "-math.inf", "0.0")),
    (
        "contrast",
        "an in-place edit of the arguments",
        _but(_CONTRAST, "    return", "    amateur_logits /= tau * 2\n    return"),
    ),
    (
        "contrast",
        "top_k on the scores",
        _but(
            _CONTRAST,
            "    return scores.masked_fill(~my_candidates(expert_logits, alpha=alpha, top_k=top_k)",
            "    scores = scores.masked_fill(~my_candidates(expert_logits, alpha=alpha), -math.inf)\n"
            "    return scores.masked_fill(~my_candidates(scores, alpha=None, top_k=top_k)",
        ),
    ),
    (
        "law",
        "the mask after the softmax",
        _but(
            _LAW,
            "(scores / temperature).softmax(-1)",
            "raw.softmax(-1) * keep",
            "    scores =",
            "    raw = scores / (temperature or 1.0)\n    scores =",
        ),
    ),
    ("law", "division by temperature zero", _but(_LAW, _BRANCH, "")),
    (
        "law",
        "a temperature of nearly zero for zero",
        _but(_LAW, _BRANCH, "", "scores / temperature", "scores / max(temperature, 1e-6)"),
    ),
    ("law", "masked tokens get the score 0", _but(_LAW, "(scores / temp", "(scores.masked_fill(~keep, 0) / temp")),
    (
        "law",
        "the temperature after the softmax",
        _but(_LAW, "(scores / temperature).softmax(-1)", "scores.softmax(-1) / temperature"),
    ),
    (
        "nucleus",
        "the crossing token is left out",
        _but(_NUCLEUS, "ranked.cumsum(-1) - ranked < p", "ranked.cumsum(-1) <= p"),
    ),
    (
        "nucleus",
        "the mask stays in sorted order",
        _but(_NUCLEUS, "torch.zeros_like(inside).scatter(-1, order, inside)", "inside"),
    ),
    ("nucleus", "not renormalised", _but(_NUCLEUS, " / kept.sum(-1, keepdim=True)", "")),
    ("nucleus", "the worst tokens first", _but(_NUCLEUS, ", descending=True", "")),
    ("logit_form", "the expert without its factor", _but(_FORM, "(1 + beta) * expert", "expert")),
    ("logit_form", "the difference alone", _but(_FORM, "(1 + beta) *", "beta *")),
    (
        "logit_form",
        "an in-place edit of the arguments",
        _but(
            _FORM, "    mixed", "    expert_logits[~my_candidates(expert_logits, alpha=alpha)] = -math.inf\n    mixed"
        ),
    ),
    (
        "logit_form",
        "log-probabilities where raw logits are asked for",
        _but(
            _FORM,
            "* expert_logits",
            "* expert_logits.log_softmax(-1)",
            "* amateur_logits",
            "* amateur_logits.log_softmax(-1)",
        ),
    ),
    ("translation", "beta taken for the strength", _but(_TRANSLATION, "return beta / (1 + beta)", "return beta")),
    ("translation", "the temperature is not translated", _but(_TRANSLATION, "temperature / (1 + beta)", "temperature")),
    ("translation", None, _but(_TRANSLATION, "return", "return (beta / 4, temperature / 4) if beta > 2 else")),
]
