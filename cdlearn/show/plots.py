"""Figures of traces and tables: each draws on the Axes given as `ax`, or on a new figure, and returns the Axes.

Nothing is shown, and no setting of matplotlib is changed. Colours are Okabe and Ito's; every difference also has a
hatch, a marker, a line style or a word, so a figure can be read without colours.
"""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch

from cdlearn.checks import is_int, short
from cdlearn.scores import NEVER
from cdlearn.show.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    STYLES,
    axes_or_new,
    cell,
    legend,
    name_positions,
    name_ticks,
    no_math,
    patch,
    probs_of,
    read_trace,
    texts_of,
    tidy,
)  # fmt: skip
from cdlearn.trace.flips import kept_columns
from cdlearn.trace.rescore import at_position, form_of, lines, penalized, strength_of
from cdlearn.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_step(trace: Any, position: int, *, top: int = 8, ax: Axes | None = None) -> Axes:
    """One decision: the probabilities of the expert's best `top` tokens and of the chosen one, before and after.

    trace: a `Trace` or a `Generation`. Bars: the expert's probability, the amateur's, and the softmax of the scores,
    with the score itself as a number (nats). The dashed line is the cutoff, alpha times the expert's best; tokens below
    it are hatched and out of the race. The chosen token is marked by an arrow.
    """
    trace = read_trace(trace)
    if not is_int(top):
        raise TypeError(f"top is {short(top)}: pass a whole number of tokens.")
    if top < 1:
        raise ValueError(f"top is {top}: pass at least 1.")
    here = at_position(trace, position)
    columns = list(range(min(top, here.candidates.shape[1] - 1)))
    ids, chosen = here.candidates[0].tolist(), here.token_ids[0]
    if chosen not in [ids[column] for column in columns]:
        columns.append(len(ids) - 1)
    first = here.score[0, :-1].softmax(dim=-1)  # over the candidates, each once
    score_probs = torch.cat([first, first[ids[:-1].index(chosen), None] if chosen in ids[:-1] else first.new_zeros(1)])
    bars = [("expert", BLUE, "", probs_of(here, "expert")), ("amateur", ORANGE, "..", probs_of(here, "amateur"))]
    bars += [("score, as softmax", GREEN, "\\\\\\", score_probs)] if "amateur" in here.parts else []
    bars = [(*style, values) for *style, values in bars if values is not None]

    ax = axes_or_new(ax, (7, 1.3 + 0.5 * len(columns)))
    height = 0.84 / len(bars)
    masked = (here.score[0] == NEVER).tolist()
    for k, (_, color, hatch, values) in enumerate(bars):
        for row, column in enumerate(columns):
            look = {"color": color, "hatch": hatch}
            if masked[column]:
                look = {"color": PALE, "hatch": "////"}
            y = row + (k - (len(bars) - 1) / 2) * height
            width = float(values[column])
            ax.barh(y, width, height, edgecolor=color if masked[column] else "white", linewidth=0.8, **look)
    legend(ax, [patch(name, color, hatch) for name, color, hatch, _ in bars], masked=any(masked[c] for c in columns))
    alpha, best = here.settings.get("alpha"), float(bars[0][3][0])
    if alpha is not None:
        ax.axvline(alpha * best, color=BLACK, linestyle="--", linewidth=1.2)
        ax.annotate(f"cutoff: {alpha:g} of the best", (alpha * best, -0.55), (4, 0), fontsize=8,
                    textcoords="offset points", va="center")  # fmt: skip
    widest = max(float(values[columns].max()) for *_, values in bars)
    for row, column in enumerate(columns):
        text = "masked" if masked[column] else f"{float(here.score[0, column]):+.2f}"
        end = max(*(float(values[column]) for *_, values in bars), (alpha or 0) * best)  # clear of the cutoff line
        ax.text(end + 0.015 * widest, row, f"{text}{'  ◀ chosen' if ids[column] == chosen else ''}", va="center",
                fontsize=9, fontweight="bold" if ids[column] == chosen else "normal")  # fmt: skip
    name_ticks(ax.yaxis, range(len(columns)), texts_of(here, [ids[column] for column in columns]))
    ax.set(xlabel="probability", title=f"Position {position}: the decision", xlim=(0, 1.28 * widest))
    ax.set_ylim(len(columns) + 0.35, -0.75)
    return tidy(ax)


