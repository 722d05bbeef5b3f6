"""Retrieval: how often what a question is shown holds the answer, by how many tokens are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from shared_context import Document, SharedLLMContextStore, SharedLLMModel
from shared_context.config import Policy, StoreConfig, TreeConfig
from shared_context.evaluation.ledger import Ledger
from shared_context.evaluation.metrics import holds_a_span, mean_with_interval, paired_difference, verdict
from shared_context.evaluation.questions import Question, Span, Unit, read_questions
from shared_context.evaluation.remembering import RememberingEmbedder
from shared_context.evaluation.report import (
    Lines,
    Point,
    Report,
    Series,
    Table,
    model_setting,
)
from shared_context.store.embedder import Embedder, load_default_embedder

if TYPE_CHECKING:
    from shared_context.evaluation.baselines import ChunkedRAG, Ranking

TOKENS = (128, 256, 512, 1024, 2048, 4096)
"""Tokens that a question is shown."""

CHUNKS = ((64, 0), (128, 0), (128, 20), (256, 0), (256, 20), (512, 50), (1024, 200))
"""Size and overlap of the baselines' chunks, tokens; the last are LlamaIndex's defaults."""

RAG, BM25, FUSION = "chunked RAG", "BM25", "fusion of both"
BASELINES: dict[str, dict[str, tuple[Ranking, int | None]]] = {
    RAG: {"": ("vector", None)},
    BM25: {"": ("bm25", None)},
    FUSION: {
        ", reciprocal rank of 20 each": ("fusion by rank", 20),
        ", reciprocal rank of all": ("fusion by rank", None),
        ", relative score of 20 each": ("fusion by score", 20),
        ", relative score of all": ("fusion by score", None),
    },
}
"""Their settings beside the chunks: how chunks are ranked, and how many each side of a fusion brings."""

OURS: Policy = "hybrid"
DEFAULT = "hybrid, with the default floor"
LARGE = "hybrid, leaves of twice the size"

Shown = dict[int, tuple[list[Span], int]]
"""What a question is shown for each number of tokens allowed: where it stands, and how many tokens it has."""


@dataclass(frozen=True)
class Way:
    """A way to choose what a question is shown.

    Attributes:
        family: ways that differ in their settings only share it.
        setting: those settings; empty where there are none to choose.
        least: tokens below which this way cannot be asked.
        show: what a question is shown.
    """

    family: str
    setting: str
    least: int
    show: Callable[[str, Sequence[int]], Shown]

    @property
    def name(self) -> str:
        """The way's own name."""
        return f"{self.family}, {self.setting}" if self.setting else self.family


def measure(
    model: SharedLLMModel,
    data: str | Path,
    *,
    unit: Unit = "file",
    limit: int | None = None,
    seed: int = 0,
    tokens: Sequence[int] = TOKENS,
    resume: str | Path | None = None,
) -> Report:
    """Answer-span recall of every scoring policy and every baseline, at the same numbers of tokens.

    An answer counts as found if one of its gold spans is shown whole.

    Args:
        model: encodes and tokenizes for all; MiniLM embeds for all.
        data: questions, as :func:`~shared_context.evaluation.questions.read_questions` reads them.
        unit: what becomes one document.
        limit: only so many of its questions, drawn at random.
        seed: of the drawing and of the intervals.
        tokens: how many are shown.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.
    """
    asked = read_questions(data, unit)
    embedder = RememberingEmbedder(load_default_embedder())
    not_run: dict[str, str] = {}
    tree = TreeConfig()
    large = StoreConfig(tree=TreeConfig(chunk_size=tree.chunk_size, height=tree.height - 1))
    with (
        SharedLLMContextStore(model, embedder=embedder) as store,
        SharedLLMContextStore(model, embedder=embedder, config=large) as large_store,
    ):
        for one in store, large_store:
            one.add([Document(text, id) for id, text in asked.documents.items()])
        twice = Way(LARGE, "", large.tree.leaf_size, _select(large_store, OURS, 0.0))
        ways = [*selections(store), twice, *baselines(model, embedder, asked.documents, not_run)]
        chosen = asked.sample(limit, seed)
        ledger = Ledger(
            resume,
            {
                "measurement": "retrieval",
                "data": asked.identity,
                "model": model.identity,
                "embedder": embedder.name,
                "tokens": tokens,
                "ways": [way.name for way in ways],
            },
        )
        results = ledger.results(
            [asked.key(question) for question in chosen],
            lambda keys: [_result(ways, asked.by_key(key), tokens) for key in keys],
            what="retrieval",
        )
        document_tokens = store.stats()["tokens"]
    hits = {
        (way.name, count): np.array([float(result[way.name][str(count)][0]) for result in results])
        for way in ways
        for count in tokens
        if count >= way.least
    }
    shown = {key: fmean(result[key[0]][str(key[1])][1] for result in results) for key in hits}
    setting = {
        **model_setting(model), "embedder": embedder.name, "documents": len(asked.documents),
        "tokens of documents": document_tokens, "questions": len(chosen), "of": len(asked.questions),
        "left out": asked.left_out_text, "seed": seed,
    }  # fmt: skip
    return _report(setting, ways, tokens, hits, shown, not_run, seed)


