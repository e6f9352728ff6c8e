"""What every committed notebook keeps: executed, clean, small, explained, and true about names and links."""

import ast
import importlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

import cdlearn

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST_CELL = 15  # lines
LARGEST = 1_000_000  # bytes


def faults(notebook: dict) -> list[str]:
    """What a committed notebook must not have, in words."""
    found = []
    if "widgets" in notebook["metadata"]:
        found.append("metadata.widgets: GitHub cannot show it; clear the widget state")
    counts = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not source.strip():
            continue
        if cell["execution_count"] is None:
            found.append(f"cell {number} was not executed")
        counts.append(cell["execution_count"])
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            if "raises-exception" not in cell["metadata"].get("tags", ()):
                found.append(f"cell {number} ended in an error")
        if any(output.get("name") == "stderr" for output in cell["outputs"]):
            found.append(f"cell {number} shows a warning or a log line")
        text = json.dumps([cell["source"], cell["outputs"]])
        # a path of the machine it ran on: not the same anywhere else, and nobody's business
        path = re.search(r"(?<![\w.:/~<])/(?:home|root|work|tmp|Users|private)/[\w.-]+", text)
        if path:
            found.append(f"cell {number} holds the absolute path {path.group()}")
        if len(source.splitlines()) > LONGEST_CELL:
            found.append(f"cell {number} has {len(source.splitlines())} lines")
        following = "".join(notebook["cells"][number + 1]["source"]) if number + 1 < len(notebook["cells"]) else ""
        drawn = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        if drawn and not cell["metadata"].get("alt") and "**Figure" not in following:
            found.append(f"cell {number} draws a figure with neither alt text nor a caption")
    if None not in counts and counts != list(range(1, len(counts) + 1)):
        found.append("the cells were not executed in order, once")
    return found


def code_of(notebook: dict) -> str:
    """All code cells as one program, without the lines that only IPython understands."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "\n".join(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", cell, flags=re.M) for cell in cells)


def private_names(code: str) -> list[str]:
    """What a program takes out of cdlearn that is not meant for it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cdlearn":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found += [name for name in names if name.startswith("_") or name == "*"]
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            if isinstance(node.value, ast.Name) and node.value.id in ("cdlearn", *dir(cdlearn)):
                found.append(node.attr)
    return found


def missing_names(prose: str) -> list[str]:
    """Names like `cdlearn.scores.js_divergence` in backticks that do not exist."""
    found = []
    for name in re.findall(r"`[^`\n]*?\b(cdlearn(?:\.\w+)+)", prose):
        owner, parts = cdlearn, name.split(".")[1:]
        for at, part in enumerate(parts):
            try:
                owner = getattr(owner, part, None) or importlib.import_module(f"cdlearn.{'.'.join(parts[: at + 1])}")
            except ImportError as error:  # a module that lacks an extra is there all the same
                if (error.name or "").startswith("cdlearn"):
                    found.append(name)
                break
    return found


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def broken_links(prose: str, folder: Path) -> list[str]:
    """Relative links of a text in `folder` that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'src="([^"]+)"', prose):
        if target.startswith(("http://", "https://", "attachment:")):
            continue
        file, _, anchor = target.partition("#")
        path = folder / file
        if not file and anchor not in anchors(prose):
            found.append(target)
        if file and not path.exists():
            found.append(target)
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8")):
            found.append(target)
    return found


def read(path: Path) -> tuple[dict, str]:
    """A notebook, and all its prose."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    return notebook, "\n\n".join(prose)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_executed_clean_and_small(path):
    assert faults(read(path)[0]) == []
    assert path.stat().st_size < LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_and_name_what_is_there(path):
    notebook, prose = read(path)
    assert private_names(code_of(notebook)) == []
    assert missing_names(prose) == []
    assert broken_links(prose, FOLDER) == []
    assert "README.md#glossary" in prose, "a reader needs the way to the glossary"


