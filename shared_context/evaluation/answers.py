"""Answers: how likely the model finds the gold answer and what it says, by what it is shown and how."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import require
from shared_context.errors import WindowExceededError
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
from shared_context.evaluation.metrics import (
    containment,
    exact_match,
    f1,
    mean_with_interval,
    paired_difference,
    verdict,
)
from shared_context.evaluation.questions import Question, QuestionSet, read_questions
from shared_context.evaluation.reading import TextReader
from shared_context.evaluation.report import (
    Answer,
    AskedQuestion,
    Exhibit,
    Lines,
    Point,
    Report,
    Series,
    Source,
    Table,
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
    return _report(setting, results, chosen, budgets, not_run, seed)


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
    return model.score(texts, gold, context=contexts, batch_size=TOGETHER)


def _answers(model: SharedLLMModel, questions: Sequence[Question], contexts: Sequence[Any]) -> list[str]:
    texts = [question.text for question in questions]
    return model.generate(texts, context=contexts, max_new_tokens=ANSWER_TOKENS, batch_size=TOGETHER)


# ---- the report

METRICS = {"exact match": exact_match, "F1": f1, "containment": containment}


def _report(
    setting: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    budgets: Sequence[int],
    not_run: dict[str, str],
    seed: int,
) -> Report:
    gold = [question.answers for question in questions]
    keys = list(dict.fromkeys(key for result in results for key in result))
    for key in list(keys):
        missing = sum(key not in result for result in results)
        if missing:
            keys.remove(key)
            not_run[_title(key)] = f"for {missing} of {len(results)} questions it does not fit the model's window"
    nll = {key: [result[key]["nll"] for result in results] for key in keys if "nll" in results[0][key]}
    tokens = {key: fmean(result[key]["tokens"] for result in results) for key in keys}
    answered = [key for key in keys if not key.startswith(CONTROL)]
    quality = {
        (name, key): [metric(r[key]["answer"], g) for r, g in zip(results, gold, strict=True)]
        for key in answered
        for name, metric in METRICS.items()
    }

    def curves(values: Mapping[str, Sequence[float]], keys: Sequence[str]) -> list[Series]:
        ways = list(dict.fromkeys(key.partition("|")[0] for key in keys))
        points = {
            way: [_point(n, values[key], seed) for n in budgets for key in (f"{way}|{n}", way) if key in values]
            for way in ways
        }
        return [Series(way, several) for way, several in points.items() if several]

    def differences(values: Mapping[str, Sequence[float]], *, more_is_better: bool) -> list[tuple]:
        """The selection's values minus those of every other way that the same weights answer."""
        return [
            (
                n,
                _title(ours),
                _title(other),
                tokens[other],
                gain.mean,
                gain.low,
                gain.high,
                verdict(gain, more_is_better=more_is_better),
            )
            for n in budgets
            for ours in (f"{INJECTED}|{n}", f"{INJECTED}{ADAPTER}|{n}")
            for other in answered
            if ours in values and other != ours and other.partition("|")[2] in ("", str(n))
            if other.partition("|")[0].endswith(ADAPTER) == (ADAPTER in ours)
            for gain in [paired_difference(values[ours], values[other], seed=seed)]
        ]

    against_control = [
        (_title(key), fmean(nll[key]), fmean(nll[CONTROL + key]), gain.mean, gain.low, gain.high)
        for key in answered
        if CONTROL + key in nll
        for gain in [paired_difference(nll[key], nll[CONTROL + key], seed=seed)]
    ]
    parts: list[Exhibit] = [
        *(
            Lines(
                f"Negative log-likelihood of the gold answer, {of}: less is better",
                "KV entries or tokens allowed",
                "nats per token, mean",
                curves(nll, some),
                log_x=True,
            )
            for of, some in (
                ("with the right context", answered),
                ("with a wrong one, the control", [key for key in keys if key not in answered]),
            )
            if nll
        ),
        *(
            Lines(
                f"Answers, {name}: more is better",
                "KV entries or tokens allowed",
                "mean over questions",
                curves({key: quality[name, key] for key in answered}, answered),
                log_x=True,
            )
            for name in METRICS
        ),
        Table(
            "All ways; 95% interval over questions",
            ("context", "tokens shown", "NLL", "from", "to", *METRICS),
            [
                (
                    _title(key),
                    tokens[key],
                    *((interval.mean, interval.low, interval.high) if interval else (None, None, None)),
                    *(fmean(quality[name, key]) if key in answered else None for name in METRICS),
                )
                for key in keys
                for interval in [mean_with_interval(nll[key], seed=seed) if key in nll else None]
            ],
        ),
        *(
            Table(
                f"{name} of {INJECTED}, minus that of others by the same weights, paired, 95% interval over questions",
                ("budget", "selection", "minus", "tokens shown there", "difference", "from", "to", "the selection is"),
                differences(values, more_is_better=more_is_better),
                keys=3,
            )
            for name, values, more_is_better in (
                ("NLL", nll, False),
                ("F1", {key: quality["F1", key] for key in answered}, True),
            )
            if values
        ),
        Table(
            "NLL with the right context minus that with a wrong one, paired, 95% interval over questions",
            ("context", "right", "wrong", "difference", "from", "to"),
            against_control,
        ),
    ]

    def asked(question: Question, result: Mapping[str, Any]) -> AskedQuestion:
        answers = [
            Answer(
                _title(key),
                found["answer"],
                found["tokens"],
                {name: metric(found["answer"], question.answers) for name, metric in METRICS.items()}
                | ({"NLL": found["nll"]} if "nll" in found else {}),
                [Source(**source) for source in found.get("sources", ())],
            )
            for key, found in result.items()
            if "answer" in found
        ]
        return AskedQuestion(question.text, question.answers, question.document, answers)

    return Report(
        "answers",
        setting,
        parts,
        questions=[asked(question, result) for question, result in zip(questions, results, strict=True)],
        not_run=not_run,
        notes=[
            "What has no budget of its own is drawn as a level line. The question's own document is what retrieval "
            "would have to find first: nobody else is told which document it is. Controls show as many tokens of other "
            "documents, chosen for another question; of them only the likelihood is measured. The controls of the gold "
            "paragraph and of the whole document are another question's, whole, of whatever length they have: the "
            "table has their tokens.",
            "A selection may leave out what is far below its best leaf (StoreConfig.floor); without the floor it "
            "spends the whole budget. All ways use the same prompt, and pasted text stands where the injected "
            "selection does.",
        ],
    )


def _title(key: str) -> str:
    way, _, budget = key.partition("|")
    return f"{way}, {int(budget):,}" if budget else way


def _point(x: int, values: Sequence[float], seed: int) -> Point:
    interval = mean_with_interval(values, seed=seed)
    return Point(x, interval.mean, interval.low, interval.high)
