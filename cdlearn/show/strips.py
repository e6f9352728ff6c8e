"""The inspector's HTML about other choices: other settings' picks, another text, what a text continues, flip points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from cdlearn.show.html import escaped, metric_values, names_of, token_strip

if TYPE_CHECKING:
    from cdlearn.trace.trace import Trace


def what_if_strip(trace: Trace, new: Trace, settings: Mapping[str, float]) -> str:
    """What other settings would pick, position by position; behind the first change it would be another text.

    new: `trace` rescored with `settings`, the numbers that differ from its own; none of them: an invitation.
    """
    if not settings:
        return "<em>Move a control: what would these settings have picked?</em>"
    old, picks = trace.recorded_ids, new.token_ids
    first = first_difference(old, picks)
    said = ", ".join(f"{name} {value:.3g}" for name, value in settings.items())
    if first == len(old):
        return f"<b>With {said}</b>: the same {len(old)} tokens."
    marks = [a != b for a, b in zip(old, picks)]
    strip = token_strip(names_of(trace, picks), torch.zeros(0), marks=marks, grey_from=first + 1)
    return (
        f"<b>With {said}</b>: another token at position {first} (dot). Grey: picks behind the text as it was; "
        f"a new text starts there.{strip}"
    )


def other_strip(trace: Trace, other: Trace) -> str:
    """A second text below the first: its own colours, a dot where the two part."""
    parts = first_difference(trace.recorded_ids, other.recorded_ids)
    marks = [k == parts for k in range(len(other))]
    return (
        f"<b>The other text</b> parts at position {parts} (dot):"
        f"{token_strip(names_of(other), metric_values(other, 'contrast gain'), marks=marks)}"
    )


def prefix_strip(trace: Trace, prompt_length: int, *, branched: bool) -> str:
    """What a regenerated text continues: the tokens between the first prompt and its own start, greyed.

    branched: the last of them was chosen by hand and carries the dot.
    """
    ids = trace.prompt_ids[prompt_length:]
    if not ids:
        return ""
    marks = [branched and k == len(ids) - 1 for k in range(len(ids))]
    strip = token_strip(names_of(trace, ids), torch.zeros(0), marks=marks, grey_from=0)
    return f"<small>continues{' (dot: the token you chose)' if branched else ''}</small>{strip}"


def flip_scales(trace: Trace, position: int, highest: Mapping[str, float]) -> str:
    """Where a position's pick flips, as words and as marks on a scale. highest: the end of each setting's slider."""
    flips = trace.flip_points(position)
    lines = []
    for name, top in highest.items():
        spans = getattr(flips, name, None)
        if not spans:
            continue
        ends = [span.start if name == "strength" else span.stop for span in spans]
        words = [
            f"<code>{escaped(span.token, span.token_id)}</code> "
            f"<small>{'from' if name == 'strength' else 'to'} {end:.3g}</small>"
            for span, end in zip(spans, ends)
        ]
        if name == "strength":
            shares = [end / top for end in ends]
        else:  # alpha's slider is its logarithm, from 1e-4 to 1
            shares = [1 + math.log10(max(end, 1e-4)) / 4 for end in ends]
        lines.append(f"<b>{name}</b>: {' | '.join(words)}{_scale(shares)}")
    return "".join(f"<div>{line}</div>" for line in lines)


def _scale(shares: Sequence[float]) -> str:
    """A thin bar with a mark at every share between 0 and 1."""
    marks = "".join(
        f'<span title="flip" style="position:absolute;left:{100 * share:.1f}%;top:0;width:3px;height:10px;'
        'background:#0072B2"></span>'
        for share in shares
        if 0 < share < 1
    )
    # as far from the left and as wide as the sliders' tracks above it
    look = "position:relative;margin-left:210px;width:288px;height:10px;background:#ddd;border:1px solid #999"
    return f'<div style="{look}">{marks}</div>'


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """The first position where two runs of tokens differ; the shorter one's length where they do not."""
    return next((k for k, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
