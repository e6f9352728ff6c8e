"""Beam search over the scores of any source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import MOST_ROWS, check_count, check_word
from cdlearn.loops.generate import check_best, column
from cdlearn.loops.run import Generation, Run
from cdlearn.scores import NEVER
from cdlearn.sources import Source, as_source
from cdlearn.sources.base import PLACES
from cdlearn.trace.record import CONTRAST

_REPLAY = 16  # columns of the winner scored at once for its trace


@dataclass(frozen=True)
class _Beam:
    """A hypothesis: its new tokens, its score, and whether it has ended (then it may hold a closing EOS)."""

    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    done: bool = False


def beam_search(
    source: Source | Any,
    prompt: str | Sequence[Any] | Tensor | Mapping[str, Any],
    *,
    num_beams: int = 5,
    convention: str = "sum",
    tokenizer: Any = None,
    max_new_tokens: int = 64,
    stop: str | Sequence[str] | None = None,
    trace: bool = True,
    attention_mask: Any = None,
    eos_token_ids: Sequence[int] | None = None,
    num_return_sequences: int = 1,
    progress: bool | None = None,
) -> Generation | list[Generation]:
    """Keep the `num_beams` best continuations at every step and return the best.

    convention="sum": a hypothesis is worth the sum of its scores (of their log-softmax where they are logits: a bare
    model, `Contrast` with beta), and one that has ended keeps its place while it is
    among the best; with one beam this is greedy decoding. convention="reference": the rule of contrastive decoding's
    official code (arXiv 2210.15097), for `Contrast` sources of the `strength` form, see `reference_candidates`;
    its final score is divided by the length of prompt and continuation.
    num_return_sequences: that many of the beams for every prompt, best first. `stats["score"]` is the hypothesis's
    score in nats. Prompts and the other arguments as in `generate`; an interrupt returns the best so far.
    Raises TypeError or ValueError naming the argument, before any work.
    """
    source = as_source(source, "source")
    num_beams = check_count(num_beams, "num_beams", high=MOST_ROWS)
    num_return_sequences = check_count(num_return_sequences, "num_return_sequences")
    if num_return_sequences > num_beams:
        raise ValueError(f"num_return_sequences is {num_return_sequences} and num_beams {num_beams}: ask for fewer.")
    check_word(convention, "convention", ("sum", "reference"))
    if convention == "reference" and (source.forms != CONTRAST or "strength" not in source.settings):
        raise ValueError('convention="reference" is contrastive decoding\'s own: pass Contrast(..., strength=...).')
    run = Run(
        source, prompt, {}, tokenizer=tokenizer, max_new_tokens=max_new_tokens, stop=stop, seed=0, trace=trace,
        attention_mask=attention_mask, eos_token_ids=eos_token_ids, num_return_sequences=num_return_sequences,
        progress=progress, label="beam search",
    )  # fmt: skip
    search = _sum_search if convention == "sum" else _reference_search
    stats = [{"score": float("nan"), "num_beams": num_beams} for _ in run.rows]
    with run, source.alone():
        for first in range(0, len(run.rows), num_return_sequences):
            rows = run.rows[first : first + num_return_sequences]
            beams, stopped = [], None
            PLACES.set(([first], len(run.rows)))
            try:
                for found in search(source, rows[0].prompt_ids, num_beams, run.max_new_tokens, _ending(rows[0], run)):
                    beams = found
                    run.tick()
            except KeyboardInterrupt as interrupt:  # the best so far stay, each with its trace
                stopped = interrupt
            for row, beam in zip(rows, beams):
                stats[row.number]["score"] = beam.score
                run.take([row], [beam.tokens])
                PLACES.set(([first], len(run.rows)))
                row.finish_reason = row.finish_reason or ("length" if stopped is None else "interrupted")
                _replay(run, source, row)
            if stopped is not None:
                raise stopped
    return run.results(source, stats)


def _ending(row: Any, run: Run) -> Callable[[list[int]], bool]:
    """Whether a hypothesis has ended: with an EOS, or with a stop string in its text."""
    stops = row.writer.stops if row.writer is not None else []

    def ends(tokens: list[int]) -> bool:
        if tokens[-1] in run.eos:
            return True
        return bool(stops) and any(stop in row.writer.text_of(tokens) for stop in stops)

    return ends


def _sum_search(
    source: Source, prompt: list[int], num_beams: int, steps: int, ends: Callable[[list[int]], bool]
) -> Iterator[list[_Beam]]:
    """The plain rule: all extensions of all beams and the ended beams compete by the sum of their scores."""
    beams = [_Beam()]
    for _ in range(steps):
        live = [beam for beam in beams if not beam.done]
        if not live:
            break
        ids = torch.tensor([prompt + beam.tokens for beam in live])
        scores = source.ask(ids)[:, -1].double().cpu()  # (L, V)
        check_best(scores.amax(dim=-1))
        if source.unnormalised:
            scores = scores.log_softmax(dim=-1)
        totals = scores + torch.tensor([beam.score for beam in live])[:, None].double()
        ended = [beam for beam in beams if beam.done]
        rivals = torch.cat([totals.flatten(), torch.tensor([beam.score for beam in ended]).double()])
        best = rivals.topk(min(num_beams, len(rivals)))
        beams = []
        for total, index in zip(best.values.tolist(), best.indices.tolist()):
            if total == NEVER:
                continue  # fewer tokens are kept than there are beams
            if index >= totals.numel():
                beams.append(ended[index - totals.numel()])
            else:
                tokens = [*live[index // totals.shape[1]].tokens, index % totals.shape[1]]
                beams.append(_Beam(tokens, total, ends(tokens)))
        yield beams


def reference_candidates(
    expert: Tensor, amateur: Tensor, totals: Tensor, num_beams: int, first: bool, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The official code's step (arXiv 2210.15097): 2 * num_beams (beam, token) pairs and their new totals.

    expert, amateur: raw logits [B, V]; totals: [B]. The expert's 50 most probable tokens are renormalised, then masked
    with at least 2 kept; the amateur's log-probabilities are divided by its temperature, not renormalised. At the first
    step the pairs with the best masked score are taken; later those with the best UNMASKED expert log-probability of
    this one step, whatever the beams' totals. Returns indices [2 * num_beams] into the flattened [B, V] and totals.
    """
    logp = expert.double().log_softmax(dim=-1)
    cut = logp.masked_fill(logp < logp.topk(min(50, logp.shape[-1])).values[:, -1:], NEVER).log_softmax(dim=-1)
    masked = cut
    if settings["alpha"] is not None:
        best = cut.topk(min(2, cut.shape[-1])).values
        limit = torch.minimum(best[:, :1] + torch.tensor(settings["alpha"]).double().log(), best[:, -1:])
        masked = cut.masked_fill(cut < limit, NEVER)
    masked = masked + totals[:, None]
    ranked = (masked if first else logp).flatten()
    index = ranked.topk(min(2 * num_beams, len(ranked))).indices
    against = amateur.double().log_softmax(dim=-1) / settings["amateur_temperature"]
    return index, masked.flatten()[index] - settings["strength"] * against.flatten()[index]


