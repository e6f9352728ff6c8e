"""The token inspector: every decision of a trace, and what other settings would have decided, without running a model.

Only "regenerate" and "branch" run one, in the background. Plain ipywidgets, composed; the trace is never changed.
"""

from __future__ import annotations

import atexit
import math
import threading
from html import escape
from typing import Any

import ipywidgets as widgets

from cdlearn.loops.generate import Generation, generate
from cdlearn.show import html
from cdlearn.show.style import read_trace
from cdlearn.sources import as_source
from cdlearn.trace.rescore import at_position, changeable, strength_of
from cdlearn.trace.trace import Trace

_WIDE = widgets.Layout(width="100%")
_SNUG = widgets.Layout(width="max-content", flex="0 0 auto")
_SLIDERS = {  # setting: label, least, greatest, step, start
    "strength": ("strength", 0.0, 3.0, 0.01, 1.0),
    "alpha": ("log10 alpha", -4.0, 0.0, 0.01, -1.0),
    "amateur_temperature": ("amateur tau", 0.1, 3.0, 0.05, 1.0),
}


class Inspector(widgets.VBox):
    """What `inspect` returns.

    trace: the trace shown. versions: name -> trace, the recorded one and what was written since. position: the one that
    is selected; it can be set. settings: the numbers that differ from the trace's own; `set(...)` moves the controls.
    `regenerate` and `branch` run the model, `cancel` stops it, `close` frees every widget.
    """

    def __init__(self, trace: Trace, *, source: Any = None, compare: Trace | None = None) -> None:
        self.versions = {"recorded": trace}
        self.trace, self.compare = trace, compare
        self.source = None if source is None else as_source(source, "source")
        self._thread: threading.Thread | None = None
        self._cancelled = False
        super().__init__(self._build())
        self._load()

    def _build(self) -> list[widgets.Widget]:
        """Every widget, and the rows they stand in."""
        for pane in "before strip other what_if flips table layers rounds said".split():
            setattr(self, f"_{pane}", widgets.HTML(layout=_WIDE))
        self._version = widgets.Dropdown(options=list(self.versions), description="text")
        self._metric = widgets.Dropdown(options=list(html.METRICS), description="colour")
        self._position = widgets.Select(options=[], description="position", rows=6)
        pairs = {name: _pair(*row) for name, row in _SLIDERS.items()}
        self._sliders = {name: slider for name, (slider, _) in pairs.items()}
        self._numbers = {name: box for name, (_, box) in pairs.items()}
        self._strength, self._alpha, self._temperature = self._sliders.values()
        self._tabs = widgets.Tab([self._table])
        self._regenerate = widgets.Button(description="Regenerate from here", layout=_SNUG)
        self._candidate = widgets.Dropdown(options=[], description="candidate")
        self._branch = widgets.Button(description="Branch on it", layout=_SNUG)
        self._cancel = widgets.Button(description="Cancel", disabled=True)
        self._bar = widgets.IntProgress(min=0, max=1, description="tokens", layout=widgets.Layout(visibility="hidden"))
        if self.source is None:
            for control in (self._regenerate, self._branch):
                control.disabled, control.tooltip = True, "inspect(generation, source=source) can run the model again"
        self._regenerate.on_click(lambda _: self._safely(self.regenerate))
        self._branch.on_click(lambda _: self._safely(self.branch))
        self._cancel.on_click(lambda _: self.cancel())
        self._version.observe(lambda _: self._safely(self._load), "value")
        for control in (self._metric, self._position, *self._sliders.values()):
            control.observe(lambda _: self._safely(self._show), "value")
        head = widgets.HBox([self._version, self._metric])
        controls = widgets.HBox([self._position, widgets.VBox([*self._numbers.values(), self._flips])])
        actions = widgets.HBox([self._regenerate, self._candidate, self._branch, self._cancel, self._bar])
        return [head, self._before, self._strip, self._other, controls, self._what_if, self._tabs, actions, self._said]

    def _load(self) -> None:
        """Show the chosen text with its own settings."""
        self.trace = trace = self.versions[self._version.value]
        alpha = trace.settings.get("alpha")
        self._quiet = True
        self._position.options = [(f"{k}  {text}", k) for k, text in enumerate(html.texts_of(trace, trace.token_ids))]
        self._position.value = html.first_moved(trace) if len(trace) else None
        self._strength.value = strength_of(trace)
        self._temperature.value = trace.settings.get("amateur_temperature", 1.0)
        self._alpha.value = -4.0 if alpha is None else math.log10(alpha)
        self._start = {name: slider.value for name, slider in self._sliders.items()}
        self._changeable = [name for name in self._numbers if name in changeable(trace)]
        for name, box in self._numbers.items():
            box.layout.display = "" if name in self._changeable else "none"
        tabs = {"candidates": self._table}
        tabs |= {"layers": self._layers} if "layers" in trace.settings else {}
        tabs |= {"speculation": self._rounds} if trace.rounds else {}
        self._tabs.children, self._tabs.titles = list(tabs.values()), list(tabs)
        recorded, branched = self.versions["recorded"], self._version.value.startswith("branch")
        self._before.value = html.prefix_strip(trace, len(recorded.prompt_ids), branched=branched)
        beside = self.compare is not None and trace is recorded
        self._other.value = html.other_strip(trace, self.compare) if beside else ""
        self._quiet = False
        self._show()

    @property
    def position(self) -> int | None:
        """The selected position, from 0; None in an empty trace."""
        return self._position.value

    @position.setter
    def position(self, value: int) -> None:
        at_position(self.trace, value)  # its errors name the positions there are
        self._position.value = value

    def set(self, **settings: float | None) -> None:
        """Move the controls: strength, alpha (None or 0: no mask), amateur_temperature. ValueError for any other."""
        for name, value in settings.items():
            if name not in self._changeable:
                there = ", ".join(self._changeable) or "none"
                raise ValueError(f"{name} is {value!r}, but this text's controls are: {there}.")
        self.trace.rescore(**settings)  # its errors name the value
        for name, value in settings.items():
            slider = self._sliders[name]
            if name == "alpha":
                value = math.log10(value) if value else slider.min
            elif value is None:  # as it was
                continue
            slider.value = min(max(value, slider.min), slider.max)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the trace's own, as `Trace.rescore` takes them; alpha 0 is no mask."""
        changed = {}
        for name in self._changeable:
            slider = self._sliders[name]  # a browser rounds its value to the slider's steps by itself
            if round(slider.value / slider.step) != round(self._start[name] / slider.step):
                changed[name] = slider.value
        if "alpha" in changed:
            changed["alpha"] = 0 if self._alpha.value <= self._alpha.min else 10**self._alpha.value
        if "amateur_temperature" in changed and "beta" in self.trace.settings:
            changed = {"strength": strength_of(self.trace)} | changed  # the beta form knows no temperature
        return changed

    def _show(self) -> None:
        """Redraw everything from the trace and the controls: pure functions, no model."""
        if self._quiet:
            return
        trace, position, settings = self.trace, self._position.value, self.settings
        if position is None:
            self._strip.value = html.EMPTY
            return
        new = trace.rescore(**settings) if settings else trace
        self._strip.value = html.trace_strip(trace, metric=self._metric.value, selected=position)
        self._what_if.value = html.what_if_strip(trace, new, settings) if self._changeable else ""
        self._table.value = html.candidate_table(new, position, recorded=trace.recorded_ids[position])
        highest = {name: 1.0 if name == "alpha" else self._sliders[name].max for name in self._changeable}
        self._flips.value = html.flip_scales(trace, position, highest)
        self._layers.value = html.layer_table(trace, position) if "layers" in trace.settings else ""
        self._rounds.value = html.round_table(trace, position) if trace.rounds else ""
        ids = new.candidates[position, : min(12, new.candidates.shape[1] - 1)].tolist()
        self._candidate.options = list(zip(html.texts_of(trace, ids), ids))
        # a branch means another token
        self._candidate.value = next((token for token in ids if token != trace.recorded_ids[position]), ids[0])
        truncated = bool(new.truncated[position])
        self._said.value = "Truncated: more tokens are kept than recorded here." if truncated else ""

    def regenerate(self, *, wait: bool = False) -> None:
        """Continue from the selected position with the controls' settings, in the background."""
        self._run("from", [], self.settings, wait)

    def branch(self, *, wait: bool = False) -> None:
        """Put the chosen candidate at the selected position and continue from there."""
        self._run("branch at", [self._candidate.value], {}, wait)

    def cancel(self) -> None:
        """Stop what runs; what is there is kept."""
        self._cancelled = True

    def _end(self) -> None:
        self.cancel()
        self._thread.join()

    def _run(self, name: str, added: list[int], settings: dict[str, Any], wait: bool) -> None:
        if self.source is None:
            raise ValueError("source is None: open the inspector with inspect(generation, source=source).")
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("a text is being written: wait, or press Cancel.")
        source = self.source.changed(**settings) if settings else self.source
        position = self._position.value
        prefix = [*self.trace.prompt_ids, *self.trace.recorded_ids[:position], *added]
        self._cancelled, self._bar.value, self._bar.max = False, 0, max(len(self.trace) - position, 16)
        self._bar.layout.visibility, self._cancel.disabled = "visible", False
        write = lambda: self._write(source, prefix, f"{name} {position}")  # noqa: E731
        self._thread = threading.Thread(target=self._safely, args=(write,), daemon=True)
        atexit.register(self._end)  # a model that runs while the interpreter ends would abort it
        self._thread.start()
        if wait:
            self._thread.join()

    def _write(self, source: Any, prefix: list[int], name: str) -> None:
        """Generate a version and show it."""
        try:
            made = generate(source, prefix, tokenizer=self.trace.tokenizer, max_new_tokens=self._bar.max,
                            stream=_Ticks(self), progress=False)  # fmt: skip
        finally:
            atexit.unregister(self._end)
            self._bar.layout.visibility, self._cancel.disabled = "hidden", True
        number = sum(known.startswith(name) for known in self.versions)
        label = name if not number else f"{name} ({number + 1})"
        self.versions[label] = made.trace
        self._version.options = list(self.versions)
        self._version.value = label

    def _safely(self, action: Any) -> None:
        """Errors of a callback would vanish in a log: they are said in a line of their own."""
        try:
            action()
        except (ValueError, TypeError, RuntimeError) as error:
            box = "color:#000;background:#F0E442;padding:2px 6px"
            self._said.value = f'<div style="{box}">{escape(str(error))}</div>'

    def close(self) -> None:
        """Free every widget; a text being written stops."""
        self.cancel()
        for child in self.children:
            _close(child)
        super().close()


class _Ticks:
    """A streamer that counts tokens on an inspector's bar and can stop them; the prompt comes first."""

    def __init__(self, shown: Inspector) -> None:
        self.shown, self.calls = shown, 0

    def put(self, tokens: Any) -> None:
        self.calls += 1
        self.shown._bar.value = self.calls - 1
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


def _pair(label: str, low: float, high: float, step: float, value: float) -> tuple[Any, widgets.HBox]:
    """A slider and a number box that follow each other: sliders have no name that a screen reader could say."""
    limits = dict(value=value, min=low, max=high, step=step)
    slider = widgets.FloatSlider(**limits, readout=False, description="")
    style, layout = {"description_width": "110px"}, widgets.Layout(width="200px", flex="0 0 auto")
    box = widgets.BoundedFloatText(**limits, description=label, style=style, layout=layout)
    widgets.link((slider, "value"), (box, "value"))
    return slider, widgets.HBox([box, slider])


def _close(widget: widgets.Widget) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    widget.close()
