"""What greedy would have picked with other settings: exact, from a trace's recorded candidates, without a model.

Everything holds for the recorded prefixes: after the first changed token there would be another text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import check_alpha, check_contrast, check_count, is_int, short
from cdlearn.scores import FLOOR, NEVER, penalize_seen
from cdlearn.trace.record import NAMED, TENSORS, Form, Record

_UP_TO_A_CONSTANT = "up to a constant per position"


def rescore(
    trace: Record,
    strength: float | None = None,
    alpha: float | None = None,
    amateur_temperature: float | None = None,
    top_k: int | None = None,
    beta: float | None = None,
    layer: int | None = None,
) -> Record:
    """The same text with other settings, without a model: `token_ids` are greedy's picks at each recorded prefix.

    None leaves a setting as it was; alpha=0 takes the mask away. `strength` and `beta` are two forms, giving one leaves
    the other. A contrast can change all but `layer`, DoLa `alpha` and `layer` (one candidate layer at every position
    instead of the most divergent), a mixture `alpha`, a source of your own what its `forms` say. The picks are exact
    wherever the result's `truncated` is False; what would follow the first changed token is another text, see
    `first_change`. With another amateur_temperature the scores hold up to a constant per position (settings["scores"]
    says so): its normaliser needs the whole vocabulary. Details and rounds stay those of the recorded run.
    Raises ValueError for a method with nothing to change or a setting it does not have.
    """
    changes = dict(strength=strength, alpha=alpha, amateur_temperature=amateur_temperature)
    trace, settings, scores, column = _decided(trace, changes | dict(top_k=top_k, beta=beta, layer=layer))
    return _with_choice(trace, scores, column, settings)


def first_change(trace: Record, **settings: Any) -> int | None:
    """The first position where greedy picks another token at these settings (as in `rescore`), None if nowhere.

    Up to and including it, `rescore(...).token_ids` is what `generate` gives at these settings. What it is compared
    with are greedy's picks at the recorded settings, also where the text was sampled.
    """
    ours, theirs = (t.candidates.gather(1, c) for t, _, _, c in (_decided(trace, {}), _decided(trace, settings)))
    changed = (ours != theirs)[:, 0].nonzero()
    return int(changed[0]) if len(changed) else None


def _decided(trace: Record, changes: Mapping[str, Any]) -> tuple[Record, dict[str, Any], Tensor, Tensor]:
    """The trace (of another layer), its new settings and scores [P, N + 1], and the column of greedy's pick [P, 1]."""
    settings = new_settings(trace, {name: value for name, value in changes.items() if value is not None})
    if settings.get("layers") != trace.settings.get("layers"):
        trace = _with_layer(trace, settings["layers"][0])
    over, against, exact = lines(trace, settings)
    scores = over - settings.get(form_of(trace, settings).knob, 1.0) * against
    settings.pop("scores", None)
    if not exact:
        settings["scores"] = _UP_TO_A_CONSTANT
    scores = scores.where(kept(trace, settings), NEVER)
    return trace, settings, scores, _best(penalized(trace, scores), trace.candidates)


def form_of(trace: Record, settings: Mapping[str, Any]) -> Form | None:
    """The form that these settings choose: that of its knob, else the one without; None for a plain model."""
    return next((form for form in trace.forms if form.knob is None or form.knob in settings), None)


def changeable(trace: Record) -> list[str]:
    """The settings that `rescore` can change in this trace."""
    if form_of(trace, trace.settings) is None:
        return []
    names = [form.knob for form in trace.forms if form.knob] + ["alpha"]
    names += ["amateur_temperature"] * any(form.tempered for form in trace.forms)
    return names + ["top_k"] * ("top_k" in trace.settings) + ["layer"] * ("layers" in trace.parts)


