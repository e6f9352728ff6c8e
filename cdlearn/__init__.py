"""Contrastive inference, built step by step: an expert, an amateur, one loop."""

__version__ = "0.1.0"
__all__ = ["__version__"]
