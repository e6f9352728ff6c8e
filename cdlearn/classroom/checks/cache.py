"""Checks of assignment 02: attention over cached columns, the cached loop, taking tokens back, endings, padding."""

import math
from typing import Any

import torch
from torch import tensor
from transformers import DynamicCache

from cdlearn.classroom.checks.core import RAW, ROUNDED, Case, Part
from cdlearn.classroom.checks.models import TOY, TOY_WORDS, PositionLM, filled


def my_head(x, cache, W_q, W_k, W_v):
    q, k, v = x @ W_q, x @ W_k, x @ W_v
    if cache is not None:
        k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
    n, T = len(q), len(k)
    allowed = torch.ones(n, T).tril(T - n).bool()
    weights = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~allowed, -math.inf).softmax(-1)
    return weights @ v, (k, v)


def my_cached_loop(model, ids, *, eos_id, max_new_tokens):
    cache, row, new = DynamicCache(config=model.config), ids, []
    for _ in range(max_new_tokens):
        token = model(row, past_key_values=cache).logits[:, -1].argmax(-1)
        if token.item() == eos_id:
            break
        new.append(token.item())
        row = token[:, None]
    return new


def my_read(model, cache, seen, ids):
    keep = 0
    while keep < min(len(seen), len(ids) - 1) and seen[keep] == ids[keep]:
        keep += 1
    if keep < len(seen):
        cache.crop(keep - len(seen))
    return model(torch.tensor([ids[keep:]]), past_key_values=cache).logits[0, -1].argmax().item()


def my_endings(model, prompt, endings):
    cache = DynamicCache(config=model.config)
    last = model(prompt, past_key_values=cache).logits[:, -1:]  # (1, 1, V)
    scores = []
    for ending in endings:
        logits = model(ending, past_key_values=cache).logits  # (1, n, V)
        log_p = torch.cat([last, logits[:, :-1]], dim=1).log_softmax(-1)
        scores.append(log_p.gather(-1, ending[..., None]).mean().item())
        cache.crop(-ending.shape[1])
    return scores


def my_pad(rows, pad_id):
    T = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens):
    cache, feed = DynamicCache(config=model.config), ids
    new, live = [[] for _ in ids], [most > 0 for most in max_new_tokens]
    while any(live):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -feed.shape[1] :]
        out = model(feed, attention_mask=mask, position_ids=positions, past_key_values=cache)
        tokens = out.logits[:, -1].argmax(-1)
        for row, token in enumerate(tokens.tolist()):
            live[row] = live[row] and token != eos_id
            if live[row]:
                new[row].append(token)
                live[row] = len(new[row]) < max_new_tokens[row]
        feed, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
    return new


# The weights let a token look at itself and the one before: both get the score 1 before the softmax, all others 0.
EYE, SHIFT = torch.eye(4), torch.eye(4) + torch.diag(torch.ones(3), 1)
WHOLE = tensor([[10.0, 0, 0, 0], [5, 5, 0, 0], [1.5536, 4.2232, 4.2232, 0]])


def _head(says: str, old: int, new: int) -> Case:
    example = (
        f"x = rows {[*range(old, old + new)]} of eye(4), cache = {f'k, v of rows {[*range(old)]}' if old else None}. "
        "W_q = 2 eye(4), W_k = eye(4) with ones right of the diagonal, W_v = 10 eye(4): out = 10 x attention weights"
    )
    held, grown = ((SHIFT[:n].clone(), 10 * EYE[:n]) for n in (old, old + new))
    args = (EYE[old : old + new], held if old else None, 2 * EYE, SHIFT, 10 * EYE)
    return Case(says, args, (WHOLE[old : old + new], grown), {}, example)


def _loop(says: str, ids: list[int], most: int, new: list[int], fed: list[list[int]], eos_id: int = 0) -> Case:
    example = f"{TOY_WORDS}my_cached_loop(model, [{ids}], eos_id={eos_id}, max_new_tokens={most})"
    options = {"eos_id": eos_id, "max_new_tokens": most}
    return Case(says, (TOY, tensor([ids])), {"new": new, "fed": [ids, *fed]}, options, example)


