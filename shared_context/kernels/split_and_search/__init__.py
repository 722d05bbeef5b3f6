"""Split-and-search over all trees at once."""

from shared_context.kernels.split_and_search.naive import split_and_search_naive
from shared_context.kernels.split_and_search.search import split_and_search

__all__ = ["split_and_search", "split_and_search_naive"]
