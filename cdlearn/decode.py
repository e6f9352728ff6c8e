"""The loop: ask a source for scores, pick a token, until every row is finished."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdlearn.scores import penalize_repetition, sampling_probs
from cdlearn.sources import Source, as_source
from cdlearn.text import TextWriter, is_int, read_prompt, read_stops, short
from cdlearn.trace import Recorder, Trace


@dataclass(repr=False)
class Generation:
    """What one prompt gave.

    text: the new text, without a stop string; None without a tokenizer. token_ids: the new tokens, without the EOS that
    ended them and without tokens that lie wholly behind the end of `text`. finish_reason: "eos", "stop", "length" or
    "interrupted". trace: a `Trace`, or None. stats: prompt_tokens, new_tokens, seconds, tokens_per_second, seed.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str
    trace: Trace | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        text = self.text if self.text is None or len(self.text) <= 60 else self.text[:57] + "..."
        return f"Generation({text!r}, {len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"


def generate(
    source: Source | Any,
    prompt: str | Sequence[Any] | Tensor | Mapping[str, Any],
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    stream: Any = None,
    trace: bool = True,
    attention_mask: Any = None,
    eos_token_ids: Sequence[int] | None = None,
    progress: bool | None = None,
) -> Generation | list[Generation]:
    """Continue one prompt or several, one token at a time.

    source: a source or a transformers model. prompt: text, a list of texts, ids [B, T] (tensor, or lists of any
    lengths) with an optional attention_mask, or a tokenizer's output. One text, one list of ids or a tensor with one
    row gives a `Generation`; anything else a list of them.
    temperature: 0 is greedy. top_k, top_p: see `sampling_probs`. repetition_penalty: see `penalize_repetition`.
    stop: strings that end the text and are left out of it. seed: row r draws what a single call with seed + r draws.
    stream: a callable taking text pieces (pieces and the row number, for several prompts), or a transformers streamer.
    trace: record every step. eos_token_ids: instead of the source's own; () never ends. progress: None shows a bar on
    a terminal or in a notebook when it takes long.
    An interrupt returns what is there. Raises TypeError or ValueError naming the argument, before any work.
    """
    source = as_source(source)
    ids, mask, single = read_prompt(prompt, attention_mask, tokenizer)
    eos = _read_eos(source, tokenizer, eos_token_ids)
    stops = read_stops(stop, tokenizer)
    _check_numbers(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    _check_fits(source, ids, mask, max_new_tokens)
    if seed is None:
        seed = torch.Generator().seed() % 2**31  # a fresh one, told in stats, so that any run can be repeated
    streamer = stream if hasattr(stream, "put") and hasattr(stream, "end") else None
    emit = _read_stream(stream, streamer, tokenizer, single)

    batch, width = ids.shape
    rows = [_Row(r, ids[r][mask[r]].tolist(), tokenizer, stops, emit, seed + r) for r in range(batch)]
    recorder = Recorder() if trace else None
    padded = not bool(mask.all())
    ids = torch.cat([ids, torch.zeros(batch, max_new_tokens, dtype=torch.long)], dim=1)
    mask = torch.cat([mask, torch.ones(batch, max_new_tokens, dtype=torch.bool)], dim=1)
    bar = _progress_bar(progress, max_new_tokens, quiet=stream is not None)
    started = time.perf_counter()
    try:
        with torch.inference_mode():
            if streamer is not None:
                streamer.put(ids[:, :width])
            for column in range(width, width + max_new_tokens):
                live = [row for row in rows if row.finish_reason is None]
                if not live:
                    break
                indices = [row.number for row in live]
                seen = ids[:, :column] if len(live) == batch else ids[indices, :column]
                seen_mask = None if not padded else mask[indices, :column]
                scores = source(seen, seen_mask)[:, -1]  # (b, V)
                final = scores
                if repetition_penalty != 1:
                    final = penalize_repetition(scores, seen, penalty=repetition_penalty, mask=seen_mask)
                uniforms = torch.stack([row.uniform() for row in live]) if temperature > 0 else None
                tokens = pick(final, uniforms, temperature=temperature, top_k=top_k, top_p=top_p)  # (b,) on the CPU
                if recorder is not None:
                    recorder.add(indices, scores, _last(source.parts), _last(source.details), tokens)
                ids[slice(None) if len(live) == batch else indices, column] = tokens
                for row, token in zip(live, tokens.tolist()):
                    row.take(token, eos)
                    if row.finish_reason is not None:
                        row.seconds = time.perf_counter() - started
                if streamer is not None:
                    streamer.put(tokens)
                if bar is not None:
                    bar.update()
    except KeyboardInterrupt:
        for row in rows:
            row.finish_reason = row.finish_reason or "interrupted"
    finally:
        if bar is not None:
            bar.close()
    seconds = time.perf_counter() - started
    for row in rows:
        row.close(seconds)
    if streamer is not None:
        streamer.end()
    results = [row.result(recorder, source, tokenizer, seed) for row in rows]
    return results[0] if single else results


def pick(
    scores: Tensor, uniforms: Tensor | None, *, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Choose a token per row: the best at temperature 0, else a draw. scores: [B, V] float. Returns [B] int on the CPU.

    uniforms: [B] in [0, 1), one random number a row: the draw is the inverse of the cumulative distribution there, so
    a row's choice depends on nothing but its own scores and number. Raises ValueError for NaN or +inf in scores.
    """
    if temperature == 0:
        best = scores.max(dim=-1)  # NaN spreads through a maximum
        if not math.isfinite(best.values.sum().item()) and not bool(best.values.isfinite().all()):
            raise ValueError("scores holds NaN, +inf or a row with only -inf: check the model, its dtype and the mask.")
        return best.indices.cpu()
    if uniforms is None:
        raise ValueError("uniforms is None: pass one number in [0, 1) per row to draw at a temperature above 0.")
    probs = sampling_probs(scores, temperature=temperature, top_k=top_k, top_p=top_p)
    cumulative = probs.double().cumsum(dim=-1)  # (B, V); not quite 1 at the end, so the draw is scaled to it
    total = cumulative[:, -1:]
    points = torch.minimum(uniforms.to(probs.device)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, points, right=True)[:, 0].cpu()


class _Row:
    """The state of one prompt."""

    def __init__(
        self, number: int, prompt_ids: list[int], tokenizer: Any, stops: list[str], emit: Callable | None, seed: int
    ) -> None:
        self.number, self.prompt_ids = number, prompt_ids
        self.tokens: list[int] = []
        self.steps = 0  # tokens drawn, the EOS counted
        self.finish_reason: str | None = None
        self.seconds: float | None = None
        self._random = torch.Generator().manual_seed(seed)
        self.writer = None
        if tokenizer is not None:
            piece = None if emit is None else lambda text: emit(text, number)
            self.writer = TextWriter(tokenizer, prompt_ids, stops=stops, emit=piece)

    def uniform(self) -> Tensor:
        return torch.rand((), generator=self._random, dtype=torch.float64)

    def take(self, token: int, eos: frozenset[int]) -> None:
        self.steps += 1
        if token in eos:
            self.finish_reason = "eos"
            return
        self.tokens.append(token)
        if self.writer is not None and self.writer.push(token):
            self.finish_reason = "stop"

    def close(self, seconds: float) -> None:
        self.seconds = seconds if self.seconds is None else self.seconds
        if self.writer is not None and self.writer.close() and self.finish_reason != "interrupted":
            self.finish_reason = "stop"
        self.finish_reason = self.finish_reason or "length"

    def result(self, recorder: Recorder | None, source: Source, tokenizer: Any, seed: int) -> Generation:
        tokens = self.tokens
        if self.finish_reason == "stop":
            tokens = tokens[: self.writer.tokens_in_text()]
        stats = {"prompt_tokens": len(self.prompt_ids), "new_tokens": len(tokens), "seconds": self.seconds}
        stats |= {"tokens_per_second": len(tokens) / max(self.seconds, 1e-9), "seed": seed + self.number}
        trace = None
        if recorder is not None:
            trace = recorder.trace(
                self.number, self.prompt_ids, steps=self.steps, settings=source.settings, tokenizer=tokenizer
            )
        return Generation(None if self.writer is None else self.writer.text, tokens, self.finish_reason, trace, stats)


def _last(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[:, -1] for name, values in tensors.items()}


def _read_eos(source: Source, tokenizer: Any, given: Sequence[int] | None) -> frozenset[int]:
    if given is not None:
        given = (given,) if is_int(given) else given
        if not isinstance(given, (list, tuple, set, frozenset)) or not all(is_int(token) for token in given):
            raise TypeError(f"eos_token_ids is {short(given)}: pass a list of token ids, () for none.")
        return frozenset(given)
    if source.eos_token_ids:
        return frozenset(source.eos_token_ids)
    eos = getattr(tokenizer, "eos_token_id", None)
    return frozenset() if eos is None else frozenset((eos,))


def _read_stream(stream: Any, streamer: Any, tokenizer: Any, single: bool) -> Callable[[str, int], Any] | None:
    if stream is None or streamer is not None:
        return None
    if not callable(stream):
        raise TypeError(f"stream is {short(stream)}: pass a callable taking text, or a transformers streamer.")
    if tokenizer is None:
        raise TypeError("stream is a callable taking text: pass tokenizer= so that there is text.")
    return (lambda text, row: stream(text)) if single else stream


def _check_numbers(
    max_new_tokens: int, temperature: float, top_k: int, top_p: float, repetition_penalty: float, seed: int | None
) -> None:
    if not is_int(max_new_tokens):
        raise TypeError(f"max_new_tokens is {short(max_new_tokens)}: pass a whole number.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: pass at least 1.")
    if seed is not None and not is_int(seed):
        raise TypeError(f"seed is {short(seed)}: pass a whole number, or None for a fresh one.")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}: pass a whole number from 0 to 2**63 - 1.")
    row = torch.zeros(1, 2)  # the pure functions know their limits best
    sampling_probs(row, temperature=temperature, top_k=top_k, top_p=top_p)
    try:
        penalize_repetition(row, torch.zeros(1, 1, dtype=torch.long), penalty=repetition_penalty)
    except (TypeError, ValueError) as error:
        raise type(error)(f"repetition_{error}") from None


def _check_fits(source: Source, ids: Tensor, mask: Tensor, max_new_tokens: int) -> None:
    low, high = int(ids[mask].min()), int(ids[mask].max())
    if low < 0 or high >= source.vocab_size:
        raise ValueError(
            f"prompt holds token {low if low < 0 else high} and the source's vocabulary has {source.vocab_size}: "
            "use the tokenizer that belongs to the model."
        )
    longest = int(mask.sum(dim=1).max())
    limit = source.max_positions
    if limit is not None and longest + max_new_tokens - 1 > limit:  # the last new token is never fed back
        room = limit - longest + 1
        advice = f"pass max_new_tokens={room} or less, or shorten the prompt" if room > 0 else "shorten the prompt"
        raise ValueError(
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens does not fit the context of {limit}: "
            f"{advice}."
        )


def _progress_bar(progress: bool | None, total: int, *, quiet: bool) -> Any:
    """A tqdm bar or None. By itself it shows only where somebody looks, and only when the work takes seconds."""
    if progress is None:
        watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
        progress = watched and not quiet and not os.environ.get("CI")
        delay = 2.0
    else:
        delay = 0.0
    if not progress:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="generate", unit="token", leave=False, delay=delay)
