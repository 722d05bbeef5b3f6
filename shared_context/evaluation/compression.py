"""Compression: what coarse grains carry, with an adapter and without, next to controls that tell it from style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from shared_context import Document, Selection, SharedLLMContextStore, SharedLLMModel
from shared_context.config import Rows, StoreConfig, TreeConfig
from shared_context.errors import ConfigError
from shared_context.evaluation.answers import several_documents
from shared_context.evaluation.ledger import Ledger, reader_identity
from shared_context.evaluation.metrics import paired_difference
from shared_context.evaluation.questions import Question, QuestionSet
from shared_context.evaluation.report import Cell, Report, Table, Target, model_setting
from shared_context.kernels import ChunkKV
from shared_context.model.context import CoarseKV, ContextKV
from shared_context.progress import with_progress
from shared_context.store.embedder import load_default_embedder
from shared_context.store.encoding import kept_rows
from shared_context.tree import kv_entries, node_rows

TOP_K = 4
"""Chunks of chunked RAG, 256 tokens each at most."""

RATIO = 8
RATIOS = (1, 4, 8, 16)
BUDGET = 512
NEAR_TOKENS = 128
NEAR, FAR = 8, 16
"""Grains of nodes that are not opened: of those of NEAR_TOKENS or fewer, beside opened leaves, and of larger ones."""
PAPER_TREE = TreeConfig(height=3)
"""Of the height that the paper gives its trees."""

WANTED_GAIN = 2.0
"""Nats per token that the right passage must gain over a wrong one of the same length, at ratio 8."""

TRAINED, UNTRAINED = "with the adapter", "untrained"

ALLOWED = {UNTRAINED: {4: 0.05, 8: 0.15, 16: 0.8}, TRAINED: {8: 0.15, 16: 0.5}}
"""Nats per token that a ratio may lose against the whole passage."""

Way = tuple[str, str]
"""What is shown, and to which model."""

NONE, TEXT, WRONG = "none", "gold paragraph as text", f"a wrong passage, injected at ratio {RATIO}"
STRIDE = f"gold paragraph, injected at ratio {RATIO}, every {RATIO}th row of all heads"
PROBED = f"gold paragraph, injected at ratio {RATIO}, rows by the probe"
SQUEEZED = f"gold paragraph, injected at ratio {RATIO}, squeezed to as many positions as entries"
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
        kv: its encoding; with importance, unless rows are chosen by stride.
        ids: its tokens.
        ratio: the grain.
        rows: which rows the grain keeps.
        squeezed: whether it takes as many positions as entries, and not as many as tokens; of rows by importance.
    """

    def __init__(
        self, kv: ChunkKV, ids: torch.Tensor, ratio: int, rows: Rows = "importance", *, squeezed: bool = False
    ):
        self._kv, self._ids, self._ratio, self._squeezed = kv, ids, ratio, squeezed
        even = ratio == 1 or rows == "stride"
        self._rows = torch.tensor(list(node_rows(0, len(ids), ratio if even else None)), dtype=torch.int64)

    @property
    def kv_entries(self) -> int:
        return kv_entries(len(self._ids), self._ratio)

    def key_values(self, room: int | None = None) -> ContextKV:
        if len(self._rows):
            return ContextKV([self._kv], [self._rows], self._ids[self._rows])
        coarse = self._kv.ragged(kept_rows(self._kv, [(0, len(self._ids), self._ratio)]))
        rows, tokens = coarse.tokens.long(), len(self._ids)
        extent = self.kv_entries if self._squeezed else tokens
        parts = [CoarseKV(coarse, rows * extent // tokens, rows)]
        return ContextKV([None], [self._rows], self._ids[:0], coarse=parts, extent=extent)


Shown = Passage | Selection | str | None


def measure_passages(
    model: SharedLLMModel,
    data: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
) -> Report:
    """Mean negative log-likelihood (nats per token) of the gold answer over the gold paragraph alone.

    At every grain, rows chosen by importance, next to a wrong passage of as many tokens, to rows chosen by stride, to
    no context, and to the paragraph as text: of the model without an adapter, and with its own where it has one.

    Args:
        model: with an adapter or without.
        data: questions; every article is one document.
        limit: only so many questions, drawn at random.
        seed: of the drawing.
        resume: a file that keeps results as they come and from which a run that was stopped goes on.

    Raises:
        ConfigError: all other passages together are too short for a wrong one.
    """
    asked = several_documents(data)
    readers = {UNTRAINED: model} if model.adapter() is None else {UNTRAINED: _base(model), TRAINED: model}
    questions = asked.drawn(limit, seed)

    def compute(keys: list[str]) -> Iterator[list[list[str | float]]]:
        for question in map(asked.by_key, keys):
            scored: list[list[str | float]] = []
            for weights, reader in readers.items():
                shown = _shown(reader, asked, question)
                # The same ones of both models, for a batch's size decides how its products are rounded.
                together = [way for way, context in shown.items() if isinstance(context, Passage) and way != PROBED]
                for ways in (together, *([way] for way in shown if way not in together)):
                    same = [question.text] * len(ways), [question.answers[0]] * len(ways)
                    found = reader.nll(*same, context=[shown[way] for way in ways])
                    scored += [[way, weights, nll] for way, nll in zip(ways, found, strict=True)]
            yield scored

    settings = {"measurement": "passages", "data": asked.identity, "model": reader_identity(model)}
    results = Ledger(resume, settings).results([asked.key(q) for q in questions], compute, what="passages")
    scores: dict[Way, list[float]] = {}
    for result in results:
        for way, weights, nll in result:
            scores.setdefault((way, weights), []).append(nll)
    pairs, targets = [], []
    for weights in readers:
        whole, text = (injected(1), weights), (TEXT, UNTRAINED)
        for ratio, allowed in ALLOWED[weights].items():
            pairs.append(((injected(ratio), weights), whole))
            loss = fmean(scores[injected(ratio), weights]) - fmean(scores[whole])
            targets.append(Target(f"loss at ratio {ratio}, {weights}", loss, "<=", allowed))
        right, wrong = (injected(RATIO), weights), (WRONG, weights)
        pairs += [(right, wrong), (right, (STRIDE, weights)), (right, text), ((SQUEEZED, weights), right)]
        if (PROBED, weights) in scores:
            pairs.append(((PROBED, weights), right))
        gain = fmean(scores[wrong]) - fmean(scores[right])
        targets.append(Target(f"wrong minus right passage at ratio {RATIO}, {weights}", gain, ">=", WANTED_GAIN))
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
            _differences(scores, pairs),
        ],
        targets,
    )


