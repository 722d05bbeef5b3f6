"""Files as text: which files of a folder are read, how each one is, and why others are not."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO

from shared_context.errors import DocumentError, UnreadableError

TEXT_SUFFIXES = (".adoc", ".asciidoc", ".markdown", ".md", ".mdx", ".org", ".rst", ".tex", ".text", ".txt")
"""Files that claim to be text: where one is none, that is an error and not another kind of file."""

HTML_SUFFIXES = (".htm", ".html", ".xhtml")

EXTRACT = "extract its text first and store that"
_PDF = b"%PDF-"
_ZIP = b"PK\x03\x04"
_MAGIC = {
    _PDF: f"a PDF: {EXTRACT}",
    _ZIP: f"a ZIP archive (so are .docx, .pptx, .xlsx, .odt and .epub): {EXTRACT}",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": f"an old Office file (.doc, .ppt, .xls): {EXTRACT}",
    b"\x1f\x8b": "compressed with gzip: decompress it first",
    b"\x89PNG\r\n": f"a PNG image: {EXTRACT}",
    b"\xff\xd8\xff": f"a JPEG image: {EXTRACT}",
    b"GIF8": f"a GIF image: {EXTRACT}",
    b"\xff\xfe": "UTF-16 or UTF-32: convert it to UTF-8 first",
    b"\xfe\xff": "UTF-16: convert it to UTF-8 first",
}
_LINKED = "is a link to a folder, which is not followed: pass that folder by name"
_OUTSIDE = "is a link to a file outside of the folder: pass that file by name"
_BOM = codecs.BOM_UTF8
_HEAD = 4096
"""Bytes by which a file of unknown kind is told to be text or not."""


def find_files(
    folder: Path, include: Iterable[str] = (), exclude: Iterable[str] = ()
) -> tuple[list[Path], dict[Path, str]]:
    """The files of a folder and of those below it that hold text, and why others do not.

    Hidden files and folders are left out without a word, and so is what the patterns leave out. Links to folders are
    not followed, nor are links to files outside of the folder: whoever fills it does not choose what else is read.

    Args:
        folder: where to look.
        include: take only files that match one of these patterns, such as ``*.md`` or ``guides/*``; all where empty.
        exclude: of those, none that match one of these. A pattern is compared with a file's name, with its path below
            the folder, and with the folders on that path.

    Returns:
        The files that are to be read, in the order of their paths; the others with the reason of each.

    Raises:
        DocumentError: a folder cannot be read.
    """
    include, exclude = tuple(include), tuple(exclude)
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise error

    try:
        for root, folders, files in os.walk(folder, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found.extend(Path(root, name) for name in files if not name.startswith("."))
            found.extend(link for name in folders if (link := Path(root, name)).is_symlink())
    except OSError as error:  # leaving out what cannot be read would go unnoticed
        raise DocumentError(f"{clip(str(error.filename))} cannot be read: {error.strerror}") from error
    wanted = sorted(
        file
        for file in found
        if (not include or _matches(file.relative_to(folder), include))
        and not _matches(file.relative_to(folder), exclude)
    )
    inside = resolved(folder)
    reasons = {file: reason for file in wanted if (reason := _no_text(file, inside)) is not None}
    return [file for file in wanted if file not in reasons], reasons


def resolved(path: str | os.PathLike[str]) -> Path:
    """Where a path leads, links followed; of links that lead nowhere or to each other as far as they can be."""
    return Path(os.path.realpath(path))


def read_text(path: Path, max_bytes: int, name: str, folder: Path | None = None) -> str:
    """A file's text: the main text of a page, what markitdown makes of a PDF and its like, or what it holds.

    Args:
        path: a file.
        max_bytes: the most that is read of a file that is text itself, and of a page.
        name: what messages call it.
        folder: where it was found, and has to lie still: whoever fills the folder may have put a link in its place.

    Raises:
        UnreadableError: it cannot be read, or is not text.
    """
    try:
        with path.open("rb") as file:
            if folder is not None and not _lies_in(folder, path, file):
                raise UnreadableError(f"{name} {_OUTSIDE}")
            head = file.read(len(_PDF))
            file.seek(0)
            suffix = ".pdf" if head == _PDF else path.suffix.lower()
            if suffix in HTML_SUFFIXES:
                return _main_text(_read(file, max_bytes, name), name)
            if suffix in CONVERTERS:
                return _converted(file, suffix, name)
            content = _read(file, max_bytes, name)
    except OSError as error:
        raise UnreadableError(f"{name} cannot be read: {error.strerror}") from error
    if (kind := _kind(content)) is not None:
        raise UnreadableError(f"{name} is {kind}")
    nul = content.find(b"\0")
    if nul >= 0:
        raise UnreadableError(f"{name} is binary, it has a NUL at byte {nul}: {EXTRACT}")
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        offset = error.start + (len(_BOM) if content.startswith(_BOM) else 0)
        raise UnreadableError(
            f"{name} is not UTF-8: byte {offset} is 0x{content[offset]:02x}, {error.reason}; convert it, for example "
            f"with `iconv -f latin1 -t utf-8`"
        ) from error


def too_large(name: str, size: str, max_bytes: int) -> UnreadableError:
    """The error of a document that is larger than the store takes."""
    return UnreadableError(
        f"{name} is too large: {size}, the limit is {max_bytes:,} bytes; split it, or raise max_document_bytes"
    )


def clip(text: str) -> str:
    """A text or a path as messages quote it: both ends of a long one, because a path's end tells which file it is."""
    return repr(text if len(text) <= 80 else f"{text[:38]}...{text[-39:]}")


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    places = [path, *path.parents[:-1]]  # without the folder itself
    return any(
        fnmatchcase(place.as_posix(), pattern.rstrip("/")) or fnmatchcase(place.name, pattern.rstrip("/"))
        for place in places
        for pattern in patterns
    )


def _lies_in(folder: Path, path: Path, file: BinaryIO) -> bool:
    """Whether an open file is what lies at a path of a folder, links followed, and lies in the folder."""
    place = resolved(path)
    return place.is_relative_to(resolved(folder)) and os.path.samestat(os.fstat(file.fileno()), os.lstat(place))


def _no_text(path: Path, folder: Path) -> str | None:
    """Why a file of a folder is not read; None where it is, or where reading it will say what is wrong."""
    suffix = path.suffix.lower()
    if path.is_symlink() and path.is_dir():
        return _LINKED
    if path.is_symlink() and not resolved(path).is_relative_to(folder):
        return _OUTSIDE
    if not path.is_file():
        return "is no regular file"
    if suffix in TEXT_SUFFIXES or suffix in HTML_SUFFIXES or suffix in CONVERTERS:
        return None
    if suffix == ".svg":
        return f"is an SVG image: {EXTRACT}"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if head.startswith(_PDF):
        return None
    if (kind := _kind(head)) is not None:
        return f"is {kind}"
    return "is binary and of no kind that is read" if b"\0" in head else None


def _kind(content: bytes) -> str | None:
    """What a file is by its first bytes, where that is no text."""
    return next((what for magic, what in _MAGIC.items() if content.startswith(magic)), None)


def _read(file: BinaryIO, max_bytes: int, name: str) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size <= max_bytes:
        content = file.read(max_bytes + 1)
        size = len(content)  # it may have grown meanwhile
    if size > max_bytes:
        raise too_large(name, f"{size:,} bytes", max_bytes)
    return content


def _main_text(content: bytes, name: str) -> str:
    """The main text of an HTML page as Markdown: without menus, footers and scripts."""
    try:
        from trafilatura import extract
        from trafilatura.settings import DEFAULT_CONFIG
    except ImportError as error:
        raise _not_installed(name, "a page", "trafilatura") from error
    from copy import deepcopy

    config = deepcopy(DEFAULT_CONFIG)
    # By default what it finds on a short page is thrown away for all the text there is, menus included.
    config.set("DEFAULT", "MIN_EXTRACTED_SIZE", "1")
    page = _decoded(content)
    if "<html" not in page.lower():  # a part of a page, or one without the tag, which trafilatura takes for none
        page = f"<html><body><main>{page}</main></body></html>"
    text = extract(page, output_format="markdown", include_comments=False, config=config)
    if not text:
        raise UnreadableError(f"{name} is a page without text: there is nothing to store, leave it out")
    return text


def _decoded(content: bytes) -> str:
    """A page as text: by its byte order mark, as UTF-8, as it declares itself, or by the default of browsers."""
    from bs4.dammit import EncodingDetector

    marked = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    for encoding in marked, EncodingDetector.find_declared_encoding(content, is_html=True):
        try:
            return content.decode(encoding or "windows-1252")
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("windows-1252", errors="replace")


def _converted(file: BinaryIO, suffix: str, name: str) -> str:
    what, convert = CONVERTERS[suffix]
    try:
        text = convert(file)
    except ImportError as error:
        raise _not_installed(name, what, error.name or str(error)) from error
    except Exception as error:  # each format has a library of its own, with errors of its own
        raise UnreadableError(
            f"{name} cannot be read as {what} ({type(error).__name__}: {error}); it may be damaged or protected: open "
            f"it in its own program and save it anew"
        ) from error
    if not text.strip():
        raise UnreadableError(f"{name} is {what} without text, perhaps a scan: have its text recognized first")
    return text


def _by_markitdown(converter: str, suffix: str, file: BinaryIO) -> str:
    from markitdown import StreamInfo, converters

    # The one converter and no MarkItDown object, which reads the bytes of a damaged file as if they were text.
    return getattr(converters, converter)().convert(file, StreamInfo(extension=suffix)).markdown


def _workbook(file: BinaryIO) -> str:
    """A workbook's sheets as Markdown tables, without empty rows; a formula is what it came to when it was saved.

    Not by markitdown, whose tables say NaN for an empty cell and 6.0 for the 6 above it.
    """
    from openpyxl import load_workbook

    tables = []
    for sheet in load_workbook(file, read_only=True, data_only=True).worksheets:
        sheet.reset_dimensions()  # some programs write wrong ones
        rows = [row for cells in sheet.values if any(row := [_cell(value) for value in cells])]
        width = max((number for row in rows for number, text in enumerate(row, start=1) if text), default=0)
        lines = [f"| {' | '.join((row + [''] * width)[:width])} |" for row in rows]
        if lines:
            tables.append("\n".join([f"## {sheet.title}", "", lines[0], "|" + " --- |" * width, *lines[1:]]))
    return "\n\n".join(tables)


def _cell(value: object) -> str:
    return " ".join(("" if value is None else str(value)).split()).replace("|", "\\|")


CONVERTERS: Mapping[str, tuple[str, Callable[[BinaryIO], str]]] = {
    ".docx": ("a Word document", partial(_by_markitdown, "DocxConverter", ".docx")),
    ".epub": ("an EPUB", partial(_by_markitdown, "EpubConverter", ".epub")),
    ".ipynb": ("a notebook", partial(_by_markitdown, "IpynbConverter", ".ipynb")),
    ".pdf": ("a PDF", partial(_by_markitdown, "PdfConverter", ".pdf")),
    ".pptx": ("a presentation", partial(_by_markitdown, "PptxConverter", ".pptx")),
    ".xlsx": ("a workbook", _workbook),
}
"""What a kind of file is called, and what reads it."""


def _not_installed(name: str, what: str, library: str) -> UnreadableError:
    return UnreadableError(
        f"{name} is {what}, which is read with {library}: pip install 'sharedllm[files]', or {EXTRACT}"
    )
