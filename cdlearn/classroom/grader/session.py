"""The student's process from the grader's side: cells are sent in, functions are called there, nothing runs here."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cdlearn.classroom.grader.cells import UNREADABLE, statements
from cdlearn.classroom.grader.sandbox import HOME, end_all, sandbox, sweep, unprotected
from cdlearn.classroom.grader.wire import LONGEST, Wire, error_of, line, raised

PACKAGE = Path(__file__).parents[2]
STARTING = 60  # seconds until the process is ready
SAID = 3000  # characters of an error, or of what a call prints
ASKED = 2000  # questions that one call may ask: the checks' models end a loop long before
HEARD = 100_000_000  # characters that may arrive within one limit of time


class Stopped(BaseException):
    """The process was stopped or died. status: "timeout", "memory" or "died"; the text says it to the student."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


class Session:
    """A process that runs the cells of one notebook and answers calls of its functions.

    folder: the student's other files, and where the process works if there is no sandbox. real: whether it may import
    cdlearn; if not, stand-ins that do nothing take its place. memory: GiB, 0 for no limit. If the process dies it is
    started anew, with every statement but the one that it died of.
    """

    def __init__(self, folder: Path, *, real: bool = False, memory: float = 4.0, one_thread: bool = False) -> None:
        self.folder, self.real, self.memory, self.one_thread = folder, real, memory, one_thread
        self.past: list[str] = []  # statements that were run
        self.wire, self.process = Wire(self._ask), None
        self.until, self.heard = (math.inf, 0.0), 0  # when what runs must be over, of how many seconds; characters

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """All that is done here has so many seconds together, and no more than are left of what is around it."""
        around, self.heard = self.until, 0
        self.until = min(around, (time.monotonic() + seconds, seconds))
        try:
            yield
        finally:
            self.until = around

    def ready(self) -> None:
        """Start the process, if there is none, and run again what was run before."""
        if self.process is not None:
            return
        own = Path(__file__).parent
        command = [sys.executable, str(own / "kernel.py"), str(self.memory), *(["real"] if self.real else [])]
        if not unprotected():
            shown = [*{sys.prefix, sys.base_prefix, *(path for path in sys.path if "site-packages" in path)}]
            box = [*sandbox(shown), *(["--ro-bind", str(PACKAGE)] if self.real else ["--tmpfs"]), str(PACKAGE)]
            for file in (own / "kernel.py", own / "wire.py"):
                box += ["--ro-bind", str(file), str(file)]
            for file in self.folder.iterdir():
                box += ["--ro-bind", str(file), f"{HOME}/{file.name}"]
            command = [*box, *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=self.folder,
            env=self._environment(), start_new_session=True,
        )  # fmt: skip
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=4)
        threading.Thread(target=_read, args=(self.process.stdout, self._lines), daemon=True).start()
        with self.within(STARTING):
            self._receive()
        for statement in self.past:
            with self.within(STARTING):
                self._talk({"do": "run", "source": statement})

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
        kept |= {"HOME": HOME if not unprotected() else str(self.folder), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
        kept |= {"IPYTHONDIR": kept["HOME"], "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        kept |= {"PYTHONPATH": str(PACKAGE.parent)} if self.real else {}
        return kept | ({"OMP_NUM_THREADS": "1"} if self.one_thread else {})

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        end_all(self.process.pid)
        self.process.wait(10)
        self.process.stdin.close()
        self.process = None
        sweep()

    def begin(self) -> None:
        """Forget all objects that have travelled: what one part was given, no other can use."""
        self.ready()
        self.wire.held.clear()
        with self.within(STARTING):
            self._talk({"do": "begin"})

    def run(self, source: str, seconds: float, *, all_of_it: bool = True) -> dict[str, str]:
        """Run a cell, statement by statement: one that fails does not take the next with it. Returns the first error.

        all_of_it: False leaves out what is only said to show it (`check(f)`, `look()`). Where a statement does not come
        back the cell ends, and `Stopped` is raised.
        """
        first = {}
        try:
            pieces = statements(source)
        except UNREADABLE as error:
            where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            return error_of({"kind": type(error).__name__, "text": f"{getattr(error, 'msg', error)}{where}"})
        self.ready()
        with self.within(seconds):
            for statement, node in pieces:
                if all_of_it or not isinstance(node, ast.Expr):
                    found = self._talk({"do": "run", "source": statement})
                    self.past.append(statement)
                    first = first or (error_of(found["error"]) if "error" in found else {})
        return first

    def there(self, names: Iterable[str]) -> dict[str, bool]:
        """Which names are known, and whether they can be called."""
        self.ready()
        with self.within(STARTING):
            found = self._talk({"do": "has", "names": list(names)}).get("value")
        return {str(name): one is True for name, one in found.items()} if isinstance(found, dict) else {}

    def used(self, name: str) -> set[str]:
        """The names that a function looks up."""
        found = self._talk({"do": "used", "name": name}).get("value")
        return set(map(str, found)) if isinstance(found, list) else set()

    def call(self, name: str, args: tuple, options: dict, helpers: dict[str, Callable]) -> Any:
        """Call a function there, with helpers in place of others. The arguments become what the call made of them."""
        self.ready()
        self.wire.caches.clear()
        call, given = [self.wire.pack(list(args)), self.wire.pack(options)], {}
        for other, helper in helpers.items():
            given[other] = self.wire.pack(helper)
        answer = self._talk({"do": "call", "name": name, "call": call, "helpers": given})
        print(str(answer.get("printed", ""))[:SAID], end="")
        after = answer.get("after")
        for here, there in zip((args, options), after if isinstance(after, list) else ()):
            _become(here, self.wire.unpack(there))
        if "error" in answer:
            raise raised(answer["error"])
        return self.wire.unpack(answer.get("value"))

    def _ask(self, request: dict) -> Any:
        """Use an object that a call gave back."""
        if "call" in request:
            request["call"] = [self.wire.pack(part) for part in request["call"]]
        answer = self._talk(request)
        if "error" in answer:
            raise raised(answer["error"])
        return self.wire.unpack(answer.get("value"))

    def _talk(self, message: dict) -> dict:
        """Send a message and return the answer; questions of the other side are answered meanwhile."""
        asked = 0
        self._send(message)
        while "ask" in (answer := self._receive()):
            asked += 1
            if asked > ASKED:
                self._stop("died", f"it asked the models {ASKED} times and was stopped")
            self._send(self._reply(answer))
        return answer

    def _reply(self, question: dict) -> dict:
        """The answer to a question about an object that is held here: data, never another object to ask about."""
        known = dict(self.wire.held)
        try:
            self.wire.become(question.get("caches", ()))
            value = self.wire.pack(self.wire.use(question["ask"]))
            if len(self.wire.held) > len(known):
                raise AttributeError("only numbers and texts are to be had here")
            return {"value": value, "caches": self.wire.changed()}
        except Exception as error:  # the models' own, for wrong shapes for instance
            self.wire.held = known
            return {"error": {"kind": type(error).__name__, "text": str(error)[:300]}}

    def _send(self, message: dict) -> None:
        try:
            self.process.stdin.write(line(message))
            self.process.stdin.flush()
        except OSError:
            self._stop("died", "the process died: a crash, an exit, or more memory than allowed")

    def _receive(self) -> dict:
        """The next message; watches time and memory meanwhile."""
        while True:
            left = self.until[0] - time.monotonic()
            if left <= 0:
                self._stop("timeout", f"it ran longer than {self.until[1]:g} seconds and was stopped")
            try:
                text = self._lines.get(timeout=min(0.5, left))
                break
            except queue.Empty:
                if self.memory and self._held() > self.memory * 2**30:
                    self._stop("memory", "it took more memory than allowed and was stopped")
        self.heard += len(text)
        try:
            message = json.loads(text)
            if isinstance(message, dict) and self.heard < HEARD:
                return message
        except (ValueError, RecursionError):
            pass
        return self._stop("died", "the process died: a crash, an exit, or more memory than allowed")

    def _held(self) -> int:
        """Bytes that the process and all below it hold."""
        import psutil

        held = 0
        with contextlib.suppress(psutil.Error):
            one = psutil.Process(self.process.pid)
            for process in (one, *one.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
        return held

    def _stop(self, status: str, text: str) -> Any:
        self.close()
        raise Stopped(status, text)


class Proxy:
    """A student's function: called here, it runs there.

    names: where the student's other functions are looked up, by their names: what is no `Proxy` there stands in.
    """

    def __init__(self, session: Session, name: str, others: Sequence[str] = ()) -> None:
        self.__name__, self.session, self.others = name, session, others
        self.names: dict[str, Any] = {}

    def __call__(self, *args: Any, **options: Any) -> Any:
        others = {name: self.names.get(name) for name in self.others}
        instead = {name: one for name, one in others.items() if callable(one) and not isinstance(one, Proxy)}
        return self.session.call(self.__name__, args, options, instead)

    def names_used(self) -> set[str]:
        return self.session.used(self.__name__)


def _become(here: Any, there: Any) -> None:
    """Make arguments what a call made of them, as far as they can be changed in place."""
    if isinstance(here, torch.Tensor) and isinstance(there, torch.Tensor):
        if here.shape != there.shape or not torch.equal(here.nan_to_num(), there.to(here).nan_to_num()):
            here.data = there.to(here)
    elif isinstance(here, list) and isinstance(there, list) and len(here) != len(there):
        here[:] = there
    elif isinstance(here, (list, tuple)) and isinstance(there, (list, tuple)):
        for k, (one, other) in enumerate(zip(here, there)):
            if isinstance(here, list) and isinstance(other, (int, float, str)) and one != other:
                here[k] = other
            else:
                _become(one, other)
    elif isinstance(here, dict) and isinstance(there, dict):
        for name in here.keys() & there.keys():
            _become(here[name], there[name])


def _read(stream: Any, lines: queue.Queue) -> None:
    """Put what a process writes into a queue, line by line, until it ends: b""."""
    while text := stream.readline(LONGEST):
        lines.put(text)
    stream.close()
    lines.put(b"")
