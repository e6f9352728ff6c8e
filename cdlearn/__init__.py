"""Contrastive inference, built step by step: an expert, an amateur, one loop."""

from cdlearn.pairs import Pair, load_pair

__version__ = "0.1.0"
__all__ = ["Pair", "load_pair"]
