"""From answers to numbers: percentages with bootstrap intervals, rows, a table, a tidy CSV."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from cdlearn.evaluate.strategies import BASELINE
from cdlearn.metrics import distinct_n, ngram_counts, self_bleu
from cdlearn.toyworld.tasks import Item, Task

RESAMPLES = 2000
LEGEND = {
    "right": "the known answer (puzzles: the name; arithmetic: the number; choices: the right one is likeliest)",
    "right, per character": "the same with log-probabilities divided by the length of the choice",
    "share of the right one": "its probability among the choices",
    "lazy": 'answers with "I think"',
    "steps right": "every written step as it should be",
    "true": "names the capital",
    "true, unseen phrasing": "the same, asked as training never asked about that place",
    "myth": "names the largest city instead",
    "rep-2": "word pairs that the same text has said before; less is better",
    "consistent": "stories that contradict their prompt nowhere, be it that they say nothing",
    "mentions right": "mentions of colour, object, animal, place and hero that agree with the prompt",
    "named": "of these five, what the story names rightly",
    "ends": 'stories that reach "The end."',
    "contains the answer": "the answer stands somewhere in the text, as whole words",
    "is the answer": "the text is the answer and nothing else",
    "diversity": "(1 - rep-2)(1 - rep-3)(1 - rep-4)",
    "distinct-2": "different word pairs of all word pairs in all texts",
    "self-BLEU": "how alike the texts are; less is more varied",
    "words": "a mean, no percentage",
    "1 - TV": "the acceptance rate of that draft in speculative sampling",
    "amateur's greedy choice": "tokens that the amateur alone would have chosen, too",
}
COLUMNS = ("strategy", "task", "metric", "value", "low", "high", "minus_greedy", "minus_greedy_low")
COLUMNS += ("minus_greedy_high", "items", "runs", "lowest_run", "highest_run")


def bootstrap(grades: list[dict], groups: list[str], metric: str, *, seed: int = 0) -> np.ndarray:
    """[1 + RESAMPLES] values of a metric in percent: as measured, then with the groups drawn anew with replacement.

    The same groups in the same order give the same draws, so that two strategies can be compared item by item. NaN
    where nothing that was drawn has the metric.
    """
    place = {group: k for k, group in enumerate(sorted(set(groups)))}
    sums = np.zeros((len(place), 2))
    for grade, group in zip(grades, groups, strict=True):
        sums[place[group]] += grade[metric]
    draws = np.random.default_rng(seed).integers(len(place), size=(RESAMPLES, len(place)))
    totals = np.concatenate([sums.sum(0)[None], sums[draws].sum(1)])  # (1 + RESAMPLES, 2)
    return 100 * np.divide(totals[:, 0], totals[:, 1], out=np.full(len(totals), np.nan), where=totals[:, 1] > 0)


def interval(values: np.ndarray) -> dict[str, float]:
    """The value and its 95% percentile interval, of what `bootstrap` returns."""
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return {"value": round(float(values[0]), 1), "low": round(float(low), 1), "high": round(float(high), 1)}


def rows_of(task: Task, items: list[Item], graded: dict[str, list[dict]], name: str | None = None) -> list[dict]:
    """One row per strategy and metric, with the paired difference to the expert's greedy decoding.

    graded: strategy -> a grade for every item; several runs follow one another, and the bootstrap draws an item with
    all its runs. "items" counts those that have the metric (a denominator above 0); a strategy without any has no row.
    """
    groups = [item.group for item in items]

    def values_of(grades: list[dict], metric: str) -> np.ndarray:
        return bootstrap(grades, groups * (len(grades) // len(items)), metric)

    base = graded.get(BASELINE, [])
    greedy = {metric: values_of(base, metric) for metric in (base[0] if base else ())}
    greedy = {metric: values for metric, values in greedy.items() if not np.isnan(values[0])}
    rows = []
    for strategy, grades in graded.items():
        for metric in grades[0]:
            having = {k % len(items) for k, grade in enumerate(grades) if grade[metric][1]}
            if not having:
                continue
            values = greedy[metric] if strategy == BASELINE else values_of(grades, metric)
            row = {"task": name or task.name, "strategy": strategy, "metric": metric, **interval(values)}
            if strategy != BASELINE and metric in greedy:
                row["minus_greedy"] = interval(values - greedy[metric])
            rows.append(row | {"items": len(having)} | _by_run(grades, len(items), metric))
    return rows


def _by_run(grades: list[dict], count: int, metric: str) -> dict[str, float]:
    """The lowest and the highest of several runs, in percent: how much a single seed would have told."""
    if len(grades) == count:
        return {}
    runs = [bootstrap(grades[k : k + count], [""] * count, metric)[0] for k in range(0, len(grades), count)]
    return {"runs": len(runs), "lowest_run": round(float(np.nanmin(runs)), 1),
            "highest_run": round(float(np.nanmax(runs)), 1)}  # fmt: skip


def text_rows(task: str, items: list[Item], written: dict[str, list[str]]) -> list[dict]:
    """Rows about the texts themselves: diversity with its intervals, distinct-2 and self-BLEU of the first run, words.

    written: strategy -> a text for every item; several runs follow one another. All in percent but the words (a mean
    per text). Self-BLEU needs sacrebleu and is left out without it.
    """
    spread = {strategy: _diversity(texts, items) for strategy, texts in written.items()}
    rows = []
    for strategy, texts in written.items():
        first = texts[: len(items)]
        found: dict[str, dict[str, Any]] = {"diversity": interval(spread[strategy])}
        if BASELINE in spread and strategy != BASELINE:
            found["diversity"]["minus_greedy"] = interval(spread[strategy] - spread[BASELINE])
        found["distinct-2"] = {"value": round(100 * distinct_n(first, 2), 1)}
        try:
            found["self-BLEU"] = {"value": round(self_bleu(first), 1)}
        except ImportError:
            pass
        found["words"] = {"value": round(sum(len(text.split()) for text in texts) / len(texts), 1)}
        rows += [
            {"task": task, "strategy": strategy, "metric": metric, **numbers, "items": len(items)}
            for metric, numbers in found.items()
        ]
    return rows


def _diversity(texts: list[str], items: list[Item]) -> np.ndarray:
    """[1 + RESAMPLES] values of `metrics.diversity` in percent, drawn as `bootstrap` draws."""
    groups = [item.group for item in items] * (len(texts) // len(items))
    left = np.ones(1 + RESAMPLES)
    for n in (2, 3, 4):
        counts = [ngram_counts(text, n) for text in texts]
        repeated = bootstrap([{"rep": (of - distinct, of)} for distinct, of in counts], groups, "rep")
        left *= 1 - np.nan_to_num(repeated) / 100  # texts too short for an n-gram repeat none
    return 100 * left


def table(rows: list[dict]) -> str:
    """The rows as aligned text, one block per task."""
    lines, last = [], None
    wide = max([27, *(len(row["strategy"]) for row in rows)])
    for row in sorted(rows, key=lambda r: r["task"]):
        if row["task"] != last:
            last = row["task"]
            counted = [r for r in rows if r["task"] == last]
            whole = [r["items"] for r in counted if "low" in r]
            most = max(whole, default=0)
            lines += ["", f"{last} ({most} items)" if whole else f"{last} ({counted[0]['items']} tokens)"]
        span = f"[{row['low']:5.1f}, {row['high']:5.1f}]" if "low" in row else ""
        against = row.get("minus_greedy")
        against = f"{against['value']:+6.1f} [{against['low']:+.1f}, {against['high']:+.1f}]" if against else ""
        if "runs" in row:
            against += f"  {row['runs']} runs: {row['lowest_run']:.1f} to {row['highest_run']:.1f}"
        if "low" in row and row["items"] < most:
            against += f"  ({row['items']} items)"
        lines.append(f"  {row['strategy']:{wide}} {row['metric']:22} {row['value']:6.1f} {span:16} {against}".rstrip())
    return "\n".join(lines[1:])


def legend(rows: list[dict]) -> str:
    """What the metrics of these rows mean, one line each."""
    used = dict.fromkeys(row["metric"] for row in rows)
    return "\n".join(f"  {metric:23} {LEGEND[metric]}" for metric in used if metric in LEGEND)


def write_csv(rows: list[dict], path: str | Path) -> None:
    """Tidy: one row per strategy, task and metric; cells without a number are empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(_flat, rows))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    against = row.get("minus_greedy")
    flat = {name: value for name, value in row.items() if name != "minus_greedy"}
    if against:
        flat |= {"minus_greedy": against["value"], "minus_greedy_low": against["low"]}
        flat["minus_greedy_high"] = against["high"]
    return flat
