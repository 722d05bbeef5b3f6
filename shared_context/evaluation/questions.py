"""Questions with their gold answers, and the documents that hold them: SQuAD JSON, JSONL, a folder of documents."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared_context.config import StoreConfig, require
from shared_context.errors import DocumentError
from shared_context.store.documents import load_documents

BETWEEN_PARAGRAPHS = "\n\n"

QUESTION_FILES = ("questions.json", "questions.jsonl", "questions.jsonl.gz")
"""What the question file of a folder of documents may be called."""

Unit = Literal["file", "article", "paragraph"]


@dataclass(frozen=True)
class Span:
    """Characters ``[start, end)`` of a document."""

    document: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """A question with its gold answers.

    Attributes:
        text: what is asked.
        answers: the gold answers; the first is the one whose likelihood is measured.
        spans: where an answer stands.
        passage: the gold paragraph or passage; where the format knows none, the document around the first answer.
    """

    text: str
    answers: tuple[str, ...]
    spans: tuple[Span, ...]
    passage: Span

    @property
    def document(self) -> str:
        """Id of the document that holds the gold passage."""
        return self.passage.document


@dataclass(frozen=True)
class QuestionSet:
    """Documents, by id, and the questions about them.

    Attributes:
        documents: texts by id.
        questions: those whose answers stand in the documents.
        left_out: how many others there were.
    """

    documents: dict[str, str]
    questions: tuple[Question, ...]
    left_out: int = 0

    def sample(self, limit: int | None, seed: int = 0) -> tuple[Question, ...]:
        """``limit`` questions drawn at random, in the order of the file; all of them where it is None or larger."""
        return tuple(self.questions[i] for i in sorted(self._drawn(limit, seed)))

    def drawn(self, limit: int | None, seed: int = 0) -> tuple[Question, ...]:
        """The questions of :meth:`sample` in the order of the drawing: a larger limit only adds to their end."""
        return tuple(self.questions[i] for i in self._drawn(limit, seed))

    def _drawn(self, limit: int | None, seed: int) -> np.ndarray:
        require(limit is None or limit >= 1, "limit", limit, "must be 1 question or more")
        return np.random.default_rng(seed).permutation(len(self.questions))[:limit]

    def key(self, question: Question) -> str:
        """Names a question of the set, whatever sample it is in."""
        return str(self.questions.index(question))

    def by_key(self, key: str) -> Question:
        """The question of this key."""
        return self.questions[int(key)]

    @property
    def identity(self) -> str:
        """Changes with the documents or the questions."""
        content = [
            self.documents,
            [[q.text, q.answers, [(s.document, s.start) for s in q.spans]] for q in self.questions],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_questions(path: str | Path, unit: Unit = "file") -> QuestionSet:
    """Read a set of questions.

    Args:
        path: a SQuAD-format JSON file; a JSONL file of rows with ``question``, ``answers`` and ``passage`` or
            ``passages``; either also compressed (``.gz``); or a folder of text files with one of ``QUESTION_FILES``
            among them, whose rows have ``question``, ``answers`` and, where it is known, ``document``, a path in the
            folder.
        unit: of SQuAD files and JSONL: what becomes one document. All paragraphs of the file, those of one article
            (of JSONL: one title), or each by itself. A blank line stands between the paragraphs of a document.

    Raises:
        DocumentError: it is in none of these formats, or no answer stands in the documents.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = _read_folder(path)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            found = _read_rows(path, unit)
        else:
            found = _read_squad(path, unit)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DocumentError(
            f"{path} is no set of questions: {error!r}. Wanted: SQuAD-format JSON (examples/data has one), JSONL with "
            "question, answers and passage or passages, or a folder of documents with a questions.jsonl."
        ) from error
    if not found.questions:
        raise DocumentError(f"{path} has no question whose answer stands in its documents")
    return found


# ---- SQuAD


def _read_squad(path: Path, unit: Unit) -> QuestionSet:
    builder = _Builder()
    asked: list[tuple[str, dict[Span, str]]] = []
    passages: list[Span] = []
    for article in json.loads(_content(path))["data"]:
        for paragraph in article["paragraphs"]:
            names = {"file": path.stem, "article": article["title"], "paragraph": str(len(builder.places))}
            passage = builder.add(names[unit], paragraph["context"])
            asked += [(q["question"], _gold(paragraph["context"], passage, q["answers"])) for q in paragraph["qas"]]
            passages += [passage] * len(paragraph["qas"])
    questions = [
        Question(text, tuple(gold.values()), tuple(gold), passage)
        for (text, gold), passage in zip(asked, passages, strict=True)
        if gold
    ]
    return QuestionSet(builder.documents(), tuple(questions), len(asked) - len(questions))


