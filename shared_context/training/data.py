"""Reading training data: rows, one after the other, with the place that an error is reported with."""

from __future__ import annotations

import gzip
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_context.errors import DocumentError, TrainingDataError
from shared_context.evaluation.questions import NO_ANSWERS, read_questions

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
"""Characters of a plain text that become one row, so that a text may be longer than memory."""

MEND = "Mend it, or pass over broken rows with skip_broken (--skip-broken)."

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no tokenizer takes."""


@dataclass(frozen=True)
class Row:
    """One row of data and where it stands.

    Attributes:
        fields: by name.
        place: file and line, for messages.
    """

    fields: Mapping[str, Any]
    place: str

    def texts(self, *names: str) -> list[str]:
        """The texts of the first of these fields that the row has: a text, a list, or SQuAD's ``{"text": [...]}``.

        Raises:
            TrainingDataError: it has none of them, or nothing is in it.
        """
        value = next((self.fields[name] for name in names if name in self.fields), None)
        value = value.get("text") if isinstance(value, Mapping) else value
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(map(_says_something, texts)):
            raise TrainingDataError(
                f"{self.place}: {' or '.join(names)} must be a text that is not empty, without halves of surrogate "
                "pairs."
            )
        return texts

    def text(self, *names: str) -> str:
        """The one text of the first of these fields; raises as :meth:`texts`."""
        return self.texts(*names)[0]


def _says_something(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not HALF_PAIR.search(value)


def read_rows(source: str | Path, *, skip_broken: bool = False) -> Iterator[Row]:
    """Rows of a source, read as they are asked for.

    Args:
        source: a file of JSON lines (.jsonl or .ndjson), a file in SQuAD format (.json) or a plain text (any other
            name), each also compressed (.gz); or the name or folder of whatever ``datasets.load_dataset`` takes, which
            is streamed, as ``NAME``, ``NAME:CONFIGURATION`` or ``NAME:CONFIGURATION:SPLIT``; the configuration may be
            left empty, and without a split it is "train".
        skip_broken: pass over lines that are no JSON object and broken rows of SQuAD's format, with a warning, instead
            of stopping. Questions of SQuAD's format that have no answer are passed over in any case.

    Raises:
        TrainingDataError: a line or row is broken, with its place; or the source cannot be read.
    """
    path = Path(source)
    if not path.is_file():
        yield from _datasets_rows(str(source))
        return
    kind = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    try:
        if kind in (".jsonl", ".ndjson"):
            yield from _json_lines(path, skip_broken)
        elif kind == ".json":
            yield from _squad_rows(path, skip_broken)
        else:
            yield from _text_rows(path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TrainingDataError(f"{path} cannot be read: {error}.") from error


def _open(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _json_lines(path: Path, skip_broken: bool) -> Iterator[Row]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                # by itself json would guess the encoding
                fields = json.loads(line.decode("utf-8"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                fields, reason = None, str(error)
            else:
                reason = f"a {type(fields).__name__}, not an object"
            if isinstance(fields, dict):
                yield Row(fields, f"{path}, line {number}")
            elif skip_broken:
                logger.warning("%s, line %d is skipped: %s", path, number, reason)
            else:
                raise TrainingDataError(f"{path}, line {number} is broken ({reason}). {MEND}")


def _squad_rows(path: Path, skip_broken: bool) -> Iterator[Row]:
    try:
        asked = read_questions(path, unit="paragraph")
    except DocumentError as error:
        raise TrainingDataError(str(error)) from error
    if asked.left_out.keys() - {NO_ANSWERS} and not skip_broken:
        raise TrainingDataError(f"{path} has rows that are broken, or have no answers: {asked.left_out_text}. {MEND}")
    if asked.left_out:
        logger.warning("%s: left out %s", path, asked.left_out_text)
    for number, question in enumerate(asked.questions, start=1):
        fields = {
            "question": question.text,
            "answers": list(question.answers),
            "passage": asked.documents[question.document],
        }
        yield Row(fields, f"{path}, question {number}")


def _text_rows(path: Path) -> Iterator[Row]:
    with io.TextIOWrapper(_open(path), encoding="utf-8") as stream:
        rest, number = "", 0
        while block := stream.read(BLOCK):
            number += 1
            # a block ends between two words
            cut = max(block.rfind(" "), block.rfind("\n")) + 1 or len(block)
            yield Row({"text": rest + block[:cut]}, f"{path}, block {number}")
            rest = block[cut:]
        if rest:
            yield Row({"text": rest}, f"{path}, end")


def _datasets_rows(source: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise TrainingDataError(
            f"{source} is no file, and data sets are read with the package datasets: pip install sharedllm[train]."
        ) from error
    # A folder's own name may have a colon in it.
    parts = [source] if Path(source).exists() else source.split(":", 2)
    name, configuration, split = (*parts, "", "")[:3]
    try:
        rows = load_dataset(name, configuration or None, split=split or "train", streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingDataError(
            f"{source} is neither a file nor a data set: {error}. A data set's configuration and split are named "
            "NAME:CONFIGURATION:SPLIT."
        ) from error
    for number, fields in enumerate(rows, start=1):
        yield Row(fields, f"{source}, row {number}")
