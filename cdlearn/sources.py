"""Sources: things that turn tokens into next-token scores and keep their own cache.

`source(ids, mask, n)` returns the scores after each of the last n columns. A caller passes the whole prefix every time;
a source remembers what it computed and matches by content, so a loop has no cache to thread through or to rewind.
"""

import copy
import inspect
import numbers
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cdlearn.scores import contrastive_logits, contrastive_scores, dola_scores, js_divergence

_NOTHING = torch.zeros(0, 0, dtype=torch.long)


class Source:
    """What every source has. A new method is a subclass with one function, `scores(ids, mask, n) -> [B, n, V]`.

    vocab_size; eos_token_ids: tuple of ids that end a text; max_positions: the longest context, in real tokens (None:
    no limit); device: where scores live; rewindable: whether taking tokens back is cheap (the scores are right
    either way). After a call `parts` maps names ("expert", "amateur") to raw scores [B, n, V] and `details` other
    names to [B, n, ...]: what a trace records. `settings` names the method and its numbers.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    max_positions: int | None = None
    device: torch.device = torch.device("cpu")
    rewindable: bool = True
    settings: dict[str, Any] = {}

    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}
        self.details: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor | None = None, n: int = 1) -> Tensor:
        """Scores of the next token after each of the last n columns.

        ids: [B, T] int. mask: [B, T], 0 where a column does not count (left padding, rejected drafts); None: all count.
        Returns [B, n, V] float32 on `device`, the caller's to keep. After a masked column the scores mean nothing.
        Raises TypeError or ValueError naming the argument.
        """
        ids, mask = _check_call(ids, mask, n)
        return self.scores(ids, mask, n)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        """To be written by a subclass. ids: [B, T] int64 and mask: [B, T] bool or None (all ones) are on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(ids, mask, n).")

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items() if name != "method")
        return f"{type(self).__name__}({settings})"


def as_source(model: Any) -> Source:
    """A source as it is; a transformers model wrapped in `CachedLM`. Anything else is a TypeError."""
    return model if isinstance(model, Source) else CachedLM(model)


