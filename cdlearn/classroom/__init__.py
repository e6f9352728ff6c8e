"""The classroom: `checks`, which students call as they work, and `grader`, which hands out and grades (nbgrader)."""
