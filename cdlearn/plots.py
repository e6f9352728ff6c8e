"""The figures, under the name that users know: see `cdlearn.show.plots`."""

from cdlearn.show.plots import *  # noqa: F403
