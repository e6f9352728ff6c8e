"""The site: `make site` runs this, and build/site is then what a web server needs. Nothing is executed but the three
texts of the inspectors, nothing is fetched, and no warning is let through.

Pages keep their places, links get the site's names; what is not on the site is linked in the repository, or is text.
"""

import contextlib
import inspect
import io
import json
import os
import posixpath
import pydoc
import re
import shutil
import sys
import tomllib
import warnings
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[2]
OUT, PAGES = ROOT / "build" / "site", ROOT / "build" / "site-pages"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOME = PROJECT.get("urls", {}).get("Repository", "")
# where a file of the repository lies on the site
PLACES = {
    "README.md": "index.md",
    "notebooks/README.md": "notebooks/index.md",
    "notebooks/assignments/README.md": "notebooks/assignments.md",
    "cdlearn/toyworld/pair/README.md": "model_card.md",
    ".github/CONTRIBUTING.md": "contributing.md",
}
for file in sorted((ROOT / "notebooks").rglob("*")):
    if file.suffix in (".ipynb", ".md", ".png", ".svg", ".jsonl") and "source" not in file.parts:
        PLACES.setdefault(name := file.relative_to(ROOT).as_posix(), name)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
WIDGET = "application/vnd.jupyter.widget-view+json"
LIVE = "**On this site** the [inspectors](../inspectors.md) of three of these texts are live, without Python."
CONTENTS = {
    "Learn": "notebooks/index notebooks/[0-9]*",
    "Look and look up": "inspectors notebooks/gallery notebooks/pitfalls notebooks/real notebooks/speed "
    "notebooks/architectures model_card",
    "Use and teach": "notebooks/elsewhere reference commands notebooks/assignments contributing",
}
# the reference: names of `cdlearn`, then modules; a dot in a name is the way to it
NAMES = {
    "Models": "load_pair load_expert Pair",
    "Sources": "Source CachedLM Contrast DoLa EarlyExit Mix Prompted Window TextSpace Lookup",
    "Loops": "generate beam_search speculate loops.generate.pick Generation",
    "Traces": "Trace show.inspector.inspect",
    "cdlearn.scores, the formulas": "scores",
    "cdlearn.metrics, the measures": "metrics",
    "cdlearn.plots, the figures": "show.plots",
    "cdlearn.hf, for transformers": "hf.as_causal_lm hf.ContrastiveLogitsProcessor hf.contrastive_generate",
}


def relinked(text: str, page: str) -> str:
    """The text of a page with its relative links as they are on the site."""

    def link(found: re.Match) -> str:
        picture, label, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if path in PLACES:
            path = posixpath.relpath(PLACES[path], posixpath.dirname(PLACES[page]) or ".")
        elif HOME and (ROOT / path).exists():
            path = f"{HOME}/blob/main/{path}"
        else:
            return label
        return f"{picture}[{label}]({path}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(link, text)


def notebook(text: str, page: str) -> str:
    """A notebook for the site: without its setup cell and widgets, with the figures' alternative texts."""
    made = json.loads(text)
    made["cells"] = [cell for cell in made["cells"] if "setup" not in cell["metadata"].get("tags", [])]
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relinked("".join(cell["source"]), page)
        else:
            cell["source"] = "".join(cell["source"]).removeprefix("# NBVAL_IGNORE_OUTPUT\n")
        if alt := cell["metadata"].get("alt"):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    if page.endswith("10_token_inspector.ipynb"):
        made["cells"].insert(1, {"cell_type": "markdown", "id": "live", "metadata": {}, "source": LIVE})
    return json.dumps(made)


