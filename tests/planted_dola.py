"""Mistakes planted into assignment 04: (the solution's grade_id, the name the hint must carry, the cell)."""

ASSIGNMENT = "04_dola"


def _function(head, *lines):
    return "\n".join([f"def {head}:", *("    " + line for line in lines)])


_LENS = "my_lens(hidden_states, norm, head)"
_JSD = "my_jsd(p_logits, q_logits)"
_CANDIDATES = "my_candidates(num_layers, half, tied)"
_LAYER = "my_layer(logits, candidates)"
_SCORES = "my_scores(logits, layers, alpha=0.1)"
_DOLA = "my_dola(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1)"

_SCORES_RIGHT = (
    "last, early = logits[-1], logits[layers, torch.arange(len(layers))]",
    "keep = last >= last.max(-1, keepdim=True).values + math.log(alpha)",
    "return (last.log_softmax(-1) - early.log_softmax(-1)).masked_fill(~keep, -math.inf)",
)
_DOLA_RIGHT = (
    "new, layers = [], []",
    "for _ in range(max_new_tokens):",
    "    states = model(ids, output_hidden_states=True).hidden_states",
    "    logits = my_lens([state[:, -1:] for state in states], norm, head)[:, :, 0]",
    "    layer = my_layer(logits, candidates)",
    "    token = my_scores(logits, layer, alpha).argmax(-1)",
    "    new.append(token.item())",
    "    layers.append(layer.item())",
    "    ids = torch.cat([ids, token[:, None]], dim=1)",
    "return new, layers",
)


def _scores(old, new):
    return _function(_SCORES, *(line.replace(old, new) for line in _SCORES_RIGHT))


def _dola(old, new):
    return _function(_DOLA, *(line.replace(old, new) for line in _DOLA_RIGHT))


PLANTED = [
    (
        "lens",
        "the final norm forgotten",
        _function(_LENS, "return torch.stack([head(state) for state in hidden_states])"),
    ),
    (
        "lens",
        "the last state normed twice",
        _function(_LENS, "return head(norm(torch.stack(list(hidden_states))))"),
    ),
    (
        "jsd",
        "raw logits where log-probabilities belong",
        _function(
            _JSD,
            "p, q = p_logits.softmax(-1), q_logits.softmax(-1)",
            "log_m = ((p + q) / 2).log()",
            "return ((p * (p_logits - log_m)).sum(-1) + (q * (q_logits - log_m)).sum(-1)) / 2",
        ),
    ),
    (
        "jsd",
        "the arguments of KL exchanged",
        _function(
            _JSD,
            "p, q = torch.broadcast_tensors(p_logits.log_softmax(-1), q_logits.log_softmax(-1))",
            "m = (p.exp() + q.exp()) / 2",
            "kl = torch.nn.functional.kl_div",
            "return (kl(p, m, reduction='none') + kl(q, m, reduction='none')).sum(-1) / 2",
        ),
    ),
    (
        "jsd",
        "bits where nats belong",
        _function(
            _JSD,
            "p, q = p_logits.softmax(-1), q_logits.softmax(-1)",
            "one, two, both = (torch.special.entr(x).sum(-1) / math.log(2) for x in (p, q, (p + q) / 2))",
            "return both - (one + two) / 2",
        ),
    ),
    (
        "jsd",
        "0 times the logarithm of 0",
        _function(
            _JSD,
            "p, q = p_logits.softmax(-1), q_logits.softmax(-1)",
            "m = (p + q) / 2",
            "return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2",
        ),
    ),
    (
        "candidates",
        "the last layer as a candidate",
        _function(
            _CANDIDATES,
            "start, stop = (2 * tied, num_layers // 2) if half == 'low' else (num_layers // 2, num_layers + 1)",
            "return [layer for layer in range(start, stop) if layer % 2 == 0]",
        ),
    ),
    (
        "layer",
        "one layer for the whole batch",
        _function(
            _LAYER,
            "far = my_jsd(logits[-1], logits[candidates]).mean(-1)",
            "return torch.full((logits.shape[1],), candidates[int(far.argmax())])",
        ),
    ),
    (
        "layer",
        "the place in the list, not the layer",
        _function(_LAYER, "return my_jsd(logits[-1], logits[candidates]).argmax(0)"),
    ),
    (
        "layer",
        "layers that are no candidates",
        _function(_LAYER, "return my_jsd(logits[-1], logits[:-1]).argmax(0)"),
    ),
    ("scores", "the mask on the premature layer", _scores("keep = last >= last.max", "keep = early >= early.max")),
    ("scores", "raw logits where log-probabilities belong", _scores(".log_softmax(-1)", "")),
    ("scores", "the layer of the first row for all rows", _scores("logits[layers, torch", "logits[layers[0], torch")),
    ("scores", None, _scores("logits[layers, torch.arange(len(layers))]", "logits[layers]")),
    (
        "dola",
        "the layer is chosen once",
        _dola("layer = my_layer", "layer = torch.tensor(layers[:1]) if layers else my_layer"),
    ),
    ("dola", "logits of the first position", _dola("state[:, -1:]", "state[:, :1]")),
    ("dola", "only the last token is fed", _dola("model(ids,", "model(ids[:, -1:],")),
    ("dola", "the final norm forgotten", _dola("norm, head)[:", "lambda state: state, head)[:")),
    ("dola", "alpha is ignored", _dola("layer, alpha)", "layer)")),
    # right on every example of the visible check: the hidden tests must catch it
    (
        "candidates",
        None,
        _function(
            _CANDIDATES,
            "return {(8, 'low', 0): [0, 2], (8, 'high', 0): [4, 6], (8, 'low', 1): [2], (10, 'low', 1): [2, 4],",
            "        (10, 'high', 1): [6, 8], (9, 'high', 0): [4, 6, 8]}.get((num_layers, half, tied), [])",
        ),
    ),
]
