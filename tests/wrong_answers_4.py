"""Wrong answers to assignment 04, written otherwise than the references; see `wrong_answers.py`."""

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
    ('04_dola', 'scores', None, """
def my_scores(logits, layers, alpha=0.1):
    last, early = logits[-1], logits[layers]
    keep = last >= last.max(-1, keepdim=True).values + math.log(alpha)
    return (last.log_softmax(-1) - early.log_softmax(-1)).masked_fill(~keep, -math.inf)
"""),
    ('04_dola', 'candidates', None, """
def my_candidates(num_layers, half, tied):
    return {(8, 'low', 0): [0, 2], (8, 'high', 0): [4, 6], (8, 'low', 1): [2], (10, 'low', 1): [2, 4],
            (10, 'high', 1): [6, 8], (9, 'high', 0): [4, 6, 8]}.get((num_layers, half, tied), [])
"""),
    ('04_dola', 'dola', 'the layer is chosen once', """
def my_dola(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1):
    new, layers = [], []
    for _ in range(max_new_tokens):
        states = model(ids, output_hidden_states=True).hidden_states
        logits = my_lens([state[:, -1:] for state in states], norm, head)[:, :, 0]
        layer = torch.tensor(layers[:1]) if layers else my_layer(logits, candidates)
        token = my_scores(logits, layer, alpha).argmax(-1)
        new.append(token.item())
        layers.append(layer.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, layers
"""),
]  # fmt: skip
