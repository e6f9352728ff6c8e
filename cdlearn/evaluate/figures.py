"""The figures of an evaluation: scores with their intervals, and diversity against a score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdlearn.evaluate.report import to_frame
from cdlearn.show.plots import plot_tradeoff
from cdlearn.show.style import BLACK, GREY, STYLES, axes_or_new, name_ticks, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKS = [(BLACK, "v"), (GREY, "x"), *((color, mark) for color, _, mark in STYLES if color != BLACK)]


def plot_scores(rows: list[dict], task: str, metric: str, *, ax: Axes | None = None) -> Axes:
    """One line per method: a mark at the score and a bar over its 95% interval, in percent.

    rows: what `report.rows_of` returns. No bar: the interval has no width. Raises ValueError where no row fits.
    """
    scores = _scores(rows, task, metric)
    ax = axes_or_new(ax, (5.0, 0.8 + 0.35 * len(scores)))
    for y, row in enumerate(scores.itertuples()):
        color, mark = MARKS[y % len(MARKS)]
        ax.plot([row.low, row.high], [y, y], color=color, linewidth=2)
        ax.plot(row.value, y, mark, color=color, markersize=7)
    name_ticks(ax.yaxis, range(len(scores)), list(scores.index))
    ax.set(xlabel="percent", xlim=(-4, 104), ylim=(len(scores) - 0.5, -0.5))
    ax.set_title(f"{task}: {metric}", parse_math=False)
    return tidy(ax)


def plot_diversity(rows: list[dict], task: str, metric: str, *, ax: Axes | None = None) -> Axes:
    """Diversity and its 95% interval against a score, one mark per method, in percent: up and to the right is better.

    A decoder that says nothing is at the top right for "consistent": read it beside how long the texts are. Raises
    ValueError where no row fits.
    """
    across, y = f"{metric}, percent", "diversity, percent"
    frame = _scores(rows, task, "diversity").rename(columns={"value": y})
    frame[across] = _scores(rows, task, metric)["value"]
    ax = plot_tradeoff(frame.reset_index(), x=across, y=y, ax=ax)
    ax.set(xlim=(-4, 104), ylim=(-4, 104))
    return ax


def write_figures(rows: list[dict], headlines: dict[str, str], folder: str | Path) -> list[Path]:
    """Save scores.png and .svg, one panel per task, and diversity.png and .svg for the tasks that have texts.

    headlines: task -> the metric that sums it up. Returns the paths. Nothing is shown and no setting is changed.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state left over

    known = {(row["task"], row["metric"]) for row in rows}
    scored = [task for task, metric in headlines.items() if (task, metric) in known]
    panels = {"scores": (plot_scores, scored)}
    panels["diversity"] = plot_diversity, [task for task in scored if (task, "diversity") in known]
    folder, paths = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (plot, tasks) in panels.items():
        if tasks:
            figure = Figure(figsize=(6.2 * len(tasks), 4.0), layout="constrained")
            for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
                plot(rows, task, headlines[task], ax=ax)
            paths += [folder / f"{name}.{ending}" for ending in ("png", "svg")]
            for path in paths[-2:]:
                figure.savefig(path, dpi=150)
    return paths


def _scores(rows: list[dict], task: str, metric: str) -> pd.DataFrame:
    """The rows of a task and metric by method; without an interval it has no width."""
    frame = to_frame(rows)
    frame = frame[(frame.task == task) & (frame.metric == metric)].set_index("strategy")
    if frame.empty:
        raise ValueError(f"rows has nothing about task {task!r} and metric {metric!r}: name a pair that it holds.")
    return frame.assign(low=frame.low.fillna(frame.value), high=frame.high.fillna(frame.value))
