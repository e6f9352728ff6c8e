"""A trace as bytes for the page that shows it (inspector.js): a header of JSON, then its tensors, compressed.

The page finds the exact numbers of `Record`: float32 logits of every recorded candidate, not rounded texts.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdlearn.show.html import METRICS, first_moved, metric_values, texts_of
from cdlearn.trace.file import finite
from cdlearn.trace.record import Record
from cdlearn.trace.rescore import changeable, form_of, tempered_normaliser

_TYPES = {torch.float32: "<f4", torch.float64: "<f8"}  # every other tensor is of whole numbers


def pack(trace: Record) -> bytes:
    """What the page needs of one trace, gzip of: the header's length (uint32, little endian), the header, the arrays.

    Tokens are numbers into the header's `texts`, in the order of their ids, so that the lower one wins a tie there too.
    The bytes of an array lie plane by plane, all first bytes, then all second ones, and the expert's float32 logits are
    the differences of their bits as whole numbers: so they compress better, and stay exact.
    """
    drafts = [token for facts in trace.rounds for token in (*facts["draft_ids"], facts["next_id"]) if token is not None]
    known = [*trace.prompt_ids, *trace.recorded_ids, *drafts, *trace.candidates.flatten().tolist()]
    ids, places = np.unique(np.array(known, dtype=np.int64), return_inverse=True)
    place = dict(zip(ids.tolist(), range(len(ids))))
    arrays = _arrays(trace)
    wide = places[len(known) - trace.candidates.numel() :].reshape(trace.candidates.shape)
    arrays["candidates"] = wide.astype("<u2" if len(ids) < 2**16 else "<i4")
    header: dict[str, Any] = {
        "positions": len(trace),
        "width": trace.candidates.shape[1],
        "vocab_size": trace.vocab_size,
        "ids": ids.tolist(),
        "texts": texts_of(trace, ids.tolist()),
        "prompt": [place[token] for token in trace.prompt_ids],
        "recorded": [place[token] for token in trace.recorded_ids],
        "opening": first_moved(trace),
        "settings": trace.settings,
        "forms": [vars(form) for form in trace.forms],
        "controls": controls(trace),
        "metrics": METRICS,
        "rounds": [_round(facts, place) for facts in trace.rounds],
    }
    if "tempered" in arrays:
        arrays["tempered"], header["tempered_exact"] = arrays["tempered"]
    blocks, header["arrays"], at = [], {}, 0
    for name, values in arrays.items():
        raw = values if isinstance(values, np.ndarray) else _numbers(values)
        header["arrays"][name] = [raw.dtype.str[1:], list(raw.shape), at]
        if name == "parts.expert" and raw.dtype == "<f4":  # it falls: the differences of its bits are small numbers
            raw = np.diff(raw.view("<i4").ravel(), prepend=np.int32(0))
        planes = np.ascontiguousarray(raw).view(np.uint8).reshape(-1, raw.dtype.itemsize).T
        blocks.append(planes.tobytes())
        at += raw.nbytes
    text = json.dumps(finite(header), ensure_ascii=False, allow_nan=False, default=str).encode()
    return gzip.compress(len(text).to_bytes(4, "little") + text + b"".join(blocks), 6, mtime=0)


def controls(trace: Record) -> list[str]:
    """The settings that the page can move: those of `Trace.rescore`, of the form that made the trace."""
    form = form_of(trace, trace.settings)
    if form is None or not len(trace):
        return []
    others = {other.knob for other in trace.forms} - {form.knob} | {"top_k"}
    whole = trace.candidates.shape[1] - 1 == trace.vocab_size
    if not form.tempered or (trace.settings.get("repetition_penalty", 1.0) != 1 and not whole):
        others.add("amateur_temperature")  # unknown to the form, or only its recorded value could be answered
    return [name for name in changeable(trace) if name not in others]


def _arrays(trace: Record) -> dict[str, Any]:
    """Every tensor by its name in the page: "parts.expert", "normalisers.expert", "values.entropy", ..."""
    arrays: dict[str, Any] = {f"parts.{name}": part for name, part in trace.parts.items()}
    arrays |= {f"normalisers.{name}": trace.normalisers[name] for name in trace.parts}
    arrays |= {f"ranks.{name}": values for name, values in trace.ranks.items() if values.dim() == 1}
    arrays |= {f"entropy.{name}": values for name, values in trace.entropy.items() if values.dim() == 1}
    if len(trace):
        arrays |= {f"values.{name}": metric_values(trace, name) for name in METRICS}
    for name in ("premature_layer", "divergences"):
        if name in trace.details and "layers" in trace.settings:
            arrays[name] = trace.details[name]
    form = form_of(trace, trace.settings) if len(trace) else None
    if form is not None and form.tempered:
        arrays["tempered"] = tempered_normaliser(trace, form.tempered, trace.settings.get("amateur_temperature", 1.0))
    return arrays


def _numbers(values: Tensor) -> np.ndarray:
    if values.is_floating_point() and values.dtype not in _TYPES:  # an unusual dtype from somebody's own source
        values = values.double()
    return values.contiguous().numpy().astype(_TYPES.get(values.dtype, "<i4"))


def _round(facts: dict[str, Any], place: dict[int, int]) -> dict[str, Any]:
    """A round of speculation, its tokens as numbers into the texts."""
    names = ("round", "position", "accepted", "next_kind", "u", "accept_probability")
    after = None if facts["next_id"] is None else place[facts["next_id"]]
    return {name: facts[name] for name in names} | {"draft": [place[t] for t in facts["draft_ids"]], "next": after}
