"""Loops: they ask a source for scores and pick tokens. `run` holds what they share; each loop is a file of its own."""
