"""Documents, and what is accepted as one: text, files, folders."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from shared_context.config import MIB
from shared_context.errors import BatchError, ConfigError, DocumentError, DuplicateDocumentError, UnreadableError
from shared_context.store.files import (
    CONVERTERS,
    EXTRACT,
    HTML_SUFFIXES,
    TEXT_SUFFIXES,
    clip,
    find_files,
    read_text,
    too_large,
)

logger = logging.getLogger(__name__)

MAX_ID_LENGTH = 512
"""Characters."""

MAX_METADATA_DEPTH = 32
"""Lists and dicts inside of each other: what is nested deeper could not be read back from a deep call stack."""

MAX_METADATA_BYTES = 16 * MIB
"""Of a document's metadata as JSON."""

LARGEST_INTEGER = 1 << 63
"""Larger integers are no numbers to most programs that read JSON."""

REPLACEMENT = "\ufffd"
REPLACED_SHARE = 0.1
"""More of a text's characters than this are not replaced: it was no text."""

OnError: TypeAlias = Literal["skip", "raise"] | Callable[[str, DocumentError], object]
"""What becomes of an unreadable document among others: it is left out with a warning in the log, all are refused, or it
is left out and this is called with its id, path or position and its error."""


@dataclass(frozen=True)
class Document:
    """A text that is stored whole.

    Args:
        text: what is read, exactly; all character positions count in it.
        id: names the document in its store; 1 to 512 characters without control characters. None derives one from
            text and metadata.
        metadata: what filters see, queries are compared with and answers cite; JSON values under string keys.
        unsearched_keys: metadata that no query is compared with; filters see them all the same.
        hidden_keys: metadata that no model is shown.

    Nothing is checked here but where the document is stored, so that a batch can report all that is wrong with it.
    """

    text: str
    id: str = None  # type: ignore[assignment]  # it has one where it is stored
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    unsearched_keys: tuple[str, ...] = ()
    hidden_keys: tuple[str, ...] = ()


Source: TypeAlias = str | os.PathLike[str] | Document | Iterable[str | os.PathLike[str] | Document]


def load_documents(
    source: Source | TextFile,
    *,
    id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_bytes: int,
    stored: Container[str] = (),
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    on_error: OnError = "skip",
) -> list[Document]:
    """Read and check everything that ``source`` stands for.

    Args:
        source: one of

            * a file's path (str or Path): UTF-8, a byte order mark is dropped, newlines stay as they are; or what
              :func:`~shared_context.store.files.read_text` converts. Its id is the path as given, with forward
              slashes; its metadata get ``file_name`` and ``file_path``.
            * a folder's path: all files in it and below that hold text, in the order of their paths, as
              :func:`~shared_context.store.files.find_files` finds them.
            * a text (str) together with ``id``. One that names an existing file is that file; a text that comes from
              elsewhere, and must never name a file of this machine, is a Document.
            * a TextFile, which is read like the file that it names.
            * a Document. Without id it gets one of 32 hex digits, derived from its text and metadata; of several
              without id that have both in common the first is taken.
            * an iterable of paths and Documents, consumed once.
        id: replaces the id of a single document.
        metadata: merged over the metadata of every document.
        max_bytes: largest document, in bytes of UTF-8.
        stored: ids that are taken.
        include, exclude: patterns of the files that are taken from folders.
        on_error: what becomes of documents that are empty, broken or no text. By default they are left out, each with
            a warning in the log, and of a Document's text a few characters that cannot be stored (NUL, lone
            surrogates: programs that read PDFs leave them) are replaced by U+FFFD. "raise" refuses all documents
            then. A function is called with the name and the UnreadableError of each that is left out.

    Returns:
        Documents with an id, each once, in the order given; metadata are plain JSON values, copied.

    Raises:
        DocumentError: the one document given is refused, or none is found; says what, where and the mend.
        BatchError: several were given and are refused; ``failures`` has the error of each, by id. An id that appears
            twice is a DuplicateDocumentError of the later one, one that is taken is one too: neither is left out.
    """
    if not (callable(on_error) or on_error in ("skip", "raise")):
        raise ConfigError(f"on_error={on_error!r}: must be 'skip', 'raise' or a function of a name and an error")
    over = check_metadata(metadata, "metadata=") if metadata is not None else {}
    if id is not None:
        check_id(id, "id=")
    documents: dict[str, Document] = {}
    failures: dict[str, DocumentError] = {}
    for position, given in _given(source, id, tuple(include), tuple(exclude)):
        label = _label(given, position)
        try:
            if isinstance(given, _NoText):
                report_skipped(label, given.error, on_error)
                continue
            document = given.read(max_bytes) if isinstance(given, TextFile) else given
            if isinstance(document, DocumentError):
                raise document
            if on_error != "raise":
                document = _readable(document, label)
            document = check_document(document, max_bytes=max_bytes, name=f"document {label!r}")
            if document.id in documents:
                if isinstance(given, Document) and given.id is None:
                    continue  # the same in text and metadata, for its id is made of them
                raise _duplicate(document, documents[document.id])
            if document.id in stored:
                raise stored_already(document.id)
            documents[document.id] = replace(document, metadata={**document.metadata, **over})
        except DocumentError as error:
            failures[label if label not in failures else f"#{position}"] = error
    skip_or_refuse(failures, len(documents) + len(failures), on_error)
    return list(documents.values())


