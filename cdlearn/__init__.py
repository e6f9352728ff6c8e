"""Contrastive inference, built step by step: an expert, an amateur, one loop."""

from cdlearn import metrics, scores
from cdlearn.decode import Generation, generate
from cdlearn.pairs import Pair, load_expert, load_pair
from cdlearn.sources import CachedLM, Contrast, DoLa, Source
from cdlearn.trace import Trace

__version__ = "0.1.0"
__all__ = [
    "CachedLM",
    "Contrast",
    "DoLa",
    "Generation",
    "Pair",
    "Source",
    "Trace",
    "generate",
    "load_expert",
    "load_pair",
    "metrics",
    "scores",
]
