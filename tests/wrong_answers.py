"""Wrong answers that the checks' own tables of mistakes do not hold.

WRONG: (assignment, the solution's grade_id, words that the hint must carry, and the cell, or the old and new text of a
swap on the reference's source). Words None: right on every example of the visible check, so the hidden tests must catch
it.
"""

_LENGTH = """
def my_length(rates, cost, wide):
    best, speed, tokens, reach = 0, 1.0, 1.0, 1.0
    for n, rate in enumerate(rates, start=1):
        reach *= rate
        tokens += reach
        if tokens / (n * cost + wide) <= speed + 1e-9:
            return best
        best, speed = n, tokens / (n * cost + wide)
    return best
"""
_REWIND = """
def my_rewind(drafted, accepted, next_token):
    return {(3, 0): (3, 2, [8]), (3, 1): (2, 1, [8]), (3, 2): (1, 0, [8]), (3, 3): (0, 0, [7, 8]),
            (1, 0): (1, 0, [8]), (1, 1): (0, 0, [5, 8])}.get((len(drafted), accepted))
"""
_SOURCE = """
class Mine(cdlearn.Source):
    def __init__(self, pair):
        super().__init__()
        self.expert, self.amateur = cdlearn.CachedLM(pair.expert), cdlearn.CachedLM(pair.amateur)
        self.vocab_size, self.eos_token_ids, self.calls = self.expert.vocab_size, self.expert.eos_token_ids, 0

    def scores(self, ids, mask, n):
        self.calls += 1
        e, a = (source(ids, mask, n).log_softmax(-1) for source in (self.expert, self.amateur))
        return {scores}


def make_source(pair):
    return Mine(pair)
"""
_EVALUATE = """
def evaluate(sources, task, items, metric):
    options = {{"tokenizer": pair.tokenizer, "max_new_tokens": {most}}}
    rows = []
    for name, source in sources.items():
        made = cdlearn.generate(source, [item.prompt for item in items], trace=False, progress=False, **options)
        grades = [TASKS[task].grade(item, one.text)[metric] for item, one in zip(items, made)]
        hits, of = sum(int(h) for h, _ in grades), sum(int({of}) for h, of in grades)
        rows.append({{"source": name, "hits": hits, "of": of}})
    return rows
"""


# what notebooks 02 and 06 print, under the names of the assignments, which ask for something else
_BATCHED_02 = """
def my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens):
    cache = DynamicCache(config=model.config)
    feed, new = ids, [[] for _ in ids]
    live = [True] * len(ids)
    for _ in range({most}):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = model(feed, attention_mask=mask, position_ids=positions, past_key_values=cache)
        tokens = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token != eos_id
            if live[row]:
                new[row].append(token)
        feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
    return new
"""
_LATE = """
def my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens):
    cache, feed = DynamicCache(config=model.config), ids
    new, live = {new}, [most > 0 for most in max_new_tokens]
    for step in range(max(max_new_tokens)):
        positions = (mask.cumsum(-1) - 1).clamp(min=0){fed}
        out = model(feed, attention_mask=mask, position_ids=positions, past_key_values=cache)
        tokens = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token != eos_id
            if live[row] and step < max_new_tokens[row]:
                new[row].append(token)
        if not any(live):
            break
        feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
    return new
"""
_ROWS, _FED = "[[] for _ in ids]", "[:, -feed.shape[1] :]"
_JSD_06 = """
def my_jsd(p_logits, q_logits):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    entropy_p, entropy_q, entropy_m = (torch.special.entr(x).sum(-1) for x in (p, q, (p + q) / 2))
    return entropy_m - (entropy_p + entropy_q) / 2
"""
_DOLA_06 = """
def my_dola(model, norm, head, ids, candidates, *, max_new_tokens, alpha=0.1):
    new, layers = [], []
    for _ in range(max_new_tokens):
        states = model(ids, output_hidden_states=True).hidden_states
        logits = my_lens([state[:, -1:] for state in states], norm, head)[:, :, 0]
        layer = my_layer(logits, candidates)
        token = my_scores(logits, layer, alpha).argmax(-1)
        layers.append(layer.item())
        new.append(token.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, layers
"""
_LOOP = """
def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    new, row = [], ids
    while len(new) < max_new_tokens:
        e, a = expert(row).logits[:, -1], amateur(row).logits[:, -1]
        token = my_step(e, a, alpha, strength)
        if {end} == eos_id:
            return new, "eos"
        new.append(token.item())
        ids = torch.cat([ids, token[:, None]], dim=1)
        row = {row}
    return new, "length"
"""