def _reference_search(
    source: Source, prompt: list[int], num_beams: int, steps: int, ends: Callable[[list[int]], bool]
) -> Iterator[list[_Beam]]:
    """The official rule: ended hypotheses leave the beam and wait; the search stops when no beam can beat them."""
    beams, ended = [_Beam()], []
    for step in range(steps):
        check_best(source.ask(torch.tensor([prompt + beam.tokens for beam in beams])).amax(dim=-1).cpu())
        expert, amateur = (source.parts[name][:, -1].cpu() for name in ("expert", "amateur"))
        totals = torch.tensor([beam.score for beam in beams]).double()
        index, scores = reference_candidates(expert, amateur, totals, num_beams, step == 0, source.settings)
        order = scores.argsort(descending=True, stable=True)
        length = len(prompt) + step
        parents, beams, vocab = beams, [], expert.shape[1]
        for rank, (total, at) in enumerate(zip(scores[order].tolist(), index[order].tolist())):
            if total == NEVER:
                continue
            tokens = [*parents[at // vocab].tokens, at % vocab]
            if ends(tokens):
                if rank < num_beams:
                    ended.append(_Beam(tokens, total / length, True))
            elif len(beams) < num_beams:
                beams.append(_Beam(tokens, total))
        ended = sorted(ended, key=lambda beam: -beam.score)[:num_beams]
        still = [] if len(ended) == num_beams else [_Beam(b.tokens, b.score / (length + 1)) for b in beams]
        yield sorted([*ended, *still], key=lambda beam: -beam.score)[:num_beams]
        if not beams or (len(ended) == num_beams and ended[-1].score >= max(b.score for b in beams) / length):
            break


def _replay(run: Run, source: Source, row: Any) -> None:
    """Record the winner's trace: its columns once more, a few at a time."""
    if run.recorder is None:
        return
    start, tokens = len(row.prompt_ids), row.drawn
    whole = torch.tensor([row.prompt_ids + tokens])
    for at in range(0, len(tokens), _REPLAY):
        count = min(_REPLAY, len(tokens) - at)
        scores = source.ask(whole[:, : start + at + count - 1], None, count)
        for k in range(count):
            parts, details = column(source.parts, k), column(source.details, k)
            run.record([row], scores[:, k], parts, details, torch.tensor([tokens[at + k]]))
