"""Mistakes planted into assignment 01: (the solution's grade_id, the name the hint must carry, the cell)."""

ASSIGNMENT = "01_loop_and_score"

_LOOP = """
def my_loop(expert, amateur, ids, *, eos_id, max_new_tokens, alpha=0.1, strength=1.0):
    new, prompt = [], ids
    for _ in range({limit}):
        e, a = expert({expert}).logits[:, {column}], amateur({amateur}).logits[:, {column}]
        token = my_step(e, a, alpha, strength)
        {append}
        ids = torch.cat([ids, token[:, None]], dim=1)
    return new, "length"
"""
_STOP = """if token.item() == eos_id:
            return new, "eos"
        new.append(token.item())"""


def _loop(limit="max_new_tokens", expert="ids", amateur="ids", column="-1", append=_STOP):
    return _LOOP.format(limit=limit, expert=expert, amateur=amateur, column=column, append=append)


def _function(head, *lines):
    return "\n".join([f"def {head}:", *("    " + line for line in lines)])


_SCORES = "my_scores(expert_logits, amateur_logits, strength=1.0)"
_MASK = "my_mask(expert_logits, alpha=0.1)"
_STEP = "my_step(expert_logits, amateur_logits, alpha=0.1, strength=1.0)"
_FIRST = "first_difference(a, b)"
_DECISIONS = "my_decisions(expert, amateur, ids, new_ids, alpha=0.1, strength=1.0)"
_WALK = (
    "whole = torch.cat([ids, torch.tensor([new_ids])], dim=1)",
    "rows = slice(ids.shape[1] - 1, -1)",
    "e, a = (model(whole).logits[0, rows] for model in (expert, amateur))",
    "same = my_step(e, a, alpha, strength) == e.argmax(-1)",
    "words = [('agree' if s else 'overruled') for s in same.tolist()]",
    "sure = (my_mask(e, alpha).sum(-1) == 1).tolist()",
    "return ['sure' if one else word for one, word in zip(sure, words)]",
)


def _walk(old, new):
    return _function(_DECISIONS, *(line.replace(old, new) for line in _WALK))


def _rows(*lines):
    head = (
        "scores, keep = my_scores(expert_logits, amateur_logits, strength), my_mask(expert_logits, alpha)",
        "new = []",
    )
    return _function(
        _STEP, *head, "for s, k in zip(scores, keep):", *("    " + line for line in lines), "return torch.tensor(new)"
    )


def _masked(out="~my_mask(expert_logits, alpha)", first="pass"):
    scores = "scores = my_scores(expert_logits, amateur_logits, strength)"
    return _function(_STEP, first, scores, f"return scores.masked_fill({out}, -math.inf).argmax(-1)")