def stage() -> None:
    """Copy every page and picture to PAGES."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for name, place in PLACES.items():
        (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".md", ".ipynb")):
            text = (ROOT / name).read_text(encoding="utf-8")
            text = notebook(text, name) if name.endswith(".ipynb") else relinked(text, name)
            (PAGES / place).write_text(text, encoding="utf-8")
        else:
            shutil.copy(ROOT / name, PAGES / place)
    for caption, names in CONTENTS.items():
        names = names.replace(" ", "\n")
        with (PAGES / "index.md").open("a", encoding="utf-8") as page:
            page.write(f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{names}\n```\n")


def inspectors() -> None:
    """Three texts of notebook 10, each as the page that `Trace.to_html` writes, framed in one page."""
    import cdlearn
    from cdlearn.toyworld.tasks import TASKS

    warnings.simplefilter("ignore")  # that this draft does not pay on this machine
    pair = cdlearn.load_pair(progress=False)
    expert, amateur, puzzle = pair.expert, pair.amateur, TASKS["puzzles"].items(40)[0].prompt
    usual, capital = {"tokenizer": pair.tokenizer, "progress": False}, "What is the capital of Micronesia?"
    contrast, early = cdlearn.Contrast(expert, amateur, beta=0.5), cdlearn.EarlyExit(expert, 5)
    made = {
        "contrast": ("A puzzle, contrastive", puzzle, cdlearn.generate(contrast, puzzle, **usual)),
        "dola": ("A capital, DoLa", capital, cdlearn.generate(cdlearn.DoLa(expert), capital, **usual)),
        "speculation": (
            "The puzzle again, speculative",
            puzzle,
            cdlearn.speculate(contrast, early, puzzle, gamma=4, temperature=1.0, seed=1, **usual),
        ),
    }
    text = '# Inspectors\n\nEach frame is the page that `generation.trace.to_html("page.html")` writes. Click a token '
    text += "to read why it was chosen, and move a slider to see what would have been. "
    text += "[Notebook 10](notebooks/10_token_inspector.ipynb) explains what you see.\n"
    (PAGES / "extra" / "inspectors").mkdir(parents=True)
    for name, (title, prompt, generation) in made.items():
        generation.trace.to_html(PAGES / "extra" / "inspectors" / f"{name}.html")
        text += f'\n## {title}\n\nPrompt: *{prompt}* (<a href="inspectors/{name}.html">without the frame</a>)\n\n'
        text += f'<iframe src="inspectors/{name}.html" title="{title}" loading="lazy"></iframe>\n'
    (PAGES / "inspectors.md").write_text(text, encoding="utf-8")


def reference() -> None:
    """The page of public names, from their docstrings."""
    text = "# Reference\n\nWhat `import cdlearn` gives, then the modules that a user calls by name.\n"
    for title, names in NAMES.items():
        text += f"\n## {title}\n\n```{{eval-rst}}\n"
        for name in names.split():
            thing = pydoc.locate(f"cdlearn.{name}")
            kind = "module" if inspect.ismodule(thing) else "class" if isinstance(thing, type) else "function"
            more = {"Source": ":members:", "Pair": ":members:", "Trace": ":members:\n   :inherited-members: object"}
            more = ":members:" if kind == "module" else more.get(name, "")
            text += f".. auto{kind}:: cdlearn.{name}\n   {more}\n\n"
        text += "```\n"
    (PAGES / "reference.md").write_text(text, encoding="utf-8")


def commands() -> None:
    """What every command prints for --help."""
    from cdlearn.cli import main as cli

    os.environ["COLUMNS"] = "88"
    text = "# The command's options\n"
    for name in ["", *cli.COMMANDS]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main([*filter(None, [name]), "--help"])
        text += f"\n## cdlearn {name}\n\n```text\n{printed.getvalue().strip()}\n```\n"
    (PAGES / "commands.md").write_text(text, encoding="utf-8")


def main() -> int:
    sys.path.insert(0, str(ROOT))
    stage()
    inspectors()
    commands()
    reference()
    builder, out = (sys.argv[1], f"{OUT}-{sys.argv[1]}") if sys.argv[1:] else ("html", str(OUT))
    shutil.rmtree(out, ignore_errors=True)
    strict = ["-W", "--keep-going", "-q", "-c", str(Path(__file__).parent), "-d", f"{PAGES}-trees"]
    return build_main([*strict, "-b", builder, str(PAGES), out])


if __name__ == "__main__":
    sys.exit(main())
