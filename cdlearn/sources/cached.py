"""A language model as a source, with a key-value cache that matches by content."""

from __future__ import annotations

import copy
import inspect
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cdlearn.checks import check_count
from cdlearn.sources.base import Source, float32
from cdlearn.sources.probes import TURN, goes_on_by, holes_show, known

_PIECE = 2048
_OWN_STATE = ("recurrent_gemma", "rwkv")  # in their modules: kept, or weights that the first pass rescales
_NOTHING = torch.zeros(0, 0, dtype=torch.long)


def as_source(model: Any, name: str = "model") -> Source:
    """A source as it is; a transformers model wrapped in `CachedLM`. Anything else is a TypeError that says `name`."""
    if isinstance(model, Source):
        return model
    check_model(model, name)
    return CachedLM(model)


def check_model(model: Any, name: str = "model") -> None:
    """Raise TypeError or ValueError for what is not a causal language model ready to be asked."""
    kind = f"{name} is a {type(model).__name__}"
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        raise TypeError(f"{kind}, an encoder-decoder: pass a decoder-only causal language model.")
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        advice = "pass a source or a transformers causal language model"
        if hasattr(model, "expert") and hasattr(model, "amateur"):
            advice = "it holds two models: pass its .expert, or Contrast(pair.expert, pair.amateur)"
        if isinstance(model, str):
            advice += f", for instance cdlearn.load_expert({model!r}).expert"
        raise TypeError(f"{kind}: {advice}.")
    causal = {getattr(module, "is_causal", None) for module in model.get_decoder().modules()}  # of each attention
    if causal - {None} == {False} or getattr(model.config, "attn_type", "") == "bi":  # BERT; XLNet
        raise TypeError(f"{kind} that reads in both directions: pass a causal language model.")
    if model.training:
        raise ValueError(f"{name} is in training mode, so dropout would change its scores: call model.eval() first.")


