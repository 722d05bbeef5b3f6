"""Who may ask: API keys, kept as hashes in a file, each bound to stores, to a namespace and to filters of metadata."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from shared_context.config import require
from shared_context.errors import ConfigError, DocumentError, FilterError
from shared_context.serve.faults import Refusal
from shared_context.store.documents import check_id
from shared_context.store.filters import compile_filter

KEY_BYTES = 32
PREFIX = "sk-"


@dataclass(frozen=True)
class Caller:
    """Whoever asks, and what may be seen.

    Attributes:
        name: of the key; None where no keys are asked for.
        stores: names of the stores; None is all of them.
        filters: of metadata, which hold for every call beside its own.
        namespace: of each store, which is all of the store for this caller; None is the store's own documents.
        writes: may add and remove documents.
        operates: may make and delete stores, and see the figures of the whole server.
    """

    name: str | None = None
    stores: frozenset[str] | None = None
    filters: Mapping[str, Any] | None = field(default=None, hash=False)
    namespace: str | None = None
    writes: bool = True
    operates: bool = True

    def may_use(self, store: str) -> bool:
        """Whether a store is there for this caller."""
        return self.stores is None or store in self.stores

    def narrowed(self, filters: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What a call's filters become: they hold together with the caller's own."""
        parts = [dict(part) for part in (self.filters, filters) if part]
        return {"$and": parts} if len(parts) > 1 else (parts[0] if parts else None)

    def sees(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a document with these metadata is there for this caller."""
        return compile_filter(self.filters)(metadata)

    def own(self, id: str) -> str:
        """The id under which something of this caller's is kept, such that no other one's is the same."""
        return id if self.name is None else f"{self.name}/{id}"

    def check_writes(self) -> None:
        """Raises a Refusal where documents may not be changed."""
        if not self.writes:
            raise Refusal(
                403,
                "This key may ask and not change anything; use one that was made with --write, at a server that takes "
                "documents.",
            )

    def check_operates(self) -> None:
        """Raises a Refusal where the server's own affairs are none of the caller's."""
        if not self.operates:
            raise Refusal(403, "This key is for some stores only; use one that was made with --operate.")


ANYONE = Caller()
"""Where no keys are asked for: whoever reaches the server may do everything."""


class Keys:
    """The file of the keys. It is read again when it has changed, so a key can be revoked while the server runs.

    The file is JSON, ``{"keys": [{"name", "sha256", "stores", "filters", "namespace", "writes", "operates"}]}``. Keys
    are 32 random bytes, which nobody guesses from a hash, however fast it is.

    Args:
        path: of the file.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._callers: dict[str, Caller] = {}
        self._read()

    def caller(self, authorization: str | None) -> Caller:
        """Whoever sends this header.

        Raises:
            Refusal: no key, or none that is known.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refusal(
                401, "No API key was sent; send it as Authorization: Bearer KEY.", code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        with self._lock:
            self._read()
            caller = self._callers.get(digest(key.strip()))
        if caller is None:
            raise Refusal(
                401, "The API key is not known here, or was revoked.", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return caller

    def _read(self) -> None:
        try:
            state = self._path.stat()
            seen = (state.st_mtime_ns, state.st_size, state.st_ino)
            if seen == self._seen:
                return
            records = read_keys(self._path)
        except (OSError, ConfigError) as error:
            if self._seen is None:
                raise ConfigError(f"{self._path} cannot be read as a file of keys: {error}") from error
            # A file that is broken lets nobody in: one that is to be kept out may be missing from it.
            self._callers, self._seen = {}, (0, 0, 0)
            return
        self._callers, self._seen = {record["sha256"]: _caller(record) for record in records}, seen


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[dict[str, Any]]:
    """The records of a file of keys.

    Raises:
        ConfigError: it is something else.
        OSError: it cannot be read.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["keys"]
        for record in records:
            _caller(record), record["sha256"], record["name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of keys ({error}); make one with `shared-context keys add`.") from error
    return records


def add_key(
    path: Path,
    name: str,
    *,
    stores: list[str] | None = None,
    filters: Mapping[str, Any] | None = None,
    namespace: str | None = None,
    writes: bool = False,
    operates: bool = False,
) -> str:
    """Make a key and keep its hash in the file, which is made where there is none; the key itself is kept nowhere.

    Raises:
        ConfigError: the name is taken, the filters are none, a key of a namespace is to operate the server, or the
            file is something else.
    """
    require(bool(name.strip()) and "/" not in name, "name", name, "must be a text without a slash")
    _check_namespace(namespace)
    if namespace is not None:
        require(
            not operates, "operates", operates, "a key of a namespace is for that alone; make another one to operate"
        )
    try:
        compile_filter(filters)
    except FilterError as error:
        raise ConfigError(f"filters of the key {name!r}: {error}") from error
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with _changing(path):
        records = read_keys(path) if path.exists() else []
        taken = any(record["name"] == name for record in records)
        require(not taken, "name", name, "has a key already; revoke it first, or choose another name")
        records.append(
            {
                "name": name,
                "sha256": digest(key),
                "stores": stores,
                "filters": dict(filters) if filters else None,
                "namespace": namespace,
                "writes": writes,
                "operates": operates,
            }
        )
        _write(path, records)
    return key


def revoke_key(path: Path, name: str) -> None:
    """Forget a key; a server that runs refuses it from its next request on.

    Raises:
        ConfigError: there is none of that name.
    """
    with _changing(path):
        records = read_keys(path) if path.exists() else []
        kept = [record for record in records if record["name"] != name]
        known = ", ".join(record["name"] for record in records) or "none"
        require(len(kept) < len(records), "name", name, f"has no key; those with one: {known}")
        _write(path, kept)


def _changing(path: Path) -> FileLock:
    return FileLock(f"{path}.lock")


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    """Put the file in its place whole, readable by its owner only."""
    new = path.with_name(f"{path.name}.new")
    with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"keys": records}, file, indent=2)
    os.replace(new, path)


def _caller(record: Mapping[str, Any]) -> Caller:
    stores, namespace = record.get("stores"), record.get("namespace")
    compile_filter(record.get("filters"))
    _check_namespace(namespace)
    return Caller(
        name=str(record["name"]),
        stores=None if stores is None else frozenset(map(str, stores)),
        filters=record.get("filters"),
        namespace=namespace,
        writes=record.get("writes") is True,
        operates=record.get("operates") is True and namespace is None,
    )


def _check_namespace(name: str | None) -> None:
    try:
        if name is not None:
            check_id(name, "the namespace")
    except DocumentError as error:
        raise ConfigError(f"namespace of a key: {error}") from error
