"""A trace as tables and text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from cdlearn.checks import BROKEN, check_count
from cdlearn.scores import NEVER
from cdlearn.trace.record import Record
from cdlearn.trace.rescore import truncated

if TYPE_CHECKING:
    import pandas as pd


def to_frame(trace: Record, *, top: int | None = None) -> pd.DataFrame:
    """A tidy table, one row per position and candidate; `top` keeps the expert's best few and the chosen token.

    Columns: position (0 is the first new token), rank (1 is the expert's best), token_id, token (None without a
    tokenizer), expert_logit, amateur_logit, expert_prob, amateur_prob (NaN without an amateur), score, kept,
    chosen, then the same pair of columns for any other part, and one column per detail with one value per position.
    """
    import pandas as pd

    positions, width = trace.candidates.shape
    chosen = trace.candidates == trace.candidates[:, -1:]  # (P, N + 1)
    ranks = torch.arange(1, width + 1).repeat(positions, 1)
    ranks[:, -1] = trace.rank
    shown = torch.ones_like(chosen)
    shown[:, -1] = ~chosen[:, :-1].any(dim=1)  # the extra column matters only for a token outside the candidates
    if top is not None:
        shown &= (ranks <= min(check_count(top, "top"), width)) | chosen
    position = torch.arange(positions)[:, None].expand_as(shown)[shown]
    token_ids = trace.candidates[shown].tolist()
    columns: dict[str, Any] = {
        "position": position.numpy(),
        "rank": ranks[shown].numpy(),
        "token_id": token_ids,
        "token": token_texts(trace.tokenizer, token_ids),
    }
    names = ["expert", "amateur"]
    names += [name for name, part in trace.parts.items() if name not in names and part.dim() == 2]
    nothing = torch.full(trace.score.shape, float("nan"))
    logits = {name: trace.parts.get(name, nothing) for name in names}
    probs = {
        name: (logits[name] - trace.normalisers[name][:, None]).exp() if name in trace.parts else nothing
        for name in names
    }
    columns |= {f"{name}_logit": logits[name][shown].numpy() for name in names[:2]}
    columns |= {f"{name}_prob": probs[name][shown].numpy() for name in names[:2]}
    columns["score"] = trace.score[shown].numpy()
    columns["kept"] = (trace.score > NEVER)[shown].numpy()
    columns["chosen"] = chosen[shown].numpy()
    columns |= {f"{name}_logit": logits[name][shown].numpy() for name in names[2:]}
    columns |= {f"{name}_prob": probs[name][shown].numpy() for name in names[2:]}
    columns |= {name: values[position].numpy() for name, values in trace.details.items() if values.dim() == 1}
    return pd.DataFrame(columns)


def step_frame(trace: Record) -> pd.DataFrame:
    """A tidy table, one row per position: what `to_frame` cannot say of a single candidate.

    Columns: position, token_id, token, then for "expert", "amateur", ... `expert_surprisal` (of the chosen token)
    and `expert_entropy` in nats, `expert_rank` (of the chosen token) and `amateur_tv` (total-variation distance
    from the expert), then `truncated` and the details with one value per position. Parts with layers are left out.
    """
    import pandas as pd

    columns: dict[str, Any] = {"position": range(len(trace)), "token_id": trace.token_ids}
    columns["token"] = token_texts(trace.tokenizer, trace.token_ids)
    for name in (name for name, part in trace.parts.items() if part.dim() == 2):
        columns[f"{name}_surprisal"] = (trace.normalisers[name] - trace.parts[name][:, -1]).numpy()
        measured = {"entropy": trace.entropy, "rank": trace.ranks, "tv": trace.total_variation}
        columns |= {f"{name}_{what}": values[name].numpy() for what, values in measured.items() if name in values}
    columns["truncated"] = truncated(trace).numpy()
    columns |= {name: values.numpy() for name, values in trace.details.items() if values.dim() == 1}
    return pd.DataFrame(columns)


def summary(trace: Record) -> str:
    """A few lines of text: the settings, the choices, and how sure and how different the models were."""
    method = trace.settings.get("method", "unknown method")
    numbers = ", ".join(f"{name}={value}" for name, value in trace.settings.items() if name != "method")
    width = trace.candidates.shape[1] - 1
    of = f" of {trace.vocab_size}" if trace.vocab_size else ""
    lines = [f"{method} ({numbers})" if numbers else method, f"{len(trace)} positions, {width}{of} tokens recorded"]
    if not len(trace):
        return "\n".join(lines)
    best = int((trace.rank == 1).sum())
    kept = (trace.score[:, :-1] > NEVER).sum(dim=1).double().mean()
    lines.append(f"the expert's best token chosen at {best} positions, {kept:.1f} recorded tokens kept on average")
    means = [f"{name} {values.mean():.2f}" for name, values in trace.entropy.items() if values.dim() == 1]
    lines += [f"mean entropy in nats: {', '.join(means)}"] if means else []
    if "amateur" in trace.total_variation:
        lines.append(f"mean total-variation distance: {trace.total_variation['amateur'].mean():.2f}")
    if "premature_layer" in trace.details:
        counts = sorted(Counter(trace.details["premature_layer"].tolist()).items())
        lines.append("premature layers: " + ", ".join(f"{layer} ({n} times)" for layer, n in counts))
    if trace.rounds:
        drafted, accepted = (sum(f) for f in zip(*((len(r["draft_ids"]), r["accepted"]) for r in trace.rounds)))
        lines.append(f"{len(trace.rounds)} rounds, {accepted} of {drafted} drafted tokens accepted")
    if beyond := int(truncated(trace).sum()):
        lines.append(f"the kept set may exceed the recorded tokens at {beyond} positions")
    return "\n".join(lines)


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str | None]:
    """Each token alone as text: its leading space kept; the raw token where it is only part of a character."""
    if tokenizer is None:
        return [None] * len(token_ids)
    texts = {}
    for token_id in set(token_ids):
        raw = tokenizer.convert_ids_to_tokens(token_id)
        raw = "" if raw is None else str(raw)
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        if BROKEN in text:
            text = raw
        elif raw.startswith("\u2581") and not text.startswith(" "):
            text = " " + text  # sentencepiece decoders drop the space in front of a lone token
        texts[token_id] = text
    return [texts[token_id] for token_id in token_ids]


def visible(text: str | None, token_id: int, *, longest: int = 0) -> str:
    """A token's text with what the eye would miss made visible: spaces, newlines, tabs, control characters.

    Without text its id, as "#42". longest: cut to so many characters, 0 for all of them.
    """
    if text is None:
        return f"#{token_id}"
    if not text:
        return "(empty)"
    marks = {
        " ": "\N{OPEN BOX}",
        "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
        "\t": "\N{RIGHTWARDS ARROW TO BAR}",
    }
    shown = "".join(marks.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
    return shown if not longest or len(shown) <= longest else shown[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
