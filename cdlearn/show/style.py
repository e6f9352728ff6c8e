"""What the figures of `plots` share: colours and styles, axes, token texts that are safe to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cdlearn.trace.tables import token_texts, visible
from cdlearn.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY, PALE = "#000000", "#767676", "#F0F0F0"
STYLES = [(BLUE, "-", "o"), (VERMILLION, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"), (BLACK, "-", "v")]
STYLES += [(SKY, "--", "P"), (ORANGE, "-.", "X")]
_LONGEST = 16  # characters of a token's text in a figure
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


def probs_of(trace: Trace, name: str) -> torch.Tensor | None:
    """The whole-vocabulary probabilities of a position's candidates, [N + 1]."""
    if name not in trace.parts:
        return None
    return (trace.parts[name][0] - trace.normalisers[name][0]).exp()


def texts_of(trace: Trace, ids: list[int], longest: int = _LONGEST) -> list[str]:
    return [visible(text, token, longest=longest) for token, text in zip(ids, token_texts(trace.tokenizer, ids))]


def name_ticks(axis: Any, places: Any, names: list[str], **look: Any) -> None:
    axis.set_ticks(list(places), names, **look)
    for label in axis.get_ticklabels():
        label.set_parse_math(False)  # a token may hold dollar signs


def name_positions(ax: Axes, trace: Trace) -> None:
    if len(trace) <= _LABELLED:
        name_ticks(ax.xaxis, range(len(trace)), texts_of(trace, trace.recorded_ids, 10), rotation=90, fontsize=8)
    else:
        ax.set_xlabel("position")


def no_math(legend: Any) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


def patch(name: str, color: str, hatch: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, hatch=hatch, edgecolor="white", label=name)


def legend(ax: Axes, patches: list[Any], *, masked: bool) -> None:
    patches = [*patches, *([patch("masked", PALE, "////")] if masked else [])]
    if masked:
        patches[-1].set_edgecolor(GREY)
    ax.legend(handles=patches, loc="lower center", ncols=4, fontsize=9)


def cell(ax: Axes, x: float, y: float, look: tuple[str, str, str, str], text: str, below: str) -> None:
    from matplotlib.patches import Rectangle

    face, hatch, ink, mark = look
    ax.add_patch(
        Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=face, hatch=hatch, edgecolor=BLACK, linewidth=0.8)
    )
    backing = {"facecolor": face, "edgecolor": "none", "pad": 1.2} if hatch else None
    words = ax.text(x + 0.5, y + (0.38 if below else 0.5), mark + text, ha="center", va="center", color=ink, fontsize=9,
                    bbox=backing)  # fmt: skip
    words.set_parse_math(False)
    if below:
        ax.text(x + 0.5, y + 0.78, below, ha="center", va="center", color=ink, fontsize=6.5, bbox=backing)


def tidy(ax: Axes, *, grid: bool = True) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(True, color="#E4E4E4", linewidth=0.6)
        ax.set_axisbelow(True)
    return ax
