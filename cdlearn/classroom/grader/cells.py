"""A student's cell as text: its statements, what it defines, whether anything was written into it."""

from __future__ import annotations

import ast
from functools import lru_cache

UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, RuntimeError)  # what reading a cell may raise


@lru_cache(maxsize=64)
def statements(source: str) -> list[tuple[str, ast.stmt]]:
    """The top-level statements of a cell, magics and all, each on its own lines. Raises what `UNREADABLE` says."""
    from IPython.core.inputtransformer2 import TransformerManager

    text = TransformerManager().transform_cell(source)
    lines, found = text.splitlines(keepends=True), []
    for node in ast.parse(text).body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        found.append(("#\n" * (first - 1) + "".join(lines[first - 1 : node.end_lineno]), node))
    return found


def _nodes(source: str | list[str]) -> list[ast.stmt]:
    """The statements of a cell; none where it cannot be read."""
    try:
        return [node for _, node in statements("".join(source))]
    except UNREADABLE:
        return []


def defined(source: str | list[str]) -> list[str]:
    """The names that a cell defines as functions or assigns, at its top level."""
    nodes = _nodes(source)
    names = [getattr(node, "name", None) for node in nodes]
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    return [name for name in [*names, *(getattr(target, "id", None) for target in targets)] if name]


def unwritten(source: str | list[str]) -> bool:
    """Whether a cell holds nothing but functions as they were handed out: `raise NotImplementedError()`."""
    nodes = _nodes(source)
    return bool(nodes) and all(
        isinstance(node, ast.FunctionDef)
        and ast.unparse(node.body[-1]) == "raise NotImplementedError()"
        and all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in node.body[:-1])
        for node in nodes
    )
