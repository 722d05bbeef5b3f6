"""Documents and nodes that are stored: LlamaIndex's form and the store's, in both directions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from llama_index.core.schema import (
    BaseNode,
    ImageDocument,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    TextNode,
)
from llama_index.core.schema import Document as LlamaIndexDocument

from shared_context.errors import DocumentError, UnreadableError
from shared_context.store.documents import Document, check_metadata
from shared_context.store.loading import OnError, skip_or_refuse

REF_DOC_ID, SOURCE_HASH = "shared_context.ref_doc_id", "shared_context.hash"
"""Metadata of a stored document that transformations made of another one: that one's id, and the hash it had."""

NodeType = TypeVar("NodeType", bound=BaseNode)

_NODE = "shared_context.node"
"""Metadata of a stored node: its class, and what LlamaIndex has beside text and metadata (relationships, places)."""

_OWN = (REF_DOC_ID, SOURCE_HASH, _NODE)

_CLASSES: dict[str, type[BaseNode]] = {
    kind.class_name(): kind for kind in (LlamaIndexDocument, ImageDocument, Node, TextNode, IndexNode, ImageNode)
}

_PLAIN = {"class_name": LlamaIndexDocument.class_name()}

_ELSEWHERE: dict[str, Any] = {
    "id_": True,
    "metadata": True,
    "excluded_embed_metadata_keys": True,
    "excluded_llm_metadata_keys": True,
    "text": True,
    "text_resource": {"text", "embeddings"},
    "embedding": True,
    "text_embedding": True,
}
"""Fields that the store keeps itself, and embeddings: it scores text in its own way."""

_MEDIA = ("image_resource", "audio_resource", "video_resource", "image", "image_path", "image_url")


def to_document(node: BaseNode, hashes: Mapping[str, str] | None = None) -> Document:
    """The store's document of a LlamaIndex document or node: same id, same metadata, the text without its metadata.

    Args:
        node: what is stored.
        hashes: where transformations made the node, the hashes that the documents had before, by id.

    Raises:
        UnreadableError: it holds an image, audio or video, of which a text store would lose everything.
        DocumentError: nothing in JSON stands for something among its metadata.
    """
    media = [name.partition("_")[0] for name in _MEDIA if getattr(node, name, None) is not None]
    if media:
        raise UnreadableError(
            f"document {node.node_id!r} holds {' and '.join(dict.fromkeys(media))}, and a context store holds text: "
            "describe it in words or leave it out"
        )
    metadata = check_metadata(node.metadata, f"document {node.node_id!r}")
    as_given = str(metadata) == str(node.metadata)
    beside = _beside(node)
    if beside != _PLAIN:
        metadata |= {_NODE: check_metadata(beside, f"document {node.node_id!r}")}
    ref_doc_id = node.ref_doc_id or node.node_id
    if hashes is not None or ref_doc_id != node.node_id:
        metadata |= {REF_DOC_ID: ref_doc_id, SOURCE_HASH: (hashes or {}).get(ref_doc_id)}
    elif not as_given:  # the hash is made of them as they were
        metadata |= {REF_DOC_ID: ref_doc_id, SOURCE_HASH: node.hash}
    own = tuple(key for key in _OWN if key in metadata)
    return Document(
        text=node.get_content(metadata_mode=MetadataMode.NONE),
        id=node.node_id,
        metadata=metadata,
        unsearched_keys=(*node.excluded_embed_metadata_keys, *own),
        hidden_keys=(*node.excluded_llm_metadata_keys, *own),
    )


def _beside(node: BaseNode) -> dict[str, Any]:
    """What a node has beside text and metadata, where it is not as in any other, with the name of its class."""
    kind = next((kind for base in type(node).__mro__ for kind in _CLASSES.values() if kind is base), TextNode)
    if isinstance(node, IndexNode):
        node = node.model_copy(update={"obj": None})  # an object that is no JSON could not even be left out
    fields = node.model_dump(mode="json", exclude=_ELSEWHERE, exclude_defaults=True, fallback=str)
    if "text_resource" in fields:  # which says of itself that it has no path
        fields["text_resource"] = {name: value for name, value in fields["text_resource"].items() if value is not None}
    fields = {name: value for name, value in fields.items() if name in kind.model_fields and value not in (None, {})}
    return {**fields, "class_name": kind.class_name()}


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
    nodes = all_nodes(nodes)
    translated: list[Document] = []
    failures: dict[str, DocumentError] = {}
    for node in nodes:
        try:
            translated.append(to_document(node, hashes))
        except DocumentError as error:
            failures[node.node_id] = error
    skip_or_refuse(failures, len(translated) + len(failures), on_error)
    return translated


def all_nodes(nodes: Iterable[NodeType]) -> list[NodeType]:
    """The nodes or documents as a list.

    Raises:
        DocumentError: they are no iterable of them.
    """
    kind = type(nodes).__name__
    if isinstance(nodes, str | BaseNode) or not isinstance(nodes, Iterable):
        raise DocumentError(f"documents is a {kind}: give a list of LlamaIndex documents, [Document(text=...)]")
    given = list(nodes)
    for position, node in enumerate(given):
        if not isinstance(node, BaseNode):
            raise DocumentError(
                f"documents[{position}] is a {type(node).__name__}: give a LlamaIndex document, Document(text=...)"
            )
    return given


def to_llamaindex(document: Document) -> BaseNode:
    """A stored document as LlamaIndex's; one that came as a node as that node, but for its embedding."""
    fields = copy.deepcopy(document.metadata.get(_NODE, _PLAIN))
    kind = _CLASSES[fields["class_name"]]
    if issubclass(kind, TextNode):
        fields["text"] = document.text
    else:
        fields["text_resource"] = {**fields.get("text_resource", {}), "text": document.text}
    return kind.from_dict(
        fields,
        id_=document.id,
        metadata=own_metadata(document.metadata),
        excluded_embed_metadata_keys=without_own(document.unsearched_keys),
        excluded_llm_metadata_keys=without_own(document.hidden_keys),
    )


def own_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without what this integration keeps among them. Their inner values are shared and read only."""
    return {key: value for key, value in metadata.items() if key not in _OWN}


def without_own(keys: Iterable[str]) -> list[str]:
    """Keys of metadata without those of this integration."""
    return [key for key in keys if key not in _OWN]
