"""Opening a model and a store for a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from shared_context.cli import output
from shared_context.config import require
from shared_context.errors import StoreFormatError
from shared_context.remote.address import is_store

if TYPE_CHECKING:
    from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig


class Loading(TypedDict, total=False):
    """How a model is loaded, beside its name."""

    adapter: str | None
    dtype: str
    device: str


@contextmanager
def open_store(
    path: Path | str,
    model: str | None,
    kv_limit: int | None = None,
    *,
    namespace: str | None = None,
    **loading: Unpack[Loading],
) -> Iterator[SharedLLMContextStore]:
    """The store in a folder, with the model named or, where None, the one that it was made with.

    Args:
        kv_limit: bytes of keys and values that it keeps on disk from now on; None leaves that as it is.
        namespace: one of the store's namespaces instead of the store.
        **loading: as :func:`load_model` takes it.

    Raises:
        StoreFormatError: there is no store; a command that asks must not leave an empty one behind.
        ConfigError: there is no such namespace.
        SharedContextError: the model or the store cannot be opened.
    """
    if not is_store(path):
        raise StoreFormatError(
            f"there is no store in {path}: make one with `shared-context ingest {path} FILE...`, or check the path"
        )
    with open_or_make_store(path, model, **loading) as store:
        known = store.namespaces() if namespace is not None else ()
        require(namespace is None or namespace in known, "namespace", namespace, f"{path} has {_listed(known)}")
        yield _of_namespace(store, namespace, kv_limit)


@contextmanager
def open_or_make_store(
    path: Path | str,
    model: str | None,
    *,
    config: StoreConfig | None = None,
    use_embedder: bool = True,
    kv_limit: int | None = None,
    namespace: str | None = None,
    **loading: Unpack[Loading],
) -> Iterator[SharedLLMContextStore]:
    """Like :func:`open_store`, and a new store, by default of the default model, where there is none."""
    from shared_context.model.pretrained import DEFAULT_MODEL

    with output.messages().status("opening the store"):
        from shared_context.shards.opening import made_with, open_store

        if model is None:
            model = made_with(path)["model"] if is_store(path) else DEFAULT_MODEL
        output.silence_libraries()
        embedder = "auto" if use_embedder else None
        store = open_store(load_model(model, **loading), path, config=config, embedder=embedder)
    with store:
        yield _of_namespace(store, namespace, kv_limit)


def _of_namespace(store: SharedLLMContextStore, namespace: str | None, kv_limit: int | None) -> SharedLLMContextStore:
    chosen = store if namespace is None else store.namespace(namespace)
    if kv_limit is not None:
        chosen.limit_kv(kv_limit)
    return chosen


def _listed(names: Sequence[str]) -> str:
    return f"the namespaces {', '.join(map(repr, names))}" if names else "no namespaces"


def load_model(name: str, adapter: str | None = None, dtype: str = "auto", device: str = "auto") -> SharedLLMModel:
    """Load a model by its name or folder; the rest is as in `SharedLLMModel.from_pretrained`."""
    from shared_context import SharedLLMModel

    return SharedLLMModel.from_pretrained(name, adapter=adapter, dtype=dtype, device=device)
