"""What greedy would have picked with other settings: exact, from a trace's recorded candidates, without a model.

Everything holds for the recorded prefixes: behind the first changed token there would be another text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import is_int, short
from cdlearn.scores import NEVER, contrastive_logits, contrastive_scores, plausibility_mask
from cdlearn.trace.record import Record

CHANGEABLE = {
    "contrastive": ("strength", "beta", "alpha", "amateur_temperature", "top_k"),
    "dola": ("alpha", "layer"),
    "mix": ("alpha",),
}
_FLOOR = -1e5  # as in scores.py: the least log-probability of an amateur
_UP_TO_A_CONSTANT = "up to a constant per position"


def rescore(trace: Record, **changes: Any) -> Record:
    """See `Trace.rescore`. changes: the names in CHANGEABLE; None leaves a setting as it was."""
    trace, settings, scores, column = _decided(trace, changes)
    return _with_choice(trace, scores, column, settings)


def picks(trace: Record, **changes: Any) -> Tensor:
    """Greedy's tokens alone, [P]: `rescore(...).token_ids` for less."""
    trace, _, _, column = _decided(trace, changes)
    return trace.candidates.gather(1, column)[:, 0]


def _decided(trace: Record, changes: Mapping[str, Any]) -> tuple[Record, dict[str, Any], Tensor, Tensor]:
    """The trace (of another layer), its new settings and scores [P, N + 1], and the column of greedy's pick [P, 1]."""
    settings = new_settings(trace.settings, {name: value for name, value in changes.items() if value is not None})
    if settings["method"] == "dola" and settings["layers"] != trace.settings["layers"]:
        trace = _with_layer(trace, settings["layers"][0])
    scores, exact = unmasked_scores(trace, settings)
    settings.pop("scores", None)
    if not exact:
        settings["scores"] = _UP_TO_A_CONSTANT
        check_penalty(settings)
    scores = scores.where(kept(trace, settings), NEVER)
    return trace, settings, scores, _best(penalized(trace, scores), trace.candidates)


def new_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a source made with these changes would have, or a ValueError or TypeError."""
    method = settings.get("method")
    if method not in CHANGEABLE:
        raise ValueError(
            f"the trace's method is {method!r}, where nothing is contrasted and so nothing can change: "
            "trace a Contrast, a DoLa or a Mix."
        )
    for name in changes:
        if name not in CHANGEABLE[method]:
            raise ValueError(
                f"{name}={changes[name]!r} cannot change in a trace of {method!r}: "
                f"what can is {', '.join(CHANGEABLE[method])}."
            )
    new = dict(settings) | {name: value for name, value in changes.items() if name != "layer"}
    if new["alpha"] is not None and not isinstance(new["alpha"], bool) and new["alpha"] == 0:
        new["alpha"] = None
    if method == "contrastive":
        return _contrastive_settings(new, changes)
    plausibility_mask(torch.zeros(1, 2), new["alpha"])
    if "layer" in changes:
        layer, layers = changes["layer"], settings["layers"]
        if not is_int(layer) or layer not in layers:
            raise ValueError(f"layer is {layer!r}: the trace's candidate layers are {layers}.")
        new["layers"] = [layer]
    return new


def _contrastive_settings(new: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """One form, strength or beta, with the numbers checked by the formula itself."""
    if "strength" in changes and "beta" in changes:
        raise ValueError(
            f"strength={new['strength']!r} and beta={new['beta']!r} were both given: they are two forms, choose one."
        )
    if "beta" in new and "strength" not in changes:
        if new.get("amateur_temperature", 1.0) != 1:
            raise ValueError(
                "amateur_temperature is not part of the beta form: use strength= with it, or leave it at 1."
            )
        new = {name: value for name, value in new.items() if name not in ("strength", "amateur_temperature")}
        formula, names = contrastive_logits, ("alpha", "top_k", "beta")
    else:
        new = {"amateur_temperature": 1.0} | {name: value for name, value in new.items() if name != "beta"}
        formula, names = contrastive_scores, ("alpha", "top_k", "strength", "amateur_temperature")
    formula(torch.zeros(1, 2), torch.zeros(1, 2), **{name: new[name] for name in names})
    return new


def strength_of(settings: Mapping[str, Any]) -> float:
    """The strength that makes the same greedy choices: the setting itself, or beta / (1 + beta); 1 where neither is."""
    beta = settings.get("beta")
    return settings.get("strength", 1.0) if beta is None else beta / (1 + beta)


def kept(trace: Record, settings: Mapping[str, Any]) -> Tensor:
    """The plausibility mask of the recorded candidates: [P, N + 1] bool."""
    expert = trace.parts["expert"]
    return (expert >= _cutoff(trace, settings)) & (expert > NEVER)


def truncated(trace: Record, settings: Mapping[str, Any]) -> Tensor:
    """[P] bool: where a token beyond the recorded candidates may be kept; nowhere for methods without a mask."""
    count = trace.candidates.shape[1] - 1
    if settings.get("method") not in CHANGEABLE or count == trace.vocab_size or not len(trace):
        return torch.zeros(len(trace), dtype=torch.bool)
    last = trace.parts["expert"][:, count - 1]  # nothing that was not recorded is above it
    return (last >= _cutoff(trace, settings)[:, 0]) & (last > NEVER)


def _cutoff(trace: Record, settings: Mapping[str, Any]) -> Tensor:
    """The least expert logit that is kept, [P, 1], with the very rounding of scores.py."""
    expert = trace.parts["expert"]
    count, alpha, top_k = expert.shape[1] - 1, settings.get("alpha"), settings.get("top_k", 0)
    cut = torch.full_like(expert[:, :1], NEVER) if alpha is None else expert[:, :1] + math.log(alpha)
    if 0 < top_k and (top_k < count or count != trace.vocab_size):
        cut = torch.maximum(cut, expert[:, min(top_k, count) - 1, None])
    return cut


def unmasked_scores(trace: Record, settings: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """The formulas of scores.py with the recorded normalisers: [P, N + 1] float64, and whether they are exact.

    Not exact means up to a constant per position, so every comparison within a position is.
    """
    if settings["method"] == "mix":
        return _mixed(trace, settings["weights"]), True
    if settings["method"] == "dola" and settings["divergence"] == "reference" and settings["alpha"] is None:
        return trace.parts["expert"].double() - trace.parts["amateur"].double(), True
    over, against, exact = lines(trace, settings)
    return over - settings.get("strength", settings.get("beta", 1.0)) * against, exact


def lines(trace: Record, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, bool]:
    """Every candidate's line, score = a - t * b with t the strength, or beta: a and b [P, N + 1], and "exact"."""
    if "beta" in settings:  # (1 + beta) * s_E - beta * s_A
        expert, amateur = trace.parts["expert"].double(), trace.parts["amateur"].double()
        amateur = torch.maximum(amateur, amateur.amax(dim=1, keepdim=True) + _FLOOR)
        return expert, amateur - expert, True
    tau = settings.get("amateur_temperature", 1.0)
    normaliser, exact = _amateur_normaliser(trace, tau)
    against = (trace.parts["amateur"].double() / tau - normaliser[:, None]).clamp(min=_FLOOR)
    return log_probs(trace, "expert"), against, exact


