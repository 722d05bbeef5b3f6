"""What the paper's policy compares: the one-layer state of each leaf's last token (arXiv 2603.04759)."""

from __future__ import annotations

import torch

from shared_context.config import TreeConfig
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.store.ingestion import first_layer
from shared_context.store.node_index import NodeIndex


class LeafStates:
    """States of the leaves of an index, computed when that policy first asks for them and kept in memory only.

    They would take 36 bytes a token on disk for the default model, which no other policy reads.

    Args:
        model: encodes.
        tree: the shape of the trees.
        index: the documents.
    """

    def __init__(self, model: SharedLLMModel, tree: TreeConfig, index: NodeIndex):
        self._model, self._tree, self._index = model, tree, index
        self._known: dict[int, torch.Tensor] = {}

    def all(self) -> torch.Tensor:
        """Of unit length, float16 [leaves, hidden], in the order of the index's leaves, on its device."""
        documents = self._index.token_ids()
        self._known = {key: states for key, states in self._known.items() if key in documents}
        new = [key for key in documents if key not in self._known]
        size, hidden = self._tree.leaf_size, self._model.hf_model.config.hidden_size
        for key in new:
            leaves = -(-len(documents[key]) // size)
            self._known[key] = torch.empty((leaves, hidden), dtype=torch.float16, device=self._index.device)
        for batch in first_layer(self._model, [documents[key] for key in new], self._tree.chunk_size):
            for number, start, states in batch:
                ends = torch.arange(size, len(states) + size, size).clamp(max=len(states)) - 1
                # Only their direction counts, and at unit length float16 holds the states of any model.
                unit = torch.nn.functional.normalize(states[ends.to(states.device)].float(), dim=-1)
                self._known[new[number]][start // size : start // size + len(ends)] = unit
        return torch.cat([self._known[key] for key in sorted(documents)])
