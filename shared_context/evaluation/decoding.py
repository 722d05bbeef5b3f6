"""Decoding: tokens per second after the first one, over an injected selection and over text that is pasted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean, median

from shared_context import Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import require
from shared_context.evaluation.contexts import text_of_nodes
from shared_context.evaluation.indexing import indexers
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import Lines, Point, Report, Series, Table, model_setting
from shared_context.model.step_weights import StepWeights
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder

CONTEXT_TOKENS = (1024, 4096, 7800)
ANSWER_TOKENS = 32

INJECTED, PASTED = "selection, injected", "the same text, pasted"
STEPS: dict[str, StepWeights] = {f"{INJECTED}, steps in {bits}": bits for bits in ("int8", "int4")}


def measure(
    model: SharedLLMModel, asked: QuestionSet, *, context_tokens: Sequence[int] = CONTEXT_TOKENS, runs: int = 5
) -> Report:
    """Tokens per second of an answer, the first token left out.

    All ways take turns in one process, question by question, after one question that is not counted: a selection
    injected, its text pasted, the chunks that the frameworks find pasted, and on a processor the selection with
    quantised weights for single steps.

    Args:
        model: answers; MiniLM embeds for all sides.
        asked: two questions or more.
        context_tokens: tokens shown at most; what is more than the documents hold is not run.
        runs: questions that are counted.

    Raises:
        ConfigError: there is one question only, or none is to be counted.
    """
    warm_up, *questions = warm_up_and_counted(asked, runs)
    not_run: dict[str, str] = {}
    speeds: dict[tuple[int, str], list[float]] = {}
    shown: dict[tuple[int, str], list[int]] = {}
    alike: dict[tuple[int, str], list[float]] = {}
    embedder = load_default_embedder()
    chunked = {
        f"{way}, pasted": indexer(model, embedder, asked.documents)
        for way, indexer in indexers(not_run, default_chunks=False).items()
    }
    with SharedLLMContextStore(model, embedder=embedder) as store:
        for id, text in asked.documents.items():
            store.add(text, id=id)
        sizes = filled(context_tokens, store.stats()["tokens"], not_run)
        stepping = _stepping(model) if sizes else {}
        for tokens in sizes:
            for question in with_progress([warm_up, *questions], f"decoding, {tokens} tokens"):
                selection = store.select(question, budget=tokens, floor=0.0)
                contexts: dict[str, Selection | str] = {
                    INJECTED: selection,
                    PASTED: text_of_nodes(selection),
                    **{way: index.context(question, tokens) for way, index in chunked.items()},
                    **dict.fromkeys(stepping, selection),
                }
                answers: dict[str, str] = {}
                for way, context in contexts.items():
                    # An answer that ended by itself would be too short to time.
                    done = stepping.get(way, model).complete(
                        question, context=context, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS
                    )
                    answers[way] = done.text
                    if question is not warm_up:
                        if way in stepping:
                            alike.setdefault((tokens, way), []).append(_alike(done.text, answers[INJECTED]))
                        taken = done.seconds - done.time_to_first_token
                        speeds.setdefault((tokens, way), []).append((done.completion_tokens - 1) / taken)
                        shown.setdefault((tokens, way), []).append(
                            model.count_tokens(context) if isinstance(context, str) else context.kv_entries
                        )
    return Report(
        "decoding",
        {**model_setting(model), "answer tokens": ANSWER_TOKENS, "runs": len(questions)},
        [
            Lines(
                "Tokens per second after the first, median",
                "context tokens",
                "tokens per second",
                [
                    Series(way, [Point(n, median(s), min(s), max(s)) for (n, of), s in speeds.items() if of == way])
                    for way in dict.fromkeys(way for _, way in speeds)
                ],
                log_x=True,
            ),
            Table(
                "Tokens per second after the first",
                ("context", "way", "tokens shown", "median", "least", "most"),
                [(n, way, fmean(shown[n, way]), median(s), min(s), max(s)) for (n, way), s in speeds.items()],
                keys=2,
            ),
            Table(
                "How far answers are those of the weights themselves, as a share of their characters",
                ("context", "way", "mean", "least"),
                [(n, way, fmean(shares), min(shares)) for (n, way), shares in alike.items()],
                keys=2,
            ),
        ],
        not_run=not_run,
    )


def _stepping(model: SharedLLMModel) -> dict[str, SharedLLMModel]:
    """Models that share everything with this one but decode with quantised weights; none where it cannot."""
    if model.device.type != "cpu" or model.injection.kind != "prefix":
        return {}
    made = {
        way: SharedLLMModel(
            model.hf_model,
            model.tokenizer,
            name=model.name,
            injection_layers=model.injection.layers,
            context_window=model.context_window,
            system_prompt=model.system_prompt,
            fingerprint=model.fingerprint,
            step_weights=bits,
        )
        for way, bits in STEPS.items()
    }
    adapter = model.adapter()
    if adapter is not None:
        for own in made.values():
            own.load_adapter(adapter)
    return made


def _alike(answer: str, wanted: str) -> float:
    """How far two texts begin alike, as a share of the one that is wanted."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(answer, wanted, strict=False))
    return sum(1 for _ in same) / max(1, len(wanted))


def warm_up_and_counted(asked: QuestionSet, runs: int) -> list[str]:
    """A question that is not counted, and those that are: ``runs`` of them, or all others.

    Raises:
        ConfigError: there would be none to count.
    """
    require(runs >= 1, "runs", runs, "must be 1 question or more")
    count = len(asked.questions)
    require(count >= 2, "questions", count, "one is not counted, so two or more are needed; add some")
    return [question.text for question in asked.sample(runs + 1)]


def filled(context_tokens: Sequence[int], available: int, not_run: dict[str, str]) -> list[int]:
    """The sizes of context that documents of ``available`` tokens can fill; why not the others is put down."""
    not_run |= {
        f"{tokens:,} context tokens": f"the documents have {available:,} together"
        for tokens in context_tokens
        if tokens > available
    }
    return [tokens for tokens in context_tokens if tokens <= available]