PLANTED = [
    (  # right on every visible case: the hidden test meets it and must say more than an AttributeError
        "mask",
        "gives None",
        _function(
            _MASK,
            "if alpha < 0.02:",
            "    return None",
            "return expert_logits >= expert_logits.max(-1, keepdim=True).values + math.log(alpha)",
        ),
    ),
    (
        "scores",
        "probabilities where log-probabilities belong",
        _function(_SCORES, "return expert_logits.softmax(-1) - strength * amateur_logits.softmax(-1)"),
    ),
    (
        "scores",
        "raw logits where log-probabilities belong",
        _function(_SCORES, "return expert_logits - strength * amateur_logits"),
    ),
    (
        "scores",
        "the strength inside the softmax, like a temperature",
        _function(_SCORES, "return expert_logits.log_softmax(-1) - (strength * amateur_logits).log_softmax(-1)"),
    ),
    (
        "scores",
        "the softmax over the batch instead of the vocabulary",
        _function(
            _SCORES,
            "if expert_logits.dim() == 1:",
            "    return expert_logits.log_softmax(0) - strength * amateur_logits.log_softmax(0)",
            "return expert_logits.log_softmax(0) - strength * amateur_logits.log_softmax(0)",
        ),
    ),
    (
        "scores",
        "an in-place edit of the arguments",
        _function(
            _SCORES,
            "expert_logits -= expert_logits.logsumexp(-1, keepdim=True)",
            "return expert_logits - strength * amateur_logits.log_softmax(-1)",
        ),
    ),
    (
        "scores",
        "my_scores may not use cdlearn",
        _function(
            _SCORES,
            "from cdlearn.scores import contrastive_scores as give",
            "return give(expert_logits, amateur_logits, alpha=None, strength=strength)",
        ),
    ),
    (
        "mask",
        "a line above the best token: log alpha subtracted",
        _function(_MASK, "return expert_logits >= expert_logits.max(-1, keepdim=True).values - math.log(alpha)"),
    ),
    ("mask", "alpha as a probability", _function(_MASK, "return expert_logits.softmax(-1) >= alpha")),
    (
        "mask",
        "alpha subtracted without its logarithm",
        _function(_MASK, "return expert_logits >= expert_logits.max(-1, keepdim=True).values - alpha"),
    ),
    (
        "mask",
        "more than instead of at least",
        _function(_MASK, "p = expert_logits.softmax(-1)", "return p > alpha * p.max(-1, keepdim=True).values"),
    ),
    (
        "mask",
        "one best token for the whole batch",
        _function(_MASK, "return expert_logits >= expert_logits.max() + math.log(alpha)"),
    ),
    (
        "step",
        "the mask on the amateur",
        _function(
            _STEP,
            "scores = my_scores(expert_logits, amateur_logits, strength)",
            "return scores.masked_fill(~my_mask(amateur_logits, alpha), -math.inf).argmax(-1)",
        ),
    ),
    (
        "step",
        "masked tokens get the score 0",
        _function(
            _STEP,
            "scores = my_scores(expert_logits, amateur_logits, strength)",
            "return (scores * my_mask(expert_logits, alpha)).argmax(-1)",
        ),
    ),
    (
        "step",
        "the mask is missing",
        _function(_STEP, "return my_scores(expert_logits, amateur_logits, strength).argmax(-1)"),
    ),
    ("step", "a place among the kept tokens, not in the row", _rows("new.append(int(s[k].argmax()))")),
    ("step", "masked tokens get the score -1", _rows("s = s.clone()", "s[~k] = -1", "new.append(int(s.argmax()))")),
    (
        "step",
        "the best score starts at 0",
        _rows(
            "best, token = 0, 0",
            "for v in range(len(s)):",
            "    if k[v] and s[v] > best:",
            "        best, token = float(s[v]), v",
            "new.append(token)",
        ),
    ),
    ("step", "the mask upside down", _masked("my_mask(expert_logits, alpha)")),
    ("step", "the mask is missing, or reads the scores", _masked("~my_mask(scores, alpha)")),
    (
        "step",
        "expert and amateur exchanged",
        _masked(first="expert_logits, amateur_logits = amateur_logits, expert_logits"),
    ),
    ("loop", "expert and amateur exchanged", _loop().replace("my_step(e, a", "my_step(a, e")),
    ("loop", "the new token is not added to what the models read", _loop().replace("ids = torch", "more = torch")),
    ("loop", "the column: `.logits` is [1, T, V]", _loop(column=":")),
    (
        "loop",
        "asked 100 times: does your loop end?",
        _loop(append="more = new + [token.item()]").replace("for _ in range(max_new", "while (len(new) < max_new"),
    ),
    ("loop", "the end-of-text token in the result", _loop(append=_STOP.replace("new, ", "new + [eos_id], "))),
    ("loop", "no stop at the end of the text", _loop(append="new.append(token.item())")),
    ("loop", "only the last token is fed", _loop(expert="ids[:, -1:]", amateur="ids[:, -1:]")),
    ("loop", "the amateur never reads the new tokens", _loop(amateur="prompt")),
    ("loop", "the prompt counted as new tokens", _loop(limit="max_new_tokens - ids.shape[1]")),
    ("loop", "one token too many", _loop(limit="max_new_tokens + 1")),
    ("loop", "logits of the first position", _loop(column="0")),
    (
        "first_difference",
        "the shorter text hides the rest",
        _function(_FIRST, "for k, (x, y) in enumerate(zip(a, b)):", "    if x != y:", "        return k"),
    ),
    (
        "first_difference",
        None,  # knows only the visible examples
        _function(_FIRST, "known = {5: 2, 8: 2, 3: 2}", "if a == b:", "    return None",
                  "if [a, b] == [[7, 1, 4], [3, 1, 4]]:", "    return 0",
                  "return 1 if a == [3, 1, 4, 1] else known.get((b + [0])[-2], 2)"),
    ),
    ("decisions", "one position too late", _walk("ids.shape[1] - 1, -1", "ids.shape[1], None")),
    ("decisions", "one position too early", _walk("ids.shape[1] - 1, -1", "ids.shape[1] - 2, -2")),
    ("decisions", "compared with the amateur's best", _walk("e.argmax", "a.argmax")),
    (
        "decisions",
        "its own text instead of the given one",
        _function(
            _DECISIONS,
            "words = []",
            "for _ in new_ids:",
            "    e, a = (model(ids).logits[:, -1] for model in (expert, amateur))",
            "    token = my_step(e, a, alpha, strength)",
            "    one = my_mask(e, alpha).sum() == 1",
            "    words.append('sure' if one else 'agree' if token == e.argmax(-1) else 'overruled')",
            "    ids = torch.cat([ids, token[:, None]], dim=1)",
            "return words",
        ),
    ),
    ("decisions", "nobody is sure", _walk("'sure' if one else word", "word")),
]  # fmt: skip
