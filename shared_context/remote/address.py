"""Addresses: where snapshots lie, on any file system that fsspec has a client for."""

from __future__ import annotations

import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from shared_context.errors import ConfigError, StoreUnavailableError

S = TypeVar("S")
T = TypeVar("T")

_ADDRESS = re.compile(r"(?P<url>(?P<protocol>[a-z][a-z0-9+.-]*)://\S.*?)(?:@(?P<number>\d+))?/*")

CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl"})
"""Protocols whose clients create an object only where there is none, decided by the server."""

TOGETHER = 8
"""Objects that are read or written at a time."""


def is_address(place: object) -> TypeGuard[str]:
    """Whether a store's place is an address, such as ``s3://bucket/name``, and no folder."""
    return isinstance(place, str) and _ADDRESS.fullmatch(place) is not None


def is_store(place: str | Path) -> bool:
    """Whether there is something that has to be opened as a store, not made; always at an address."""
    folder = Path(place)
    return is_address(place) or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir())))


class Address:
    """A folder of objects on some file system.

    Credentials, endpoints and the like are the client's own: its environment variables and files, or fsspec's
    configuration.

    Args:
        text: ``protocol://bucket/name``; behind ``@`` the number of a snapshot may follow.

    Attributes:
        url: without the number.
        number: of the snapshot that is meant; None means the last one.

    Raises:
        ConfigError: it is no address.
        StoreUnavailableError: there is no client for it.
    """

    def __init__(self, text: str):
        match = _ADDRESS.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"{text!r} is no address; write it as s3://bucket/name, gs://..., az://... or file:///..."
            )
        self.url, self._protocol = match["url"], match["protocol"]
        self.number = None if match["number"] is None else int(match["number"])
        try:
            from fsspec.core import url_to_fs

            # What a listing said before another machine published is of no use.
            options = {"auto_mkdir": True} if self._protocol in ("file", "local") else {}
            self._fs, self._root = url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            raise StoreUnavailableError(
                f"{self.url} cannot be used ({error}). Addresses need pip install sharedllm[remote] and the client of "
                "their file system, such as s3fs, gcsfs or adlfs."
            ) from error

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """An object's content.

        Raises:
            FileNotFoundError: there is none.
            StoreUnavailableError: it cannot be read now.
        """
        return self._asked(self._fs.cat_file, self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write an object, in the place of one of this name.

        Raises:
            StoreUnavailableError: it cannot be written.
        """
        try:
            self._asked(self._fs.pipe_file, self._path(name), content)
        except FileNotFoundError as error:
            raise StoreUnavailableError(
                f"{self.url} cannot be written: its bucket or folder is not there ({error}). Make it, or check the "
                "address."
            ) from error

    def create(self, name: str, content: bytes) -> bool:
        """Write an object where there is none; of several that do so at once one succeeds.

        Returns:
            Whether this content is there now: false where another one was first.

        Raises:
            StoreUnavailableError: it cannot be written, or the file system cannot promise that.
        """
        try:
            self._create(self._path(name), content)
            return True
        except StoreUnavailableError:
            raise
        except Exception as error:  # of any client: each has its own for what is there already
            # The answer to a request that succeeded may have been lost, and the client asked again.
            with suppress(FileNotFoundError):
                return self.read(name) == content
            raise self._unavailable(error) from error

    def _create(self, path: str, content: bytes) -> None:
        if self._protocol in ("file", "local"):
            unfinished = f"{path}.{secrets.token_hex(8)}"
            try:
                self._fs.pipe_file(unfinished, content)
                os.link(unfinished, path)
            finally:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(unfinished)
        elif self._protocol in CONDITIONAL or self._protocol == "memory":
            self._fs.pipe_file(path, content, mode="create")
        else:
            raise StoreUnavailableError(
                f"{self.url}: nothing can be published on {self._protocol}, whose client cannot create an object only "
                "where there is none. Publish on s3, gs, az or file."
            )

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, without it; none where there is no such folder."""
        try:
            found = self._asked(self._fs.ls, self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none."""
        try:
            return self._asked(self._fs.info, self._path(name))["size"]
        except FileNotFoundError:
            return None

    def modified(self, name: str) -> float | None:
        """When an object was written, by the clock of its file system, in seconds; None where there is none.

        Raises:
            StoreUnavailableError: it cannot be asked now, or the file system does not say.
        """
        try:
            found = self._asked(self._fs.info, self._path(name))
            when = found["last_modified"] if "last_modified" in found else self._fs.modified(self._path(name))
            return when.timestamp()
        except FileNotFoundError:
            return None
        except (NotImplementedError, AttributeError) as error:
            raise StoreUnavailableError(
                f"{self.url}: {self._protocol} does not say when an object was written, so none can be told from one "
                "that is being published. Delete the whole address instead, and push the store again."
            ) from error

    def delete(self, name: str) -> None:
        """Delete an object, where there is one.

        Raises:
            StoreUnavailableError: it cannot be deleted.
        """
        with suppress(FileNotFoundError):
            self._asked(self._fs.rm_file, self._path(name))

    def _asked(self, ask: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What a client says; in the library's own error what it refuses, but for what is missing."""
        try:
            return ask(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:  # each client has its own errors, few of which are an OSError
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self.url} cannot be used now ({type(error).__name__}: {error}). Check the address, the network and the "
            "credentials of its client."
        )


def side_by_side(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """What a function makes of items, in their order, a few of them at a time."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(TOGETHER) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == TOGETHER:  # no more of them in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
