"""From answers to numbers: percentages with bootstrap intervals, rows, a table, a tidy CSV."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
    "rep-2": "word pairs (Chinese, Thai: character pairs) that the same text has said before; less is better",
    "rep-2, tokens": "rep-2 of token pairs, which also sees loops inside a word",
    "diversity": "(1 - rep-2)(1 - rep-3)(1 - rep-4) of each text, their mean; more is better",
    "diversity, tokens": "diversity of tokens",
    "consistent": "stories that contradict their prompt nowhere, be it that they say nothing",
    "mentions right": "mentions of colour, object, animal, place and hero that agree with the prompt",
    "named": "of these five, what the story names rightly",
    "ends": 'stories that reach "The end."',
    "contains the answer": "the answer is somewhere in the text, as whole words where the script has spaces",
    "is the answer": "the text is the answer and nothing else",
    "last number": "the last number of the text is the answer's",
    "ended": "the text came to its end before the limit of new tokens; a text that is cut off may lack its answer",
    "1 - TV": "the acceptance rate of that draft in speculative sampling",
    "amateur's greedy choice": "tokens that the amateur alone would have chosen, too",
}
COLUMNS = "strategy task metric value low high minus_greedy minus_greedy_low minus_greedy_high items".split()


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


def rows_of(title: str, items: list[Item], graded: dict[str, list[dict]]) -> list[dict]:
    """One row per method and metric, with the paired difference to the expert's greedy decoding.

    graded: method -> a grade for every item. "items" counts those that have the metric (a denominator above 0); a
    method without any has no row.
    """
    groups, rows = [item.group for item in items], []
    base = {metric: bootstrap(graded[BASELINE], groups, metric) for metric in graded.get(BASELINE, [{}])[0]}
    for spec, grades in graded.items():
        for metric in grades[0]:
            having = sum(grade[metric][1] > 0 for grade in grades)
            if having:
                values = bootstrap(grades, groups, metric)
                row = {"task": title, "strategy": spec, "metric": metric} | interval(values)
                if spec != BASELINE and metric in base and not np.isnan(base[metric][0]):
                    row["minus_greedy"] = interval(values - base[metric])
                rows.append(row | {"items": having})
    return rows


def to_frame(rows: list[dict]) -> pd.DataFrame:
    """Tidy: one row per method, task and metric; numbers that a row lacks are missing values."""
    frame = pd.json_normalize(rows, sep="_").rename(columns={"minus_greedy_value": "minus_greedy"})
    return frame.reindex(columns=COLUMNS)


def table(rows: list[dict]) -> str:
    """The rows as aligned text, a block for each metric of a task; one item has no interval."""
    blocks: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        against = _spanned(row["minus_greedy"], row, "+") if "minus_greedy" in row else ""
        line = {"percent": _spanned(row, row), "minus greedy": against, "items": row["items"]}
        blocks.setdefault((row["task"], row["metric"]), []).append({"": row["strategy"]} | line)
    texts = [
        f"{task}: {metric}\n{pd.DataFrame(lines).to_string(index=False)}" for (task, metric), lines in blocks.items()
    ]
    return "\n\n".join(texts)


def _spanned(found: dict, row: dict, sign: str = "") -> str:
    """A value with its interval, where it has one."""
    span = f" [{found['low']:{sign}.1f}, {found['high']:{sign}.1f}]" if "low" in found and row["items"] > 1 else ""
    return f"{found['value']:{sign}.1f}{span}"


def legend(rows: list[dict]) -> str:
    """What the metrics of these rows mean, one line each."""
    used = dict.fromkeys(row["metric"] for row in rows)
    return "\n".join(f"  {metric:23} {LEGEND[metric]}" for metric in used if metric in LEGEND)