class CachedLM(Source):
    """A transformers causal language model with a key-value cache that finds out by itself what it may reuse.

    A cached column stays valid while it is masked now, or its id and its position (cumulative sum of the mask) are what
    they were. Each row looks for its own parent among the remembered rows, so beams, rewinding, smaller batches and new
    prompts need no call of their own. Only the rest is computed, never logits of more than n columns. The scores of the
    last `remember` columns are kept: asked again, they cost no forward pass.
    """

    def __init__(self, model: PreTrainedModel, *, remember: int = 16) -> None:
        super().__init__()
        if not isinstance(model, PreTrainedModel) or not model.can_generate() or model.config.is_encoder_decoder:
            raise TypeError(
                f"model is a {type(model).__name__}: pass a source or a transformers causal language model."
            )
        if model.training:
            raise ValueError("model is in training mode, so dropout would change its scores: call model.eval() first.")
        if isinstance(remember, bool) or not isinstance(remember, numbers.Integral) or remember < 1:
            raise ValueError(f"remember is {remember!r}: pass a whole number of columns, at least 1.")
        self.model, self.remember = model, remember
        config = model.config.get_text_config(decoder=True)
        self._embedding = model.get_input_embeddings()
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.eos_token_ids = _eos_ids(model)
        self.max_positions = getattr(config, "max_position_embeddings", None)
        self.settings = {"method": "plain", "model": type(model).__name__}
        self._accepts = set(inspect.signature(model.forward).parameters)
        layers = DynamicCache(config=model.config).layers if "past_key_values" in self._accepts else []
        sliding = [layer for layer in layers if getattr(layer, "is_sliding", False)]
        self._windows = [layer.sliding_window for layer in sliding]
        # recurrent layers keep a running state, not columns: nothing to crop, and holes cannot be masked away
        self.rewindable = bool(layers) and all(map(_croppable, layers))
        # newer transformers can take back the last pass of a sliding layer, older ones nothing once it slides
        self._records = self.rewindable and all(hasattr(layer, "activate_past_recording") for layer in sliding)
        self._rows: list[CachedLM] = []
        self.reset()

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device  # model.device walks through the modules, which costs at every step

    def reset(self) -> None:
        """Forget everything and free the cache. Never needed for right answers, only for memory."""
        self._cache = None
        self._ids = _NOTHING  # (B, C): what the cached columns hold
        self._mask: Tensor | None = None  # (B, C) bool; None: all real
        self._memory: list[tuple[Tensor | None, tuple[Tensor, ...]]] = []  # per column, the last ones: (rows, tensors)
        self._before = 0  # columns that were cached before the last forward pass
        for row in self._rows:
            row.reset()

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        (logits,) = self._columns(ids, mask, n)
        self.parts = {"expert": _float32(logits)}
        return self.parts["expert"]

    def _run(self, keep: int, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """One forward pass; what is remembered of each of its last `keep` columns, each [B, keep, ...]."""
        return (self.model(**inputs).logits[:, -keep:],)

    def _columns(self, ids: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, ...]:
        """What `_run` gives for the last n columns, from memory where it can, else computed: each [B, n, ...]."""
        if mask is not None and self._holes_go_wrong(mask):
            return self._row_by_row(ids, mask, n)
        if self.max_positions is not None:
            longest = ids.shape[1] if mask is None else int(mask.sum(dim=1).max())
            if longest > self.max_positions:
                raise ValueError(
                    f"ids has a row of {longest} tokens and the model takes {self.max_positions}: "
                    "shorten the prompt or ask for fewer new tokens."
                )
        keep, first = self._match(ids, mask), ids.shape[1] - n
        if first < self._ids.shape[1] - len(self._memory):
            keep = min(keep, first)  # those scores were not remembered: go back and compute them
        keep = self._rewind(keep)
        if keep < ids.shape[1]:
            self._feed(ids, mask, keep, max(keep, first))
        wanted = self._memory[-n:]
        self._memory = self._memory[-max(n, self.remember) :]
        columns = [tensors if rows is None else tuple(t[rows] for t in tensors) for rows, tensors in wanted]
        return tuple(torch.stack(list(parts), dim=1) for parts in zip(*columns))

    def _match(self, ids: Tensor, mask: Tensor | None) -> int:
        """Give every row its best parent; returns how many leading columns all rows can then reuse."""
        size = min(ids.shape[1], self._ids.shape[1])
        if size == 0:
            return 0
        ids, old_ids = ids[:, :size], self._ids[:, :size]
        if mask is None and self._mask is None and torch.equal(ids, old_ids):
            return size  # the usual case: every row goes on where it stopped
        masked = torch.zeros_like(ids, dtype=torch.bool) if mask is None else ~mask[:, :size]
        old_mask = torch.ones_like(old_ids, dtype=torch.bool) if self._mask is None else self._mask[:, :size]
        positions, old_positions = (~masked).cumsum(dim=1), old_mask.cumsum(dim=1)
        if len(ids) == len(old_ids):
            if bool((masked | (old_mask & (ids == old_ids) & (positions == old_positions))).all()):
                return size
        parents, keep = [], size
        for row in range(len(ids)):
            fits = masked[row] | (old_mask & (ids[row] == old_ids) & (positions[row] == old_positions))  # (B', size)
            lengths = fits.long().cumprod(dim=1).sum(dim=1).tolist()
            best = row if row < len(lengths) and lengths[row] == max(lengths) else lengths.index(max(lengths))
            parents.append(best)
            keep = min(keep, lengths[best])
        if keep > 0 and parents != list(range(len(old_ids))):
            self._reorder(torch.tensor(parents))
        return keep

    def _reorder(self, parents: Tensor) -> None:
        self._ids, self._mask = self._ids[parents], None if self._mask is None else self._mask[parents]
        # scores are large: only the row numbers move now, the rows are gathered if they are asked for
        self._memory = [(parents if rows is None else rows[parents], tensors) for rows, tensors in self._memory]
        self._cache.reorder_cache(parents.to(self.device))

    def _rewind(self, keep: int) -> int:
        """Drop the cached columns from `keep` on. Returns how many stay: 0 where this cache cannot go back so far."""
        drop = self._ids.shape[1] - keep
        fed = self._ids.shape[1] - self._before
        deep = False
        if self._windows:
            slides = (self._before if self._records else self._ids.shape[1]) >= min(self._windows)
            deep = slides and drop > (fed if self._records else 0)
        if keep == 0 or (drop and (deep or not self.rewindable)):
            self.reset()
            return 0
        if drop:
            self._cache.crop(-drop)
            self._before = keep  # a sliding layer keeps nothing beyond its window after this
        self._memory = self._memory[: len(self._memory) - drop] if drop < len(self._memory) else []
        self._ids, self._mask = self._ids[:, :keep], None if self._mask is None else self._mask[:, :keep]
        return keep

    def _feed(self, ids: Tensor, mask: Tensor | None, start: int, first: int) -> None:
        """Run the model on the columns from `start` on, and remember its scores from column `first` on."""
        memory, cache = self._memory, self._cache
        new = ids[:, start:]
        low, high = (int(limit) for limit in new.aminmax())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"ids holds token {bad}, outside the model's vocabulary of {self.vocab_size}.")
        inputs: dict[str, Any] = {"input_ids": new.to(self.device)}
        if "past_key_values" in self._accepts:
            if cache is None:
                cache = DynamicCache(config=self.model.config)
                if self._windows and self._records:
                    cache.activate_past_recording()
            elif self._windows and self._records:
                cache.crop(0)  # lets go of what left the window, so that only this pass can be taken back
            inputs.update(past_key_values=cache, use_cache=True)
        if "position_ids" in self._accepts:
            if mask is None:
                positions = torch.arange(start, ids.shape[1]).expand(new.shape)
            else:
                positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]
            inputs["position_ids"] = positions.to(self.device)
        if mask is not None:
            inputs["attention_mask"] = mask.long().to(self.device)
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = ids.shape[1] - first
        if first > start:
            memory = []  # the columns between have no scores, and memory must stay without gaps
        self.reset()  # an interrupt in the middle of a forward pass must not leave half a cache behind
        outputs = self._run(ids.shape[1] - first, inputs)
        for column in range(ids.shape[1] - first):
            memory.append((None, tuple(output[:, column] for output in outputs)))
        self._memory = memory
        if cache is not None:
            self._cache, self._before = cache, start
            self._ids, self._mask = ids.clone(), None if mask is None else mask.clone()

    def _holes_go_wrong(self, mask: Tensor) -> bool:
        """Whether this model would count masked columns: recurrent layers do, sliding windows do once they slide."""
        if not self.rewindable:
            return True
        inner = bool((mask[:, 1:] < mask[:, :-1]).any())  # a hole after a real token; left padding is harmless
        return inner and bool(self._windows) and mask.shape[1] > min(self._windows)

    def _row_by_row(self, ids: Tensor, mask: Tensor, n: int) -> tuple[Tensor, ...]:
        """Each row alone, without its masked columns, in a cache of its own: exact for every architecture."""
        while len(self._rows) < len(ids):
            row = copy.copy(self)
            row._rows = []
            row.reset()
            self._rows.append(row)
        outputs = []
        for row, row_ids, row_mask in zip(self._rows, ids, mask):
            last = row_mask[-n:].cumsum(dim=0)  # real columns so far, among the last n
            count = max(int(last[-1]), 1)
            tensors = row._columns(row_ids[row_mask][None], None, count)
            index = (last - 1 + count - int(last[-1])).clamp(min=0)  # a masked column repeats the one before it
            outputs.append(tuple(t[:, index.to(t.device)] for t in tensors))
        return tuple(torch.cat(list(parts)) for parts in zip(*outputs))


