"""A trace as one HTML file with working sliders: what the inspector shows, without Python and without a network."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from cdlearn.trace.record import Record
from cdlearn.trace.rescore import log_probs, strength_of
from cdlearn.trace.tables import token_texts, visible

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ font-family: sans-serif; max-width: 60em; margin: 1em auto; padding: 0 1em; color: #000; background: #fff }}
button.t {{ font-family: monospace; white-space: pre; color: #000; background: #fff; border: 1px solid #999;
  margin: 1px; padding: 2px 3px; border-radius: 3px; unicode-bidi: isolate }}
button.t.change {{ background: #E69F00; font-weight: bold }} button.t.grey {{ background: #ddd; color: #666 }}
button.t.here {{ border: 2px solid #D55E00 }}
td, th {{ text-align: right; padding: 2px 8px }} .masked {{ text-decoration: line-through; color: #666 }}
label {{ display: block; margin: .4em 0 }} input[type=range] {{ width: 20em; vertical-align: middle }}
</style></head><body>
<h1>{title}</h1><p>{about}</p>
<label {hide}>strength <input id="strength" type="range" min="0" max="3" step="0.01" value="{strength}">
  <output></output></label>
<label>log10 alpha <input id="alpha" type="range" min="-4" max="0" step="0.01" value="{alpha}">
  <output></output></label>
<div id="strip"></div><p id="said" role="status"></p><table id="table"></table>
<script type="application/json" id="data">{data}</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const sliders = ["strength", "alpha"].map(id => document.getElementById(id));
let here = 0;
function decide(step, strength, cut) {{
  let best = -1, top = -Infinity;
  const rows = step.c.map((c, k) => {{
    const kept = c[1] >= step.c[0][1] + cut, score = c[1] - strength * c[2];
    if (kept && score > top) {{ top = score; best = k; }}
    return {{ token: c[0], e: c[1], a: c[2], score, kept }};
  }});
  return {{ rows, best }};
}}
function show() {{
  const strength = +sliders[0].value, alpha = +sliders[1].value, cut = alpha * Math.LN10;
  sliders[0].nextElementSibling.value = strength.toFixed(2);
  sliders[1].nextElementSibling.value = alpha.toFixed(2) + " (alpha " + Math.pow(10, alpha).toPrecision(2) + ")";
  const strip = document.getElementById("strip"); strip.replaceChildren();
  let first = -1;
  data.forEach((step, k) => {{
    const now = decide(step, strength, cut), pick = now.rows[now.best].token;
    const changed = pick !== step.t;
    if (changed && first < 0) first = k;
    const b = document.createElement("button");
    b.className = "t" + (k === here ? " here" : "") + (first >= 0 && k > first ? " grey" : changed ? " change" : "");
    b.textContent = pick; b.title = changed ? "was: " + step.t : "as recorded";
    b.onclick = () => {{ here = k; show(); }};
    strip.appendChild(b);
  }});
  document.getElementById("said").textContent = first < 0 ? "The recorded text."
    : "Another token at position " + first + "; grey: picks behind the text as it was, a new text would start there.";
  const table = document.getElementById("table"); table.replaceChildren();
  const add = (cells, tag, cls) => {{ const tr = table.insertRow(); tr.className = cls || "";
    cells.forEach(x => {{ const c = document.createElement(tag); c.textContent = x; tr.appendChild(c); }}); }};
  add(["token", "expert p", "amateur p", "score", ""], "th");
  const now = decide(data[here], strength, cut);
  now.rows.slice(0, 10).forEach((r, k) => add([r.token, Math.exp(r.e).toFixed(3), Math.exp(r.a).toFixed(3),
    r.kept ? r.score.toFixed(2) : "masked", k === now.best ? "\\u25c2 chosen" : ""], "td", r.kept ? "" : "masked"));
}}
sliders.forEach(s => s.addEventListener("input", show));
show();
</script></body></html>
"""


def write(trace: Record, path: str | Path, *, candidates: int = 24) -> None:
    """Write the page. candidates: how many of the expert's best tokens each position carries.

    Raises ValueError for a trace with nothing to change (a plain model's) or no positions.
    """
    method = trace.settings.get("method")
    if method not in ("contrastive", "dola"):
        raise ValueError(
            f"the trace's method is {method!r}: a handout's sliders need the trace of a Contrast or a DoLa."
        )
    if not len(trace):
        raise ValueError("the trace has no positions: generate at least one token.")
    settings = trace.settings
    count = min(candidates, trace.candidates.shape[1] - 1)
    expert, amateur = log_probs(trace, "expert"), log_probs(trace, "amateur")
    tau = settings.get("amateur_temperature", 1.0)
    steps: list[dict[str, Any]] = []
    for k, token in enumerate(trace.recorded_ids):
        ids = trace.candidates[k, :count].tolist()
        names = [visible(text, token_id) for text, token_id in zip(token_texts(trace.tokenizer, ids), ids)]
        rows = [
            [name, round(float(e), 5), round(float(a) / tau, 5)]
            for name, e, a in zip(names, expert[k, :count], amateur[k, :count].clamp(min=-1e5))
        ]
        steps.append({"t": visible(token_texts(trace.tokenizer, [token])[0], token), "c": rows})
    alpha = settings.get("alpha")
    numbers = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "method")
    page = _PAGE.format(
        title=html.escape(f"{method}: {len(trace)} decisions"),
        about=html.escape(
            f"Recorded with {numbers}. Move a slider: every pick is computed anew from the recorded probabilities "
            f"of the expert's best {count} tokens. Click a token for its candidates."
        ),
        hide="" if method == "contrastive" else "hidden",  # DoLa has no strength
        strength=round(strength_of(settings), 4),
        alpha=-4 if alpha is None else round(math.log10(alpha), 4),
        # "<" never appears raw inside a script element, whatever a token is
        data=json.dumps(steps, ensure_ascii=True)
        .replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026"),
    )
    Path(path).write_text(page, encoding="utf-8")
