"""Answers: how likely the model finds the gold answer and what it says, by what it is shown and how."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import require
from shared_context.errors import WindowExceededError
from shared_context.evaluation.answers_report import report_of
from shared_context.evaluation.contexts import (
    ADAPTER,
    CONTROL,
    DEFAULTS,
    FULL,
    GOLD,
    INJECTED,
    NONE,
    OTHER_SETTINGS,
    PASTED,
    RAG,
    WHOLE,
    Context,
    Shown,
    other_question,
    pasted_baselines,
    shown_contexts,
)
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.questions import Question, QuestionSet, read_questions
from shared_context.evaluation.reading import TextReader
from shared_context.evaluation.report import (
    Report,
    Source,
    model_setting,
)
from shared_context.store.embedder import load_default_embedder

BUDGETS = (256, 1024)
"""KV entries of a selection, and tokens of pasted chunks."""

ANSWER_TOKENS = 20

SOURCES_KEPT = 10
SOURCE_CHARACTERS = 240
"""Of what a question is shown so much is kept for the reader."""

TOGETHER = 16
"""Questions whose results are computed at a time; one by one takes several times as long."""


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    adapter: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    budgets: Sequence[int] = BUDGETS,
    all_settings: bool = False,
    likelihoods: bool = True,
    ways: Sequence[str] = (),
    resume: str | Path | None = None,
) -> Report:
    """Likelihood of the gold answer, and the answers given, under several contexts in the same prompt.

    Every way has its control: the same way with the context of another question, from documents that do not hold the
    answer, of as many tokens but for paragraphs and documents, which are shown whole. What a way gains over its control
    came through the context.

    Args:
        model: answers; MiniLM embeds for all.
        data: questions; every article or file is one document, every paragraph where there is one article only.
        adapter: name or folder of an adapter, with which the model is loaded anew and measured beside itself.
        limit: only so many questions, drawn at random. They are computed in batches, in the order of the drawing, so
            that a larger limit changes the results of the last batch at most, by rounding, where that was not full.
        seed: of the drawing and of the intervals.
        budgets: KV entries or tokens shown at most.
        all_settings: try the baselines' other settings as well, which takes several times as long.
        likelihoods: False measures only what is answered, without the gold answer's likelihood, and so no controls.
        ways: only these, as reports name them without budget and adapter; all of them where empty.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    known = (NONE, INJECTED, FULL, RAG, GOLD, WHOLE, *((PASTED, *OTHER_SETTINGS, DEFAULTS) if all_settings else ()))
    for way in ways:
        require(way in known, "way", way, f"must be one of: {'; '.join(known)}")
    asked = several_documents(data)
    embedder = load_default_embedder()
    readers = {"": model}
    if adapter is not None:
        readers[ADAPTER] = SharedLLMModel.from_pretrained(
            model.name, adapter=adapter, device=str(model.device), dtype=model.dtype
        )
    ledger = Ledger(
        resume,
        {
            "measurement": "answers",
            "data": asked.identity,
            "model": reader_identity(model),
            "adapter": None if adapter is None else reader_identity(readers[ADAPTER]),
            "embedder": embedder.name,
            "budgets": budgets,
            "all settings": all_settings,
            "likelihoods": likelihoods,
            "ways": list(ways),
            "answer tokens": ANSWER_TOKENS,
        },
    )
    not_run: dict[str, str] = {}
    if all(reader.injection.kind == "prefix" for reader in readers.values()):
        not_run["selections by cross-attention injection"] = "no adapter trained for it is given, and none ships"
    if adapter is None:
        not_run["the model with an adapter"] = "none is given (--adapter)"
    chosen = asked.drawn(limit, seed)
    if likelihoods and any(other_question(question, asked) is None for question in chosen[:1]):
        not_run["a wrong context, the control of each way"] = "all questions are about one document"
    stores = {suffix: SharedLLMContextStore(reader, embedder=embedder) for suffix, reader in readers.items()}
    try:
        for store in stores.values():
            store.add([Document(text, id) for id, text in asked.documents.items()])
        baselines = pasted_baselines(model, embedder, asked, all_settings, not_run)

        def shown_to(question: Question) -> list[Shown]:
            every = shown_contexts(question, asked, stores, baselines, budgets, all_settings=all_settings)
            wanted = (shown for shown in every if not ways or shown.way.removesuffix(ADAPTER) in ways)
            return [shown for shown in wanted if likelihoods or not shown.is_control]

        results = ledger.results(
            [asked.key(question) for question in chosen],
            lambda keys: _results([(q, shown_to(q)) for q in map(asked.by_key, keys)], likelihoods=likelihoods),
            together=TOGETHER,
            what="answers",
        )
    finally:
        for store in stores.values():
            store.close()
    setting = {
        **model_setting(model),
        "embedder": embedder.name,
        "documents": len(asked.documents),
        "questions": len(chosen),
        "of": len(asked.questions),
        "left out": asked.left_out_text,
        "seed": seed,
        **({} if adapter is None else {"adapter": _digest(readers[ADAPTER])}),
    }
    return report_of(setting, results, chosen, budgets, not_run, seed)


