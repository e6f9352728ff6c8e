"""Sources: things that turn tokens into next-token scores and keep their own cache.

`source(ids, mask, n)` returns the scores after each of the last n columns. A caller passes the whole prefix every time;
a source remembers what it computed and matches by content, so a loop has no cache to thread through or to rewind.
"""

from cdlearn.sources.base import Source
from cdlearn.sources.cached import CachedLM, as_source
from cdlearn.sources.combine import AdaCAD, Contrast, Mix, Prompted, Window
from cdlearn.sources.dola import SLED, DoLa
from cdlearn.sources.layers import EarlyExit
from cdlearn.sources.lookup import Lookup
from cdlearn.sources.textspace import TextSpace

__all__ = ["AdaCAD", "CachedLM", "Contrast", "DoLa", "EarlyExit", "Lookup", "Mix", "Prompted", "SLED", "Source"]
__all__ += ["TextSpace", "Window", "as_source"]
