"""What a question is shown: selections, the baselines' chunks as text, and for each the wrong context as control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared_context import Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.questions import Question, QuestionSet
from shared_context.store.embedder import Embedder

if TYPE_CHECKING:
    from shared_context.evaluation.baselines import ChunkedRAG, Ranking

CHUNKS = (256, 20)
"""Size and overlap of chunked RAG's chunks, tokens."""

OTHER_SETTINGS: dict[str, tuple[int, int, Ranking, int | None]] = {
    "chunked RAG, chunks of 64, as text": (64, 0, "vector", None),
    "chunked RAG, chunks of 128, as text": (128, 0, "vector", None),
    "chunked RAG, chunks of 512, as text": (512, 50, "vector", None),
    "BM25, chunks of 64, as text": (64, 0, "bm25", None),
    "fusion by score of both, chunks of 64, as text": (64, 0, "fusion by score", 20),
    "fusion by score of both, chunks of 128, as text": (128, 0, "fusion by score", 20),
}
"""Size and overlap of chunks, ranking, chunks that each side of a fusion brings."""

LLAMAINDEX_DEFAULTS = (1024, 200, 2)
"""LlamaIndex's size and overlap of chunks and how many of them it shows."""

NONE = "no context"
INJECTED = "selection, injected"
FULL = "selection without the floor, injected"
PASTED = "selection, its text pasted"
RAG = "chunked RAG, chunks of 256, as text"
DEFAULTS = "chunked RAG as LlamaIndex's defaults, 2 chunks of 1,024, as text"
WHOLE = "the question's own document, whole, as text"
GOLD = "gold paragraph as text"
ADAPTER = ", with the adapter"
CONTROL = "control: "

Context = Selection | str | None


@dataclass(frozen=True)
class Shown:
    """What one question is shown in one way.

    Attributes:
        way: the way's name.
        budget: KV entries or tokens allowed; None where there is nothing to allow.
        context: right or, in a control, wrong.
        model: who reads it.
        is_control: whether the context belongs to another question. Of controls only the likelihood is taken.
    """

    way: str
    budget: int | None
    context: Context
    model: SharedLLMModel
    is_control: bool = False

    @property
    def key(self) -> str:
        """Names way and budget."""
        name = f"{CONTROL}{self.way}" if self.is_control else self.way
        return name if self.budget is None else f"{name}|{self.budget}"

    @property
    def tokens(self) -> int:
        """KV entries or tokens of the context."""
        if isinstance(self.context, Selection):
            return self.context.kv_entries
        return 0 if self.context is None else self.model.count_tokens(self.context)


class PastedChunks:
    """A baseline: the best chunks for a question, as text.

    Args:
        rag: the chunks.
        ranking, fused: as :meth:`ChunkedRAG.retriever` takes them.
        most: chunks at most; None is as many as the budget holds.
    """

    def __init__(self, rag: ChunkedRAG, ranking: Ranking, fused: int | None = None, most: int | None = None):
        self._rag, self._retriever, self._most = rag, rag.retriever(ranking, fused), most

    def __call__(self, question: str, tokens: int, without: str | None = None) -> str:
        """The best chunks of so many tokens together, best first; none of the document ``without``."""
        from shared_context.evaluation.baselines import pasted

        ranked = [c for c in self._retriever.retrieve(question) if c.node.ref_doc_id != without]
        return pasted(self._rag.within(ranked, tokens)[: self._most])


