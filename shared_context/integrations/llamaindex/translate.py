"""Documents, nodes, filters and messages: LlamaIndex's form and the store's, in both directions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.schema import Document as LlamaIndexDocument
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from shared_context.errors import DocumentError, FilterError, QueryError, UnreadableError
from shared_context.store.documents import Document, OnError, check_metadata, skip_or_refuse

if TYPE_CHECKING:
    from shared_context import Passage, SharedLLMContextStore

# ---------------------------------------------------------------------------------------------------------- documents

_MEDIA = ("image_resource", "audio_resource", "video_resource")


REF_DOC_ID, SOURCE_HASH = "shared_context.ref_doc_id", "shared_context.hash"
"""Metadata of a stored document that transformations made of another one: that one's id, and the hash it had."""

_ORIGIN = (REF_DOC_ID, SOURCE_HASH)


def to_document(node: BaseNode, hashes: Mapping[str, str] | None = None) -> Document:
    """The store's document of a LlamaIndex document or node: same id, same metadata, the text without its metadata.

    Args:
        node: what is stored.
        hashes: where transformations made the node, the hashes that the documents had before, by id.

    Raises:
        UnreadableError: it holds an image, audio or video, of which a text store would lose everything.
        DocumentError: its metadata are no JSON.
    """
    media = [name.partition("_")[0] for name in _MEDIA if getattr(node, name, None) is not None]
    if media:
        raise UnreadableError(
            f"document {node.node_id!r} holds {' and '.join(media)}, and a context store holds text: "
            "describe it in words or leave it out"
        )
    metadata = check_metadata(node.metadata, f"document {node.node_id!r}")
    ref_doc_id = node.ref_doc_id or node.node_id
    if hashes is not None or ref_doc_id != node.node_id:
        metadata |= {REF_DOC_ID: ref_doc_id, SOURCE_HASH: (hashes or {}).get(ref_doc_id)}
    own = _ORIGIN if REF_DOC_ID in metadata else ()
    return Document(
        text=node.get_content(metadata_mode=MetadataMode.NONE),
        id=node.node_id,
        metadata=metadata,
        unsearched_keys=(*node.excluded_embed_metadata_keys, *own),
        hidden_keys=(*node.excluded_llm_metadata_keys, *own),
    )


def to_documents(
    nodes: Iterable[BaseNode], hashes: Mapping[str, str] | None = None, on_error: OnError = "raise"
) -> list[Document]:
    """:func:`to_document` of each.

    Args:
        nodes, hashes: see there.
        on_error: what becomes of those that hold no text, as in ``SharedLLMContextStore.add``.

    Raises:
        BatchError: some were refused; ``failures`` names each of them.
    """
    translated: list[Document] = []
    failures: dict[str, DocumentError] = {}
    for node in nodes:
        try:
            translated.append(to_document(node, hashes))
        except DocumentError as error:
            failures[node.node_id] = error
    skip_or_refuse(failures, len(translated) + len(failures), on_error)
    return translated


def to_llamaindex(document: Document) -> LlamaIndexDocument | TextNode:
    """A stored document as LlamaIndex's; one that is a piece of another as a node, which is what it was."""
    source = document.metadata.get(REF_DOC_ID)
    kind = LlamaIndexDocument if source in (None, document.id) else TextNode
    return kind(
        id_=document.id,
        text=document.text,
        metadata=own_metadata(document.metadata),
        excluded_embed_metadata_keys=_without_origin(document.unsearched_keys),
        excluded_llm_metadata_keys=_without_origin(document.hidden_keys),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=source)} if source is not None else {},
    )


def own_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what this integration keeps among them. Their inner values are shared and read only."""
    return {key: value for key, value in metadata.items() if key not in _ORIGIN}


def _without_origin(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key not in _ORIGIN]


# -------------------------------------------------------------------------------------------------------------- nodes

ID_KEYS = ("doc_id", "ref_doc_id", "document_id")
"""What LlamaIndex's vector stores keep a document's id under, over whatever its metadata have there."""

_GRAIN = "shared_context.ratio"
"""Where a node's relationship to its document says at what ratio it was shown, under a key no document has."""

_SHOWN = "shared_context.shown"
"""Where it says which characters an injection shows, where the node's text is widened to whole sentences."""

