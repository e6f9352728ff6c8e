"""The feedback page of one submission. Whatever a student's notebook holds is shown as text: nothing of it runs.

nbgrader's own feedback pages repeat the graded cells with their hidden tests, say nothing of a part's status, and fetch
MathJax from the network: these do not.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from html import escape

from cdlearn.classroom.checks.result import LABELS
from cdlearn.classroom.grader.build import SETUP
from cdlearn.classroom.grader.results import Row, hint_of, plain, published
from cdlearn.classroom.grader.submissions import Notebook, Part, Submission, marks, parts_of, plain_source, unlink

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
    first = plain_source(release["cells"][0]) if release else ""
    title = escape(first.splitlines()[0].lstrip("# ") if first.startswith("#") else "No assignment recognised")
    student = escape(submission.student)
    body = [f"<h1>{title}</h1><p><b>{student}</b> <small>{escape(submission.file)}</small></p>"]
    later = sum(row.max for row in rows if row.points is None)
    by_hand = f"; {later:g} are still to be given by hand" if later else ""
    got, most = sum(row.points or 0 for row in rows), sum(row.max for row in rows)
    body.append(f"<p><b>{got:g} of {most:g} points{by_hand}</b></p>")
    if reason:
        lead = "" if submission.problem else "The notebook could not be graded to its end: "
        body.append(f'<p class="part bad">{escape(lead + reason)}</p>')
    if not submission.problem:
        body.append(_overview(rows, parts_of(release), reason))
        body.append(_cells(notebook, release, {row.part: row for row in rows}, reason))
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


def _cells(notebook: Notebook, release: Notebook, rows: dict[str, Row], reason: str) -> str:
    """The notebook. The assignment's own text is set; a student's text, code and output appear as they were written."""
    title, *texts = [plain_source(cell) for cell in release["cells"] if cell["cell_type"] == "markdown"]
    parts, failed = parts_of(release), _failed(notebook)
    shown, above, hints = [], "", []  # above, hints: what this part's outputs and errors have said so far
    for number, cell in enumerate(notebook["cells"], start=1):
        part = marks(cell).get("grade_id") if marks(cell).get("grade") else None
        source = plain_source(cell)
        if cell["cell_type"] == "code" and part is None and source and not source.startswith(SETUP[:40]):
            shown.append(f'<small>cell {number}</small><pre class="code">{escape(source[:MOST])}</pre>')
        elif cell["cell_type"] != "code" and source != title:
            shown.append(to_html(source) if source in texts else f'<div class="own">{escape(source[:MOST])}</div>')
        outputs = []
        for out in cell.get("outputs", ()):
            said, picture = _output(out)
            if out.get("output_type") == "error":
                hint = hint_of(out["ename"], out["evalue"], failed.get(said))
                hints += [hint] if said in failed or hint in said else []
            elif part is not None:
                continue  # what a function prints while it is graded is left out
            if part not in rows or said not in above:  # what was said above is not said again
                outputs.append(picture or _framed(said, failed.get(said)))
                above += said
        if part in rows:
            shown.append(_band(rows[part], parts[part].title, reason, hints))
            above, hints = "", []
        shown += outputs
    return "".join(shown)


def _failed(notebook: Notebook) -> dict[str, dict[str, str]]:
    """The fields of every failed check, by the message, which the check above a graded cell says as well."""
    found = {}
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", ())
        fields, _ = published(outputs)
        found |= {_output(out)[0]: fields for out in outputs if fields and out.get("output_type") == "error"}
    return found


def _band(row: Row, title: str, reason: str, hints: list[str]) -> str:
    """The frame of a part: its points, its status, and of the hint what is not one of these hints, shown beside it."""
    kind = "hand" if row.points is None else "ok" if row.points >= row.max else "bad"
    shown = next((hint for hint in hints if row.hint.startswith(hint)), "")
    result = _result(row.status, row.hint.removeprefix(shown).removeprefix("; "), reason)
    head = f"<b>{escape(title)}: {_points(row)} points</b>"
    return f'<div class="part {kind}" id="{escape(row.part)}">{head} · {escape(result)}</div>'


def _output(out: dict) -> tuple[str, str]:
    """What an output says, and the picture in it if there is one. HTML and scripts are not looked at."""
    if out.get("output_type") == "stream":
        return plain("".join(out["text"]))[:MOST].strip("\n"), ""
    if out.get("output_type") == "error":
        said = plain(out["evalue"]).strip()
        return (said if said[:1] == "✗" else f"✗ {out['ename']}: {said}")[:MOST], ""
    data = out.get("data", {})
    picture = "".join(data.get("image/png", "")).strip()
    if re.fullmatch(r"[A-Za-z0-9+/=\s]+", picture):
        return "", f'<img alt="a figure of this cell" src="data:image/png;base64,{picture}">'
    return plain("".join(data.get("text/plain", "")))[:MOST].strip("\n"), ""


def _framed(said: str, failed: dict[str, str] | None) -> str:
    """An output; a failed check's message as a table of its fields."""
    kind = {"✓": "ok", "✗": "bad"}.get(said[:1], "")
    if failed:
        pairs = [(label, failed[name]) for name, label in LABELS.items() if failed.get(name)]
        table = "".join(f"<tr><td><b>{label}</b></td><td>{escape(text)}</td></tr>" for label, text in pairs)
        head = escape(said.split("\n")[0])
        return f'<div class="said {kind}">{head}<table>{table}</table></div>'
    return f'<pre class="{kind}">{escape(said)}</pre>' if said else ""


_SPANS = re.compile(r"(`+).+?\1|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.S)
# what TeX reads and matplotlib wants otherwise
_OTHERWISE = {r"\\tfrac\s*(\w)\s*(\w)": r"\\frac{\1}{\2}", r"\\sqrt\s+(\w)": r"\\sqrt{\1}", r"\\(ge|le)\b": r"\\\1q"}


@cache
def to_html(text: str) -> str:
    """Markdown to HTML that fetches nothing: formulas become images inside the page.

    For text of the assignments' authors only; what a student wrote is shown as it is.
    """
    import mistune

    formulas = []

    def keep(found: re.Match) -> str:
        tex = found["block"] or found["inline"]
        if tex is None:
            return found[0]
        formulas.append(_formula(tex.strip(), found["block"] is not None))
        return f"FORMULA{len(formulas) - 1}END"

    page = mistune.create_markdown(escape=True, plugins=["table"])(_SPANS.sub(keep, unlink(text)))
    return re.sub(r"FORMULA(\d+)END", lambda found: formulas[int(found[1])], page)


def _formula(tex: str, block: bool) -> str:
    """TeX as an SVG with the TeX as its alternative text; as code where matplotlib does not know a command."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    known = tex.replace("\n", " ")
    for written, wanted in _OTHERWISE.items():
        known = re.sub(written, wanted, known)
    image = io.BytesIO()
    try:
        depth = math_to_image(f"${known}$", image, FontProperties(size=12, math_fontfamily="cm"), format="svg")
    except ValueError:
        return f"<code>{escape(tex)}</code>"
    code = base64.b64encode(image.getvalue()).decode()
    style = "display:block;margin:1em auto" if block else f"vertical-align:-{depth:.1f}pt"
    return f'<img style="{style}" alt="{escape(tex)}" src="data:image/svg+xml;base64,{code}">'
