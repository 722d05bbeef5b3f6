"""Nodes that are retrieved: passages of a store as LlamaIndex's nodes, and what of nodes the store can inject."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import (
    BaseNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)

from shared_context.integrations.llamaindex.documents import REF_DOC_ID, own_metadata, without_own

if TYPE_CHECKING:
    from shared_context import Passage, SharedLLMContextStore

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
            excluded_llm_metadata_keys=[*hidden, *without_own(passage.hidden_keys)],
            excluded_embed_metadata_keys=[*hidden, *without_own(passage.unsearched_keys)],
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
        node, text = scored.node, scored.node.get_content(MetadataMode.NONE)
        start, end = getattr(node, "start_char_idx", None), getattr(node, "end_char_idx", None)
        doc_id, place = _stored_id(node), -1
        if doc_id is not None and doc_id in store and start is not None and end is not None:
            if doc_id not in texts:
                texts[doc_id] = store.get(doc_id).text
            place = texts[doc_id].find(text, start, end)
        if doc_id is None or place < 0 or not text:
            foreign.append(scored)
            continue
        said = node.source_node.metadata if node.source_node is not None else {}
        first, last = place, place + len(text)
        if (first, last) == (start, end):
            first, last = said.get(_SHOWN, (first, last))
        spans[(doc_id, first, last, said.get(_GRAIN, 1))] = texts[doc_id][first:last]
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