def _read(says: str, seen: list[int], ids: list[int], token: int, keep: int) -> Case:
    example = f"{TOY_WORDS}The cache holds {seen}. my_read(model, cache, {seen}, {ids})"
    return Case(says, (TOY, filled(seen), seen, ids), {"token": token, "fed": [ids[keep:]], "cache": ids}, {}, example)


def _read_note(value: Any, args: tuple) -> dict:
    model, cache = args[:2]
    columns = cache.layers[0].keys[0, 0, :, 0].long().tolist() if cache.get_seq_length() else []
    return {"token": value, "fed": [call[0] for call in model.fed], "cache": columns}


def _endings(says: str, endings: list[list[int]], scores: list[float], model: PositionLM = TOY) -> Case:
    enough = 2 + sum(len(ending) for ending in endings)
    log_p = "-0.391 for it, -1.391 for the next token, -4.391" if model is TOY else "0 for it, -200"
    words = f"{TOY_WORDS}log p is {log_p} for all others. my_endings(model, [3, 5], {endings})"
    args = (model, tensor([[3, 5]]), [tensor([ending]) for ending in endings])
    return Case(says, args, {"scores": scores, "positions fed": f"at most {enough}"}, {}, words)


def _endings_note(value: Any, args: tuple) -> dict:
    model, prompt, endings = args
    enough, fed = prompt.shape[1] + sum(e.shape[1] for e in endings), sum(len(call[0]) for call in model.fed)
    return {"scores": value, "positions fed": f"at most {enough}" if fed <= enough else f"{fed}"}


def _batch(says: str, ids: list, most: list[int], new: list, calls: int) -> Case:
    mask = [[1, 1], [0, 1]][: len(ids)]
    expected = {"new": new, "columns of each call": [2, 1, 1][:calls]}
    example = f"{TOY_WORDS}my_batched_loop(model, {ids}, {mask}, eos_id=2, max_new_tokens={most})"
    return Case(says, (TOY, tensor(ids), tensor(mask)), expected, {"eos_id": 2, "max_new_tokens": most}, example)


def _batch_note(value: Any, args: tuple) -> dict:
    return {"new": value, "columns of each call": [len(call[0]) for call in args[0].fed]}


# fmt: off
SCALE = "what q @ k.T is divided by: a number that depends on the width alone"
check_head = Part(1, my_head, [
    _head("without a cache a position sees itself and those before it, none after it", 0, 2),
    _head("without a cache, three positions", 0, 3),
    Case("a masked column has no weight, whatever its score", (EYE[:2], None, 2 * EYE, SHIFT.T, 10 * EYE),
         (tensor([[10.0, 0, 0, 0], [2.6894, 7.3106, 0, 0]]), (SHIFT.T[:2], 10 * EYE[:2])), {},
         "x = rows [0, 1] of eye(4), cache = None. W_q = 2 eye(4), W_k = eye(4) with ones left of the diagonal, W_v = "
         "10 eye(4): out = 10 x attention weights"),
    _head("one new position asks with its query and sees all cached columns and itself", 2, 1),
    _head("of two new positions, the first sees the cache and itself, not the second", 1, 2),
    Case("the scale belongs to the width, here 2", (EYE[:2, :2], None, 2 * EYE[:2, :2], EYE[:2, :2], 10 * EYE[:2, :2]),
         (tensor([[10.0, 0], [1.9557, 8.0443]]), (EYE[:2, :2], 10 * EYE[:2, :2]))),
    ("no causal mask", ".tril(T - n)", "", "which columns a position may see when several are new"),
    ("masked scores are 0 instead of -inf", "-math.inf", "0.0", "what the softmax makes of a score of 0"),
    ("the causal mask forgets the cached columns", "T - n", "", "which column a new row is when S are cached"),
    ("the scale is missing", "/ math.sqrt(q.shape[1])", "", SCALE),
    ("divided by 2, whatever the width", "math.sqrt(q.shape[1])", "2", SCALE),
    ("the cache does not grow", "@ v, (k", "@ v, cache or (k", "what you return: the next call needs the new rows too"),
    ("the cache is not read", "cache is not None", "False", "whose keys and values the new query meets"),
])

