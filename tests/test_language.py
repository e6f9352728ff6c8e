"""The five rules of the course's language, as far as a pattern can see them."""

import ast
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MASTERS = sorted((ROOT / "notebooks" / "assignments" / "source").glob("*/*.ipynb"))
NOTEBOOKS = [*sorted((ROOT / "notebooks").glob("*.ipynb")), *MASTERS]
CLASSROOM = sorted((ROOT / "cdlearn" / "classroom").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "notebooks").glob("*.md")),
    ROOT / "notebooks" / "assignments" / "README.md",
]
COUNTED = "tokens?|passes|positions|calls?|seconds|words|decisions|candidates|numbers?|ms|drafts|texts|items"
RULES = {
    "per, not a": rf"\b({COUNTED}) an? (round|pass|step|token|call|row|second|task|prompt|line|mask)\b",
    "after, not behind": r"\bbehind (the|a|an|it|them|this|that|those|none|these)\b",
    "distribution, not law": r"\b[Ll]aws?\b",
    "accepted, not standing": r"\b(drafts?|tokens?) (that )?(stands?|stood)\b",
    "predict": r"\b[Ff]oret(ell|old)",
}
SPATIAL = "looked behind every tree"  # a story's own words


def prose(text: str) -> str:
    """Markdown without code, formulas, tables, headings, lists' links and folds."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", " x ", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "<", "!["))]
    return re.sub(r"`[^`]*`", "x", "\n".join(lines)).replace(SPATIAL, "")


def broken(text: str) -> list[str]:
    return [f"{rule}: {found[0]}" for rule, bad in RULES.items() for found in re.finditer(bad, prose(text))]


def markdown(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def sentences(text: str) -> list[str]:
    found = [part for block in prose(text).split("\n\n") for part in re.split(r"(?<=[.!?])\s+", block.strip())]
    return [part for part in found if len(part.split()) > 3]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES], ids=lambda path: path.stem)
def test_the_fields_words_are_used(path):
    texts = markdown(path) if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
    assert [found for text in texts for found in broken(text)] == []


@pytest.mark.parametrize("path", CLASSROOM, ids=lambda path: path.stem)
def test_what_a_check_says_uses_them_too(path):
    texts = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
    assert [found for text in texts if isinstance(text, str) for found in broken(text)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_sentences_are_neither_staccato_nor_endless(path):
    median = statistics.median(len(part.split()) for text in markdown(path) for part in sentences(text))
    assert 14 <= median <= 18


def test_the_patterns_find_what_they_are_for():
    bad = "It makes 3 tokens a round. The law is exact. Columns behind the mask. A token stands with p. We foretell."
    assert len(broken(bad)) == 5
    assert broken("3 tokens per round; `law` in code; $law$; the distribution; after the mask; it is accepted") == []
