"""Checks that students call as they work: one file per assignment, `check_*` for every part."""

from cdlearn.classroom.checks.core import Case, Mistake, Result, run_check, same
from cdlearn.classroom.checks.forbidden import forbid

__all__ = ["Case", "Mistake", "Result", "forbid", "run_check", "same"]