class CachedLM(Source):
    """A transformers causal language model with a key-value cache that finds out by itself what it may reuse.

    A cached column stays valid while it is masked now, or its id and its position (cumulative sum of the mask) are what
    they were. Each row looks for its own parent among the remembered rows, so beams, rewinding, smaller batches and new
    prompts need no call of their own. Only the rest is computed, never logits of more than n columns. The scores of the
    last `remember` columns are kept: asked again, they cost no forward pass.
    """

    unnormalised = True

    def __init__(self, model: PreTrainedModel, *, remember: int = 16) -> None:
        super().__init__()
        check_model(model)
        self.model, self.remember = model, check_count(remember, "remember")
        self._embedding = model.get_input_embeddings()
        self.vocab_size = model.get_output_embeddings().weight.shape[0]
        self.eos_token_ids = _eos_ids(model)
        self.max_positions = context_limit(model)
        self.settings = {"method": "plain", "model": type(model).__name__}
        self._accepts = set(inspect.signature(model.forward).parameters)
        config = model.config.get_text_config(decoder=True)
        own = config.model_type in _OWN_STATE or not model._supports_default_dynamic_cache()
        names = [] if own else [name for name in ("past_key_values", "cache_params") if name in self._accepts]
        self.cache_name = next(iter(names), None)  # without a cache every pass reads the whole text
        layers = DynamicCache(config=model.config).layers if names else []
        windows = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
        self._window = min(windows, default=math.inf)  # a cache that slides cannot be cropped either
        # recurrent layers keep a running state, not columns: nothing to crop, and holes cannot be masked away
        self.rewindable = all(map(_croppable, layers))
        # columns per pass, so that the memory of a long prompt does not grow with its square, nor with the vocabulary
        self._piece = _PIECE if "logits_to_keep" in self._accepts else _PIECE // 8
        self._short, self.masks = _short_texts(config), bool(layers) and self.rewindable
        if not self.masks or self._short < math.inf:
            self._piece = 2**62  # all in one: a recurrent state, or positions that are rotated by the prompt's length
        self._turns = own or self._short < math.inf  # its modules change while they run: one pass at a time
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
        self._saved = None  # the cache as it was then, where columns cannot be cropped
        self._long = False  # whether the cached keys were rotated for a long text
        for row in self._rows:
            row.reset()

    def fork(self) -> CachedLM:
        twin = copy.copy(self)
        twin._rows, twin.parts, twin.details = [], {}, {}
        twin.reset()
        return twin

    def scores(self, ids: Tensor, mask: Tensor | None, n: int) -> Tensor:
        scores = float32(self._columns(ids, mask, n)[0])
        self.parts = {"expert": scores}
        return scores

    def _run(self, keep: int, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """One forward pass; what is remembered of each of its last `keep` columns, each [B, keep, ...]."""
        return (self.model(**inputs).logits[:, -keep:],)

    def _columns(self, ids: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, ...]:
        """What `_run` gives for the last n columns, from memory where it can, else computed: each [B, n, ...]."""
        longest = ids.shape[1] if mask is None else int(mask.sum(dim=1).max())
        if self.max_positions is not None and longest > self.max_positions:
            over = f"ids has a row of {longest} tokens and the model takes {self.max_positions}"
            raise ValueError(f"{over}: shorten the prompt or ask for fewer new tokens.")
        with self.alone():  # whatever is around it: two contrasts may share an amateur
            if mask is not None and (longest > self._short or self._holes_go_wrong(mask)):
                return self._row_by_row(ids, mask, n)
            first = ids.shape[1] - n
            if first < self._short < longest:  # some of the columns end short texts and some long ones
                columns = [self._columns(ids[:, :stop], None, 1) for stop in range(first + 1, longest + 1)]
                return tuple(torch.cat(parts, dim=1) for parts in zip(*columns))
            self._compute(ids, mask, first, longest > self._short)
            wanted = self._memory[-n:]
            self._memory = self._memory[-max(n, self.remember) :]
        columns = [tensors if rows is None else tuple(t[rows] for t in tensors) for rows, tensors in wanted]
        return tuple(torch.stack(list(parts), dim=1) for parts in zip(*columns))

    def _compute(self, ids: Tensor, mask: Tensor | None, first: int, long: bool) -> None:
        """Have the columns from `first` on in memory, each rotated as a short text, or each as a long one."""
        size, keep = ids.shape[1], self._match(ids, mask)
        if first < self._ids.shape[1] - len(self._memory):
            keep = min(keep, first)  # those scores were not remembered: go back and compute them
        keep = self._rewind(keep)
        if keep == size:
            return
        checks = size - first > 1 and not (self.rewindable and size < self._window)  # columns that may be taken back
        most = size if self.rewindable or not (keep or checks) else known(goes_on_by, self.model, self)
        if size - keep > most or long != self._long:
            self.reset()
            keep = 0
        if checks and most >= size and first - keep > self.remember:  # first what stays: see `_saved`
            self._feed(ids[:, :first], None if mask is None else mask[:, :first], keep, first - 1)
            keep = first
        self._feed(ids, mask, keep, max(keep, first))
        self._long = long

    def _match(self, ids: Tensor, mask: Tensor | None) -> int:
        """Give every row its best parent; returns how many leading columns all rows can then reuse."""
        size = min(ids.shape[1], self._ids.shape[1])
        if size == 0:
            return 0
        ids, old_ids = ids[:, :size], self._ids[:, :size]
        if mask is None and self._mask is None and torch.equal(ids, old_ids):
            return size  # the usual case: every row goes on where it stopped
        if mask is None and self._mask is None and len(ids) == len(old_ids) == 1:
            return int((ids == old_ids).long().cumprod(dim=1).sum())  # a single row taken back: no parent to look for
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
        for cache in filter(None, (self._cache, self._saved)):
            cache.reorder_cache(parents.to(self.device))

    def _rewind(self, keep: int) -> int:
        """Drop the cached columns from `keep` on. Returns how many stay: 0 where this cache cannot go back so far."""
        cached = self._ids.shape[1]
        if keep == cached:
            return keep
        if keep and self.rewindable and cached < self._window:
            self._cache.crop(keep - cached)
        elif self._saved is not None and keep >= self._before:
            self._cache, self._saved, keep = self._saved, None, self._before
        else:
            self.reset()
            return 0
        drop = cached - keep
        self._memory = self._memory[: len(self._memory) - drop] if drop < len(self._memory) else []
        self._ids, self._mask = self._ids[:, :keep], None if self._mask is None else self._mask[:, :keep]
        return keep

    def _feed(self, ids: Tensor, mask: Tensor | None, start: int, first: int) -> None:
        """Run the model on the columns from `start` on, and remember its scores from column `first` on."""
        memory, cache, end = [] if first > start else self._memory, self._cache, ids.shape[1]  # memory has no gaps
        low, high = (int(limit) for limit in ids[:, start:].aminmax())
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"ids holds token {bad}, outside the model's vocabulary of {self.vocab_size}.")
        saved = None
        if cache is None and self.cache_name:
            cache = DynamicCache(config=self.model.config)
        elif cache is not None and end - start > 1 and not (self.rewindable and end < self._window):
            saved = copy.copy(cache)  # a pass replaces keys, and writes over states
            saved.layers = [(copy.deepcopy if hasattr(k, "recurrent_states") else copy.copy)(k) for k in cache.layers]
        self.reset()  # an interrupt in the middle of a forward pass must not leave half a cache behind
        positions = torch.arange(end).expand(ids.shape) if mask is None else (mask.cumsum(dim=1) - 1).clamp(min=0)
        for begin in range(start, end, self._piece):
            stop = min(begin + self._piece, end)
            keep = stop - max(first, begin)  # not above 0: these columns have no scores
            inputs = {"input_ids": ids[:, begin:stop], "position_ids": positions[:, begin:stop]}
            inputs |= {} if mask is None else {"attention_mask": mask[:, :stop].long()}
            options = {"use_cache": cache is not None, self.cache_name: cache, "logits_to_keep": max(keep, 1)}
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()} | options
            inputs = {name: value for name, value in inputs.items() if name in self._accepts}
            with TURN if self._turns else nullcontext():
                outputs = self._run(max(keep, 1), inputs)
            memory += [(None, tuple(output[:, column] for output in outputs)) for column in range(keep)]
        self._memory = memory
        if cache is not None:
            self._cache, self._before, self._saved = cache, begin, saved
            self._ids, self._mask = ids.clone(), None if mask is None else mask.clone()

    def _holes_go_wrong(self, mask: Tensor) -> bool:
        """Whether this model would count masked columns, as recurrent layers do and sliding windows once they slide."""
        if not self.masks:
            return True
        inner = bool((mask[:, 1:] < mask[:, :-1]).any())  # a hole after a real token; left padding is harmless
        window = min(self._window, getattr(self.model.config, "window_size", None) or math.inf)  # of columns: GPT-Neo
        return inner and (mask.shape[1] > window or known(holes_show, self.model, self))

    def _row_by_row(self, ids: Tensor, mask: Tensor, n: int) -> tuple[Tensor, ...]:
        """Each row alone, without its masked columns, in a cache of its own: exact for every architecture."""
        while len(self._rows) < len(ids):
            self._rows.append(self.fork())
        outputs = []
        for row, row_ids, row_mask in zip(self._rows, ids, mask):
            last = row_mask[-n:].cumsum(dim=0)  # real columns so far, among the last n
            count = max(int(last[-1]), 1)
            tensors = row._columns(row_ids[row_mask][None], None, count)
            index = (last - 1 + count - int(last[-1])).clamp(min=0)  # a masked column repeats the one before it
            outputs.append(tuple(t[:, index.to(t.device)] for t in tensors))
        return tuple(torch.cat(list(parts)) for parts in zip(*outputs))


def context_limit(model: PreTrainedModel) -> int | None:
    """The longest context in tokens (None: no limit), rope scaling included: llama3 and longrope count it in theirs.

    "dynamic" rotates every text beyond its original length in another way, with which no cache can be right.
    """
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or 0
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("yarn", "linear"):
        original = rope.get("original_max_position_embeddings") or limit
        limit = max(limit, int(original * (rope.get("factor") or 1)))
    return limit if limit > 0 else None  # XLNet says -1


def _eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = eos if eos is not None else getattr(model.config.get_text_config(decoder=True), "eos_token_id", None)
    return () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)


def _short_texts(config: Any) -> float:
    """The length from which positions are rotated in another way, so that the keys of a shorter text are wrong."""
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [rope for rope in (ropes, *ropes.values()) if isinstance(rope, dict)]  # one, or one per kind of layer
    long = [rope["original_max_position_embeddings"] for rope in ropes if rope.get("rope_type") == "longrope"]
    return min(long, default=math.inf)


def _croppable(layer: Any) -> bool:
    return getattr(layer, "is_croppable", not hasattr(layer, "recurrent_states"))  # the flag came after 5.14
