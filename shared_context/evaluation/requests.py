"""Requests: does a reader do what is asked as the plain model does over pasted text, and say what is not there?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import StoreConfig
from shared_context.errors import DocumentError
from shared_context.evaluation.contexts import ADAPTER, INJECTED, PASTED
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.metrics import is_refusal, mean_with_interval, paired_difference
from shared_context.evaluation.question_files import json_lines
from shared_context.evaluation.report import Answer, AskedQuestion, Report, Table, model_setting
from shared_context.store.embedder import load_default_embedder
from shared_context.store.loading import load_documents

BUDGET = 1024
"""KV entries of a selection."""

ANSWER_TOKENS = 128

WANTED = '{"request": "...", "kind": "list", "answered": true}'


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        text: the message.
        kind: what it is, for the tables: a list, a summary, an e-mail.
        answered: whether the documents hold what is asked for.
    """

    text: str
    kind: str
    answered: bool


def read_requests(path: str | Path) -> list[Request]:
    """Read requests from JSON lines with ``request``, ``kind`` and, where it is not true, ``answered``.

    Raises:
        DocumentError: a row is none, or there are no rows.
    """
    requests = []
    try:
        for row in json_lines(Path(path)):
            text, kind, answered = row["request"], row["kind"], row.get("answered", True)
            if not (isinstance(text, str) and text.strip() and isinstance(kind, str) and isinstance(answered, bool)):
                raise ValueError(f"{row} is no request")
            requests.append(Request(text, kind, answered))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DocumentError(f"{path} holds no requests: {error!r}. Wanted: JSON lines such as {WANTED}") from error
    if not requests:
        raise DocumentError(f"{path} is empty. Wanted: JSON lines such as {WANTED}")
    return requests


