"""Which names a function looks up, and whether it uses a package that an answer may not use.

This tells an honest student so at once. No verdict depends on it: where `cdlearn grade` calls an answer, the package is
not there (`grader/kernel.py`).
"""

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def forbid(function: Callable, *packages: str) -> None:
    """Raise AssertionError if the function uses one of these packages."""
    if found := forbidden_uses(function, packages):
        raise AssertionError(f"may not use {', '.join(packages)}, but uses {', '.join(found)}")


def forbidden_uses(function: Callable, packages: Sequence[str]) -> list[str]:
    """Return what a function uses of these packages, under whatever alias, as written there.

    Its helpers from the same notebook are read too. A reference that a check has put in the place of an earlier
    function is no use of the package.
    """
    found = set()
    for one in _with_helpers(function):
        if _origin(one) in packages:
            found.add(getattr(one, "__name__", type(one).__name__))
            continue
        known = one.__globals__ | inspect.getclosurevars(one).nonlocals
        names = {name: known.get(name) for name in _names(one) | set(one.__code__.co_freevars)}
        found |= {name for name, value in names.items() if _origin(value) in packages and not _stands_in(name, value)}
        defaults = [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        found |= {f"the default {value!r}"[:60] for value in defaults if _origin(value) in packages}
        found |= {name for name in _names(one, "IMPORT_NAME") if name.split(".")[0] in packages}
    return sorted(found)


def names_used(function: Callable) -> set[str]:
    """Return the names that a function looks up in its notebook; what its helpers there look up counts too."""
    if hasattr(function, "names_used"):  # it runs in another process
        return function.names_used()
    return {name for one in _with_helpers(function) if inspect.isfunction(one) for name in _names(one)}


def _with_helpers(function: Any) -> Iterator[Any]:
    """A function, as what a `def` made if that can be found, and the functions of its notebook that it looks up."""
    if hasattr(function, "names_used"):  # in another process, which has no such package
        return
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and inspect.isfunction(call := type(function).__call__):
        function = function if _origin(function) == "cdlearn" else call
    queue = [getattr(inspect.unwrap(function), "__func__", inspect.unwrap(function))]
    for one in queue:  # grows on the way
        if not inspect.isfunction(one):
            if _origin(one) == "cdlearn":
                yield one
            continue
        yield one
        helpers = [one.__globals__.get(name) for name in sorted(_names(one))]
        queue += [f for f in helpers if getattr(f, "__globals__", 0) is one.__globals__ and f not in queue]


def _names(function: Callable, step: str = "LOAD_GLOBAL") -> set[str]:
    """The names that a function and those inside it look up outside: a local variable may be called anything."""
    codes = [function.__code__]
    for code in codes:
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return {one.argval for code in codes for one in dis.get_instructions(code) if one.opname == step}


def _origin(value: Any) -> str:
    """The top package that a module, a function, a class or an instance comes from."""
    if value is None:
        return ""
    name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or type(value).__module__
    return str(name).split(".")[0]


def _stands_in(name: str, value: Any) -> bool:
    """Whether it is the reference of a check, under its own name."""
    module = sys.modules.get(getattr(value, "__module__", None))
    known = vars(module).values() if module else ()
    return any(getattr(one, "reference", None) is value and one.name == name for one in known)
