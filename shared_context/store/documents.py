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
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from shared_context.errors import BatchError, DocumentError, DuplicateDocumentError

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".adoc", ".asciidoc", ".markdown", ".md", ".mdx", ".org", ".rst", ".tex", ".text", ".txt")
"""What is read from a folder. A file that is passed by name is read whatever its suffix."""

MAX_ID_LENGTH = 512
"""Characters."""

_EXTRACT = "extract its text first and store that"
_MAGIC = {
    b"%PDF-": f"a PDF: {_EXTRACT}",
    b"PK\x03\x04": f"a ZIP archive (so are .docx, .pptx, .xlsx, .odt and .epub): {_EXTRACT}",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"an old Office file (.doc, .ppt, .xls): {_EXTRACT}",
    b"\x1f\x8b": "compressed with gzip: decompress it first",
    b"\x89PNG\r\n": f"a PNG image: {_EXTRACT}",
    b"\xff\xd8\xff": f"a JPEG image: {_EXTRACT}",
    b"\xff\xfe": "UTF-16 or UTF-32: convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 first",
}
_BOM = b"\xef\xbb\xbf"


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
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    unsearched_keys: tuple[str, ...] = ()
    hidden_keys: tuple[str, ...] = ()


Source: TypeAlias = str | os.PathLike[str] | Document | Iterable[str | os.PathLike[str] | Document]


def load_documents(
    source: Source,
    *,
    id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    max_bytes: int,
    stored: Container[str] = (),
) -> list[Document]:
    """Read and check everything that ``source`` stands for.

    Args:
        source: one of

            * a file's path (str or Path): UTF-8, a byte order mark is dropped, newlines stay as they are. Its id is
              the path as given, with forward slashes; its metadata get ``file_name`` and ``file_path``.
            * a folder's path: all files in it and below with one of TEXT_SUFFIXES, in the order of their paths.
              Hidden files and folders are skipped, links to folders are not followed.
            * a text (str) together with ``id``. With ``id`` a str is never a path: text that comes from elsewhere
              cannot name a file of this machine. A file under another id is ``Path(...)`` with ``id``.
            * a Document. Without id it gets one of 32 hex digits, derived from its text and metadata; of several
              without id that have both in common the first is taken.
            * an iterable of paths and Documents, consumed once.
        id: replaces the id of a single document.
        metadata: merged over the metadata of every document.
        max_bytes: largest document, in bytes of UTF-8.
        stored: ids that are taken.

    Returns:
        Documents with an id, each once, in the order given; metadata are plain JSON values, copied.

    Raises:
        DocumentError: the one document given is refused, or none is found; says what, where and the mend.
        BatchError: several were given and some are refused; ``failures`` has the error of each, by id. An id that
            appears twice is a DuplicateDocumentError of the later one, one that is taken is one too.
    """
    over = check_metadata(metadata, "metadata=") if metadata is not None else {}
    if id is not None:
        check_id(id, "id=")
    documents: dict[str, Document] = {}
    failures: dict[str, DocumentError] = {}
    for position, given in _given(source, id):
        label = _label(given, position)
        try:
            document = given.read(max_bytes) if isinstance(given, _File) else given
            if isinstance(document, DocumentError):
                raise document
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
    refuse(failures, len(documents) + len(failures))
    return list(documents.values())


def refuse(failures: Mapping[str, DocumentError], count: int) -> None:
    """Raise what is wrong with some of ``count`` documents: the error of the only one, or a BatchError."""
    if failures and count == 1:
        raise next(iter(failures.values()))
    if failures:
        raise BatchError(_summary(failures, count), failures)


