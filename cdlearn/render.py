"""HTML without scripts: a coloured strip of tokens and a table of candidates, for notebooks, pages and handouts.

JupyterLab's sanitiser drops style sheets, scripts, ids and aria attributes, so everything is inline. Token text comes
from models: it is escaped, and what cannot be seen (spaces, line breaks, control characters) is drawn.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cdlearn.trace import Trace

SHOWN = 200  # tokens of a strip, more are counted only
METRICS = {
    "contrast gain": "log p expert - log p amateur of the chosen token, in nats",
    "expert surprisal": "-log p expert of the chosen token, in nats",
    "amateur surprisal": "-log p amateur of the chosen token, in nats",
    "rank": "the chosen token's rank with the expert",
}
# black on light backgrounds in every theme; blue is more, orange is less than nothing (Okabe-Ito)
_BLUE, _ORANGE = (86, 180, 233), (230, 159, 0)
_CHIP = "color:#000;background:{background};border:{border};border-radius:3px;padding:1px 2px;margin:1px;"
_CHIP += "display:inline-block;font-family:monospace;white-space:pre;unicode-bidi:isolate"
_SEEN = {" ": "\N{MIDDLE DOT}", "\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}", "\r": "\\r"}


def visible(token: str) -> str:
    """A token as text that can be seen: spaces, line breaks and control characters drawn. Not escaped."""
    if token == "":
        return "\N{EMPTY SET}"
    seen = []
    for character in token:
        if character in _SEEN:
            seen.append(_SEEN[character])
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            seen.append(f"\\u{{{ord(character):x}}}")  # invisible, or able to turn the reading direction
        else:
            seen.append(character)
    return "".join(seen)


def escaped(token: str) -> str:
    """A visible token, safe inside HTML text and attributes."""
    return html.escape(visible(token), quote=True)


def metric_values(trace: Trace, metric: str) -> Tensor:
    """One number per position, [P], of a metric in `METRICS`. NaN where the trace has no amateur."""
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}: pass one of {', '.join(map(repr, METRICS))}.")
    if metric == "rank":
        return trace.rank.double()
    logp = {name: trace.parts[name][:, -1] - trace.normalisers[name] for name in trace.parts}
    nothing = torch.full((len(trace),), math.nan)
    if metric == "contrast gain":
        return logp.get("expert", nothing) - logp.get("amateur", nothing)
    return -logp.get(metric.split()[0], nothing)


def token_strip(
    tokens: Sequence[str], values: Tensor, *, marks: Sequence[bool] = (), titles: Sequence[str] = (), selected: int = -1
) -> str:
    """Tokens side by side, coloured by their values: blue above 0, orange below, stronger for more.

    values: [P]; NaN stays white. marks: a dot under tokens that deserve a second look. selected: a thick border.
    """
    largest = max((abs(float(v)) for v in values if math.isfinite(v)), default=0.0) or 1.0
    chips = []
    for k, token in enumerate(tokens[:SHOWN]):
        value = float(values[k]) if k < len(values) else math.nan
        border = "2px solid #000" if k == selected else "1px solid #999"
        style = _CHIP.format(background=_shade(value / largest), border=border)
        mark = "<sub>\N{BULLET}</sub>" if k < len(marks) and marks[k] else ""
        title = html.escape(titles[k], quote=True) if k < len(titles) else ""
        chips.append(f'<span style="{style}" title="{title}">{escaped(token)}{mark}</span>')
    rest = len(tokens) - SHOWN
    more = f" <em>... {rest} more</em>" if rest > 0 else ""
    return f'<div style="line-height:2">{"".join(chips)}{more}</div>'


def _shade(share: float) -> str:
    """White to a full colour for shares from -1 to 1."""
    if not math.isfinite(share):
        return "#fff"
    colour, strength = (_BLUE if share >= 0 else _ORANGE), min(abs(share), 1.0)
    return "rgb({},{},{})".format(*(round(255 + (part - 255) * strength) for part in colour))


def trace_strip(trace: Trace, *, metric: str = "contrast gain", selected: int = -1) -> str:
    """The strip of a trace; a dot marks the tokens that the expert alone would not have chosen."""
    tokens = trace.tokens()
    values = metric_values(trace, metric)
    if not bool(values.isfinite().any()):  # no amateur: what there is
        metric = "expert surprisal"
        values = metric_values(trace, metric)
    titles = [f"{k}: {metric} {value:.2f}, expert's rank {rank}" for k, (value, rank) in enumerate(
        zip(values.tolist(), trace.rank.tolist()))]  # fmt: skip
    marks = [rank > 1 for rank in trace.rank.tolist()]
    return token_strip(tokens, values, marks=marks, titles=titles, selected=selected) + (
        f'<div style="font-size:85%">Colour: {METRICS[metric]} (blue more, orange below 0). '
        f"Dot: not the expert's first choice ({sum(marks)} of {len(marks)}).</div>"
    )


def candidate_table(trace: Trace, position: int, *, top: int = 8) -> str:
    """The best candidates of one position: probabilities, score, what the mask dropped struck through."""
    if not -len(trace) <= position < len(trace):
        raise ValueError(f"position is {position}: this trace has positions 0 to {len(trace) - 1}.")
    position %= len(trace)
    frame = trace.to_frame(top=top)
    rows = frame[frame["position"] == position]
    head = "".join(f'<th style="text-align:right;padding:0 8px">{name}</th>' for name in
                   ("rank", "token", "expert p", "amateur p", "score"))  # fmt: skip
    lines = []
    for row in rows.itertuples():
        token = escaped(row.token if row.token is not None else str(row.token_id))
        token = token if row.kept else f"<s>{token}</s>"
        token = f"<b>{token}</b> \N{BLACK LEFT-POINTING TRIANGLE} chosen" if row.chosen else token
        cells = [str(row.rank), f"<code>{token}</code>", _number(row.expert_prob), _number(row.amateur_prob)]
        cells.append(f"{row.score:.2f}" if row.kept else "masked")
        lines.append(
            "<tr>" + "".join(f'<td style="text-align:right;padding:0 8px">{cell}</td>' for cell in cells) + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def trace_html(trace: Trace) -> str:
    """What a notebook shows for a trace: the strip, and the most telling decision behind a click."""
    if len(trace) == 0:
        return "<div><em>An empty trace: no token was chosen.</em></div>"
    moved = [k for k, rank in enumerate(trace.rank.tolist()) if rank > 1]
    position = moved[0] if moved else 0
    what = "The first token the expert alone would not have chosen" if moved else "The first token"
    return (
        f"<div>{trace_strip(trace, selected=position)}<details><summary>{what} (position {position})</summary>"
        f"{candidate_table(trace, position)}</details></div>"
    )


def generation_html(text: str | None, finish_reason: str, trace: Trace | None) -> str:
    """What a notebook shows for a generation: its text as written, then the trace if there is one."""
    shown = "" if text is None else f'<div style="white-space:pre-wrap">{html.escape(text)}</div>'
    end = f'<div style="font-size:85%">({html.escape(finish_reason)})</div>'
    return f"<div>{shown}{end}{'' if trace is None else trace_html(trace)}</div>"