def skip_or_refuse(failures: Mapping[str, DocumentError], count: int, on_error: OnError) -> None:
    """Pass over what is unreadable of ``count`` documents, or refuse all: where something else is wrong, too, or where
    nothing would be left.
    """
    unreadable = all(isinstance(error, UnreadableError) for error in failures.values())
    if on_error == "raise" or not unreadable or len(failures) == count:
        refuse(failures, count)
    for name, error in failures.items():
        report_skipped(name, error, on_error)


def report_skipped(name: str, error: DocumentError, on_error: OnError) -> None:
    """Say that a document is left out, and why."""
    if callable(on_error):
        on_error(name, error)
    else:
        logger.warning("left out: %s", error)


def refuse(failures: Mapping[str, DocumentError], count: int) -> None:
    """Raise what is wrong with some of ``count`` documents: the error of the only one, or a BatchError."""
    if failures and count == 1:
        raise next(iter(failures.values()))
    if failures:
        raise BatchError(_summary(failures, count), failures)


def stored_already(id: str) -> DuplicateDocumentError:
    """The error of a document whose id is taken."""
    return DuplicateDocumentError(
        f"a document with the id {id!r} is stored already: change it with update() or add(..., replace=True)"
    )


def check_document(document: Document, *, max_bytes: int, name: str = "the document") -> Document:
    """``document`` with an id and plain JSON metadata; ``name`` is what messages call it.

    Raises:
        DocumentError: text, id, metadata or names of metadata cannot be stored.
    """
    encoded = check_text(document.text, max_bytes=max_bytes, name=name)
    metadata = check_metadata(document.metadata, name)
    id = _derived_id(encoded, metadata) if document.id is None else check_id(document.id, name)
    unsearched, hidden = (
        _check_keys(getattr(document, setting), f"{name}: {setting}") for setting in ("unsearched_keys", "hidden_keys")
    )
    return Document(document.text, id, metadata, unsearched, hidden)


def _check_keys(keys: Collection[str], name: str) -> tuple[str, ...]:
    if isinstance(keys, str) or not all(isinstance(key, str) and _is_unicode(key) for key in keys):
        raise DocumentError(f"{name} are {keys!r}, expected several keys of the metadata, each a str")
    return tuple(keys)


def _derived_id(text: bytes, metadata: dict[str, Any]) -> str:
    # Loaders give repeated pages one text and tell them apart by their metadata. No text has a NUL.
    described = b"\0" + json.dumps(metadata, sort_keys=True).encode() if metadata else b""
    return hashlib.sha256(text + described).hexdigest()[:32]


def check_text(text: str, *, max_bytes: int, name: str = "the text") -> bytes:
    """``text`` as UTF-8.

    Raises:
        DocumentError: it is not a str.
        UnreadableError: it is blank, holds NUL or lone surrogates, or is larger than ``max_bytes``.
    """
    if not isinstance(text, str):
        raise DocumentError(f"{name}: its text is a {type(text).__name__}, expected a str; decode bytes first")
    if len(text) > max_bytes:  # a character takes at least one byte: refused before anything is copied
        raise too_large(name, f"{len(text):,} characters", max_bytes)
    if not text or text.isspace():
        raise UnreadableError(f"{name} is {'blank' if text else 'empty'}: there is nothing to store, leave it out")
    nul = text.find("\0")
    if nul >= 0:
        raise UnreadableError(f"{name} has a NUL character at {nul}, so it is not text: {EXTRACT}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableError(
            f"{name} has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, which no "
            f"encoding can hold: decode the text it came from with the right encoding, or replace the character"
        ) from error
    check_size(len(encoded), max_bytes, name)
    return encoded


