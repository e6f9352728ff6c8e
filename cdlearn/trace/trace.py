"""A record that can be read, rescored, drawn and kept: every method is a function of the files beside this one."""

from __future__ import annotations

from cdlearn.show import handout, html
from cdlearn.trace import file, flips, rescore, tables
from cdlearn.trace.record import Record, Recorder


class Trace(Record):
    """One row of a generation, step by step: the data of a `Record`, and what can be told of it without a model."""

    truncated = property(rescore.truncated)
    rescore, first_change, flip_points = rescore.rescore, rescore.first_change, flips.flip_points
    to_frame, step_frame, summary = tables.to_frame, tables.step_frame, tables.summary
    to_json, save = file.to_json, file.save
    from_json, load = classmethod(file.from_json), classmethod(file.load)
    to_html, _repr_html_ = handout.write, html.trace_html


Recorder.makes = Trace
