"""HTML without scripts: coloured strips of tokens and tables, for notebooks, pages and the inspector.

JupyterLab's sanitiser drops style sheets, scripts, ids and aria attributes, so everything is inline. Token text comes
from models: it is escaped, and what cannot be seen (spaces, line breaks, control characters) is drawn.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cdlearn.trace.flips import flip_points
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
_SNUG = "padding:2px 6px;line-height:1.3;white-space:nowrap;vertical-align:top"
_NUMBER = ' style="text-align:right;padding:0 8px"'


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
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}: pass one of {', '.join(map(repr, METRICS))}.")
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
    grey_from: int = SHOWN,
) -> str:
    """Tokens (escaped HTML) side by side, coloured by their values: blue above 0, orange below, stronger for more.

    values: [P]; NaN stays white, as all do without values. marks: a dot under tokens that deserve a second look.
    selected: a thick border. grey_from: from this position on everything is greyed, for it would be another text.
    """
    numbers = [math.nan] * len(tokens) if values is None else values.tolist()
    largest = max((abs(v) for v in numbers if math.isfinite(v)), default=0.0) or 1.0
    chips = []
    for k, (token, value) in enumerate(zip(tokens[:SHOWN], numbers)):
        background, ink = ("#ddd", "#666") if k >= grey_from else (_shade(value / largest), "#000")
        border = f"2px solid {_HERE}" if k == selected else "1px solid #999"
        mark = "<sub>\N{BULLET}</sub>" if k < len(marks) and marks[k] else ""
        title = html.escape(titles[k], quote=True) if k < len(titles) else ""
        look = f"color:{ink};background:{background};border:{border};{_CHIP}"
        chips.append(f'<span style="{look}" title="{title}">{token}{mark}</span>')
    rest = len(tokens) - SHOWN
    more = f" <em>... {rest} more</em>" if rest > 0 else ""
    return f'<div style="line-height:2">{"".join(chips)}{more}</div>'


def _shade(share: float) -> str:
    """White to a full colour for shares from -1 to 1."""
    if not math.isfinite(share):
        return "#fff"
    colour, strength = (_BLUE if share >= 0 else _ORANGE), min(abs(share), 1.0)
    return "rgb({},{},{})".format(*(round(255 + (part - 255) * strength) for part in colour))


def _cell(body: str, background: str, look: str = _SNUG) -> str:
    return f'<td style="color:#000;background:{background};{look}">{body}</td>'


def _table(rows: Sequence[tuple[str, list[str]]], foot: str = "") -> str:
    """Named rows of cells, in a box that scrolls."""
    body = "".join(f"<tr><th>{name}</th>{''.join(cells)}</tr>" for name, cells in rows)
    return f'<div style="overflow-x:auto"><table><tbody>{body}</tbody>{foot}</table></div>'


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


def candidate_table(trace: Record, position: int, *, top: int = 8, recorded: int | None = None) -> str:
    """The best candidates of one position: probabilities, score, what the mask dropped struck through.

    recorded: the token of the text, where the trace was rescored and may choose another.
    """
    head = "".join(f"<th{_NUMBER}>{name}</th>" for name in ("rank", "token", "expert p", "amateur p", "score"))
    lines = []
    for row in at_position(trace, position).to_frame(top=top).itertuples():
        token = escaped(row.token, row.token_id)
        token = token if row.kept else f"<s>{token}</s>"
        token = f"<b>{token}</b> \N{BLACK LEFT-POINTING TRIANGLE} chosen" if row.chosen else token
        token += " (the text's)" if recorded == row.token_id and not row.chosen else ""
        probs = ["" if math.isnan(p) else f"{p:.3f}" for p in (row.expert_prob, row.amateur_prob)]
        cells = [row.rank, f"<code>{token}</code>", *probs, f"{row.score:.2f}" if row.kept else "masked"]
        lines.append("<tr>" + "".join(f"<td{_NUMBER}>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def trace_html(trace: Record) -> str:
    """What a notebook shows for a trace: the strip, and the most telling decision behind a click."""
    if len(trace) == 0:
        return f"<div>{EMPTY}</div>"
    position = first_moved(trace)
    alone = " the expert alone would not have chosen" if int(trace.rank[position]) > 1 else ""
    summary = f"<summary>The first token{alone} (position {position})</summary>"
    details = f"<details>{summary}{candidate_table(trace, position)}</details>"
    return f"<div>{trace_strip(trace, selected=position)}{details}</div>"


def layer_table(trace: Record, position: int, *, width: int = 24) -> str:
    """DoLa: the divergence of every candidate layer around a position; the chosen layer in a thick border."""
    chosen, divergences = trace.details["premature_layer"].tolist(), trace.details["divergences"]
    start = max(0, min(position - width // 2, len(trace) - width))
    shown = range(start, min(start + width, len(trace)))
    largest = float(divergences.max()) or 1.0
    names = names_of(trace)
    rows = []
    for layer, values in reversed([*zip(trace.settings["layers"], divergences.T.tolist())]):
        borders = {k: f"3px solid {_HERE}" if chosen[k] == layer else "1px solid #999" for k in shown}
        cells = [_cell(f"{values[k]:.2g}", _shade(values[k] / largest), f"border:{borders[k]};padding:2px 4px")
                 for k in shown]  # fmt: skip
        rows.append((html.escape(f"layer {layer}"), cells))
    heads = "".join(f"<th>{'&#9662; ' if k == position else ''}{names[k]}</th>" for k in shown)
    words = "Divergence of each candidate layer from the last, in nats; thick border: the layer that was contrasted."
    return f"{_table(rows, f'<tfoot><tr><th></th>{heads}</tr></tfoot>')}<div>{words}</div>"


def round_table(trace: Record, position: int) -> str:
    """Speculation: every round's drafted tokens, each one's chance and the number that was drawn."""
    rows = []
    for facts in trace.rounds[:60]:
        accepted, cells = facts["accepted"], []
        for k, (token, chance) in enumerate(zip(names_of(trace, facts["draft_ids"]), facts["accept_probability"])):
            u = "" if facts["u"] is None else f"<br>u {facts['u'][k]:.2f}"
            word, background = ("kept", "#56B4E9") if k < accepted else ("rejected", "#E69F00")
            test = f"<br>min(1, p/q) {chance:.2f}{u}"
            if k > accepted:
                word, background, test = "not looked at", "#ddd", ""
            cells.append(_cell(f"{token}<br><small>{word}{test}</small>", background))
        after = "" if facts["next_id"] is None else names_of(trace, [facts["next_id"]])[0]
        cells.append(_cell(f"{after}<br><small>{html.escape(facts['next_kind'] or 'ended')}</small>", "#fff"))
        here = facts["position"] <= position <= facts["position"] + accepted
        name = html.escape(f"round {facts['round']}")
        rows.append((f"{'&#9656; ' if here else ''}{name}", cells))
    return _table(rows)


def what_if_strip(trace: Record, new: Record, settings: Mapping[str, float]) -> str:
    """What other settings would pick, position by position; after the first change it would be another text.

    new: `trace` rescored with `settings`, the numbers that differ from its own; none of them: an invitation.
    """
    if not settings:
        return "<em>Move a control: what would these settings have picked?</em>"
    old, picks = trace.recorded_ids, new.token_ids
    first = _first_difference(old, picks)
    said = "<b>With " + ", ".join(f"{name} {value:.3g}" for name, value in settings.items()) + "</b>:"
    if first == len(old):
        return f"{said} the same {len(old)} tokens."
    strip = token_strip(names_of(trace, picks), marks=[a != b for a, b in zip(old, picks)], grey_from=first + 1)
    return (
        f"{said} another token at position {first} (dot). Grey: picks after the text as it was; "
        f"a new text starts there.{strip}"
    )


def other_strip(trace: Record, other: Record) -> str:
    """A second text below the first: its own colours, a dot where the two part."""
    parts = _first_difference(trace.recorded_ids, other.recorded_ids)
    marks = [k == parts for k in range(len(other))]
    strip = token_strip(names_of(other), metric_values(other, "contrast gain"), marks=marks)
    return f"<b>The other text</b> parts at position {parts} (dot):{strip}"


def prefix_strip(trace: Record, prompt_length: int, *, branched: bool) -> str:
    """What a regenerated text continues: the tokens between the first prompt and its own start, greyed.

    branched: the last of them was chosen by hand and carries the dot.
    """
    ids = trace.prompt_ids[prompt_length:]
    if not ids:
        return ""
    strip = token_strip(names_of(trace, ids), marks=[False] * (len(ids) - 1) + [branched], grey_from=0)
    return f"<small>continues{' (dot: the token you chose)' if branched else ''}</small>{strip}"


def flip_scales(trace: Record, position: int, highest: Mapping[str, float]) -> str:
    """Where a position's pick flips, as words and as marks on a scale. highest: the end of each setting's slider."""
    flips = flip_points(trace, position) if highest else None
    lines = []
    for name, top in highest.items():
        spans = getattr(flips, name, None)
        if not spans:
            continue
        word, ends = ("from", [s.start for s in spans]) if name == "strength" else ("to", [s.stop for s in spans])
        words = [f"<code>{escaped(span.token, span.token_id)}</code> <small>{word} {end:.3g}</small>"
                 for span, end in zip(spans, ends)]  # fmt: skip
        # alpha's slider is its logarithm, from 1e-4 to 1
        shares = [end / top if name == "strength" else 1 + math.log10(max(end, 1e-4)) / 4 for end in ends]
        lines.append(f"<div><b>{name}</b>: {' | '.join(words)}{_scale(shares)}</div>")
    return "".join(lines)


def _scale(shares: Sequence[float]) -> str:
    """A thin bar with a mark at every share between 0 and 1, under the sliders' tracks and as wide."""
    look = 'title="flip" style="position:absolute;left:{:.1f}%;top:0;width:3px;height:10px;background:#0072B2"'
    marks = "".join(f"<span {look.format(100 * share)}></span>" for share in shares if 0 < share < 1)
    look = "position:relative;margin-left:210px;width:288px;height:10px;background:#ddd;border:1px solid #999"
    return f'<div style="{look}">{marks}</div>'


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The first position where two runs of tokens differ; the shorter one's length where they do not."""
    return next((k for k, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