def _result(ways: Iterable[Way], question: Question, tokens: Sequence[int]) -> dict[str, Any]:
    """For each way and number of tokens allowed: whether an answer is shown, and how many tokens are."""
    return {
        way.name: {
            str(count): (holds_a_span(spans, question.spans), used)
            for count, (spans, used) in way.show(question.text, [n for n in tokens if n >= way.least]).items()
        }
        for way in ways
    }


# ---- the ways


def selections(store: SharedLLMContextStore) -> Iterator[Way]:
    """Every policy without the floor, so that all are shown the same number of tokens; the floor has its own way."""
    least = store.config.tree.leaf_size
    policies: tuple[Policy, ...] = get_args(Policy)
    for policy in policies:
        yield Way(policy, "", least, _select(store, policy, 0.0))
    yield Way(DEFAULT, "", least, _select(store, OURS, None))


def _select(store: SharedLLMContextStore, policy: Policy, floor: float | None) -> Callable[[str, Sequence[int]], Shown]:
    def show(question: str, tokens: Sequence[int]) -> Shown:
        chosen = {n: store.select(question, budget=n, policy=policy, floor=floor).nodes for n in tokens}
        return {
            n: ([Span(node.doc_id, node.start, node.end) for node in nodes], sum(node.token_count for node in nodes))
            for n, nodes in chosen.items()
        }

    return show


def baselines(
    model: SharedLLMModel, embedder: Embedder, documents: Mapping[str, str], not_run: dict[str, str]
) -> Iterator[Way]:
    """Every baseline with all its settings; those that cannot run are put into ``not_run``."""
    try:
        from shared_context.evaluation.baselines import ChunkedRAG
    except ImportError as error:
        not_run |= dict.fromkeys(BASELINES, f"{error}: pip install 'sharedllm[eval]'")
        return
    for size, overlap in CHUNKS:
        rag = ChunkedRAG(model, embedder, documents, chunk_size=size, chunk_overlap=overlap)
        for family, settings in BASELINES.items():
            for setting, (ranking, fused) in settings.items():
                try:
                    show = _rank(rag, ranking, fused)
                except ImportError as error:
                    not_run[family] = f"{error}: pip install 'sharedllm[eval]'"
                    continue
                yield Way(family, f"chunks of {size}, overlap {overlap}{setting}", size, show)


def _rank(rag: ChunkedRAG, ranking: Ranking, fused: int | None) -> Callable[[str, Sequence[int]], Shown]:
    retriever = rag.retriever(ranking, fused)

    def show(question: str, tokens: Sequence[int]) -> Shown:
        ranked = retriever.retrieve(question)
        chosen = {n: rag.within(ranked, n) for n in tokens}
        return {
            n: (
                [rag.span(chunk) for chunk in chunks],
                rag.count_tokens(chunks),
            )
            for n, chunks in chosen.items()
        }

    return show


# ---- the report


