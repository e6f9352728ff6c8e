"""Sources made of other sources: contrast, mixture, and two that read another text than the one given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cdlearn.checks import (
    check_alpha,
    check_contrast,
    check_count,
    check_ids,
    check_number,
    check_text,
    check_tokenizer,
)
from cdlearn.scores import NEVER, contrastive_logits, contrastive_scores, js_divergence, mixed_scores
from cdlearn.sources.base import Kept, Source, padded, settings_around, shares
from cdlearn.sources.cached import as_source
from cdlearn.trace.record import CONTRAST, Form


class Contrast(Source):
    """Expert against amateur: contrastive decoding as a source (arXiv 2210.15097; with `beta`, 2309.09117).

    expert, amateur: sources or transformers models with the same tokenizer. Where one pads its vocabulary further, both
    are trimmed to the common size. Give `strength` (default 1.0, see `contrastive_scores`) or `beta` (see
    `contrastive_logits`), not both. alpha=None or 0: no mask. amateur_temperature belongs to the `strength` form.
    """

    forms, inner = CONTRAST, ("expert", "amateur")

    def __init__(
        self,
        expert: Source | PreTrainedModel,
        amateur: Source | PreTrainedModel,
        *,
        alpha: float | None = 0.1,
        strength: float | None = None,
        beta: float | None = None,
        amateur_temperature: float = 1.0,
        top_k: int = 0,
    ) -> None:
        super().__init__()
        self._numbers = check_contrast(alpha, top_k, strength, beta, amateur_temperature)
        self._formula = contrastive_scores if beta is None else contrastive_logits
        self.expert, self.amateur = as_source(expert, "expert"), as_source(amateur, "amateur")
        self.settings = {"method": "contrastive"} | self._numbers
        self.unnormalised = beta is not None
        compose(self, [self.expert, self.amateur])

    def changed(self, **settings: Any) -> Contrast:
        other = ("strength", "amateur_temperature") if "beta" in settings else ("beta",) * ("strength" in settings)
        kept = {name: value for name, value in self._numbers.items() if name not in other}
        return Contrast(self.expert, self.amateur, **kept | settings)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        expert = self.expert.scores(ids, mask, n)[..., : self.vocab_size]  # (B, n, V)

        def among() -> Tensor:  # nobody needs the amateur on what the mask drops: the formula says what that is
            return self._formula(expert, expert, **self._numbers, check=False) > NEVER

        amateur = self.amateur.scores_among(ids, mask, n, among)
        amateur = amateur[..., : self.vocab_size].to(expert.device)
        self.parts = {"expert": expert, "amateur": amateur}
        return self._formula(expert, amateur, **self._numbers, check=False)


class AdaCAD(Source):
    """Context-aware decoding that adjusts as much as the context changes: AdaCAD (arXiv 2409.07394).

    with_context, without_context: sources or models, as a rule `Prompted(model, context)` and the model. At every
    position `(1 + beta) * s_with - beta * s_without`, where beta is the Jensen-Shannon divergence of the two
    distributions in bits: 0 where the context changes nothing, 1 where the two have no token in common. alpha: the
    plausibility mask of `with_context`; None (the paper): no mask. `details` holds "beta" [B, n].
    """

    inner, unnormalised = ("expert", "amateur"), True

    def __init__(
        self, with_context: Source | PreTrainedModel, without_context: Source | PreTrainedModel, *,
        alpha: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.expert = as_source(with_context, "with_context")
        self.amateur, self.alpha = as_source(without_context, "without_context"), check_alpha(alpha)
        self.settings = {"method": "adacad", "alpha": self.alpha}
        compose(self, [self.expert, self.amateur])

    def changed(self, **settings: Any) -> AdaCAD:
        return AdaCAD(self.expert, self.amateur, **{"alpha": self.alpha} | settings)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        expert, amateur = (s.scores(ids, mask, n)[..., : self.vocab_size] for s in (self.expert, self.amateur))
        amateur = amateur.to(expert.device)
        beta = js_divergence(expert, amateur, check=False) / math.log(2)  # (B, n)
        self.parts, self.details = {"expert": expert, "amateur": amateur}, {"beta": beta}
        plain = contrastive_logits(expert, amateur, alpha=self.alpha, beta=1.0, check=False)  # 2 s_with - s_without
        return torch.lerp(expert, plain, beta[..., None]).where(plain > NEVER, NEVER)


class Mix(Source):
    """A weighted sum of the logits of several sources: guidance, DExperts, proxy tuning, and what comes next.

    weighted: pairs (weight, source or model) with the same tokenizer; the first is the expert, whose EOS ids and, with
    `alpha`, whose plausibility mask count. Guidance (arXiv 2306.17806, eq. 4): `[(g, with), (1 - g, without)]`.
    Context-aware decoding (2305.14739, eq. 2): `[(1 + a, with), (-a, without)]`. DExperts (2105.03023, eq. 2) and
    proxy tuning (2401.08565, eq. 1): `[(1, base), (a, expert), (-a, anti)]`. Scores are in nats, see `mixed_scores`.
    """

    inner = ("sources",)

    def __init__(
        self, weighted: Sequence[tuple[float, Source | PreTrainedModel]], *, alpha: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(weighted, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in weighted
        ):
            raise TypeError("weighted must be a list of pairs: [(1.5, source), (-0.5, other_source)].")
        if not weighted:
            raise ValueError("weighted is empty: give at least one (weight, source).")
        self.weights = [check_number(weight, "weighted[...][0]", low=-1e6, high=1e6) for weight, _ in weighted]
        self.sources = [as_source(source, f"weighted[{k}][1]") for k, (_, source) in enumerate(weighted)]
        self.alpha = check_alpha(alpha)
        self.settings = {"method": "mix", "weights": self.weights, "alpha": self.alpha}
        compose(self, self.sources)
        names = ["expert", "amateur"] if len(weighted) == 2 and self.weights[1] < 0 else ["expert"]
        self._names = names + [f"source_{k}" for k in range(len(names) + 1, len(weighted) + 1)]
        self.forms = (Form(dict(zip(self._names, self.weights))),)

    def scores_among(self, ids: Tensor, mask: Tensor | None, n: int, kept: Kept = None) -> Tensor:
        logits: list[Tensor] = []

        def among() -> Tensor:
            return mixed_scores(logits[:1], [1.0], alpha=self.alpha, check=False) > NEVER

        for source in self.sources:
            which = among if logits and self.alpha is not None else kept
            logits.append(source.scores_among(ids, mask, n, which)[..., : self.vocab_size].to(self.device))
        self.parts = dict(zip(self._names, logits))
        return mixed_scores(logits, self.weights, alpha=self.alpha, check=False)


class Prompted(Source):
    """A source that reads a prefix before every prompt: a context, an instruction, a persona.

    prefix: text (then `tokenizer` is needed) or token ids. A row that starts with the prefix's own first token, a BOS,
    keeps only one of them. Or a list of texts or of lists of ids: a prefix for every prompt of a batch, in order. Or a
    dict, for a prefix inside a chat template: each prompt (text, or a tuple of ids) and what is read in its place; the
    longest that a row begins with counts. Two `Prompted` in a `Contrast` are context-aware decoding (arXiv 2305.14739).
    The inner source is forked: it gets a cache of its own, so one model may serve several prefixes. Raises TypeError or
    ValueError naming the argument, and ValueError for a row of no prompt and for a list that does not fit the rows.
    """

    inner = ("source",)

    def __init__(
        self, source: Source | PreTrainedModel, prefix: str | Sequence[Any] | Mapping, *, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.source = as_source(source, "source").fork()
        compose(self, [self.source])
        if isinstance(prefix, Mapping):
            pairs = [[_tokens(text, tokenizer, self.vocab_size) for text in pair] for pair in prefix.items()]
            self.prefixes = [{tuple(prompt): read for prompt, read in pairs}]
        else:  # a row may bring the prefix's first token itself
            several = isinstance(prefix, (list, tuple)) and any(isinstance(one, (str, list, tuple)) for one in prefix)
            tokens = [_tokens(one, tokenizer, self.vocab_size) for one in (prefix if several else [prefix])]
            self.prefixes = [{(): one, (one[0],): one} for one in tokens]
        longer = max((len(read) - len(prompt) for one in self.prefixes for prompt, read in one.items()), default=0)
        if not self.prefixes[0]:
            raise ValueError("prefix is an empty dict: give each prompt and what is read in its place.")
        if self.max_positions is not None:
            self.max_positions -= longer
            if self.max_positions < 1:
                raise ValueError(f"prefix has {longer} tokens, which fill the source's context: give fewer.")
        self.unnormalised = self.source.unnormalised
        self.settings = settings_around(self.source, method="prompted", prefix_tokens=longer)

    def scores_among(self, ids: Tensor, mask: Tensor | None, n: int, kept: Kept = None) -> Tensor:
        ids, real = ids.clone(), torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.clone()
        fronts = []
        for row, counts, share in zip(ids, real, shares(len(ids), len(self.prefixes))):
            prefix = self.prefixes[share]
            columns = counts.nonzero()[: max(map(len, prefix)), 0]
            begins = tuple(row[columns].tolist())
            prompt = next((begins[:k] for k in range(len(begins), -1, -1) if begins[:k] in prefix), None)
            if prompt is None:
                raise ValueError(f"prefix has no prompt for a row that begins with ids {list(begins[:8])}.")
            fronts.append(prefix[prompt])
            if prompt:  # its columns are not read, but for the last, which takes the last token in its place
                last = columns[len(prompt) - 1]
                counts[columns[: len(prompt) - 1]] = False
                row[last], fronts[-1] = fronts[-1][-1], fronts[-1][:-1]
        front, seen = padded(fronts)
        whole = torch.cat([seen, real], dim=1)
        ids, mask = torch.cat([front, ids], dim=1), None if bool(whole.all()) else whole
        scores = self.source.scores_among(ids, mask, n, kept)
        self.parts, self.details = self.source.parts, self.source.details
        return scores


def _tokens(text: Any, tokenizer: Any, vocab: int) -> list[int]:
    """The ids of a prefix, given as text or ids."""
    if isinstance(text, str):
        check_tokenizer(tokenizer)
        text = tokenizer(check_text(text, "prefix"))["input_ids"]
    text = check_ids(text.reshape(-1) if isinstance(text, Tensor) else text, "prefix")
    if not text:
        raise ValueError("prefix has no tokens: use the source as it is, or give at least one token.")
    if not all(0 <= token < vocab for token in text):
        raise ValueError(f"prefix holds a token outside the source's vocabulary of {vocab}.")
    return text


class Window(Source):
    """A source that sees no more than the last k tokens: an amateur with a short memory.

    Nothing of a window that moves can be cached, so a step costs a pass over k tokens. As the amateur of a `Contrast`
    it is the ablation of contrastive decoding's paper (arXiv 2210.15097, section 3.4); for models that want their BOS
    in front: `Window(Prompted(source, [bos]), k)`. Raises TypeError or ValueError naming the argument.
    """

    inner = ("source",)

    def __init__(self, source: Source | PreTrainedModel, k: int) -> None:
        super().__init__()
        self.source = as_source(source, "source").fork()
        compose(self, [self.source])
        self.k = check_count(k, "k", high=self.max_positions)
        self.max_positions, self.rewindable, self.unnormalised = None, True, self.source.unnormalised
        self.settings = settings_around(self.source, method="window", k=self.k)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        stops = range(ids.shape[1] - n + 1, ids.shape[1] + 1)
        # a column before the first token sees token 0: its scores mean nothing
        seen = [row[:stop][r[:stop]][-self.k :].tolist() or [0] for row, r in zip(ids, real) for stop in stops]
        windows, counts = padded(seen)
        scores = self.source.scores(windows, None if bool(counts.all()) else counts, 1)  # (B * n, 1, V)
        shape = (len(ids), n)
        self.parts = {name: part[:, 0].unflatten(0, shape) for name, part in self.source.parts.items()}
        self.details = {name: part[:, 0].unflatten(0, shape) for name, part in self.source.details.items()}
        return scores[:, 0].unflatten(0, shape)


def compose(whole: Source, parts: list[Source]) -> None:
    """What a composed source takes from its parts: the first one's EOS ids and device, the narrowest limits."""
    sizes = [part.vocab_size for part in parts]
    if max(sizes) - min(sizes) > 1024:  # no family pads its vocabulary that far
        raise ValueError(
            f"the sources have vocabularies of {' and '.join(map(str, sizes))} tokens, so they do not share a "
            "tokenizer: wrap the other model in TextSpace."
        )
    limits = [part.max_positions for part in parts if part.max_positions is not None]
    whole.vocab_size, whole.max_positions = min(sizes), min(limits, default=None)
    whole.eos_token_ids, whole.device = parts[0].eos_token_ids, parts[0].device
    whole.rewindable = all(part.rewindable for part in parts)