def _gold(context: str, passage: Span, answers: Iterable[Mapping[str, Any]]) -> dict[Span, str]:
    """The answers by where they stand."""
    gold = {}
    for answer in answers:
        start, text = answer["answer_start"], answer["text"]
        if not text or context[start : start + len(text)] != text:
            raise ValueError(f"answer {text!r} is not at character {start} of its paragraph")
        gold[Span(passage.document, passage.start + start, passage.start + start + len(text))] = text
    return gold


# ---- JSONL


def _read_rows(path: Path, unit: Unit) -> QuestionSet:
    builder = _Builder()
    asked = []
    for row in json_lines(path):
        given = row["passages"] if "passages" in row else [row["passage"]]
        passages = []
        for one in given:
            text, title = (one["text"], one.get("title")) if isinstance(one, Mapping) else (one, row.get("title"))
            names = {"file": path.name.partition(".")[0], "article": title, "paragraph": None}
            passages.append(builder.add(names[unit] or f"passage {len(builder.places)}", text))
        asked.append((row["question"], _answers(row), passages))
    return _found(builder.documents(), asked)


# ---- folders


def _read_folder(path: Path) -> QuestionSet:
    file = next((path / name for name in QUESTION_FILES if (path / name).exists()), None)
    if file is None:
        raise DocumentError(f"{path} has no question file: add one of {', '.join(QUESTION_FILES)}")
    rows = json.loads(file.read_text(encoding="utf-8")) if file.suffix == ".json" else list(json_lines(file))
    documents = load_documents(path, max_bytes=StoreConfig().max_document_bytes)
    texts = {Path(document.id).relative_to(path).as_posix(): document.text for document in documents}
    whole = {id: Span(id, 0, len(text)) for id, text in texts.items()}
    asked = (
        (row["question"], _answers(row), [whole[row["document"]]] if "document" in row else list(whole.values()))
        for row in rows
    )
    return _found(texts, asked)


# ---- what they share


@dataclass
class _Builder:
    """Documents being joined from paragraphs; a paragraph that comes again is not added again."""

    parts: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    places: dict[str, Span] = field(default_factory=dict)

    def add(self, id: str, text: str) -> Span:
        """The place of a paragraph, which becomes the next one of the document ``id`` where it is new."""
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a passage of {id!r} is no text: {text!r}")
        if text not in self.places:
            start = self.lengths[id] + len(BETWEEN_PARAGRAPHS) if id in self.parts else 0
            self.parts.setdefault(id, []).append(text)
            self.lengths[id] = start + len(text)
            self.places[text] = Span(id, start, start + len(text))
        return self.places[text]

    def documents(self) -> dict[str, str]:
        return {id: BETWEEN_PARAGRAPHS.join(parts) for id, parts in self.parts.items()}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, also compressed (``.gz``)."""
    # Not splitlines: inside a JSON string stand the line separators of Unicode as they are.
    return [json.loads(line) for line in _content(path).split("\n") if line.strip()]


def _content(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    answers = row["answers"]
    answers = [answers] if isinstance(answers, str) else answers["text"] if isinstance(answers, Mapping) else answers
    return tuple(answer for answer in answers if answer.strip())


def _found(documents: dict[str, str], asked: Iterable[tuple[str, tuple[str, ...], Sequence[Span]]]) -> QuestionSet:
    """The questions that one of their passages answers word for word, upper and lower case being the same."""
    questions, left_out = [], 0
    for text, answers, passages in asked:
        spans = [span for passage in passages for span in _occurrences(documents, passage, answers)]
        if not spans:
            left_out += 1
            continue
        passage = next(p for p in passages if p.document == spans[0].document and p.start <= spans[0].start < p.end)
        questions.append(Question(text, answers, tuple(spans), passage))
    return QuestionSet(documents, tuple(questions), left_out)


def _occurrences(documents: Mapping[str, str], passage: Span, answers: Iterable[str]) -> Iterator[Span]:
    for answer in answers:
        # No part of a longer word or number: "9" does not stand in "1950".
        pattern = rf"(?<!\w){re.escape(answer.strip())}(?!\w)"
        for match in re.compile(pattern, re.IGNORECASE).finditer(
            documents[passage.document], passage.start, passage.end
        ):
            yield Span(passage.document, match.start(), match.end())
