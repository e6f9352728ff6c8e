"""What `cdlearn bench` measures: the steps of every loop beside bare forward passes, and whole speculative texts."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StoppingCriteriaList
from transformers.utils import logging as hf_logging

from cdlearn.cli.timing import Forwards, Lap, Stopwatch, now
from cdlearn.hf import as_causal_lm
from cdlearn.loops.beams import beam_search
from cdlearn.loops.generate import generate
from cdlearn.loops.speculate import speculate
from cdlearn.sources import CachedLM, Contrast, DoLa, EarlyExit, Mix, Prompted, Source


def step_rows(
    expert, amateur, batch: int, context: int, steps: int, repetitions: int, bar: Any
) -> list[dict[str, Any]]:
    """One-token steps of every loop against the bare forwards beside each step."""
    vocab = min(model.config.get_text_config().vocab_size for model in (expert, amateur))
    prompt = torch.randint(0, vocab, (batch, context), generator=torch.Generator().manual_seed(0))
    half = max(1, expert.config.get_text_config().num_hidden_layers // 2)
    both, alone = {"expert": expert, "amateur": amateur}, {"expert": expert}

    def loop(make: Callable[[], Source], *, trace: bool = True):
        def timed(forwards: Forwards) -> list[float]:
            watch = Stopwatch(make(), forwards)
            generate(watch, prompt, max_new_tokens=steps, temperature=0.0, trace=trace, progress=False)
            return watch.times

        return timed

    def contrast() -> Source:
        return Contrast(expert, amateur, beta=0.5)

    methods = {
        "contrastive, no trace": (both, loop(contrast, trace=False)),
        "contrastive": (both, loop(contrast)),
        "as_causal_lm": (both, lambda forwards: _transformers_steps(as_causal_lm(contrast()), prompt, steps, forwards)),
        "expert greedy": (alone, loop(lambda: CachedLM(expert))),
        "DoLa": (alone, loop(lambda: DoLa(expert))),
        "mix": (both, loop(lambda: Mix([(1.5, expert), (-0.5, amateur)], alpha=0.1))),
        "prompted": (alone, loop(lambda: Prompted(expert, [1, 2, 3, 4]))),
        f"early exit at {half}": (alone, loop(lambda: EarlyExit(expert, half))),
        "transformers generate": (alone, lambda forwards: _transformers_steps(expert, prompt, steps, forwards)),
    }
    medians: dict[str, list[float]] = {}
    for repetition in range(-1, repetitions):  # -1 warms up
        for method, (needed, timed) in methods.items():
            forwards = Forwards(needed)
            times = timed(forwards)
            if repetition >= 0:
                medians.setdefault(method, []).append(statistics.median(times))
                medians.setdefault(f"{method}/forwards", []).append(
                    sum(statistics.median(spent) for spent in forwards.times.values())
                )
                for name, spent in forwards.times.items():
                    medians.setdefault(name, []).append(statistics.median(spent))
        bar.update()
    rows = [_row(f"{name} forward", medians[name]) for name in both]
    for method, (needed, _) in methods.items():
        floor, against = medians[f"{method}/forwards"], "both forwards" if needed is both else "expert forward"
        if method == "DoLa":  # it and the plain loop ran one after the other: the forwards beside them level the two
            plain = [m / f for m, f in zip(medians["expert greedy"], medians["expert greedy/forwards"])]
            floor, against = [p * f for p, f in zip(plain, floor)], "expert greedy"
        rows.append(_row(method, medians[method], floor, against))
    return rows


def _transformers_steps(model, prompt: torch.Tensor, steps: int, forwards: Forwards) -> list[float]:
    lap = Lap(forwards, model.device)
    criteria = StoppingCriteriaList([lap])
    ids = prompt.to(model.device)
    mask = torch.ones_like(ids)
    model.generate(ids, attention_mask=mask, generation_config=_greedy(model, steps), stopping_criteria=criteria)
    return lap.times


def _greedy(model: PreTrainedModel, steps: int) -> GenerationConfig:
    never = model.config.get_text_config().vocab_size  # an EOS id that no model can emit
    return GenerationConfig(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)


def text_rows(expert, amateur, stories: list[torch.Tensor], steps: int, repetitions: int, gamma: int = 4) -> list[dict]:
    """Whole texts: each speculative loop's speed-up over its plain loop, beside what theory makes of the acceptance."""
    shared = CachedLM(amateur)
    options = dict(max_new_tokens=steps, eos_token_ids=(), trace=False, progress=False)
    exit_layer = max(1, expert.config.get_text_config().num_hidden_layers // 3)

    def assisted(ids: torch.Tensor) -> None:
        ids, never = ids.to(expert.device), expert.config.get_text_config().vocab_size
        numbers = dict(max_new_tokens=steps, do_sample=False, eos_token_id=never, pad_token_id=0)
        with _quiet():  # this loop warns of its own inner calls
            expert.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=amateur, **numbers)

    methods: dict[str, Callable[[torch.Tensor], Any]] = {
        "contrastive text": lambda ids: generate(Contrast(expert, shared, beta=0.5), ids, **options),
        "speculative contrastive": lambda ids: speculate(
            Contrast(expert, shared, beta=0.5), shared, ids, gamma=gamma, **options
        ),
        "greedy text": lambda ids: generate(CachedLM(expert), ids, **options),
        "speculative": lambda ids: speculate(CachedLM(expert), shared, ids, gamma=gamma, **options),
        f"self-speculative, exit {exit_layer}": lambda ids: speculate(
            CachedLM(expert), EarlyExit(expert, exit_layer), ids, gamma=gamma, **options
        ),
        "transformers assisted": assisted,
        "beam search, 4 beams": lambda ids: beam_search(CachedLM(expert), ids, num_beams=4, **options),
    }
    spent: dict[str, list[float]] = {name: [] for name in methods}
    accepted: dict[str, list[int]] = {name: [0, 0] for name in methods}
    passes: dict[str, list[float]] = {}
    for repetition in range(-1, repetitions):
        for name, decode in methods.items():
            total = 0.0
            for ids in stories:
                shared.reset()
                start = now(expert.device)
                made = decode(ids)
                total += now(expert.device) - start
                if made is not None and "tested" in made.stats:
                    accepted[name][0] += made.stats["accepted"]
                    accepted[name][1] += made.stats["tested"]
            if repetition >= 0:
                spent[name].append(total / len(stories) / steps)
        if repetition >= 0:
            for name, cost in _passes(expert, amateur, exit_layer, stories[0], gamma).items():
                passes.setdefault(name, []).append(cost)
    cost = {name: statistics.median(values) for name, values in passes.items()}
    rows = []
    for name, times in spent.items():
        base = "contrastive text" if name == "speculative contrastive" else "greedy text"
        speedup = [b / t for b, t in zip(spent[base], times)] if name != base and "text" not in name else None
        row = _row(name, times) | {"against": base if speedup else ""}
        if speedup:
            row |= {"ratio": statistics.median(speedup), "low": min(speedup), "high": max(speedup)}
        if accepted[name][1]:
            a = accepted[name][0] / accepted[name][1]
            tokens = (1 - a ** (gamma + 1)) / (1 - a) if a < 1 else gamma + 1
            if name == "speculative contrastive":  # the amateur reads the last draft too, and nothing twice
                plain, spend = cost["expert"] + cost["amateur"], (gamma + 1) * cost["amateur"] + cost["check"]
            else:
                draft = cost["exit" if name.startswith("self") else "amateur"]
                plain, spend = cost["expert"], gamma * draft + cost["check"]
            row |= {"predicted": tokens * plain / spend, "accepted": a}
        rows.append(row)
    return rows


