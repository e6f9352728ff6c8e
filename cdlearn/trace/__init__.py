"""What happened at every step: `record` holds the data, `trace` what it can tell and compute without a model."""

from cdlearn.trace.record import Record
from cdlearn.trace.trace import Trace

__all__ = ["Record", "Trace"]
