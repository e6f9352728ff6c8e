"""The feedback page of one submission. Whatever a student's notebook holds is shown as text: nothing of it runs."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import replace

from cdlearn.classroom.grader.build import SETUP
from cdlearn.classroom.grader.prose import to_html
from cdlearn.classroom.grader.report import Row, plain
from cdlearn.classroom.grader.submissions import Notebook, Submission, marks, titles, unlink

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
.said { margin: .3em 0; padding: .3em .8em } .said table { margin: .3em 0 } .said td { border: 0; padding-bottom: 0 }
small { color: #666 } img { max-width: 100% }
"""
# no script, no style sheet, no image from elsewhere, should anything slip through
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    submission: Submission, rows: Sequence[Row], release: Notebook | None, notebook: Notebook | None, reason: str = ""
) -> str:
    """The whole page. notebook: as it was run, outputs and all, or as it was handed in. reason: why it was not."""
    names = titles(release) if release else {}
    title = _title(release) or "No assignment recognised"
    who = f"<b>{_text(submission.student)}</b> <small>{_text(submission.file)}</small>"
    body = [f"<h1>{_text(title)}</h1><p>{who}</p>"]
    body.append(f"<p><b>{_text(_total(rows))}</b></p>")
    if reason:
        lead = "" if submission.problem else "The notebook could not be graded to its end: "
        body.append(f'<p class="part bad">{_text(lead + reason)}</p>')
    if not submission.problem:
        body.append(_overview(rows, names, reason))
        body.append(_cells(notebook, release, {row.part: row for row in rows}, names, reason))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<title>{_text(submission.student)} · {_text(title)}</title></head>
<body>{"".join(body)}</body></html>
"""


def _text(text: object) -> str:
    return html.escape(str(text))


def _title(release: Notebook | None) -> str:
    """The assignment's own first heading."""
    first = "".join(release["cells"][0]["source"]) if release else ""
    return first.splitlines()[0].lstrip("# ") if first.startswith("#") else ""


def _total(rows: Sequence[Row]) -> str:
    got, most = sum(row.points or 0 for row in rows), sum(row.max for row in rows)
    later = sum(row.max for row in rows if row.points is None)
    return f"{got:g} of {most:g} points" + (f"; {later:g} are still to be given by hand" if later else "")


def _overview(rows: Sequence[Row], names: dict[str, str], reason: str) -> str:
    """The parts, their points and what was said of them."""
    lines = []
    for row in rows:
        said = f"{SIGNS.get(row.status, '·')} {_result(row, reason)}"
        name = f'<a href="#{_text(row.part)}">{_text(names.get(row.part, row.part))}</a>'
        lines.append(f"<tr><td>{name}</td><td>{_points(row)}</td><td>{_text(said)}</td></tr>")
    return f"<table><tr><th>part</th><th>points</th><th>result</th></tr>{''.join(lines)}</table>"


def _result(row: Row, reason: str) -> str:
    """The status, and the hint where that says more than the status and the page's first lines."""
    return row.status if row.hint in ("", reason, "not written yet") else f"{row.status}: {row.hint}"


def _points(row: Row) -> str:
    return f"{'?' if row.points is None else f'{row.points:g}'} / {row.max:g}"


def _cells(notebook: Notebook, release: Notebook, rows: dict[str, Row], names: dict[str, str], reason: str) -> str:
    """The notebook. The assignment's own text is set; a student's text, code and output stand as they were written."""
    title, *texts = [_plain_source(cell) for cell in release["cells"] if cell["cell_type"] == "markdown"]
    shown, above = [], ""  # above: what this part's outputs have said so far
    for number, cell in enumerate(notebook["cells"], start=1):
        part = marks(cell).get("grade_id") if marks(cell).get("grade") else None
        source = _plain_source(cell)
        counts = [out for out in cell.get("outputs", ()) if part is None or out.get("output_type") == "error"]
        outputs = [_output(out) for out in counts]  # what a function prints while it is graded is left out
        if cell["cell_type"] == "code" and part is None and source and not source.startswith(SETUP[:40]):
            shown.append(f'<small>cell {number}</small><pre class="code">{_text(source[:MOST])}</pre>')
        elif cell["cell_type"] != "code" and source != title:
            shown.append(to_html(source) if source in texts else f'<div class="own">{_text(source[:MOST])}</div>')
        if part in rows:  # what was said above is not said again
            outputs = [(said, picture) for said, picture in outputs if said not in above]
            above += "".join(said for said, _ in outputs)
            shown.append(_band(rows[part], names, reason, above))
        shown += [_framed(said, picture) for said, picture in outputs]
        above = "" if part in rows else above + "".join(said for said, _ in outputs)
    return "".join(shown)


def _plain_source(cell: dict) -> str:
    return unlink("".join(cell["source"])).strip()


def _band(row: Row, names: dict[str, str], reason: str, said: str) -> str:
    """The frame of a part: its points, its status, and of the hint what the messages do not say."""
    kind = "hand" if row.points is None else "ok" if row.points >= row.max else "bad"
    pieces = [piece for piece in row.hint.split("; ") if re.sub(r"^(this looks like|look at): ", "", piece) not in said]
    result = _result(replace(row, hint="; ".join(pieces)), reason)
    head = f"<b>{_text(names.get(row.part, row.part))}: {_points(row)} points</b>"
    return f'<div class="part {kind}" id="{_text(row.part)}">{head} · {_text(result)}</div>'


def _output(out: dict) -> tuple[str, str]:
    """What an output says, and the picture in it if there is one. HTML and scripts are not looked at."""
    if out.get("output_type") == "stream":
        return plain("".join(out["text"]))[:MOST].strip("\n"), ""
    if out.get("output_type") == "error":
        said = plain(out["evalue"]).strip()
        return (said if out["ename"] == "AssertionError" and said else f"✗ {out['ename']}: {said}")[:MOST], ""
    data = out.get("data", {})
    picture = "".join(data.get("image/png", "")).strip()
    if re.fullmatch(r"[A-Za-z0-9+/=\s]+", picture):
        return "", f'<img alt="a figure of this cell" src="data:image/png;base64,{picture}">'
    return plain("".join(data.get("text/plain", "")))[:MOST].strip("\n"), ""


def _framed(said: str, picture: str) -> str:
    if picture:
        return picture
    kind = {"✓": "ok", "✗": "bad"}.get(said[:1], "")
    head, *lines = said.split("\n")
    pairs = [re.fullmatch(r"  ([A-Z][a-z ]+): +(.*)", line) for line in lines]
    if kind == "bad" and lines and all(pairs):  # a check's message
        table = "".join(f"<tr><td><b>{_text(pair[1])}</b></td><td>{_text(pair[2])}</td></tr>" for pair in pairs)
        return f'<div class="said {kind}">{_text(head)}<table>{table}</table></div>'
    return f'<pre class="{kind}">{_text(said)}</pre>' if said else ""