def check_size(nbytes: int, max_bytes: int, name: str) -> None:
    """Raise UnreadableError where a document would have more than ``max_bytes`` of text."""
    if nbytes > max_bytes:
        raise too_large(name, f"{nbytes:,} bytes", max_bytes)


def _readable(document: Document, label: str) -> Document:
    """The document with the few characters replaced that cannot be stored, each by one, so that positions stay."""
    text = document.text
    if not isinstance(text, str) or ("\0" not in text and _is_unicode(text)):
        return document
    mended = "".join(REPLACEMENT if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    count = mended.count(REPLACEMENT) - text.count(REPLACEMENT)
    if count > REPLACED_SHARE * len(text):
        return document
    logger.warning("document %r: replaced what is no text, NUL or lone surrogates: %d of its characters", label, count)
    return replace(document, text=mended)


def check_id(id: str, name: str = "the document") -> str:
    """``id`` as it is.

    Raises:
        DocumentError: it is not a str of 1 to 512 characters, is blank, or has control characters.
    """
    if not isinstance(id, str):
        raise DocumentError(f"{name}: the id is a {type(id).__name__}, expected a str")
    if not id.strip():
        raise DocumentError(f"{name}: the id {id!r} is blank; leave it out to have one derived from the text")
    if len(id) > MAX_ID_LENGTH:
        raise DocumentError(f"{name}: the id has {len(id)} characters, at most {MAX_ID_LENGTH} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in id):
        raise DocumentError(f"{name}: the id {id!r} has control characters or lone surrogates; pass another with id=")
    return id


def check_metadata(
    metadata: Mapping[str, Any], name: str = "the document", max_bytes: int = MAX_METADATA_BYTES
) -> dict[str, Any]:
    """A copy of ``metadata`` in plain JSON values; tuples become lists.

    Raises:
        DocumentError: a key is not a str, or a value is none that JSON has (NaN and infinities are not).
    """
    if not isinstance(metadata, Mapping):
        raise DocumentError(f"{name}: the metadata are a {type(metadata).__name__}, expected a dict")
    value = _json_value(metadata, f"{name}: metadata", MAX_METADATA_DEPTH)
    nbytes = len(json.dumps(value, ensure_ascii=False).encode())
    if nbytes > max_bytes:
        raise DocumentError(
            f"{name}: the metadata take {nbytes:,} bytes as JSON, at most {max_bytes:,} are stored; leave out "
            "what is neither filtered nor shown"
        )
    return value


def _json_value(value: Any, where: str, depth: int) -> Any:
    if depth == 0:
        raise DocumentError(
            f"{where[:80]}...: the metadata are nested more than {MAX_METADATA_DEPTH} deep, or contain themselves; "
            "store them as a string"
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST_INTEGER:
        raise DocumentError(f"{where} is an integer of more than 64 bits: pass it as a string")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if not _is_unicode(value):
            raise DocumentError(f"{where} is {value!r}, which has a lone surrogate: replace it")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DocumentError(f"{where} is {value}, which JSON cannot hold: use None or leave it out")
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{where}[{position}]", depth - 1) for position, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _is_unicode(key):
                raise DocumentError(f"{where} has the key {key!r}: keys must be strings of valid Unicode")
        return {key: _json_value(item, f"{where}[{key!r}]", depth - 1) for key, item in value.items()}
    raise DocumentError(
        f"{where} is a {type(value).__name__}: pass a string, a number, True, False, None, a list or a dict"
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- what was given, one document at a time


@dataclass(frozen=True)
class TextFile:
    """A file that is read as a document.

    Attributes:
        path: as it was given.
        id: the document's; None is the path.
        folder: where it was found, and has to lie still when it is read; None where it was given by name.
    """

    path: Path
    id: str | None = None
    folder: Path | None = None

    def read(self, max_bytes: int) -> Document:
        given = self.path.as_posix()
        name = f"file {given!r}"
        text = read_text(self.path, max_bytes, name, self.folder)
        metadata = {"file_name": self.path.name, "file_path": given}
        # The path has the name once more, and says where this machine keeps what.
        return Document(text, self.id or given, metadata, unsearched_keys=("file_path",), hidden_keys=("file_path",))


@dataclass(frozen=True)
class _NoText:
    """A file of a folder that is of no kind that is read."""

    path: Path
    reason: str

    @property
    def error(self) -> UnreadableError:
        return UnreadableError(f"file {self.path.as_posix()!r} {self.reason}")


_Given: TypeAlias = Document | TextFile | _NoText | DocumentError
_Patterns: TypeAlias = tuple[str, ...]


def _given(
    source: Source | TextFile, id: str | None, include: _Patterns, exclude: _Patterns
) -> Iterator[tuple[int, _Given]]:
    """Position in ``source`` and document, file or, in the place of what is neither, its error."""
    # Refused as a whole: their items are bytes, keys or lines, and each would be an error of its own.
    refused = isinstance(source, bytes | bytearray | memoryview | Mapping | io.IOBase)
    single = refused or isinstance(source, str | os.PathLike | Document)
    if single or not isinstance(source, Iterable):
        yield from ((0, given) for given in _one(source, id, include, exclude))
        return
    if id is not None:
        raise DocumentError(f"id={id!r} names one document, but several were given: set the id of each Document")
    for position, item in enumerate(source):
        yield from ((position, given) for given in _one(item, None, include, exclude))


def _one(item: Any, id: str | None, include: _Patterns, exclude: _Patterns) -> list[_Given]:
    if isinstance(item, Document | TextFile):
        return [item if id is None else replace(item, id=id)]
    if isinstance(item, str) and id is not None and not _names_a_file(item):
        return [Document(item, id)]
    if isinstance(item, str | os.PathLike):
        try:
            return _files(item, id, include, exclude)
        except DocumentError as error:
            return [error]
    kind = type(item)
    return [
        DocumentError(
            f"a {kind.__module__}.{kind.__qualname__} is no document: pass a path, a Document, text together with "
            f"id=, or an iterable of paths and Documents"
        )
    ]


def _files(given: str | os.PathLike[str], id: str | None, include: _Patterns, exclude: _Patterns) -> list[_Given]:
    name = os.fsdecode(given)
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:  # ValueError: NUL, or characters that no file name can have
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise DocumentError(f"{clip(name)} cannot be read: {error.strerror}") from error
        raise DocumentError(
            f"there is no file or folder {clip(name)}; to store this text itself pass it "
            f"{'with id=, or ' if id is None else ''}as a Document"
        ) from error
    if stat.S_ISREG(mode):
        return [TextFile(Path(name), id)]
    if not stat.S_ISDIR(mode):
        raise DocumentError(f"{clip(name)} is neither a regular file nor a folder: read it and pass its text")
    if id is not None:
        raise DocumentError(f"id={id!r} names one document, but {clip(name)} is a folder: leave id out")
    folder = Path(name)
    files, others = find_files(folder, include, exclude)
    if not files:
        raise DocumentError(f"the folder {clip(name)} has no text file, nor another one that is read{_reasons(others)}")
    found: list[TextFile | _NoText] = [TextFile(file, folder=folder) for file in files]
    found += [_NoText(*other) for other in others.items()]
    found.sort(key=lambda given: given.path)
    return list(found)


def _reasons(others: Mapping[Path, str]) -> str:
    shown = [f"\n  {path.as_posix()} {reason}" for path, reason in list(others.items())[:5]]
    return f":{''.join(shown)}" if shown else ""


def _names_a_file(text: str) -> bool:
    """Whether a text is a path: of something that is there, or a single word that ends as a file's name does."""
    try:
        there = os.path.exists(text)
    except ValueError:  # NUL
        return False
    ending = text.lower().endswith((*TEXT_SUFFIXES, *HTML_SUFFIXES, *CONVERTERS))
    return there or (ending and len(text.split()) == 1)


# ---- messages


def _label(given: _Given, position: int) -> str:
    if isinstance(given, TextFile):
        return given.id or given.path.as_posix()
    if isinstance(given, _NoText):
        return given.path.as_posix()
    if isinstance(given, Document) and isinstance(given.id, str) and given.id:
        return given.id
    return f"#{position}"


def _duplicate(document: Document, first: Document) -> DuplicateDocumentError:
    same = "with the same text" if document.text == first.text else "with another text"
    return DuplicateDocumentError(f"the id {document.id!r} appears twice in this call, {same}: give each its own id")


def _summary(failures: Mapping[str, DocumentError], count: int) -> str:
    shown = [f"\n  {label}: {error}" for label, error in list(failures.items())[:5]]
    more = f"\n  and {len(failures) - 5} more, see .failures" if len(failures) > 5 else ""
    return f"{len(failures)} of {count} documents are refused, none is stored:{''.join(shown)}{more}"