@contextlib.contextmanager
def _quiet():
    """Let transformers warn of nothing for a moment."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


@torch.no_grad()
def _passes(expert, amateur, exit_layer: int, ids: torch.Tensor, gamma: int, times: int = 15) -> dict[str, float]:
    """Median seconds of bare passes behind a context: one token of each model, and the check of gamma + 1 tokens."""
    early = EarlyExit(expert, exit_layer).model
    found = {}
    for name, model, width in (
        ("expert", expert, 1), ("amateur", amateur, 1), ("exit", early, 1), ("check", expert, gamma + 1)
    ):  # fmt: skip
        cache, laps = DynamicCache(config=model.config), []
        model(input_ids=ids.to(model.device), past_key_values=cache)
        for _ in range(times):
            start = now(model.device)
            model(input_ids=ids[:, :1].expand(-1, width).to(model.device), past_key_values=cache)
            laps.append(now(model.device) - start)
            cache.crop(-width)
        found[name] = statistics.median(laps)
    return found


def _row(method: str, medians: list[float], floor: list[float] | None = None, against: str = "") -> dict[str, Any]:
    row = {"method": method, "ms": 1e3 * statistics.median(medians), "against": against}
    ratios = [m / f for m, f in zip(medians, floor)] if floor else []
    row["ratio"] = statistics.median(ratios) if ratios else None
    return row | {"low": min(ratios, default=None), "high": max(ratios, default=None)}