def several_documents(data: str | Path) -> QuestionSet:
    """Articles as documents, or paragraphs where there is one article only."""
    asked = read_questions(data, "article")
    return asked if len(asked.documents) > 1 else read_questions(data, "paragraph")


def _results(asked: Sequence[tuple[Question, Sequence[Shown]]], *, likelihoods: bool) -> list[dict[str, Any]]:
    """For each question and key: the tokens shown, the likelihood where wanted and, of what is no control, the answer.

    The same way is computed for all questions at once, and what two ways show alike is computed once.
    """
    questions = [question for question, _ in asked]
    by_way: dict[str, list[tuple[int, Shown]]] = {}
    for number, (_, contexts) in enumerate(asked):
        for shown in contexts:
            by_way.setdefault(shown.key, []).append((number, shown))
    readers = {shown.model: TextReader(shown.model) for several in by_way.values() for _, shown in several[:1]}
    results: list[dict[str, Any]] = [{} for _ in questions]
    nlls: dict[Hashable, float] = {}
    answers: dict[Hashable, str] = {}
    for way, several in by_way.items():
        fitting = [(number, shown) for number, shown in several if _fits(questions[number], shown)]
        # By length: a batch has little padding then.
        fitting.sort(key=lambda pair: pair[1].tokens)
        names = [_name(number, shown) for number, shown in fitting]
        answered = not way.startswith(CONTROL)
        work: list[tuple[dict[Hashable, Any], Callable[..., list[Any]], bool]] = [
            (nlls, _likelihoods, likelihoods),
            (answers, _answers, answered),
        ]
        for known, compute, wanted in work:
            new = {name: pair for name, pair in zip(names, fitting, strict=True) if name not in known}
            if wanted and new:
                model = fitting[0][1].model
                read = [readers[model].context(shown.context) for _, shown in new.values()]
                some = [questions[number] for number, _ in new.values()]
                known |= zip(new, compute(model, some, read), strict=True)
        for name, (number, shown) in zip(names, fitting, strict=True):
            results[number][way] = {"tokens": shown.tokens}
            if likelihoods:
                results[number][way]["nll"] = nlls[name]
            if answered:
                results[number][way]["answer"] = answers[name]
                results[number][way]["sources"] = [asdict(source) for source in _sources(shown.context)]
    return results


def _digest(model: SharedLLMModel) -> str | None:
    adapter = model.adapter()
    return None if adapter is None else adapter.digest


def _fits(question: Question, shown: Shown) -> bool:
    room = max(ANSWER_TOKENS, shown.model.count_tokens(question.answers[0]))
    try:
        shown.model.check_window(question.text, context=shown.context, max_new_tokens=room)
    except WindowExceededError:
        return False
    return True


def _name(number: int, shown: Shown) -> Hashable:
    """The same for what one question is shown alike in two ways."""
    context = tuple(shown.context.nodes) if isinstance(shown.context, Selection) else shown.context
    return number, shown.model, context


def _sources(context: Context) -> list[Source]:
    """What a context shows, best first."""
    if context is None:
        return []
    if isinstance(context, str):
        return [Source(None, None, None, None, _beginning(context))]
    passages = [
        Source(
            run[0].doc_id,
            run[0].start,
            run[-1].end,
            max(node.score for node in run),
            _beginning("".join(node.text for node in run)),
        )
        for run in context.passages
    ]
    return sorted(passages, key=lambda source: -(source.score or 0.0))[:SOURCES_KEPT]


def _beginning(text: str) -> str:
    return text if len(text) <= SOURCE_CHARACTERS else f"{text[:SOURCE_CHARACTERS]}..."


def _likelihoods(model: SharedLLMModel, questions: Sequence[Question], contexts: Sequence[Any]) -> list[float]:
    texts, gold = [question.text for question in questions], [question.answers[0] for question in questions]
    return model.nll(texts, gold, context=contexts, batch_size=TOGETHER)


def _answers(model: SharedLLMModel, questions: Sequence[Question], contexts: Sequence[Any]) -> list[str]:
    texts = [question.text for question in questions]
    return model.generate(texts, context=contexts, max_new_tokens=ANSWER_TOKENS, batch_size=TOGETHER)
