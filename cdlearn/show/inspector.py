"""The token inspector: every decision of a trace, and what other settings would have decided, without running a model.

Only "regenerate" and "branch" run one, in the background. Plain ipywidgets, composed; the trace is never changed.
"""

from __future__ import annotations

import html
import math
import threading
from typing import Any

import ipywidgets as widgets

from cdlearn.loops.generate import Generation, generate
from cdlearn.show.html import (
    METRICS,
    candidate_table,
    layer_table,
    moved_positions,
    names_of,
    round_table,
    trace_strip,
)
from cdlearn.show.strips import flip_scales, other_strip, prefix_strip, what_if_strip
from cdlearn.trace.rescore import at_position, changeable, strength_of
from cdlearn.trace.trace import Trace

_WIDE = widgets.Layout(width="100%")
_SNUG = widgets.Layout(width="max-content", flex="0 0 auto")


class Inspector(widgets.VBox):
    """What `inspect` returns.

    trace: the trace shown. versions: name -> trace, the recorded one and what was written since. position: the one that
    is selected; it can be set. settings: the numbers that differ from the trace's own; `set(...)` moves the controls.
    `regenerate` and `branch` run the model, `cancel` stops it, `close` frees every widget.
    """

    def __init__(self, trace: Trace, *, source: Any = None, compare: Trace | None = None) -> None:
        self.versions = {"recorded": trace}
        self.trace, self.source, self.compare = trace, source, compare
        self._thread: threading.Thread | None = None
        self._cancelled = False
        self._build()
        super().__init__(
            [
                self._head,
                self._before,
                self._strip,
                self._other,
                self._controls,
                self._what_if,
                self._tabs,
                self._actions,
                self._said,
            ]
        )
        self._load()

    # ---- the parts

    def _build(self) -> None:
        self._version = widgets.Dropdown(options=list(self.versions), description="text")
        self._metric = widgets.Dropdown(options=list(METRICS), description="colour")
        self._position = widgets.Select(options=[], description="position", rows=6)
        self._head = widgets.HBox([self._version, self._metric])
        self._before, self._strip, self._other = (widgets.HTML(layout=_WIDE) for _ in range(3))
        self._what_if, self._table = (widgets.HTML(layout=_WIDE) for _ in range(2))
        self._layers, self._rounds, self._said = (widgets.HTML(layout=_WIDE) for _ in range(3))
        self._strength, strength = _pair("strength", 1.0, 0.0, 3.0, 0.01)
        self._alpha, alpha = _pair("log10 alpha", -1.0, -4.0, 0.0, 0.01)
        self._temperature, temperature = _pair("amateur tau", 1.0, 0.1, 3.0, 0.05)
        self._sliders = {"strength": self._strength, "alpha": self._alpha, "amateur_temperature": self._temperature}
        self._numbers = {"strength": strength, "alpha": alpha, "amateur_temperature": temperature}
        self._flips = widgets.HTML(layout=_WIDE)
        self._controls = widgets.HBox([self._position, widgets.VBox([*self._numbers.values(), self._flips])])
        self._tabs = widgets.Tab([self._table])
        self._regenerate = widgets.Button(description="Regenerate from here", layout=_SNUG)
        self._candidate = widgets.Dropdown(options=[], description="candidate")
        self._branch = widgets.Button(description="Branch on it", layout=_SNUG)
        self._cancel = widgets.Button(description="Cancel", disabled=True)
        self._bar = widgets.IntProgress(min=0, max=1, description="tokens", layout=widgets.Layout(visibility="hidden"))
        self._actions = widgets.HBox([self._regenerate, self._candidate, self._branch, self._cancel, self._bar])
        for button, action in (
            (self._regenerate, self.regenerate),
            (self._branch, self.branch),
            (self._cancel, self.cancel),
        ):
            button.on_click(lambda _, action=action: self._safely(action))
        if self.source is None:
            for control in (self._regenerate, self._branch):
                control.disabled, control.tooltip = True, "inspect(generation, source=source) can run the model again"
        self._version.observe(lambda change: self._safely(self._load), "value")
        for control in (self._metric, self._position, *self._sliders.values()):
            control.observe(lambda change: self._safely(self._show), "value")

    def _load(self) -> None:
        """Show the chosen text with its own settings."""
        self.trace = trace = self.versions[self._version.value]
        settings = trace.settings
        names = names_of(trace)
        self._quiet = True
        self._position.options = [(f"{k}  {_plain(name)}", k) for k, name in enumerate(names)]
        self._position.value = next(iter(moved_positions(trace)), 0) if len(trace) else None
        self._strength.value = strength_of(trace)
        self._temperature.value = settings.get("amateur_temperature", 1.0)
        self._alpha.value = -4.0 if settings.get("alpha") is None else math.log10(settings["alpha"])
        self._start = {name: slider.value for name, slider in self._sliders.items()}
        self._changeable = [name for name in self._numbers if name in changeable(trace)]
        for name, box in self._numbers.items():
            box.layout.display = "" if name in self._changeable else "none"
        tabs = {"candidates": self._table}
        tabs |= {"layers": self._layers} if "layers" in trace.parts else {}
        tabs |= {"speculation": self._rounds} if trace.rounds else {}
        self._tabs.children = list(tabs.values())
        self._tabs.titles = list(tabs)
        recorded, label = self.versions["recorded"], self._version.value
        self._before.value = prefix_strip(trace, len(recorded.prompt_ids), branched=label.startswith("branch"))
        self._other.value = other_strip(trace, self.compare) if self.compare is not None and trace is recorded else ""
        self._quiet = False
        self._show()

    # ---- what the controls say

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
            slider.value = min(max(value, slider.min), slider.max)

    def _moved(self, name: str) -> bool:
        """Whether a slider stands elsewhere than at first; a browser rounds a value to the slider's steps by itself."""
        slider = self._sliders[name]
        return round(slider.value / slider.step) != round(self._start[name] / slider.step)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the trace's own, as `Trace.rescore` takes them; alpha 0 is no mask."""
        changed = {name: self._sliders[name].value for name in self._changeable if self._moved(name)}
        if "alpha" in changed:
            changed["alpha"] = 0 if self._alpha.value <= self._alpha.min else 10**self._alpha.value
        if "amateur_temperature" in changed and "beta" in self.trace.settings:
            changed = {"strength": strength_of(self.trace)} | changed  # the beta form knows no temperature
        return changed

    def _show(self) -> None:
        """Redraw everything from the trace and the controls: pure functions, no model."""
        if self._quiet:
            return
        trace, position = self.trace, self._position.value
        if position is None:
            self._strip.value = "<em>An empty trace: no token was chosen.</em>"
            return
        self._strip.value = trace_strip(trace, metric=self._metric.value, selected=position)
        settings = self.settings
        new = trace.rescore(**settings) if settings else trace
        self._what_if.value = what_if_strip(trace, new, settings) if self._changeable else ""
        self._table.value = candidate_table(new, position, recorded=trace.recorded_ids[position])
        highest = {name: 1.0 if name == "alpha" else self._sliders[name].max for name in self._changeable}
        self._flips.value = flip_scales(trace, position, highest) if highest else ""
        if "layers" in trace.parts:
            self._layers.value = layer_table(trace, position)
        if trace.rounds:
            self._rounds.value = round_table(trace, position)
        ids = new.candidates[position, : min(12, new.candidates.shape[1] - 1)].tolist()
        self._candidate.options = [(_plain(name), token) for name, token in zip(names_of(trace, ids), ids)]
        others = [token for token in ids if token != trace.recorded_ids[position]]
        self._candidate.value = others[0] if others else ids[0]  # a branch means another token
        self._said.value = (
            "" if not bool(new.truncated[position]) else "Truncated: more tokens are kept than recorded here."
        )

    # ---- what runs a model

    def regenerate(self, *, wait: bool = False) -> None:
        """Continue from the selected position with the controls' settings, in the background."""
        position = self._position.value
        prefix = self.trace.prompt_ids + self.trace.recorded_ids[:position]
        source = self.source
        if self.settings:
            source = source.changed(**{k: None if (k, v) == ("alpha", 0) else v for k, v in self.settings.items()})
        self._run(source, prefix, f"from {position}", max(len(self.trace) - position, 16), wait)

    def branch(self, *, wait: bool = False) -> None:
        """Put the chosen candidate at the selected position and continue from there."""
        position, token = self._position.value, self._candidate.value
        prefix = [*self.trace.prompt_ids, *self.trace.recorded_ids[:position], token]
        self._run(self.source, prefix, f"branch at {position}", max(len(self.trace) - position, 16), wait)

    def cancel(self) -> None:
        """Stop what runs; what is there is kept."""
        self._cancelled = True

    def _run(self, source: Any, prefix: list[int], name: str, count: int, wait: bool) -> None:
        if self.source is None:
            raise ValueError("source is None: open the inspector with inspect(generation, source=source).")
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("a text is being written: wait, or press Cancel.")
        self._cancelled, self._bar.value, self._bar.max = False, 0, count
        self._bar.layout.visibility, self._cancel.disabled = "visible", False

        class Ticks:  # a streamer: it counts tokens and can stop them; the prompt comes first
            calls = 0

            def put(ticks, tokens):
                ticks.calls += 1
                self._bar.value = ticks.calls - 1
                if self._cancelled and ticks.calls > 1:
                    raise KeyboardInterrupt

            def end(ticks):
                pass

        def work() -> None:
            try:
                made = generate(source, prefix, tokenizer=self.trace.tokenizer, max_new_tokens=count, stream=Ticks(),
                                progress=False)  # fmt: skip
                number = sum(known.startswith(name) for known in self.versions)
                label = name if not number else f"{name} ({number + 1})"
                self.versions[label] = made.trace
                self._version.options = list(self.versions)
                self._version.value = label
            except (ValueError, TypeError, RuntimeError) as error:
                self._said.value = _message(error)
            finally:
                self._bar.layout.visibility, self._cancel.disabled = "hidden", True

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        if wait:
            self._thread.join()

    def _safely(self, action: Any) -> None:
        """Errors of a callback would vanish in a log: they are said in a line of their own."""
        try:
            action()
        except (ValueError, TypeError, RuntimeError) as error:
            self._said.value = _message(error)

    def close(self) -> None:
        """Free every widget; a text being written stops."""
        self.cancel()
        for widget in _family(self):
            if widget is not self:
                widget.close()
        super().close()


