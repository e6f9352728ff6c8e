"""Traces as strict JSON: readable by any program, the numbers exact, nothing that runs when it is loaded."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdlearn.checks import check_contrast, check_count, check_ids, check_number, check_path, check_text, check_tokenizer
from cdlearn.trace.record import NAMED, TENSORS, Form, Record
from cdlearn.trace.tables import token_texts

FORMAT, VERSION = "cdlearn trace", 1
MAX_BYTES = 2**26  # of JSON: 6,000 positions of a contrast
_MOST_TOKENS = 2**24  # of a vocabulary
_PLAIN = ("prompt_ids", "settings", "vocab_size", "rounds", "recorded")
_FLOATS, _WHOLE = (torch.float32, torch.float64), (torch.int64,)
_DTYPES = {str(d).removeprefix("torch."): d for d in (*_FLOATS, *_WHOLE, torch.bool)}


class StoredTokens:
    """A stand-in for the tokenizer of a loaded trace: it knows the texts that were stored, one token at a time."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return self.texts.get(token_id, f"<{token_id}>")

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        return "".join(self.convert_ids_to_tokens(token_id) for token_id in token_ids)


def to_json(trace: Record) -> str:
    """The whole trace as strict JSON text, token texts included; `from_json` gives the very same numbers back.

    JSON has no infinities and no NaN: they become the texts "-inf", "inf" and "nan"; so do settings it cannot say.
    """
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    content |= {name: getattr(trace, name) for name in _PLAIN} | {"forms": [vars(form) for form in trace.forms]}
    if trace.tokenizer is not None:
        drafts = [token for facts in trace.rounds for token in facts.get("draft_ids", [])]
        ids = sorted({*trace.prompt_ids, *trace.recorded_ids, *trace.candidates.flatten().tolist(), *drafts})
        content["tokens"] = dict(zip(map(str, ids), token_texts(trace.tokenizer, ids)))
    content |= {name: _pack(getattr(trace, name)) for name in TENSORS}
    content |= {
        name: {key: _pack(value) for key, value in getattr(trace, name).items()} for name in (*NAMED, "details")
    }
    return json.dumps(finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def from_json(make: type[Record], text: str, *, tokenizer: Any = None, max_bytes: int = MAX_BYTES) -> Record:
    """A trace from `to_json`'s text; without a tokenizer it shows the token texts stored in it.

    Raises ValueError for text that is no trace, for one of a newer format, one whose fields do not fit together, and
    one longer than max_bytes: reading can take some twenty times the length in memory.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"text is a {type(text).__name__}: pass what to_json returned, or use load for a file.")
    if len(text) > check_count(max_bytes, "max_bytes", high=2**40):
        raise ValueError(f"text is longer than max_bytes={max_bytes}: pass more if you trust where it is from.")
    if tokenizer is not None:
        check_tokenizer(tokenizer, needs=("decode", "convert_ids_to_tokens"))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"text is not JSON ({error}): pass what to_json returned, or use load for a file.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"text is JSON but not a trace: its format must be {FORMAT!r}, as to_json writes it.")
    if content.get("version") != VERSION:
        raise ValueError(f"version is {content.get('version')!r:.60}: this cdlearn reads version {VERSION}; update it.")
    try:
        fields = {name: content[name] for name in _PLAIN} | _tensors(content)
        fields["forms"] = tuple(Form(**form) for form in content["forms"])
        if tokenizer is None and "tokens" in content:
            texts = content["tokens"].items()
            tokenizer = StoredTokens({int(token): check_text(text, "tokens") for token, text in texts})
        trace = make(**fields, tokenizer=tokenizer)
        _check_record(trace)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"text is a damaged trace ({type(error).__name__}: {error}): write it again.") from None
    return trace


def save(trace: Record, path: str | Path) -> None:
    """Write `to_json()` to a file, compressed if its name ends in .gz."""
    data, path = to_json(trace).encode(), check_path(path)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def load(make: type[Record], path: str | Path, *, tokenizer: Any = None, max_bytes: int = MAX_BYTES) -> Record:
    """Read what `save` wrote. Raises OSError for the file, ValueError for its content; max_bytes as in `from_json`."""
    path, room = check_path(path), check_count(max_bytes, "max_bytes", high=2**40) + 1
    if path.exists() and not path.is_file():
        raise ValueError(f"path is {str(path)!r}, which is a folder or a device: pass a file of `save`.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(room)  # a small file may hold gigabytes of zeros
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"path is {str(path)!r}, which is not a trace ({error}): pass a file of `save`.") from None
    return from_json(make, text, tokenizer=tokenizer, max_bytes=max_bytes)


def _pack(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and the flat values; float32 in nine digits, which are enough to get every bit back."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _DTYPES:  # an unusual dtype from somebody's own source
        dtype = "float64" if tensor.is_floating_point() else "int64"
        tensor = tensor.to(_DTYPES[dtype])
    values = tensor.flatten().tolist()
    if dtype == "float32":
        values = [float(f"{value:.9g}") for value in values]
    return {"dtype": dtype, "shape": list(tensor.shape), "values": values}


def _tensors(content: dict[str, Any]) -> dict[str, Any]:
    """All tensors of a trace, each of the shape that it must have."""
    steps, width = content["candidates"]["shape"]
    found: dict[str, Any] = {"score": _unpack(content["score"], (steps, width))}
    found |= {"candidates": _unpack(content["candidates"], (steps, width), _WHOLE)}
    found |= {"rank": _unpack(content["rank"], (steps,), _WHOLE), "parts": {}, "details": {}}
    for name, part in content["parts"].items():
        found["parts"][name] = _unpack(part, (steps, *part["shape"][1:-1], width))
    for name, values in content["details"].items():
        found["details"][name] = _unpack(values, (steps, *values["shape"][1:]), (*_DTYPES.values(),))
    for field in NAMED[1:]:
        dtypes, parts = _WHOLE if field == "ranks" else _FLOATS, found["parts"]
        stored = content[field].items()
        found[field] = {name: _unpack(values, parts[name].shape[:-1], dtypes) for name, values in stored}
    return found


def _unpack(stored: dict[str, Any], shape: Sequence[int], dtypes: tuple[torch.dtype, ...] = _FLOATS) -> Tensor:
    """A tensor that must be of this shape and one of these dtypes."""
    dtype, values = _DTYPES[stored["dtype"]], stored["values"]
    kinds = {int, float, str} if dtype in _FLOATS else {bool if dtype == torch.bool else int}
    right = dtype in dtypes and list(shape) == stored["shape"] and {*map(type, values)} <= kinds
    if not right or len(values) != math.prod(shape):
        raise ValueError(f"a tensor must be {list(shape)} {' or '.join(map(str, dtypes))}")
    values = [float(value) for value in values] if dtype in _FLOATS else values
    return torch.tensor(values, dtype=dtype).reshape(shape)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the texts "nan", "inf" and "-inf", which float() reads."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_record(trace: Record) -> None:
    """Raise an error where fields do not fit together: all that methods, pages and widgets of a trace rely on."""
    for field in ("settings", "rounds", *NAMED, "details"):
        _check_plain(getattr(trace, field), field)
    for rule, holds in _rules(trace):
        if not holds:
            raise ValueError(rule)


def _check_plain(value: Any, name: str, levels: int = 4) -> None:
    """Raise an error for JSON of many levels, and for texts that cannot be written."""
    if isinstance(value, str):
        check_text(value, name)
    elif isinstance(value, (dict, list)):
        if not levels:
            raise ValueError(f"{name} has too many levels")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_plain(item, name, levels - 1)


def _rules(trace: Record) -> Iterator[tuple[str, bool]]:
    """What must be so, and whether it is; each relies on those before it."""
    (steps, width), parts, settings, forms = trace.candidates.shape, trace.parts, trace.settings, trace.forms
    yield "candidates, parts and details must be there together", (width > 1, "expert" in parts) == (steps > 0,) * 2
    yield "without positions there are no details", steps > 0 or not (parts or trace.details)
    vocab = check_count(trace.vocab_size, "vocab_size", high=_MOST_TOKENS) if steps else _MOST_TOKENS
    drafts = [token for facts in trace.rounds for token in (*facts["draft_ids"], facts["next_id"]) if token is not None]
    texts = [*trace.prompt_ids, *trace.recorded_ids, *drafts, *trace.candidates.flatten().tolist()]
    yield "token ids must be in the vocabulary", all(0 <= token < vocab for token in check_ids(texts, "token ids"))
    yield "recorded must have a token for every position", len(trace.recorded_ids) == steps
    for name, part in parts.items():
        right = part.dim() < 3 + (name not in ("expert", "amateur")) and bool(trace.normalisers[name].isfinite().all())
        yield (
            f"parts {name} must be [P, N + 1] or [P, L, N + 1] numbers below +inf",
            right and bool((part < math.inf).all()),
        )
    yield "score must hold neither NaN nor +inf", bool((trace.score < math.inf).all())
    best, expert = trace.candidates[:, :-1].sort(dim=1).values, parts.get("expert", trace.score)[:, :-1]
    falls = not (best[:, 1:] == best[:, :-1]).any() and (expert[:, 1:] <= expert[:, :-1]).all()
    yield "candidates must differ, the expert's best first", bool(falls and expert[:, :1].isfinite().all())
    for name in ("accept_probability", "premature_layer"):
        yield f"{name} must be [P]", trace.details.get(name, trace.rank).dim() == 1

    names = ("alpha", "top_k", "strength", "beta", "amateur_temperature")
    numbers = {name: settings[name] for name in names if name in settings}
    check_contrast(**numbers)
    check_number(settings.get("repetition_penalty", 1.0), "repetition_penalty", low=1e-6, high=1e6)
    lacks = numbers.get("alpha") == 0 or None in (numbers.get("strength", 1), numbers.get("beta", 1))
    yield "alpha, strength and beta must be numbers that a source has", not lacks
    yield "method must be a text", isinstance(settings.get("method", ""), str)
    for form in forms:
        for name, weight in (*form.over.items(), *form.against.items()):
            number = type(weight) in (int, float) and abs(weight) <= 1e6
            yield f"forms weigh {name}, which must be a part", number and (not parts or parts[name].dim() == 2)
        words = form.knob in (None, "strength", "beta") and isinstance(form.tempered, (str, type(None)))
        yield "forms must be as `Form` has them", words and {form.share, form.raw} <= {True, False, None}
    if ("layers" in settings and "layer_weights" not in trace.details) or ("layers" in parts and forms):
        layers = check_ids(settings["layers"], "layers")
        yield "layers must be layers, each once", len({*layers}) == len(layers) and all(0 <= k < 2**16 for k in layers)
        if parts:
            scored = [getattr(trace, field)["layers"].shape[1] for field in NAMED]
            yield "divergences must be [P, L]", {*scored, *trace.details["divergences"].shape[1:]} == {len(layers)}
            yield "premature_layer must be of the layers", {*trace.details["premature_layer"].tolist()} <= {*layers}

    for facts in trace.rounds:
        size, accepted = len(facts["draft_ids"]), check_count(facts["accepted"], "accepted", low=0)
        for name in ("round", "position"):
            check_count(facts[name], name, low=0, high=2**31)
        kind = None if facts["next_id"] is None else "bonus" if accepted == size else "residual"
        yield f"next_kind must be {kind}", facts["next_kind"] == kind and accepted <= size
        for name in ("p", "q", "u", "accept_probability", "total_variation"):
            values = [0.0] * size if name == "u" and facts[name] is None else facts[name]
            yield f"{name} must be {size} numbers", len(values) == size and {*map(type, values)} <= {float}
