"""What every module checks its arguments with: errors that name the argument, the value, and what to do."""

from __future__ import annotations

import numbers
from typing import Any


def is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and " at 0x" not in text else f"a {type(value).__name__}"


def check_count(value: Any, name: str) -> None:
    """A whole number of at least 1, or an error that names the argument."""
    if not is_int(value):
        raise TypeError(f"{name} is {short(value)}: pass a whole number.")
    if value < 1:
        raise ValueError(f"{name} is {value}: pass at least 1.")


def check_tokenizer(value: Any, name: str = "tokenizer") -> None:
    """Raise TypeError for what cannot turn text to ids and back."""
    if not hasattr(value, "decode") or not callable(value):
        raise TypeError(f"{name} is {short(value)}: pass a transformers tokenizer, a pair's `.tokenizer` for instance.")