def _report(
    setting: dict[str, Any],
    ways: Sequence[Way],
    tokens: Sequence[int],
    hits: Mapping[tuple[str, int], np.ndarray],
    shown: Mapping[tuple[str, int], float],
    not_run: Mapping[str, str],
    seed: int,
) -> Report:
    parts = compared(ways, tokens, hits, shown, seed, title="Share of questions whose answer is shown", short="recall")
    return Report("retrieval", setting, parts, not_run=not_run, notes=[SHOWN, AT_ITS_BEST])


def compared(
    ways: Sequence[Way],
    tokens: Sequence[int],
    hits: Mapping[tuple[str, int], np.ndarray],
    shown: Mapping[tuple[str, int], float],
    seed: int,
    *,
    title: str,
    short: str,
) -> list[Lines | Table]:
    """Plots and tables of what ways reach, the library's against the baselines at their best.

    Args:
        ways, tokens: what was measured, at how many tokens shown.
        hits: by a way's name and the tokens, what each question reached, from 0 to 1.
        shown: for the same, tokens shown in the mean.
        seed: of the intervals.
        title, short: what a question reached, in full and in a word.
    """
    families = list(dict.fromkeys(way.family for way in ways))
    best = {
        (family, n): name
        for family, n in product(families, tokens)
        if (name := _best(ways, family, n, hits)) is not None
    }
    label = {family: f"{family}, at its best" if family in BASELINES else family for family in families}
    recall = {
        family: Series(
            label[family], [_point(n, hits[best[family, n], n], seed) for n in tokens if (family, n) in best]
        )
        for family in families
    }
    gains = [
        (label[family], n, best[family, n].removeprefix(f"{family}, "), gain.mean, gain.low, gain.high, verdict(gain))
        for family, n in product(BASELINES, tokens)
        if (OURS, n) in hits and (family, n) in best
        for gain in [paired_difference(hits[OURS, n], hits[best[family, n], n], seed=seed)]
    ]
    columns = [str(n) for n in tokens]
    return [
        Lines(
            f"{title}: the library's ways",
            "tokens shown",
            short,
            [series for family, series in recall.items() if family not in BASELINES],
            log_x=True,
        ),
        Lines(
            f"{title}: {OURS} against the baselines",
            "tokens shown",
            short,
            [series for family, series in recall.items() if family in (OURS, *BASELINES)],
            log_x=True,
        ),
        Table(
            f"{OURS} minus the baselines, {short}, paired, 95% interval over questions",
            ("baseline", "tokens", "its best setting", "difference", "from", "to", f"{OURS} is"),
            gains,
            keys=2,
        ),
        *(
            Table(
                f"{family}: every setting, {short} by tokens shown",
                ("setting", *columns),
                [
                    (way.setting, *(hits[way.name, n].mean() if (way.name, n) in hits else None for n in tokens))
                    for way in ways
                    if way.family == family
                ],
            )
            for family in families
            if family in BASELINES
        ),
        Table(
            "Tokens shown, mean",
            ("way", *columns),
            [(label[f], *(shown[best[f, n], n] if (f, n) in best else None for n in tokens)) for f in families],
        ),
    ]


SHOWN = (
    "Nobody is shown more tokens than the column says; a chunk or leaf that does not fit any more is passed over for "
    "the next best that does. Baselines are LlamaIndex's VectorStoreIndex, BM25Retriever and QueryFusionRetriever "
    "(without rewritten questions) over SentenceSplitter chunks, with the same embedder and tokenizer."
)
AT_ITS_BEST = (
    "A baseline at its best has the setting that does best on these very questions at this number of tokens, which "
    "nobody could know beforehand; each row of the library has one setting throughout."
)


def _best(ways: Sequence[Way], family: str, tokens: int, hits: Mapping[tuple[str, int], np.ndarray]) -> str | None:
    """The setting that does best at this number of tokens on these very questions, known only afterwards."""
    able = [way.name for way in ways if way.family == family and tokens >= way.least]
    return max(able, key=lambda name: hits[name, tokens].mean(), default=None)


def _point(n: int, hits: np.ndarray, seed: int) -> Point:
    interval = mean_with_interval(hits, seed=seed)
    return Point(n, interval.mean, interval.low, interval.high)
