"""The feedback page of one submission. Whatever a student's notebook holds is shown as text: nothing of it runs.

nbgrader's own feedback pages repeat the graded cells with their hidden tests, say nothing of a part's status, and fetch
MathJax from the network: these do not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from cdlearn.classroom.grader.build import SETUP
from cdlearn.classroom.grader.results import Event, Row, hint_of, told, visible
from cdlearn.classroom.grader.submissions import Notebook, Part, Submission, marks, parts_of, plain_source

MOST = 20_000  # characters of a cell or an output
SIGNS = {"ok": "✓", "wrong": "✗", "not written": "–", "by hand": "?"}
STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em } h3 { font-size: 1.05em }
table { border-collapse: collapse; margin: 1em 0 }
td, th { padding: .3em 1.2em .3em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
pre, .own { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; padding: .5em .8em }
pre { font: 14px/1.4 monospace } .code { background: #f5f5f5 } .own { border-left: 3px solid #bbb }
.part { border: 1px solid #bbb; border-left-width: 6px; padding: .4em .8em; margin: .8em 0 }
.ok { border-left: 6px solid #009e73 } .bad { border-left: 6px solid #d55e00 } .hand { border-left: 6px solid #0072b2 }
.part table { margin: .3em 0 } .part td { border: 0; padding-bottom: 0 }
small { color: #666 } img { max-width: 100% }
"""
# no script, no style sheet, no image from elsewhere, should anything slip through
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    submission: Submission, rows: Sequence[Row], master: Notebook | None, events: Sequence[Event] = (), reason: str = ""
) -> str:
    """The whole page. events: what was found; reason: why the grading did not come to its end."""
    first = plain_source(master["cells"][0]) if master else ""
    title = escape(first.splitlines()[0].lstrip("# ") if first.startswith("#") else "No assignment recognised")
    student = escape(submission.student)
    body = [f"<h1>{title}</h1><p><b>{student}</b> <small>{escape(submission.file)}</small></p>"]
    later = sum(row.max for row in rows if row.points is None)
    by_hand = f"; {later:g} are still to be given by hand" if later else ""
    got, most = sum(row.points or 0 for row in rows), sum(row.max for row in rows)
    body.append(f"<p><b>{got:g} of {most:g} points{by_hand}</b></p>")
    if reason:
        lead = "" if submission.problem else "The notebook could not be graded to its end: "
        body.append(f'<p class="part bad">{escape(visible(lead + reason))}</p>')
    if not submission.problem:
        body.append(_overview(rows, parts_of(master), reason))
        body.append(_cells(submission.notebook, master, {row.part: row for row in rows}, events, reason))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<title>{student} · {title}</title></head>
<body>{"".join(body)}</body></html>
"""


def _overview(rows: Sequence[Row], parts: dict[str, Part], reason: str) -> str:
    """The parts, their points and what was said of them."""
    lines = []
    for row in rows:
        said = f"{SIGNS.get(row.status, '·')} {_result(row.status, row.hint, reason)}"
        name = f'<a href="#{escape(row.part)}">{escape(parts[row.part].title)}</a>'
        lines.append(f"<tr><td>{name}</td><td>{_points(row)}</td><td>{escape(said)}</td></tr>")
    return f"<table><tr><th>part</th><th>points</th><th>result</th></tr>{''.join(lines)}</table>"


def _result(status: str, hint: str, reason: str) -> str:
    """The status, and the hint where that says more than the status and the page's first lines."""
    return status if hint in ("", reason, "not written yet") else f"{status}: {hint}"


def _points(row: Row) -> str:
    return f"{'?' if row.points is None else f'{row.points:g}'} / {row.max:g}"


def _cells(notebook: Notebook, master: Notebook, rows: dict[str, Row], events: Sequence[Event], reason: str) -> str:
    """The notebook as it was handed in, and what was found; of the assignment's own text the headings only."""
    title, *texts = [plain_source(cell) for cell in master["cells"] if cell["cell_type"] == "markdown"]
    parts, shown, missing = parts_of(master), [], dict(rows)
    errors = {event["cell"]: event["error"] for event in events if "cell" in event}
    graded = {event["part"]: event for event in events if "part" in event}
    for number, cell in enumerate(notebook["cells"]):
        source, part = plain_source(cell), marks(cell).get("grade_id") if marks(cell).get("grade") else None
        if cell["cell_type"] == "code" and part is None and source and not source.startswith(SETUP[:40]):
            shown.append(f'<small>cell {number + 1}</small><pre class="code">{_text(source)}</pre>')
            shown += [_output(out) for out in cell.get("outputs", ())[:50]]
        elif cell["cell_type"] != "code" and source != title:
            head = f"<h2>{escape(source.splitlines()[0].lstrip('# '))}</h2>" if source.startswith("#") else ""
            shown.append(head if source in texts else f'<div class="own">{_text(source)}</div>')
        if number in errors:
            said = "✗ {kind}: {text}".format(**errors[number])
            shown.append(f'<pre class="bad">{_text(said)}</pre>')
        if part in missing:
            shown.append(_band(missing.pop(part), parts[part].title, graded.get(part, {}), reason))
    shown += [_band(row, parts[part].title, graded.get(part, {}), reason) for part, row in missing.items()]
    return "".join(shown)


def _text(text: str) -> str:
    return escape(visible(text)[:MOST].strip("\n"))


def _band(row: Row, title: str, found: Event, reason: str) -> str:
    """The frame of a part: its points, its status, a failed check's fields, and of the hint what they do not say."""
    kind = "hand" if row.points is None else "ok" if row.points >= row.max else "bad"
    pairs = told(found) if found.get("failed") else []
    hint = row.hint.removeprefix(hint_of(found)).removeprefix("; ") if pairs else row.hint
    table = "".join(f"<tr><td><b>{label}</b></td><td>{_text(text)}</td></tr>" for label, text in pairs)
    head = f"<b>{escape(title)}: {_points(row)} points</b> · {escape(_result(row.status, hint, reason))}"
    table = f"<table>{table}</table>" if pairs else ""
    return f'<div class="part {kind}" id="{escape(row.part)}">{head}{table}</div>'


def _output(out: dict) -> str:
    """What an output of the student's own run said, or the picture in it. HTML and scripts are not looked at."""
    if not isinstance(out, dict):
        return ""
    data = out.get("data") if isinstance(out.get("data"), dict) else {}
    picture = "".join(data.get("image/png", "")).strip()
    if re.fullmatch(r"[A-Za-z0-9+/=\s]+", picture):
        return f'<img alt="a figure of this cell" src="data:image/png;base64,{picture}">'
    said = _text("".join(out.get("text", "") or data.get("text/plain", "")))
    return f"<pre>{said}</pre>" if said else ""
