"""The loop: ask a source for scores, pick a token, until every row is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from cdlearn.checks import NonFiniteError
from cdlearn.loops.run import Generation, Run
from cdlearn.scores import draw, sampling_probs
from cdlearn.sources import Source, as_source


def generate(
    source: Source | Any,
    prompt: str | Sequence[Any] | Tensor | Mapping[str, Any],
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_n_sigma: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] | None = None,
    seed: int | None = None,
    stream: Any = None,
    trace: bool = True,
    attention_mask: Any = None,
    eos_token_ids: Sequence[int] | None = None,
    num_return_sequences: int = 1,
    progress: bool | None = None,
) -> Generation | list[Generation]:
    """Continue one prompt or several, one token at a time.

    source: a source or a transformers model. prompt: text, a list of texts, ids [B, T] (tensor, or lists of any
    lengths) with an optional attention_mask, or a tokenizer's output. One text, one list of ids or a tensor with one
    row gives a `Generation`; anything else a list of them.
    temperature: 0 is greedy, where top_k, top_p, min_p and top_n_sigma change nothing (a warning says so): see
    `sampling_probs`.
    repetition_penalty: see `penalize_repetition`.
    stop: strings that end the text and are left out of it. seed: row r draws what a single call with seed + r draws.
    stream: a callable taking text pieces (pieces and the row number, for several rows), or a transformers streamer.
    trace: record every step. eos_token_ids: instead of the source's own; () never ends. num_return_sequences: that
    many rows for every prompt, one after the other in the list. progress: None shows a bar on a terminal or in a
    notebook when it takes long.
    An interrupt returns what is there. Raises TypeError or ValueError naming the argument, before any work.
    """
    source = as_source(source, "source")
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, top_n_sigma=top_n_sigma)
    run = Run(
        source, prompt, sampling, tokenizer=tokenizer, max_new_tokens=max_new_tokens, stop=stop, seed=seed,
        repetition_penalty=repetition_penalty, stream=stream, trace=trace, attention_mask=attention_mask,
        eos_token_ids=eos_token_ids, num_return_sequences=num_return_sequences, progress=progress,
    )  # fmt: skip
    ids, mask = run.ids, run.mask
    with run, source.alone():
        while rows := run.live:
            scores = source.ask(ids, mask)[:, -1]  # (b, V)
            final = run.penalized(scores, ids, mask)
            uniforms = torch.cat([row.uniforms(1) for row in rows]) if temperature > 0 else None
            tokens = pick(final, uniforms, **sampling)  # (b,) on the CPU: the one wait of a step for the device
            run.record(rows, scores, column(source.parts, -1), column(source.details, -1), tokens)
            stay = run.take(rows, [[token] for token in tokens.tolist()])
            ids = torch.cat([ids, tokens[:, None]], dim=1)
            mask = None if mask is None else pad(mask, (0, 1), value=True)
            if len(stay) < len(ids):  # finished rows leave the batch
                ids, mask = ids[stay], None if mask is None else mask[stay]
    return run.results(source)


def pick(scores: Tensor, uniforms: Tensor | None, *, temperature: float = 0.0, **sampling: Any) -> Tensor:
    """Choose a token per row: the best at temperature 0, else a draw. scores: [B, V] float. Returns [B] int on the CPU.

    uniforms: [B] in [0, 1), one random number per row: the draw is the inverse of the cumulative distribution there, so
    a row's choice depends on nothing but its own scores and number. sampling: the others of
    `sampling_probs`. Raises ValueError for NaN or +inf in scores.
    """
    return choose(scores, uniforms, temperature=temperature, **sampling)[0]


def choose(scores: Tensor, uniforms: Tensor | None, **sampling: Any) -> tuple[Tensor, Tensor | None]:
    """What `pick` gives, and the probabilities that were drawn from, [B, V] (None at temperature 0)."""
    probs = None
    if sampling["temperature"] == 0:
        best, tokens = scores.max(dim=-1)  # NaN spreads through a maximum
    elif uniforms is None:
        raise ValueError("uniforms is None: pass one number in [0, 1) per row to draw at a temperature above 0.")
    else:
        probs, best = sampling_probs(scores, **sampling, check=False), scores.amax(dim=-1)
        tokens = draw(probs, uniforms)
    best, tokens = torch.stack([best.double(), tokens.double()]).cpu()  # together: a device is waited for once
    check_best(best)
    return tokens.long(), probs


def check_best(best: Tensor) -> None:
    """Raise ValueError where a row's best score is no number. best: [...] on the CPU."""
    if not bool(best.isfinite().all()):
        raise NonFiniteError(
            "scores holds NaN, +inf or a row of nothing but -inf: check the model, its dtype and the mask."
        )


def column(tensors: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """One column of every tensor [B, n, ...]: [B, ...]."""
    return {name: values[:, k] for name, values in tensors.items()}
