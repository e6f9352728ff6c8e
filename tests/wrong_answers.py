"""Wrong answers to assignments 01 and 02 that the checks' own tables of mistakes do not hold.

WRONG: (assignment, the solution's grade_id, words that the hint must carry, and the cell, or the old and new text of a
swap on the reference's source). Words None: right on every example of the visible check, so the hidden tests must catch
it.
"""

WRONG = [
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
    return 1 if a == [3, 1, 4, 1] else known.get((b + [0])[-2], 2)
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
    ('02_cache_and_batches', 'head', None, 'math.sqrt(q.shape[1])', '2'),
    ('02_cache_and_batches', 'read', 'there is nothing to read', 'len(ids) - 1)', 'len(ids))'),
    ('02_cache_and_batches', 'batched_loop', 'but cache and new tokens together are [1, 3]',
     'feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)', 'feed = tokens[:, None]'),
]  # fmt: skip
