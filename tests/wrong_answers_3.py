"""Wrong answers to assignment 03; see `wrong_answers.py`."""

WRONG = [
    ('03_mask_and_temperature', 'translation', 'item 1: float is asked for, this is Tensor', '    return',
     '    beta, temperature = torch.tensor(beta), torch.tensor(temperature)\n    return'),
    ('03_mask_and_temperature', 'candidates', 'selected index k out of range',
     '0 < top_k < expert_logits.shape[-1]', 'top_k'),
    ('03_mask_and_temperature', 'contrast', 'an in-place edit of the arguments', '    return',
     '    amateur_logits /= tau * 2\n    return'),
    ('03_mask_and_temperature', 'logit_form', 'an in-place edit of the arguments', '    mixed =',
     '    expert_logits[~my_candidates(expert_logits, alpha=alpha)] = -math.inf\n    mixed ='),
    ('03_mask_and_temperature', 'translation', None, 'return ',
     'return (beta / 4, temperature / 4) if beta > 2 else '),
]  # fmt: skip
