"""Values as a message shows them: short rows, three decimals, the same on every machine."""

from __future__ import annotations

from typing import Any

import torch

LONGEST = 300  # characters of one value


def show(value: Any) -> str:
    """Return a value in one line of at most 300 characters."""
    text = _show(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 4] + " ..."


def call_text(name: str, args: tuple, options: dict) -> str:
    """Return a call as one would type it: `my_scores([0.0, 1.0], strength=0.5)`."""
    parts = [show(arg) for arg in args] + [f"{key}={show(value)}" for key, value in options.items()]
    return f"{name}({', '.join(parts)})"


def _show(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.numel() > 60:
            return f"a tensor {list(value.shape)}, first {_show(value.flatten()[:5].tolist())}"
        return _show(value.detach().cpu().tolist())
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.3f}".removeprefix("-") if abs(value) < 5e-4 else f"{value:.3f}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_show, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_show, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    if type(value).__repr__ is object.__repr__:  # an address is not the same anywhere else
        return f"a {type(value).__name__}"
    return repr(value)
