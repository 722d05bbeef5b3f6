"""Reading question sets in SQuAD format."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared_context.errors import DocumentError

BETWEEN_PARAGRAPHS = "\n\n"

Span = tuple[int, int]
"""Characters of a document, ``[start, end)``."""


@dataclass(frozen=True)
class Question:
    """A question with its gold answers.

    Attributes:
        text: what is asked.
        answer: the first gold answer.
        spans: where in the document each gold answer stands.
        document: id of the document that holds them.
        paragraph: the gold paragraph's characters in that document.
    """

    text: str
    answer: str
    spans: tuple[Span, ...]
    document: str
    paragraph: Span


@dataclass(frozen=True)
class Squad:
    """Documents, by id, and the questions about them."""

    documents: dict[str, str]
    questions: tuple[Question, ...]

    def sample(self, limit: int | None) -> tuple[Question, ...]:
        """``limit`` questions, evenly spaced over the whole set; all of them where it is None or larger."""
        if limit is None or limit >= len(self.questions):
            return self.questions
        return tuple(self.questions[i * len(self.questions) // limit] for i in range(limit))


def read_squad(path: str | Path, unit: Literal["file", "article", "paragraph"] = "file") -> Squad:
    """Read a file in SQuAD format. Questions without an answer are left out.

    Args:
        path: the file.
        unit: what becomes one document: all paragraphs of the file, those of one article, or each by itself. A blank
            line stands between the paragraphs of a document.

    Raises:
        DocumentError: the file is not in this format, or an answer is not where the file says.
    """
    paragraphs: dict[str, list[dict[str, Any]]] = {}
    try:
        for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                names = {"file": Path(path).stem, "article": article["title"], "paragraph": str(len(paragraphs))}
                paragraphs.setdefault(names[unit], []).append(paragraph)
        documents = {id: BETWEEN_PARAGRAPHS.join(p["context"] for p in of_id) for id, of_id in paragraphs.items()}
        return Squad(documents, tuple(q for id, of_id in paragraphs.items() for q in _questions(id, of_id)))
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(f"{path} is not in SQuAD format: {error!r}. See examples/data for one that is.") from error


def _questions(document: str, paragraphs: Iterable[dict[str, Any]]) -> Iterable[Question]:
    begin = 0
    for paragraph in paragraphs:
        end = begin + len(paragraph["context"])
        for asked in paragraph["qas"]:
            spans = []
            for answer in asked["answers"]:
                start, text = answer["answer_start"], answer["text"]
                if not text or paragraph["context"][start : start + len(text)] != text:
                    raise ValueError(f"answer {text!r} of {asked['question']!r} is not at character {start}")
                spans.append((begin + start, begin + start + len(text)))
            if spans:
                yield Question(asked["question"], asked["answers"][0]["text"], tuple(spans), document, (begin, end))
        begin = end + len(BETWEEN_PARAGRAPHS)
