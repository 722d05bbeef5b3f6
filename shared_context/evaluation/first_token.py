"""Time to first token: a warm store against chunked RAG, the same model in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING

from llama_index.core import Document
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import StreamingResponse

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig
from shared_context.evaluation.baselines import CHUNK_OVERLAP, CHUNK_SIZE, ChunkedRAG
from shared_context.evaluation.contexts import text_of_nodes
from shared_context.evaluation.decoding import CONTEXT_TOKENS, filled, warm_up_and_counted
from shared_context.evaluation.questions import QuestionSet
from shared_context.evaluation.report import (
    Lines,
    Point,
    Report,
    Series,
    Table,
    Target,
    model_setting,
)
from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM
from shared_context.progress import with_progress
from shared_context.store.embedder import Embedder, load_default_embedder

if TYPE_CHECKING:
    from shared_context.evaluation.langchain_rag import LangChainRAG

WANTED = {1024: 8.0, 4096: 25.0, 7800: 45.0}
"""How many times less than chunked RAG's the time has to be, by context tokens."""

OURS, RAG = "query engine, injected", "query engine, chunked RAG"
LANGCHAIN = "LangChain chain, chunked RAG"
BARE, BARE_PASTED = "select and stream, injected", "stream, the same text pasted"


def measure(
    model: SharedLLMModel, asked: QuestionSet, *, context_tokens: Sequence[int] = CONTEXT_TOKENS, runs: int = 5
) -> Report:
    """Seconds from a question to the first token of its streamed answer.

    All ways take turns, question by question, after one question that is not counted. Answers are cut after one token,
    because a streamer keeps a token back until the word it belongs to is complete.

    Args:
        model: answers; MiniLM embeds for both sides.
        asked: two questions or more.
        context_tokens: the sizes of context to compare at, the most that either side is given; what is more than the
            documents hold is not run.
        runs: questions that are counted.

    Raises:
        ConfigError: there is one question only, or none is to be counted.
    """
    warm_up, *questions = warm_up_and_counted(asked, runs)
    embedder, llm = load_default_embedder(), SharedLLM(model=model, max_new_tokens=1)
    rag = ChunkedRAG(model, embedder, asked.documents)
    not_run: dict[str, str] = {}
    langchain = _langchain(model, embedder, asked, not_run)
    # Without a floor the whole budget is spent, so that both sides are given the same number of tokens.
    index = SharedContextIndex.from_documents(
        [Document(text=text, id_=id) for id, text in asked.documents.items()],
        llm=llm,
        embedder=embedder,
        config=StoreConfig(floor=0.0),
    )
    store = index.store
    document_tokens = store.stats()["tokens"]
    context_tokens = filled(context_tokens, document_tokens, not_run)
    seconds: dict[tuple[int, str], list[float]] = {}
    shown: dict[tuple[int, str], list[int]] = {}
    for tokens in context_tokens:
        engine = index.as_query_engine(streaming=True, budget=tokens)
        for question in with_progress([warm_up, *questions], f"first token, {tokens} tokens"):
            selection, top_k = store.select(question, budget=tokens), rag.most_within(question, tokens)
            store.warm(selection)
            same_text = text_of_nodes(selection)
            pasting_engine = rag.query_engine(llm, top_k)
            ways: dict[str, Callable[[], Iterable[str]]] = {
                OURS: partial(_answer, engine, question),
                RAG: partial(_answer, pasting_engine, question),
                BARE: partial(_bare, store, question, tokens),
                BARE_PASTED: partial(model.stream, question, context=same_text, max_new_tokens=1),
            }
            entries = dict.fromkeys(ways, selection.kv_entries)
            entries[RAG] = rag.count_tokens(rag.top(question, top_k))
            if langchain is not None:
                k, entries[LANGCHAIN] = langchain.most_within(question, tokens)
                ways[LANGCHAIN] = partial(langchain.stream, question, k)
            for way, ask in ways.items():
                taken = _seconds_to_first(ask)
                if question is not warm_up:
                    seconds.setdefault((tokens, way), []).append(taken)
                    shown.setdefault((tokens, way), []).append(entries[way])
    store.close()
    ratios = {
        (tokens, ours): median(seconds[tokens, theirs]) / median(seconds[tokens, ours])
        for tokens in context_tokens
        for ours, theirs in ((OURS, RAG), (BARE, BARE_PASTED))
    }
    return Report(
        "first-token",
        {**model_setting(model), "tokens of documents": document_tokens, "runs": len(questions)},
        [
            Lines(
                "Time to first token, median",
                "context tokens",
                "seconds",
                [_line(way, seconds) for way in dict.fromkeys(way for _, way in seconds)],
                log_x=True,
                log_y=True,
            ),
            Table(
                "Seconds to the first token",
                ("context", "way", "tokens shown", "median", "least", "most", "times faster"),
                [
                    (tokens, way, fmean(shown[tokens, way]), median(s), min(s), max(s), ratios.get((tokens, way)))
                    for (tokens, way), s in seconds.items()
                ],
                keys=2,
            ),
        ],
        [
            Target(f"times faster at {tokens} tokens", ratios[tokens, OURS], ">=", WANTED[tokens])
            for tokens in context_tokens
            if tokens in WANTED
        ],
        not_run=not_run,
        notes=[
            "Warm: the keys and values of what is selected are in the cache. Query engines search, and stream through "
            "LlamaIndex, the chain through LangChain, both with chunks of the same size; the bare way without "
            "injection is spared the search. All run the same model object with the same attention, embedder and "
            "limits."
        ],
    )


def _langchain(
    model: SharedLLMModel, embedder: Embedder, asked: QuestionSet, not_run: dict[str, str]
) -> LangChainRAG | None:
    """LangChain's chunked RAG, or None where it cannot run."""
    try:
        from shared_context.evaluation.langchain_rag import LangChainRAG
    except ImportError as error:
        not_run[LANGCHAIN] = f"{error}: pip install 'sharedllm[eval]'"
        return None
    return LangChainRAG(model, embedder, asked.documents, chunk_size=CHUNK_SIZE, chunk_overlap=CHUNK_OVERLAP)


def _line(way: str, seconds: Mapping[tuple[int, str], Sequence[float]]) -> Series:
    return Series(way, [Point(n, median(s), min(s), max(s)) for (n, of), s in seconds.items() if of == way])


def _answer(engine: BaseQueryEngine, question: str) -> Iterable[str]:
    answer = engine.query(question)
    assert isinstance(answer, StreamingResponse) and isinstance(answer.response_gen, Iterable)
    return answer.response_gen


def _bare(store: SharedLLMContextStore, question: str, tokens: int) -> Iterable[str]:
    return store.model.stream(question, context=store.select(question, budget=tokens), max_new_tokens=1)


def _seconds_to_first(ask: Callable[[], Iterable[str]]) -> float:
    start = time.perf_counter()
    pieces = iter(ask())
    next(pieces, None)
    seconds = time.perf_counter() - start
    for _ in pieces:  # to the end, so that nothing runs beside the next measurement
        pass
    return seconds
