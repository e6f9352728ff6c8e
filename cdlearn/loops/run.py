"""What every loop shares: its arguments, the rows of a batch and how each ends, the clock, the bar, the results."""

from __future__ import annotations

import contextlib
import html
import inspect
import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import NonFiniteError, check_ids, check_loop, check_sampling, is_int, row_max, short, watched
from cdlearn.loops.text import TextWriter, read_prompt, read_stops
from cdlearn.scores import penalize_repetition
from cdlearn.sources.base import PLACES, Source
from cdlearn.trace.record import Record, Recorder

# of a model's generation_config: what changes greedy texts too, and is not applied here
_IGNORED = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "sequence_bias")
_TOLD = weakref.WeakSet()  # the models of which it was said


@dataclass(repr=False)
class Generation:
    """What one prompt gave.

    text: the new text, without a stop string; None without a tokenizer. token_ids: the new tokens, without the EOS that
    ended them and without tokens that lie wholly after the end of `text`. finish_reason: "eos", "stop", "length" or
    "interrupted". trace: a `Trace`, or None. stats: prompt_tokens, new_tokens, seconds, tokens_per_second, seed.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str
    trace: Record | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        text = self.text if self.text is None or len(self.text) <= 60 else self.text[:57] + "..."
        return f"Generation({text!r}, {len(self.token_ids)} tokens, finish_reason={self.finish_reason!r})"

    def _repr_html_(self) -> str:
        text = "" if self.text is None else f'<div style="white-space:pre-wrap">{html.escape(self.text)}</div>'
        trace = "" if self.trace is None else self.trace._repr_html_()
        return f'<div>{text}<div style="font-size:85%">({html.escape(self.finish_reason)})</div>{trace}</div>'


class Run:
    """What every loop shares: it reads the arguments, then keeps the rows, the stream, the trace and the clock.

    `ids` [B, T] and `mask` [B, T] (None: all ones) are the prompts; `live` are the rows that are not finished. Used as
    a context: an interrupt ends the block and keeps what is there. sampling: the keywords of `sampling_probs`.
    """

    def __init__(
        self, source: Source, prompt: Any, sampling: dict[str, Any], *, tokenizer: Any, max_new_tokens: int, stop: Any,
        trace: bool, attention_mask: Any, eos_token_ids: Any, num_return_sequences: int, progress: bool | None,
        repetition_penalty: float = 1.0, seed: int | None = None, stream: Any = None, label: str = "generate",
    ) -> None:  # fmt: skip
        ids, mask, self.single = read_prompt(prompt, attention_mask, tokenizer)
        self.eos = _read_eos(source, tokenizer, eos_token_ids)
        stops = read_stops(stop, tokenizer)
        if seed is None:
            seed = torch.Generator().seed() % 2**31  # a fresh one, told in stats, so that any run can be repeated
        self.max_new_tokens, several, self.penalty, self.seed = check_loop(
            max_new_tokens, num_return_sequences, repetition_penalty, seed, trace, progress
        )
        temperature, *cuts = check_sampling(**sampling)
        if temperature == 0 and cuts != [0, 1, 0, 0]:
            numbers = ", ".join(f"{name}={sampling[name]}" for name in list(sampling)[1:])
            words = "change nothing at temperature 0, which is greedy: pass temperature=1.0 to sample."
            warnings.warn(f"{numbers} {words}", stacklevel=3)
        if self.penalty == 1:
            _warn_of_ignored(source)
        check_fits(source, ids, mask, self.max_new_tokens)
        if several > 1:
            ids, mask = ids.repeat_interleave(several, 0), mask.repeat_interleave(several, 0)
            self.single = False
        self.tokenizer = tokenizer
        self.streamer = stream if hasattr(stream, "put") and hasattr(stream, "end") else None
        if self.streamer is not None and len(ids) > 1:
            raise ValueError("stream is a transformers streamer, which takes one row: pass one prompt, or a callable.")
        emit = _read_stream(stream, self.streamer, tokenizer, self.single)
        self.ids, self.mask = ids, None if bool(mask.all()) else mask
        prompts = [row[real].tolist() for row, real in zip(ids, mask)]
        self.rows = [_Row(r, tokens, tokenizer, stops, emit, self.seed + r) for r, tokens in enumerate(prompts)]
        self.recorder = Recorder() if trace else None
        self._bar = _progress_bar(progress, self.max_new_tokens, label, quiet=stream is not None)
        self._source = source
        self._started = time.perf_counter()

    @property
    def live(self) -> list[_Row]:
        return [row for row in self.rows if row.finish_reason is None]

    def penalized(self, scores: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        return scores if self.penalty == 1 else penalize_repetition(scores, ids, penalty=self.penalty, mask=mask)

    def record(self, rows: list[_Row], scores: Tensor, parts: dict, details: dict, tokens: Tensor) -> None:
        """One position of some rows: scores [b, V], parts and details name -> [b, ...], tokens [b]."""
        if self.recorder is not None:
            self.recorder.add([row.number for row in rows], scores, parts, details, tokens)

    def take(self, rows: list[_Row], tokens: list[list[int]]) -> list[int]:
        """Give every row its new tokens, up to where it ends. Returns which of `rows` go on."""
        taken: list[int] = []
        for row, new in zip(rows, tokens):
            for token in new:
                taken.append(token)
                row.take(token, self.eos)
                if row.finish_reason is None and row.steps >= self.max_new_tokens:
                    row.finish_reason = "length"
                if row.finish_reason is not None:
                    row.seconds = time.perf_counter() - self._started
                    break
        if self.streamer is not None:
            self.streamer.put(torch.tensor(taken))
        self.tick(max(row.steps for row in rows))
        PLACES.set(([row.number for row in self.live], len(self.rows)))
        return [k for k, row in enumerate(rows) if row.finish_reason is None]

    def tick(self, steps: int | None = None) -> None:
        """Move the bar to so many steps, or by one."""
        if self._bar is not None:
            self._bar.update(1 if steps is None else max(steps - self._bar.n, 0))

    def __enter__(self) -> Run:
        self._mode = torch.inference_mode()
        self._mode.__enter__()
        self._places = PLACES.set(([row.number for row in self.rows], len(self.rows)))
        if self.streamer is not None:
            self.streamer.put(self.ids)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        self._mode.__exit__(kind, error, traceback)
        PLACES.reset(self._places)
        if self._bar is not None:
            self._bar.close()
        if kind is not None and issubclass(kind, NonFiniteError):
            where = f"It happened at new token {self.live[0].steps} of {self._source!r}."
            for name, part in self._source.parts.items():  # the part that is wrong says it best
                try:
                    row_max(part[:, -1], f"the {name}'s row")
                except NonFiniteError as first:
                    error = first
                    break
            raise ValueError(f"{error} {where}") from error
        if kind is KeyboardInterrupt:
            for row in self.live:
                row.finish_reason = row.finish_reason or "interrupted"
        elif kind is not None:
            return False
        for row in self.rows:
            row.close(time.perf_counter() - self._started)
        if self.streamer is not None:
            self.streamer.end()
        return True

    def results(self, source: Source, more: list[dict[str, Any]] | None = None) -> Generation | list[Generation]:
        """The generations; `more` adds to the stats of every row."""
        penalty = {} if self.penalty == 1 else {"repetition_penalty": self.penalty}
        facts = {"settings": source.settings | penalty, "forms": source.forms, "tokenizer": self.tokenizer}
        found = [row.result(self.recorder, facts, self.seed) for row in self.rows]
        for generation, stats in zip(found, more or []):
            generation.stats |= stats
        return found[0] if self.single else found


class _Row:
    """The state of one prompt."""

    def __init__(
        self, number: int, prompt_ids: list[int], tokenizer: Any, stops: list[str], emit: Callable | None, seed: int
    ) -> None:
        self.number, self.prompt_ids = number, prompt_ids
        self.tokens: list[int] = []
        self.drawn: list[int] = []  # the same and the EOS
        self.finish_reason: str | None = None
        self.seconds: float | None = None
        self._random = torch.Generator().manual_seed(seed)
        self.writer = None
        if tokenizer is not None:
            piece = None if emit is None else lambda text: emit(text, number)
            self.writer = TextWriter(tokenizer, prompt_ids, stops=stops, emit=piece)

    @property
    def steps(self) -> int:
        return len(self.drawn)

    def uniforms(self, count: int) -> Tensor:
        """The row's next random numbers in [0, 1): [count] float64."""
        return torch.rand(count, generator=self._random, dtype=torch.float64)

    def take(self, token: int, eos: frozenset[int]) -> None:
        self.drawn.append(token)
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

    def result(self, recorder: Recorder | None, facts: dict[str, Any], seed: int) -> Generation:
        tokens = self.tokens
        if self.finish_reason == "stop":
            tokens = tokens[: self.writer.tokens_in_text()]
        stats = {"prompt_tokens": len(self.prompt_ids), "new_tokens": len(tokens), "seconds": self.seconds}
        stats |= {"tokens_per_second": len(tokens) / max(self.seconds, 1e-9), "seed": seed + self.number}
        trace = None
        if recorder is not None:
            trace = recorder.trace(self.number, self.prompt_ids, steps=self.steps, **facts)
        return Generation(None if self.writer is None else self.writer.text, tokens, self.finish_reason, trace, stats)


