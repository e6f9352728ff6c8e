"""Checks of assignment 02: a cache by hand (from `columns.py`), several endings, left padding, the batched loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from cdlearn.classroom.checks.cachelm import TOY, TOY_WORDS, PositionLM, watched
from cdlearn.classroom.checks.columns import check_cached_loop, check_head, check_read
from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check

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

# ---- part 4: my_endings(model, prompt, endings) -> one log-probability per ending


def _endings_note(value: Any, model: PositionLM, args: tuple) -> dict:
    prompt, endings = args
    enough, fed = prompt.shape[1] + sum(e.shape[1] for e in endings), sum(len(call[0]) for call in model.fed)
    return {"scores": value, "positions fed": f"at most {enough}" if fed <= enough else f"{fed}"}


def _endings_case(says: str, prompt: list[int], endings: list[list[int]], scores: list[float]) -> Case:
    enough = len(prompt) + sum(len(ending) for ending in endings)
    words = f"{TOY_WORDS}log p is -0.391 for it, -1.391 for the next token, -4.391 for all others. "
    example = f"{words}my_endings(model, {prompt}, {endings})"
    args = (TOY, torch.tensor([prompt]), [torch.tensor([ending]) for ending in endings])
    return Case(says, args, {"scores": scores, "positions fed": f"at most {enough}"}, {}, example)


_1ST, _2ND, _REST = -0.390536, -1.390536, -4.390536
ENDINGS = [
    _endings_case("the prompt's last logits give the first token's log-probability", [3, 5], [[6]], [_2ND]),
    _endings_case("an ending's score is the sum over its tokens", [3, 5], [[5, 5]], [_1ST + _2ND]),
    _endings_case("every ending follows the prompt, not the ending before it", [3, 5], [[5], [6]], [_1ST, _2ND]),
    _endings_case(
        "the cache is taken back to the prompt after every ending",
        [3, 5],
        [[5, 4], [3, 1], [5, 5, 5]],
        [_1ST + _1ST, _REST + _REST, _1ST + _2ND + _REST],
    ),
]


def _endings(*, crop: int | None = 0, shift: bool = True, again: bool = False, give: str = "sum") -> Callable:
    """A scorer with one thing wrong, for the mistakes below; `crop` as beyond the ending's length."""

    def endings_(model, prompt, endings):
        cache = DynamicCache(config=model.config)
        last, scores = model(prompt, past_key_values=cache).logits[:, -1:], []
        for ending in endings:
            if again:
                cache = DynamicCache(config=model.config)
                last = model(prompt, past_key_values=cache).logits[:, -1:]
            logits = model(ending, past_key_values=cache).logits
            rows = torch.cat([last, logits[:, :-1]], dim=1) if shift else logits
            values = {"raw": rows, "probabilities": rows.softmax(-1)}.get(give, rows.log_softmax(-1))
            picked = values.gather(-1, ending[..., None])
            picked = picked[:, 1:] if give == "late" else picked
            scores.append(float(picked.mean() if give == "mean" else picked.sum()))
            drop = 0 if crop is None or again else min(ending.shape[1] + crop, cache.get_seq_length())
            if drop:
                cache.crop(-drop)
        return scores

    return watched(endings_, _endings_note)


ENDINGS_MISTAKES = [
    Mistake(
        "one column too late",
        _endings(shift=False),
        "the columns: the logits after token i are about token i + 1; who is about the first?",
    ),
    Mistake("the first token is left out", _endings(give="late"), "who predicts an ending's first token: the prompt"),
    Mistake("the cache is not taken back", _endings(crop=None), "what the cache holds when the next ending is fed"),
    Mistake(
        "off by one after rewinding: a column too few is cropped",
        _endings(crop=-1),
        "how many columns the cache holds when the next ending is fed",
    ),
    Mistake(
        "off by one after rewinding: a column too many is cropped",
        _endings(crop=1),
        "how many columns the cache holds when the next ending is fed",
    ),
    Mistake("the prompt is fed for every ending", _endings(again=True), "which columns all endings share"),
    Mistake("raw logits where log-probabilities belong", _endings(give="raw"), "whether the logits were normalised"),
    Mistake("probabilities added up", _endings(give="probabilities"), "what is added: logarithms"),
    Mistake("the mean over the tokens", _endings(give="mean"), "sum or mean: the log-probability of a whole text"),
]


