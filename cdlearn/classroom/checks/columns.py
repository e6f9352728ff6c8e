"""Checks of assignment 02, parts 1 to 3: attention over cached columns, the cached loop, taking tokens back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, tensor
from transformers import DynamicCache

from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.models import TOY, TOY_WORDS, filled


def my_head(x, cache, W_q, W_k, W_v):
    """x: [n, d] float. cache: None or (k, v), each [S, d]. Returns (out [n, d], (k, v) each [S + n, d])."""
    q, k, v = x @ W_q, x @ W_k, x @ W_v
    if cache is not None:
        k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
    n, T = len(q), len(k)
    allowed = torch.ones(n, T).tril(T - n).bool()
    weights = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~allowed, -math.inf).softmax(-1)
    return weights @ v, (k, v)


# The weights let a token look at itself and the one before: both get the score 1 before the softmax, all others 0.
_EYE, _SHIFT = torch.eye(4), torch.eye(4) + torch.diag(torch.ones(3), 1)
_WHOLE = tensor([[10.0, 0, 0, 0], [5, 5, 0, 0], [1.5536, 4.2232, 4.2232, 0]])


def _held(n: int) -> tuple[Tensor, Tensor]:
    return _SHIFT[:n].clone(), 10 * _EYE[:n]


def _head(says: str, old: int, new: int) -> Case:
    words = f"x = rows {old} to {old + new - 1} of eye(4), the cache holds k and v of {old} rows. W_q = 2 eye(4), "
    example = words + "W_k = eye(4) with ones right of the diagonal, W_v = 10 eye(4): out is 10 x the attention weights"
    args = (_EYE[old : old + new], _held(old) if old else None, 2 * _EYE, _SHIFT, 10 * _EYE)
    return Case(says, args, (_WHOLE[old : old + new], _held(old + new)), {}, example)


# fmt: off
check_head = Part(1, my_head, [
    _head("without a cache a position sees itself and those before it, none after it", 0, 2),
    _head("without a cache, three positions", 0, 3),
    _head("one new position asks with its query and sees all cached columns and itself", 2, 1),
    _head("of two new positions, the first sees the cache and itself, not the second", 1, 2),
], [
    ("no causal mask", ".masked_fill(~allowed, -math.inf)", "",
     "which columns a position may see when several are new"),
    ("the causal mask forgets the cached columns", "tril(T - n)", "tril()",
     "the diagonal: new row i is column (cached + i), not column i"),
    ("the scale is missing", " / math.sqrt(q.shape[1])", "",
     "what q @ k.T is divided by: the square root of the width"),
    ("the cache does not grow", "return weights @ v, (k, v)", "return weights @ v, cache or (k, v)",
     "what you return: the next call needs the new rows too"),
    ("the cache is not read", "cache is not None", "False", "whose keys and values the new query meets"),
])
# fmt: on


def my_cached_loop(model, ids, *, eos_id, max_new_tokens):
    """ids: [1, T] int. Returns the list of new token ids."""
    cache, row, new = DynamicCache(config=model.config), ids, []
    for _ in range(max_new_tokens):
        token = model(row, past_key_values=cache).logits[:, -1].argmax(-1)
        if token.item() == eos_id:
            break
        new.append(token.item())
        row = token[:, None]
    return new


def _loop_note(value: Any, args: tuple) -> dict:
    return {"new": value, "fed": [call[0] for call in args[0].fed]}


def _loop(says: str, ids: list[int], most: int, new: list[int], fed: list[list[int]]) -> Case:
    example = f"{TOY_WORDS}my_cached_loop(model, [{ids}], eos_id=0, max_new_tokens={most})"
    expected = {"new": new, "fed": [ids, *fed]}
    return Case(says, (TOY, tensor([ids])), expected, {"eos_id": 0, "max_new_tokens": most}, example)


# fmt: off
_CACHE, _NONE, _ROW = "past_key_values=cache", "past_key_values=None", "        row = token[:, None]\n"
_NEXT = "        row = ids = torch.cat([ids, token[:, None]], 1)\n"
_FIRST = "    for _ in range(max_new_tokens):\n"

check_cached_loop = Part(2, my_cached_loop, [
    _loop("the first call feeds the prompt; its last logits choose the first token", [3, 5], 1, [5], []),
    _loop("the second call feeds the new token alone: the cache holds the prompt", [3, 5], 2, [5, 4], [[5]]),
    _loop("every column is fed once, so N tokens need T + N - 1", [3, 5], 3, [5, 4, 4], [[5], [4]]),
    _loop("the end-of-text token ends the loop and stays out", [3, 5], 9, [5, 4, 4], [[5], [4], [4]]),
    _loop("a prompt of one token", [2], 9, [2, 6], [[2], [6]]),
    _loop("an end-of-text token at once gives no tokens", [6, 1], 9, [], []),
], [
    ("the cache fed twice", _ROW, _NEXT,
     "what each call feeds: the columns in the cache are exactly the tokens you fed, in order"),
    ("the last prompt token fed twice", _FIRST,
     "    model(ids, past_key_values=cache)\n    row = ids[:, -1:]\n" + _FIRST,
     "what the call after the prompt feeds: its last token is in the cache already"),
    ("no cache: everything is read again", (_ROW, _CACHE), (_NEXT, _NONE), "which columns `fed` repeats"),
    ("the cache is not handed on", _CACHE, _NONE, "past_key_values: the same object in every call"),
    ("logits of the first position", "[:, -1]", "[:, 0]", "the column of [1, n, V]: which one has read it all"),
    ("the end-of-text token in the result", "            break\n", "            return [*new, eos_id]\n",
     "the order: test for the end, then append"),
    ("no stop at the end of the text", "token.item() == eos_id", "False", "what happens when the token is eos_id"),
    ("one pass too many", ("            break\n", "\n    return new\n"),
     ("            return new\n", "\n    model(row, past_key_values=cache)\n    return new\n"),
     "the last new token: does anybody ask what follows it?"),
], note=_loop_note)
# fmt: on


def my_read(model, cache, seen, ids):
    """cache: holds the columns of seen. seen, ids: lists of token ids. Returns the best token after ids, an int."""
    keep = 0
    while keep < min(len(seen), len(ids) - 1) and seen[keep] == ids[keep]:
        keep += 1
    if keep < len(seen):
        cache.crop(keep - len(seen))
    return model(torch.tensor([ids[keep:]]), past_key_values=cache).logits[0, -1].argmax().item()


def _read_note(value: Any, args: tuple) -> dict:
    model, cache = args[:2]
    columns = cache.layers[0].keys[0, 0, :, 0].long().tolist() if cache.get_seq_length() else []
    return {"token": value, "fed": [call[0] for call in model.fed], "cache": columns}


def _read(says: str, seen: list[int], ids: list[int], token: int, keep: int) -> Case:
    example = f"{TOY_WORDS}The cache holds {seen}. my_read(model, cache, {seen}, {ids})"
    return Case(says, (TOY, filled(seen), seen, ids), {"token": token, "fed": [ids[keep:]], "cache": ids}, {}, example)


# fmt: off
_CROP, _FEED = "    if keep < len(seen):\n        cache.crop(keep - len(seen))\n", "ids[keep:]"
_COUNT = "    while keep < min(len(seen), len(ids) - 1) and seen[keep] == ids[keep]:\n        keep += 1\n"
_BEYOND = "how many columns the cache holds after crop: every later position is shifted by one"
_STAY, _LACKS = "how many columns could have stayed", "what is fed: only what the cache lacks"

check_read = Part(3, my_read, [
    _read("what the cache has not seen is fed, and nothing else", [3, 5], [3, 5, 5], 4, 2),
    _read("columns that are not in ids any more are taken out first", [3, 5, 7, 7], [3, 5, 5], 4, 2),
    _read("contents decide, not lengths", [3, 5, 7], [3, 5, 5], 4, 2),
    _read("a column counts only if all before it agree", [3, 1, 5], [3, 5, 5], 4, 1),
    _read("without a new column the last one is fed again, for its logits", [3, 5, 5], [3, 5], 5, 1),
    _read("the same row once more", [3, 5], [3, 5], 5, 1),
    _read("nothing agrees: everything goes", [1, 2], [3, 5], 5, 0),
], [
    ("the rejected tokens stay in the cache", _CROP, "",
     "the cache before you feed: it must hold what agrees, and nothing else"),
    ("compared by length", " and seen[keep] == ids[keep]", "", "which columns agree: compare the tokens, one by one"),
    ("tokens that agree after a difference are kept", _COUNT,
     "    keep = min(sum(a == b for a, b in zip(seen, ids)), len(ids) - 1)\n",
     "when to stop comparing: a column depends on all before it"),
    ("off by one after rewinding: a column too few is cropped", _CROP,
     "    if keep + 1 < len(seen):\n        cache.crop(keep + 1 - len(seen))\n", _BEYOND),
    ("off by one after rewinding: a column too many is cropped", "keep - len(seen)", "max(keep - 1, 0) - len(seen)",
     _BEYOND),
    ("the cache fed twice", (_CROP, _FEED), ("", "ids"), _LACKS),
    ("the whole row fed behind what agrees", _FEED, "ids", _LACKS),
    ("everything is read again", _COUNT, "", _STAY),
    ("a column that agrees is fed again", _CROP, "    keep = max(0, keep - 1)\n" + _CROP, _STAY),
], note=_read_note)
# fmt: on
