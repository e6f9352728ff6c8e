"""Where greedy's pick at a position flips as one setting moves: closed forms over a trace, without a model.

Scores are linear in the strength, so the winner as a function of the strength is the upper envelope of a few lines; the
cutoff alpha lets candidates in one after the other, in the expert's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cdlearn.trace.record import Record
from cdlearn.trace.rescore import at_position, form_of, kept, lines, new_settings, penalized, seen_before, truncated
from cdlearn.trace.tables import token_texts


class Span(NamedTuple):
    """A stretch of one setting, from `start` to `stop`, over which greedy picks the same token."""

    start: float
    stop: float
    token_id: int
    token: str | None


@dataclass(frozen=True)
class FlipPoints:
    """Greedy's pick at one position, as one setting moves from its least to its greatest value and the others stay.

    strength: spans from 0 up, `start <= strength < stop`; empty for methods without one. For the form with beta,
    strength is beta / (1 + beta), below 1. alpha: spans up to 1, `start < alpha <= stop`; the first starts above 0
    where tokens beyond the recorded candidates could be kept below that. truncated: the kept set may reach beyond
    the recorded candidates, so that the strength spans may miss a token.
    """

    strength: list[Span]
    alpha: list[Span]
    truncated: bool


def flip_points(trace: Record, position: int) -> FlipPoints:
    """Where greedy's pick at a position flips as one setting moves and the others stay: see `FlipPoints`.

    Exact and in closed form: scores are linear in the strength, so the winners are the upper envelope of lines, and
    alpha only lets candidates in one after the other. Raises ValueError as `rescore` does.
    """
    new_settings(trace, {})
    trace = at_position(trace, position)
    return FlipPoints(
        strength=_strength_spans(trace) if form_of(trace, trace.settings).knob else [],
        alpha=_alpha_spans(trace),
        truncated=bool(truncated(trace)[0]),
    )


def _strength_spans(trace: Record) -> list[Span]:
    over, against, _ = lines(trace, trace.settings)
    columns = kept_columns(trace)
    a, b = over[0, columns].numpy(), against[0, columns].numpy()
    penalty = trace.settings.get("repetition_penalty", 1.0)
    seen = seen_before(trace)[0, columns].numpy() if penalty != 1 else np.zeros(len(columns), dtype=bool)
    # a penalty bends the line of a token already in the text where its score changes sign
    with np.errstate(divide="ignore", invalid="ignore"):
        bends = np.unique((a / b)[seen & (a / b > 0)])
    edges = [0.0, *bends[np.isfinite(bends)].tolist(), math.inf]
    found: list[tuple[float, int]] = []
    for low, high in zip(edges, edges[1:]):
        inside = (low + high) / 2 if high < math.inf else low + 1
        factor = np.where(seen, np.where(a - inside * b > 0, 1 / penalty, penalty), 1.0)
        found += [step for step in envelope(a * factor, b * factor, low, high) if not found or step[1] != found[-1][1]]
    starts, winners = [start for start, _ in found], [columns[winner] for _, winner in found]
    stops = [*starts[1:], math.inf]
    if form_of(trace, trace.settings).share:
        starts, stops = ([1.0 if t == math.inf else t / (1 + t) for t in edge] for edge in (starts, stops))
    return _spans(trace, starts, stops, winners)


def kept_columns(trace: Record) -> list[int]:
    """The kept candidates of a trace of one position, each token once, the lowest id first."""
    ids = trace.candidates[0].tolist()
    keep = kept(trace, trace.settings)[0].tolist()
    return sorted({token: column for column, token in enumerate(ids) if keep[column]}.values(), key=ids.__getitem__)


def envelope(a: np.ndarray, b: np.ndarray, low: float, high: float) -> list[tuple[float, int]]:
    """The highest of the lines a - t * b, from `low` to `high`: (where it takes over, its index), in order of t."""
    here = np.lexsort((b, -(a - low * b)))[0]  # the highest at the start; among equals the one that falls least
    found = [(low, int(here))]
    while True:
        gain = b[here] - b  # only lines that fall less can overtake
        with np.errstate(divide="ignore", invalid="ignore"):
            meet = np.where(gain > 0, (a[here] - a) / gain, np.inf)
        at = meet.min()
        if not at < high:
            return found
        here = np.lexsort((b, meet))[0]
        start = max(float(at), low)
        found = [step for step in found if step[0] < start] + [(start, int(here))]


def _alpha_spans(trace: Record) -> list[Span]:
    """The winner among the candidates that the mask lets in, from the expert's best alone (alpha = 1) downwards."""
    count = trace.candidates.shape[1] - 1
    over, against, _ = lines(trace, trace.settings)
    t = trace.settings.get(form_of(trace, trace.settings).knob, 1.0)
    scores = penalized(trace, over - t * against)[0, :count].tolist()
    expert, ids = trace.parts["expert"][0, :count], trace.candidates[0].tolist()
    ratios = (expert.double() - expert[0].double()).exp().tolist()  # a token is kept while alpha <= its ratio
    inside = kept(trace, trace.settings | {"alpha": None})[0, :count].tolist()  # what top_k leaves
    found: list[tuple[float, int]] = []
    for column in range(count):
        if not inside[column] or ratios[column] == 0:
            break
        best = found[-1][1] if found else column
        if not found or (scores[column], -ids[column]) > (scores[best], -ids[best]):
            found = [step for step in found if step[0] > ratios[column]] + [(ratios[column], column)]
    beyond = bool(truncated(trace, trace.settings | {"alpha": None})[0])
    stops = [ratio for ratio, _ in found]
    starts = [*stops[1:], ratios[count - 1] if beyond else 0.0]
    return _spans(trace, starts[::-1], stops[::-1], [column for _, column in found[::-1]])


def _spans(trace: Record, starts: list[float], stops: list[float], columns: list[int]) -> list[Span]:
    ids = [int(trace.candidates[0, column]) for column in columns]
    texts = token_texts(trace.tokenizer, ids)
    return [Span(*span) for span in zip(starts, stops, ids, texts) if span[0] < span[1]]
