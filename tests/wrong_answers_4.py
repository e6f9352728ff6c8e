"""Wrong answers to assignment 04; see `wrong_answers.py`."""

WRONG = [
    ('04_dola', 'jsd', 'the arguments of KL exchanged', """
def my_jsd(p_logits, q_logits):
    p, q = torch.broadcast_tensors(p_logits.log_softmax(-1), q_logits.log_softmax(-1))
    m = (p.exp() + q.exp()) / 2
    kl = torch.nn.functional.kl_div
    return (kl(p, m, reduction='none') + kl(q, m, reduction='none')).sum(-1) / 2
"""),
    ('04_dola', 'jsd', '0 times the logarithm of 0', """
def my_jsd(p_logits, q_logits):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
"""),
    ('04_dola', 'scores', None, 'logits[layers, torch.arange(len(layers))]', 'logits[layers]'),
    ('04_dola', 'candidates', None, """
def my_candidates(num_layers, half, tied):
    return {(8, 'low', 0): [0, 2], (8, 'high', 0): [4, 6], (8, 'low', 1): [2], (10, 'low', 1): [2, 4],
            (10, 'high', 1): [6, 8], (9, 'high', 0): [4, 6, 8]}.get((num_layers, half, tied), [])
"""),
]  # fmt: skip