CACHE, NONE = "past_key_values=cache", "past_key_values=None"
check_cached_loop = Part(2, my_cached_loop, [
    _loop("the first call feeds the prompt; its last logits choose the first token", [3, 5], 1, [5], []),
    _loop("the second call feeds the new token alone: the cache holds the prompt", [3, 5], 2, [5, 4], [[5]]),
    _loop("every column is fed once, so N tokens need T + N - 1", [3, 5], 3, [5, 4, 4], [[5], [4]]),
    _loop("the end-of-text token ends the loop and stays out", [3, 5], 9, [5, 4, 4], [[5], [4], [4]]),
    _loop("the end-of-text token is eos_id, not 0", [3, 5], 9, [5], [[5]], eos_id=4),
    _loop("a prompt of one token", [2], 9, [2, 6], [[2], [6]]),
    _loop("an end-of-text token at once gives no tokens", [6, 1], 9, [], []),
    ("the cache fed twice", "row = token[:, None]", "row = ids = torch.cat([ids, token[:, None]], 1)",
     "which columns the cache holds, and what the call feeds"),
    ("the last prompt token fed twice", "for _", f"model(ids, {CACHE})\n    row = ids[:, -1:]\n    for _",
     "what the cache holds after the prompt"),
    ("no cache: everything is read again", ("row = token[:, None]", CACHE),
     ("row = ids = torch.cat([ids, token[:, None]], 1)", NONE), "which columns `fed` repeats"),
    ("the cache is not handed on", CACHE, NONE, "past_key_values: the same object in every call"),
    ("logits of the first position", "[:, -1]", "[:, 0]", "the column of [1, n, V]: which one has read it all"),
    ("the end-of-text token in the result", "break", "return [*new, eos_id]", "append or test: which first"),
    ("no stop at the end of the text", "token.item() == eos_id", "False", "what happens when the token is eos_id"),
    ("one pass too many", ("break", "\n    return new"), ("return new", f"\n    model(row, {CACHE})\n    return new"),
     "what is asked about the last new token"),
], note=lambda value, args: {"new": value, "fed": [call[0] for call in args[0].fed]})

CROP, COUNT = "    if keep < len(seen):\n        cache.crop(keep - len(seen))\n", " and seen[keep] == ids[keep]"
BEYOND = "how many columns the cache holds after crop: every later position is shifted by one"
STAY, LACKS = "how many columns could have stayed", "what is fed: only what the cache lacks"
check_read = Part(3, my_read, [
    _read("what the cache has not seen is fed, and nothing else", [3, 5], [3, 5, 5], 4, 2),
    _read("columns that are not in ids any more are taken out first", [3, 5, 7, 7], [3, 5, 5], 4, 2),
    _read("contents decide, not lengths", [3, 5, 7], [3, 5, 5], 4, 2),
    _read("a column counts only if all before it agree", [3, 1, 5], [3, 5, 5], 4, 1),
    _read("without a new column the last one is fed again, for its logits", [3, 5, 5], [3, 5], 5, 1),
    _read("the same row once more", [3, 5], [3, 5], 5, 1),
    _read("nothing agrees: everything goes", [1, 2], [3, 5], 5, 0),
    ("the rejected tokens stay in the cache", CROP, "", "what the cache holds before you feed"),
    ("compared by length", COUNT, "", "which columns agree: compare the tokens, one by one"),
    ("tokens that agree after a difference are kept", ("while keep", "keep += 1"),
     ("if True or keep", "keep = min(sum(a == b for a, b in zip(seen, ids)), len(ids) - 1)"),
     "what a column depends on"),
    ("off by one after rewinding: a column too few is cropped", ("keep < len(seen)", "keep -"),
     ("keep + 1 < len(seen)", "keep + 1 -"), BEYOND),
    ("off by one after rewinding: a column too many is cropped", "keep -", "max(keep - 1, 0) -", BEYOND),
    ("the cache fed twice", (CROP, "ids[keep:]"), ("", "ids"), LACKS),
    ("the whole row fed after what agrees", "ids[keep:]", "ids", LACKS),
    ("everything is read again", "keep += 1", "break", STAY),
    ("a column that agrees is fed again", CROP, f"    keep = max(0, keep - 1)\n{CROP}", STAY),
], raised={"crop(0)": "when there is nothing to take out: do not call `crop` then"}, note=_read_note)

