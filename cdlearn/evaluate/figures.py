"""The figures of an evaluation: scores with their intervals, and diversity against a score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdlearn.show.style import BLACK, GREY, STYLES, axes_or_new, name_ticks, no_math, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = [(BLACK, "v"), (GREY, "x"), *((color, mark) for color, _, mark in STYLES if color != BLACK)]


def plot_scores(rows: list[dict], task: str, metric: str, *, ax: Axes | None = None) -> Axes:
    """One line per strategy: a mark at the score and a bar over its 95% interval, in percent.

    rows: what `report.rows_of` returns. No bar: the interval has no width. Raises ValueError where no row fits.
    """
    found = _rows(rows, task, metric)
    ax = axes_or_new(ax, (5.0, 0.8 + 0.35 * len(found)))
    marks = _marks(rows)
    for y, row in enumerate(found):
        color, mark = marks[row["strategy"]]
        ax.plot([row.get("low", row["value"]), row.get("high", row["value"])], [y, y], color=color, linewidth=2)
        ax.plot(row["value"], y, mark, color=color, markersize=7)
    name_ticks(ax.yaxis, range(len(found)), [row["strategy"] for row in found])
    ax.set(xlabel="percent", xlim=(-4, 104), ylim=(len(found) - 0.5, -0.5))
    ax.set_title(f"{task}: {metric}", parse_math=False)
    return tidy(ax)


def plot_tradeoff(rows: list[dict], task: str, metric: str, *, ax: Axes | None = None) -> Axes:
    """Diversity against a score, one mark per strategy with both 95% intervals, in percent.

    Up and to the right is better. A decoder that says nothing is at the top right for "consistent": read it beside
    how long the texts are. Raises ValueError where no row fits.
    """
    ax = axes_or_new(ax, (5.5, 4.0))
    across = {row["strategy"]: row for row in _rows(rows, task, metric)}
    marks = _marks(rows)
    for row in _rows(rows, task, "diversity"):
        other, (color, mark) = across[row["strategy"]], marks[row["strategy"]]
        x, y = other["value"], row["value"]
        ax.plot([other["low"], other["high"]], [y, y], color=color, linewidth=1)
        ax.plot([x, x], [row["low"], row["high"]], color=color, linewidth=1)
        ax.plot(x, y, mark, color=color, markersize=8, label=row["strategy"])
    ax.set(xlim=(-4, 104), ylim=(-4, 104), ylabel="diversity, percent")
    ax.set_xlabel(f"{metric}, percent", parse_math=False)
    ax.set_title(f"{task}: diversity against {metric}", parse_math=False)
    no_math(ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)))
    return tidy(ax)


def write_figures(rows: list[dict], headlines: dict[str, str], folder: str | Path) -> list[Path]:
    """Save scores.png and .svg, one panel per task, and diversity.png and .svg for the tasks that have texts.

    headlines: task -> the metric that sums it up. Returns the paths. Nothing is shown and no setting is changed.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state left behind

    known = {(row["task"], row["metric"]) for row in rows}
    drawn = {
        "scores": (plot_scores, [task for task, metric in headlines.items() if (task, metric) in known]),
        "diversity": (plot_tradeoff, [t for t, m in headlines.items() if {(t, m), (t, "diversity")} <= known]),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (plot, tasks) in drawn.items():
        if not tasks:
            continue
        figure = Figure(figsize=(6.2 * len(tasks), 4.0), layout="constrained")
        for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
            plot(rows, task, headlines[task], ax=ax)
        for ending in ("png", "svg"):
            paths.append(folder / f"{name}.{ending}")
            figure.savefig(paths[-1], dpi=150)
    return paths


def _rows(rows: list[dict], task: str, metric: str) -> list[dict]:
    found = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    if not found:
        raise ValueError(f"rows has nothing about task {task!r} and metric {metric!r}: name a pair that it holds.")
    return found


def _marks(rows: list[dict]) -> dict[str, tuple[str, str]]:
    """Strategy -> colour and mark, the same in every panel."""
    names = dict.fromkeys(row["strategy"] for row in rows)
    return {name: MARKS[k % len(MARKS)] for k, name in enumerate(names)}
