"""The text of an assignment as HTML that fetches nothing: formulas become images inside the page."""

from __future__ import annotations

import base64
import html
import io
import re
from functools import cache

from cdlearn.classroom.grader.submissions import unlink

_SPANS = re.compile(r"(`+).+?\1|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+)\$", re.S)

# what TeX reads and matplotlib wants otherwise
_OTHERWISE = {
    r"\\tfrac\s*(\w)\s*(\w)": r"\\frac{\1}{\2}",
    r"\\sqrt\s+(\w)": r"\\sqrt{\1}",
    r"\\(ge|le)\b": r"\\\1q",
}


@cache
def to_html(text: str) -> str:
    """Markdown to HTML. For text of the assignments' authors only; what a student wrote is shown as it is."""
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
        return f"<code>{html.escape(tex)}</code>"
    code = base64.b64encode(image.getvalue()).decode()
    style = "display:block;margin:1em auto" if block else f"vertical-align:-{depth:.1f}pt"
    return f'<img style="{style}" alt="{html.escape(tex)}" src="data:image/svg+xml;base64,{code}">'
