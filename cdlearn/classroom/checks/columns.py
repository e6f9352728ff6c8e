"""Checks of assignment 02, parts 1 to 3: attention over cached columns, the cached loop, taking tokens back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cdlearn.classroom.checks.cachelm import TOY, TOY_WORDS, PositionLM, filled, watched
from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check

# ---- part 1: my_head(x, cache, W_q, W_k, W_v) -> (out [n, d], (k, v))

# The weights let a token look at itself and the one before: both get the score 1 before the softmax, all others 0.
_EYE, _SHIFT = torch.eye(4), torch.eye(4) + torch.diag(torch.ones(3), 1)
_WEIGHTS = (2 * _EYE, _SHIFT, 10 * _EYE)
_WHOLE = torch.tensor([[10.0, 0, 0, 0], [5, 5, 0, 0], [1.5536, 4.2232, 4.2232, 0]])


def _held(n: int) -> tuple[Tensor, Tensor]:
    return _SHIFT[:n].clone(), 10 * _EYE[:n]


def _head_case(says: str, old: int, new: int) -> Case:
    cache = _held(old) if old else None
    words = f"x = rows {old} to {old + new - 1} of eye(4), the cache holds k and v of {old} rows. W_q = 2 eye(4), "
    example = words + "W_k = eye(4) with ones right of the diagonal, W_v = 10 eye(4): out is 10 x the attention weights"
    return Case(
        says, (_EYE[old : old + new], cache, *_WEIGHTS), (_WHOLE[old : old + new], _held(old + new)), {}, example
    )


HEAD = [
    _head_case("without a cache a position sees itself and those before it, none behind it", 0, 2),
    _head_case("without a cache, three positions", 0, 3),
    _head_case("one new position asks with its query and sees all cached columns and itself", 2, 1),
    _head_case("of two new positions, the first sees the cache and itself, not the second", 1, 2),
]


def _head(*, start: int | None = None, causal: bool = True, scale: bool = True, grow: bool = True, see: bool = True):
    """A head with one thing wrong, for the mistakes below."""

    def head(x, cache, W_q, W_k, W_v):
        old = 0 if cache is None else len(cache[0])
        q, k, v = x @ W_q, x @ W_k, x @ W_v
        if cache is not None and see:
            k, v = torch.cat([cache[0], k]), torch.cat([cache[1], v])
        n, T = len(q), len(k)
        weights = q @ k.T / (math.sqrt(q.shape[1]) if scale else 1.0)
        if causal:
            weights = weights.masked_fill(~torch.ones(n, T).tril((T - n) if start is None else start).bool(), -math.inf)
        return weights.softmax(-1) @ v, (k, v) if grow or not old else cache

    return head


HEAD_MISTAKES = [
    Mistake("no causal mask", _head(causal=False), "which columns a position may see when several are new"),
    Mistake(
        "the causal mask forgets the cached columns",
        _head(start=0),
        "the diagonal: new row i is column (cached + i), not column i",
    ),
    Mistake("the scale is missing", _head(scale=False), "what q @ k.T is divided by: the square root of the width"),
    Mistake("the cache does not grow", _head(grow=False), "what you return: the next call needs the new rows too"),
    Mistake("the cache is not read", _head(see=False), "whose keys and values the new query meets"),
]


def check_head(function: Callable, *, cases: Sequence[Case] = HEAD) -> Result:
    """Check part 1 of assignment 02: one attention head that keeps its keys and values."""
    return run_check("my_head", function, cases, HEAD_MISTAKES)


# ---- part 2: my_cached_loop(model, ids, *, eos_id, max_new_tokens) -> new ids


def _loop_note(value: Any, model: PositionLM, args: tuple) -> dict:
    return {"new": value, "fed": [call[0] for call in model.fed]}


def _loop_case(says: str, ids: list[int], most: int, new: list[int], fed: list[list[int]]) -> Case:
    example = f"{TOY_WORDS}my_cached_loop(model, [{ids}], eos_id=0, max_new_tokens={most})"
    expected = {"new": new, "fed": [ids, *fed]}
    return Case(says, (TOY, torch.tensor([ids])), expected, {"eos_id": 0, "max_new_tokens": most}, example)


LOOP = [
    _loop_case("the first call feeds the prompt; its last logits choose the first token", [3, 5], 1, [5], []),
    _loop_case("the second call feeds the new token alone: the cache holds the prompt", [3, 5], 2, [5, 4], [[5]]),
    _loop_case("every column is fed once, so N tokens need T + N - 1", [3, 5], 3, [5, 4, 4], [[5], [4]]),
    _loop_case("the end-of-text token ends the loop and stays out", [3, 5], 9, [5, 4, 4], [[5], [4], [4]]),
    _loop_case("a prompt of one token", [2], 9, [2, 6], [[2], [6]]),
    _loop_case("an end-of-text token at once gives no tokens", [6, 1], 9, [], []),
]


def _loop(
    *, feed: str = "new", cached: bool = True, ahead: bool = False, column: int = -1, eos: str = "stop", extra: int = 0
) -> Callable:
    """A loop with one thing wrong, for the mistakes below."""

    def loop(model, ids, *, eos_id, max_new_tokens):
        cache, new, row = DynamicCache(config=model.config), [], ids
        if ahead:  # a pass over the prompt whose logits are thrown away
            model(ids, past_key_values=cache)
            row = ids[:, -1:]
        for _ in range(max_new_tokens):
            logits = model(row, past_key_values=cache if cached else None).logits
            token = int(logits[0, column].argmax())
            if token == eos_id and eos != "ignored":
                return new + [token] * (eos == "kept")
            new.append(token)
            last = torch.tensor([[token]])
            ids = torch.cat([ids, last], dim=1)
            row = ids if feed == "whole" else last
        if extra:
            model(row, past_key_values=cache)
        return new

    return watched(loop, _loop_note)


LOOP_MISTAKES = [
    Mistake(
        "the cache fed twice",
        _loop(feed="whole"),
        "what each call feeds: the columns in the cache are exactly the tokens you fed, in order",
    ),
    Mistake(
        "the last prompt token fed twice",
        _loop(ahead=True),
        "what the call after the prompt feeds: its last token is in the cache already",
    ),
    Mistake("no cache: everything is read again", _loop(feed="whole", cached=False), "which columns `fed` repeats"),
    Mistake("the cache is not handed on", _loop(cached=False), "past_key_values: the same object in every call"),
    Mistake("logits of the first position", _loop(column=0), "the column of [1, n, V]: which one has read it all"),
    Mistake("the end-of-text token in the result", _loop(eos="kept"), "the order: test for the end, then append"),
    Mistake("no stop at the end of the text", _loop(eos="ignored"), "what happens when the token is eos_id"),
    Mistake("one pass too many", _loop(extra=1), "the last new token: does anybody ask what follows it?"),
]


def check_cached_loop(function: Callable, *, cases: Sequence[Case] = LOOP) -> Result:
    """Check part 2 of assignment 02: greedy decoding that feeds every column once."""
    return run_check("my_cached_loop", watched(function, _loop_note), cases, LOOP_MISTAKES)


# ---- part 3: my_read(model, cache, seen, ids) -> the best next token


def _read_note(value: Any, model: PositionLM, args: tuple) -> dict:
    cache = args[0]
    columns = cache.layers[0].keys[0, 0, :, 0].long().tolist() if cache.get_seq_length() else []
    return {"token": value, "fed": [call[0] for call in model.fed], "cache": columns}


def _read_case(says: str, seen: list[int], ids: list[int], token: int, keep: int) -> Case:
    example = f"{TOY_WORDS}The cache holds {seen}. my_read(model, cache, {seen}, {ids})"
    return Case(says, (TOY, filled(seen), seen, ids), {"token": token, "fed": [ids[keep:]], "cache": ids}, {}, example)


READ = [
    _read_case("what the cache has not seen is fed, and nothing else", [3, 5], [3, 5, 5], 4, 2),
    _read_case("columns that are not in ids any more are taken out first", [3, 5, 7, 7], [3, 5, 5], 4, 2),
    _read_case("contents decide, not lengths", [3, 5, 7], [3, 5, 5], 4, 2),
    _read_case("a column counts only if all before it agree", [3, 1, 5], [3, 5, 5], 4, 1),
    _read_case("without a new column the last one is fed again, for its logits", [3, 5, 5], [3, 5], 5, 1),
    _read_case("the same row once more", [3, 5], [3, 5], 5, 1),
    _read_case("nothing agrees: everything goes", [1, 2], [3, 5], 5, 0),
]


def _agree(seen: list[int], ids: list[int]) -> int:
    pairs = [a == b for a, b in zip(seen, ids)] + [False]
    return min(pairs.index(False), len(ids) - 1)


def _by_length(seen: list[int], ids: list[int]) -> int:
    return min(len(seen), len(ids) - 1)


def _anywhere(seen: list[int], ids: list[int]) -> int:
    return min(sum(a == b for a, b in zip(seen, ids)), len(ids) - 1)


def _read(keep: Callable = _agree, crop: int | None = 0, feed: Callable = lambda keep: keep) -> Callable:
    """A rewinding reader with one thing wrong; `crop`: columns to take out beyond what disagrees, None for no crop."""

    def read(model, cache, seen, ids):
        kept = keep(seen, ids)
        drop = len(seen) - kept
        if crop is not None and drop > 0 and drop + crop > 0:
            cache.crop(-min(drop + crop, len(seen)))
        row = torch.tensor([ids[max(0, feed(kept)) :]])
        return int(model(row, past_key_values=cache).logits[0, -1].argmax())

    return watched(read, _read_note)


READ_MISTAKES = [
    Mistake(
        "the rejected tokens stay in the cache",
        _read(crop=None),
        "the cache before you feed: it must hold what agrees, and nothing else",
    ),
    Mistake("compared by length", _read(_by_length), "which columns agree: compare the tokens, one by one"),
    Mistake(
        "tokens that agree after a difference are kept",
        _read(_anywhere),
        "when to stop comparing: a column depends on all before it",
    ),
    Mistake(
        "off by one after rewinding: a column too few is cropped",
        _read(crop=-1),
        "how many columns the cache holds after crop: every later position is shifted by one",
    ),
    Mistake(
        "off by one after rewinding: a column too many is cropped",
        _read(crop=1),
        "how many columns the cache holds after crop: every later position is shifted by one",
    ),
    Mistake("the cache fed twice", _read(crop=None, feed=lambda keep: 0), "what is fed: only what the cache lacks"),
    Mistake(
        "the whole row fed behind what agrees", _read(feed=lambda keep: 0), "what is fed: only what the cache lacks"
    ),
    Mistake("everything is read again", _read(lambda seen, ids: 0), "how many columns could have stayed"),
    Mistake(
        "a column that agrees is fed again",
        _read(lambda seen, ids: max(0, _agree(seen, ids) - 1)),
        "how many columns could have stayed",
    ),
]


def check_read(function: Callable, *, cases: Sequence[Case] = READ) -> Result:
    """Check part 3 of assignment 02: read a row with a cache that may hold another one."""
    return run_check("my_read", watched(function, _read_note), cases, READ_MISTAKES)