def stored_already(id: str) -> DuplicateDocumentError:
    """The error of a document whose id is taken."""
    return DuplicateDocumentError(f"a document with the id {id!r} is stored already: change it with update()")


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
        DocumentError: it is not a str, is blank, holds NUL or lone surrogates, or is larger than ``max_bytes``.
    """
    if not isinstance(text, str):
        raise DocumentError(f"{name}: its text is a {type(text).__name__}, expected a str; decode bytes first")
    if len(text) > max_bytes:  # a character takes at least one byte: refused before anything is copied
        raise _too_large(name, f"{len(text):,} characters", max_bytes)
    if not text or text.isspace():
        raise DocumentError(f"{name} is {'blank' if text else 'empty'}: there is nothing to store, leave it out")
    nul = text.find("\0")
    if nul >= 0:
        raise DocumentError(f"{name} has a NUL character at {nul}, so it is not text: {_EXTRACT}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{name} has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}, which no "
            f"encoding can hold: decode the text it came from with the right encoding, or replace the character"
        ) from error
    if len(encoded) > max_bytes:
        raise _too_large(name, f"{len(encoded):,} bytes", max_bytes)
    return encoded


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


def check_metadata(metadata: Mapping[str, Any], name: str = "the document") -> dict[str, Any]:
    """A copy of ``metadata`` in plain JSON values; tuples become lists.

    Raises:
        DocumentError: a key is not a str, or a value is none that JSON has (NaN and infinities are not).
    """
    if not isinstance(metadata, Mapping):
        raise DocumentError(f"{name}: the metadata are a {type(metadata).__name__}, expected a dict")
    try:
        return _json_value(metadata, f"{name}: metadata")
    except RecursionError as error:
        raise DocumentError(f"{name}: the metadata contain themselves, or are nested too deeply") from error


def _json_value(value: Any, where: str) -> Any:
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
        return [_json_value(item, f"{where}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not _is_unicode(key):
                raise DocumentError(f"{where} has the key {key!r}: keys must be strings of valid Unicode")
        return {key: _json_value(item, f"{where}[{key!r}]") for key, item in value.items()}
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
class _File:
    path: Path
    id: str | None = None

    def read(self, max_bytes: int) -> Document:
        given = self.path.as_posix()
        name = f"file {given!r}"
        text = _read_text(self.path, max_bytes, name)
        metadata = {"file_name": self.path.name, "file_path": given}
        # The path has the name once more, and says where this machine keeps what.
        return Document(text, self.id or given, metadata, unsearched_keys=("file_path",), hidden_keys=("file_path",))


_Given: TypeAlias = Document | _File | DocumentError


def _given(source: Source, id: str | None) -> Iterator[tuple[int, _Given]]:
    """Position in ``source`` and document, file or, in the place of what is neither, its error."""
    # Refused as a whole: their items are bytes, keys or lines, and each would be an error of its own.
    refused = isinstance(source, bytes | bytearray | memoryview | Mapping | io.IOBase)
    single = refused or isinstance(source, str | os.PathLike | Document)
    if single or not isinstance(source, Iterable):
        yield from ((0, given) for given in _one(source, id))
        return
    if id is not None:
        raise DocumentError(f"id={id!r} names one document, but several were given: set the id of each Document")
    for position, item in enumerate(source):
        yield from ((position, given) for given in _one(item, None))


def _one(item: Any, id: str | None) -> list[_Given]:
    if isinstance(item, Document):
        return [item if id is None else replace(item, id=id)]
    if isinstance(item, str) and id is not None:
        if _is_file(item):
            logger.warning("storing %r as the text of document %r; pass Path(...) to store the file", item, id)
        return [Document(item, id)]
    if isinstance(item, str | os.PathLike):
        try:
            return _files(item, id)
        except DocumentError as error:
            return [error]
    kind = type(item)
    return [
        DocumentError(
            f"a {kind.__module__}.{kind.__qualname__} is no document: pass a path, a Document, text together with "
            f"id=, or an iterable of paths and Documents"
        )
    ]


def _files(given: str | os.PathLike[str], id: str | None) -> list[_Given]:
    name = os.fsdecode(given)
    try:
        mode = os.stat(name).st_mode
    except (OSError, ValueError) as error:  # ValueError: NUL, or characters that no file name can have
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise DocumentError(f"{_clip(name)} cannot be read: {error.strerror}") from error
        raise DocumentError(
            f"there is no file or folder {_clip(name)}; to store this text itself pass it with id=, or as a Document"
        ) from error
    if stat.S_ISREG(mode):
        return [_File(Path(name), id)]
    if not stat.S_ISDIR(mode):
        raise DocumentError(f"{_clip(name)} is neither a regular file nor a folder: read it and pass its text")
    if id is not None:
        raise DocumentError(f"id={id!r} names one document, but {_clip(name)} is a folder: leave id out")
    return [_File(path) for path in text_files(Path(name))]


def text_files(folder: Path) -> list[Path]:
    """The text files of a folder and of those below it, hidden ones left out.

    Raises:
        DocumentError: there is none, or a folder cannot be read.
    """
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise error

    try:
        for root, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (Path(root, name) for name in files if not name.startswith("."))
            found.extend(path for path in paths if path.suffix.lower() in TEXT_SUFFIXES and path.is_file())
    except OSError as error:  # leaving out what cannot be read would go unnoticed
        raise DocumentError(f"{_clip(str(error.filename))} cannot be read: {error.strerror}") from error
    if not found:
        raise DocumentError(
            f"the folder {_clip(folder.as_posix())} has no text file ({', '.join(TEXT_SUFFIXES)}); other files that "
            f"hold text can be passed by name"
        )
    return sorted(found)


def _read_text(path: Path, max_bytes: int, name: str) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(16)
            for magic, what in _MAGIC.items():
                if head.startswith(magic):
                    raise DocumentError(f"{name} is {what}")
            size = os.fstat(file.fileno()).st_size
            if size <= max_bytes:
                file.seek(0)
                content = file.read(max_bytes + 1)
                size = len(content)  # it may have grown meanwhile
    except OSError as error:
        raise DocumentError(f"{name} cannot be read: {error.strerror}") from error
    if size > max_bytes:
        raise _too_large(name, f"{size:,} bytes", max_bytes)
    nul = content.find(b"\0")
    if nul >= 0:
        raise DocumentError(f"{name} is binary, it has a NUL at byte {nul}: {_EXTRACT}")
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        offset = error.start + (len(_BOM) if content.startswith(_BOM) else 0)
        raise DocumentError(
            f"{name} is not UTF-8: byte {offset} is 0x{content[offset]:02x}, {error.reason}; convert it, for example "
            f"with `iconv -f latin1 -t utf-8`"
        ) from error


def _is_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except ValueError:  # NUL
        return False


# ---- messages


def _label(given: _Given, position: int) -> str:
    if isinstance(given, _File):
        return given.id or given.path.as_posix()
    if isinstance(given, Document) and isinstance(given.id, str) and given.id:
        return given.id
    return f"#{position}"


def _clip(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _too_large(name: str, size: str, max_bytes: int) -> DocumentError:
    return DocumentError(
        f"{name} is too large: {size}, the limit is {max_bytes:,} bytes; split it, or raise max_document_bytes"
    )


def _duplicate(document: Document, first: Document) -> DuplicateDocumentError:
    same = "with the same text" if document.text == first.text else "with another text"
    return DuplicateDocumentError(f"the id {document.id!r} appears twice in this call, {same}: give each its own id")


def _summary(failures: Mapping[str, DocumentError], count: int) -> str:
    shown = [f"\n  {label}: {error}" for label, error in list(failures.items())[:5]]
    more = f"\n  and {len(failures) - 5} more, see .failures" if len(failures) > 5 else ""
    return f"{len(failures)} of {count} documents are refused, none is stored:{''.join(shown)}{more}"
