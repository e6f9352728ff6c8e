"""Speculative sampling: a cheap draft proposes several tokens, the target checks them in one pass.

The output has the target's distribution, whatever the draft is. With a `Contrast` as the target and its own amateur as
the draft this is speculative contrastive decoding; with an `EarlyExit` as the draft, self-speculation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import NonFiniteError
from cdlearn.loops.generate import check_best, choose
from cdlearn.loops.pace import Clock, Pace, check_gamma, price_of
from cdlearn.loops.run import Generation, Run, check_fits
from cdlearn.scores import NEVER, residual, sampling_probs
from cdlearn.scores.verify import check_rule, verified
from cdlearn.sources import Source, as_source

_SHOWN = 8  # how many tokens of the distribution after a round's draft a trace keeps


def speculate(
    target: Source | Any,
    draft: Source | Any,
    prompt: str | Sequence[Any] | Tensor | Mapping[str, Any],
    *,
    gamma: int | str = "auto",
    lenience: float = 1.0,
    target_weight: float = 1.0,
    rule: str = "token",
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
    """Continue prompts as `generate(target, ...)` would, with fewer passes of the target.

    target, draft: sources or models with the same tokens; `Lookup()` drafts without a model. gamma: how many tokens the
    draft proposes per round, or "auto": it goes on while they are likely to be accepted (see `cdlearn.loops.pace`). No
    token beyond max_new_tokens is ever computed. Greedy (temperature 0) gives exactly the target's greedy tokens;
    sampling draws from exactly the target's distribution. rule ("token" or "block"): how drafts are verified. lenience,
    target_weight: 1 is exact; below 1 they accept more drafted tokens and are NOT exact: see `verify_draft` for the
    three. Everything else as in `generate`; the draft gets the same numbers of the sampler, and repetition_penalty.
    `stats` adds rounds, drafted, accepted, tested (drafted tokens that were looked at before the first rejection),
    acceptance_rate (accepted / drafted), mean_draft_length, target_passes, tokens_per_target_pass, exact, and speedup,
    over plain decoding as the run's own times have it; where it lost seconds a warning says so. The rate that theory
    speaks of, 1 - TV(target, draft), is estimated by accepted / tested. In the trace, `details` tell for every token
    its "round", whether it was "drafted", and the chance its draft had ("accept_probability", 0 without a draft). Its
    `rounds` are dicts: round (from 1), position (of its first token), draft_ids, and for each of them p and q (target's
    and draft's probability), u (the random number, None when greedy), accept_probability (accepted if u is below) and
    total_variation (the distance of the two distributions); accepted; then the token after them: next_id (None if the
    text ended before), next_kind ("residual" or "bonus"), next_u, and next_distribution, its best [token, probability]
    pairs. With rule="block" accept_probability is that of the whole draft up to there, and the longest part that passes
    is accepted.
    Raises TypeError or ValueError naming the argument, before any work; ValueError for sources that cannot be rewound.
    arXiv 2302.01318, algorithm 2; 2211.17192, algorithm 1; with a contrast as the target 2311.08981.
    """
    target, draft = as_source(target, "target"), as_source(draft, "draft")
    check_gamma(gamma)
    verifying = dict(zip(("lenience", "target_weight"), check_rule(rule, lenience, target_weight)), rule=rule)
    if not draft.rewindable:
        raise ValueError(
            f"draft is {draft!r}, whose running state cannot be taken back: use another draft, or generate."
        )
    sampling = dict(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, top_n_sigma=top_n_sigma)
    run = Run(
        target, prompt, sampling, tokenizer=tokenizer, max_new_tokens=max_new_tokens, stop=stop, seed=seed,
        repetition_penalty=repetition_penalty, stream=stream, trace=trace, attention_mask=attention_mask,
        eos_token_ids=eos_token_ids, num_return_sequences=num_return_sequences, progress=progress, label="speculate",
    )  # fmt: skip
    if temperature == 0 and target_weight < 1:
        raise ValueError(
            f"target_weight is {target_weight} at temperature 0, where nothing is drawn: pass temperature=1.0."
        )
    ids, mask = run.ids, torch.ones_like(run.ids).bool() if run.mask is None else run.mask
    check_fits(draft, ids, mask, run.max_new_tokens)
    counts = [dict.fromkeys(("rounds", "drafted", "tested", "accepted"), 0) for _ in run.rows]
    price, clock = price_of(draft, target) if gamma == "auto" else 0.0, Clock()
    paces = [Pace(gamma, price) for _ in run.rows]
    with run, target.alone(), draft.alone():
        while rows := run.live:
            started = time.perf_counter()
            here = [paces[row.number] for row in rows]
            rests = gamma == "auto" and temperature == 0 and clock.loses
            for row, pace in zip(rows, here):  # a round gives at most one token more than it drafts
                pace.start(0 if rests else run.max_new_tokens - row.steps - 1)
            ids, mask, drawn_from = _draft(run, draft, target.vocab_size, ids, mask, here, sampling)
            sizes = torch.tensor([pace.size for pace in here])  # (b,)
            uniforms = [row.uniforms(pace.size + 1) if temperature > 0 else None for row, pace in zip(rows, here)]
            drafted, checking = int(sizes.max()), time.perf_counter()
            scores = target.ask(ids, mask, drafted + 1)  # (b, drafted + 1, V): after the last token, after each draft
            final = _penalized(run, scores, ids, mask)
            asked = target.parts, target.details  # before a stream, which may ask the target something else
            facts = None if run.recorder is None else [{} for _ in rows]
            accepted, following, chances = _verify(final, drawn_from, ids, sizes, uniforms, sampling, verifying, facts)
            checked = time.perf_counter()

            new = [[*ids[k, ids.shape[1] - drafted :][:n].tolist(), int(following[k])] for k, n in enumerate(accepted)]
            before = [row.steps for row in rows]
            stay = run.take(rows, new)
            used = [row.steps - b for row, b in zip(rows, before)]
            clock.add(drafted, sum(used) / len(used), checking - started, checked - checking)
            for k, row in enumerate(rows):
                count = counts[row.number]
                kept = min(accepted[k], used[k])  # the row may have ended inside the accepted run
                count["rounds"] += 1
                count["drafted"] += int(sizes[k])
                count["accepted"] += kept
                rejected = used[k] > accepted[k] and accepted[k] < int(sizes[k])
                count["tested"] += kept + rejected
                here[k].judge(kept, rejected)
                if facts is not None:
                    ending = following[k] if used[k] > accepted[k] else None
                    run.recorder.add_round(row.number, _round(count["rounds"], before[k], kept, ending, facts[k]))
            _record(run, rows, used, asked, scores, new, accepted, chances, counts)

            # rejected tokens stay as holes where another row accepted more; after the longest run they are cut off
            longest = max(accepted)
            keep = ids.shape[1] - drafted + longest
            holes = torch.arange(longest) < torch.tensor(accepted)[:, None]
            mask = torch.cat([mask[:, : keep - longest], holes, torch.ones(len(rows), 1).bool()], dim=1)[stay]
            ids = torch.cat([ids[:, :keep], torch.tensor(following)[:, None]], dim=1)[stay]
    clock.warn(sum(count["accepted"] for count in counts), sum(count["drafted"] for count in counts))
    more = {"exact": lenience == target_weight == 1, "speedup": clock.speedup()}
    return run.results(target, [_stats(count, row.steps) | more for count, row in zip(counts, run.rows)])


def _draft(
    run: Run, draft: Source, vocab: int, ids: Tensor, mask: Tensor, paces: list[Pace], sampling: dict[str, Any]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Let the draft go on: ids and mask with a column per drafted token, and the probabilities each was drawn from."""
    drawn_from, points, rows = [], None, run.live
    while any(going := [pace.goes_on for pace in paces]):
        # the target could not even read a token from the padding of a wider vocabulary
        scores = run.penalized(draft.ask(ids, mask)[:, -1, :vocab], ids, mask)  # (b, V)
        top = scores.amax(dim=-1)
        silent = top == NEVER  # a draft may have nothing to say
        scores = scores.masked_fill(silent[:, None], 0.0)
        if sampling["temperature"] > 0:
            points = torch.stack([row.uniforms(1)[0] if on else torch.zeros(()) for row, on in zip(rows, going)])
        try:
            tokens, probs = choose(scores, points, **sampling)
        except NonFiniteError as error:
            raise NonFiniteError(f"the draft's {error}") from None
        best = probs.amax(dim=-1) if probs is not None else (top - scores.logsumexp(dim=-1)).exp()
        for pace, on, none, sure in zip(paces, going, silent.tolist(), best.tolist()):
            if none:
                pace.stop()
            elif on:
                pace.add(sure)
        going = torch.tensor(going) & ~silent.cpu()
        if not bool(going.any()):
            break
        drawn_from += [] if probs is None else [probs]
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        mask = torch.cat([mask, going[:, None]], dim=1)  # rows draft as much as they like
    return ids, mask, drawn_from


def _verify(
    scores: Tensor, drawn_from: list[Tensor], ids: Tensor, sizes: Tensor, uniforms: list, sampling: dict[str, Any],
    verifying: dict[str, Any], facts: list[dict[str, Any]] | None,
) -> tuple[list[int], list[int], Tensor]:  # fmt: skip
    """How many drafted tokens of every row are accepted, the token that follows, and each one's chance [b, drafted].

    facts: None, or a dict for every row that is filled with what a trace tells of the round; the chances are for it.
    """
    drafted = ids[:, ids.shape[1] - int(sizes.max()) :]  # (b, drafted) on the CPU
    if sampling["temperature"] == 0:
        return _verify_greedy(scores, drafted, sizes, verifying["lenience"], facts)
    target = sampling_probs(scores, **sampling)  # (b, drafted + 1, V)
    accepted, following = [0] * len(ids), [0] * len(ids)
    chances, drafted = torch.zeros(drafted.shape, dtype=torch.float64), drafted.to(scores.device)
    draft = torch.stack(drawn_from, dim=1).to(scores.device) if drawn_from else target[:, :0]
    for size in sorted(set(sizes.tolist())):  # one group, but for rows near their end
        group = (sizes == size).nonzero()[:, 0].tolist()
        p, q, tokens = target[group, : size + 1], draft[group, :size], drafted[group, :size]
        points = torch.stack([uniforms[k] for k in group])
        counts, next_tokens, chance = verified(p, q, tokens, points, **verifying)
        for k, count, token in zip(group, counts.tolist(), next_tokens.tolist()):
            accepted[k], following[k] = count, token
        if facts is not None:  # only a trace tells the chances: without one the device is not waited for
            chances[group, :size] = chance.cpu()
            for row, k in enumerate(group):
                facts[k] |= _sampled_facts(p[row], q[row], tokens[row], points[row], accepted[k], chances[k, :size])
    return accepted, following, chances


def _verify_greedy(
    scores: Tensor, drafted: Tensor, sizes: Tensor, lenience: float, facts: list[dict[str, Any]] | None
) -> tuple[list[int], list[int], Tensor]:
    """`_verify` at temperature 0: both distributions are certain, nothing is drawn."""
    values, best = scores.max(dim=-1)
    got = scores[:, :-1].gather(-1, drafted.to(scores.device)[..., None])[..., 0]
    got = torch.nn.functional.pad(got, (0, 1))
    values, best, got = torch.stack([values.double(), best.double(), got.double()]).cpu()  # one wait for the device
    check_best(values)
    best = best.long()
    agree = drafted == best[:, :-1]
    chances = got[:, :-1] >= values[:, :-1] + math.log(lenience) if lenience < 1 else agree
    inside = torch.arange(drafted.shape[1]) < sizes[:, None]
    accepted = (chances & inside).long().cumprod(dim=1).sum(dim=1)  # (b,)
    following = best.gather(1, accepted[:, None])[:, 0].tolist()
    for k, size in enumerate(sizes.tolist() if facts is not None else ()):
        p = agree[k, :size].double().tolist()
        facts[k] |= {"draft_ids": drafted[k, :size].tolist(), "p": p, "q": [1.0] * size, "u": None}
        facts[k] |= {"accept_probability": chances[k, :size].double().tolist(), "next_u": None}
        facts[k] |= {"total_variation": [1 - x for x in p], "next_distribution": [[following[k], 1.0]]}
    return accepted.tolist(), following, chances.double()


def _sampled_facts(
    p: Tensor, q: Tensor, tokens: Tensor, points: Tensor, accepted: int, chances: Tensor
) -> dict[str, Any]:
    """A sampled round of one row: p [size + 1, V], q [size, V], tokens and chances [size], points [size + 1]."""
    size, q = len(tokens), torch.nn.functional.pad(q, (0, p.shape[-1] - q.shape[-1]))
    p_of, q_of = _of(p[:size], tokens), _of(q, tokens)
    distance = 1 - torch.minimum(p[:size], q).sum(dim=-1)
    rest = p[size] if accepted == size else residual(p[accepted], q[accepted])
    best = rest.topk(min(_SHOWN, rest.shape[-1]))
    named = {"p": p_of, "q": q_of, "u": points[:size], "accept_probability": chances, "total_variation": distance}
    found = {"draft_ids": tokens.tolist()} | {name: values.tolist() for name, values in named.items()}
    return found | {
        "next_u": float(points[-1]),
        "next_distribution": [
            [token, prob] for token, prob in zip(best.indices.tolist(), best.values.tolist()) if prob > 0
        ],
    }


def _round(number: int, position: int, kept: int, next_id: int | None, facts: dict[str, Any]) -> dict[str, Any]:
    """What a trace tells of a round: see `speculate`."""
    kind = None if next_id is None else "bonus" if kept == len(facts["draft_ids"]) else "residual"
    return {"round": number, "position": position, "accepted": kept, "next_id": next_id, "next_kind": kind} | facts


def _of(probs: Tensor, tokens: Tensor) -> Tensor:
    """The probability of each token, 0 beyond the vocabulary: [..., V], [...] -> [...]."""
    known = tokens < probs.shape[-1]
    return probs.gather(-1, tokens.where(known, 0)[..., None])[..., 0] * known


def _penalized(run: Run, scores: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The repetition penalty at every drafted position, each with the tokens before it."""
    if run.penalty == 1:
        return scores
    first = ids.shape[1] - scores.shape[1] + 1
    columns = [run.penalized(scores[:, k], ids[:, : first + k], mask[:, : first + k]) for k in range(scores.shape[1])]
    return torch.stack(columns, dim=1)


def _record(
    run: Run, rows: list, used: list[int], asked: tuple[dict, dict], scores: Tensor, new: list[list[int]],
    accepted: list[int], chances: Tensor, counts: list[dict[str, int]],
) -> None:  # fmt: skip
    """The trace of a round: one step for every place in the run of tokens, with the rows that reached it."""
    if run.recorder is None:
        return
    for k in range(max(used)):
        reached = [r for r, size in enumerate(used) if size > k]
        pick = slice(None) if len(reached) == len(rows) else reached
        parts, details = ({name: values[pick, k] for name, values in tensors.items()} for tensors in asked)
        details["round"] = torch.tensor([counts[rows[r].number]["rounds"] for r in reached])
        details["drafted"] = torch.tensor([k < accepted[r] for r in reached])
        details["accept_probability"] = chances[pick, k] if k < chances.shape[1] else torch.zeros(len(reached)).double()
        run.record(
            [rows[r] for r in reached], scores[pick, k], parts, details, torch.tensor([new[r][k] for r in reached])
        )


def _stats(count: dict[str, int], tokens: int) -> dict[str, Any]:
    rounds = count["rounds"]
    return count | {
        "acceptance_rate": count["accepted"] / max(count["drafted"], 1),
        "mean_draft_length": count["drafted"] / max(rounds, 1),
        "target_passes": rounds,
        "tokens_per_target_pass": tokens / max(rounds, 1),
    }
