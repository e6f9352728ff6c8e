"""Strategies by name: what `cdlearn eval` compares."""

from __future__ import annotations

from typing import Any

from cdlearn.pairs.pair import Pair
from cdlearn.sources import CachedLM, Contrast, DoLa, Source

BASELINE = "greedy"
DEFAULT = ("greedy", "amateur", "top-p 0.95", "contrastive, beta 0.5", "contrastive, strength 1", "DoLa low")
EVERY = (*DEFAULT, "DoLa high", "early checkpoint, beta 0.5")  # the toy world's table
CONTRAST = ("alpha", "beta", "strength", "tau")
# the first word of a name -> the settings that may follow, each "key number"
SETTINGS = {
    "greedy": (),
    "amateur": (),
    "top-p": ("temperature",),
    "temperature": ("top-p",),
    "penalty": (),
    "contrastive": CONTRAST,
    "early checkpoint": CONTRAST,
    "DoLa low": ("alpha",),
    "DoLa high": ("alpha",),
}
FORMS = (
    "greedy, amateur, 'top-p 0.95', 'temperature 0.7', 'penalty 1.1', 'contrastive, beta 0.5', "
    "'contrastive, strength 1, alpha 0.2, tau 0.5', 'early checkpoint, beta 0.5', 'DoLa low', 'DoLa high, alpha 0.1'"
)


def build(names: list[str] | tuple[str, ...], pair: Pair, early: Any = None) -> dict[str, tuple[Source, dict]]:
    """Name -> (source, keywords of `generate`), the sources sharing their models' caches.

    names: see `FORMS`; ", reference" at the end of a contrast or of DoLa scores multiple choice as DoLa's official
    evaluation does (and takes its divergence, and no norm before early layers). pair: its amateur may be None where no
    name needs one. early: an earlier checkpoint of the expert. Raises ValueError naming the strategy.
    """
    expert = CachedLM(pair.expert)
    amateur = None if pair.amateur is None else CachedLM(pair.amateur)
    models = {"contrastive": amateur, "early checkpoint": None if early is None else CachedLM(early)}
    found: dict[str, tuple[Source, dict]] = {}
    for name in names:
        head, values, reference = parse(name)
        draw: dict[str, float] = {}
        source: Source = expert
        if head in models:
            source = Contrast(expert, _model(models[head], name), **_contrast(values))
        elif head == "amateur":
            source = _model(amateur, name)
        elif head.startswith("DoLa"):
            official = {"final_norm": False, "divergence": "reference"} if reference else {}
            source = DoLa(pair.expert, layers=head.split()[1], **values, **official)
        elif head == "penalty":
            draw = {"repetition_penalty": values["penalty"]}
        elif values:
            draw = {"temperature": values.get("temperature", 1.0), "top_p": values.get("top-p", 1.0)}
        found[name] = (source, draw)
    return found


def parse(name: str) -> tuple[str, dict[str, float], bool]:
    """A name's kind, its numbers by key, and whether it ends in "reference". Raises ValueError for an unknown one."""
    parts = [part.strip() for part in name.split(",")]
    reference = parts[-1] == "reference" and len(parts) > 1
    parts = parts[:-1] if reference else parts
    head, values = parts[0], {}
    if head not in SETTINGS or head in ("top-p", "temperature", "penalty"):
        head = head.split(" ")[0]
        parts = [head, *parts]  # "top-p 0.95" is its own first setting
    if head not in SETTINGS or (reference and head not in ("contrastive", "early checkpoint", "DoLa low", "DoLa high")):
        raise ValueError(f"strategy {name!r} is unknown; known are {FORMS}.")
    for part in parts[1:]:
        key, _, number = part.partition(" ")
        try:
            values[key] = float(number)
        except ValueError:
            raise ValueError(f"strategy {name!r}: {part!r} is not a setting and its number; try {FORMS}.") from None
        if key not in (*SETTINGS[head], head):
            raise ValueError(f"strategy {name!r} takes no {key}; known are {FORMS}.")
    return head, values, reference


def needs_amateur(name: str) -> bool:
    return parse(name)[0] in ("amateur", "contrastive")


def is_sampled(options: dict[str, Any]) -> bool:
    """Whether other seeds give other texts."""
    return options.get("temperature", 0) > 0


def _contrast(values: dict[str, float]) -> dict[str, float]:
    values = {"amateur_temperature" if key == "tau" else key: value for key, value in values.items()}
    return values if {"beta", "strength", "amateur_temperature"} & set(values) else values | {"beta": 0.5}


def _model(model: Source | None, name: str) -> Source:
    if model is None:
        what = "an early checkpoint" if name.startswith("early") else "an amateur"
        raise ValueError(f"strategy {name!r} needs {what}: name one, or leave this strategy out.")
    return model
