"""Pasted text that is read once, for measurements that ask a model several things about the same text."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch

from shared_context import Selection, SharedLLMModel
from shared_context.kernels import ChunkKV
from shared_context.model.context import ContextKV

KEPT = 16
"""Texts whose keys and values are kept."""


class TextReader:
    """Reads texts for a model, and keeps the keys and values of those read last.

    A prompt's beginning, up to the end of the pasted text, is the same for every question about it and for scoring and
    answering alike. An untrained model with prefix injection in all layers reads a text as its compressor does, as
    one chunk behind the same prefix, at the same positions: what it answers is what it answers to the pasted text.

    Args:
        model: reads.
    """

    def __init__(self, model: SharedLLMModel):
        injection = model.injection
        self._alike = injection.in_cache and injection.layers == len(model.hf_model.base_model.layers)
        self._alike &= model.adapter() is None
        self._model = model
        self._known: OrderedDict[str, ChunkKV] = OrderedDict()

    def context(self, context: Selection | str | None) -> Selection | ReadText | str | None:
        """What the model is to be given for a context: the same, or instead of a text what was read of it."""
        return ReadText(self, context) if self._alike and isinstance(context, str) and context else context

    def tokens(self, text: str) -> torch.Tensor:
        """Token ids [tokens] of a text, as it is pasted."""
        return torch.from_numpy(self._model.tokenize(text).ids.astype("int64"))

    def read(self, text: str) -> ChunkKV:
        """Keys and values of a text."""
        chunk = self._known.pop(text, None)
        if chunk is None:
            (chunk,) = self._model.compressor.encode([self.tokens(text)])
        self._known[text] = chunk
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return chunk


@dataclass(frozen=True)
class ReadText:
    """A text as a context that is injected where it would have been pasted.

    Attributes:
        reader: reads it when it is asked for.
        text: what is read.
    """

    reader: TextReader
    text: str

    @property
    def kv_entries(self) -> int:
        """Tokens."""
        return len(self.reader.tokens(self.text))

    def key_values(self, room: int | None = None) -> ContextKV:
        """All of its keys and values, as they stand."""
        ids = self.reader.tokens(self.text)
        return ContextKV([self.reader.read(self.text)], [torch.arange(len(ids))], ids)
