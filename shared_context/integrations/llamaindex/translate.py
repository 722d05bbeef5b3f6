"""Documents, nodes, filters and messages: LlamaIndex's form and the store's, in both directions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from shared_context.errors import BatchError, DocumentError, FilterError, QueryError
from shared_context.store.documents import Document, check_metadata

if TYPE_CHECKING:
    from shared_context import SelectedNode, SharedLLMContextStore

# ---------------------------------------------------------------------------------------------------------- documents

_MEDIA = ("image_resource", "audio_resource", "video_resource")


def to_document(document: BaseNode) -> Document:
    """The store's document of a LlamaIndex document: same id, same metadata, the text without its metadata.

    Raises:
        DocumentError: it holds an image, audio or video, of which a text store would lose everything; or metadata
            that are no JSON.
    """
    media = [name.partition("_")[0] for name in _MEDIA if getattr(document, name, None) is not None]
    if media:
        raise DocumentError(
            f"document {document.node_id!r} holds {' and '.join(media)}, and a context store holds text: "
            "describe it in words or leave it out"
        )
    metadata = check_metadata(document.metadata, f"document {document.node_id!r}")
    return Document(text=document.get_content(), id=document.node_id, metadata=metadata)


def to_documents(documents: Iterable[BaseNode]) -> list[Document]:
    """:func:`to_document` of each.

    Raises:
        BatchError: some were refused; ``failures`` names each of them.
    """
    translated, failures = [], {}
    for document in documents:
        try:
            translated.append(to_document(document))
        except DocumentError as error:
            failures[document.node_id] = error
    if failures:
        reasons = "; ".join(map(str, failures.values()))
        raise BatchError(f"{len(failures)} documents were refused and none was stored: {reasons}", failures)
    return translated


# -------------------------------------------------------------------------------------------------------------- nodes

READER_KEYS = (
    "file_name",
    "file_type",
    "file_size",
    "creation_date",
    "last_modified_date",
    "last_accessed_date",
)
"""Metadata that SimpleDirectoryReader writes and keeps out of every prompt; a store keeps it, but not that wish."""

ID_KEYS = ("doc_id", "ref_doc_id", "document_id")
"""What LlamaIndex's vector stores keep a document's id under, over whatever its metadata have there."""

_GRAIN = "shared_context.ratio"
"""Where a node's relationship to its document says at what ratio it was shown, under a key no document has."""


def to_nodes(runs: Iterable[Sequence[SelectedNode]], hidden_keys: Sequence[str] = READER_KEYS) -> list[NodeWithScore]:
    """One LlamaIndex node for each run of nodes that touch in their document, best first.

    ``metadata`` is the document's, with ``level``, ``ratio`` and ``kv_entries`` beside it (where the document has
    such a key of its own, its value stays); these three and ``hidden_keys`` are kept out of prompts and embeddings.

    Args:
        runs: nodes of one grain each, in document order.
        hidden_keys: metadata keys.
    """
    nodes = [_to_node(run, hidden_keys) for run in runs]
    return sorted(nodes, key=NodeWithScore.get_score, reverse=True)


def _to_node(run: Sequence[SelectedNode], hidden_keys: Sequence[str]) -> NodeWithScore:
    first, start, end = run[0], run[0].start, run[-1].end
    facts = {"level": first.level, "ratio": first.ratio, "kv_entries": sum(node.kv_entries for node in run)}
    hidden = [*(key for key in facts if key not in first.metadata), *hidden_keys]
    source = RelatedNodeInfo(node_id=first.doc_id, node_type=ObjectType.DOCUMENT, metadata={_GRAIN: first.ratio})
    return NodeWithScore(
        node=TextNode(
            id_=f"{first.doc_id}:{start}-{end}" + (f"/{first.ratio}" if first.ratio > 1 else ""),
            text="".join(node.text for node in run),
            start_char_idx=start,
            end_char_idx=end,
            metadata={**facts, **first.metadata},
            excluded_llm_metadata_keys=hidden,
            excluded_embed_metadata_keys=hidden,
            relationships={NodeRelationship.SOURCE: source},
        ),
        score=max(node.score for node in run),
    )


Span = tuple[str, int, int, int, float, str]
"""Document id, start and end in characters, ratio, score, text."""