def pasted_baselines(
    model: SharedLLMModel, embedder: Embedder, asked: QuestionSet, all_settings: bool, not_run: dict[str, str]
) -> dict[str, tuple[PastedChunks, int | None]]:
    """The baselines by name, each with its own budget where it does not take the others'."""
    found: dict[str, tuple[PastedChunks, int | None]] = {}
    wanted: dict[str, tuple[int, int, Ranking, int | None]] = {RAG: (*CHUNKS, "vector", None)}
    if all_settings:
        wanted |= OTHER_SETTINGS
    try:
        from shared_context.evaluation.baselines import ChunkedRAG
    except ImportError as error:
        not_run |= dict.fromkeys(wanted, f"{error}: pip install 'sharedllm[eval]'")
        return found
    made: dict[tuple[int, int], ChunkedRAG] = {}

    def chunks(size: int, overlap: int) -> ChunkedRAG:
        if (size, overlap) not in made:
            made[size, overlap] = ChunkedRAG(model, embedder, asked.documents, chunk_size=size, chunk_overlap=overlap)
        return made[size, overlap]

    for name, (size, overlap, ranking, fused) in wanted.items():
        try:
            found[name] = PastedChunks(chunks(size, overlap), ranking, fused), None
        except ImportError as error:
            not_run[name] = f"{error}: pip install 'sharedllm[eval]'"
    if all_settings:
        size, overlap, most = LLAMAINDEX_DEFAULTS
        found[DEFAULTS] = PastedChunks(chunks(size, overlap), "vector", most=most), size * most
    return found


def shown_contexts(
    question: Question,
    asked: QuestionSet,
    stores: Mapping[str, SharedLLMContextStore],
    baselines: Mapping[str, tuple[PastedChunks, int | None]],
    budgets: Sequence[int],
    *,
    all_settings: bool,
) -> Iterator[Shown]:
    """Everything that a question is shown, controls included.

    Args:
        question: of ``asked``.
        asked: the documents, and where controls are drawn from.
        stores: by what is added to the names of their ways.
        baselines: as :func:`pasted_baselines` makes them.
        budgets: KV entries or tokens.
        all_settings: paste the text of selections as well.
    """
    other = other_question(question, asked)
    elsewhere = [id for id in asked.documents if id != question.document]
    for suffix, store in stores.items():
        yield Shown(NONE + suffix, None, None, store.model)
        for budget in budgets:
            for way, floor in (INJECTED, None), (FULL, 0.0):
                selection = store.select(question.text, budget=budget, floor=floor)
                size = max(selection.kv_entries, store.config.tree.leaf_size)
                yield Shown(way + suffix, budget, selection, store.model)
                if other is not None:
                    wrong = store.select(other.text, budget=size, floor=0.0, doc_ids=elsewhere)
                    yield Shown(way + suffix, budget, wrong, store.model, is_control=True)
                if all_settings and way == INJECTED:
                    yield Shown(PASTED + suffix, budget, selection.text, store.model)
    for way, (chunks, own_budget) in baselines.items():
        for budget in budgets if own_budget is None else [own_budget]:
            shown = None if own_budget is not None else budget
            for suffix, store in stores.items():
                yield Shown(way + suffix, shown, chunks(question.text, budget), store.model)
                if other is not None:
                    text = chunks(other.text, budget, question.document)
                    yield Shown(way + suffix, shown, text, store.model, is_control=True)
    for one, is_control in [(question, False), *([(other, True)] if other is not None else [])]:
        document = asked.documents[one.document]
        for suffix, store in stores.items():
            passage = document[one.passage.start : one.passage.end]
            yield Shown(GOLD + suffix, None, passage, store.model, is_control=is_control)
            yield Shown(WHOLE + suffix, None, document, store.model, is_control=is_control)


def text_of_nodes(selection: Selection) -> str:
    """What is injected, as text: without the headings and the ends of sentences that ``selection.text`` adds."""
    return "\n\n".join("".join(node.text for node in run) for run in selection.passages)


def other_question(question: Question, asked: QuestionSet) -> Question | None:
    """A question about another document, far from this one in the file; None where all are about one document."""
    count = len(asked.questions)
    begin = asked.questions.index(question) + count // 2
    candidates = (asked.questions[(begin + step) % count] for step in range(count))
    return next((other for other in candidates if other.document != question.document), None)
