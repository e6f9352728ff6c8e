"""Values: whether two agree, whether one is of the right kind, and how a message shows them: short, three decimals."""

from typing import Any

import torch

TOLERANCE = 1e-4
LONGEST = 300  # characters of one value


def bools(*values: int) -> torch.Tensor:
    """A row of True and False, written with 1 and 0."""
    return torch.tensor(values, dtype=torch.bool)


def rows(*values: torch.Tensor) -> torch.Tensor:
    """Rows [V] put into one batch [B, V]."""
    return torch.stack(values)


def same(a: Any, b: Any, *, tolerance: float = TOLERANCE) -> bool:
    """Whether a value is the expected one: tensors by shape, kind and value (-inf equals -inf), containers by item."""
    a, b = _number(a), _number(b)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or not _fits(a.dtype, b.dtype):
            return False
        pair = (x.detach().cpu().double() for x in (a, b))
        return torch.allclose(*pair, rtol=0.0, atol=tolerance, equal_nan=True)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance=tolerance) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance=tolerance) for key in a)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return isinstance(a, bool) == isinstance(b, bool) and (a == b or abs(a - b) <= tolerance or a != a and b != b)
    if type(a) is not type(b):
        return False
    if type(a).__eq__ is object.__eq__:  # a copied model: it equals nothing but itself, and is no answer
        return True
    try:
        return bool(a == b)
    except Exception:
        return False


def kind(got: Any, expected: Any, item: str = "") -> str:
    """Return a sentence when even the kind of the answer is wrong, else "". Looks into lists and tuples."""
    got = _number(got)
    if got is None and expected is not None:
        return f"{item}: None" if item else "this gives None: a path without `return`, or an `or` after a 0"
    what, where = item or "what you return", f" of {item}" if item else ""
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"{what}: a tensor is asked for, this is {type(got).__name__}"
        if got.shape != expected.shape:
            return f"the shape{where}: {list(expected.shape)} is asked for, this is {list(got.shape)}"
        if not _fits(got.dtype, expected.dtype):
            return f"the kind of numbers{where}: {expected.dtype} is asked for, this is {got.dtype}"
        return ""
    if isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        if isinstance(expected, tuple) and len(got) != len(expected):
            return f"{what}: {len(expected)} things are asked for, these are {len(got)}"
        inside = (kind(x, y, f"item {k}") for k, (x, y) in enumerate(zip(got, expected), start=1) if not same(x, y))
        return next(filter(None, inside), "")
    if isinstance(expected, dict) and isinstance(got, dict):  # a check's note of what the function gave and did
        return next(filter(None, (kind(got[key], value, key) for key, value in expected.items())), "")
    numbers = [isinstance(value, (int, float)) and not isinstance(value, bool) for value in (got, expected)]
    if type(got) is not type(expected) and not all(numbers):
        return f"{what}: {type(expected).__name__} is asked for, this is {type(got).__name__}"
    return ""


def _fits(got: torch.dtype, expected: torch.dtype) -> bool:
    """Truth values only for truth values, no fractions for whole numbers."""
    return got == expected if torch.bool in (got, expected) else got.is_floating_point <= expected.is_floating_point


def _number(value: Any) -> Any:
    """A number of NumPy's as one of Python's, anything else as it is."""
    one = type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if one else value


def show(value: Any) -> str:
    """Return a value in one line of at most 300 characters, the same on every machine."""
    text = _show(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 4] + " ..."


def _show(value: Any) -> str:
    value = _number(value)
    if isinstance(value, torch.Tensor):
        if value.numel() > 60:
            return f"a tensor {list(value.shape)}, first {_show(value.flatten()[:5].tolist())}"
        return _show(value.detach().cpu().tolist())
    if isinstance(value, float):
        return f"{value:.3f}".removeprefix("-") if abs(value) < 5e-4 else f"{value:.3f}"
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_show, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_show(item)}" for key, item in value.items()) + "}"
    if type(value).__repr__ is object.__repr__:  # an address is not the same anywhere else
        return f"a {type(value).__name__}"
    return repr(value)
