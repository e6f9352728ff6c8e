"""Checks that students call as they work: one file per assignment, `check_*` for every part."""

from cdlearn.classroom.checks.core import Case, Part, Result, same
from cdlearn.classroom.checks.forbidden import forbid

__all__ = ["Case", "Part", "Result", "forbid", "same"]