def _warn_of_ignored(source: Source) -> None:
    """Say once for each model, the expert of a source, what of its generation_config is not applied."""
    while source.inner and isinstance(part := getattr(source, source.inner[0]), (Source, list)):
        source = part if isinstance(part, Source) else part[0]
    model = getattr(source, "model", None)
    known = {name: getattr(getattr(model, "generation_config", None), name, None) for name in _IGNORED}
    said = ", ".join(f"{name}={short(value)}" for name, value in known.items() if value not in (None, 0, 1))
    if said and model not in _TOLD:
        _TOLD.add(model)
        advice = "generate and speculate take repetition_penalty=, as_causal_lm(source).generate() all of them"
        warnings.warn(f"the model's generation_config asks for {said}, which is not applied: {advice}.", stacklevel=4)


def _read_eos(source: Source, tokenizer: Any, given: Sequence[int] | None) -> frozenset[int]:
    if given is None:
        known = source.eos_token_ids or (getattr(tokenizer, "eos_token_id", None),)
        return frozenset(token for token in known if token is not None)
    given = [given] if is_int(given) else list(given) if isinstance(given, (set, frozenset)) else given
    return frozenset(check_ids(given, "eos_token_ids"))


def _read_stream(stream: Any, streamer: Any, tokenizer: Any, single: bool) -> Callable[[str, int], Any] | None:
    if stream is None or streamer is not None:
        return None
    if not callable(stream):
        raise TypeError(f"stream is {short(stream)}: pass a callable taking text, or a transformers streamer.")
    if tokenizer is None:
        raise TypeError("stream is a callable taking text: pass tokenizer= so that there is text.")
    with contextlib.suppress(ValueError):  # some built-in functions do not tell what they take
        try:
            inspect.signature(stream).bind(*("", 0)[: 1 if single else 2])
        except TypeError:
            takes = "a text" if single else "a text and the number of its row, for there are several"
            raise TypeError(f"stream is {short(stream)}: pass a callable that takes {takes}.") from None
    return (lambda text, row: stream(text)) if single else stream


