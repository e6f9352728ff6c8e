"""Numbers about texts: what they repeat, and how likely a source finds them.

N-grams of texts are those of words, which whitespace separates, as in the papers; where a script has no spaces,
every character is a word, and so is an emoji. A loop inside a word ("BlueBlueBlue") shows over token ids only.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import check_count, check_ids, check_list, check_number, check_text, check_tokenizer, check_word
from cdlearn.scores import NEVER
from cdlearn.sources import Source, as_source
from cdlearn.sources.base import padded

_NUMBERS = 2**25  # scores asked for at once: 134 MB, and a few times that inside a source of several parts
_KINDS = "strings or lists of token ids, of a Generation its .text"
MASKED = -1000.0  # what a token outside the mask costs: its choice still differs from others by the other tokens
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"  # Thai, Khmer, kana, Han
_ONE = f"{UNSPACED}\u2600-\u27bf\U0001f000-\U0001faff"  # and emoji
# the two letters of a flag; a character, an emoji with its variant and skin tone and what is joined to it; a word
_WORD = re.compile(rf"[\U0001f1e6-\U0001f1ff]{{2}}|[{_ONE}](?:[\ufe0f\U0001f3fb-\U0001f3ff]|\u200d.)*|[^\s{_ONE}]+")
Text = str | Sequence[int]


def ngram_counts(text: Text, n: int) -> tuple[int, int]:
    """How many distinct n-grams a text has, of words (of a string) or of tokens (of ids), and how many in all."""
    grams = _ngrams(_units(text if isinstance(text, str) else _ids(text, "text")), check_count(n, "n"))
    return len(set(grams)), len(grams)


def rep_n(texts: Sequence[Text], n: int, *, convention: str = "textbook") -> float:
    """Share of repeated n-grams in percent: `100 * (1 - distinct / total)`, 0 for texts with no n-gram at all.

    texts: continuations, each a string (n-grams of words; of Chinese or Thai, of characters) or a list of token ids
    (n-grams of tokens), all of one kind; n-grams are counted as distinct inside each text, then distinct and totals are
    summed over the texts. n: 1 or more. convention: "textbook", or "reference" for the code behind the published
    numbers, where words are what whitespace separates in any script, the last n-gram of every text is left out, and two
    decimals remain. Raises TypeError for anything but such a list, ValueError for n below 1 or an unknown convention.
    Welleck et al., arXiv 1908.04319; the form contrastive decoding reports (arXiv 2210.15097, section 4.2).
    """
    texts = _checked(texts, n)
    check_word(convention, "convention", ("textbook", "reference"))
    grams = [_ngrams(_units(text), n) for text in texts]
    if convention == "reference":
        grams = [_ngrams(text.split() if isinstance(text, str) else text, n)[:-1] for text in texts]
    distinct, total = sum(len(set(row)) for row in grams), sum(len(row) for row in grams)
    percent = 100 * (1 - distinct / total) if total else 0.0
    return round(percent, 2) if convention == "reference" else percent


def diversity(texts: Sequence[Text], *, convention: str = "textbook") -> float:
    """The product of `1 - rep_n / 100` over n = 2, 3, 4: from 0 (one word for ever) to 1 (no word pair twice).

    texts, convention: as in `rep_n`, which counts inside each text, so the same text a hundred times is as diverse
    as once. Texts of fewer than two words repeat nothing: 1. Raises TypeError and ValueError as `rep_n` does.
    arXiv 2210.15097, section 4.2.
    """
    texts = _checked(texts)
    return math.prod(1 - rep_n(texts, n, convention=convention) / 100 for n in (2, 3, 4))


def distinct_n(texts: Sequence[Text], n: int) -> float:
    """Distinct n-grams of all texts together, divided by their number of words: 0 to 1, and 0 without a word.

    texts: as in `rep_n`, but pooled, so that what one text says again of another counts as repeated. n: 1 or more. The
    divisor is the number of words (or tokens), as in the paper; others divide by the number of n-grams. Longer and more
    texts give lower values: compare equal numbers of words only. Raises TypeError and ValueError as `rep_n` does.
    Li et al., arXiv 1510.03055 (distinct-1 and distinct-2).
    """
    texts = _checked(texts, n)
    rows = [_units(text) for text in texts]
    words = sum(map(len, rows))
    return len({gram for row in rows for gram in _ngrams(row, n)}) / words if words else 0.0


def encode_pair(tokenizer: Any, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """The token ids of a prompt and of its continuation, encoded as one text and cut where the prompt's own ids end.

    Spaces that end the prompt go to the continuation, where most tokenizers keep them: the rule of the
    lm-evaluation-harness. An empty prompt becomes the BOS, or else the EOS. Raises ValueError where there is neither.
    """
    check_tokenizer(tokenizer)
    check_text(continuation, "continuation")
    front = len(tokenizer(check_text(prompt, "prompt").rstrip())["input_ids"])
    whole = list(tokenizer(prompt + continuation)["input_ids"])
    if front:
        return whole[:front], whole[front:]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("prompt is empty and the tokenizer has no BOS or EOS to start from: give at least one word.")
    return [start], whole


def token_log_probs(
    source: Source | Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int = 16,
    convention: str = "textbook", masked: float = MASKED,
) -> list[Tensor]:  # fmt: skip
    """The log-probability in nats of every token of every continuation under a source: a [tokens] float tensor a row.

    source: a source or a transformers model. rows: (prompt ids, continuation ids); a prompt has at least one id, an
    empty continuation gives an empty tensor. Scores are normalised over what the source's mask keeps; a token it drops
    gets `masked`. convention="reference": normalised over all tokens, and masked after that, as in DoLa's evaluation.
    Raises TypeError for what are no ids, ValueError for a row without a prompt, a token outside the vocabulary or an
    unknown convention. arXiv 2309.03883, section 3.1.
    """
    check_word(convention, "convention", ("textbook", "reference"))
    batch_size = check_count(batch_size, "batch_size")
    if not (isinstance(masked, float) and masked == NEVER):
        masked = check_number(masked, "masked", low=-1e6, high=1e6)
    source = as_source(source, "source")
    rows = [_row(row, f"rows[{k}]", source.vocab_size) for k, row in enumerate(check_list(rows, "rows", "pairs"))]
    log_probs = [torch.zeros(0)] * len(rows)
    # neighbours in length share a batch: the least padding
    order = sorted((k for k, row in enumerate(rows) if len(row[1])), key=lambda k: len(rows[k][0]) + len(rows[k][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for k, values in zip(chosen, _batch(source, [rows[k] for k in chosen], convention, masked)):
            log_probs[k] = values
    return log_probs


def _row(row: Any, name: str, vocab: int) -> list[list[int]]:
    row = [_ids(ids, name, vocab) for ids in check_list(row, name, "prompt ids and continuation ids")]
    if len(row) != 2 or not row[0]:
        raise ValueError(f"{name} has a prompt without a token: start it with the tokenizer's BOS.")
    return row


@torch.inference_mode()
def _batch(source: Source, rows: list, convention: str, masked: float) -> list[Tensor]:
    n = max(len(new) for _, new in rows)
    if len(rows) > 1 and len(rows) * n * source.vocab_size > _NUMBERS:
        return [values for row in rows for values in _batch(source, [row], convention, masked)]
    texts = [[*prompt, *new][:-1] for prompt, new in rows]  # the scores after the last token are not asked for
    ids, real = padded(texts)  # (B, T), padded on the left
    targets, counts = padded([new for _, new in rows])  # (B, n)
    off = {name: value for name, value in (("alpha", None), ("top_k", 0)) if name in source.settings}
    unmasked = source.changed(**off) if off and convention == "reference" else source
    step, found = max(1, _NUMBERS // (len(rows) * source.vocab_size)), []
    for start in range(0, n, step):  # a long text, which is alone, in pieces: the source goes on where it stopped
        stop = min(start + step, n)
        call = ids[:, : ids.shape[1] - n + stop], real[:, : ids.shape[1] - n + stop], stop - start
        scores = source(*call)  # (B, stop - start, V)
        logp = (unmasked(*call) if unmasked is not source else scores).log_softmax(dim=-1)
        chosen = targets[:, start:stop, None].to(logp.device)
        values = logp.gather(-1, chosen).where(scores.gather(-1, chosen) > NEVER, masked)
        found.append(values[..., 0].cpu())
    return [values[real] for values, real in zip(torch.cat(found, dim=1), counts)]


def choice_scores(
    source: Source | Any, prompt: str, choices: Sequence[str], *, tokenizer: Any, convention: str = "textbook"
) -> list[float]:
    """The summed log-probability of every choice after a prompt, in nats: the largest is the source's answer.

    A space goes between prompt and choice unless one of them brings white space, as in DoLa's evaluation and the
    lm-evaluation-harness. convention: see `token_log_probs`. A token that the source's mask drops costs 1000 nats, so
    that choices do not all tie at -inf; two that differ in masked tokens only still do. Raises ValueError for an empty
    choice. arXiv 2309.03883, section 3.1.
    """
    rows = []
    for k, choice in enumerate(check_list(choices, "choices", "texts")):
        if not check_text(choice, f"choices[{k}]").strip():
            raise ValueError(f"choices[{k}] is {choice!r}, which is empty: give it a text.")
        space = "" if check_text(prompt, "prompt")[-1:].isspace() or choice[:1].isspace() or not prompt else " "
        rows.append(encode_pair(tokenizer, prompt, space + choice))
    return [float(values.double().sum()) for values in token_log_probs(source, rows, convention=convention)]


def perplexity(
    source: Any, prompts: Sequence[Any], texts: Sequence[Any], *, tokenizer: Any = None, batch_size: int = 16
) -> float:
    """exp of the mean negative log-probability, in nats, of the continuations' tokens given their prompts.

    source: a source or a transformers model; a masked source gives its own distribution, infinite where it drops a
    token. prompts, texts: as many strings (with `tokenizer`), or lists of token ids. All tokens count alike, so long
    texts count more; an EOS counts where the ids hold it. An empty continuation has no token and adds nothing, and
    without any token at all it is 1, no surprise: read it beside the lengths. The value depends on the tokenizer:
    compare it under one model only. Raises TypeError or ValueError naming the argument.
    """
    prompts, texts = check_list(prompts, "prompts", "texts"), check_list(texts, "texts", "texts")
    source = as_source(source, "source")
    if len(prompts) != len(texts):
        raise ValueError(f"prompts holds {len(prompts)} and texts {len(texts)}: pass one prompt for every text.")
    rows, size = [], source.vocab_size
    for k, (prompt, text) in enumerate(zip(prompts, texts)):
        if isinstance(prompt, str) and isinstance(text, str):
            if tokenizer is None:
                raise TypeError("texts are strings but tokenizer is None: pass tokenizer=, or lists of token ids.")
            rows.append(encode_pair(tokenizer, prompt, text))
        elif isinstance(prompt, str) or isinstance(text, str):
            raise TypeError(f"prompts[{k}] and texts[{k}] are of two kinds: pass two strings or two lists of ids.")
        else:
            rows.append((_ids(prompt, f"prompts[{k}]", size), _ids(text, f"texts[{k}]", size)))
    log_probs = token_log_probs(source, rows, batch_size=batch_size, masked=NEVER)
    nats = -float(torch.cat(log_probs).double().mean()) if any(map(len, log_probs)) else 0.0
    return math.exp(nats) if nats < 709 else math.inf


def _ids(tokens: Any, name: str, size: int | None = None) -> list[int]:
    """Token ids as a list; size: of the vocabulary that they must lie in."""
    ids = check_ids(tokens, name, _KINDS)
    for token in ids if size else ():
        check_count(token, f"a token of {name}", low=0, high=size - 1)
    return ids


def _units(text: Text) -> Sequence[Any]:
    return _WORD.findall(unicodedata.normalize("NFC", text)) if isinstance(text, str) else text


def _ngrams(units: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def _checked(texts: Sequence[Text], n: int = 1) -> list[Text]:
    check_count(n, "n")
    texts = check_list(texts, "texts", _KINDS)
    texts = [text if isinstance(text, str) else _ids(text, f"texts[{k}]") for k, text in enumerate(texts)]
    if len({isinstance(text, str) for text in texts}) > 1:
        raise TypeError("texts holds strings and lists of token ids: pass one kind, words and tokens do not add up.")
    return texts