PROMPT = "    last = model(prompt, past_key_values=cache).logits[:, -1:]  # (1, 1, V)\n"
FOR, TAKEN = "    for ending in endings:\n", "cache.crop(-ending.shape[1])"
SHIFTED = "how many columns the cache holds when the next ending is fed"
check_endings = Part(4, my_endings, [
    _endings("an ending's score is the mean over its tokens, the first one included", [[5, 5]], [-0.890536]),
    _endings("the prompt's last logits give the first token's log-probability", [[6]], [-1.390536]),
    _endings("every ending follows the prompt, not the ending before it", [[5], [6]], [-0.390536, -1.390536]),
    _endings("the cache is taken back to the prompt after every ending", [[5, 4], [3, 1], [5, 5, 5]],
             [-0.390536, -4.390536, -2.057203]),
    _endings("a token far below the best keeps its log-probability", [[6], [5, 3]], [-200.0, -100.0],
             PositionLM(8, {0: 200.0})),
    ("one column too late", "torch.cat([last, logits[:, :-1]], dim=1)", "logits", "what each column predicts"),
    ("the first token is left out", "None])", "None])[:, 1:]", "what each column predicts"),
    ("the cache is not taken back", TAKEN, "pass", "what the cache holds when the next ending is fed"),
    ("off by one after rewinding: a column too few is cropped", TAKEN,
     "if ending.shape[1] > 1:\n            cache.crop(1 - ending.shape[1])", SHIFTED),
    ("off by one after rewinding: a column too many is cropped", TAKEN,
     "cache.crop(-min(ending.shape[1] + 1, cache.get_seq_length()))", SHIFTED),
    ("the prompt is fed for every ending", FOR, f"{FOR}        cache = DynamicCache(config=model.config)\n"
     "        model(prompt, past_key_values=cache)\n", "which columns all endings share"),
    ("the prompt is fed for every ending", (PROMPT, "(ending, past_key_values=cache).logits", "[last, ", TAKEN),
     ("", "(torch.cat([prompt, ending], 1)).logits[:, prompt.shape[1] - 1 :]", "[", "pass"), "what all endings share"),
    ("the exponential of the mean", "mean()", "mean().exp()", "what a score is: a logarithm"),
    ("probabilities added up", "log_softmax", "softmax", "what is added: logarithms"),
    ("the sum over the tokens, as in notebook 02", "mean", "sum", "what a score is when an ending has more tokens"),
    ("the prompt's first column", "[:, -1:]", "[:, :1]", "the column of the prompt that has read it all"),
    RAW, ROUNDED,
], note=_endings_note)

PLACES, FILL = "(mask.cumsum(-1) - 1).clamp(min=0)", "[pad_id] * (T - len(row))"
REAL = "[0] * (T - len(row)) + [1] * len(row)"
check_pad = Part(5, my_pad, [
    Case("one row needs no padding", ([[5, 6]], 7), (tensor([[5, 6]]), tensor([[1, 1]]), tensor([[0, 1]]))),
    Case("short rows are filled up on the left; position 0 is the first real token", ([[5, 6, 4], [3, 2]], 7),
         tuple(tensor([[[5, 6, 4], [7, 3, 2]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]]]))),
    Case("padding has the position 0, never a negative one", ([[3], [5, 6, 4]], 7),
         tuple(tensor([[[7, 7, 3], [5, 6, 4]], [[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 2]]]))),
    Case("a real token may have the padding's id", ([[7, 6, 7], [7, 7]], 7),
         tuple(tensor([[[7, 6, 7], [7, 7, 7]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]]]))),
    ("padding on the right", (f"{FILL} + row", REAL), (f"row + {FILL}", "[1] * len(row) + [0] * (T - len(row))"),
     "the side where a loop appends"),
    ("the mask from the ids", f"torch.tensor([{REAL} for row in rows])", "(ids != pad_id).long()",
     "a row that contains pad_id"),
    ("the mask upside down", REAL, "[1] * (T - len(row)) + [0] * len(row)", "what 1 means in the mask: a real token"),
    ("columns as positions", PLACES, "torch.arange(T).expand_as(mask)", "where a row starts to count"),
    ("positions from 1", PLACES, "mask.cumsum(-1)", "the position of the first real token"),
    ("negative positions", ".clamp(min=0)", "", "the padding's positions: a table of position vectors has no row -1"),
])

