"""Figures of traces and tables: each draws on the Axes given as `ax`, or on a new figure, and returns the Axes.

Nothing is shown, and no setting of matplotlib is changed. Colours are Okabe and Ito's; every difference also has a
hatch, a marker, a line style or a word, so a figure can be read without colours.
"""

from __future__ import annotations

import math
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch

from cdlearn.checks import check_count
from cdlearn.scores import NEVER
from cdlearn.show import style
from cdlearn.show.html import METRICS, blend, metric_values, texts_of
from cdlearn.show.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, STYLES, axes_or_new, read_trace, tidy
from cdlearn.trace.flips import kept_columns
from cdlearn.trace.rescore import at_position, form_of, lines, log_probs, penalized, strength_of
from cdlearn.trace.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_strip(trace: Any, *, metric: str = "contrast gain", width: int = 88, ax: Axes | None = None) -> Axes:
    """The text as coloured tokens: the picture of what a notebook shows, for pages that take colours out of HTML.

    metric: one of `cdlearn.show.html.METRICS`; blue is above 0, orange below. A bar under a token: the expert alone
    would have chosen another one. width: characters per line. Raises ValueError for a trace that lacks the metric.
    """
    from matplotlib.patches import Rectangle

    trace = read_trace(trace, needs_steps=True)
    values = metric_values(trace, metric).tolist()
    if not any(map(math.isfinite, values)):
        raise ValueError(f"metric is {metric!r}, which this trace lacks: trace a contrast, or take another metric.")
    largest = max(abs(value) for value in values if math.isfinite(value)) or 1.0
    places, x, y = [], 0, 0
    for text in texts_of(trace, trace.recorded_ids, check_count(width, "width", high=1000)):
        x, y = (0, y + 1) if x and x + len(text) > width else (x, y)
        places.append((x, y, text))
        x += len(text) + 1
    ax = axes_or_new(ax, (10, 0.9 + 0.32 * (y + 1)))
    for (x, y, text), value, rank in zip(places, values, trace.rank.tolist()):
        face = [part / 255 for part in blend(value / largest)]
        ax.add_patch(Rectangle((x, y), len(text) + 0.7, 0.8, facecolor=face, edgecolor="#999999", linewidth=0.6))
        look = dict(family="monospace", fontsize=9, va="center", ha="center", color=BLACK, parse_math=False)
        ax.text(x + (len(text) + 0.7) / 2, y + 0.4, text, **look)
        if rank > 1:
            ax.add_patch(Rectangle((x, y + 0.82), len(text) + 0.7, 0.1, facecolor=style.VERMILLION))
    ax.set(xlim=(0, width + 1), ylim=(y + 1.1, -0.1), title=METRICS[metric])
    ax.set(xticks=[], yticks=[], ylabel=f"0 to {largest:.2g}" if min(values) >= 0 else f"±{largest:.2g}")
    ax.spines[:].set_visible(False)
    return ax