def inspect(
    generation: Generation | Trace, *, source: Any = None, compare: Generation | Trace | None = None
) -> Inspector:
    """The token inspector of a generation or trace, for a notebook.

    source: what made it; with it the inspector can continue from any position and branch on any candidate. compare:
    another generation or trace to lay beside it. Raises TypeError for anything else, ValueError without a trace.
    """
    other = None if compare is None else _trace_of(compare, "compare")
    return Inspector(_trace_of(generation, "generation"), source=source, compare=other)


def _trace_of(value: Any, name: str) -> Trace:
    if isinstance(value, Trace):
        return value
    if not isinstance(value, Generation):
        raise TypeError(f"{name} is a {type(value).__name__}: pass a Generation or a Trace.")
    if value.trace is None:
        raise ValueError(f"{name} has no trace: generate it with trace=True.")
    return value.trace


def _pair(label: str, value: float, low: float, high: float, step: float) -> tuple[Any, widgets.HBox]:
    """A slider and a number box that follow each other: sliders have no name that a screen reader could say."""
    limits = dict(value=value, min=low, max=high, step=step)
    slider = widgets.FloatSlider(**limits, readout=False, description="")
    style, layout = {"description_width": "110px"}, widgets.Layout(width="200px", flex="0 0 auto")
    box = widgets.BoundedFloatText(**limits, description=label, style=style, layout=layout)
    widgets.link((slider, "value"), (box, "value"))
    return slider, widgets.HBox([box, slider])


def _plain(name: str) -> str:
    return html.unescape(name)


def _message(error: Exception) -> str:
    return f'<div style="color:#000;background:#F0E442;padding:2px 6px">{html.escape(str(error))}</div>'


def _family(widget: Any) -> list[Any]:
    found = [widget]
    for child in getattr(widget, "children", ()):
        found += _family(child)
    return found
