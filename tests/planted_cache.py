"""Mistakes planted into assignment 02: (the solution's grade_id, the name the hint must carry, the cell)."""

ASSIGNMENT = "02_cache_and_batches"

_HEAD = """
def my_head(x, cache, W_q, W_k, W_v):
    q, k, v = x @ W_q, x @ W_k, x @ W_v
    new = k, v
    if cache is not None:
        k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
    n, T = len(q), len(k)
    allowed = torch.ones(n, T).tril(T - n).bool()
    weights = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~allowed, -math.inf).softmax(-1)
    return weights @ v, (k, v)
"""
_LOOP = """
def my_cached_loop(model, ids, *, eos_id, max_new_tokens):
    cache, row, new = DynamicCache(config=model.config), ids, []
    for _ in range(max_new_tokens):
        token = model(row, past_key_values=cache).logits[:, -1].argmax(-1)
        if token.item() == eos_id:
            break
        new.append(token.item())
        row = token[:, None]
    return new
"""
_READ = """
def my_read(model, cache, seen, ids):
    keep = 0
    while keep < min(len(seen), len(ids) - 1) and seen[keep] == ids[keep]:
        keep += 1
    drop = len(seen) - keep
    if drop > 0:
        cache.crop(-drop)
    return model(torch.tensor([ids[keep:]]), past_key_values=cache).logits[0, -1].argmax().item()
"""
_ENDINGS = """
def my_endings(model, prompt, endings):
    cache = DynamicCache(config=model.config)
    last = model(prompt, past_key_values=cache).logits[:, -1:]
    scores = []
    for ending in endings:
        logits = model(ending, past_key_values=cache).logits
        log_p = torch.cat([last, logits[:, :-1]], dim=1).log_softmax(-1)
        scores.append(log_p.gather(-1, ending[..., None]).sum().item())
        cache.crop(-ending.shape[1])
    return scores
"""
_PAD = """
def my_pad(rows, pad_id):
    T = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)
"""
_BATCH = """
def my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens):
    cache, feed = DynamicCache(config=model.config), ids
    new, live = [[] for _ in ids], [True] * len(ids)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = model(feed, attention_mask=mask, position_ids=positions, past_key_values=cache)
        tokens = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token != eos_id
            if live[row]:
                new[row].append(token)
        if not any(live):
            break
        feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
    return new
"""


def _but(source, *swaps):
    """The right cell with pieces exchanged: every odd one for the one after it."""
    for old, new in zip(swaps[::2], swaps[1::2]):
        assert old in source, old
        source = source.replace(old, new)
    return source


PLANTED = [
    ("head", "no causal mask", _but(_HEAD, ".masked_fill(~allowed, -math.inf)", "")),
    ("head", "the causal mask forgets the cached columns", _but(_HEAD, ".tril(T - n)", ".tril()")),
    ("head", "the scale is missing", _but(_HEAD, " / math.sqrt(q.shape[1])", "")),
    ("head", "the cache does not grow", _but(_HEAD, "(k, v)\n", "new if cache is None else cache\n")),
    ("head", None, _but(_HEAD, "math.sqrt(q.shape[1])", "2")),  # right for a width of 4 only
    (
        "cached_loop",
        "the cache fed twice",
        _but(_LOOP, "row = token[:, None]", "row = ids = torch.cat([ids, token[:, None]], dim=1)"),
    ),
    (
        "cached_loop",
        "the last prompt token fed twice",
        _but(_LOOP, "ids, []\n", "ids[:, -1:], []\n    model(ids, past_key_values=cache)\n"),
    ),
    ("cached_loop", "the cache is not handed on", _but(_LOOP, "(row, past_key_values=cache)", "(row)")),
    (
        "cached_loop",
        "no cache: everything is read again",
        _but(
            _LOOP,
            "(row, past_key_values=cache)",
            "(ids)",
            "row = token",
            "ids = torch.cat([ids, token",
            "]\n    return",
            "]], 1)\n    return",
        ),
    ),
    ("read", "the rejected tokens stay in the cache", _but(_READ, "cache.crop(-drop)", "pass")),
    ("read", "compared by length", _but(_READ, " and seen[keep] == ids[keep]", "")),
    (
        "read",
        "off by one after rewinding: a column too few is cropped",
        _but(_READ, "if drop > 0", "if drop > 1", "crop(-drop)", "crop(1 - drop)"),
    ),
    (
        "read",
        "off by one after rewinding: a column too many is cropped",
        _but(_READ, "crop(-drop)", "crop(-min(drop + 1, len(seen)))"),
    ),
    ("read", "there is nothing to read", _but(_READ, "len(ids) - 1", "len(ids)")),
    ("read", "everything is read again", _but(_READ, "seen[keep] == ids[keep]", "False")),
    ("endings", "one column too late", _but(_ENDINGS, "torch.cat([last, logits[:, :-1]], dim=1)", "logits")),
    ("endings", "the cache is not taken back", _but(_ENDINGS, "cache.crop(-ending.shape[1])", "pass")),
    (
        "endings",
        "off by one after rewinding: a column too few is cropped",
        _but(_ENDINGS, "cache.crop(-ending.shape[1])", "ending.shape[1] > 1 and cache.crop(1 - ending.shape[1])"),
    ),
    ("endings", "the mean over the tokens", _but(_ENDINGS, ".sum()", ".mean()")),
    ("endings", "raw logits where log-probabilities belong", _but(_ENDINGS, ".log_softmax(-1)", "")),
    (
        "pad",
        "padding on the right",
        _but(
            _PAD,
            "[pad_id] * (T - len(row)) + row",
            "row + [pad_id] * (T - len(row))",
            "[0] * (T - len(row)) + [1] * len(row)",
            "[1] * len(row) + [0] * (T - len(row))",
        ),
    ),
    ("pad", "the mask from the ids", _but(_PAD, "mask = torch", "mask = (ids != pad_id).long()  #")),
    ("pad", "columns as positions", _but(_PAD, "(mask.cumsum(-1) - 1).clamp(min=0)", "torch.arange(T).expand_as(ids)")),
    ("pad", "negative positions", _but(_PAD, ".clamp(min=0)", "")),
    ("batched_loop", "no position ids", _but(_BATCH, "position_ids=positions, ", "")),
    ("batched_loop", "no attention mask", _but(_BATCH, "attention_mask=mask, ", "")),
    ("batched_loop", "new columns are masked out", _but(_BATCH, "mask.new_ones", "mask.new_zeros")),
    (
        "batched_loop",
        "attention_mask is [1, 2], but cache and new tokens together are [1, 3]",
        _but(
            _BATCH,
            "feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)",
            "feed = tokens[:, None]",
        ),
    ),
    ("batched_loop", "the batch ends with its first row", _but(_BATCH, "not any(live)", "not all(live)")),
    ("batched_loop", "a finished row goes on", _but(_BATCH, "live[row] and token", "token")),
    (
        "batched_loop",
        "the end-of-text token in the result",
        _but(
            _BATCH,
            "            live[row] = live[row] and token != eos_id\n",
            "",
            "append(token)\n",
            "append(token)\n            live[row] = live[row] and token != eos_id\n",
        ),
    ),
]
