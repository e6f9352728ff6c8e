"""HTML without scripts: a coloured strip of tokens and a table of candidates, for notebooks, pages and handouts.

JupyterLab's sanitiser drops style sheets, scripts, ids and aria attributes, so everything is inline. Token text comes
from models: it is escaped, and what cannot be seen (spaces, line breaks, control characters) is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
# black on light backgrounds in every theme; blue is more, orange is less than nothing (Okabe-Ito)
_BLUE, _ORANGE = (86, 180, 233), (230, 159, 0)
_HERE = "#D55E00"  # a border that is seen on white and on black
_SNUG = "padding:2px 6px;line-height:1.3;white-space:nowrap;vertical-align:top"
_CHIP = "color:#000;background:{background};border:{border};border-radius:3px;padding:1px 2px;margin:1px;"
_CHIP += "display:inline-block;font-family:monospace;white-space:pre;unicode-bidi:isolate"


def escaped(text: str | None, token_id: int) -> str:
    """A token made visible (spaces, line breaks, control characters drawn) and safe inside HTML."""
    return html.escape(visible(text, token_id), quote=True)


def metric_values(trace: Record, metric: str) -> Tensor:
    """One number per position, [P], of a metric in `METRICS`. NaN where the trace has no amateur."""
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}: pass one of {', '.join(map(repr, METRICS))}.")
    nothing = torch.full((len(trace),), math.nan)
    if metric == "entropy":
        return trace.entropy.get("expert", nothing)
    if metric == "distance":
        return trace.total_variation.get("amateur", nothing)
    if metric == "acceptance":
        return trace.details.get("accept_probability", nothing)
    logp = {k: trace.parts[k][:, -1] - trace.normalisers[k] for k in ("expert", "amateur") if k in trace.parts}
    if metric == "contrast gain":
        return logp.get("expert", nothing) - logp.get("amateur", nothing)
    return -logp.get(metric.split()[0], nothing)


def token_strip(
    tokens: Sequence[str],
    values: Tensor,
    *,
    marks: Sequence[bool] = (),
    titles: Sequence[str] = (),
    selected: int = -1,
    grey_from: int | None = None,
) -> str:
    """Tokens (escaped HTML) side by side, coloured by their values: blue above 0, orange below, stronger for more.

    values: [P]; NaN stays white. marks: a dot under tokens that deserve a second look. selected: a thick border.
    grey_from: from this position on everything is greyed, for it would be another text.
    """
    largest = max((abs(v) for v in values.tolist() if math.isfinite(v)), default=0.0) or 1.0
    chips = []
    for k, token in enumerate(tokens[:SHOWN]):
        value = float(values[k]) if k < len(values) else math.nan
        border = f"2px solid {_HERE}" if k == selected else "1px solid #999"
        greyed = grey_from is not None and k >= grey_from
        style = _CHIP.format(background="#ddd" if greyed else _shade(value / largest), border=border)
        style = style.replace("color:#000", "color:#666") if greyed else style
        mark = "<sub>\N{BULLET}</sub>" if k < len(marks) and marks[k] else ""
        title = html.escape(titles[k], quote=True) if k < len(titles) else ""
        chips.append(f'<span style="{style}" title="{title}">{token}{mark}</span>')
    rest = len(tokens) - SHOWN
    more = f" <em>... {rest} more</em>" if rest > 0 else ""
    return f'<div style="line-height:2">{"".join(chips)}{more}</div>'


def _shade(share: float) -> str:
    """White to a full colour for shares from -1 to 1."""
    if not math.isfinite(share):
        return "#fff"
    colour, strength = (_BLUE if share >= 0 else _ORANGE), min(abs(share), 1.0)
    return "rgb({},{},{})".format(*(round(255 + (part - 255) * strength) for part in colour))


def names_of(trace: Record, ids: Sequence[int] | None = None) -> list[str]:
    """The tokens of a trace, or other ids, as escaped and visible text."""
    ids = trace.token_ids if ids is None else ids
    return [escaped(text, token) for text, token in zip(token_texts(trace.tokenizer, ids), ids)]


def moved_positions(trace: Record) -> list[int]:
    """Where the expert alone would have chosen another token."""
    return (trace.rank > 1).nonzero()[:, 0].tolist()


def trace_strip(trace: Record, *, metric: str = "contrast gain", selected: int = -1) -> str:
    """The strip of a trace; a dot marks the tokens that the expert alone would not have chosen."""
    values = metric_values(trace, metric)
    if not bool(values.isfinite().any()):  # no amateur: what there is
        metric = "expert surprisal"
        values = metric_values(trace, metric)
    ranks = trace.rank.tolist()
    titles = [
        f"{k}: {metric} {value:.2f}, expert's rank {rank}"
        for k, (value, rank) in enumerate(zip(values.tolist(), ranks))
    ]
    moved = set(moved_positions(trace))
    marks = [k in moved for k in range(len(trace))]
    return token_strip(names_of(trace), values, marks=marks, titles=titles, selected=selected) + (
        f'<div style="font-size:85%">Colour: {METRICS[metric]} (blue more, orange below 0). '
        f"Dot: not the expert's first choice ({len(moved)} of {len(marks)}).</div>"
    )


def candidate_table(trace: Record, position: int, *, top: int = 8, recorded: int | None = None) -> str:
    """The best candidates of one position: probabilities, score, what the mask dropped struck through.

    recorded: the token of the text, where the trace was rescored and may choose another.
    """
    if not -len(trace) <= position < len(trace):
        raise ValueError(f"position is {position}: this trace has positions 0 to {len(trace) - 1}.")
    position %= len(trace)
    rows = at_position(trace, position).to_frame(top=top)
    head = "".join(f'<th style="text-align:right;padding:0 8px">{name}</th>' for name in
                   ("rank", "token", "expert p", "amateur p", "score"))  # fmt: skip
    lines = []
    for row in rows.itertuples():
        token = escaped(row.token, row.token_id)
        token = token if row.kept else f"<s>{token}</s>"
        token = f"<b>{token}</b> \N{BLACK LEFT-POINTING TRIANGLE} chosen" if row.chosen else token
        token += " (the text's)" if recorded == row.token_id and not row.chosen else ""
        cells = [str(row.rank), f"<code>{token}</code>", _number(row.expert_prob), _number(row.amateur_prob)]
        cells.append(f"{row.score:.2f}" if row.kept else "masked")
        lines.append(
            "<tr>" + "".join(f'<td style="text-align:right;padding:0 8px">{cell}</td>' for cell in cells) + "</tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def trace_html(trace: Record) -> str:
    """What a notebook shows for a trace: the strip, and the most telling decision behind a click."""
    if len(trace) == 0:
        return "<div><em>An empty trace: no token was chosen.</em></div>"
    moved = moved_positions(trace)
    position = moved[0] if moved else 0
    what = "The first token the expert alone would not have chosen" if moved else "The first token"
    return (
        f"<div>{trace_strip(trace, selected=position)}<details><summary>{what} (position {position})</summary>"
        f"{candidate_table(trace, position)}</details></div>"
    )


def layer_table(trace: Record, position: int, *, width: int = 24) -> str:
    """DoLa: the divergence of every candidate layer around a position; the chosen layer in a thick border."""
    layers = trace.settings["layers"]
    chosen, divergences = trace.details["premature_layer"], trace.details["divergences"]
    start = max(0, min(position - width // 2, len(trace) - width))
    shown = range(start, min(start + width, len(trace)))
    largest = float(divergences.max()) or 1.0
    names = names_of(trace)
    rows = []
    for at in reversed(range(len(layers))):
        cells = []
        for k in shown:
            value = float(divergences[k, at])
            border = f"3px solid {_HERE}" if int(chosen[k]) == layers[at] else "1px solid #999"
            cells.append(f'<td style="color:#000;background:{_shade(value / largest)};border:{border};padding:2px 4px" '
                         f'title="{value:.3g} nats">{value:.2g}</td>')  # fmt: skip
        rows.append(f"<tr><th>layer {layers[at]}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{'&#9662; ' if k == position else ''}{names[k]}</th>" for k in shown)
    return (
        '<div style="overflow-x:auto"><table>'
        f"<tbody>{''.join(rows)}</tbody><tfoot><tr><th></th>{heads}</tr></tfoot></table>"
        "Divergence of each candidate layer from the last, in nats; thick border: the layer that was contrasted.</div>"
    )


def round_table(trace: Record, position: int) -> str:
    """Speculation: the rounds around a position, with every drafted token's chance and the number that was drawn."""
    rows = []
    for facts in trace.rounds:
        draft = names_of(trace, facts["draft_ids"])
        cells = []
        for k, token in enumerate(draft):
            tested = k <= facts["accepted"]
            stands = k < facts["accepted"]
            chance = facts["accept_probability"][k]
            u = "" if facts["u"] is None else f"<br>u {facts['u'][k]:.2f}"
            look = "background:#56B4E9" if stands else "background:#E69F00" if tested else "background:#ddd"
            word = "kept" if stands else "rejected" if tested else "not looked at"
            body = f"{token}<br><small>{word}{f'<br>min(1, p/q) {chance:.2f}{u}' if tested else ''}</small>"
            cells.append(f'<td style="color:#000;{look};{_SNUG}">{body}</td>')
        after = "" if facts["next_id"] is None else names_of(trace, [facts["next_id"]])[0]
        word = facts["next_kind"] or "ended"
        cells.append(f'<td style="color:#000;background:#fff;{_SNUG}">{after}<br><small>{word}</small></td>')
        stop = facts["position"] + facts["accepted"] + 1
        here = "&#9656; " if facts["position"] <= position < stop else ""
        rows.append(f"<tr><th>{here}round {facts['round']}</th>{''.join(cells)}</tr>")
    return f'<div style="overflow-x:auto"><table><tbody>{"".join(rows[:60])}</tbody></table></div>'
