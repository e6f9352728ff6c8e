"""Hand out the assignments (through nbgrader) and grade what comes back (in a sandbox): `build` and `grade`."""

from cdlearn.classroom.grader.build import build, find_masters
from cdlearn.classroom.grader.grade import grade

__all__ = ["build", "find_masters", "grade"]
