"""Text in and text out: prompts to ids, and tokens to text piece by piece."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from cdlearn.checks import BROKEN, check_ids, check_mask, check_tensor, check_text, check_tokenizer, is_int, short
from cdlearn.sources.base import padded


class TextWriter:
    """Turns tokens into text as they come: the pieces it emits, put together, are its `text`.

    A piece waits while it ends in half a character, or in what may become a stop string. A token's text is the
    difference it makes after the tokens before it (the prompt's last ones included), which is right for tokens that
    carry their own space and for those that lose it at the start of a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompt_ids: Sequence[int] = (),
        *,
        stops: Sequence[str] = (),
        emit: Callable[[str], Any] | None = None,
    ) -> None:
        self.tokenizer, self.stops, self.emit = tokenizer, list(stops), emit
        self.text = ""
        self._pending = ""  # decoded, but perhaps the start of a stop string
        self._ends: list[int] = []  # length of the decoded text after each token
        self._stopped = False
        self._prompt_ids = list(prompt_ids)
        self._context = list(prompt_ids)
        self._anchor_at(len(self._context) - 4)

    def push(self, token: int) -> bool:
        """Add a token; True when a stop string is complete."""
        self._context.append(token)
        decoded = self._decode(self._anchor)
        if not decoded.endswith(BROKEN):
            piece, self._done = _added(self._done, decoded), decoded
            self._write(piece)
            if len(self._context) - self._anchor > 24:
                self._anchor_at(len(self._context) - 4)
        self._ends.append(len(self.text) + len(self._pending))
        return self._stopped

    def close(self) -> bool:
        """Write what waited, but never half a character. True when a stop string has been met."""
        if not self._stopped:
            self._write(_added(self._done, self._decode(self._anchor)).rstrip(BROKEN))
        if not self._stopped:
            self._send(self._pending)
        self._pending = ""
        return self._stopped

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text that these tokens would add to the prompt; this writer stays as it is."""
        writer = TextWriter(self.tokenizer, self._prompt_ids)
        for token in tokens:
            writer.push(token)
        writer.close()
        return writer.text

    def tokens_in_text(self) -> int:
        """How many tokens `text` is made of: those wholly after its end do not count, one that straddles it does."""
        return min(bisect_left(self._ends, len(self.text)) + 1, len(self._ends)) if self.text else 0

    def _write(self, piece: str) -> None:
        self._pending += piece
        found = [at for at in (self._pending.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self._stopped = True
            self._send(self._pending[: min(found)])
            return
        # hold back the longest end that could still grow into a stop string
        hold = 0
        for stop in self.stops:
            for size in range(min(len(stop) - 1, len(self._pending)), hold, -1):
                if self._pending.endswith(stop[:size]):
                    hold = size
                    break
        ready = self._pending[: len(self._pending) - hold]
        self._pending = self._pending[len(ready) :]
        self._send(ready)

    def _send(self, piece: str) -> None:
        self.text += piece
        if piece and self.emit is not None:
            self.emit(piece)

    def _decode(self, start: int) -> str:
        return self.tokenizer.decode(
            self._context[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _anchor_at(self, start: int) -> None:
        """Decode from here on, a few tokens back: earlier ones cannot change the text any more."""
        start = max(start, 0)
        decoded = self._decode(start)
        while start > 0 and decoded.startswith(BROKEN):  # inside a character
            start -= 1
            decoded = self._decode(start)
        self._anchor, self._done = start, decoded


def _added(done: str, decoded: str) -> str:
    """What `decoded` adds to `done`, whose last character may have been half of one."""
    return decoded[len(done) if decoded.startswith(done) else len(os.path.commonprefix([done, decoded])) :]


def read_prompt(prompt: Any, attention_mask: Any, tokenizer: Any) -> tuple[Tensor, Tensor, bool]:
    """ids [B, T] and mask [B, T] (bool), padded on the left, and whether the caller gave a single prompt."""
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if isinstance(prompt, Mapping):
        if "input_ids" not in prompt:
            raise TypeError(f"prompt is {short(prompt)}, without input_ids: pass text, or a tokenizer's output.")
        attention_mask = prompt.get("attention_mask") if attention_mask is None else attention_mask
        prompt = prompt["input_ids"]
    if isinstance(prompt, Tensor):
        if check_tensor(prompt, "prompt", "[B, T]", ids=True).dim() > 2:
            raise ValueError(f"prompt has shape {tuple(prompt.shape)}: pass ids [B, T].")
        prompt = prompt[0] if prompt.dim() == 2 and len(prompt) == 1 else prompt
        single, rows = prompt.dim() == 1, prompt.reshape(-1, prompt.shape[-1]).tolist() if prompt.numel() else []
    else:
        single = isinstance(prompt, str)
        single = single or (isinstance(prompt, (list, tuple)) and len(prompt) > 0 and all(map(is_int, prompt)))
        rows = [prompt] if single else prompt
        if not isinstance(rows, (list, tuple)) or not rows:
            raise TypeError(f"prompt is {short(prompt)}: pass text, a list of texts, or token ids [B, T].")
        if all(isinstance(row, str) for row in rows):
            if tokenizer is None:
                raise TypeError("prompt is text but tokenizer is None: pass tokenizer=, or token ids as the prompt.")
            if attention_mask is not None:
                raise ValueError("attention_mask was given with a text prompt: it belongs to prompts of token ids.")
            rows = [_encode(text, tokenizer) for text in rows]
        else:
            rows = [check_ids(row, f"prompt[{k}]") for k, row in enumerate(rows)]
    ids, mask = padded(rows)
    if attention_mask is not None:
        mask = mask & check_mask(attention_mask, "attention_mask", ids, "the prompt")
    if ids.numel() == 0 or not bool(mask.any(dim=1).all()):
        raise ValueError("prompt has a row without a token: start it with the tokenizer's BOS or any other token.")
    if not bool(mask[:, -1].all()):
        raise ValueError("attention_mask ends in 0: pad prompts on the left, so that every row's last token is real.")
    return ids, mask, single


def _encode(text: str, tokenizer: Any) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    ids = list(tokenizer(check_text(text, "prompt"))["input_ids"]) or ([] if bos is None else [bos])
    if not ids:
        raise ValueError("prompt is empty and the tokenizer has no BOS token to start from: give at least one word.")
    return ids


def read_stops(stop: Any, tokenizer: Any) -> list[str]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(text, str) for text in stops):
        raise TypeError(f"stop is {short(stop)}: pass a string or a list of strings.")
    if any(text == "" for text in stops):
        raise ValueError("stop holds an empty string, which every text contains: leave it out.")
    if stops and tokenizer is None:
        raise TypeError("stop strings need text: pass tokenizer=.")
    return list(stops)