ENDS = "            live[row] = live[row] and token != eos_id\n"
LENGTH, LIMIT = "len(new[row]) < max_new_tokens[row]", "`max_new_tokens`: a list, one number for each row"
TAKES = f"            if live[row]:\n                new[row].append(token)\n                live[row] = {LENGTH}\n"
check_batched_loop = Part(6, my_batched_loop, [
    _batch("a batch of one row is the cached loop", [[3, 5]], [2], [[5, 4]], 2),
    _batch("padding is not seen, and a row's positions count its real tokens", [[3, 5], [7, 6]], [1, 1], [[5], [6]], 1),
    _batch("a new token is seen, one position after the last", [[3, 5], [7, 1]], [3, 3], [[5, 4, 4], [1, 3, 4]], 3),
    _batch("a row that has ended stays as it is while others go on", [[3, 5], [7, 6]], [3, 3], [[5, 4, 4], [6]], 3),
    _batch("every row has its own max_new_tokens", [[3, 5], [7, 1]], [1, 3], [[5], [1, 3, 4]], 3),
    _batch("a row at its limit needs no further call", [[3, 5], [7, 6]], [1, 3], [[5], [6]], 2),
    _batch("a row with max_new_tokens 0 gets nothing", [[3, 5], [7, 1]], [2, 0], [[5, 4], []], 2),
    _batch("a row may end at once, and so may all", [[4, 3], [7, 2]], [3, 3], [[], []], 1),
    ("no position ids", "position_ids=positions, ", "", "position_ids: without them columns count, padding too"),
    ("positions from 1", PLACES, "mask.cumsum(-1)", "the position of a row's first real token"),
    ("the same position for all", ("new, live", "        out"), ("start = mask.sum(-1, keepdim=True)\n    new, live",
     "        positions = positions if feed is ids else start\n        out"), "the position of the second new token"),
    ("no mask and no position ids", "attention_mask=mask, position_ids=positions, ", "", "both arguments"),
    ("padding counted in later positions", "        out", "        if feed is not ids:\n            positions = "
     "torch.full_like(feed, mask.shape[1] - 1)\n        out", "the position of a row's new token"),
    ("one list shared by all rows", "[[] for _ in ids]", "[[]] * len(ids)", "`[[]] * B`: it is one list, B times"),
    ("a limit of 0 is ignored", "[most > 0 for most in max_new_tokens]", "[True for _ in ids]", LIMIT),
    ("no attention mask", "attention_mask=mask, ", "", "attention_mask: without it padding is read as text"),
    ("new columns are masked out", "new_ones", "new_zeros", "what the mask says of the new column: it is a real token"),
    ("the batch ends with its first row", "any(live)", "all(live)", "when the loop may stop"),
    ("an ended row goes on", "live[row] and token", "len(new[row]) < max_new_tokens[row] and token", "what ends a row"),
    ("the longest max_new_tokens for all rows", "max_new_tokens[row]", "max(max_new_tokens)", LIMIT),
    ("the shortest max_new_tokens for all rows", "max_new_tokens[row]", "min(max_new_tokens)", LIMIT),
    ("a row at its limit still keeps the loop going", ("while any(live):", TAKES),
     ("for _ in (k for k in range(max(max_new_tokens)) if any(live)):",
      f"            if live[row] and {LENGTH}:\n                new[row].append(token)\n"),
     "what makes a row live: neither eos_id nor its limit has been reached"),
    ("a call that nobody needs", "while any(live)", "for _ in range(max(max_new_tokens))", "when to stop"),
    ("the end-of-text token in the result", ENDS + TAKES, TAKES + ENDS, "append or test: which first"),
    ("no cache: everything is read again", ("feed, mask = tokens[:, None],", CACHE),
     ("feed = ids = torch.cat([ids, tokens[:, None]], 1)\n        mask =", NONE), "what later calls feed"),
], raised={"cannot be interpreted as an integer": f"{LIMIT}. Notebook 02 has one number for all"}, note=_batch_note)
