"""The registry of methods: what each is called, which numbers it takes, what it needs, and how it is built.

The command line, `compare`, `eval`, the harness and the doctor read it, so a new method is one entry in `METHODS`.
A method with its numbers is spelled `contrastive beta=0.5 alpha=0.1` everywhere.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cdlearn.loops.generate import generate
from cdlearn.loops.run import Generation
from cdlearn.loops.speculate import speculate
from cdlearn.pairs import Pair, load_expert
from cdlearn.sources import SLED, CachedLM, Contrast, DoLa, Source


@dataclass(frozen=True)
class Option:
    """What methods take: its one default, its range, and what it is. kind: float, int, or str for words alone."""

    default: Any
    about: str
    kind: type = float
    low: float = 0.0
    high: float = float("inf")
    above: bool = False  # whether `low` itself is out
    words: tuple[str, ...] = ()  # the only ones of a str, or instead of a number
    flag: str = ""  # on the command line, where it is not --name

    def read(self, name: str, text: str) -> Any:
        """The value of a text. Raises ValueError naming the option."""
        if text in self.words or (self.kind is str and not self.words):
            return text
        with contextlib.suppress(ValueError, TypeError):  # no number; a word where words alone are known
            value = self.kind(text)
            if (value > self.low if self.above else value >= self.low) and value <= self.high and value < float("inf"):
                return value
        raise ValueError(f"{name}={text} is not possible: give {self.range}.")

    @property
    def range(self) -> str:
        """In words: "more than 0 and at most 1"."""
        high = "" if self.high == float("inf") else f" and at most {self.high:g}"
        numbers = [] if self.kind is str else [f"{'more than' if self.above else 'at least'} {self.low:g}{high}"]
        return " or ".join([*self.words, *numbers])


OPTIONS = {
    "alpha": Option(0.1, "keep tokens with p >= alpha * max p; 0: no mask", high=1.0),
    "beta": Option(0.5, "2023 form: (1 + beta) * expert - beta * amateur logits"),
    "strength": Option(1.0, "2022 form: log p expert - strength * log p amateur"),
    "amateur_temperature": Option(1.0, "amateur temperature of the 2022 form", above=True, flag="--tau-amateur"),
    "top_k": Option(0, "only the expert's k best tokens; 0: off", int),
    "layers": Option("low", "DoLa's or SLED's layers: low, high, all, or numbers as in 2,4,6", str),
    "evolution_rate": Option(2.0, "how far SLED moves a logit; 0 is greedy"),
    "evolution_scale": Option(10, "SLED moves that many of the best tokens", int, 1),
    "temperature": Option(0.0, "0 is greedy"),
    "top_p": Option(1.0, "nucleus of sampling; 1: off", high=1.0, above=True),
    "min_p": Option(0.0, "keep draws with p >= min_p * max p; 0: off", high=1.0),
    "top_n_sigma": Option(0.0, "keep scores within n standard deviations of the best; 0: off"),
    "repetition_penalty": Option(1.0, "makes tokens of the text less likely; 1: off", above=True),
    "gamma": Option("auto", "tokens drafted per round; auto: while acceptance is likely", int, 1, words=("auto",)),
    "rule": Option("token", "how a draft is verified: token by token, or as a block", str, words=("token", "block")),
    "choices": Option("textbook", "how multiple choice is scored", str, words=("textbook", "reference")),
}
FORM = ("beta", "strength", "amateur_temperature")  # the first excludes the other two
DRAW = ("temperature", "top_p", "min_p", "top_n_sigma", "repetition_penalty")  # keywords of every loop
SCORED = ("choices",)  # read by evaluations, not by the source


class Models:
    """The models of a pair as sources, each made once, so that methods share what was computed."""

    def __init__(self, pair: Pair, early: Any = None) -> None:
        self.pair, self._early = pair, early

    @cached_property
    def expert(self) -> CachedLM:
        return CachedLM(self.pair.expert)

    @cached_property
    def amateur(self) -> CachedLM:
        if self.pair.amateur is None:
            raise ValueError("there is no amateur: name one, or choose a method that works with one model.")
        return CachedLM(self.pair.amateur)

    @cached_property
    def early(self) -> CachedLM:
        return CachedLM(load_expert("early", progress=False).expert if self._early is None else self._early)


@dataclass(frozen=True)
class Method:
    """One way to decode. build: models and numbers -> a source, or (target, draft) where `needs` says "draft"."""

    about: str
    build: Callable[[Models, dict[str, Any]], Any]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # of "amateur", "early", "draft"
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they differ from the option's own
    loop: tuple[str, ...] = DRAW  # the numbers that are keywords of the loop; the others are the source's


def _contrast(expert: Any, amateur: Any, numbers: dict[str, Any]) -> Contrast:
    form = {name: numbers[name] for name in FORM if name in numbers} or {"beta": OPTIONS["beta"].default}
    return Contrast(expert, amateur, alpha=numbers["alpha"] or None, top_k=numbers["top_k"], **form)


def _layers(numbers: dict[str, Any]) -> Any:
    layers = numbers["layers"]
    if isinstance(layers, (str, int)) and layers not in ("low", "high", "all"):  # the harness reads a single number
        return [int(layer) if layer.strip().isdigit() else layer for layer in str(layers).split(",")]
    return layers


def _dola(models: Models, numbers: dict[str, Any]) -> DoLa:
    official = {"final_norm": False, "divergence": "reference"} if numbers.get("choices") == "reference" else {}
    return DoLa(models.pair.expert, layers=_layers(numbers), alpha=numbers["alpha"] or None, **official)


_EVOLUTION = ("evolution_rate", "evolution_scale")
_CONTRAST = ("alpha", *FORM, "top_k", *DRAW)
METHODS: dict[str, Method] = {
    "contrastive": Method(
        "expert against amateur: contrastive decoding", lambda models, n: _contrast(models.expert, models.amateur, n),
        (*_CONTRAST, *SCORED), ("amateur",),
    ),
    "greedy": Method("the expert's likeliest token", lambda models, n: models.expert, ("repetition_penalty",)),
    "amateur": Method("the amateur alone", lambda models, n: models.amateur, DRAW, ("amateur",)),
    "sample": Method(
        "a draw from the expert", lambda models, n: models.expert,
        (*DRAW, "top_k"), defaults={"temperature": 1.0}, loop=(*DRAW, "top_k"),
    ),
    "dola": Method("the expert against its own early layers", _dola, ("alpha", "layers", *DRAW, *SCORED)),
    "sled": Method(
        "the expert, moved by the votes of its own layers",
        lambda models, n: SLED(models.pair.expert, layers=_layers(n), **{name: n[name] for name in _EVOLUTION}),
        ("layers", *_EVOLUTION, *DRAW), defaults={"layers": "all"},
    ),
    "early": Method(
        "the embedded expert against its early checkpoint", lambda models, n: _contrast(models.expert, models.early, n),
        (*_CONTRAST, *SCORED), ("early",),
    ),
    "speculative": Method(
        "the expert, drafted by the amateur", lambda models, n: (models.expert, models.amateur),
        (*DRAW, "gamma", "rule"), ("amateur", "draft"), loop=(*DRAW, "gamma", "rule"),
    ),
    "speculative-contrastive": Method(
        "the contrast, drafted by its own amateur",
        lambda models, n: (_contrast(models.expert, models.amateur, n), models.amateur),
        (*_CONTRAST, "gamma", "rule"), ("amateur", "draft"), loop=(*DRAW, "gamma", "rule"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Decoder:
    """A method that is ready to decode. numbers: all of them, defaults included. draw: the loop's keywords."""

    name: str
    numbers: dict[str, Any]
    source: Source
    draft: Source | None
    draw: dict[str, Any]

    def __call__(self, prompts: Any, **options: Any) -> Generation | list[Generation]:
        """Continue prompts. options: the other keywords of `generate` or `speculate`; they win over `draw`."""
        if self.draft is None:
            return generate(self.source, prompts, **self.draw | options)
        return speculate(self.source, self.draft, prompts, **self.draw | options)

    @property
    def settings(self) -> dict[str, Any]:
        """The source's method and numbers, and how tokens are drawn: what the method takes of it."""
        off = ("repetition_penalty", 1)
        return self.source.settings | {k: v for k, v in self.draw.items() if k in self.numbers and (k, v) != off}