def log_probs(trace: Record, name: str) -> Tensor:
    """Log-probabilities of the recorded candidates over the whole vocabulary: [P, N + 1] float64."""
    return trace.parts[name].double() - trace.normalisers[name].double()[:, None]


def _amateur_normaliser(trace: Record, tau: float) -> tuple[Tensor, bool]:
    """logsumexp of s_A / tau over the vocabulary, [P], and whether it is exact."""
    if tau == 1:
        return trace.normalisers["amateur"].double(), True
    amateur = trace.parts["amateur"].double() / tau
    used, strength = trace.settings.get("amateur_temperature"), trace.settings.get("strength")
    if tau == used and strength and "scores" not in trace.settings:
        # a recorded score tells it, score = log p_E - strength * (s_A / tau - normaliser): best where s_A is largest
        column = amateur.where(trace.score > NEVER, NEVER).argmax(dim=1, keepdim=True)
        over, score = log_probs(trace, "expert").gather(1, column), trace.score.double().gather(1, column)
        return (amateur.gather(1, column) - (over - score) / strength)[:, 0], True
    whole = trace.candidates.shape[1] - 1 == trace.vocab_size
    return amateur[:, :-1].logsumexp(dim=1), whole


def _mixed(trace: Record, weights: list[float]) -> Tensor:
    total = torch.zeros(trace.score.shape, dtype=torch.float64)
    for weight, name in zip(weights, (name for name, part in trace.parts.items() if part.dim() == 2)):
        total = total + weight * log_probs(trace, name).clamp(min=_FLOOR)
        if weight > 0:
            total = total.masked_fill(trace.parts[name] == NEVER, NEVER)
    return total


def check_penalty(settings: Mapping[str, Any]) -> None:
    """The penalty looks at the signs of scores, so a constant that is not known would matter."""
    if settings.get("repetition_penalty", 1.0) != 1:
        raise ValueError(
            f"amateur_temperature is {settings['amateur_temperature']!r}, and with the trace's repetition_penalty only "
            "the recorded temperature and 1 can be answered: generate again instead."
        )


def penalized(trace: Record, scores: Tensor) -> Tensor:
    """`penalize_repetition` as the run had it: at every position for the tokens before it."""
    penalty = trace.settings.get("repetition_penalty", 1.0)
    if penalty == 1:
        return scores
    return torch.where(seen_before(trace), torch.where(scores > 0, scores / penalty, scores * penalty), scores)


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
    return replace(
        trace,
        candidates=candidates,
        score=_moved(scores, column).to(trace.score.dtype),
        parts=parts,
        rank=ranks["expert"],
        ranks=ranks,
        settings=settings,
        recorded=trace.recorded_ids,
    )


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
    for name in ("parts", "normalisers", "entropy", "total_variation", "ranks"):
        values = getattr(trace, name)
        one[name] = values | {"amateur": values["layers"][:, at], "layers": values["layers"][:, at : at + 1]}
    details = trace.details | {"premature_layer": torch.full((len(trace),), layer)}
    details["divergences"] = trace.details["divergences"][:, at : at + 1]
    return replace(trace, **one, details=details, settings=trace.settings | {"layers": [layer]})


def at_position(trace: Record, position: int) -> Record:
    """One position as a trace of its own, its prefix as the prompt; ValueError outside the trace."""
    if not is_int(position):
        raise TypeError(f"position is {short(position)}: pass a whole number.")
    if not 0 <= position < len(trace):
        there = f"0 to {len(trace) - 1}" if len(trace) else "none"
        raise ValueError(f"position is {position}: the positions of this trace are {there}.")
    here = slice(position, position + 1)
    per_part = ("parts", "normalisers", "details", "entropy", "total_variation", "ranks")
    return replace(
        trace,
        prompt_ids=trace.prompt_ids + trace.recorded_ids[:position],
        recorded=trace.recorded_ids[here],
        candidates=trace.candidates[here],
        score=trace.score[here],
        rank=trace.rank[here],
        rounds=[],
        **{name: {key: values[here] for key, values in getattr(trace, name).items()} for name in per_part},
    )
