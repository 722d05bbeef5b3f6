"""Split-and-search over all trees at once."""

from shared_context.kernels.preserved_cuts.naive import preserved_cuts_naive
from shared_context.kernels.preserved_cuts.search import preserved_cuts

__all__ = ["preserved_cuts", "preserved_cuts_naive"]