class Contrast(Source):
    """Expert against amateur: contrastive decoding as a source (arXiv 2210.15097; with `beta`, 2309.09117).

    expert, amateur: sources or transformers models with the same tokenizer. Where one pads its vocabulary further, both
    are trimmed to the common size. Give `strength` (default 1.0, see `contrastive_scores`) or `beta` (see
    `contrastive_logits`), not both. alpha=None: no mask. amateur_temperature belongs to the `strength` form.
    """

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
        if strength is not None and beta is not None:
            raise ValueError(
                f"strength={strength!r} and beta={beta!r} were both given: they are two forms, choose one."
            )
        if beta is not None and amateur_temperature != 1:
            raise ValueError(
                "amateur_temperature is not part of the beta form: use strength= with it, or leave it at 1."
            )
        self.expert, self.amateur = as_source(expert), as_source(amateur)
        self._numbers = {"alpha": alpha, "top_k": top_k}
        if beta is None:
            self._formula = contrastive_scores
            self._numbers |= {"strength": 1.0 if strength is None else strength}
            self._numbers |= {"amateur_temperature": amateur_temperature}
        else:
            self._formula = contrastive_logits
            self._numbers |= {"beta": beta}
        self._formula(torch.zeros(1, 2), torch.zeros(1, 2), **self._numbers)  # wrong numbers fail now, not at a step
        self.settings = {"method": "contrastive"} | self._numbers
        self.vocab_size = min(self.expert.vocab_size, self.amateur.vocab_size)
        self.eos_token_ids = self.expert.eos_token_ids
        limits = [part.max_positions for part in (self.expert, self.amateur) if part.max_positions is not None]
        self.max_positions = min(limits, default=None)
        self.device = self.expert.device
        self.rewindable = self.expert.rewindable and self.amateur.rewindable

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        expert = self.expert.scores(ids, mask, n)[..., : self.vocab_size]  # (B, n, V)
        amateur = self.amateur.scores(ids, mask, n)[..., : self.vocab_size].to(expert.device)
        self.parts = {"expert": expert, "amateur": amateur}
        return self._formula(expert, amateur, **self._numbers)