def divide(nodes: Iterable[NodeWithScore], store: SharedLLMContextStore) -> tuple[list[Span], list[NodeWithScore]]:
    """Parts nodes into those whose KV the store can give and those that only exist as text.

    A node is the store's if its document is stored and its text stands where the node says, whole or in part. So a
    chunk that another retriever cut from the same document is injected too, and a node whose text was changed on the
    way (masked, reworded) is not: its KV would still say what the change took out.

    Returns:
        Spans to inject, without doubles and scored by their rank, and the nodes to paste, both in the order given.
    """
    texts: dict[str, str] = {}
    spans: dict[tuple[str, int, int, int], str] = {}
    foreign = []
    for scored in nodes:
        node, source = scored.node, scored.node.source_node
        start, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
        place = -1
        if source is not None and start is not None and end is not None and source.node_id in store:
            if source.node_id not in texts:
                texts[source.node_id] = store.get(source.node_id).text
            place = texts[source.node_id].find(node.text, start, end)
        if place >= 0 and node.text:
            spans[(source.node_id, place, place + len(node.text), source.metadata.get(_GRAIN, 1))] = node.text
        else:
            foreign.append(scored)
    # The order is a reranker's last word, where the scores may still be the retriever's.
    return [(*span, -float(rank), text) for rank, (span, text) in enumerate(spans.items())], foreign


# ------------------------------------------------------------------------------------------------------------ filters

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
    if part.operator in _OF_LISTS and isinstance(part.value, list):
        return {_OF_LISTS[part.operator]: [{part.key: {"$contains": value}} for value in part.value]}
    if part.operator == FilterOperator.IS_EMPTY:
        return {"$or": [{part.key: {"$exists": False}}, {part.key: {"$in": [None, "", []]}}]}
    known = ", ".join(operator.value for operator in [*_OPERATORS, FilterOperator.IS_EMPTY])
    raise FilterError(
        f"the filter on {part.key!r} uses {part.operator.value!r} with {part.value!r}, which a context store does not "
        f"know: use one of {known}, or any or all with a list"
    )


# ----------------------------------------------------------------------------------------------------------- messages

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
}


def role_of(message: ChatMessage) -> str:
    """The role by the name that chat templates have for it."""
    return _ROLES.get(message.role, message.role.value)


def message_text(message: ChatMessage) -> str:
    """What a text model reads of a message.

    Text, calls of tools (``clock({"zone": "UTC"})``), documents that are text and cited passages with their titles;
    what a model thought on the way and cache marks are left out.

    Raises:
        QueryError: it holds something that a text model cannot read.
    """
    return "\n".join(filter(None, (_block_text(block, message.role.value) for block in message.blocks)))


def readable_text(message: ChatMessage) -> str:
    """:func:`message_text` of what can be read, for what is kept and searched; the rest of it is left out."""
    return message_text(message.model_copy(update={"blocks": [b for b in message.blocks if _is_readable(b)]}))


def _is_readable(block: ContentBlock) -> bool:
    try:
        _block_text(block, "")
    except QueryError:
        return False
    return True


def _block_text(block: ContentBlock, role: str) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ThinkingBlock | CachePoint):
        return ""
    if isinstance(block, ToolCallBlock):
        arguments = block.tool_kwargs
        return f"{block.tool_name}({arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)})"
    if isinstance(block, CitableBlock | CitationBlock):
        cited = block.content if isinstance(block, CitableBlock) else [block.cited_content]
        source = f" ({block.source})" if block.source and block.source != block.title else ""
        return "\n".join([f"{block.title}{source}:", *(_block_text(part, role) for part in cited)])
    if isinstance(block, DocumentBlock):
        return _document_text(block, role)
    raise QueryError(
        f"the {role} message holds a block of type {block.block_type!r}, and this model reads text: put it in words"
    )


def _document_text(block: DocumentBlock, role: str) -> str:
    what = f"document {block.title!r} in the {role} message"
    try:
        content = block.resolve_document().read()
    except (OSError, ValueError) as error:
        raise QueryError(f"the {what} cannot be read ({error}): give its text in a TextBlock") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = block.document_mimetype or "no UTF-8"
        raise QueryError(f"the {what} is {kind}, and this model reads text: extract its text first") from error
    return f"{block.title}:\n{text}"


def to_conversation(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as a chat template reads them: ``[{"role": ..., "content": ...}, ...]``."""
    return [{"role": role_of(message), "content": message_text(message)} for message in messages]
