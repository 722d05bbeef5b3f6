"""What a training batch is shown of its contexts: chunks, and for each example the rows of a cut drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from shared_context.config import Rows, one_of, require
from shared_context.training.examples import Example
from shared_context.tree import ContextTree, node_rows

Span = tuple[int, int, int]
"""First row of a chunk, the one behind the last, and the ratio that it is shown at."""


@dataclass(frozen=True)
class CutConfig:
    """How cuts are drawn.

    Args:
        ratios: how often each grain is drawn, relative to the others.
        chunk_size: tokens per chunk at most; a longer context is several chunks.
        mixed: share of contexts shown at several grains, the leaves of a tree of ``height`` each with its own.
        height: levels of that tree below its root.
        split_noise: standard deviation of its split points as a share of the span (arXiv 2603.04759: 1/10).
        packed: share of batches whose contexts stand in one chunk, as the passages of a document do.
        distractors: share of examples that are shown contexts of others in the batch too, at the coarser grains.
        rows: which rows grains above 1 keep.
    """

    ratios: Mapping[int, float]
    chunk_size: int = 1024
    mixed: float = 0.2
    height: int = 2
    split_noise: float = 0.1
    packed: float = 0.4
    distractors: float = 0.4
    rows: Rows = "stride"

    def __post_init__(self) -> None:
        one_of("rows", self.rows, Rows)
        require(
            bool(self.ratios) and all(r >= 1 and weight > 0 for r, weight in self.ratios.items()),
            "ratios",
            dict(self.ratios),
            "must be ratios of 1 or more, each with a weight above 0",
        )
        require(self.chunk_size >= 1, "chunk_size", self.chunk_size, "must be 1 or more tokens")
        require(self.height >= 0, "height", self.height, "must be 0 or more levels")
        require(0 <= self.split_noise < 1, "split_noise", self.split_noise, "must lie between 0 and 1")
        for share in ("mixed", "packed", "distractors"):
            require(0 <= getattr(self, share) <= 1, share, getattr(self, share), "must be a share between 0 and 1")


@dataclass(frozen=True)
class Layout:
    """What a batch is shown.

    Attributes:
        chunks: token ids of each chunk, each encoded once.
        shown: for each example, in the order in which it reads them, pieces of chunks: number of the chunk and rows.
        own: for each example every row of its own context and no other.
        coarse: for each of those pieces the spans of which heads are shown the most important rows only; none of any
            where all heads are shown all rows.
    """

    chunks: list[list[int]]
    shown: list[list[tuple[int, list[int]]]]
    own: list[list[tuple[int, list[int]]]]
    coarse: list[list[list[Span]]] = field(default_factory=list)

    @property
    def chosen_by_importance(self) -> bool:
        """Whether any head is shown other rows than another."""
        return any(spans for pieces in self.coarse for spans in pieces)

    @property
    def in_full(self) -> Layout:
        """The same chunks, every example shown its own context at ratio 1."""
        return Layout(self.chunks, self.own, self.own)


Places = dict[tuple[int, ...], list[tuple[int, int, int]]]
"""Where contexts stand: numbers of chunks, each with the first row and the one behind the last."""


class LayoutMaker:
    """Lays out batches.

    Args:
        config: how cuts are drawn.
        separator: token ids between the contexts of a packed chunk.
    """

    def __init__(self, config: CutConfig, separator: Sequence[int]):
        self.config = config
        self._separator = list(separator)

    def fixed(self, examples: Sequence[Example], ratio: int) -> Layout:
        """Every example is shown its own context and nothing else, all of it at one grain."""
        chunks, places = self._apart([e.context for e in examples])
        cuts = {
            context: [(chunk, self._spans(start, end, [ratio])) for chunk, start, end in pieces]
            for context, pieces in places.items()
        }
        return self._layout(chunks, [cuts[e.context] for e in examples], _every_row(examples, places))

    def draw(self, examples: Sequence[Example], rng: Random) -> Layout:
        """A layout drawn at random."""
        config, contexts = self.config, [e.context for e in examples]
        together = sum(map(len, set(contexts))) + len(self._separator) * len(contexts) <= config.chunk_size
        packed = together and rng.random() < config.packed
        chunks, places = self._packed(contexts, rng) if packed else self._apart(contexts)
        shown = []
        for context in contexts:
            own = [(chunk, self._cut(start, end, rng)) for chunk, start, end in places[context]]
            others = list(places.keys() - {context})
            pieces = []
            if others and rng.random() < config.distractors:
                others.sort()
                for other in rng.sample(others, rng.randint(1, len(others))):
                    ratio = self._ratio(rng, coarsest=True)
                    pieces += [(chunk, self._spans(start, end, [ratio])) for chunk, start, end in places[other]]
            # the most promising passage stands last in a selection, and what promises most is not always right
            at = len(pieces) if rng.random() < 0.5 else rng.randint(0, len(pieces))
            shown.append(pieces[:at] + own + pieces[at:])
        return self._layout(chunks, shown, _every_row(examples, places))

    def _layout(
        self,
        chunks: list[list[int]],
        cuts: Sequence[Sequence[tuple[int, list[Span]]]],
        own: list[list[tuple[int, list[int]]]],
    ) -> Layout:
        """From the spans that each example is shown of each piece."""
        if self.config.rows == "stride":
            shown = [[(n, [row for span in spans for row in node_rows(*span)]) for n, spans in cut] for cut in cuts]
            return Layout(chunks, shown, own)
        shown = [[(n, list(range(spans[0][0], spans[-1][1]))) for n, spans in cut] for cut in cuts]
        return Layout(chunks, shown, own, [[[s for s in spans if s[2] > 1] for _, spans in cut] for cut in cuts])

    def _apart(self, contexts: Sequence[tuple[int, ...]]) -> tuple[list[list[int]], Places]:
        chunks: list[list[int]] = []
        places: Places = {}
        for context in dict.fromkeys(contexts):
            size = self.config.chunk_size
            pieces = [list(context[start : start + size]) for start in range(0, len(context), size)]
            places[context] = [(len(chunks) + n, 0, len(piece)) for n, piece in enumerate(pieces)]
            chunks += pieces
        return chunks, places

    def _packed(self, contexts: Sequence[tuple[int, ...]], rng: Random) -> tuple[list[list[int]], Places]:
        chunk: list[int] = []
        places: Places = {}
        order = list(dict.fromkeys(contexts))
        rng.shuffle(order)
        for context in order:
            chunk += self._separator if chunk else []
            places[context] = [(0, len(chunk), len(chunk) + len(context))]
            chunk += context
        return [chunk], places

    def _cut(self, start: int, end: int, rng: Random) -> list[Span]:
        if rng.random() >= self.config.mixed:
            return self._spans(start, end, [self._ratio(rng)])
        tree = ContextTree.noisy(end - start, self.config.height, self.config.split_noise, rng)
        return self._spans(start, end, [self._ratio(rng) for _ in tree.level(tree.height)], tree)

    def _spans(self, start: int, end: int, ratios: Sequence[int], tree: ContextTree | None = None) -> list[Span]:
        """The leaves of a tree over some rows of a chunk, each with its ratio."""
        tree = tree or ContextTree((0, end - start))
        bounds = (tree.span(node) for node in tree.level(tree.height))
        return [(start + first, start + last, r) for (first, last), r in zip(bounds, ratios, strict=True)]

    def _ratio(self, rng: Random, *, coarsest: bool = False) -> int:
        ratios = sorted(self.config.ratios)
        if coarsest:
            return rng.choice(ratios[-2:])
        return rng.choices(ratios, [self.config.ratios[r] for r in ratios])[0]


def _every_row(examples: Sequence[Example], places: Places) -> list[list[tuple[int, list[int]]]]:
    return [[(chunk, list(range(start, end))) for chunk, start, end in places[e.context]] for e in examples]
