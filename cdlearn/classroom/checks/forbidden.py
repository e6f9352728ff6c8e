"""Read a function's syntax tree for what it may not use, so that importing the answer scores nothing."""

import ast
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from cdlearn.classroom.checks.values import show

_PACKAGE = Path(__file__).parents[2]
_LOOK_UP = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS")
_BACK_DOORS = ("eval", "exec", "compile", "__import__", "importlib")


def forbid(function: Callable, *names: str) -> None:
    """Raise AssertionError if the function uses one of the names: packages, functions or methods."""
    if found := forbidden_uses(function, names):
        raise AssertionError(f"may not use {', '.join(names)}, but uses {', '.join(found)}")


def forbidden_uses(function: Callable, names: Sequence[str]) -> list[str]:
    """Return what a function uses of `names`, as written there; helpers from the same notebook are read too.

    A name is forbidden as itself, as an attribute (`x.generate`), as an import, and as anything that was imported from
    a package of that name under whatever alias. A function whose source cannot be read is reported as such.
    """
    return sorted(set(_uses(function, tuple(names), seen=set())))


def names_used(function: Callable) -> set[str]:
    """Return the names that a function looks up in its notebook; what its helpers there look up counts too."""
    if hasattr(function, "names_used"):  # it runs in another process
        return function.names_used()
    found, queue = set(), [inspect.unwrap(function)]
    for one in queue:  # grows on the way
        new = _globals(one) - found if inspect.isfunction(one) else set()
        helpers = [one.__globals__.get(name) for name in sorted(new)]
        queue += [helper for helper in helpers if getattr(helper, "__globals__", None) is one.__globals__]
        found |= new
    return found


def _uses(function: Any, names: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    seen.add(id(function))
    if getattr(function, "elsewhere", False):  # in another process, which has no such package
        return
    if isinstance(function, functools.partial):
        yield from _uses(function.func, names, seen)
        return
    if not inspect.isroutine(function) and inspect.isfunction(call := vars(type(function)).get("__call__")):
        function = call  # an object that can be called
    if _origin(function) in names or {_home(function), _home(inspect.unwrap(function))} & {*names}:
        yield getattr(function, "__name__", type(function).__name__)
        return
    function = inspect.unwrap(function)
    function = getattr(function, "__func__", function)  # a method of an object
    if not inspect.isfunction(function):
        yield f"{show(function)}, whose source cannot be read: write it as a `def` in a cell"
        return
    for node in ast.walk(_tree(function)):
        if isinstance(node, ast.Attribute) and node.attr in names:
            yield ast.unparse(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            roots = [getattr(node, "module", "") or "", *(alias.name for alias in node.names)]
            if any(root.split(".")[0] in names for root in roots):
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if " " not in node.value and node.value.split(".")[0] in names:
                yield repr(node.value)
    known = function.__globals__ | inspect.getclosurevars(function).nonlocals
    for name in _globals(function):
        value = known.get(name)
        # what stands in for the student's is called by its own name
        own = value is function.__globals__.get(name) and inspect.isfunction(value) and name == value.__code__.co_name
        if name in names or name in _BACK_DOORS or _origin(value) in names or (_home(value) in names and not own):
            yield name
        elif inspect.isfunction(value) and value.__globals__ is function.__globals__ and id(value) not in seen:
            yield from _uses(value, names, seen)
    for value in [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]:
        if _origin(value) in names:
            yield f"the default {value!r}"[:60]


def _tree(function: Callable) -> ast.AST:
    """Its source; where that is lost (a kernel that ran out of memory drops its lines), its names and strings."""
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(function)))]
        if function.__name__ == "<lambda>":  # its source is the whole line it stands on
            trees = [node for node in ast.walk(trees[0]) if isinstance(node, ast.Lambda)]
    except (OSError, TypeError, SyntaxError):
        trees = []
    codes = _codes(function)
    words = sorted({name for code in codes for name in code.co_names})
    strings = [constant for code in codes for constant in code.co_consts if isinstance(constant, str)]
    lost = [ast.Attribute(ast.Name("_", ast.Load()), word, ast.Load()) for word in words]
    return ast.Module(trees or [*lost, *map(ast.Constant, [*strings, *words])], [])


def _codes(function: Callable) -> list[CodeType]:
    """The code of a function and of those inside it."""
    found = [function.__code__]
    for code in found:
        found += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return found


def _globals(function: Callable) -> set[str]:
    """The names that a function and those inside it look up outside: a local variable may be called anything."""
    steps = (step for code in _codes(function) for step in dis.get_instructions(code))
    return {step.argval for step in steps if step.opname in _LOOK_UP} | set(function.__code__.co_freevars)


def _origin(value: Any) -> str:
    """The top package that a module, a function, a class or an instance comes from."""
    if value is None:
        return ""
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or type(value).__module__
    return str(name).split(".")[0]


def _home(value: Any) -> str:
    """The package's name if it holds a function's code, whatever module the function claims."""
    code = getattr(value, "__code__", None)
    return _PACKAGE.name if inspect.iscode(code) and _PACKAGE in Path(code.co_filename).parents else ""
