"""Stores that requests make and delete."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from shared_context.serve.faults import Refusal
from shared_context.serve.stores import ServedStore, Stores
from shared_context.store.store import SharedLLMContextStore


class Makes:
    """Makes and deletes stores in a folder.

    Args:
        stores: those that are served.
        folder: where new ones go; None makes none.
        like: whose model and embedder new ones have; None makes none.
    """

    def __init__(self, stores: Stores, folder: Path | None, like: SharedLLMContextStore | None):
        self._stores, self._folder, self._like = stores, folder, like

    def open_all(self) -> None:
        """Serve what requests have made before."""
        if self._folder is None or self._like is None or not self._folder.is_dir():
            return
        for path in sorted(self._folder.iterdir()):
            self._stores.add(ServedStore(path.name, self._open(path, self._like), made_here=True))

    @staticmethod
    def _open(path: Path, like: SharedLLMContextStore) -> SharedLLMContextStore:
        return SharedLLMContextStore(like.model, path, embedder=like.embedder)

    def make(self, name: str | None) -> ServedStore:
        """A new store.

        Raises:
            Refusal: stores are not made here, or the name is taken.
            ConfigError: the name cannot stand in an address.
        """
        if self._folder is None or self._like is None:
            raise Refusal(403, "Stores are not made here; start the server with --data FOLDER.")
        name = name or f"vs_{uuid4().hex}"
        if name in self._stores:
            raise Refusal(409, f"There is a store {name!r} already; choose another name.", code="taken", param="name")
        self._stores.check_name(name)
        store = self._open(self._folder / name, self._like)
        served = ServedStore(name, store, made_here=True)
        self._stores.add(served)
        return served

    def delete(self, served: ServedStore) -> None:
        """Delete a store and its folder; who is being answered from it is told that it is closed."""
        self._stores.remove(served.name)
        served.store.close()
        if served.store.path is not None:
            with suppress(FileNotFoundError):  # somebody was faster
                shutil.rmtree(served.store.path)

    def close(self) -> None:
        """Close the stores that were made or opened here."""
        for served in self._stores:
            if served.made_here:
                served.store.close()
