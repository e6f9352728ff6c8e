"""What the figures share: colours and styles, axes, marks, token texts that are safe to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdlearn.show.html import texts_of
from cdlearn.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY, PALE = "#000000", "#767676", "#F0F0F0"
STYLES = [(BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (BLACK, "-", "v")]
STYLES += [(SKY, "--", "P"), (ORANGE, "-.", "X")]
_LABELLED = 48  # positions that are named by their tokens; beyond, by numbers


def read_trace(value: Any, name: str = "trace", *, needs_steps: bool = False) -> Trace:
    """A trace, given itself or as a generation; name: the argument's."""
    trace = getattr(value, "trace", value)
    if trace is None and value is not None:
        raise ValueError(f"{name} has no trace: generate it with trace=True.")
    if not isinstance(trace, Trace):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a Trace or a Generation.")
    if needs_steps and not len(trace):
        raise ValueError(f"{name} has no positions: generate at least one token.")
    return trace


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=size, layout="constrained")[1]
    if not hasattr(ax, "plot") or not hasattr(ax, "figure"):
        raise TypeError(f"ax is a {type(ax).__name__}: pass one matplotlib Axes, or None for a new figure.")
    return ax


def no_math(texts: Any) -> None:
    """Draw the texts of a legend or of labels as they are: a token may hold dollar signs."""
    for text in texts.get_texts() if hasattr(texts, "get_texts") else texts:
        text.set_parse_math(False)


def name_ticks(axis: Any, places: Any, names: list[str], **look: Any) -> None:
    axis.set_ticks(list(places), names, **look)
    no_math(axis.get_ticklabels())


def name_positions(ax: Axes, trace: Trace) -> None:
    if len(trace) <= _LABELLED:
        letters = 10 if len(trace) <= _LABELLED // 2 else 8
        name_ticks(ax.xaxis, range(len(trace)), texts_of(trace, trace.recorded_ids, 10), rotation=90, fontsize=letters)
    else:
        ax.set_xlabel("position")


def note(ax: Axes, text: str, at: tuple[float, float], by: tuple[float, float], **look: Any) -> None:
    """Words a few points beside a place."""
    ax.annotate(text, at, by, textcoords="offset points", **{"fontsize": 8} | look)


def patches(looks: list[tuple[str, str, str, str]]) -> list[Any]:
    """A legend's samples: (label, face, hatch, edge) each."""
    from matplotlib.patches import Patch

    return [Patch(label=label, facecolor=face, hatch=hatch, edgecolor=edge) for label, face, hatch, edge in looks]


def tidy(ax: Axes, *, grid: bool = True) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(True, color="#E4E4E4", linewidth=0.6)
        ax.set_axisbelow(True)
    return ax
