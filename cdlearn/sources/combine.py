"""Sources made of other sources: contrast, mixture, and a prefix in front of every prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cdlearn.checks import check_alpha, check_contrast, check_number, is_int, short
from cdlearn.scores import NEVER, contrastive_logits, contrastive_scores, mixed_scores
from cdlearn.sources.base import Source
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
        self.weights = [weight for weight, _ in weighted]
        self.sources = [as_source(source) for _, source in weighted]
        for weight in self.weights:
            check_number(weight, "weight", low=-1e6, high=1e6)
        self.alpha = check_alpha(alpha)
        self.settings = {"method": "mix", "weights": self.weights, "alpha": self.alpha}
        compose(self, self.sources)
        names = ["expert", "amateur"] if len(weighted) == 2 and self.weights[1] < 0 else ["expert"]
        self._names = names + [f"source_{k}" for k in range(len(names) + 1, len(weighted) + 1)]
        self.forms = (Form(dict(zip(self._names, self.weights))),)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        logits = [source.scores(ids, mask, n)[..., : self.vocab_size].to(self.device) for source in self.sources]
        self.parts = dict(zip(self._names, logits))
        return mixed_scores(logits, self.weights, alpha=self.alpha, check=False)


class Prompted(Source):
    """A source that reads a prefix before every prompt: a context, an instruction, a persona.

    prefix: text (then `tokenizer` is needed) or token ids. A row that starts with the prefix's own first token, a BOS,
    keeps only one of them. Two `Prompted` in a `Contrast` are context-aware decoding (arXiv 2305.14739). The inner
    source is forked: it gets a cache of its own, so one model may serve several prefixes.
    """

    inner = ("source",)

    def __init__(self, source: Source | PreTrainedModel, prefix: str | Sequence[int], *, tokenizer: Any = None) -> None:
        super().__init__()
        if isinstance(prefix, str):
            if tokenizer is None:
                raise TypeError("prefix is text but tokenizer is None: pass tokenizer=, or token ids.")
            prefix = tokenizer(prefix)["input_ids"]
        if isinstance(prefix, Tensor):
            prefix = prefix.reshape(-1).tolist()
        if not isinstance(prefix, (list, tuple)) or not all(is_int(token) for token in prefix):
            raise TypeError(f"prefix is {short(prefix)}: pass text with tokenizer=, or a list of token ids.")
        if not prefix:
            raise ValueError("prefix has no tokens: use the source as it is, or give at least one token.")
        self.source, self.prefix = as_source(source, "source").fork(), [int(token) for token in prefix]
        compose(self, [self.source])
        if not all(0 <= token < self.vocab_size for token in self.prefix):
            raise ValueError(f"prefix holds a token outside the source's vocabulary of {self.vocab_size}.")
        if self.max_positions is not None:
            self.max_positions -= len(self.prefix)
        self.unnormalised = self.source.unnormalised
        own = {"method": "prompted", "prefix_tokens": len(self.prefix)}
        self.settings = own | {f"source_{name}": value for name, value in self.source.settings.items()}

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        start = real.long().argmax(dim=1, keepdim=True)  # (B, 1): the first real column
        twice = ids.gather(1, start) == self.prefix[0]  # the row brings the prefix's first token itself
        # such a row's first column takes the prefix's last token, and the prefix in front is one token shorter
        ids = ids.scatter(1, start, torch.where(twice, self.prefix[-1], ids.gather(1, start)))
        front = torch.tensor(self.prefix).expand(len(ids), -1)
        front = torch.where(twice, front.roll(1, dims=1), front)  # one hole, then all but the last
        seen = torch.ones_like(front, dtype=torch.bool)
        seen[:, :1] = ~twice
        whole = torch.cat([seen, real], dim=1)
        scores = self.source.scores(torch.cat([front, ids], dim=1), None if bool(whole.all()) else whole, n)
        self.parts, self.details = self.source.parts, self.source.details
        return scores


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