def plot_step(trace: Any, position: int, *, top: int = 8, ax: Axes | None = None) -> Axes:
    """One decision: the probabilities of the expert's best `top` tokens and of the chosen one, before and after.

    trace: a `Trace` or a `Generation`. Bars: the expert's probability, the amateur's, and the softmax of the scores,
    with the score itself as a number (nats). The dashed line is the cutoff, alpha times the expert's best; tokens below
    it are hatched and out of the race. The chosen token is marked by an arrow.
    """
    here = at_position(read_trace(trace), position)
    ids, chosen = here.candidates[0].tolist(), here.token_ids[0]
    columns = list(range(min(check_count(top, "top"), len(ids) - 1)))
    if ids.index(chosen) not in columns:
        columns.append(ids.index(chosen))
    scores, rows = here.score[0, columns].tolist(), range(len(columns))
    probs = {name: log_probs(here, name)[0].exp() for name in ("expert", "amateur") if name in here.parts}
    if "amateur" in probs:  # over the candidates, each once
        probs["score, as softmax"] = torch.cat([here.score[0, :-1].softmax(dim=-1), torch.zeros(1)])
    bars = {name: values[columns].tolist() for name, values in probs.items()}
    looks = dict(zip(bars, ((BLUE, ""), (ORANGE, ".."), (GREEN, "\\\\\\"))))

    ax = axes_or_new(ax, (7, 1.3 + 0.5 * len(rows)))
    height = 0.84 / len(bars)
    for k, (name, values) in enumerate(bars.items()):
        color, hatch = looks[name]
        places = [row + (k - (len(bars) - 1) / 2) * height for row in rows]
        cells = [(PALE, "////", color) if score == NEVER else (color, hatch, "white") for score in scores]
        faces, hatches, edges = zip(*cells)
        ax.barh(places, values, height, color=faces, hatch=hatches, edgecolor=edges, linewidth=0.8)
    samples = [(name, color, hatch, "white") for name, (color, hatch) in looks.items()]
    samples += [("masked", PALE, "////", GREY)] if NEVER in scores else []
    ax.legend(handles=style.patches(samples), loc="lower center", ncols=4, fontsize=9)
    alpha, cutoff = here.settings.get("alpha"), 0.0
    if alpha is not None:
        cutoff = alpha * bars["expert"][0]
        ax.axvline(cutoff, color=BLACK, linestyle="--", linewidth=1.2)
        style.note(ax, f"cutoff: {alpha:g} of the best", (cutoff, -0.55), (4, 0), va="center")
    widest = max(map(max, bars.values()))
    for row, column, score in zip(rows, columns, scores):
        text, is_chosen = "masked" if score == NEVER else f"{score:+.2f}", ids[column] == chosen
        end = max(cutoff, *(values[row] for values in bars.values()))  # clear of the cutoff line
        ax.text(end + 0.015 * widest, row, f"{text}{'  ◀ chosen' if is_chosen else ''}", va="center", fontsize=9,
                fontweight="bold" if is_chosen else "normal")  # fmt: skip
    style.name_ticks(ax.yaxis, rows, texts_of(here, [ids[column] for column in columns], 16))
    ax.set(xlabel="probability", title=f"Position {position}: the decision", xlim=(0, 1.28 * widest))
    ax.set_ylim(len(rows) + 0.35, -0.75)
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
        method = trace.settings.get("method")
        raise ValueError(f"the trace's method is {method!r}, which has no strength: trace a Contrast.")
    here = at_position(trace, position)
    used = strength_of(here)
    near = max((span.start for span in spans[1:] if span.start <= max(2, 2 * used)), default=0)
    high = 0.98 if form_of(here, here.settings).share else max(1, 1.25 * used, 1.2 * near)
    shown, further = ([span for span in spans if (span.start < high) == inside] for inside in (True, False))
    grid = torch.tensor(sorted({*torch.linspace(0, high, 101).tolist(), *(span.start for span in shown[1:])}))
    winners = list(dict.fromkeys(span.token_id for span in shown))
    names, scores = texts_of(here, winners, 16), _lines_over(here, grid)
    leads = {token: score - scores[winners[0]] for token, score in scores.items()}
    top = torch.stack(list(leads.values())).amax(dim=0)

    ax = axes_or_new(ax, (7, 4.2))
    for token_id in leads.keys() - set(winners):
        ax.plot(grid, leads[token_id], color="#C4C4C4", linewidth=0.7, zorder=1)
    ax.plot(grid, top, color=BLACK, alpha=0.18, linewidth=9, solid_capstyle="round", zorder=1.5)
    for token_id, name, (color, line, _) in zip(winners, names, cycle(STYLES)):
        ax.plot(grid, leads[token_id], color=color, linestyle=line, linewidth=1.8, label=name)
    flips = [span.start for span in shown[1:]]
    for k, flip in enumerate(flips):
        y = float(top[(grid - flip).abs().argmin()])
        ax.plot(flip, y, "o", color="white", markeredgecolor=BLACK, markeredgewidth=1.5, zorder=4)
        crowd = sum(flip - other < 0.07 * high for other in flips[:k])  # numbers close together are stacked
        style.note(ax, f"{flip:.2f}", (flip, y), (0, 9 + 11 * crowd), ha="center", fontsize=9)
    ax.axvline(used, color=BLACK, linestyle="--", linewidth=1)
    style.note(ax, "recorded", (used, 1), (3, -3), xycoords=("data", "axes fraction"), va="top")
    if further:
        named = zip(texts_of(here, [span.token_id for span in further[:3]], 16), further)
        words = "further right: " + ", ".join(f"{name} from {span.start:.2f}" for name, span in named)
        ax.text(0.99, 0.02, words, transform=ax.transAxes, ha="right", fontsize=8, parse_math=False)
    low, best = float(top.min()), float(top.max())
    room = max(best - low, 0.5)
    least = min(float(leads[token_id].min()) for token_id in winners) - 0.1 * room
    ax.set(xlim=(0, high), ylim=(max(low - room, least), best + 0.4 * room))
    ax.set(xlabel="strength", title=f"Position {position}: who wins at which strength")
    ax.set_ylabel(f"score ahead of {names[0]} (nats)", parse_math=False)
    style.no_math(ax.legend(title="wins somewhere", loc="best", fontsize=9))
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
    ranks, worst = {"expert": trace.rank} | trace.ranks, 10
    looks = (("expert", BLUE, "-", "o", 8), ("amateur", ORANGE, "--", "s", 4))  # both are seen where they agree
    for name, color, line, marker, size in looks:
        if name in ranks:
            values = ranks[name].tolist()
            worst = max(worst, *values)
            ax.plot([rank if rank > 0 else math.nan for rank in values], line, color=color, marker=marker, label=name,
                    markersize=size, markeredgecolor=BLACK, markeredgewidth=0.5, linewidth=1.3)  # fmt: skip
    ax.set_yscale("log")
    ticks = [10**k for k in range(math.ceil(math.log10(worst)) + 1)]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.set_ylim(1.4 * worst, 0.75)
    style.name_positions(ax, trace)
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
    style.name_positions(ax, trace)
    kind = "JSD (nats)" if trace.settings.get("divergence") == "jsd" else "divergence"
    ax.figure.colorbar(image, ax=ax, label=kind, pad=0.02)
    ax.set(ylabel="candidate layer", title="How far from the last layer; outlined: the premature layer")
    return tidy(ax, grid=False)


