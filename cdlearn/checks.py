"""What every module checks its arguments with: errors that name the argument, the value, and what to do."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import torch
from torch import Tensor

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what tokenizers decode half a character to


class NonFiniteError(ValueError):
    """Logits or scores with NaN, with +inf, or with nothing but -inf."""


def is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def short(value: Any) -> str:
    """A value as a message shows it: its repr, or its kind where that is long or an address."""
    text = repr(value)
    return text if len(text) <= 60 and " at 0x" not in text else f"a {type(value).__name__}"


def watched() -> bool:
    """Whether somebody looks: a terminal or a notebook."""
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and ipython.get_ipython() is not None
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


def check_count(value: Any, name: str, *, low: int = 1, high: int | None = None) -> int:
    """A whole number from `low` to `high` (None: no end)."""
    if not is_int(value):
        raise TypeError(f"{name} is {short(value)}: pass a whole number.")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}: pass {f'at least {low}' if high is None else f'{low} to {high}'}.")
    return int(value)


def check_number(value: Any, name: str, *, low: float = 0.0, high: float = math.inf, open_low: bool = False) -> float:
    """A finite number from `low` (open_low: above it) to `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is {short(value)}: pass a number.")
    if not math.isfinite(value) or value < low or value > high or (open_low and value == low):
        bounds = f"above {low:g}" if open_low else f"at least {low:g}"
        bounds += f" and at most {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} is {value!r}: pass a number {bounds}.")
    return float(value)


def check_alpha(alpha: Any) -> float | None:
    """The plausibility mask's alpha: a ratio in (0, 1]; 0 and None are no mask, which is None."""
    return None if alpha is None else check_number(alpha, "alpha", high=1.0) or None


def check_word(value: Any, name: str, words: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in words:
        raise ValueError(f"{name} is {short(value)}: pass {' or '.join(repr(word) for word in words)}.")


def check_contrast(
    alpha: Any = None, top_k: Any = 0, strength: Any = None, beta: Any = None, amateur_temperature: Any = 1.0
) -> dict[str, Any]:
    """The numbers of a contrast in the one of its two forms that was asked for (neither: strength 1)."""
    if strength is not None and beta is not None:
        raise ValueError(f"strength={strength!r} and beta={beta!r} were both given: they are two forms, choose one.")
    checked: dict[str, Any] = {"alpha": check_alpha(alpha), "top_k": check_count(top_k, "top_k", low=0)}
    tau = check_number(amateur_temperature, "amateur_temperature", open_low=True)
    if beta is None:
        strength = check_number(1.0 if strength is None else strength, "strength", high=1e6)
        return checked | {"strength": strength, "amateur_temperature": tau}
    if tau != 1:
        raise ValueError("amateur_temperature is not part of the beta form: use strength= with it, or leave it at 1.")
    return checked | {"beta": check_number(beta, "beta", high=1e6)}


def check_sampling(
    temperature: Any = 1.0, top_k: Any = 0, top_p: Any = 1.0, min_p: Any = 0.0
) -> tuple[float, int, float, float]:
    """The numbers of a sampler."""
    temperature, top_k = check_number(temperature, "temperature"), check_count(top_k, "top_k", low=0)
    top_p = check_number(top_p, "top_p", high=1.0, open_low=True)
    return temperature, top_k, top_p, check_number(min_p, "min_p", high=1.0)


def check_tokenizer(value: Any, name: str = "tokenizer") -> None:
    """Raise TypeError for what cannot turn text to ids and back."""
    if not hasattr(value, "decode") or not callable(value):
        raise TypeError(f"{name} is {short(value)}: pass a transformers tokenizer, a pair's `.tokenizer` for instance.")


def check_logits(logits: Any, name: str) -> Tensor:
    """Logits [..., V], those in half precision as float32."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} is a {type(logits).__name__}: pass a torch tensor of shape [..., V].")
    if not logits.is_floating_point():
        raise TypeError(f"{name} has dtype {logits.dtype}: pass logits in a floating dtype, not token ids or a mask.")
    if logits.dim() == 0 or logits.numel() == 0:
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
