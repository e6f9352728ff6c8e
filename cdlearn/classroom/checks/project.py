"""Checks of assignment 06, the project: a source keeps its promises, and an evaluation counts what it says."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cdlearn.classroom.checks.core import Result
from cdlearn.classroom.checks.values import show

PROMPTS = ([5, 9, 12, 7], [8, 6])  # any two rows of different lengths


def check_source(make_source: Callable, pair: Any, *, prompts: Sequence[Sequence[int]] = PROMPTS) -> Result:
    """Check part 1 of the project: shape, no nan, no look ahead, padding, no memory of other texts, not the expert."""
    broken = _promises(make_source, pair, [list(row) for row in prompts])
    return _first("make_source", broken, 6, "there is no source yet", "the source can be called")


def check_evaluate(
    function: Callable, sources: dict[str, Any], task: str, items: Sequence[Any], metric: str, expected: list[dict]
) -> Result:
    """Check part 2 of the project: one row per source with hits and of, the numbers of the items given."""
    example = f"{len(items)} items of {task}, {metric!r}, sources {list(sources)}"
    broken = _counts(lambda: function(dict(sources), task, list(items), metric), example, expected)
    return _first("evaluate", broken, len(sources), "there is no evaluation yet", "it runs", example)


def _first(part: str, broken: Iterator[tuple], held: int, unwritten: str, runs: str, example: str = "") -> Result:
    """The first of (broke, example, expected, got, look) as a result; if there is none, `held` cases hold."""
    try:
        for broke, instance, expected, got, look in broken:
            return Result(part, broke=broke, example=instance, expected=expected, got=got, look=look)
    except NotImplementedError:
        return Result(part, broke=unwritten, got="nothing: it is not written yet")
    except Exception as error:  # whatever the student's code does is an answer
        return Result(part, broke=runs, example=example, got=f"{type(error).__name__}: {str(error)[:300]}")
    return Result(part, cases=held)


def _promises(make_source: Callable, pair: Any, prompts: list[list[int]]) -> Iterator[tuple]:
    long = torch.tensor([max(prompts, key=len)])
    T, source = long.shape[1], make_source(pair)
    scores = source(long, n=T)
    call = f"source({show(long)}, n={T})"
    wanted = [1, T, source.vocab_size]
    if not isinstance(scores, Tensor) or list(scores.shape) != wanted or not scores.is_floating_point():
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        yield "scores are float, [B, n, V]", call, show(wanted), show(got), "what `scores` returns"
    if scores.isnan().any() or not scores.isfinite().any(-1).all():
        why = "0 * inf, inf - inf, or a mask that keeps nothing"
        yield "no nan, and every row lets some token win", call, "numbers or -inf", "a nan, or a row of -inf", why
    short = make_source(pair)(long[:, :-1], n=T - 1)
    if _apart(scores[:, :-1], short):
        why = "statistics over columns (a mean, a maximum over dimension 1): each column may use only what is before it"
        yield "a column does not know what follows it", f"{call}, without its last token", *_rows(short, scores), why
    again, _ = source(long, n=T), source(torch.tensor([prompts[-1]]), n=1)
    if _apart(again, scores) or _apart(source(long, n=T), scores):
        why = "what the source keeps between calls: counters, random numbers, the last text"
        yield "the same text gives the same scores, whatever was asked before", call, "the same", "others", why
    rows = [torch.tensor([row]) for row in prompts]
    padded = torch.stack([torch.nn.functional.pad(row[0], (T - row.shape[1], 0)) for row in rows])
    mask = torch.stack([torch.arange(T) >= T - row.shape[1] for row in rows]).long()
    batch = make_source(pair)(padded, mask, n=1)
    for k, row in enumerate(rows):
        alone = make_source(pair)(row, n=1)
        if _apart(batch[k : k + 1], alone):
            why = "whether every inner source gets the mask, and whether rows are mixed (a mean over dimension 0)"
            yield "in a padded batch each row has its own scores", show(row), *_rows(alone, batch[k : k + 1]), why
    if not _apart(scores.log_softmax(-1), pair.expert(long).logits.log_softmax(-1)):
        yield "it is a source of its own", call, "not the expert's distribution", "the expert's", "where your idea acts"


def _apart(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.allclose(a, b, rtol=0.0, atol=1e-3)


def _rows(expected: Tensor, got: Tensor) -> tuple[str, str]:
    return show(expected[0, -1, :4]) + " ..", show(got[0, expected.shape[1] - 1, :4]) + " .."


def _counts(evaluate: Callable, example: str, expected: list[dict]) -> Iterator[tuple]:
    got = evaluate()
    told = example, show(expected), show(got)
    if not isinstance(got, list) or [type(row) for row in got] != [dict] * len(expected):
        yield "a list with one dict per source", *told, ""
    if any({"source", "hits", "of"} - row.keys() for row in got):
        yield "every row has source, hits and of", *told, ""
    several = "what is counted: one item can have several answers to count, and some have none"
    texts = "the texts: new tokens only, the task's max_new_tokens, greedy; then TASKS[task].grade"
    for row, right in zip(got, expected):
        if row["source"] != right["source"]:
            yield "the rows have the order of the sources", *told, ""
        if row["of"] != right["of"]:
            yield "of: what there was to get right", *told, several
        if row["hits"] != right["hits"]:
            yield "hits: what was right", *told, texts