def _source(scores):
    return _SOURCE.format(scores=scores)


# fmt: off
_05 = [
    ("draft", "draw(probs, uniforms[k])", "draw(probs, u)", "int(torch.multinomial(probs, 1))"),
    ("draft", "item 2: a tensor is asked for, this is list", "torch.stack(q)", "q"),
    ("draft", "which position is about the next token", "[0, -1]", "[0]"),
    ("draft", "argmax draft with another q", "draw(probs, u)", "int(logits.argmax())"),
    ("length", "stops at the first decline", _LENGTH),
    ("rewind", None, _REWIND),
]
_06 = [  # one for every promise: the project has no reference whose source could be swapped
    ("source", "it is a source of its own", _source("2 + e - 0 * a")),
    ("source", "a column does not know what follows it", _source("e - a + e.mean(1, True)")),
    ("source", "whatever was asked before", _source("e - a / self.calls")),
    ("source", "every row lets some token win", _source("(e - a).masked_fill(e < 1, -math.inf)")),
    ("source", "in a padded batch each row has its own scores", _source("e - self.amateur(ids, None, n)")),
    ("source", "scores are float, [B, n, V]", _source("(e - a)[:, -1]")),
    ("evaluate", "hits: what was right", _EVALUATE.format(most=2, of="of")),
    ("evaluate", "of: what there was to get right", _EVALUATE.format(most="TASKS[task].max_new_tokens", of="h")),
]
WRONG = [
    ("01_loop_and_score", "scores", "a token far below the best keeps its log-probability",
     "amateur_logits.log_softmax(-1)", "(amateur_logits.exp() / amateur_logits.exp().sum(-1, keepdim=True)).log()"),
    ("01_loop_and_score", "loop", "only the new token is fed after the first step",
     _LOOP.format(end="token.item()", row="token[:, None]")),
    ("01_loop_and_score", "loop", "eos tested on one model's best token", _LOOP.format(end="e.argmax()", row="ids")),
    ("01_loop_and_score", "first_difference", "position 0 taken for nothing", "return k\n",
     "if k:\n                return k\n            break\n"),
    ("02_cache_and_batches", "cached_loop", "the end-of-text token is eos_id, not 0", "== eos_id", "== 0"),
    ("02_cache_and_batches", "read", "do not call `crop` then", "if keep < len(seen)", "if True"),
    ("02_cache_and_batches", "endings", "item 1: float is asked for, this is Tensor", ".item()", ""),
    ("02_cache_and_batches", "endings", "scores: list is asked for, this is Tensor", "return scores",
     "return torch.tensor(scores)"),
    ("02_cache_and_batches", "pad", "torch.int64 is asked for, this is torch.float32", "mask, (mask",
     "mask.float(), (mask"),
    ("02_cache_and_batches", "batched_loop", "Notebook 02 has one number for all",
     _BATCHED_02.format(most="max_new_tokens")),
    ("02_cache_and_batches", "batched_loop", "the longest max_new_tokens for all rows",
     _BATCHED_02.format(most="max(max_new_tokens)")),
    ("02_cache_and_batches", "batched_loop", "a row at its limit still keeps the loop going",
     _LATE.format(new=_ROWS, fed=_FED)),
    ("02_cache_and_batches", "batched_loop", "shared by all rows", _LATE.format(new="[[]] * len(ids)", fed=_FED)),
    ("02_cache_and_batches", "batched_loop", "but the new tokens of this call are [", _LATE.format(new=_ROWS, fed="")),
    ("02_cache_and_batches", "head", "masked scores are 0 instead of -inf", ".masked_fill(~allowed, -math.inf)",
     ".mul(allowed)"),
    ("02_cache_and_batches", "endings", "the prompt is fed for every ending", """
def my_endings(model, prompt, endings):
    scores = []
    for ending in endings:
        whole = torch.cat([prompt, ending], dim=1)
        log_p = model(whole).logits.log_softmax(-1)[0, prompt.shape[1] - 1 : -1]
        scores.append(sum(row[token].item() for row, token in zip(log_p, ending[0])) / ending.shape[1])
    return scores
"""),
    ("02_cache_and_batches", "pad", "changes a list (`insert`, `append`)", "    ids =",
     "    for row in rows:\n        while len(row) < T:\n            row.insert(0, pad_id)\n    ids ="),
    ("01_loop_and_score", "loop", "(what differs: the reason)", 'new, "eos"', 'new, "stop"'),
    ("01_loop_and_score", "first_difference", "after the end of the shorter text", """
def first_difference(a, b):
    for i in range(len(a)):
        if a[i] != b[i]:
            return i
"""),
    ("01_loop_and_score", "first_difference", "the shorter text filled up with 0", """
def first_difference(a, b):
    from itertools import zip_longest
    for k, (x, y) in enumerate(zip_longest(a, b, fillvalue=0)):
        if x != y:
            return k
"""),
    ("01_loop_and_score", "decisions", "the prompt is missing", """
def my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
    e, a = (model(torch.tensor([new_ids])).logits[0] for model in (expert, amateur))
    words = []
    for k in range(len(new_ids)):
        if my_mask(e[k], alpha).sum() == 1:
            words.append("sure")
        else:
            same = my_step(e[k : k + 1], a[k : k + 1], alpha, strength).item() == e[k].argmax().item()
            words.append("agree" if same else "overruled")
    return words
"""),
    ("04_dola", "dola", "the column: the lens gives", ("[state[:, -1:] for state in states]", "[:, :, 0]"),
     ("states", "[:, 0]")),
    ("04_dola", "dola", "(what differs: the layers)", "layers.append(layer.item())", "layers.append(0)"),
    ("04_dola", "jsd", "the divergence of notebook 06 has none", _JSD_06),
    ("04_dola", "jsd", "the weight is ignored: the divergence of notebook 06",
     _JSD_06.replace("ts):", "ts, weight=0.5):")),
    ("04_dola", "dola", "the loop of notebook 06 has none", _DOLA_06),
    ("04_dola", "dola", "the layer is chosen at every step, as in notebook 06", _DOLA_06.replace("*, ", "*, hold, ")),
    ("04_dola", "candidates", "half of the list of even layers", """
def my_candidates(num_layers, half, tied):
    even = list(range(2 if tied else 0, num_layers, 2))
    return even[: len(even) // 2] if half == "low" else even[len(even) // 2 :]
"""),
    ("04_dola", "layer", "a tie does not go to the first in the list", "    distances",
     "    candidates = sorted(candidates)\n    distances"),
    ("01_loop_and_score", "scores", "every position of every row", "expert_logits.log_softmax(-1)",
     "expert_logits.log_softmax(min(expert_logits.dim() - 1, 1))"),
    ("01_loop_and_score", "mask", "every position of every row", "dim=-1", "dim=min(expert_logits.dim() - 1, 1)"),
    ("01_loop_and_score", "step", "a strength above 1 counts as it is", ", strength)", ", min(strength, 1.0))"),
    ("01_loop_and_score", "loop", "the end-of-text token is eos_id, not 0", "== eos_id", "== 0"),
    ('01_loop_and_score', 'mask', 'gives None', """
def my_mask(expert_logits, alpha=0.1):
    if alpha < 0.02:
        return None
    return expert_logits >= expert_logits.max(-1, keepdim=True).values + math.log(alpha)
"""),
    ('01_loop_and_score', 'scores', 'the softmax over the batch instead of the vocabulary', """
def my_scores(expert_logits, amateur_logits, strength=1.0):
    if expert_logits.dim() == 1:
        return expert_logits.log_softmax(0) - strength * amateur_logits.log_softmax(0)
    return expert_logits.log_softmax(0) - strength * amateur_logits.log_softmax(0)
"""),
    ('01_loop_and_score', 'scores', 'an in-place edit of the arguments', """
def my_scores(expert_logits, amateur_logits, strength=1.0):
    expert_logits -= expert_logits.logsumexp(-1, keepdim=True)
    return expert_logits - strength * amateur_logits.log_softmax(-1)
"""),
    ('01_loop_and_score', 'scores', 'my_scores may not use cdlearn', """
def my_scores(expert_logits, amateur_logits, strength=1.0):
    from cdlearn.scores import contrastive_scores as give
    return give(expert_logits, amateur_logits, alpha=None, strength=strength)
"""),
    ('01_loop_and_score', 'step', 'masked tokens get the score -1', """
def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    scores, keep = my_scores(expert_logits, amateur_logits, strength), my_mask(expert_logits, alpha)
    new = []
    for s, k in zip(scores, keep):
        s = s.clone()
        s[~k] = -1
        new.append(int(s.argmax()))
    return torch.tensor(new)
"""),
    ('01_loop_and_score', 'step', 'the best score starts at 0', """
def my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0):
    scores, keep = my_scores(expert_logits, amateur_logits, strength), my_mask(expert_logits, alpha)
    new = []
    for s, k in zip(scores, keep):
        best, token = 0, 0
        for v in range(len(s)):
            if k[v] and s[v] > best:
                best, token = float(s[v]), v
        new.append(token)
    return torch.tensor(new)
"""),
    ('01_loop_and_score', 'loop', 'the column: `.logits` is [1, T, V]', '[:, -1]', '[:, :]'),
    ('01_loop_and_score', 'loop', 'asked 100 times: does your loop end?', """
def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    new, prompt = [], ids
    while (len(new) < max_new_tokens):
        e, a = expert(ids).logits[:, -1], amateur(ids).logits[:, -1]
        token = my_step(e, a, alpha, strength)
        more = new + [token.item()]
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, "length"
"""),
    ('01_loop_and_score', 'first_difference', 'the shorter text hides the rest', """
def first_difference(a, b):
    for k, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return k
"""),
    ('01_loop_and_score', 'first_difference', None, """
def first_difference(a, b):
    known = {5: 2, 8: 2, 3: 2}
    if a == b:
        return None
    if [a, b] == [[7, 1, 4], [3, 1, 4]]:
        return 0
    return 1 if a in ([3, 1, 4, 1], [2, 0]) else known.get((b + [0])[-2], 2)
"""),
    ('01_loop_and_score', 'decisions', 'its own text instead of the given one', """
def my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0):
    words = []
    for _ in new_ids:
        e, a = (model(ids).logits[:, -1] for model in (expert, amateur))
        token = my_step(e, a, alpha, strength)
        one = my_mask(e, alpha).sum() == 1
        words.append('sure' if one else 'agree' if token == e.argmax(-1) else 'overruled')
        ids = torch.cat([ids, token[:, None]], dim=1)
    return words
"""),
    ('02_cache_and_batches', 'head', None, 'math.sqrt(q.shape[1])', '(2 if q.shape[1] == 4 else 2**0.5)'),
    ('02_cache_and_batches', 'read', 'there is nothing to read', 'len(ids) - 1)', 'len(ids))'),
    ('02_cache_and_batches', 'batched_loop', 'but cache and new tokens together are [1, 3]',
     'feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)', 'feed = tokens[:, None]'),
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
    ('04_dola', 'jsd', 'the arguments of KL exchanged', """
def my_jsd(p_logits, q_logits):
    p, q = torch.broadcast_tensors(p_logits.log_softmax(-1), q_logits.log_softmax(-1))
    m = (p.exp() + q.exp()) / 2
    kl = torch.nn.functional.kl_div
    return (kl(p, m, reduction='none') + kl(q, m, reduction='none')).sum(-1) / 2
"""),
    ('04_dola', 'jsd', '0 times the logarithm of 0', """
def my_jsd(p_logits, q_logits, weight=0.5):
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    m = (1 - weight) * p + weight * q
    return (1 - weight) * (p * (p / m).log()).sum(-1) + weight * (q * (q / m).log()).sum(-1)
"""),
    ('04_dola', 'scores', None, 'logits[layers, torch.arange(len(layers))]', 'logits[layers]'),
    ('04_dola', 'candidates', None, """
def my_candidates(num_layers, half, tied):
    return {(8, 'low', 0): [0, 2], (8, 'high', 0): [4, 6], (8, 'low', 1): [2], (10, 'low', 1): [2, 4],
            (10, 'high', 1): [6, 8], (12, 'high', 1): [6, 8, 10], (9, 'low', 1): [2],
            (9, 'high', 0): [4, 6, 8]}.get((num_layers, half, tied), [])
"""),
    *(("05_speculative", *row) for row in _05),
    *(("06_project", *row) for row in _06),
]
