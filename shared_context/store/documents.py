"""Documents, and what text, ids and metadata are accepted."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared_context.config import MIB
from shared_context.errors import DocumentError, UnreadableError
from shared_context.store.files import EXTRACT, too_large
from shared_context.store.json_values import json_form

MAX_ID_LENGTH = 512
"""Characters."""

MAX_METADATA_DEPTH = 32
"""Lists and dicts inside of each other: what is nested deeper could not be read back from a deep call stack."""

MAX_METADATA_BYTES = 16 * MIB
"""Of a document's metadata as JSON."""

LARGEST_INTEGER = 1 << 63
"""Larger integers are no numbers to most programs that read JSON."""


@dataclass(frozen=True)
class Document:
    """A text that is stored whole.

    Args:
        text: what is read, exactly; all character positions count in it.
        id: names the document in its store; 1 to 512 characters without control characters. None derives one from
            text and metadata.
        metadata: what filters see, queries are compared with and answers cite; JSON values under string keys. Dates,
            paths, UUIDs, enumerations, decimals and numpy's numbers are stored as what stands for them in JSON,
            see :func:`~shared_context.store.json_values.json_form`.
        unsearched_keys: metadata that no query is compared with; filters see them all the same.
        hidden_keys: metadata that no model is shown.

    Nothing is checked here but where the document is stored, so that a batch can report all that is wrong with it.
    """

    text: str
    id: str = None  # type: ignore[assignment]  # it has one where it is stored
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    unsearched_keys: tuple[str, ...] = ()
    hidden_keys: tuple[str, ...] = ()


def check_document(document: Document, *, max_bytes: int, name: str = "the document") -> Document:
    """``document`` with an id and plain JSON metadata; ``name`` is what messages call it.

    Raises:
        DocumentError: text, id, metadata or names of metadata cannot be stored.
    """
    encoded = check_text(document.text, max_bytes=max_bytes, name=name)
    id = None if document.id is None else check_id(document.id, name)  # a file's name is among its metadata too
    metadata = check_metadata(document.metadata, name)
    id = id or _derived_id(encoded, metadata)
    unsearched, hidden = (
        _check_keys(getattr(document, setting), f"{name}: {setting}") for setting in ("unsearched_keys", "hidden_keys")
    )
    return Document(document.text, id, metadata, unsearched, hidden)


def _check_keys(keys: Collection[str], name: str) -> tuple[str, ...]:
    if isinstance(keys, str) or not all(isinstance(key, str) and is_unicode(key) for key in keys):
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
    """A copy of ``metadata`` in plain JSON values; tuples become lists, dates and the like what stands for them.

    Raises:
        DocumentError: a key is not a str, or nothing in JSON stands for a value (NaN and infinities are no JSON).
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
    value = json_form(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= LARGEST_INTEGER:
        raise DocumentError(f"{where} is an integer of more than 64 bits: pass it as a string")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        if not is_unicode(value):
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
            if not isinstance(key, str) or not is_unicode(key):
                raise DocumentError(f"{where} has the key {key!r}: keys must be strings of valid Unicode")
        return {key: _json_value(item, f"{where}[{key!r}]", depth - 1) for key, item in value.items()}
    raise DocumentError(
        f"{where} is a {type(value).__name__}: pass a string, a number, True, False, None, a date, a list or a dict"
    )


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: it has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
