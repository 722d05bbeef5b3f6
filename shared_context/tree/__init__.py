"""Context trees, cuts and the searches over them: index arithmetic, without a model."""

from shared_context.tree.context_tree import ContextTree, Node
from shared_context.tree.cut import GrainedNode, cut_rows, important_rows, kv_entries, node_rows
from shared_context.tree.search import expand_under_budget, split_and_search

__all__ = [
    "ContextTree",
    "GrainedNode",
    "Node",
    "cut_rows",
    "expand_under_budget",
    "important_rows",
    "kv_entries",
    "node_rows",
    "split_and_search",
]
