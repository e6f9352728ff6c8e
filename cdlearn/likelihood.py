"""How likely a source finds given continuations: what perplexity and multiple choice are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdlearn.scores import NEVER
from cdlearn.sources import Source, as_source

MASKED = -1000.0  # what a token outside the mask costs: its choice still differs from others by the other tokens


def encode_pair(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """The token ids of a prompt and of its continuation, encoded as one text and cut where the prompt's own ids end.

    Spaces that end the prompt go to the continuation, where most tokenizers keep them: the rule of the
    lm-evaluation-harness. An empty prompt becomes the BOS, or else the EOS. Raises ValueError where there is neither.
    """
    spaces = len(prompt) - len(prompt.rstrip())
    if spaces:
        prompt, continuation = prompt[:-spaces], prompt[-spaces:] + continuation
    front = len(tokenizer(prompt)["input_ids"])
    whole = list(tokenizer(prompt + continuation)["input_ids"])
    if front:
        return whole[:front], whole[front:]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("prompt is empty and the tokenizer has no BOS or EOS to start from: give at least one word.")
    return [start], whole


def token_log_probs(
    source: Source | Any,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 16,
    convention: str = "textbook",
    masked: float = MASKED,
) -> list[Tensor]:
    """The log-probability in nats of every token of every continuation under a source: a [tokens] float tensor a row.

    source: a source or a transformers model. rows: (prompt ids, continuation ids); a prompt has at least one id, an
    empty continuation gives an empty tensor. Scores are normalised over what the source's mask keeps; a token it drops
    gets `masked`. convention="reference": normalised over all tokens, and masked after that, as in DoLa's evaluation.
    Raises ValueError for a row without a prompt or an unknown convention. arXiv 2309.03883, section 3.1.
    """
    if convention not in ("textbook", "reference"):
        raise ValueError(f'convention is {convention!r}: use "textbook" or "reference".')
    for k, (prompt, _) in enumerate(rows):
        if not len(prompt):
            raise ValueError(f"rows[{k}] has a prompt without a token: start it with the tokenizer's BOS.")
    source = as_source(source, "source")
    found = [torch.zeros(0)] * len(rows)
    # neighbours in length share a batch: the least padding
    order = sorted((k for k, row in enumerate(rows) if len(row[1])), key=lambda k: len(rows[k][0]) + len(rows[k][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for k, values in zip(chosen, _batch(source, [rows[k] for k in chosen], convention, masked)):
            found[k] = values
    return found


@torch.inference_mode()
def _batch(source: Source, rows: list, convention: str, masked: float) -> list[Tensor]:
    texts = [[*prompt, *new][:-1] for prompt, new in rows]  # the scores after the last token are not asked for
    width, n = max(map(len, texts)), max(len(new) for _, new in rows)
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])  # (B, T), padded on the left
    real = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    scores = source(ids, real, n)  # (B, n, V)
    logits = _unmasked(source)(ids, real, n) if convention == "reference" else scores
    found = []
    for row, (_, new) in enumerate(rows):  # row by row: the log-probabilities of a batch are never kept together
        logp = logits[row, -len(new) :].log_softmax(dim=-1).where(scores[row, -len(new) :] > NEVER, masked)
        found.append(logp.gather(-1, torch.tensor(new, device=logp.device)[:, None])[:, 0].cpu())
    return found


def _unmasked(source: Source) -> Source:
    """The same source without its mask; a source that has none as it is."""
    off = {name: value for name, value in (("alpha", None), ("top_k", 0)) if name in source.settings}
    return source.changed(**off) if off else source


def choice_scores(
    source: Source | Any, prompt: str, choices: Sequence[str], *, tokenizer: Any, convention: str = "textbook"
) -> list[float]:
    """The summed log-probability of every choice behind a prompt, in nats: the largest is the source's answer.

    A space goes between prompt and choice unless one of them brings white space, as in DoLa's evaluation and the
    lm-evaluation-harness. convention: see `token_log_probs`. A token that the source's mask drops costs 1000 nats, so
    that choices do not all tie at -inf; two that differ in masked tokens only still do. Raises ValueError for an empty
    choice. arXiv 2309.03883, section 3.1.
    """
    rows = []
    for choice in choices:
        space = "" if prompt[-1:].isspace() or choice[:1].isspace() or not prompt else " "
        if not choice.strip():
            raise ValueError(f"choice {choice!r} is empty: give it a text.")
        rows.append(encode_pair(tokenizer, prompt, space + choice))
    return [float(values.double().sum()) for values in token_log_probs(source, rows, convention=convention)]
