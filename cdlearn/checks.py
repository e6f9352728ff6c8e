"""What every module checks its arguments with: errors that name the argument, the value, and what to do."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what tokenizers decode half a character to
MOST_ROWS = 2**16  # beams, or continuations of one prompt


class NonFiniteError(ValueError):
    """Logits or scores with NaN, with +inf, or with nothing but -inf."""


def is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def short(value: Any) -> str:
    """A value as a message shows it: its repr, or its kind where that is long, an address or an error."""
    try:
        text = repr(value)
    except Exception:  # a list inside itself a thousand times, a number of five thousand digits
        text = ""
    return text if 0 < len(text) <= 60 and " at 0x" not in text else f"a {type(value).__name__}"


def watched() -> bool:
    """Whether somebody looks: a terminal or a notebook."""
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and ipython.get_ipython() is not None
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def check_flag(value: Any, name: str, *, none: bool = False) -> None:
    """True or False (none: or None)."""
    if not isinstance(value, (bool, np.bool_)) and not (none and value is None):
        raise TypeError(f"{name} is {short(value)}: pass {'True, False or None' if none else 'True or False'}.")


def check_count(value: Any, name: str, *, low: int = 1, high: int | None = None) -> int:
    """A whole number from `low` to `high` (None: no end)."""
    if not is_int(value):
        raise TypeError(f"{name} is {short(value)}: pass a whole number.")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} is {short(value)}: pass {bounds}.")
    return int(value)


def check_number(value: Any, name: str, *, low: float = 0.0, high: float = math.inf, open_low: bool = False) -> float:
    """A finite number from `low` (open_low: above it) to `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {short(value)}: pass a number.")
    number = math.inf if is_int(value) and abs(int(value)) > 2**1000 else float(value)
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        bounds = f"above {low:g}" if open_low else f"at least {low:g}"
        bounds += f" and at most {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} is {short(value)}: pass a number {bounds}.")
    return number


def check_alpha(alpha: Any) -> float | None:
    """The plausibility mask's alpha: a ratio in (0, 1]; 0 and None are no mask, which is None."""
    return None if alpha is None else check_number(alpha, "alpha", high=1.0) or None


def check_word(value: Any, name: str, words: tuple[str, ...]) -> None:
    """One of a few words."""
    if not isinstance(value, str) or value not in words:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} is {short(value)}: pass {' or '.join(repr(word) for word in words)}.")


def check_text(value: Any, name: str) -> str:
    """A text that a tokenizer can read: no surrogates, which are halves of characters."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {short(value)}: pass a text.")
    if value != value.encode(errors="replace").decode():
        raise ValueError(f"{name} holds a surrogate, half a character: read the text with errors='replace'.")
    return value


def check_path(value: Any, name: str = "path") -> Path:
    """The path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in os.fspath(value):
        raise TypeError(f"{name} is {short(value)}: pass the path of a file.")
    return Path(check_text(os.fspath(value), name))


def check_list(value: Any, name: str, of: str) -> list[Any]:
    """The entries of a list, tuple, array, column or iterator; a text, a dict or a set is none."""
    try:
        return list(None if isinstance(value, (str, bytes, Mapping, Set)) else value)
    except TypeError:
        raise TypeError(f"{name} is {short(value)}: pass a list of {of}.") from None


def check_ids(value: Any, name: str, what: str = "token ids, a list of whole numbers") -> list[int]:
    """Token ids in a list, tuple, range, array or tensor of one dimension. what: what to pass, in words."""
    ids = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(ids, (list, tuple, range)) or not all(map(is_int, ids)):
        raise TypeError(f"{name} is {short(value)}: pass {what}.")
    ids = list(map(int, ids))
    for token in (min(ids), max(ids)) if ids else ():
        if not -(2**63) <= token < 2**63:
            raise ValueError(f"a token of {name} is {short(token)}: pass token ids, which have 64 bits at most.")
    return ids


def check_mask(value: Any, name: str, ids: Tensor | None = None, ids_name: str = "") -> Tensor:
    """A mask as bool on the CPU, from a tensor, an array or lists of 0 and 1; of the shape [B, T] of ids, if given."""
    try:
        mask = torch.as_tensor(value).to("cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} is {short(value)}: pass 0 and 1 in a tensor or in lists.") from None
    mask = mask[None] if mask.dim() == 1 else mask
    if mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"{name} must be [B, T] of 0 and 1: pass 1 for every token that counts, else 0.")
    if ids is not None:
        check_shapes(mask, ids, name, ids_name)
    return mask.bool()


def check_loop(
    max_new_tokens: Any, num_return_sequences: Any, repetition_penalty: Any, seed: Any, trace: Any, progress: Any
) -> tuple[int, int, float, int]:
    """What every loop takes: its numbers."""
    check_flag(trace, "trace")
    check_flag(progress, "progress", none=True)
    return (
        check_count(max_new_tokens, "max_new_tokens"),
        check_count(num_return_sequences, "num_return_sequences", high=MOST_ROWS),
        check_number(repetition_penalty, "repetition_penalty", low=1e-6, high=1e6),  # beyond, scores would overflow
        check_count(seed, "seed", low=0, high=2**63 - 1),
    )


def check_contrast(
    alpha: Any = None, top_k: Any = 0, strength: Any = None, beta: Any = None, amateur_temperature: Any = 1.0
) -> dict[str, Any]:
    """The numbers of a contrast in the one of its two forms that was asked for (neither: strength 1)."""
    if strength is not None and beta is not None:
        both = f"strength={short(strength)} and beta={short(beta)}"
        raise ValueError(f"{both} were both given: they are two forms, choose one.")
    checked: dict[str, Any] = {"alpha": check_alpha(alpha), "top_k": check_count(top_k, "top_k", low=0)}
    tau = check_number(amateur_temperature, "amateur_temperature", open_low=True)
    if beta is None:
        strength = check_number(1.0 if strength is None else strength, "strength", high=1e6)
        return checked | {"strength": strength, "amateur_temperature": tau}
    if tau != 1:
        raise ValueError("amateur_temperature is not part of the beta form: use strength= with it, or leave it at 1.")
    return checked | {"beta": check_number(beta, "beta", high=1e6)}


def check_sampling(
    temperature: Any = 1.0, top_k: Any = 0, top_p: Any = 1.0, min_p: Any = 0.0, top_n_sigma: Any = 0.0
) -> tuple[float, int, float, float, float]:
    """The numbers of a sampler."""
    temperature, top_k = check_number(temperature, "temperature"), check_count(top_k, "top_k", low=0)
    top_p = check_number(top_p, "top_p", high=1.0, open_low=True)
    min_p, sigmas = check_number(min_p, "min_p", high=1.0), check_number(top_n_sigma, "top_n_sigma", high=1e6)
    return temperature, top_k, top_p, min_p, sigmas


def check_tokenizer(value: Any, name: str = "tokenizer", needs: tuple[str, ...] = ("decode", "__call__")) -> None:
    """Raise TypeError for what cannot turn text to ids and back."""
    if not all(hasattr(value, need) for need in needs):
        raise TypeError(f"{name} is {short(value)}: pass a transformers tokenizer, a pair's `.tokenizer` for instance.")


def check_tensor(value: Any, name: str, shape: str, *, ids: bool = False) -> Tensor:
    """A tensor of floats, or of token ids; without a dimension only where the shape is [...]."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a torch tensor of shape {shape}.")
    if value.is_floating_point() == ids or value.is_complex() or (ids and value.dtype == torch.bool):
        right = "token ids in a dtype of whole numbers" if ids else "a floating dtype, not token ids or a mask"
        raise TypeError(f"{name} has dtype {value.dtype}: pass {right}.")
    if shape != "[...]" and (value.dim() == 0 or ("V" in shape and value.shape[-1] == 0)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}: pass {shape}.")
    return value


def check_logits(logits: Any, name: str) -> Tensor:
    """Logits [..., V], those in half precision as float32."""
    logits = check_tensor(logits, name, "[..., V]")
    if logits.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}: the last dimension must be the vocabulary.")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_shapes(first: Tensor, second: Tensor, first_name: str, second_name: str, advice: str = "") -> None:
    """Two tensors of one shape."""
    if first.shape != second.shape:
        shapes = f"{first_name} has shape {tuple(first.shape)} and {second_name} {tuple(second.shape)}"
        raise ValueError(f"{shapes}: they must be equal{advice}.")


def check_two(first: Any, second: Any, first_name: str, second_name: str) -> tuple[Tensor, Tensor]:
    """Two tensors of logits of one shape."""
    first, second = check_logits(first, first_name), check_logits(second, second_name)
    check_shapes(first, second, first_name, second_name, "; trim both to the vocabulary they share")
    return first, second


def check_probs(p: Any, q: Any) -> tuple[Tensor, Tensor]:
    """Two tensors of probabilities of one shape."""
    p, q = check_two(p, q, "p", "q")
    for name, probs in (("p", p), ("q", q)):
        low, high = torch.stack(probs.aminmax()).tolist()  # one wait for the device, not two
        if not (low >= 0 and high <= 1 + 1e-4):
            raise ValueError(f"{name} holds numbers outside 0 to 1: pass probabilities (sampling_probs), not logits.")
    return p, q


def row_max(logits: Tensor, name: str, check: bool = True) -> Tensor:
    """The largest logit of every row, [..., 1]. NaN spreads through a maximum, so this one check finds all of it."""
    check_flag(check, "check")
    best = logits.amax(dim=-1, keepdim=True)
    if check and not math.isfinite(best.sum().item()) and not bool(best.isfinite().all()):
        where = tuple((~best.isfinite()).nonzero()[0, :-1].tolist())
        bad = best[where].item()
        what = "NaN" if math.isnan(bad) else "+inf" if bad > 0 else "nothing but -inf"
        row = f" in row {', '.join(map(str, where))}" if where else ""
        raise NonFiniteError(
            f"{name} holds {what}{row}: check the model and its dtype, and that a mask leaves a token."
        )
    return best


def check_finite(check: Any, **rows: Tensor) -> None:
    """`row_max` of all these, for its errors alone; check=False looks at none."""
    check_flag(check, "check")
    for name, logits in rows.items() if check else ():
        row_max(logits, name)
