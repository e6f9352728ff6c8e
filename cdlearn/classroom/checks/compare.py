"""Whether two values agree, and whether an answer is at least of the right kind."""

from __future__ import annotations

from typing import Any

import torch

TOLERANCE = 1e-4


def same(a: Any, b: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Whether two values agree: tensors by shape, kind and value (-inf equals -inf), containers item by item."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or (a.dtype == torch.bool) != (b.dtype == torch.bool):
            return False
        a, b = a.detach().cpu().double(), b.detach().cpu().double()
        return torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance=tolerance) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance=tolerance) for key in a)
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or abs(a - b) <= tolerance
    if type(a) is not type(b):
        return False
    if type(a).__eq__ is object.__eq__:  # a copied model: it equals nothing but itself, and is no answer
        return True
    try:
        return bool(a == b)
    except Exception:
        return False


def kind(got: Any, expected: Any, what: str = "what you return") -> str:
    """Return a sentence when even the kind of the answer is wrong, else "". Looks into lists and tuples."""
    if got is None and expected is not None:
        return "the last line: a function without return gives None" if what == "what you return" else f"{what}: None"
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"{what}: a tensor is asked for, this is {type(got).__name__}"
        where = "" if what == "what you return" else f" of {what}"
        if got.shape != expected.shape:
            return f"the shape{where}: {list(expected.shape)} is asked for, this is {list(got.shape)}"
        if (got.dtype == torch.bool) != (expected.dtype == torch.bool):
            return f"the kind of numbers{where}: {expected.dtype} is asked for, this is {got.dtype}"
        return ""
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        if isinstance(expected, tuple) and len(got) != len(expected):
            return f"{what}: {len(expected)} things are asked for, these are {len(got)}"
        inside = (kind(x, y, f"item {k}") for k, (x, y) in enumerate(zip(got, expected), start=1) if not same(x, y))
        return next(filter(None, inside), "")
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (got, expected)]
    if type(got) is not type(expected) and not all(numbers):
        return f"{what}: {type(expected).__name__} is asked for, this is {type(got).__name__}"
    return ""