HEADING = "heading"
"""The key of metadata that says under what heading a node stands, where its document has no such key."""

_STORED = "shared_context.document"
"""Where it says under what id the document is stored that was made of the node's."""


def to_nodes(passages: Iterable[Passage], hidden_keys: Sequence[str] = ()) -> list[NodeWithScore]:
    """One LlamaIndex node for each passage, best first.

    ``metadata`` is the document's, with ``level``, ``ratio`` and ``kv_entries`` beside it, and ``also_in`` where other
    documents say the same (where the document has such a key of its own, its value stays); these, ``hidden_keys`` and
    what the document excludes are kept out of prompts and embeddings. Its ``heading``, where it has one, is told.

    Args:
        passages: of one grain each; a header is passed over, for it is what a node's metadata say.
        hidden_keys: metadata keys.
    """
    nodes = [_to_node(passage, hidden_keys) for passage in passages if not passage.header]
    return sorted(nodes, key=NodeWithScore.get_score, reverse=True)


def _to_node(passage: Passage, hidden_keys: Sequence[str]) -> NodeWithScore:
    start, end, ratio, metadata = passage.start, passage.end, passage.ratio, passage.metadata
    facts: dict[str, Any] = {"level": passage.level, "ratio": ratio, "kv_entries": passage.kv_entries}
    if passage.also_in:
        facts["also_in"] = list(passage.also_in)
    hidden = [*(key for key in facts if key not in metadata), *hidden_keys]
    told = {} if passage.heading is None else {HEADING: passage.heading}
    source = RelatedNodeInfo(
        node_id=metadata.get(REF_DOC_ID, passage.doc_id),
        node_type=ObjectType.DOCUMENT,
        metadata={
            _GRAIN: ratio,
            **({_SHOWN: list(passage.shown)} if passage.shown != (start, end) else {}),
            **({_STORED: passage.doc_id} if REF_DOC_ID in metadata else {}),
        },
    )
    return NodeWithScore(
        node=TextNode(
            id_=f"{passage.doc_id}:{start}-{end}" + (f"/{ratio}" if ratio > 1 else ""),
            text=passage.text,
            start_char_idx=start,
            end_char_idx=end,
            metadata={**facts, **told, **own_metadata(metadata)},
            excluded_llm_metadata_keys=[*hidden, *_without_origin(passage.hidden_keys)],
            excluded_embed_metadata_keys=[*hidden, *_without_origin(passage.unsearched_keys)],
            relationships={NodeRelationship.SOURCE: source},
        ),
        score=passage.score,
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
        doc_id, place = _stored_id(node), -1
        if doc_id in store and start is not None and end is not None:
            if doc_id not in texts:
                texts[doc_id] = store.get(doc_id).text
            place = texts[doc_id].find(node.text, start, end)
        if place >= 0 and node.text:
            first, last = place, place + len(node.text)
            if (first, last) == (start, end):
                first, last = source.metadata.get(_SHOWN, (first, last))
            spans[(doc_id, first, last, source.metadata.get(_GRAIN, 1))] = texts[doc_id][first:last]
        else:
            foreign.append(scored)
    # The order is a reranker's last word, where the scores may still be the retriever's.
    return [(*span, -float(rank), text) for rank, (span, text) in enumerate(spans.items())], foreign


def tells_metadata(nodes: Iterable[NodeWithScore], store: SharedLLMContextStore) -> bool:
    """Whether all nodes of the store show a model the metadata that their documents do.

    Where something was masked or taken out on the way, what the store holds would still say it.
    """
    told: dict[str, dict[str, Any]] = {}
    for scored in nodes:
        node, doc_id = scored.node, _stored_id(scored.node)
        if doc_id is None or doc_id not in store:
            continue
        if doc_id not in told:
            document = store.get(doc_id)
            told[doc_id] = {k: v for k, v in document.metadata.items() if k not in document.hidden_keys}
        shown = {k: v for k, v in node.metadata.items() if k not in node.excluded_llm_metadata_keys}
        if HEADING not in told[doc_id]:
            shown.pop(HEADING, None)
        if told[doc_id] != shown:
            return False
    return True


def _stored_id(node: BaseNode) -> str | None:
    """The id under which a node's document would be stored; None where it has none."""
    source = node.source_node
    return None if source is None else source.metadata.get(_STORED, source.node_id)


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