def check_endings(function: Callable, *, cases: Sequence[Case] = ENDINGS) -> Result:
    """Check part 4 of assignment 02: score several endings of one prompt, which is fed once."""
    return run_check("my_endings", watched(function, _endings_note), cases, ENDINGS_MISTAKES)


# ---- part 5: my_pad(rows, pad_id) -> ids, mask, position_ids, each [B, T]


def _tensors(*tables: list[list[int]]) -> tuple:
    return tuple(torch.tensor(table) for table in tables)


PAD = [
    Case("one row needs no padding", ([[5, 6]], 7), _tensors([[5, 6]], [[1, 1]], [[0, 1]])),
    Case(
        "short rows are filled up on the left; position 0 is the first real token",
        ([[5, 6, 4], [3, 2]], 7),
        _tensors([[5, 6, 4], [7, 3, 2]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]]),
    ),
    Case(
        "padding has the position 0, never a negative one",
        ([[3], [5, 6, 4]], 7),
        _tensors([[7, 7, 3], [5, 6, 4]], [[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 1, 2]]),
    ),
    Case(
        "a real token may have the padding's id",
        ([[7, 6, 7], [7, 7]], 7),
        _tensors([[7, 6, 7], [7, 7, 7]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]]),
    ),
]


def _pad(*, side: str = "left", mask: str = "length", positions: Callable | None = None) -> Callable:
    """A padding with one thing wrong, for the mistakes below."""

    def pad(rows, pad_id):
        T = max(map(len, rows))
        fill = [[pad_id] * (T - len(row)) for row in rows]
        ids = torch.tensor([a + b if side == "left" else b + a for a, b in zip(fill, rows)])
        real = torch.tensor(
            [[len(a) <= t if side == "left" else t < len(b) for t in range(T)] for a, b in zip(fill, rows)]
        )
        real = {"ids": ids != pad_id, "upside down": ~real}.get(mask, real).long()
        return ids, real, (positions or (lambda m: (m.cumsum(-1) - 1).clamp(min=0)))(real)

    return pad


PAD_MISTAKES = [
    Mistake("padding on the right", _pad(side="right"), "the side: a loop reads and appends at the last column"),
    Mistake(
        "the mask from the ids",
        _pad(mask="ids"),
        "a token that happens to have the padding's id: lengths tell what is real, ids do not",
    ),
    Mistake("the mask upside down", _pad(mask="upside down"), "what 1 means in the mask: a real token"),
    Mistake(
        "columns as positions",
        _pad(positions=lambda m: torch.arange(m.shape[1]).expand_as(m)),
        "where a row starts to count: at its first real token, not at its first column",
    ),
    Mistake("positions from 1", _pad(positions=lambda m: m.cumsum(-1)), "the position of the first real token"),
    Mistake(
        "negative positions",
        _pad(positions=lambda m: m.cumsum(-1) - 1),
        "the padding's positions: a table of position vectors has no row -1",
    ),
]


def check_pad(function: Callable, *, cases: Sequence[Case] = PAD) -> Result:
    """Check part 5 of assignment 02: left padding with mask and position ids."""
    return run_check("my_pad", function, cases, PAD_MISTAKES)


# ---- part 6: my_batched_loop(model, ids, mask, *, eos_id, max_new_tokens) -> one list of new ids per row


def _batch_note(value: Any, model: PositionLM, args: tuple) -> dict:
    widths = [len(call[0]) for call in model.fed]
    return {"new": value, "columns of the first call": widths[:1], "of later calls": sorted(set(widths[1:]))}


