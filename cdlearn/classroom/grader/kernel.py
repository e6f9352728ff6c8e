"""The student's process: it runs the cells, holds the functions and answers calls. It decides nothing about points.

Started as a file by `Session`, where the rest of the package may be out of reach; without `real` among its arguments
`import cdlearn` gives stand-ins: they do nothing in a cell, and say in an answer that this package is not to be used.
"""

import builtins
import contextlib
import dis
import importlib.abc
import importlib.machinery
import inspect
import io
import json
import os
import sys
import traceback
from unittest.mock import MagicMock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from wire import LONGEST, Wire, line  # noqa: E402  (the file beside this one)

FILES = 1 << 28  # bytes that may be written into one file
SHOWN = 300  # characters of an error, and of what a call prints


class Printed(io.TextIOBase):
    """Takes what is printed and keeps the beginning."""

    text = ""

    def write(self, piece):
        self.text += piece[: max(0, SHOWN - len(self.text))]
        return len(piece)


class Absent(MagicMock):
    """Whatever is looked for in a package that is not there."""

    answering = False  # whether the grader waits for a function's answer

    def __call__(self, *args, **options):
        if Absent.answering:
            raise ImportError("an answer may not use cdlearn: write this part yourself, with torch and plain Python")
        return super().__call__(*args, **options)


class Nothing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for a package that answers may not use."""

    def find_spec(self, name, path=None, target=None):
        own = name.split(".")[0] == "cdlearn"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if own else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        def get(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Absent(name=name)

        module.__all__, module.__getattr__ = [], get


class Kernel:
    """One IPython shell and the line to the grader."""

    def __init__(self, source, sink):
        from IPython.core.interactiveshell import InteractiveShell

        self.source, self.sink, self.wire = source, sink, Wire(self.ask, self.find)
        self.shell = InteractiveShell.instance()
        self.shell.enable_gui = lambda gui=None: None  # what %matplotlib asks for
        self.shell._tee = lambda channel: contextlib.nullcontext()  # it would keep all that is printed
        self.names = self.shell.user_ns

    def serve(self):
        while message := self.read():
            try:
                answer = getattr(self, "do_" + message["do"])(**message)
            except BaseException as error:  # whatever the student's code does is an answer
                answer = {"error": told(error)}
            self.send(answer)

    def read(self):
        text = self.source.readline()
        return json.loads(text) if text else None

    def send(self, message):
        try:
            data = line(message)
        except (ValueError, RecursionError) as error:
            data = line({"error": told(error)})
        if len(data) > LONGEST:
            data = line({"error": {"kind": "ValueError", "text": "the answer is too large to be looked at"}})
        self.sink.write(data)
        self.sink.flush()

    def ask(self, request):
        """Have the grader use an object that it holds."""
        if "call" in request:
            request["call"] = [self.wire.pack(part) for part in request["call"]]
        self.send({"ask": request, "caches": self.wire.changed()})
        reply = self.read()
        if "error" in reply:
            kind = getattr(builtins, reply["error"]["kind"], RuntimeError)
            raise kind(reply["error"]["text"])
        self.wire.become(reply["caches"])
        return self.wire.unpack(reply["value"])

    def find(self, path):
        """What the grader names, `pair.expert` for instance."""
        name, *more = path.split(".")
        value = self.names[name]
        for one in more:
            value = getattr(value, one)
        return value

    def do_run(self, source, **_):
        """Run one statement of a cell."""
        with contextlib.redirect_stdout(Printed()), contextlib.redirect_stderr(Printed()):
            result = self.shell.run_cell(source, silent=True)
        error = result.error_before_exec or result.error_in_exec
        return {"error": told(error)} if error else {}

    def do_begin(self, **_):
        """Forget what was given back so far."""
        self.wire.held.clear()
        return {}

    def do_has(self, names, **_):
        """Which of these names are there: True for what can be called, False for what cannot."""
        return {"value": {name: callable(self.names[name]) for name in names if name in self.names}}

    def do_used(self, name, **_):
        """The names that a function and its helpers look up in the notebook."""
        found, queue = set(), [self.names.get(name)]
        for one in queue:  # grows on the way
            new = _globals(inspect.unwrap(one)) - found
            queue += [self.names[other] for other in sorted(new) if inspect.isfunction(self.names.get(other))]
            found |= new
        return {"value": sorted(found)}

    def do_call(self, name, call, helpers, **_):
        """Call a function with the grader's helpers in the place of the student's own."""
        self.wire.caches.clear()
        args, options = (self.wire.unpack(part) for part in call)
        own = {other: self.names[other] for other in helpers if other in self.names}
        self.names.update({other: self.wire.unpack(one) for other, one in helpers.items()})
        printed, answer, Absent.answering = Printed(), {}, True
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                answer["value"] = self.wire.pack(self.names[name](*args, **options))
        except BaseException as error:
            answer["error"] = told(error)
        finally:
            Absent.answering = False
            for other in helpers:
                self.names.pop(other, None)
            self.names.update(own)
        after = [self.wire.pack(value) for value in (args, options)]
        return answer | {"printed": printed.text, "after": after}

    def do_use(self, **request):
        """Use an object that a call gave back."""
        return {"value": self.wire.pack(self.wire.use(request))}


def _globals(function):
    """The names that a function and those inside it look up outside."""
    codes = [function.__code__] if inspect.isfunction(function) else []
    for code in codes:
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    steps = [step for code in codes for step in dis.get_instructions(code)]
    return {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}


def told(error):
    """An error as data: its kind, its text, and the line of the student's that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    cells = [frame for frame in frames if frame.filename.startswith("<ipython-input") and frame.line]
    where = next((f"line {frame.lineno}: {frame.line}" for frame in cells[-1:]), "")
    try:
        text = str(error)
    except Exception:
        text = "an error without words"
    return {"kind": type(error).__name__[:80], "text": text[: 10 * SHOWN], "where": where[:SHOWN]}


def limit(memory):
    """Limit the address space and the files of this process and all it starts, where the system can."""
    try:
        import resource
    except ImportError:
        return
    limits = {resource.RLIMIT_FSIZE: FILES, resource.RLIMIT_CORE: 0}
    for kind, most in (limits | ({resource.RLIMIT_AS: int(memory * 2**30)} if memory else {})).items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses the address space
            resource.setrlimit(kind, (most, most))


def main():
    memory, *options = sys.argv[1:]
    source, sink = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "rb"), (1, "wb")))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    sys.path[0] = os.getcwd()
    limit(float(memory))
    if "real" not in options:
        sys.meta_path.insert(0, Nothing())
    kernel = Kernel(source, sink)
    kernel.send({})  # ready
    kernel.serve()


if __name__ == "__main__":
    main()