def headed(cells: list[dict]) -> list[tuple[dict, bool]]:
    """Each cell, and whether an optional section holds it. A folded heading begins its own cell."""
    found, level = [], 0
    for cell in cells:
        heads = re.findall(r"^(#+) (.*)$", "".join(cell["source"]), re.M) if cell["cell_type"] == "markdown" else []
        for marks, head in heads:
            if level and len(marks) <= level:
                level = 0
            if head.startswith("Optional: "):
                level = len(marks)
        found.append((cell, level > 0))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_optional_sections_and_predictions_are_folded(path):
    cells = headed(read(path)[0]["cells"])
    for (cell, inside), (_, before) in zip(cells, [(None, False), *cells]):
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        assert ("jp-MarkdownHeadingCollapsed" in cell["metadata"]) == bool(re.match(r"#+ Optional: ", text))
        assert not re.search(r"\n#+ Optional: ", text), "the heading of an optional section begins its own cell"
        if cell["cell_type"] == "code":
            assert ("hide-cell" in tags) == inside, text
            assert ("hide-output" in tags) == cell["metadata"].get("jupyter", {}).get("outputs_hidden", False), text
        elif before and not inside:
            assert text.startswith("#"), "what follows an optional section begins its own cell, or the fold hides it"


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "## Quiz" in read(path)[1]], ids=lambda path: path.stem)
def test_a_checkpoint_and_a_quiz(path):
    notebook, prose = read(path)
    questions = re.split(r"^\d\. ", prose.split("## Quiz")[1].split("\n## ")[0], flags=re.M)[1:]
    assert len(questions) == 5 and all("<summary>Answer</summary>" in q and "](#" in q for q in questions)
    at = [k for k, cell in enumerate(notebook["cells"]) if "".join(cell["source"]).startswith("**Checkpoint.**")]
    assert len(at) == 1 and 0.2 < at[0] / len(notebook["cells"]) < 0.8, "a checkpoint in the middle"
    folded = any("hide-output" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
    assert "Predict, then run" not in prose or folded and " folded" in prose


def test_the_course_is_one_chain():
    """Every notebook links to the next one, and the first is 00."""
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{k:02}" for k in range(len(NOTEBOOKS))]
    for here, following in pairwise(NOTEBOOKS):
        assert f"]({following.name})" in read(here)[1], f"{here.name} does not lead to {following.name}"


@pytest.mark.parametrize("page", sorted(FOLDER.rglob("*.md")), ids=lambda page: str(page.relative_to(FOLDER)))
def test_pages_name_and_link_what_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert missing_names(text) == [] and broken_links(text, page.parent) == []


def test_the_checks_find_each_fault():
    def cell(source="1", count=1, outputs=(), metadata=None):
        return {
            "cell_type": "code",
            "source": [source],
            "execution_count": count,
            "outputs": list(outputs),
            "metadata": metadata or {},
        }

    def of(*cells, **metadata):
        return faults({"metadata": metadata, "cells": list(cells)})

    printed = {"output_type": "stream", "text": ["saved to /root/x.html\n"]}
    figure = {"output_type": "display_data", "data": {"image/png": "AAAA"}}
    assert of(cell()) == []
    assert of(cell(count=None)) == ["cell 0 was not executed"]
    assert of(cell(source="", count=None)) == []
    assert of(cell(outputs=[{"output_type": "error"}])) == ["cell 0 ended in an error"]
    assert of(cell(outputs=[printed])) == ["cell 0 holds the absolute path /root/x.html"]
    assert of(cell(outputs=[printed | {"name": "stderr", "text": ["?"]}])) == ["cell 0 shows a warning or a log line"]
    assert of(cell("\n" * 15 + "1")) == ["cell 0 has 16 lines"]
    assert of(cell(count=2)) == ["the cells were not executed in order, once"]
    assert len(of(cell(outputs=[figure]))) == 1 and of(cell(outputs=[figure], metadata={"alt": "Two bars."})) == []
    assert len(of(cell(), widgets={})) == 1
    assert private_names("import cdlearn\ncdlearn._x\nfrom cdlearn.loops.run import _Row") == ["_Row", "_x"]
    assert missing_names("`cdlearn.generate` and `cdlearn.scores.nonsense(x)`") == ["cdlearn.scores.nonsense"]
    assert broken_links("[a](nowhere.ipynb) [b](https://x.org)", FOLDER) == ["nowhere.ipynb"]
    assert broken_links("[a](README.md#no-such-part)", FOLDER) == ["README.md#no-such-part"]
    assert broken_links("# A part\n\n[a](#a-part) [b](#another)", FOLDER) == ["#another"]
