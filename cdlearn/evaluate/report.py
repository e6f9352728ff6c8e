"""From answers to numbers: percentages with bootstrap intervals, rows, a table, a tidy CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cdlearn.metrics import distinct_n, ngram_counts
from cdlearn.toyworld.tasks import Item

BASELINE = "greedy"  # what every method is compared to, item by item
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
    "contains the answer": "the answer is somewhere in the text, as whole words",
    "is the answer": "the text is the answer and nothing else",
    "diversity": "(1 - rep-2)(1 - rep-3)(1 - rep-4)",
    "distinct-2": "different word pairs of all word pairs in all texts",
    "words": "a mean, no percentage",
    "1 - TV": "the acceptance rate of that draft in speculative sampling",
    "amateur's greedy choice": "tokens that the amateur alone would have chosen, too",
}
COLUMNS = ["strategy", "task", "metric", "value", "low", "high", "minus_greedy", "minus_greedy_low"]
COLUMNS += ["minus_greedy_high", "items", "runs", "lowest_run", "highest_run"]


def bootstrap(grades: list[dict], groups: list[str], metric: str, *, seed: int = 0) -> np.ndarray:
    """[1 + RESAMPLES] values of a metric in percent: as measured, then with the groups drawn anew with replacement.

    The same groups in the same order give the same draws, so that two methods can be compared item by item. NaN where
    nothing that was drawn has the metric.
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


def _against(base: np.ndarray | None, values: np.ndarray) -> dict:
    """The value with its interval, and where there is a baseline the paired difference to it."""
    paired = base is not None and not np.isnan(base[0])
    return interval(values) | ({"minus_greedy": interval(values - base)} if paired else {})


def rows_of(title: str, items: list[Item], graded: dict[str, list[dict]]) -> list[dict]:
    """One row per method and metric, with the paired difference to the expert's greedy decoding.

    graded: method -> a grade for every item; several runs follow one another, and the bootstrap draws an item with all
    its runs. "items" counts those that have the metric (a denominator above 0); a method without any has no row.
    """
    groups = [item.group for item in items]
    drawn = {
        (spec, metric): bootstrap(grades, groups * (len(grades) // len(items)), metric)
        for spec, grades in graded.items()
        for metric in grades[0]
    }
    rows = []
    for (spec, metric), values in drawn.items():
        having = {k % len(items) for k, grade in enumerate(graded[spec]) if grade[metric][1]}
        if having:
            base = None if spec == BASELINE else drawn.get((BASELINE, metric))
            row = {"task": title, "strategy": spec, "metric": metric} | _against(base, values) | {"items": len(having)}
            rows.append(row | _by_run(graded[spec], len(items), metric))
    return rows


def _by_run(grades: list[dict], count: int, metric: str) -> dict[str, float]:
    """The lowest and the highest of several runs, in percent: how much a single seed would have shown."""
    if len(grades) == count:
        return {}
    runs = [bootstrap(grades[k : k + count], [""] * count, metric)[0] for k in range(0, len(grades), count)]
    lowest, highest = (round(float(best(runs)), 1) for best in (np.nanmin, np.nanmax))
    return {"runs": len(runs), "lowest_run": lowest, "highest_run": highest}


def text_rows(title: str, items: list[Item], written: dict[str, list[str]]) -> list[dict]:
    """Rows about the texts themselves: diversity with its intervals, distinct-2 of the first run, words.

    written: method -> a text for every item; several runs follow one another. All in percent but the words (a mean per
    text).
    """
    spread = {spec: _diversity(texts, items) for spec, texts in written.items()}
    rows = []
    for spec, texts in written.items():
        first, base = texts[: len(items)], None if spec == BASELINE else spread.get(BASELINE)
        numbers = {"diversity": _against(base, spread[spec])}
        numbers["distinct-2"] = {"value": round(100 * distinct_n(first, 2), 1)}
        numbers["words"] = {"value": round(sum(len(text.split()) for text in texts) / len(texts), 1)}
        names = {"task": title, "strategy": spec}
        rows += [names | {"metric": metric} | row | {"items": len(items)} for metric, row in numbers.items()]
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


def to_frame(rows: list[dict]) -> pd.DataFrame:
    """Tidy: one row per method, task and metric; numbers that a row lacks are missing values."""
    frame = pd.json_normalize(rows, sep="_").rename(columns={"minus_greedy_value": "minus_greedy"})
    return frame.reindex(columns=COLUMNS).astype({"items": "Int64", "runs": "Int64"})


def write_csv(rows: list[dict], path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_frame(rows).to_csv(path, index=False, lineterminator="\n")


def table(rows: list[dict]) -> str:
    """The rows as aligned text, one block per task."""
    blocks = []
    for task, part in to_frame(rows).groupby("task"):
        whole = part[part.low.notna()]["items"]
        blocks.append(f"{task} ({whole.max()} items)" if len(whole) else f"{task} ({part['items'].iloc[0]} tokens)")
        cells = pd.DataFrame([_cells(row, whole.max()) for row in part.itertuples()])
        cells = cells.apply(lambda column: column.str.ljust(column.str.len().max()))
        blocks += [("  " + "  ".join(row)).rstrip() for row in cells.itertuples(index=False)] + [""]
    return "\n".join(blocks[:-1])


def _cells(row, most: int) -> list[str]:
    """A row's columns as text; most: the items of its task, of which a metric may concern fewer."""
    span = against = ""
    if pd.notna(row.low):
        span = f"[{row.low:5.1f}, {row.high:5.1f}]"
    if pd.notna(row.minus_greedy):
        against = f"{row.minus_greedy:+6.1f} [{row.minus_greedy_low:+.1f}, {row.minus_greedy_high:+.1f}]"
    if pd.notna(row.runs):
        against += f"  {row.runs} runs: {row.lowest_run:.1f} to {row.highest_run:.1f}"
    if span and row.items < most:
        against += f"  ({row.items} items)"
    return [row.strategy, row.metric, f"{row.value:6.1f}", span, against]


def legend(rows: list[dict]) -> str:
    """What the metrics of these rows mean, one line each."""
    used = dict.fromkeys(row["metric"] for row in rows)
    return "\n".join(f"  {metric:23} {LEGEND[metric]}" for metric in used if metric in LEGEND)