_ROUNDS = {  # what became of a token: face (the draft's orange, the target's blue), hatch, ink, mark
    "accepted": (ORANGE, "", BLACK, "✓ "),
    "rejected": ("white", "////", BLACK, "✗ "),
    "dropped": (PALE, "", GREY, ""),
    "residual": (BLUE, "", "white", "→ "),
    "bonus": (style.SKY, "", BLACK, "+ "),
}


def plot_rounds(trace: Any, *, ax: Axes | None = None) -> Axes:
    """Speculation, one row per round: drafted tokens accepted and rejected, and the token the target gave itself.

    ✓ accepted; ✗ the rejected token; grey: drafted after it and dropped; last column: → drawn from the residual
    after a rejection, + a bonus where all were accepted. A tested token has its chance min(1, p / q) below it.
    Raises ValueError for a trace without rounds.
    """
    trace = read_trace(trace)
    if not trace.rounds:
        raise ValueError("the trace has no rounds: pass what speculate returned.")
    count, slots = len(trace.rounds), max(len(facts["draft_ids"]) for facts in trace.rounds)
    ax = axes_or_new(ax, (1.6 + 1.25 * (slots + 1), 1.3 + 0.46 * count))
    for row, facts in enumerate(trace.rounds):
        accepted, drafts = facts["accepted"], texts_of(trace, facts["draft_ids"], 11)
        kinds = ["accepted"] * accepted + ["dropped"] * (len(drafts) - accepted)
        if facts["next_kind"] == "residual":
            kinds[accepted] = "rejected"
        for k, (kind, text, chance) in enumerate(zip(kinds, drafts, facts["accept_probability"])):
            _cell(ax, k, row, kind, text, f"{chance:.2f}" if kind != "dropped" and facts["u"] else "")
        if facts["next_id"] is not None:
            _cell(ax, slots + 0.15, row, facts["next_kind"], *texts_of(trace, [facts["next_id"]], 11))
    samples = [(f"{mark}{kind}", face, hatch, BLACK) for kind, (face, hatch, _, mark) in _ROUNDS.items()]
    ax.legend(handles=style.patches(samples), ncols=5, loc="lower center", fontsize=8, frameon=False, handlelength=1.4,
              bbox_to_anchor=(0.5, -0.02 - 0.9 / (count + 2)), columnspacing=1.2)  # fmt: skip
    places = [*(k + 0.5 for k in range(slots)), slots + 0.65]
    ax.set_xticks(places, [*(f"draft {k + 1}" for k in range(slots)), "target"])
    ax.set_yticks([row + 0.5 for row in range(count)], [str(facts["round"]) for facts in trace.rounds])
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlim=(-0.05, slots + 1.2), ylim=(count + 0.05, -0.05), ylabel="round")
    drafted, accepted = (sum(values) for values in zip(*((len(f["draft_ids"]), f["accepted"]) for f in trace.rounds)))
    ax.set_title(f"{accepted} of {drafted} drafted tokens accepted in {count} rounds")
    ax.spines[:].set_visible(False)
    return ax


def _cell(ax: Axes, x: float, y: float, kind: str, text: str, below: str = "") -> None:
    """One token of a round, its chance below it."""
    from matplotlib.patches import Rectangle

    face, hatch, ink, mark = _ROUNDS[kind]
    box = dict(facecolor=face, hatch=hatch, edgecolor=BLACK, linewidth=0.8)
    ax.add_patch(Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, **box))
    backing = {"facecolor": face, "edgecolor": "none", "pad": 3} if hatch else None
    look = dict(ha="center", va="center", color=ink, bbox=backing, parse_math=False)
    ax.text(x + 0.5, y + (0.38 if below else 0.5), mark + text, fontsize=9, **look)
    if below:
        ax.text(x + 0.5, y + 0.78, below, fontsize=7.5, **look)
