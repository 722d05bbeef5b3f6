"""Presses: kvpress's ways to shrink the KV of a text, against a selection of as many entries over the same passages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pressing import (
    AGNOSTIC,
    AT_ONCE,
    AWARE,
    HIDING,
    LEFT_OUT,
    PLAIN_ATTENTION,
    Prompted,
    pressed,
    prompted,
)
from benchmarks.readers import reading
from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.errors import ConfigError
from shared_context.evaluation.answers import several_documents
from shared_context.evaluation.compression import TRAINED, UNTRAINED
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.metrics import paired_difference, verdict
from shared_context.evaluation.questions import BETWEEN_PARAGRAPHS, Question, QuestionSet
from shared_context.evaluation.report import Cell, Report, Table, Target, model_setting
from shared_context.store.embedder import Embedder, load_default_embedder

RATIOS = (2, 4, 8)
"""Tokens of the context for each KV entry that is kept."""

CONTROL_RATIOS = (4,)
"""Those at which a wrong context is shown as well."""

PASSAGES = {"gold paragraph": 1, "gold paragraph among four": 4}
"""Paragraphs of each kind of context."""

SMALLEST_LEAF = 8
"""Tokens."""

SELECTED, STRIDED = "selection, best leaves whole", "selection, everything at one grain"
TEXT, NONE = "the whole text", "none"
CONTROL = "a wrong context of as many tokens: "


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """Mean negative log-likelihood of the gold answer at equal KV entries: presses of kvpress, and selections.

    Each over the gold paragraph alone and among three others. Presses work on the untrained model.

    Args:
        model: with an adapter.
        data: questions; every article is one document.
        limit: only so many questions, drawn at random.
        seed: of the drawing.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.

    Raises:
        ConfigError: the model has no adapter.
    """
    if model.adapter() is None:
        raise ConfigError("adapter=None: selections are measured with one and without; name one with --adapter.")
    base = SharedLLMModel.from_pretrained(model.name, adapter=None, dtype=model.dtype, device=str(model.device))
    asked, embedder = several_documents(data), load_default_embedder()
    questions = asked.drawn(limit, seed)
    not_run = dict(LEFT_OUT)
    try:
        import kvpress

        logging.getLogger("kvpress").setLevel(logging.ERROR)  # KVzip says of each press made what it costs
    except ImportError as error:
        kvpress = None
        not_run[", ".join(map(str, (*AT_ONCE, *HIDING)))] = f"{error}: pip install kvpress"
    settings = {
        "measurement": "presses",
        "data": asked.identity,
        "model": reader_identity(model),
        "embedder": embedder.name,
        "kvpress": version("kvpress") if kvpress is not None else None,
        "presses": [str(press) for press in (*AT_ONCE, *HIDING)],
    }
    ledger = Ledger(resume, settings)
    results: dict[str, list[dict[str, Any]]] = {}
    for kind, count in PASSAGES.items():

        def compute(keys: list[str], kind: str = kind, count: int = count) -> Iterator[dict[str, Any]]:
            for key in keys:
                question = asked.by_key(key.rpartition("|")[2])
                right, wrong = _contexts(base, asked, question, count)
                yield _result(model, base, embedder, kvpress, question, right, wrong)

        keys = [f"{kind}|{asked.key(question)}" for question in questions]
        results[kind] = ledger.results(keys, compute, what=kind)
    for kind, of in results.items():
        for label in dict.fromkeys(label for one in of for label in one["failed"]):
            reasons = [one["failed"][label] for one in of if label in one["failed"]]
            not_run[f"{label.replace('|', ', ')}, {kind}, {len(reasons)} of {len(of)} questions"] = reasons[0]
    setting = {
        **model_setting(model),
        "embedder": embedder.name,
        "kvpress": str(settings["kvpress"]),
        "documents": len(asked.documents),
        "questions": len(questions),
        "left out": asked.left_out_text,
        "seed": seed,
    }
    return _report(setting, results, not_run, seed)


def _contexts(model: SharedLLMModel, asked: QuestionSet, question: Question, count: int) -> tuple[str, str]:
    """The gold paragraph of a question among ``count``, and as many tokens of paragraphs without it."""

    def paragraph(question: Question) -> str:
        return asked.documents[question.document][question.passage.start : question.passage.end]

    gold, every = paragraph(question), asked.questions
    number = every.index(question)
    # those of questions far from it first
    far = [every[(number + len(every) // 2 + step) % len(every)] for step in range(len(every))]
    others = [text for text in dict.fromkeys(map(paragraph, far)) if text != gold]
    right = others[: count - 1]
    right.insert(number % count, gold)
    whole = BETWEEN_PARAGRAPHS.join(right)
    elsewhere = BETWEEN_PARAGRAPHS.join(others[count - 1 :])
    tokens = model.tokenize(elsewhere)
    end = min(len(model.tokenize(whole)), len(tokens))
    return whole, elsewhere[: tokens.characters(0, end)[1]]


def _result(
    model: SharedLLMModel,
    base: SharedLLMModel,
    embedder: Embedder,
    kvpress: Any,
    question: Question,
    right: str,
    wrong: str,
) -> dict[str, Any]:
    """By label, [negative log-likelihood, entries kept of the context]; and what failed, with the reason."""
    answer = question.answers[0]
    scores: dict[str, list[float]] = {
        f"{NONE}|-|1": [base.nll(question.text, answer), 0],
        f"{TEXT}|{UNTRAINED}|1": [
            base.nll(question.text, answer, context=right),
            len(prompted(base, question.text, right, answer).context),
        ],
    }
    failed: dict[str, str] = {}
    for before, context, ratios in (("", right, RATIOS), (CONTROL, wrong, CONTROL_RATIOS)):
        of = prompted(base, question.text, context, answer)
        for weights, reader in ((UNTRAINED, base), (TRAINED, model)):
            for way, ratio, shown in _selections(reader, embedder, context, question.text, of, ratios):
                nll = reader.nll(question.text, answer, context=shown)
                scores[f"{before}{way}|{weights}|{ratio}"] = [nll, shown.kv_entries]
        if kvpress is not None:
            with reading(base, PLAIN_ATTENTION):
                for label, found, reason in pressed(base.hf_model, kvpress, of, ratios):
                    if found is None:
                        failed[before + label] = reason
                    else:
                        scores[before + label] = found
    return {"scores": scores, "failed": failed}


def _selections(
    reader: SharedLLMModel, embedder: Embedder, context: str, question: str, of: Prompted, ratios: Sequence[int]
) -> Iterator[tuple[str, int, Any]]:
    """What a store that holds the context shows of it at each ratio.

    A leaf takes half the budget at most: of few entries nothing could be chosen in larger ones.
    """
    for ratio in ratios:
        leaf = SMALLEST_LEAF
        while 4 * leaf <= of.budget(ratio) and leaf < TreeConfig().leaf_size:
            leaf *= 2
        tree = TreeConfig(height=(TreeConfig().chunk_size // leaf).bit_length() - 1)
        with SharedLLMContextStore(reader, config=StoreConfig(tree=tree), embedder=embedder) as store:
            store.add(context, id="context")
            yield SELECTED, ratio, store.select(question, budget=of.budget(ratio))
            yield STRIDED, ratio, store.select(question, ratio=ratio)


def _report(
    setting: Mapping[str, Cell],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    not_run: Mapping[str, str],
    seed: int,
) -> Report:
    tables: list[Table] = []
    targets: list[Target] = []
    for kind, of in results.items():
        # a press that failed for a question is not compared
        labels = [label for label in of[0]["scores"] if all(label in one["scores"] for one in of)]
        nll = {label: [one["scores"][label][0] for one in of] for label in labels}
        kept = {label: fmean(one["scores"][label][1] for one in of) for label in labels}
        ways = dict.fromkeys(tuple(label.split("|")[:2]) for label in labels)
        best = {
            ratio: min(
                (label for label in labels if label.split("|")[1:] in ([AGNOSTIC, str(ratio)], [AWARE, str(ratio)])
                 and not label.startswith(CONTROL)),
                key=lambda label: fmean(nll[label]),
                default=None,
            )
            for ratio in RATIOS
        }  # fmt: skip
        shown = [way for way in ways if not way[0].startswith(CONTROL)]
        tables.append(
            Table(
                f"Over the {kind}: negative log-likelihood of the gold answer, nats per token, and entries kept",
                ("context", "of the model, or what a press reads", *(f"ratio {r}" for r in RATIOS)),
                [(*way, *_cells(nll, kept, "|".join(way))) for way in shown],
                keys=2,
            )
        )
        pairs, controls = [], []
        for ratio in RATIOS:
            ours = [f"{way}|{weights}|{ratio}" for way in (SELECTED, STRIDED) for weights in (TRAINED, UNTRAINED)]
            if (rival := best[ratio]) is not None:
                pairs += [(label, rival) for label in ours]
                targets.append(
                    Target(
                        f"{SELECTED}, {TRAINED}, over the {kind} at ratio {ratio}, against the best press",
                        fmean(nll[ours[0]]),
                        "<=",
                        fmean(nll[best[ratio]]),
                    )
                )
            if ratio in CONTROL_RATIOS:
                controls += [(label, CONTROL + label) for label in [*ours, best[ratio]] if label is not None]
        for title, compared in (("Minus the best press of the same ratio", pairs), ("Minus its own control", controls)):
            rows = []
            for first, second in compared:
                found = paired_difference(nll[first], nll[second], seed=seed)
                says = verdict(found, more_is_better=False)
                rows.append((_name(first), _name(second), found.mean, found.low, found.high, says))
            if rows:
                columns = ("first", "minus", "difference", "from", "to", "the first is")
                tables.append(Table(f"Over the {kind}: {title.lower()}, 95% interval", columns, rows, keys=2))
    return Report(
        "presses",
        setting,
        tables,
        targets,
        not_run=not_run,
        notes=[
            "At ratio r everybody keeps an r-th of the context's tokens per layer, and the prompt's prefix. Presses "
            "are kvpress's own, with its defaults where no setting is named, on the untrained model; one that reads "
            "the question keeps as many entries more as the question has tokens. KVzip and AdaKV keep as many on "
            "average over heads, KVzip and PyramidKV over layers. A "
            "selection that opens whole leaves may stay below the budget. The same model, prompt and answer for all."
        ],
    )


def _cells(nll: Mapping[str, Sequence[float]], kept: Mapping[str, float], way: str) -> list[Cell]:
    whole = f"{way}|1"  # what has no ratio
    if whole in nll:
        return [f"{fmean(nll[whole]):.3f} ({kept[whole]:.0f})"] * len(RATIOS)
    labels = [f"{way}|{ratio}" for ratio in RATIOS]
    return [f"{fmean(nll[label]):.3f} ({kept[label]:.0f})" if label in nll else None for label in labels]


def _name(label: str) -> str:
    way, which, ratio = label.split("|")
    return f"{way}, {which}, ratio {ratio}"
