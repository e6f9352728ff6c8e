"""Traces as strict JSON: readable by any program, the numbers exact, nothing that runs when it is loaded."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdlearn.trace.record import CONTRAST, NAMED, TENSORS, Form, Record
from cdlearn.trace.tables import token_texts

FORMAT, VERSION = "cdlearn trace", 1
_PLAIN = ("prompt_ids", "settings", "vocab_size", "rounds", "recorded")
_DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.int64, torch.bool)}


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
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def from_json(make: type[Record], text: str, *, tokenizer: Any = None) -> Record:
    """A trace from `to_json`'s text; without a tokenizer it shows the token texts stored in it.

    Raises ValueError for text that is no trace, or one of a newer format.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"text is a {type(text).__name__}: pass what to_json returned, or use load for a file.")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"text is not JSON ({error}): pass what to_json returned, or use load for a file.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"text is JSON but not a trace: its format must be {FORMAT!r}, as to_json writes it.")
    if content.get("version") != VERSION:
        raise ValueError(f"version is {content.get('version')!r}: this cdlearn reads version {VERSION}; update it.")
    try:
        fields = {name: content[name] for name in _PLAIN} | {name: _unpack(content[name]) for name in TENSORS}
        for name in (*NAMED, "details"):
            fields[name] = {key: _unpack(value) for key, value in content[name].items()}
        known = content["forms"] if "forms" in content else _forms_of(content)
        fields["forms"] = tuple(Form(**form) for form in known)
        if tokenizer is None and "tokens" in content:
            tokenizer = StoredTokens({int(token_id): text for token_id, text in content["tokens"].items()})
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"text is a damaged trace ({type(error).__name__}: {error}): write it again.") from None
    return make(**fields, tokenizer=tokenizer)


def _forms_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The forms of a trace that was written before traces had any: from the numbers among its settings."""
    settings, contrast = content["settings"], {"over": {"expert": 1.0}, "against": {"amateur": 1.0}}
    if "weights" in settings:
        names = [name for name in content["parts"] if name != "layers"]
        return [{"over": dict(zip(names, settings["weights"]))}]
    if "divergence" in settings:
        return [contrast | {"raw": None if settings["divergence"] == "reference" else False}]
    return [vars(form) for form in CONTRAST] if {"strength", "beta"} & settings.keys() else []


def save(trace: Record, path: str | Path) -> None:
    """Write `to_json()` to a file, compressed if its name ends in .gz."""
    data = to_json(trace).encode()
    Path(path).write_bytes(gzip.compress(data) if str(path).endswith(".gz") else data)


def load(make: type[Record], path: str | Path, *, tokenizer: Any = None) -> Record:
    """Read what `save` wrote. Raises OSError for the file, ValueError for its content."""
    data = Path(path).read_bytes()
    try:
        text = (gzip.decompress(data) if str(path).endswith(".gz") else data).decode()
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path is {str(path)!r}, which is not a trace ({error}): pass a file of `save`.") from None
    return from_json(make, text, tokenizer=tokenizer)


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


def _unpack(stored: dict[str, Any]) -> Tensor:
    dtype = _DTYPES[stored["dtype"]]
    values = [float(value) for value in stored["values"]] if dtype.is_floating_point else stored["values"]
    return torch.tensor(values, dtype=dtype).reshape(stored["shape"])


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the texts "nan", "inf" and "-inf", which float() reads."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
