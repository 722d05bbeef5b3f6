"""Fitting a probe of importance on texts of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import torch

from shared_context.config import require
from shared_context.kernels import ChunkKV
from shared_context.model.probe import ImportanceProbe, fitted
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.progress import with_progress


def fit_probe(
    model: SharedLLMModel, texts: Sequence[str], *, chunks: int = 200, chunk_size: int = 512, seed: int = 0
) -> ImportanceProbe:
    """A probe that comes nearest to what repetitions of chunks of these texts find important.

    Args:
        model: with all of its layers injected, and without an adapter.
        texts: what chunks are drawn from, each text as often as any other.
        chunks: how many are drawn.
        chunk_size: tokens of each at most.
        seed: of the drawing.

    Raises:
        ConfigError: there is no text, or a layer is not injected.
    """
    require(any(text.strip() for text in texts), "texts", len(texts), "none of them has a word; give some text")
    layers, injected = model.hf_model.config.num_hidden_layers, model.compressor.layers
    require(injected == layers, "injection_layers", injected, f"a probe needs all {layers}")
    random, tokens = Random(seed), [model.tokenize(text).ids for text in texts if text.strip()]

    def scored() -> Iterator[ChunkKV]:
        for _ in with_progress(range(chunks), "chunks"):
            ids = random.choice(tokens)
            begin = random.randrange(max(1, len(ids) - chunk_size + 1))
            chunk = torch.from_numpy(ids[begin : begin + chunk_size].astype("int64"))
            encodings = model.compressor.encode([chunk])
            (importance,) = model.compressor.importance([chunk], encodings)
            yield replace(encodings[0], importance=importance)

    return fitted(scored(), model.injection.rotary, len(model.prompt_format.prefix), model.fingerprint)
