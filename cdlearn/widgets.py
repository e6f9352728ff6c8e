"""The token inspector, under the name that users know: see `cdlearn.show.inspector`."""

from cdlearn.show.inspector import Inspector, inspect

__all__ = ["Inspector", "inspect"]