def new_settings(trace: Record, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a source made with these changes would have, or a ValueError or TypeError."""
    if not len(trace):
        raise ValueError("the trace has no positions: generate at least one token.")
    method, can = trace.settings.get("method"), changeable(trace)
    if not can:
        raise ValueError(
            f"the trace's method is {method!r}, where nothing is contrasted and so nothing can change: "
            "trace a Contrast, a DoLa or a Mix."
        )
    for name in changes:
        if name not in can:
            value = f"{name}={short(changes[name])}"
            raise ValueError(f"{value} cannot change in a trace of {method!r}: what can is {', '.join(can)}.")
    new = dict(trace.settings) | {name: value for name, value in changes.items() if name != "layer"}
    knobs = [form.knob for form in trace.forms if form.knob in changes]
    if knobs:  # the numbers of another form go
        new = {name: value for name, value in new.items() if name in knobs or name not in [f.knob for f in trace.forms]}
    if form_of(trace, new).tempered:
        new = {"amateur_temperature": 1.0} | new
    numbers = {name: new[name] for name in ("strength", "beta", "amateur_temperature", "top_k") if name in new}
    new["alpha"] = check_alpha(new.get("alpha"))
    new |= {name: value for name, value in check_contrast(**numbers).items() if name in numbers}
    if not form_of(trace, new).tempered:
        new.pop("amateur_temperature", None)
    if "layer" in changes:
        layer, layers = changes["layer"], trace.settings["layers"]
        if not is_int(layer) or layer not in layers:
            raise ValueError(f"layer is {short(layer)}: the trace's candidate layers are {layers}.")
        new["layers"] = [layer]
    return new


def strength_of(trace: Record) -> float:
    """The strength that makes the same greedy choices: the knob's value, or its share; 1 where there is no knob."""
    form = form_of(trace, trace.settings)
    t = 1.0 if form is None else trace.settings.get(form.knob, 1.0)
    return t / (1 + t) if form is not None and form.share else t


def kept(trace: Record, settings: Mapping[str, Any]) -> Tensor:
    """The plausibility mask of the recorded candidates: [P, N + 1] bool."""
    expert = trace.parts["expert"]
    return (expert >= _cutoff(trace, settings)) & (expert > NEVER)


def truncated(trace: Record, settings: Mapping[str, Any] | None = None) -> Tensor:
    """[P] bool: where the kept set may reach beyond the recorded candidates, so that `rescore` may miss a token."""
    settings = trace.settings if settings is None else settings
    count = trace.candidates.shape[1] - 1
    if not trace.forms or count == trace.vocab_size or not len(trace):
        return torch.zeros(len(trace), dtype=torch.bool)
    last = trace.parts["expert"][:, count - 1]  # nothing that was not recorded is above it
    return (last >= _cutoff(trace, settings)[:, 0]) & (last > NEVER)


def _cutoff(trace: Record, settings: Mapping[str, Any]) -> Tensor:
    """The least expert logit that is kept, [P, 1], with the very rounding of scores."""
    expert = trace.parts["expert"]
    count, alpha, top_k = expert.shape[1] - 1, settings.get("alpha"), settings.get("top_k", 0)
    cut = torch.full_like(expert[:, :1], NEVER) if alpha is None else expert[:, :1] + math.log(alpha)
    if 0 < top_k and (top_k < count or count != trace.vocab_size):
        cut = torch.maximum(cut, expert[:, min(top_k, count) - 1, None])
    return cut


def lines(trace: Record, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, bool]:
    """Every candidate's line, score = over - t * against with t the knob: [P, N + 1] float64 each, and "exact".

    Not exact means up to a constant per position, so every comparison within a position is; ValueError where a
    repetition penalty, which looks at the signs of scores, would need that constant.
    """
    form, exact = form_of(trace, settings), True
    raw = form.raw if form.raw is not None else settings.get("alpha") is None
    values = {}
    for name in dict.fromkeys((*form.over, *form.against)):
        if raw:
            part = trace.parts[name].double()
            values[name] = torch.maximum(part, part.amax(dim=1, keepdim=True) + FLOOR)
        elif name == form.tempered:
            tau = settings.get("amateur_temperature", 1.0)
            normaliser, exact = tempered_normaliser(trace, name, tau)
            values[name] = (trace.parts[name].double() / tau - normaliser[:, None]).clamp(min=FLOOR)
        else:
            values[name] = log_probs(trace, name).clamp(min=FLOOR)
    sums = []
    for weights in (form.over, form.against):
        total = torch.zeros(trace.score.shape, dtype=torch.float64)
        for name, weight in weights.items():
            total = total + weight * values[name]
        sums.append(total)
    for name in (name for name, weight in form.over.items() if weight > 0):
        sums[0] = sums[0].masked_fill(trace.parts[name] == NEVER, NEVER)
    if not exact and settings.get("repetition_penalty", 1.0) != 1:
        raise ValueError(
            f"amateur_temperature is {settings['amateur_temperature']!r}, and with the trace's repetition_penalty only "
            "the recorded temperature and 1 can be answered: generate again instead."
        )
    return *sums, exact


def log_probs(trace: Record, name: str) -> Tensor:
    """Log-probabilities of the recorded candidates over the whole vocabulary: [P, N + 1] float64."""
    return trace.parts[name].double() - trace.normalisers[name].double()[:, None]


def tempered_normaliser(trace: Record, name: str, tau: float) -> tuple[Tensor, bool]:
    """logsumexp of a part's logits / tau over the vocabulary, [P], and whether it is exact."""
    if tau == 1:
        return trace.normalisers[name].double(), True
    part = trace.parts[name].double() / tau
    used, strength = trace.settings.get("amateur_temperature"), trace.settings.get("strength")
    if tau == used and strength and "scores" not in trace.settings:
        # a recorded score tells it, score = log p_E - strength * (s_A / tau - normaliser): best where s_A is largest
        column = part.where(trace.score > NEVER, NEVER).argmax(dim=1, keepdim=True)
        over, score = log_probs(trace, "expert").gather(1, column), trace.score.double().gather(1, column)
        return (part.gather(1, column) - (over - score) / strength)[:, 0], True
    whole = trace.candidates.shape[1] - 1 == trace.vocab_size
    return part[:, :-1].logsumexp(dim=1), whole


def penalized(trace: Record, scores: Tensor) -> Tensor:
    """`penalize_repetition` as the run had it: at every position for the tokens before it."""
    penalty = trace.settings.get("repetition_penalty", 1.0)
    if penalty == 1:
        return scores
    return penalize_seen(scores, seen_before(trace), penalty)


def seen_before(trace: Record) -> Tensor:
    """Which candidates are in the prompt or the text before their position: [P, N + 1] bool."""
    text = trace.prompt_ids + trace.recorded_ids
    first = torch.full((max([int(trace.candidates.max()), *text]) + 1,), len(text))
    for at in reversed(range(len(text))):
        first[text[at]] = at
    return first[trace.candidates] < torch.arange(len(trace))[:, None] + len(trace.prompt_ids)


def _best(scores: Tensor, candidates: Tensor) -> Tensor:
    """The column of greedy's pick, [P, 1]; among equals the lowest token id, as a search of the vocabulary finds it."""
    equal = scores == scores.amax(dim=1, keepdim=True)
    return candidates.where(equal, torch.iinfo(torch.long).max).argmin(dim=1, keepdim=True)


def _with_choice(trace: Record, scores: Tensor, column: Tensor, settings: dict[str, Any]) -> Record:
    """The trace with other scores and another pick in its extra column. column: [P, 1]."""
    candidates = _moved(trace.candidates, column)
    parts = {name: _moved(part, column) for name, part in trace.parts.items()}
    same = candidates[:, -1] == trace.candidates[:, -1]
    whole = candidates.shape[1] - 1 == trace.vocab_size
    ranks = {}
    for name, part in parts.items():
        among = (part[..., :-1] > part[..., -1:]).sum(dim=-1) + 1  # the expert's candidates are all above its pick
        if name != "expert" and not whole:
            among = torch.zeros_like(among)  # how many of all tokens the amateur likes better was counted for one only
        before = trace.rank if name == "expert" else trace.ranks.get(name, among)
        ranks[name] = torch.where(_like(same[:, None], part)[..., 0], before, among)
    chosen = {"candidates": candidates, "score": _moved(scores, column).to(trace.score.dtype), "parts": parts}
    chosen |= {"rank": ranks["expert"], "ranks": ranks, "recorded": trace.recorded_ids}
    return replace(trace, settings=settings, **chosen)


def _moved(values: Tensor, column: Tensor) -> Tensor:
    """The values with those of another column, [P, 1], in the extra one."""
    return torch.cat([values[..., :-1], values.take_along_dim(_like(column, values), dim=-1)], dim=-1)


def _like(index: Tensor, part: Tensor) -> Tensor:
    """[P, k] for a part with layers: [P, 1, k]."""
    return index[:, None] if part.dim() == 3 else index


def _with_layer(trace: Record, layer: int) -> Record:
    """The trace that DoLa with this one candidate layer would have left."""
    at = trace.settings["layers"].index(layer)
    one = {}
    for name in NAMED:
        values = getattr(trace, name)
        one[name] = values | {"amateur": values["layers"][:, at], "layers": values["layers"][:, at : at + 1]}
    details = trace.details | {"premature_layer": torch.full((len(trace),), layer)}
    details["divergences"] = trace.details["divergences"][:, at : at + 1]
    return replace(trace, **one, details=details, settings=trace.settings | {"layers": [layer]})


def at_position(trace: Record, position: int) -> Record:
    """One position as a trace of its own, its prefix as the prompt; ValueError outside the trace."""
    if check_count(position, "position", low=0) >= len(trace):
        there = f"0 to {len(trace) - 1}" if len(trace) else "none"
        raise ValueError(f"position is {position}: the positions of this trace are {there}.")
    here = slice(position, position + 1)
    prefix = trace.prompt_ids + trace.recorded_ids[:position]
    one: dict[str, Any] = {name: getattr(trace, name)[here] for name in TENSORS}
    one |= {name: {key: values[here] for key, values in getattr(trace, name).items()} for name in (*NAMED, "details")}
    return replace(trace, prompt_ids=prefix, recorded=trace.recorded_ids[here], rounds=[], **one)
