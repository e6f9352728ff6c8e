"""HTML without scripts: coloured strips of tokens and tables, for notebooks, pages and the inspector.

JupyterLab's sanitiser drops style sheets, scripts, ids and aria attributes, so everything is inline. Token text comes
from models: it is escaped, and what cannot be seen (spaces, line breaks, control characters) is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cdlearn.checks import check_word
from cdlearn.trace.record import Record
from cdlearn.trace.rescore import at_position
from cdlearn.trace.tables import token_texts, visible

SHOWN = 200  # tokens of a strip, more are counted only
METRICS = {
    "contrast gain": "log p expert - log p amateur of the chosen token, in nats",
    "expert surprisal": "-log p expert of the chosen token, in nats",
    "amateur surprisal": "-log p amateur of the chosen token, in nats",
    "entropy": "the expert's entropy before the token, in nats",
    "distance": "total-variation distance of expert and amateur before the token",
    "acceptance": "the chance that a drafted token had (0 where nothing was drafted)",
}
EMPTY = "<em>An empty trace: no token was chosen.</em>"
# black on light backgrounds in every theme; blue is more, orange is less than nothing (Okabe-Ito)
_BLUE, _ORANGE = (86, 180, 233), (230, 159, 0)
_HERE = "#D55E00"  # a border that is seen on white and on black
_CHIP = "border-radius:3px;padding:1px 2px;margin:1px;display:inline-block;font-family:monospace;white-space:pre"
_CHIP += ";unicode-bidi:isolate"
_NUMBER, _WORD = (f' style="text-align:{side};padding:0 8px"' for side in ("right", "left"))


def escaped(text: str | None, token_id: int) -> str:
    """A token made visible (spaces, line breaks, control characters drawn) and safe inside HTML."""
    return html.escape(visible(text, token_id), quote=True)


def texts_of(trace: Record, ids: Sequence[int], longest: int = 0) -> list[str]:
    """Ids as visible text, cut to so many characters (0: not cut); not escaped."""
    return [visible(text, token, longest=longest) for token, text in zip(ids, token_texts(trace.tokenizer, ids))]


def names_of(trace: Record, ids: Sequence[int] | None = None) -> list[str]:
    """The tokens of a trace, or other ids, as escaped and visible text."""
    return [html.escape(text, quote=True) for text in texts_of(trace, trace.token_ids if ids is None else ids)]


def metric_values(trace: Record, metric: str) -> Tensor:
    """One number per position, [P], of a metric in `METRICS`. NaN where the trace has no amateur."""
    check_word(metric, "metric", tuple(METRICS))
    nothing = torch.full((len(trace),), math.nan)
    expert, amateur = (
        trace.parts[name][:, -1] - trace.normalisers[name] if name in trace.parts else nothing
        for name in ("expert", "amateur")
    )
    values = {
        "contrast gain": expert - amateur,
        "expert surprisal": -expert,
        "amateur surprisal": -amateur,
        "entropy": trace.entropy.get("expert", nothing),
        "distance": trace.total_variation.get("amateur", nothing),
        "acceptance": trace.details.get("accept_probability", nothing),
    }
    return values[metric]


def first_moved(trace: Record) -> int:
    """The first position where the expert alone would have chosen another token; 0 where there is none."""
    return next((k for k, rank in enumerate(trace.rank.tolist()) if rank > 1), 0)


def token_strip(
    tokens: Sequence[str],
    values: Tensor | None = None,
    *,
    marks: Sequence[bool] = (),
    titles: Sequence[str] = (),
    selected: int = -1,
) -> str:
    """Tokens (escaped HTML) side by side, coloured by their values: blue above 0, orange below, stronger for more.

    values: [P]; NaN stays white, as all do without values. marks: a dot under tokens that deserve a second look.
    selected: a thick border.
    """
    numbers = [math.nan] * len(tokens) if values is None else values.tolist()
    largest = max((abs(v) for v in numbers if math.isfinite(v)), default=0.0) or 1.0
    chips = []
    for k, (token, value) in enumerate(zip(tokens[:SHOWN], numbers)):
        border = f"2px solid {_HERE}" if k == selected else "1px solid #999"
        mark = "<sub>\N{BULLET}</sub>" if k < len(marks) and marks[k] else ""
        title = html.escape(titles[k], quote=True) if k < len(titles) else ""
        colour = ",".join(map(str, blend(value / largest)))
        look = f"color:#000;background:rgb({colour});border:{border};{_CHIP}"
        chips.append(f'<span style="{look}" title="{title}">{token}{mark}</span>')
    rest = len(tokens) - SHOWN
    more = f" <em>... {rest} more</em>" if rest > 0 else ""
    return f'<div style="line-height:2">{"".join(chips)}{more}</div>'


def blend(share: float) -> tuple[int, ...]:
    """The colour of a share from -1 to 1, red, green and blue from 0 to 255: white at 0 and for NaN."""
    if not math.isfinite(share):
        return (255, 255, 255)
    colour, strength = (_BLUE if share >= 0 else _ORANGE), min(abs(share), 1.0)
    return tuple(round(255 + (part - 255) * strength) for part in colour)


def trace_strip(trace: Record, *, metric: str = "contrast gain", selected: int = -1) -> str:
    """The strip of a trace; a dot marks the tokens that the expert alone would not have chosen."""
    values = metric_values(trace, metric)
    if not bool(values.isfinite().any()):  # no amateur: what there is
        metric = "expert surprisal"
        values = metric_values(trace, metric)
    ranks = trace.rank.tolist()
    titles = [f"{k}: {metric} {v:.2f}, expert's rank {rank}" for k, (v, rank) in enumerate(zip(values.tolist(), ranks))]
    marks = [rank > 1 for rank in ranks]
    return token_strip(names_of(trace), values, marks=marks, titles=titles, selected=selected) + (
        f'<div style="font-size:85%">Colour: {METRICS[metric]} (blue more, orange below 0). '
        f"Dot: not the expert's first choice ({sum(marks)} of {len(marks)}).</div>"
    )


def candidate_table(trace: Record, position: int, *, top: int = 8) -> str:
    """The best candidates of one position: probabilities with bars, score, what the mask dropped struck through."""
    head = "".join(f"<th{_WORD}>{name}</th>" for name in ("rank", "token", "expert p", "amateur p", "score"))
    lines = []
    for row in at_position(trace, position).to_frame(top=top).itertuples():
        token = escaped(row.token, row.token_id)
        token = token if row.kept else f"<s>{token}</s>"
        token = f"<b>{token}</b> \N{BLACK LEFT-POINTING TRIANGLE} chosen" if row.chosen else token
        probs = [_bar(row.expert_prob, "#0072B2"), _bar(row.amateur_prob, "#9A6700")]
        cells = [row.rank, f"<code>{token}</code>", *probs, f"{row.score:.2f}" if row.kept else "masked"]
        looks = [_NUMBER, _WORD, _WORD, _WORD, _NUMBER]
        lines.append("<tr>" + "".join(f"<td{look}>{cell}</td>" for look, cell in zip(looks, cells)) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _bar(probability: float, colour: str) -> str:
    """A number and a bar of text: it stays where a host takes every style away."""
    if math.isnan(probability):
        return ""
    full, rest = divmod(round(64 * probability), 8)  # in eighths of a character, the next seven code points
    blocks = "\N{FULL BLOCK}" * full + (chr(ord("\N{LEFT ONE EIGHTH BLOCK}") + 1 - rest) if rest else "")
    return f'{probability:.3f} <span style="color:{colour}">{blocks.ljust(8, chr(0x2007))}</span>'


def trace_html(trace: Record, position: int | None = None) -> str:
    """What a notebook shows for a trace: the strip and one decision; the most telling one, after a click, by itself."""
    if len(trace) == 0:
        return f"<div>{EMPTY}</div>"
    opened, position = (" open", position) if position is not None else ("", first_moved(trace))
    alone = ", a token that the expert alone would not have chosen" if int(trace.rank[position]) > 1 else ""
    summary = f"<summary>Position {position}{alone}</summary>"
    details = f"<details{opened}>{summary}{candidate_table(trace, position)}</details>"
    return f"<div>{trace_strip(trace, selected=position)}{details}</div>"
