"""A trace as one HTML file: the inspector without Python and without a network."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from string import Template
from typing import Any

from cdlearn.checks import check_path
from cdlearn.show.pack import pack
from cdlearn.trace.record import Record

HERE = Path(__file__).parent
MODULE, STYLE = HERE / "inspector.js", HERE / "inspector.css"


def write(trace: Record, path: str | Path, *, compare: Any = None) -> None:
    """Write the inspector of this trace as a self-contained page: a handout that needs neither Python nor a network.

    Every control works, and every pick is exact: the page carries the numbers of all recorded candidates.
    compare: another trace or generation to lay beside it. Raises TypeError for what has none.
    """
    other = getattr(compare, "trace", compare)
    if compare is not None and not isinstance(other, Record):
        raise TypeError(f"compare is a {type(compare).__name__} without a trace: pass a Trace or a traced Generation.")
    traces = {"recorded": trace} | ({} if other is None else {"the other": other})
    packed = [[name, base64.b64encode(pack(shown)).decode()] for name, shown in traces.items()]
    method, numbers = trace.settings.get("method"), [f"{n} {v}" for n, v in trace.settings.items() if n != "method"]
    about = f"Recorded with {', '.join(numbers)}. " if numbers else ""
    about += "Click a token to see how it was chosen. Move a slider to see what else would have been."
    page = Template((HERE / "handout.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{method or 'A model'}: {len(trace)} decisions"),
        about=html.escape(about),
        style=STYLE.read_text(encoding="utf-8"),
        module=MODULE.read_text(encoding="utf-8"),
        packed=json.dumps({"packed": packed, "other": -1 if other is None else 1}),
    )
    check_path(path).write_text(page, encoding="utf-8")
