"""Checks of assignment 02: several endings, left padding, the batched loop (a cache by hand is in `columns.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import tensor
from transformers import DynamicCache

from cdlearn.classroom.checks.columns import check_cached_loop, check_head, check_read
from cdlearn.classroom.checks.core import Case, Part
from cdlearn.classroom.checks.models import TOY, TOY_WORDS, PositionLM

__all__ = [
    "Case",
    "PositionLM",
    "check_batched_loop",
    "check_cached_loop",
    "check_endings",
    "check_head",
    "check_pad",
    "check_read",
]


def my_endings(model, prompt, endings):
    """prompt: [1, T] int. endings: a list of [1, n] int. Returns a list of floats, one score per ending."""
    cache = DynamicCache(config=model.config)
    last = model(prompt, past_key_values=cache).logits[:, -1:]  # (1, 1, V)
    scores = []
    for ending in endings:
        logits = model(ending, past_key_values=cache).logits  # (1, n, V)
        log_p = torch.cat([last, logits[:, :-1]], dim=1).log_softmax(-1)
        scores.append(log_p.gather(-1, ending[..., None]).sum().item())
        cache.crop(-ending.shape[1])
    return scores


def _endings_note(value: Any, args: tuple) -> dict:
    model, prompt, endings = args
    enough, fed = prompt.shape[1] + sum(e.shape[1] for e in endings), sum(len(call[0]) for call in model.fed)
    return {"scores": value, "positions fed": f"at most {enough}" if fed <= enough else f"{fed}"}


def _endings(says: str, endings: list[list[int]], scores: list[float]) -> Case:
    enough = 2 + sum(len(ending) for ending in endings)
    words = f"{TOY_WORDS}log p is -0.391 for it, -1.391 for the next token, -4.391 for all others. "
    example = f"{words}my_endings(model, [3, 5], {endings})"
    args = (TOY, tensor([[3, 5]]), [tensor([ending]) for ending in endings])
    return Case(says, args, {"scores": scores, "positions fed": f"at most {enough}"}, {}, example)


# fmt: off
_1ST, _2ND, _REST = -0.390536, -1.390536, -4.390536
_JOIN, _CROP = "torch.cat([last, logits[:, :-1]], dim=1)", "cache.crop(-ending.shape[1])"
_PICK = "log_p.gather(-1, ending[..., None])"
_SHIFTED = "how many columns the cache holds when the next ending is fed"
_LOOP = "    for ending in endings:\n"

check_endings = Part(4, my_endings, [
    _endings("the prompt's last logits give the first token's log-probability", [[6]], [_2ND]),
    _endings("an ending's score is the sum over its tokens", [[5, 5]], [_1ST + _2ND]),
    _endings("every ending follows the prompt, not the ending before it", [[5], [6]], [_1ST, _2ND]),
    _endings("the cache is taken back to the prompt after every ending", [[5, 4], [3, 1], [5, 5, 5]],
             [_1ST + _1ST, _REST + _REST, _1ST + _2ND + _REST]),
], [
    ("one column too late", _JOIN, "logits",
     "the columns: the logits after token i are about token i + 1; who is about the first?"),
    ("the first token is left out", _PICK, f"{_PICK}[:, 1:]", "who predicts an ending's first token: the prompt"),
    ("the cache is not taken back", _CROP, "pass", "what the cache holds when the next ending is fed"),
    ("off by one after rewinding: a column too few is cropped", f"        {_CROP}",
     "        if ending.shape[1] > 1:\n            cache.crop(1 - ending.shape[1])", _SHIFTED),
    ("off by one after rewinding: a column too many is cropped", _CROP,
     "cache.crop(-min(ending.shape[1] + 1, cache.get_seq_length()))", _SHIFTED),
    ("the prompt is fed for every ending", (_LOOP, _CROP),
     (_LOOP + "        cache = DynamicCache(config=model.config)\n"
      + "        model(prompt, past_key_values=cache)\n", "pass"),
     "which columns all endings share"),
    ("raw logits where log-probabilities belong", ".log_softmax(-1)", "", "whether the logits were normalised"),
    ("probabilities added up", ".log_softmax(-1)", ".softmax(-1)", "what is added: logarithms"),
    ("the mean over the tokens", ".sum()", ".mean()", "sum or mean: the log-probability of a whole text"),
], note=_endings_note)
# fmt: on


def my_pad(rows, pad_id):
    """rows: B lists of token ids, none empty. Returns (ids, mask, position_ids), each [B, T] int."""
    T = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (T - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def _tensors(*tables: list[list[int]]) -> tuple:
    return tuple(tensor(table) for table in tables)


# fmt: off
_PLACES = "(mask.cumsum(-1) - 1).clamp(min=0)"

check_pad = Part(5, my_pad, [
    Case("one row needs no padding", ([[5, 6]], 7), _tensors([[5, 6]], [[1, 1]], [[0, 1]])),
    Case("short rows are filled up on the left; position 0 is the first real token", ([[5, 6, 4], [3, 2]], 7),
         _tensors([[5, 6, 4], [7, 3, 2]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]])),
    Case("padding has the position 0, never a negative one", ([[3], [5, 6, 4]], 7),
         _tensors([[7, 7, 3], [5, 6, 4]], [[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 2]])),
    Case("a real token may have the padding's id", ([[7, 6, 7], [7, 7]], 7),
         _tensors([[7, 6, 7], [7, 7, 7]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]])),
], [
    ("padding on the right", ("[pad_id] * (T - len(row)) + row", "[0] * (T - len(row)) + [1] * len(row)"),
     ("row + [pad_id] * (T - len(row))", "[1] * len(row) + [0] * (T - len(row))"),
     "the side: a loop reads and appends at the last column"),
    ("the mask from the ids", "torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows])",
     "(ids != pad_id).long()",
     "a token that happens to have the padding's id: lengths tell what is real, ids do not"),
    ("the mask upside down", "[0] * (T - len(row)) + [1] * len(row)", "[1] * (T - len(row)) + [0] * len(row)",
     "what 1 means in the mask: a real token"),
    ("columns as positions", _PLACES, "torch.arange(T).expand_as(mask)",
     "where a row starts to count: at its first real token, not at its first column"),
    ("positions from 1", _PLACES, "mask.cumsum(-1)", "the position of the first real token"),
    ("negative positions", _PLACES, "mask.cumsum(-1) - 1",
     "the padding's positions: a table of position vectors has no row -1"),
])
# fmt: on


def my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens):
    """ids, mask: [B, T] int, padded on the left. Returns B lists of new token ids."""
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


def _batch_note(value: Any, args: tuple) -> dict:
    widths = [len(call[0]) for call in args[0].fed]
    return {"new": value, "columns of the first call": widths[:1], "of later calls": sorted(set(widths[1:]))}


def _batch(says: str, ids: list, mask: list, most: int, new: list, later: int = 1) -> Case:
    expected = {"new": new, "columns of the first call": [len(ids[0])], "of later calls": [1] * later}
    example = f"{TOY_WORDS}my_batched_loop(model, {ids}, {mask}, eos_id=2, max_new_tokens={most})"
    return Case(says, (TOY, tensor(ids), tensor(mask)), expected, {"eos_id": 2, "max_new_tokens": most}, example)


# fmt: off
_TWO = [[1, 1], [0, 1]]
_FEED = "feed, mask = tokens[:, None], "
_ENDS = "            live[row] = live[row] and token != eos_id\n"
_TAKES = "            if live[row]:\n                new[row].append(token)\n"

check_batched_loop = Part(6, my_batched_loop, [
    _batch("a batch of one row is the cached loop", [[3, 5]], [[1, 1]], 2, [[5, 4]]),
    _batch("padding is not seen, and a row's positions count its real tokens", [[3, 5], [7, 6]], _TWO, 1,
           [[5], [6]], 0),
    _batch("a new token is seen, at the position after its row's last", [[3, 5], [7, 1]], _TWO, 3,
           [[5, 4, 4], [1, 3, 4]]),
    _batch("a row that has ended stays as it is while others go on", [[3, 5], [7, 6]], _TWO, 3, [[5, 4, 4], [6]]),
    _batch("a row may end at once, and so may all", [[4, 3], [7, 2]], _TWO, 3, [[], []], 0),
], [
    ("no position ids", "position_ids=positions, ", "", "position_ids: without them columns count, padding too"),
    ("positions from 1", "(mask.cumsum(-1) - 1).clamp(min=0)", "mask.cumsum(-1)",
     "the position of a row's first real token"),
    ("positions stand still", ("new, live =", "        out = model"),
     ("start = mask.sum(-1, keepdim=True)\n    new, live =",
      "        positions = positions if feed is ids else start\n        out = model"),
     "the position of the second and third new token"),
    ("no attention mask", "attention_mask=mask, ", "", "attention_mask: without it padding is read as text"),
    ("new columns are masked out", "new_ones", "new_zeros", "what the mask says of the new column: it is a real token"),
    ("the batch ends with its first row", "not any(live)", "not all(live)",
     "when the loop may stop: all rows must have ended"),
    ("a finished row goes on", ("            break\n", "        feed, mask"),
     ("            break\n        live = [True] * len(ids)\n", "        feed, mask"),
     "what happens to a row after its end-of-text token"),
    ("the end-of-text token in the result", _ENDS + _TAKES, _TAKES + _ENDS, "the order: test for the end, then append"),
    ("no cache: everything is read again", (_FEED, "past_key_values=cache"),
     ("feed = ids = torch.cat([ids, tokens[:, None]], 1)\n        mask = ", "past_key_values=None"),
     "what later calls feed"),
], note=_batch_note)
# fmt: on
