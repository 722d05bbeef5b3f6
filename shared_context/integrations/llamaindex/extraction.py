"""LlamaIndex's metadata extractors over documents that stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.extractors import BaseExtractor
from llama_index.core.schema import BaseNode, Document, NodeRelationship, TextNode, TransformComponent


class ExtractingWhole(TransformComponent):
    """Runs an extractor, for which each document stands in as a node of its whole text.

    Extractors read the nodes that a splitter makes; documents they pass over in silence, or refuse. The documents that
    are handed in stay as they are.

    Args:
        extractor: LlamaIndex's.
    """

    extractor: BaseExtractor

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """The nodes, documents as documents, with the metadata that were found."""
        extracted = self.extractor(
            [_stand_in(node) if isinstance(node, Document) else node for node in nodes], **kwargs
        )
        return [
            _with_metadata(node, result) if isinstance(node, Document) else result
            for node, result in zip(nodes, extracted, strict=True)
        ]


def extracting_whole(transformations: Sequence[TransformComponent]) -> list[TransformComponent]:
    """Transformations, whose extractors take documents as well."""
    return [ExtractingWhole(extractor=each) if isinstance(each, BaseExtractor) else each for each in transformations]


def _stand_in(document: Document) -> TextNode:
    return TextNode(
        id_=document.id_,
        text=document.text,
        metadata=dict(document.metadata),
        excluded_embed_metadata_keys=list(document.excluded_embed_metadata_keys),
        excluded_llm_metadata_keys=list(document.excluded_llm_metadata_keys),
        relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
    )


def _with_metadata(document: Document, node: BaseNode) -> Document:
    return document.model_copy(
        update={
            "metadata": node.metadata,
            "excluded_embed_metadata_keys": node.excluded_embed_metadata_keys,
            "excluded_llm_metadata_keys": node.excluded_llm_metadata_keys,
        }
    )
