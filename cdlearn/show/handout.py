"""A trace as one HTML file with working sliders: what the inspector shows, without Python and without a network."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from string import Template

from cdlearn.checks import check_count, check_path
from cdlearn.scores import FLOOR
from cdlearn.show.html import texts_of
from cdlearn.trace.record import Record
from cdlearn.trace.rescore import changeable, form_of, log_probs, new_settings, strength_of

PAGE = Template(Path(__file__).with_name("handout.html").read_text(encoding="utf-8"))


def write(trace: Record, path: str | Path, *, candidates: int = 24) -> None:
    """Write a self-contained page with working sliders: a handout that needs neither Python nor a network.

    candidates: how many of the expert's best tokens each position carries.
    Raises ValueError for a trace with nothing to change (a plain model's) or no positions.
    """
    settings = new_settings(trace, {})
    if "strength" in changeable(trace):
        settings = new_settings(trace, {"strength": strength_of(trace)})
    form, alpha, tau = form_of(trace, settings), settings["alpha"], settings.get("amateur_temperature", 1.0)
    count = min(check_count(candidates, "candidates"), trace.candidates.shape[1] - 1)
    names = [name for name, part in trace.parts.items() if part.dim() == 2]
    # log-probabilities do for logits too: what they differ by is the same for all candidates of a position
    against = [form.against.get(name, 0.0) / (tau if name == form.tempered else 1.0) for name in names]
    columns = [log_probs(trace, name)[:, :count].clamp(min=FLOOR).tolist() for name in names]
    steps = []
    for k, (token, ids) in enumerate(zip(trace.recorded_ids, trace.candidates[:, :count].tolist())):
        chosen, *texts = texts_of(trace, [token, *ids])
        rows = zip(texts, *(column[k] for column in columns))
        steps.append({"t": chosen, "c": [[text, *(round(number, 5) for number in row)] for text, *row in rows]})
    method, numbers = settings.get("method"), [f"{n} {v}" for n, v in trace.settings.items() if n != "method"]
    about = f"Recorded with {', '.join(numbers)}. Move a slider: every pick is computed anew from the recorded "
    about += f"probabilities of the expert's best {count} tokens. Click a token for its candidates."
    weights = {"over": [form.over.get(name, 0.0) for name in names], "against": against}
    data = json.dumps({"names": names, "data": steps} | weights)
    for sign in "<>&":  # never raw inside a script element, whatever a token is
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    page = PAGE.substitute(
        title=html.escape(f"{method}: {len(trace)} decisions"),
        about=html.escape(about),
        knob=html.escape(form.knob or "strength"),
        hide="" if form.knob else "hidden",
        strength=round(settings.get(form.knob, 1.0), 4),
        alpha=-4 if alpha is None else round(math.log10(alpha), 4),
        data=data,
    )
    check_path(path).write_text(page, encoding="utf-8")
