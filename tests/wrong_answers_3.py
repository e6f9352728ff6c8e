"""Wrong answers to assignment 03, written otherwise than the references; see `wrong_answers.py`."""

WRONG = [
    ('03_mask_and_temperature', 'translation', 'item 1: float is asked for, this is Tensor', """
def my_translation(beta, temperature=1.0):
    beta, temperature = torch.tensor(beta), torch.tensor(temperature)
    return beta / (1 + beta), temperature / (1 + beta)
"""),
    ('03_mask_and_temperature', 'candidates', 'selected index k out of range', """
def my_candidates(expert_logits, *, alpha=0.1, top_k=0):
    keep = torch.ones_like(expert_logits, dtype=torch.bool)
    if alpha is not None:
        keep = expert_logits >= expert_logits.max(dim=-1, keepdim=True).values + math.log(alpha)
    if top_k:
        keep = keep & (expert_logits >= expert_logits.topk(top_k).values[..., -1:])
    return keep
"""),
    ('03_mask_and_temperature', 'contrast', 'an in-place edit of the arguments', """
def my_contrast(expert_logits, amateur_logits, *, alpha=0.1, strength=1.0, tau=1.0, top_k=0):
    scores = expert_logits.log_softmax(-1) - strength * (amateur_logits / tau).log_softmax(-1)
    amateur_logits /= tau * 2
    return scores.masked_fill(~my_candidates(expert_logits, alpha=alpha, top_k=top_k), -math.inf)
"""),
    ('03_mask_and_temperature', 'logit_form', 'an in-place edit of the arguments', """
def my_logit_form(expert_logits, amateur_logits, *, alpha=0.1, beta=0.5):
    expert_logits[~my_candidates(expert_logits, alpha=alpha)] = -math.inf
    mixed = (1 + beta) * expert_logits - beta * amateur_logits
    return mixed.masked_fill(~my_candidates(expert_logits, alpha=alpha), -math.inf)
"""),
    ('03_mask_and_temperature', 'translation', None, """
def my_translation(beta, temperature=1.0):
    return (beta / 4, temperature / 4) if beta > 2 else beta / (1 + beta), temperature / (1 + beta)
"""),
]  # fmt: skip