class DoLa(CachedLM):
    """DoLa: the model's last layer against the earlier layer that differs most from it (arXiv 2309.03883).

    layers: "low" (even layers below the middle), "high" (even layers from the middle on), or a list of layers; layer 0
    is the embedding output, the last layer is not a candidate. With tied embeddings "low" and "high" start at layer 2,
    as in the official code. At every position of every row the layer that diverges most (Jensen-Shannon) is taken.
    final_norm: apply the model's final norm to early layers too (the official code does not). `details` holds
    "premature_layer" [B, n] and "divergences" [B, n, L] in nats, one for each of `layers`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        layers: str | list[int] = "low",
        alpha: float | None = 0.1,
        final_norm: bool = True,
        remember: int = 16,
    ) -> None:
        super().__init__(model, remember=remember)
        dola_scores(torch.zeros(1, 2), torch.zeros(1, 2), alpha=alpha)  # a wrong alpha fails now, not at a step
        self.layers, self.alpha, self.final_norm = _dola_layers(model, layers), alpha, bool(final_norm)
        self.settings = {"method": "dola", "layers": self.layers, "alpha": alpha, "final_norm": self.final_norm}
        decoder = model.get_decoder()
        norms = [
            getattr(decoder, name, None) for name in ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
        ]
        self._norm = next((norm for norm in norms if norm is not None), None)
        self._project = getattr(decoder, "project_out", None)  # OPT-350M: hidden width differs from embedding width
        self._softcap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        self._scale: float | None = None  # Cohere, Granite: logits are scaled after the head; measured at first use

    def _run(self, keep: int, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        outputs = self.model(**inputs, output_hidden_states=True)
        logits, states = outputs.logits[:, -keep:], outputs.hidden_states
        if self._scale is None:
            self._scale = self._measure_scale(states[-1][:, -keep:], logits)
        return logits, torch.stack([states[layer][:, -keep:] for layer in self.layers], dim=2)  # (B, keep, L, width)

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        logits, states = self._columns(ids, mask, n)
        final = _float32(logits)  # (B, n, V)
        early = self._head(self._norm(states) if self.final_norm and self._norm is not None else states) * self._scale
        early = _float32(early if self._softcap is None else torch.tanh(early / self._softcap) * self._softcap)
        divergences = js_divergence(final[:, :, None], early)  # (B, n, L)
        chosen = divergences.argmax(dim=-1)  # (B, n)
        premature = early.take_along_dim(chosen[..., None, None], dim=2)[:, :, 0]  # (B, n, V)
        layers = torch.tensor(self.layers, device=chosen.device)
        self.parts = {"expert": final, "amateur": premature}
        self.details = {"premature_layer": layers[chosen], "divergences": divergences}
        return dola_scores(final, premature, alpha=self.alpha)

    def _head(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(states if self._project is None else self._project(states))

    def _measure_scale(self, last: Tensor, logits: Tensor) -> float:
        """The factor between the head's output and the model's logits; the last hidden state is already normed."""
        ours, theirs = self.model.get_output_embeddings()(last).double(), logits.double()
        if self._softcap is not None:
            theirs = torch.atanh((theirs / self._softcap).clamp(-1 + 1e-9, 1 - 1e-9)) * self._softcap
        scale = float((ours * theirs).sum() / (ours * ours).sum())
        scale = 1.0 if abs(scale - 1) < 1e-2 else scale
        if not torch.allclose(ours * scale, theirs, rtol=5e-2, atol=5e-2 * float(theirs.abs().max())):
            raise ValueError(
                f"{type(self.model).__name__} does more than a head and a scale after its last layer, so the logits of "
                "earlier layers cannot be read off: use Contrast with an amateur model instead."
            )
        return scale


def _dola_layers(model: PreTrainedModel, layers: str | list[int]) -> list[int]:
    """The candidate layers as numbers."""
    config = model.config.get_text_config(decoder=True)
    count, tied = config.num_hidden_layers, bool(getattr(config, "tie_word_embeddings", False))
    if isinstance(layers, str):
        if layers not in ("low", "high"):
            raise ValueError(f'layers is {layers!r}: pass "low", "high" or a list of layer numbers.')
        start, stop = (0, count // 2) if layers == "low" else (count // 2, count)
        chosen = [layer for layer in range(start, stop) if layer % 2 == 0 and layer >= (2 if tied else 0)]
        if not chosen:
            raise ValueError(
                f"layers={layers!r} leaves no even layer of this model's {count}"
                + (" (tied embeddings: from layer 2 on)" if tied else "")
                + ": pass a list of layer numbers."
            )
        return chosen
    try:
        chosen = [int(layer) for layer in layers if not isinstance(layer, bool) and layer == int(layer)]
    except (TypeError, ValueError):
        raise TypeError(f'layers is {layers!r}: pass "low", "high" or a list of layer numbers.') from None
    if len(chosen) != len(layers) or not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"layers is {layers!r}: pass at least one layer number, each once.")
    if min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(f"layers is {layers!r}: the candidates of this model are 0 to {count - 1}.")
    return chosen


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = eos if eos is not None else getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)


def _croppable(layer: Any) -> bool:
    return getattr(layer, "is_croppable", not hasattr(layer, "recurrent_states"))  # the flag came after 5.14


def _float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_call(ids: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, Tensor | None]:
    """ids [B, T] int64 and mask [B, T] bool (None: all ones), both on the CPU, where matching costs no GPU wait."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError("ids must be a torch tensor of token ids, [B, T] int: wrap a list in torch.tensor([...]).")
    if ids.dim() != 2 or ids.numel() == 0:
        raise ValueError(f"ids has shape {tuple(ids.shape)}: pass [B, T] with at least one row and one column.")
    if isinstance(n, bool) or not isinstance(n, numbers.Integral) or not 1 <= n <= ids.shape[1]:
        raise ValueError(f"n is {n!r}: pass a whole number of columns from 1 to T = {ids.shape[1]}.")
    ids = ids.to("cpu", torch.long)
    if mask is None:
        return ids, None
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is a {type(mask).__name__}: pass a [B, T] tensor of 0 and 1, or None.")
    if mask.shape != ids.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)} and ids {tuple(ids.shape)}: they must be equal.")
    mask = mask.to("cpu").bool()
    if bool(mask.all()):
        return ids, None
    if not bool(mask.any(dim=1).all()):
        raise ValueError("mask has a row of zeros only: every row needs at least one real token.")
    return ids.masked_fill(~mask, 0), mask  # whatever id marks padding, the model need not know it