def _batch_case(says: str, ids: list, mask: list, most: int, new: list, later: int = 1) -> Case:
    expected = {"new": new, "columns of the first call": [len(ids[0])], "of later calls": [1] * later}
    example = f"{TOY_WORDS}my_batched_loop(model, {ids}, {mask}, eos_id=2, max_new_tokens={most})"
    options = {"eos_id": 2, "max_new_tokens": most}
    return Case(says, (TOY, torch.tensor(ids), torch.tensor(mask)), expected, options, example)


BATCH = [
    _batch_case("a batch of one row is the cached loop", [[3, 5]], [[1, 1]], 2, [[5, 4]]),
    _batch_case(
        "padding is not seen, and a row's positions count its real tokens",
        [[3, 5], [7, 6]],
        [[1, 1], [0, 1]],
        1,
        [[5], [6]],
        0,
    ),
    _batch_case(
        "a new token is seen, at the position after its row's last",
        [[3, 5], [7, 1]],
        [[1, 1], [0, 1]],
        3,
        [[5, 4, 4], [1, 3, 4]],
    ),
    _batch_case(
        "a row that has ended stays as it is while others go on",
        [[3, 5], [7, 6]],
        [[1, 1], [0, 1]],
        3,
        [[5, 4, 4], [6]],
    ),
    _batch_case("a row may end at once, and so may all", [[4, 3], [7, 2]], [[1, 1], [0, 1]], 3, [[], []], 0),
]


def _batch(
    *,
    positions: str = "true",
    masked: bool = True,
    grow: int = 1,
    end: str = "row",
    keep_eos: bool = False,
    whole: bool = False,
    cached: bool = True,
) -> Callable:
    """A batched loop with one thing wrong, for the mistakes below."""

    def loop(model, ids, mask, *, eos_id, max_new_tokens):
        cache, feed, new, live = DynamicCache(config=model.config), ids, [[] for _ in ids], [True] * len(ids)
        prompt = mask.sum(-1, keepdim=True)
        for _ in range(max_new_tokens):
            true = (mask.cumsum(-1) - int(positions != "from 1")).clamp(min=0)[:, -feed.shape[1] :]
            if positions == "stand still" and feed is not ids:
                true = prompt
            given = {
                "position_ids": None if positions == "columns" else true,
                "attention_mask": mask if masked else None,
            }
            logits = model(feed, past_key_values=cache if cached else None, **given).logits[:, -1]
            tokens = logits.argmax(-1)
            for row, token in enumerate(tokens.tolist()):
                if live[row] and (token != eos_id or keep_eos):
                    new[row].append(token)
                live[row] = live[row] and token != eos_id
            if (end == "first" and not all(live)) or not any(live):
                break
            live = [True] * len(ids) if end == "never" else live
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            feed, mask = tokens[:, None], torch.cat([mask, mask.new_full((len(ids), 1), grow)], dim=1)
            if whole:
                feed = ids
        return new

    return watched(loop, _batch_note)


BATCH_MISTAKES = [
    Mistake("no position ids", _batch(positions="columns"), "position_ids: without them columns count, padding too"),
    Mistake("positions from 1", _batch(positions="from 1"), "the position of a row's first real token"),
    Mistake("positions stand still", _batch(positions="stand still"), "the position of the second and third new token"),
    Mistake("no attention mask", _batch(masked=False), "attention_mask: without it padding is read as text"),
    Mistake("new columns are masked out", _batch(grow=0), "what the mask says of the new column: it is a real token"),
    Mistake(
        "the batch ends with its first row", _batch(end="first"), "when the loop may stop: all rows must have ended"
    ),
    Mistake("a finished row goes on", _batch(end="never"), "what happens to a row after its end-of-text token"),
    Mistake("the end-of-text token in the result", _batch(keep_eos=True), "the order: test for the end, then append"),
    Mistake("no cache: everything is read again", _batch(whole=True, cached=False), "what later calls feed"),
]


def check_batched_loop(function: Callable, *, cases: Sequence[Case] = BATCH) -> Result:
    """Check part 6 of assignment 02: greedy decoding of several rows at once."""
    return run_check("my_batched_loop", watched(function, _batch_note), cases, BATCH_MISTAKES)
