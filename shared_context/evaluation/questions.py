"""Questions with their gold answers, and the documents that hold them: SQuAD JSON, JSONL, a folder of documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared_context.config import StoreConfig, require
from shared_context.errors import DocumentError
from shared_context.evaluation.question_files import JSON_LINES, LeftOut, UnusableError, content_of, field_of, rows_of
from shared_context.store.loading import load_documents

BETWEEN_PARAGRAPHS = "\n\n"

QUESTION_FILES = ("questions.json", "questions.jsonl", "questions.jsonl.gz")
"""What the question file of a folder of documents may be called."""

NO_ANSWERS = "no answers"
"""Why a question is left out that has none, as the impossible ones of SQuAD 2.0."""

# Thai, Lao, Burmese, Khmer, Japanese and Chinese.
_WITHOUT_SPACES = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_IN_WORD = rf"[^\W{_WITHOUT_SPACES}]"
"""A character of a word, in scripts that separate words by spaces."""

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
        left_out: where the others stand in the file, by why they cannot be used.
    """

    documents: dict[str, str]
    questions: tuple[Question, ...]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def left_out_text(self) -> str:
        """How many were left out, why, and where the first of them stands."""
        reasons = [f"{len(at)} for {why} (the first: {at[0]})" for why, at in self.left_out.items()]
        return "; ".join(reasons) or "none"

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
    """Read a set of questions. Rows that cannot be used are left out, and the set says why.

    Args:
        path: a SQuAD-format JSON file; a JSONL file of rows with ``question``, ``answers`` and ``passage`` or
            ``passages``; either also compressed (``.gz``); or a folder of text files with one of ``QUESTION_FILES``
            among them, whose rows have ``question``, ``answers`` and, where it is known, ``document``, a path in the
            folder.
        unit: of SQuAD files and JSONL: what becomes one document. All paragraphs of the file, those of one article
            (of JSONL: one title), or each by itself. A blank line stands between the paragraphs of a document.

    Raises:
        DocumentError: it is in none of these formats, or none of its rows can be used.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = _read_folder(path)
        elif path.name.endswith(JSON_LINES):
            found = _read_rows(path, unit)
        else:
            found = _read_squad(path, unit)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DocumentError(
            f"{path} is no set of questions: {error!r}. Wanted: SQuAD-format JSON (examples/data has one), JSONL with "
            "question, answers and passage or passages, or a folder of documents with a questions.jsonl."
        ) from error
    if not found.questions:
        raise DocumentError(
            f"{path} has no question whose answer stands in its documents. Left out: {found.left_out_text}."
        )
    return found


def read_evidence(path: str | Path) -> QuestionSet:
    """Read documents with marked characters: what each question is about.

    Args:
        path: JSONL, also compressed (``.gz``), a document a row: ``id``, ``text`` and ``questions``, each with
            ``question`` and ``evidence``, a list of ``[start, end]`` in characters of the text; ``answers`` where they
            are known.

    Raises:
        DocumentError: it is not in this format, or none of its questions can be used.
    """
    path, left_out = Path(path), LeftOut()
    documents: dict[str, str] = {}
    questions = []
    try:
        for at, row in rows_of(path, left_out):
            with left_out.unusable(at):
                text = field_of(row, "text", str)
                id = _new_title(str(row.get("id") or at), documents.keys())
                documents[id] = text
                for number, one in enumerate(field_of(row, "questions", list), start=1):
                    with left_out.unusable(f"{at}, question {number}"):
                        asked, spans = field_of(one, "question", str), _evidence(one, id, text)
                        whole = Span(id, min(span.start for span in spans), max(span.end for span in spans))
                        questions.append(Question(asked, tuple(map(str, one.get("answers") or ())), spans, whole))
    except (ValueError, TypeError, AttributeError) as error:
        raise DocumentError(
            f"{path} has no marked documents: {error!r}. Wanted: JSONL with id, text and questions, each with question "
            "and evidence, a list of [start, end]."
        ) from error
    found = QuestionSet(documents, tuple(questions), left_out)
    if not questions:
        raise DocumentError(f"{path} has no question whose evidence is marked. Left out: {found.left_out_text}.")
    return found


def _evidence(asked: Mapping[str, Any], id: str, text: str) -> tuple[Span, ...]:
    marked = asked.get("evidence")
    pairs = [tuple(pair) for pair in marked] if isinstance(marked, list) else []
    if not pairs:
        raise UnusableError("no evidence")
    if not all(len(pair) == 2 and 0 <= pair[0] < pair[1] <= len(text) for pair in pairs):
        raise UnusableError("evidence outside of the text")
    if not any(text[start:end].strip() for start, end in pairs):
        raise UnusableError("no evidence")
    return tuple(Span(id, start, end) for start, end in pairs)


# ---- SQuAD


def _read_squad(path: Path, unit: Unit) -> QuestionSet:
    builder, left_out = _Builder(), LeftOut()
    titles: set[str] = set()
    questions = []
    for a, article in enumerate(json.loads(content_of(path))["data"], start=1):
        with left_out.unusable(at := f"article {a}"):
            paragraphs = field_of(article, "paragraphs", list)
            title = _new_title(str(article.get("title") or at), titles)
            titles.add(title)
            for p, paragraph in enumerate(paragraphs, start=1):
                with left_out.unusable(beneath := f"{at}, paragraph {p}"):
                    context, asked = field_of(paragraph, "context", str), field_of(paragraph, "qas", list)
                    names = {"file": path.stem, "article": title, "paragraph": str(len(builder.places))}
                    passage = builder.add(names[unit], context)
                    for q, one in enumerate(asked, start=1):
                        with left_out.unusable(f"{beneath}, question {q}"):
                            text, gold = field_of(one, "question", str), _gold(context, passage, one)
                            questions.append(Question(text, tuple(gold.values()), tuple(gold), passage))
    return QuestionSet(builder.documents(), tuple(questions), left_out)


def _new_title(title: str, titles: Container[str]) -> str:
    """The title, told apart from those that other articles have already."""
    new, number = title, 1
    while new in titles:
        number += 1
        new = f"{title} ({number})"
    return new


def _gold(context: str, passage: Span, asked: Mapping[str, Any]) -> dict[Span, str]:
    """The answers by where they stand."""
    gold, answers = {}, asked.get("answers")
    for answer in answers if isinstance(answers, list) else ():
        start, text = field_of(answer, "answer_start", int), field_of(answer, "text", str)
        if start < 0 or not context.startswith(text, start):
            raise UnusableError("an answer that is not at its answer_start")
        gold[Span(passage.document, passage.start + start, passage.start + start + len(text))] = text
    if not gold:
        raise UnusableError(NO_ANSWERS)
    return gold


# ---- JSONL


def _read_rows(path: Path, unit: Unit) -> QuestionSet:
    builder, left_out = _Builder(), LeftOut()
    asked = []
    for at, row in rows_of(path, left_out):
        with left_out.unusable(at):
            given = row["passages"] if "passages" in row else row.get("passage")
            titled = [
                (field_of(one, "text", str), one.get("title"))
                if isinstance(one, Mapping)
                else (field_of({"passage": one}, "passage", str), row.get("title"))
                for one in (given if isinstance(given, list) else [given])
            ]
            passages = []
            for text, title in titled:
                names = {"file": path.name.partition(".")[0], "article": title and str(title), "paragraph": None}
                passages.append(builder.add(names[unit] or f"passage {len(builder.places)}", text))
            asked.append((at, row, passages))
    return _found(builder.documents(), asked, left_out)


# ---- folders


def _read_folder(path: Path) -> QuestionSet:
    file = next((path / name for name in QUESTION_FILES if (path / name).exists()), None)
    if file is None:
        raise DocumentError(f"{path} has no question file: add one of {', '.join(QUESTION_FILES)}")
    limit = StoreConfig().max_document_bytes
    documents = load_documents(path, max_bytes=limit, exclude=QUESTION_FILES, on_error="raise")
    texts = {Path(document.id).relative_to(path).as_posix(): document.text for document in documents}
    whole = {id: Span(id, 0, len(text)) for id, text in texts.items()}
    left_out, asked = LeftOut(), []
    for at, row in rows_of(file, left_out):
        with left_out.unusable(at):
            document = row.get("document")
            if document is not None and str(document) not in whole:
                raise UnusableError("a document that is not in the folder")
            asked.append((at, row, list(whole.values()) if document is None else [whole[str(document)]]))
    return _found(texts, asked, left_out)


# ---- what they share


@dataclass
class _Builder:
    """Documents being joined from paragraphs; a paragraph that comes again is not added again."""

    parts: dict[str, list[str]] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    places: dict[str, Span] = field(default_factory=dict)

    def add(self, id: str, text: str) -> Span:
        """The place of a paragraph, which becomes the next one of the document ``id`` where it is new."""
        if text not in self.places:
            start = self.lengths[id] + len(BETWEEN_PARAGRAPHS) if id in self.parts else 0
            self.parts.setdefault(id, []).append(text)
            self.lengths[id] = start + len(text)
            self.places[text] = Span(id, start, start + len(text))
        return self.places[text]

    def documents(self) -> dict[str, str]:
        return {id: BETWEEN_PARAGRAPHS.join(parts) for id, parts in self.parts.items()}


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
    answers = row.get("answers")
    answers = answers.get("text") if isinstance(answers, Mapping) else answers
    answers = answers if isinstance(answers, list) else [answers]
    found = tuple(str(a) for a in answers if isinstance(a, str | int | float) and str(a).strip())
    if not found:
        raise UnusableError(NO_ANSWERS)
    return found


def _found(
    documents: dict[str, str], asked: Iterable[tuple[str, Mapping[str, Any], Sequence[Span]]], left_out: LeftOut
) -> QuestionSet:
    """The questions that one of their passages answers word for word, upper and lower case being the same."""
    questions = []
    for at, row, passages in asked:
        with left_out.unusable(at):
            text, answers = field_of(row, "question", str), _answers(row)
            spans = [span for passage in passages for span in _occurrences(documents, passage, answers)]
            if not spans:
                raise UnusableError("no answer that stands in the documents")
            passage = next(p for p in passages if p.document == spans[0].document and p.start <= spans[0].start < p.end)
            questions.append(Question(text, answers, tuple(spans), passage))
    return QuestionSet(documents, tuple(questions), left_out)


def _occurrences(documents: Mapping[str, str], passage: Span, answers: Iterable[str]) -> Iterator[Span]:
    for answer in map(str.strip, answers):
        # No part of a longer word or number: "9" does not stand in "1950". Text without spaces shows no ends of words.
        before, behind = (not re.match(f"[{_WITHOUT_SPACES}]", end) for end in (answer[0], answer[-1]))
        pattern = (rf"(?<!{_IN_WORD})" if before else "") + re.escape(answer) + (rf"(?!{_IN_WORD})" if behind else "")
        for match in re.compile(pattern, re.IGNORECASE).finditer(
            documents[passage.document], passage.start, passage.end
        ):
            yield Span(passage.document, match.start(), match.end())