def guess(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """(did you mean ...?), or nothing where no known word is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """`contrastive beta=0.5 alpha=0.1` -> ("contrastive", {"beta": 0.5, "alpha": 0.1}). Raises ValueError."""
    name, *settings = spec.split() or [""]
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown{guess(name, METHODS, 0.5)}: known are {', '.join(METHODS)}.")
    numbers: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"method {spec!r}: {setting!r} is not name=value, as in contrastive beta=0.5 alpha=0.1.")
        check(name, {key: text})
        numbers[key] = OPTIONS[key].read(key, text)
    check(name, numbers)
    return name, numbers


def check(name: str, numbers: Mapping[str, Any], spell: Callable[[str, Any], str] = "{}={}".format) -> None:
    """Refuse numbers that would change nothing. spell: how a message writes a number. Raises ValueError."""
    for key, value in numbers.items():
        owners = [other for other, method in METHODS.items() if key in method.options]
        if name not in owners:
            belongs = f"it belongs to {', '.join(owners)}" if owners else f"known are {', '.join(OPTIONS)}"
            raise ValueError(f"{spell(key, value)} changes nothing with {name}; {belongs}.")
    check_form(numbers, spell)


def check_form(numbers: Mapping[str, Any], spell: Callable[[str, Any], str] = "{}={}".format) -> None:
    """Refuse numbers of both forms of the contrast. Raises ValueError."""
    given = [spell(key, numbers[key]) for key in FORM if key in numbers]
    if "beta" in numbers and len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} belong to two forms of the contrast: choose one.")


def build(models: Models, name: str, numbers: Mapping[str, Any] | None = None) -> Decoder:
    """A method over these models. numbers: those that differ from the defaults. Raises ValueError as `check` does."""
    method, given = METHODS[name], dict(numbers or {})
    check(name, given)
    known = {key: OPTIONS[key].default for key in method.options if key not in FORM} | dict(method.defaults) | given
    made = method.build(models, known)
    source, draft = made if "draft" in method.needs else (made, None)
    draw = {key: known.get(key, OPTIONS[key].default) for key in method.loop}
    return Decoder(name, known, source, draft, draw)
