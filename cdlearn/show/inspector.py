"""The token inspector in a notebook: inspector.js in a widget. The page draws and computes; Python runs the model.

The widget (anywidget, on ipywidgets) sends three messages: regenerate, branch, cancel. The trace is never changed.
"""

from __future__ import annotations

import atexit
import threading
from typing import Any

import anywidget
import traitlets

from cdlearn.loops.generate import Generation, generate
from cdlearn.show import handout
from cdlearn.show.html import first_moved, trace_html
from cdlearn.show.pack import controls, pack
from cdlearn.show.style import read_trace
from cdlearn.sources import as_source
from cdlearn.trace.rescore import at_position
from cdlearn.trace.trace import Trace


class Inspector(anywidget.AnyWidget):
    """What `inspect` returns.

    versions: name -> trace, the recorded one and what was written since; trace: the one shown. position: the one that
    is selected; it can be set. settings: the numbers that differ from the trace's own, as `Trace.rescore` takes them;
    `set(...)` moves the controls. `regenerate` and `branch` run the model, `cancel` stops it, `close` frees the widget.
    """

    _esm, _css = handout.MODULE, handout.STYLE
    _packed = traitlets.List().tag(sync=True)  # (name, bytes) of every version
    _version = traitlets.Int(0).tag(sync=True)
    _position = traitlets.Int(0).tag(sync=True)
    _settings = traitlets.Dict().tag(sync=True)
    _other = traitlets.Int(-1).tag(sync=True)  # the version that is laid beside
    _source = traitlets.Bool(False).tag(sync=True)
    _progress = traitlets.List().tag(sync=True)  # tokens written, and how many there may be; empty: nothing runs
    _said = traitlets.Unicode("").tag(sync=True)  # what went wrong

    def __init__(self, trace: Trace, *, source: Any = None, compare: Trace | None = None) -> None:
        self.versions = {"recorded": trace} | ({} if compare is None else {"the other": compare})
        self.source = None if source is None else as_source(source, "source")
        self._thread: threading.Thread | None = None
        self._cancelled = False
        super().__init__()
        self._source, self._other = self.source is not None, -1 if compare is None else 1
        self._packed = [(name, pack(shown)) for name, shown in self.versions.items()]
        self._open(0)
        self.on_msg(self._answer)

    def _open(self, version: int) -> None:
        """Show one of the versions, where it is most telling, with its own settings."""
        with self.hold_sync():
            self._version, self._settings = version, {}
            self._position = first_moved(self.trace)

    @property
    def trace(self) -> Trace:
        """The trace shown."""
        return list(self.versions.values())[self._version]

    @property
    def position(self) -> int | None:
        """The selected position, from 0; None in an empty trace."""
        return self._position if len(self.trace) else None

    @position.setter
    def position(self, value: int) -> None:
        at_position(self.trace, value)  # its errors name the positions there are
        self._position = value

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the trace's own; alpha 0 is no mask."""
        return dict(self._settings)

    def set(self, **settings: float | None) -> None:
        """Move the controls, as `Trace.rescore` names them; alpha None or 0: no mask; another None: as recorded.

        Raises ValueError for a setting that this trace's controls do not have, TypeError or ValueError for its value.
        """
        there = controls(self.trace)
        for name, value in settings.items():
            if name not in there:
                raise ValueError(f"{name} is {value!r}, but this text's controls are: {', '.join(there) or 'none'}.")
        self.trace.rescore(**settings)  # its errors name the value
        new = self._settings | settings | ({"alpha": settings["alpha"] or 0} if "alpha" in settings else {})
        self._settings = {name: value for name, value in new.items() if value is not None}

    def regenerate(self, *, wait: bool = False) -> None:
        """Continue from the selected position with the controls' settings, in the background."""
        self._run("from", [], self.settings, wait)

    def branch(self, token_id: int | None = None, *, wait: bool = False) -> None:
        """Put a candidate at the selected position and continue; None: the expert's best that is not the text's."""
        here = at_position(self.trace, self._position)
        ids, text = here.candidates[0, :-1].tolist(), here.recorded_ids[0]
        if token_id is None:
            token_id = next((token for token in ids if token != text), ids[0])
        if token_id not in ids:
            raise ValueError(f"token_id is {token_id!r}, which is no candidate of position {self._position}.")
        self._run("branch at", [token_id], {}, wait)

    def cancel(self) -> None:
        """Stop what runs; what is there is kept."""
        self._cancelled = True

    def close(self) -> None:
        """Free the widget; a text being written stops."""
        self.cancel()
        super().close()

    def _answer(self, _: Any, message: dict[str, Any], __: Any) -> None:
        """The page asks for one of three things."""
        if message.get("do") == "cancel":
            self.cancel()
        elif message.get("do") == "regenerate":
            self._safely(self.regenerate)
        elif message.get("do") == "branch":
            self._safely(lambda: self.branch(message.get("token")))

    def _run(self, name: str, added: list[int], settings: dict[str, Any], wait: bool) -> None:
        if self.source is None:
            raise ValueError("source is None: open the inspector with inspect(generation, source=source).")
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("a text is being written: wait, or press Cancel.")
        settings = dict(settings)
        if "layer" in settings:  # the trace's word for it; the source has a list
            settings["layers"] = [settings.pop("layer")]
        source = self.source.changed(**settings) if settings else self.source
        position = self._position
        prefix = [*self.trace.prompt_ids, *self.trace.recorded_ids[:position], *added]
        self._cancelled, self._said, self._progress = False, "", [0, max(len(self.trace) - position, 16)]
        write = lambda: self._write(source, prefix, f"{name} {position}")  # noqa: E731
        self._thread = threading.Thread(target=self._safely, args=(write,), daemon=True)
        atexit.register(self._end)  # a model that runs while the interpreter ends would abort it
        self._thread.start()
        if wait:
            self._thread.join()

    def _end(self) -> None:
        self.cancel()
        self._thread.join()

    def _write(self, source: Any, prefix: list[int], name: str) -> None:
        """Generate a version and show it."""
        tokenizer, most = self.trace.tokenizer, self._progress[1]
        try:
            made = generate(
                source, prefix, tokenizer=tokenizer, max_new_tokens=most, stream=_Ticks(self), progress=False
            )
        finally:
            atexit.unregister(self._end)
            self._progress = []
        number = sum(known.startswith(name) for known in self.versions)
        label = name if not number else f"{name} ({number + 1})"
        self.versions[label] = made.trace
        self._packed = [*self._packed, (label, pack(made.trace))]
        self._open(len(self.versions) - 1)

    def _safely(self, action: Any) -> None:
        """Errors of a callback would vanish in a log: the page says them."""
        try:
            action()
        except (ValueError, TypeError, RuntimeError) as error:
            self._said = str(error)

    def __repr__(self) -> str:
        texts = f", {len(self.versions)} texts" if len(self.versions) > 1 else ""
        return f"Inspector({len(self.trace)} positions{texts})"

    def _repr_mimebundle_(self, **given: Any) -> Any:
        """The widget, and for hosts without its module the recorded trace as HTML without a script."""
        found = super()._repr_mimebundle_(**given)
        bundle, *more = found if isinstance(found, tuple) else (found,)
        bundle = dict(bundle or {}) | {"text/plain": repr(self), "text/html": trace_html(self.trace, self.position)}
        return (bundle, *more) if more else bundle


class _Ticks:
    """A streamer that counts tokens for an inspector and can stop them; the prompt comes first."""

    def __init__(self, shown: Inspector) -> None:
        self.shown, self.calls = shown, 0

    def put(self, tokens: Any) -> None:
        self.calls += 1
        self.shown._progress = [self.calls - 1, self.shown._progress[1]]
        if self.shown._cancelled and self.calls > 1:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


def inspect(
    generation: Generation | Trace, *, source: Any = None, compare: Generation | Trace | None = None
) -> Inspector:
    """The token inspector of a generation or trace, for a notebook.

    source: what made it; with it the inspector can continue from any position and branch on any candidate. compare:
    another generation or trace to lay beside it. Raises TypeError for anything else, ValueError without a trace.
    """
    other = None if compare is None else read_trace(compare, "compare")
    return Inspector(read_trace(generation, "generation"), source=source, compare=other)