def measure(
    model: SharedLLMModel,
    documents: str | Path,
    requests: str | Path,
    *,
    adapter: str | Path | None = None,
    budget: int = BUDGET,
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """How near a reader's answers are to the plain model's over the same text pasted, and what it refuses.

    The plain model's own greedy answer over the pasted text of a selection is the reference. Of each reader it is taken
    how likely that answer is, how many words its own has, and whether it says that the answer is not there. The control
    is the pasted text itself, for the likelihood, and what is answered, for the refusals.

    Args:
        model: the plain model.
        documents: a text file or a folder.
        requests: JSON lines, as :func:`read_requests` reads them.
        adapter: name or folder of an adapter, with which the model is loaded anew and measured beside itself.
        budget: KV entries of a selection.
        seed: of the intervals.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    asked = read_requests(requests)
    texts = load_documents(documents, max_bytes=StoreConfig().max_document_bytes, on_error="raise")
    embedder = load_default_embedder()
    readers = {"": model}
    if adapter is not None:
        readers[ADAPTER] = SharedLLMModel.from_pretrained(
            model.name, adapter=adapter, device=str(model.device), dtype=model.dtype
        )
    ledger = Ledger(
        resume,
        {
            "measurement": "requests",
            "data": _identity(texts, asked),
            "model": reader_identity(model),
            "adapter": None if adapter is None else reader_identity(readers[ADAPTER]),
            "embedder": embedder.name,
            "budget": budget,
            "answer tokens": ANSWER_TOKENS,
        },
    )
    stores = {suffix: SharedLLMContextStore(reader, embedder=embedder) for suffix, reader in readers.items()}
    try:
        for store in stores.values():
            store.add(texts)
        results = ledger.results(
            [str(number) for number in range(len(asked))],
            lambda keys: [_result(stores, asked[int(key)], budget) for key in keys],
            what="requests",
        )
    finally:
        for store in stores.values():
            store.close()
    own = readers[ADAPTER].adapter() if adapter is not None else None
    setting = {
        **model_setting(model),
        "embedder": embedder.name,
        "documents": len(texts),
        "requests": len(asked),
        "not answered by the documents": sum(not request.answered for request in asked),
        "KV entries": budget,
        **({} if own is None else {"adapter": own.digest}),
    }
    not_run = {} if adapter is not None else {"the model with an adapter": "none is given (--adapter)"}
    return _report(setting, asked, results, not_run, seed)


def _identity(texts: Sequence[Document], asked: Sequence[Request]) -> str:
    content = [[text.text for text in texts], [[r.text, r.kind, r.answered] for r in asked]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _result(stores: Mapping[str, SharedLLMContextStore], request: Request, budget: int) -> dict[str, Any]:
    """For each way its answer and the likelihood of the reference, nats a token."""
    plain = stores[""]
    text = plain.select(request.text, budget=budget).text or None
    reference = _answer(plain.model, request, text)
    result = {}
    for suffix, store in stores.items():
        model, selection = store.model, store.select(request.text, budget=budget)
        shown = {INJECTED: (selection, selection.kv_entries), PASTED: (text, model.count_tokens(text or ""))}
        for way, (context, tokens) in shown.items():
            is_reference = way == PASTED and not suffix
            result[way + suffix] = {
                "answer": reference if is_reference else _answer(model, request, context),
                "nll": model.nll(request.text, reference, context=context) if reference else None,
                "tokens": tokens,
            }
    return result


def _answer(model: SharedLLMModel, request: Request, context: Selection | str | None) -> str:
    return model.generate(request.text, context=context, max_new_tokens=ANSWER_TOKENS)


def _report(
    setting: dict[str, Any],
    asked: Sequence[Request],
    results: Sequence[Mapping[str, Any]],
    not_run: dict[str, str],
    seed: int,
) -> Report:
    ways = list(results[0])
    kinds = list(dict.fromkeys(request.kind for request in asked))

    def rows(chosen: Sequence[int], label: tuple[str, ...]) -> list[tuple[Any, ...]]:
        scored = [i for i in chosen if results[i][PASTED]["nll"] is not None]
        found = []
        for way in ways:
            nll = [results[i][way]["nll"] for i in scored]
            pasted = [results[i][PASTED]["nll"] for i in scored]
            more = paired_difference(nll, pasted, seed=seed) if scored else None
            words = fmean(len(results[i][way]["answer"].split()) for i in chosen)
            found.append(
                (
                    *label,
                    way,
                    fmean(nll) if nll else None,
                    *((more.mean, more.low, more.high) if more else (None, None, None)),
                    words,
                )
            )
        return found

    def refused(way: str, *, answered: bool) -> tuple[float | None, float | None, float | None]:
        said = [
            float(is_refusal(r[way]["answer"])) for q, r in zip(asked, results, strict=True) if q.answered == answered
        ]
        if not said:
            return None, None, None
        interval = mean_with_interval(said, seed=seed)
        return interval.mean, interval.low, interval.high

    measured = ("NLL of the plain model's answer", "minus pasted", "from", "to", "words")
    parts = [
        Table("All requests, 95% interval", ("way", *measured), rows(range(len(asked)), ())),
        Table(
            "By kind of request",
            ("kind", "way", *measured),
            [
                row
                for kind in kinds
                for row in rows([i for i, request in enumerate(asked) if request.kind == kind], (kind,))
            ],
            keys=2,
        ),
        Table(
            "Share of requests to which the reader says that the answer is not there, 95% interval",
            ("way", "documents do not answer", "from", "to", "documents answer", "from ", "to "),
            [(way, *refused(way, answered=False), *refused(way, answered=True)) for way in ways],
        ),
    ]
    shown = [
        AskedQuestion(
            request.text,
            () if request.answered else ("(not in the documents)",),
            "",
            [
                Answer(way, one["answer"], one["tokens"], {} if one["nll"] is None else {"NLL": one["nll"]})
                for way, one in result.items()
            ],
        )
        for request, result in zip(asked, results, strict=True)
    ]
    return Report("requests", setting, parts, questions=shown, not_run=not_run)
