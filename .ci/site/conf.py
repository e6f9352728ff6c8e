"""Sphinx's settings for the site; `stage.py` beside this lays out the pages."""

import inspect
import re
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from stage import HOME  # noqa: E402

import cdlearn  # noqa: E402

project, author, release = "cdlearn", "the cdlearn authors", cdlearn.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
root_doc = "index"
exclude_patterns = ["extra"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # its default is two addresses of a CDN
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "sphinx_book_theme"
html_title = "cdlearn"
html_static_path = ["style.css", "frames.js", "icon.svg"]
html_favicon = "icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_css_files, html_js_files = ["style.css"], ["frames.js"]
html_extra_path = [str(Path(__file__).parents[2] / "build" / "site-pages" / "extra")]
html_copy_source = html_use_index = html_domain_indices = False
html_show_sphinx = False
html_show_copyright = False
mathjax_path = "mathjax.js"
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "navbar_persistent": [],  # else the theme binds its menu buttons to those of a header that it does not show
    "use_download_button": False,  # what Sphinx would offer is the page without its setup cell
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if HOME:
    html_theme_options |= {"repository_url": HOME, "use_repository_button": True, "repository_branch": "main"}
    html_theme_options["launch_buttons"] = {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    }


def readable(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: everything else is escaped, and an argument's name stands out."""
    try:
        names = "|".join(map(re.escape, inspect.signature(obj).parameters))
    except (TypeError, ValueError):
        names = ""
    parts = re.split(r"`+([^`]*)`+", "\n".join(lines))
    for k, part in enumerate(parts):
        if k % 2:
            parts[k] = f"``{part}``"
            continue
        part = re.sub(r"([*|\\]|_(?!\w))", r"\\\1", part)
        parts[k] = re.sub(rf"(?<![\w.])({names})(?=(, \w+)*: )", r"**\1**", part) if names else part
    lines[:] = "".join(parts).split("\n")


def bundle(app, error) -> None:
    """MathJax from its package: one file, which draws formulas as SVG and so needs no fonts."""
    if app.builder.name != "html":
        return
    (script,) = (file for file in files("sphinx-mathjax-offline") if file.name == "tex-svg.js")
    shutil.copy(script.locate(), Path(app.outdir) / "_static" / mathjax_path)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", readable)
    app.connect("build-finished", bundle)
