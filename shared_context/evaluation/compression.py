"""Compression: what a trained adapter carries through coarse grains, next to every control that tells it from style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import StoreConfig, TreeConfig
from shared_context.errors import ConfigError
from shared_context.evaluation.answers import several_documents
from shared_context.evaluation.metrics import paired_difference
from shared_context.evaluation.questions import Question, QuestionSet
from shared_context.evaluation.report import Cell, Report, Table, Target, model_setting
from shared_context.kernels import ChunkKV
from shared_context.model.injection import ContextKV
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder
from shared_context.tree import ContextTree, Grained, Node, cut_rows

TOP_K = 4
"""Chunks of chunked RAG, 256 tokens each at most."""

RATIO = 8
RATIOS = (1, 2, 4, 8, 16)
BUDGET = 512
NEAR_TOKENS = 128
NEAR, FAR = 8, 16
"""Grains of nodes that are not opened: of those of NEAR_TOKENS or fewer, beside opened leaves, and of larger ones."""
PAPER_TREE = TreeConfig(height=3)
"""Of the height that the paper gives its trees."""

WANTED_GAIN = 1.2
"""Nats per token that the right passage must gain over a wrong one of the same length, at ratio 8."""

TRAINED, UNTRAINED = "with the adapter", "untrained"

Way = tuple[str, str]
"""What is shown, and to which model."""

NONE, TEXT, WRONG = "none", "gold paragraph as text", f"a wrong passage, injected at ratio {RATIO}"
MIXED = f"best leaf of {PAPER_TREE.leaf_size} tokens whole, its chunk at {NEAR} and {FAR}"
ELSEWHERE = "the same for another question"
OPENED, FINE = "leaves above the floor whole, their chunks at 8 and 16", "leaves above the floor whole"
RAG, RAG_WITHIN = (f"chunked RAG, {chunks} as text" for chunks in (f"top {TOP_K} chunks", "chunks within the budget"))


def injected(ratio: int) -> str:
    """The name of the gold paragraph at a grain."""
    return f"gold paragraph, injected at ratio {ratio}"


class Passage:
    """A passage on its own, encoded as one chunk and shown at one grain.

    Args:
        kv: its encoding.
        ids: its tokens.
        ratio: the grain.
    """

    def __init__(self, kv: ChunkKV, ids: torch.Tensor, ratio: int):
        self._kv, self._ids = kv, ids
        self._rows = torch.tensor(cut_rows(ContextTree((0, len(ids))), [Grained(Node(0, 0), ratio)]))

    @property
    def kv_entries(self) -> int:
        return len(self._rows)

    def key_values(self, room: int | None = None) -> ContextKV:
        return ContextKV([self._kv], [self._rows], self._ids[self._rows])


Shown = Passage | Selection | str | None


def measure_passages(model: SharedLLMModel, data: str | Path, *, limit: int | None = None, seed: int = 0) -> Report:
    """Mean negative log-likelihood (nats per token) of the gold answer over the gold paragraph alone.

    At every grain with the adapter, next to a wrong passage of as many tokens, to no context, and to the paragraph as
    text, with the adapter and without.

    Args:
        model: with an adapter.
        data: questions; every article is one document.
        limit: only so many questions, drawn at random.
        seed: of the drawing.

    Raises:
        ConfigError: the model has no adapter, or all other passages together are too short for a wrong one.
    """
    base, asked = _base(model), several_documents(data)
    questions = asked.sample(limit, seed)
    scores: dict[Way, list[float]] = {}
    for question in with_progress(questions, "passages"):
        text = _passage(asked, question)
        own = _tokens(model, text)
        other = _wrong(model, asked, question, len(own))
        kv, wrong_kv = (model.compressor.encode([ids])[0] for ids in (own, other))
        shown: dict[Way, Shown] = {
            (NONE, UNTRAINED): None,
            **{(TEXT, weights): text for weights in (UNTRAINED, TRAINED)},
            (injected(RATIO), UNTRAINED): Passage(base.compressor.encode([own])[0], own, RATIO),
            **{(injected(ratio), TRAINED): Passage(kv, own, ratio) for ratio in RATIOS},
            (WRONG, TRAINED): Passage(wrong_kv, other, RATIO),
        }
        _score(scores, model, base, question, shown)
    right, wrong, text = (injected(RATIO), TRAINED), (WRONG, TRAINED), (TEXT, UNTRAINED)
    return Report(
        "compression",
        _setting(model, asked, questions),
        [
            Table(
                "One paragraph per question, negative log-likelihood of the gold answer, nats per token",
                ("context", "model", "mean NLL"),
                [(*way, fmean(nll)) for way, nll in scores.items()],
                keys=2,
            ),
            _differences(scores, [(right, wrong), (right, text)]),
        ],
        [
            Target(
                f"wrong minus right passage at ratio {RATIO}",
                fmean(scores[wrong]) - fmean(scores[right]),
                ">=",
                WANTED_GAIN,
            ),
            Target(
                f"right passage at ratio {RATIO}, against its text untrained",
                fmean(scores[right]),
                "<=",
                fmean(scores[text]),
            ),
        ],
    )


def measure_grains(model: SharedLLMModel, data: str | Path, *, limit: int | None = None, seed: int = 0) -> Report:
    """Mean negative log-likelihood (nats per token) of the gold answer over all articles, under a budget.

    The best leaf of the paper's trees is shown whole and the rest of its chunk coarsely, next to the smaller leaves of
    the default trees, with and without the rest of their chunks, to the same for another question over the documents
    without the answer, and to chunked RAG as text, with the adapter and without.

    Args: as :func:`measure_passages`.

    Raises:
        ConfigError: the model has no adapter, LlamaIndex is missing, or there is one document only, which leaves no
            wrong one.
    """
    try:
        from shared_context.evaluation.baselines import ChunkedRAG, pasted
    except ImportError as error:
        raise ConfigError(f"Grains are measured against chunked RAG: {error}. pip install 'sharedllm[eval]'") from error
    base, asked = _base(model), several_documents(data)
    if len(asked.documents) < 2:
        raise ConfigError(f"{data} is one document: a wrong context needs two or more.")
    questions, embedder = asked.sample(limit, seed), load_default_embedder()
    rag = ChunkedRAG(base, embedder, asked.documents)
    scores: dict[Way, list[float]] = {}
    sizes: dict[Way, list[int]] = {}
    with (
        SharedLLMContextStore(model, embedder=embedder) as store,
        SharedLLMContextStore(base, embedder=embedder) as plain,
        SharedLLMContextStore(model, embedder=embedder, config=StoreConfig(tree=PAPER_TREE)) as large,
    ):
        for one in store, plain, large:
            one.add([Document(text, id) for id, text in asked.documents.items()])
        for number, question in enumerate(with_progress(questions, "grains")):
            other = questions[(number + len(questions) // 2) % len(questions)]
            chunks = {
                RAG: rag.top(question.text, TOP_K),
                RAG_WITHIN: rag.within(rag.top(question.text, len(rag)), BUDGET),
            }
            shown: dict[Way, Shown] = {
                (MIXED, TRAINED): _mixed(large, question.text),
                (ELSEWHERE, TRAINED): _mixed(
                    large, other.text, [id for id in asked.documents if id != question.document]
                ),
                (OPENED, TRAINED): store.select(question.text, budget=BUDGET, coarse=_coarse(store)),
                (FINE, TRAINED): store.select(question.text, budget=BUDGET),
                (FINE, UNTRAINED): plain.select(question.text, budget=BUDGET),
                **{(way, weights): pasted(found) for way, found in chunks.items() for weights in (TRAINED, UNTRAINED)},
            }
            _score(scores, model, base, question, shown)
            for way, context in shown.items():
                size = context.kv_entries if isinstance(context, Selection) else rag.count_tokens(chunks[way[0]])
                sizes.setdefault(way, []).append(size)
    mixed, chunked = (MIXED, TRAINED), (RAG, TRAINED)
    opened, fine = (OPENED, TRAINED), (FINE, TRAINED)
    within = (RAG_WITHIN, TRAINED)
    pairs = [(first, rags) for first in (mixed, opened, fine) for rags in (chunked, within)]
    pairs += [(mixed, (ELSEWHERE, TRAINED))]
    pairs += [(opened, fine), (fine, (FINE, UNTRAINED))]
    return Report(
        "grains",
        _setting(model, asked, questions),
        [
            Table(
                f"A selection under {BUDGET} KV entries, negative log-likelihood of the gold answer, nats per token",
                ("context", "model", "mean NLL", "entries or tokens shown"),
                [(*way, fmean(nll), fmean(sizes[way])) for way, nll in scores.items()],
                keys=2,
            ),
            _differences(scores, pairs),
        ],
        [Target(f"{MIXED}, against {rags[0]}, both with the adapter", fmean(scores[mixed]), "<=", fmean(scores[rags]))
         for rags in (chunked, within)],
    )  # fmt: skip


def _base(model: SharedLLMModel) -> SharedLLMModel:
    """The same model without its adapter."""
    if model.adapter() is None:
        raise ConfigError("adapter=None: what an adapter carries is measured; name one (--adapter), such as factoid.")
    return SharedLLMModel.from_pretrained(model.name, adapter=None, dtype=model.dtype)


def _setting(model: SharedLLMModel, asked: QuestionSet, questions: Sequence[Question]) -> dict[str, Cell]:
    adapter = model.adapter()
    return {
        **model_setting(model),
        "tokens it saw": adapter.config.tokens_seen,
        "documents": len(asked.documents),
        "questions": len(questions),
        "left out": asked.left_out_text,
    }


def _differences(scores: Mapping[Way, Sequence[float]], pairs: Sequence[tuple[Way, Way]]) -> Table:
    rows = []
    for first, second in pairs:
        found = paired_difference(scores[first], scores[second])
        rows.append((", ".join(first), ", ".join(second), found.mean, found.low, found.high))
    return Table(
        "Differences, 95% interval over questions (below zero: the first is better)",
        ("first", "minus", "difference", "from", "to"),
        rows,
        keys=2,
    )


def _passage(asked: QuestionSet, question: Question) -> str:
    return asked.documents[question.document][question.passage.start : question.passage.end]


def _tokens(model: SharedLLMModel, text: str) -> torch.Tensor:
    return torch.from_numpy(model.tokenize(text).ids.astype("int64"))


def _wrong(model: SharedLLMModel, asked: QuestionSet, question: Question, wanted: int) -> torch.Tensor:
    """So many tokens of passages of other questions, of those far from this one in the file first."""
    count, own = len(asked.questions), _passage(asked, question)
    begin = asked.questions.index(question) + count // 2
    far = dict.fromkeys(_passage(asked, asked.questions[(begin + step) % count]) for step in range(count))
    behind = torch.zeros(0, dtype=torch.long)
    for text in far:
        if text != own and len(behind) < wanted:
            behind = torch.cat([behind, _tokens(model, text)])
    if len(behind) < wanted:
        raise ConfigError(
            f"A wrong passage for {question.text!r} needs {wanted} tokens, and all others have {len(behind)}: add "
            "questions about other passages."
        )
    return behind[:wanted]


def _mixed(store: SharedLLMContextStore, question: str, doc_ids: list[str] | None = None) -> Selection:
    """The best leaf whole and the rest of its chunk coarsely: a floor of 1 opens nothing but the best."""
    return store.select(question, budget=BUDGET, coarse=_coarse(store), fine=1, floor=1.0, doc_ids=doc_ids)


def _coarse(store: SharedLLMContextStore) -> tuple[int, ...]:
    """The grains of nodes that are not opened, by level, root first."""
    tree = store.config.tree
    return tuple(NEAR if tree.chunk_size >> level <= NEAR_TOKENS else FAR for level in range(tree.height + 1))


def _score(
    scores: dict[Way, list[float]],
    model: SharedLLMModel,
    base: SharedLLMModel,
    question: Question,
    shown: dict[Way, Shown],
) -> None:
    for way, context in shown.items():
        answering = model if way[1] == TRAINED else base
        scores.setdefault(way, []).append(answering.score(question.text, question.answers[0], context=context))
