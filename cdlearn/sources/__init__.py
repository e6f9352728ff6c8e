"""Sources: things that turn tokens into next-token scores and keep their own cache.

`source(ids, mask, n)` returns the scores after each of the last n columns. A caller passes the whole prefix every time;
a source remembers what it computed and matches by content, so a loop has no cache to thread through or to rewind.
"""

from cdlearn.sources.base import Source
from cdlearn.sources.cached import CachedLM, as_source
from cdlearn.sources.combine import Contrast, Mix, Prompted, Window
from cdlearn.sources.layers import DoLa, EarlyExit
from cdlearn.sources.lookup import Lookup
from cdlearn.sources.textspace import TextSpace

__all__ = ["CachedLM", "Contrast", "DoLa", "EarlyExit", "Lookup", "Mix", "Prompted", "Source", "TextSpace", "Window"]
__all__ += ["as_source"]