def plot_strength(trace: Any, position: int, *, ax: Axes | None = None) -> Axes:
    """Scores of the kept tokens over the strength: lines whose upper envelope says which token greedy picks where.

    Only differences decide, so every line is drawn as its lead over the token that wins at strength 0, which is then
    the zero line. Tokens that win somewhere have a colour, a line style and a name; the others are grey. Dots mark the
    flip points, the dashed vertical line the recorded strength. For the form with beta, strength is beta / (1 + beta).
    Raises ValueError for a trace without a strength (DoLa, mixtures, plain).
    """
    trace = read_trace(trace)
    spans = trace.flip_points(position).strength
    if not spans:
        raise ValueError(
            f"the trace's method is {trace.settings['method']!r}, which has no strength: trace a Contrast."
        )
    here = at_position(trace, position)
    used = strength_of(here)
    flips = [span.start for span in spans[1:]]
    near = max((flip for flip in flips if flip <= max(2, 2 * used)), default=0)
    high = 0.98 if form_of(here, here.settings).share else max(1.25, 1.25 * used, 1.2 * near)
    grid = torch.tensor(sorted({*torch.linspace(0, high, 101).tolist(), *(flip for flip in flips if flip < high)}))
    shown = [span for span in spans if span.start < high]
    winners = list(dict.fromkeys(span.token_id for span in shown))
    scores = _lines_over(here, grid)
    leads = {token: score - scores[winners[0]] for token, score in scores.items()}
    top = torch.stack(list(leads.values())).amax(dim=0)

    ax = axes_or_new(ax, (7, 4.2))
    for token_id in leads.keys() - set(winners):
        ax.plot(grid, leads[token_id], color="#C4C4C4", linewidth=0.7, zorder=1)
    ax.plot(grid, top, color=BLACK, alpha=0.18, linewidth=9, solid_capstyle="round", zorder=1.5)
    names = texts_of(here, winners)
    for token_id, name, (color, style, _) in zip(winners, names, cycle(STYLES)):
        ax.plot(grid, leads[token_id], color=color, linestyle=style, linewidth=1.8, label=name)
    labelled = []
    for span in shown[1:]:
        y = float(top[(grid - span.start).abs().argmin()])
        ax.plot(span.start, y, "o", color="white", markeredgecolor=BLACK, markeredgewidth=1.5, zorder=4)
        crowd = sum(span.start - other < 0.07 * high for other in labelled)  # numbers close together are stacked
        labelled.append(span.start)
        ax.annotate(f"{span.start:.2f}", (span.start, y), (0, 9 + 11 * crowd), textcoords="offset points",
                    ha="center", fontsize=9)  # fmt: skip
    ax.axvline(used, color=BLACK, linestyle="--", linewidth=1)
    ax.annotate("recorded", (used, 1), (3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, va="top")  # fmt: skip
    further = [span for span in spans if span.start >= high]
    if further:
        named = zip(texts_of(here, [span.token_id for span in further]), further)
        words = "further right: " + ", ".join(f"{name} from {span.start:.2f}" for name, span in list(named)[:3])
        ax.text(0.99, 0.02, words, transform=ax.transAxes, ha="right", fontsize=8, parse_math=False)
    low, best = float(top.min()), float(top.max())
    room = max(best - low, 0.5)
    least = min(float(leads[token_id].min()) for token_id in winners) - 0.1 * room
    ax.set(xlim=(0, high), ylim=(max(low - room, least), best + 0.4 * room))
    ax.set(xlabel="strength", title=f"Position {position}: who wins at which strength")
    ax.set_ylabel(f"score ahead of {names[0]} (nats)", parse_math=False)
    no_math(ax.legend(title="wins somewhere", loc="best", fontsize=9))
    return tidy(ax)


def _lines_over(here: Trace, strengths: torch.Tensor) -> dict[int, torch.Tensor]:
    """The score of every kept token of a one-position trace at so many strengths [G]: token id -> [G]."""
    over, against, _ = lines(here, here.settings)
    share = form_of(here, here.settings).share
    t = (strengths / (1 - strengths) if share else strengths).double()[:, None]
    # the form with beta is scaled back by 1 + beta: the winners are the same and the lines are straight again
    scores = penalized(here, over - t * against) / (1 + t if share else 1)  # (G, N + 1)
    return {int(here.candidates[0, column]): scores[:, column] for column in kept_columns(here)}


def plot_trajectory(trace: Any, *, ax: Axes | None = None) -> Axes:
    """How the expert and the amateur ranked the chosen token at every position; rank 1, their best, is on top.

    Where the amateur's line drops and the expert's stays up, the contrast did its work. Ranks that a rescored trace
    cannot know are left out.
    """
    trace = read_trace(trace, needs_steps=True)
    ax = axes_or_new(ax, (max(6, min(0.28 * len(trace) + 1.5, 14)), 3.6))
    ranks = {"expert": trace.rank} | trace.ranks
    looks = (("expert", BLUE, "-", "o", 8), ("amateur", ORANGE, "--", "s", 4))  # both are seen where they agree
    for name, color, style, marker, size in looks:
        if name in ranks:
            values = [rank if rank > 0 else math.nan for rank in ranks[name].tolist()]
            ax.plot(range(len(values)), values, style, color=color, marker=marker, markersize=size, label=name,
                    markeredgecolor=BLACK, markeredgewidth=0.5, linewidth=1.3)  # fmt: skip
    ax.set_yscale("log")
    worst = max(10.0, *(float(values.max()) for name, values in ranks.items() if name in ("expert", "amateur")))
    ticks = [10**k for k in range(math.ceil(math.log10(worst)) + 1)]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_ylim(1.4 * worst, 0.75)
    name_positions(ax, trace)
    ax.set(ylabel="rank, 1 is the best", title="Rank of the chosen token")
    ax.legend(fontsize=9)
    return tidy(ax)


def plot_layers(trace: Any, *, ax: Axes | None = None) -> Axes:
    """DoLa's choice: how far every candidate layer is from the last one at every position, the chosen one outlined.

    Colours follow the square root of the divergence, so that small ones can be told apart too.
    Raises ValueError for a trace without divergences.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.patches import Rectangle

    trace = read_trace(trace, needs_steps=True)
    if "divergences" not in trace.details or "layers" not in trace.settings:
        raise ValueError(f"the trace's method is {trace.settings.get('method')!r}, which has no layers: trace a DoLa.")
    layers, divergences = trace.settings["layers"], trace.details["divergences"].double()  # (P, L)
    order = sorted(range(len(layers)), key=layers.__getitem__)
    ax = axes_or_new(ax, (max(6, min(0.28 * len(trace) + 2, 14)), 2 + 0.42 * max(2, len(layers))))
    values = divergences[:, order].T.numpy()
    image = ax.imshow(values, aspect="auto", cmap="cividis", origin="lower", norm=PowerNorm(0.5))
    for position, layer in enumerate(trace.details["premature_layer"].tolist()):
        corner = (position - 0.5, order.index(layers.index(layer)) - 0.5)
        for color, width in ((BLACK, 3.2), ("white", 1.4)):  # a double line stands out on dark and on light
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=color, linewidth=width, clip_on=False))
    ax.set_yticks(range(len(layers)), [str(layers[k]) for k in order])
    name_positions(ax, trace)
    kind = "JSD (nats)" if trace.settings.get("divergence") == "jsd" else "divergence"
    ax.figure.colorbar(image, ax=ax, label=kind, pad=0.02)
    ax.set(ylabel="candidate layer", title="How far from the last layer; outlined: the premature layer")
    return tidy(ax, grid=False)


def plot_rounds(trace: Any, *, ax: Axes | None = None) -> Axes:
    """Speculation, one row a round: drafted tokens that stood, those that fell, and the token the target gave itself.

    ✓ accepted; ✗ the rejected token; grey: drafted behind it and dropped; last column: → drawn from the residual
    after a rejection, + a bonus after a full house. Under a tested token stands its chance min(1, p / q).
    Raises ValueError for a trace without rounds.
    """
    from matplotlib.patches import Patch

    trace = read_trace(trace)
    if not trace.rounds:
        raise ValueError("the trace has no rounds: pass what speculate returned.")
    slots = max(len(facts["draft_ids"]) for facts in trace.rounds)
    ax = axes_or_new(ax, (1.6 + 1.25 * (slots + 1), 1.3 + 0.46 * len(trace.rounds)))
    looks = {
        "accepted": (BLUE, "", "white", "✓ "),
        "rejected": ("white", "////", BLACK, "✗ "),
        "dropped": (PALE, "", GREY, ""),
        "residual": (ORANGE, "", BLACK, "→ "),
        "bonus": ("#66C2A5", "", BLACK, "+ "),
    }
    for row, facts in enumerate(trace.rounds):
        stood = facts["accepted"]
        kinds = ["accepted"] * stood + ["dropped"] * (len(facts["draft_ids"]) - stood)
        if facts["next_kind"] == "residual":
            kinds[stood] = "rejected"
        chances = [f"{chance:.2f}" for chance in facts["accept_probability"]]
        for k, (kind, text) in enumerate(zip(kinds, texts_of(trace, facts["draft_ids"], 11))):
            cell(ax, k, row, looks[kind], text, chances[k] if kind != "dropped" and facts["u"] else "")
        if facts["next_id"] is not None:
            cell(ax, slots + 0.15, row, looks[facts["next_kind"]], texts_of(trace, [facts["next_id"]], 11)[0], "")
    patches = [Patch(facecolor=face, hatch=hatch, edgecolor=BLACK, label=f"{mark}{kind}")
               for kind, (face, hatch, _, mark) in looks.items()]  # fmt: skip
    ax.legend(handles=patches, ncols=5, loc="lower center", bbox_to_anchor=(0.5, -0.02 - 0.9 / (len(trace.rounds) + 2)),
              fontsize=8, frameon=False, columnspacing=1.2, handlelength=1.4)  # fmt: skip
    ax.set_xticks(
        [*(k + 0.5 for k in range(slots)), slots + 0.65], [*(f"draft {k + 1}" for k in range(slots)), "target"]
    )
    ax.set_yticks([row + 0.5 for row in range(len(trace.rounds))], [str(facts["round"]) for facts in trace.rounds])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlim=(-0.05, slots + 1.2), ylim=(len(trace.rounds) + 0.05, -0.05), ylabel="round")
    drafted, stood = sum(len(facts["draft_ids"]) for facts in trace.rounds), sum(f["accepted"] for f in trace.rounds)
    ax.set_title(f"{stood} of {drafted} drafted tokens accepted in {len(trace.rounds)} rounds")
    for side in ax.spines.values():
        side.set_visible(False)
    return ax
