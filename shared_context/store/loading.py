"""Reading documents: what is accepted as one, or several, and what becomes of those that cannot be read."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from shared_context.errors import BatchError, ConfigError, DocumentError, DuplicateDocumentError, UnreadableError
from shared_context.store.documents import Document, check_document, check_id, check_metadata, is_unicode
from shared_context.store.files import CONVERTERS, HTML_SUFFIXES, TEXT_SUFFIXES, clip, find_files, read_text

logger = logging.getLogger(__name__)

REPLACEMENT = "\ufffd"

REPLACED_SHARE = 0.1
"""More of a text's characters than this are not replaced: it was no text."""

OnError: TypeAlias = Literal["skip", "raise"] | Callable[[str, DocumentError], object]
"""What becomes of an unreadable document among others: it is left out with a warning in the log, all are refused, or it
is left out and this is called with its id, path or position and its error."""

Source: TypeAlias = str | os.PathLike[str] | Document | Iterable[str | os.PathLike[str] | Document]


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


def _readable(document: Document, label: str) -> Document:
    """The document with the few characters replaced that cannot be stored, each by one, so that positions stay."""
    text = document.text
    if not isinstance(text, str) or ("\0" not in text and is_unicode(text)):
        return document
    mended = "".join(REPLACEMENT if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    count = mended.count(REPLACEMENT) - text.count(REPLACEMENT)
    if count > REPLACED_SHARE * len(text):
        return document
    logger.warning("document %r: replaced what is no text, NUL or lone surrogates: %d of its characters", label, count)
    return replace(document, text=mended)


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