def _shown(reader: SharedLLMModel, asked: QuestionSet, question: Question) -> dict[str, Shown]:
    """The gold paragraph at every grain, and its controls."""
    text = _passage(asked, question)
    own = _tokens(reader, text)
    other = _wrong(reader, asked, question, len(own))
    encodings = reader.compressor.encode([own, other])
    scored = reader.compressor.importance([own, other], encodings)
    kv, wrong_kv = (replace(e, importance=scores) for e, scores in zip(encodings, scored, strict=True))
    probed = {}
    if reader.has_probe:
        (guessed,) = reader.importance_scorer("probe").score([own], [kv], 0)
        probed = {PROBED: Passage(replace(kv, importance=guessed), own, RATIO)}
    return {
        NONE: None,
        TEXT: text,
        **{injected(ratio): Passage(kv, own, ratio) for ratio in RATIOS},
        **probed,
        SQUEEZED: Passage(kv, own, RATIO, squeezed=True),
        STRIDE: Passage(kv, own, RATIO, "stride"),
        WRONG: Passage(wrong_kv, other, RATIO),
    }


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
    return SharedLLMModel.from_pretrained(model.name, adapter=None, dtype=model.dtype, device=str(model.device))


def _setting(model: SharedLLMModel, asked: QuestionSet, questions: Sequence[Question]) -> dict[str, Cell]:
    return {
        **model_setting(model),
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
        scores.setdefault(way, []).append(answering.nll(question.text, question.answers[0], context=context))