def check_fits(source: Source, ids: Tensor, mask: Tensor, max_new_tokens: int) -> None:
    """Refuse prompts outside the vocabulary, and texts that would outgrow the context, before any work."""
    low, high = int(ids[mask].min()), int(ids[mask].max())
    if low < 0 or high >= source.vocab_size:
        wrong = f"prompt holds token {low if low < 0 else high} and the source's vocabulary has {source.vocab_size}"
        raise ValueError(f"{wrong}: use the tokenizer that belongs to the model.")
    longest = int(mask.sum(dim=1).max())
    limit = source.max_positions
    if limit is not None and longest + max_new_tokens - 1 > limit:  # the last new token is never fed back
        room = limit - longest + 1
        advice = f"pass max_new_tokens={room} or less, or shorten the prompt" if room > 0 else "shorten the prompt"
        wrong = (
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens does not fit the context of {limit}"
        )
        raise ValueError(f"{wrong}: {advice}.")


def _progress_bar(progress: bool | None, total: int, label: str, *, quiet: bool) -> Any:
    """A tqdm bar or None. By itself it shows only where somebody looks, and only when the work takes seconds."""
    delay = 2.0 if progress is None else 0.0
    if progress is None:
        progress = watched() and not quiet and not os.environ.get("CI")
    if not progress:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="token", leave=False, delay=delay)
