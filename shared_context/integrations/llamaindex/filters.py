"""Filters: LlamaIndex's form, and the store's."""

from __future__ import annotations

from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from shared_context.errors import FilterError

ID_KEYS = ("doc_id", "ref_doc_id", "document_id")
"""What LlamaIndex's vector stores keep a document's id under, over whatever its metadata have there."""

_OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$contains",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "$icontains",
}
_OF_LISTS = {FilterOperator.ANY: "$or", FilterOperator.ALL: "$and"}


def to_filters(filters: MetadataFilters | dict[str, Any] | None) -> dict[str, Any] | None:
    """The store's filters of LlamaIndex's. A dict is taken to be the store's already.

    Raises:
        FilterError: an operator that the store has no word for, or one of LlamaIndex's own names for a document's id.
    """
    if not isinstance(filters, MetadataFilters):
        return filters
    parts = [to_filters(part) if isinstance(part, MetadataFilters) else _to_filter(part) for part in filters.filters]
    parts = [part for part in parts if part]
    if not parts:
        return None
    if filters.condition == FilterCondition.NOT:  # as in LlamaIndex: none of them holds
        return {"$not": {"$or": parts}}
    return {"$or": parts} if filters.condition == FilterCondition.OR else {"$and": parts}


def _to_filter(part: MetadataFilter) -> dict[str, Any]:
    if part.key in ID_KEYS:
        raise FilterError(
            f"the filter on {part.key!r} is about ids, which are no metadata of a context store: give "
            "as_retriever(doc_ids=[...]) the documents to look in"
        )
    if part.operator in _OPERATORS:
        return {part.key: {_OPERATORS[part.operator]: part.value}}
    if part.operator in _OF_LISTS and part.value == []:  # a list that was computed, of nothing
        return {part.key: {"$in": []} if part.operator == FilterOperator.ANY else {"$exists": True}}
    if part.operator in _OF_LISTS and isinstance(part.value, list):
        return {_OF_LISTS[part.operator]: [{part.key: {"$contains": value}} for value in part.value]}
    if part.operator == FilterOperator.IS_EMPTY:
        return {"$or": [{part.key: {"$exists": False}}, {part.key: {"$in": [None, "", []]}}]}
    known = ", ".join(operator.value for operator in [*_OPERATORS, FilterOperator.IS_EMPTY])
    raise FilterError(
        f"the filter on {part.key!r} uses {part.operator.value!r} with {part.value!r}, which a context store does not "
        f"know: use one of {known}, or any or all with a list"
    )
