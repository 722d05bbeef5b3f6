"""What a store was made with: its model, its embedder and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from shared_context.config import CacheConfig, StoreConfig, TreeConfig, require
from shared_context.errors import ConfigError, ModelMismatchError
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.model.support import usable_window
from shared_context.store.embedder import DEFAULT_EMBEDDER, Embedder, load_default_embedder


@dataclass(frozen=True)
class About:
    """What a store was made with, kept in its database as JSON.

    Attributes:
        model: the model's name.
        fingerprint: of the model's weights.
        embedder: the embedder's name; None where there is none.
        dimension: of its embeddings; 0 where there is none.
        config: the settings.
    """

    model: str
    fingerprint: str
    embedder: str | None
    dimension: int
    config: StoreConfig

    @classmethod
    def of(cls, model: SharedLLMModel, embedder: Embedder | None, config: StoreConfig) -> About:
        """That of a new store."""
        name, dimension = _described(embedder)
        return cls(model.name, model.fingerprint, name, dimension, config)

    @classmethod
    def from_bytes(cls, data: bytes) -> About:
        """From what :meth:`to_bytes` gave."""
        return cls.from_dict(json.loads(data))

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> About:
        """From what :meth:`to_bytes` gave, read as JSON."""
        values = dict(given)
        config = dict(values.pop("config"))
        tree, cache = TreeConfig(**config.pop("tree")), CacheConfig(**config.pop("cache"))
        return cls(**values, config=StoreConfig(**config, tree=tree, cache=cache))

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    def check_model(self, model: SharedLLMModel, path: Path | str | None) -> None:
        """Raise ModelMismatchError unless the store was made with this model."""
        if self.fingerprint != model.fingerprint:
            raise ModelMismatchError(
                f"The store {path} was made with the model {self.model} ({self.fingerprint}) and cannot be opened with "
                f"{model.name} ({model.fingerprint}). Open it with its own model, or make a new store."
            )

    def chosen_embedder(
        self, given: Embedder | Literal["auto"] | None, made_with: Embedder | None, path: Path | None, device: str
    ) -> Embedder | None:
        """The embedder to open the store with.

        Args:
            given: by the user.
            made_with: what the store was made with a moment ago.
            device: where one that is loaded runs.

        Raises:
            ModelMismatchError: it is not the store's own, or that cannot be loaded by its name.
        """
        embedder = self._own_embedder(made_with, path, device) if given == "auto" else given
        name, dimension = _described(embedder)
        if (name, dimension) != (self.embedder, self.dimension):
            raise ModelMismatchError(
                f"The store {path} was made with the embedder {self.embedder} ({self.dimension} dimensions) and cannot "
                f"be opened with {name} ({dimension}). Pass its own embedder, or make a new store."
            )
        return embedder

    def _own_embedder(self, made_with: Embedder | None, path: Path | None, device: str) -> Embedder | None:
        if self.embedder is None:
            return None
        if made_with is not None and made_with.name == self.embedder:
            return made_with
        if self.embedder == DEFAULT_EMBEDDER:
            return load_default_embedder(device)
        raise ModelMismatchError(
            f"The store {path} was made with the embedder {self.embedder}, which cannot be loaded by its name alone. "
            "Pass it with embedder=."
        )

    def chosen_config(self, given: StoreConfig | None, path: Path | None) -> StoreConfig:
        """The settings to open the store with.

        Raises:
            ConfigError: those given contradict what stored data depends on.
        """
        if given is not None and given.fixed() != self.config.fixed():
            raise ConfigError(
                f"The store {path} was made with {self.config.fixed()} and cannot be opened with {given.fixed()}. "
                "Leave these settings out, or make a new store."
            )
        return given or self.config


def check_window(model: SharedLLMModel, config: StoreConfig) -> None:
    """That a chunk can be encoded: behind prefix and lead-in, inside the window the model was trained for."""
    prefix, window = len(model.prompt_format.prefix), usable_window(model.hf_model.config)
    needed = prefix + config.lead_in + config.tree.chunk_size
    require(
        needed <= window,
        "chunk_size",
        config.tree.chunk_size,
        f"behind a prefix of {prefix} tokens and a lead-in of {config.lead_in} that is {needed}, and {model.name} "
        f"reads {window}; make the store with smaller chunks (TreeConfig(chunk_size=...))",
    )


def _described(embedder: Embedder | None) -> tuple[str | None, int]:
    return (embedder.name, embedder.dimension) if embedder is not None else (None, 0)
