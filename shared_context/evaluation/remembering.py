"""An embedder for measurements that meet the same texts again and again."""

from __future__ import annotations

import numpy as np

from shared_context.store.embedder import Embedder


class RememberingEmbedder:
    """An embedder that embeds a text once, however often it is asked.

    Args:
        embedder: embeds.
    """

    def __init__(self, embedder: Embedder):
        self.name, self.dimension, self._embedder = embedder.name, embedder.dimension, embedder
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [texts, dimension]."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._embedder.encode(new), strict=True)
        return np.stack([self._known[text] for text in texts])
