"""How an inline exercise's check calls the student's function, compares its answers, and speaks: in one sentence."""

import functools
import inspect
import math
import traceback

import torch


class Wrong(Exception):
    """A sentence for the student."""


def exercise(check):
    """A check that may raise `Wrong`, as one that returns a sentence."""

    @functools.wraps(check)
    def told(answer):
        try:
            return check(answer) or "Right."
        except Wrong as wrong:
            return str(wrong)

    return told


def called(function, *args):
    """What a student's function returns, for copies of tensors. An error is told with the student's own line."""
    name = getattr(function, "__name__", repr(function))
    if not callable(function):
        raise Wrong(f"Not yet: the check takes the function itself, not {name}.")
    try:
        with torch.inference_mode():
            value = function(*(x.clone() if isinstance(x, torch.Tensor) else x for x in args))
    except Exception as error:
        file = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", None)
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = f"in line {own[-1].lineno}, {own[-1].line!r}" if own else "before its first line: keep its arguments"
        words = " ".join(str(error).split())[:200]
        raise Wrong(f"{name} stops {line}. {type(error).__name__}: {words}") from None
    if value is None:
        raise Wrong(f"Not yet: {name} returns None. Fill it in, run its cell, then this one.")
    return value


def named(function, case):
    """The arguments of a case with their names: "beta 0.5, temperature 1.0"."""
    return ", ".join(f"{name} {value}" for name, value in zip(inspect.signature(function).parameters, case))


def kind(value, right, what="The answer"):
    """The value, if it is of the right kind and shape: a tensor, or a tuple or list of these and of numbers."""
    if isinstance(right, torch.Tensor):
        if not isinstance(value, torch.Tensor):
            raise Wrong(f"{what} should be a tensor, not {type(value).__name__}.")
        if value.shape != right.shape:
            places = " Count dimensions from the end: -1 is the vocabulary." if right.ndim > 1 else ""
            raise Wrong(f"{what} has the shape {tuple(value.shape)}, expected {tuple(right.shape)}.{places}")
        if value.isnan().any():
            raise Wrong("There is a NaN: it comes from 0 times infinity, or from -inf minus -inf.")
    elif isinstance(right, float):
        if isinstance(value, torch.Tensor) or not isinstance(value, int | float):
            raise Wrong(f"{what} should be a float, not {value!r}; .item() makes one of a tensor.")
    elif not isinstance(value, tuple | list) or len(value) != len(right):
        raise Wrong(f"{what} should be a {type(right).__name__} of {len(right)} values.")
    else:
        return tuple(kind(x, y, f"Value {k} of the answer") for k, (x, y) in enumerate(zip(value, right)))
    return value


def alike(x, y):
    """Equal, and scores up to one constant per row: no choice in a row can see it."""
    if isinstance(x, tuple | list):
        return all(map(alike, x, y))
    if not isinstance(x, torch.Tensor):
        return abs(x - y) < 1e-3
    if not y.is_floating_point() or x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
        return torch.equal(x, y)
    apart = (x - y).where(x.isfinite(), math.nan)
    return bool((apart - apart.nanmean(-1, True)).nan_to_num().abs().max() < 1e-3)


def explained(function, cases, right, mistakes, otherwise):
    """Raises the mistake that gives the student's answers, if they are wrong, or what `otherwise` says of the first."""
    given = [kind(called(function, *case), right(*case)) for case in cases]
    off = [k for k, case in enumerate(cases) if not alike(given[k], right(*case))]
    # a row of scores or choices says enough by itself, where two numbers do not
    for some in (range(len(cases)), off[:1] if isinstance(given[0], torch.Tensor) else []) if off else ():
        for says, mistake in mistakes.items() if some else ():
            if all(alike(given[k], mistake(*cases[k])) for k in some):
                raise Wrong(says)
    if off:
        raise Wrong(otherwise(given[off[0]], *cases[off[0]]))
