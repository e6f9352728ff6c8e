"""Contrastive inference, built step by step: an expert, an amateur, one loop."""

from cdlearn import metrics, scores
from cdlearn.loops.beams import beam_search
from cdlearn.loops.generate import Generation, generate
from cdlearn.loops.speculate import speculate
from cdlearn.pairs.pair import Pair, load_expert, load_pair
from cdlearn.sources import (
    SLED,
    AdaCAD,
    CachedLM,
    Contrast,
    DoLa,
    EarlyExit,
    Lookup,
    Mix,
    Prompted,
    Source,
    TextSpace,
    Window,
)
from cdlearn.trace.trace import Trace


def inspect(generation, *, source=None, compare=None):
    """The token inspector of a generation or trace: see `cdlearn.show.inspector`."""
    from cdlearn.show.inspector import inspect as open_inspector  # only notebooks pay for ipywidgets

    return open_inspector(generation, source=source, compare=compare)


__version__ = "0.1.0"
# not `inspect`: `from cdlearn import *` would put it in the place of the standard library's module
__all__ = [
    "AdaCAD",
    "CachedLM",
    "Contrast",
    "DoLa",
    "EarlyExit",
    "Generation",
    "Lookup",
    "Mix",
    "Pair",
    "Prompted",
    "SLED",
    "Source",
    "TextSpace",
    "Trace",
    "Window",
    "beam_search",
    "generate",
    "load_expert",
    "load_pair",
    "metrics",
    "scores",
    "speculate",
]
