"""Every setting of the library, validated, with its unit.

Settings are frozen dataclasses: a wrong value is refused where it is written down, and two configurations can be
compared with ``==``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, get_args

from shared_context.errors import ConfigError, SharedContextError

Policy = Literal["hybrid", "late_interaction", "embedding", "lexical", "last_token"]
Search = Literal["best_first", "split_and_search"]
InjectionKind = Literal["prefix", "cross_attention"]
Rows = Literal["importance", "stride"]
"""Which rows of a node a coarse grain keeps: the most important over all heads and layers together, other ones in every
head; or every ratio-th, the same in all heads (arXiv 2603.04759)."""

ImportanceMethod = Literal["repetition", "probe"]
"""How the importance of rows is known: from a repetition of the chunk, or guessed from its keys and values."""

MIB = 1024**2
GIB = 1024**3


def require(condition: bool, setting: str, value: object, mend: str) -> None:
    """Raise ConfigError for ``setting`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{setting}={value!r}: {mend}")


def require_count(setting: str, value: object, unit: str, error: type[SharedContextError] = ConfigError) -> None:
    """Raise ``error`` for ``setting`` unless it is a whole number of ``unit``, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise error(f"{setting}={value!r}: must be a whole number of {unit}, 1 or more.")


def _to_plain_numbers(settings: object) -> None:
    """Make numbers of NumPy's types Python's own: a store keeps its settings as JSON."""
    for each in fields(settings):  # type: ignore[arg-type]  # all of them are dataclasses
        value = getattr(settings, each.name)
        if isinstance(value, Integral) and not isinstance(value, int):
            object.__setattr__(settings, each.name, int(value))
        elif isinstance(value, Real) and not isinstance(value, int | float):
            object.__setattr__(settings, each.name, float(value))


def one_of(setting: str, value: object, allowed: Any) -> None:
    """Raise ConfigError unless ``value`` is one of a Literal's words."""
    names = get_args(allowed)
    require(value in names, setting, value, f"must be one of {', '.join(names)}")


LEAF_TOKENS = 32
"""Tokens of a leaf by default: larger ones show more than a question needs, of smaller ones too little is known."""

DEFAULT_BUDGET = 1024
"""KV entries of a selection where no budget is given."""

EMBEDDED_TOKENS = 128
"""Tokens that an embedder is shown at a time: fewer say too little of what they are about."""


@dataclass(frozen=True)
class TreeConfig:
    """The shape of a context tree and the grains at which its nodes are shown.

    Args:
        chunk_size: tokens per chunk, the root of one tree (the paper: 1,024 for language modelling, 512 for tuning).
        height: levels below the root; a leaf spans ``chunk_size / 2**height`` tokens. None is as many as leave it
            LEAF_TOKENS or more, which is 5 for the default chunk.
        coarse: for each level, root first, the ratio at which a node is shown that the search left unopened; None
            shows nothing of it, and None for all of them is the default. The paper's are :func:`paper_ratios`.
        fine: the ratio of an opened leaf.
        rows: which rows a grain above 1 keeps, "importance" or "stride"; None is what the model's adapter is served
            with, and importance without one.
    """

    chunk_size: int = 1024
    height: int = None  # type: ignore[assignment]  # a number once it is made
    coarse: tuple[int | None, ...] = None  # type: ignore[assignment]  # likewise, one for each level
    fine: int = 1
    rows: Rows | None = None

    def __post_init__(self) -> None:
        _to_plain_numbers(self)
        if self.rows is not None:
            one_of("rows", self.rows, Rows)
        if self.height is None:
            object.__setattr__(self, "height", max((self.chunk_size // LEAF_TOKENS).bit_length() - 1, 0))
        require(self.height >= 0, "height", self.height, "must be 0 or more levels")
        require(
            self.chunk_size >= 1 and self.chunk_size % 2**self.height == 0,
            "chunk_size",
            self.chunk_size,
            f"must be a positive multiple of 2**height = {2**self.height} tokens",
        )
        require(_is_ratio(self.fine), "fine", self.fine, "must be a whole ratio of 1 or more")
        coarse = self.coarse if self.coarse is not None else (None,) * (self.height + 1)
        require(isinstance(coarse, Sequence), "coarse", coarse, "must be a sequence of ratios, root first")
        require(
            len(coarse) == self.height + 1,
            "coarse",
            coarse,
            f"must give one ratio for each of the {self.height + 1} levels, root first",
        )
        whole = all(r is None or _is_ratio(r) for r in coarse)
        require(whole, "coarse", coarse, "ratios must be whole and 1 or more, or None")
        object.__setattr__(self, "coarse", tuple(None if r is None else int(r) for r in coarse))

    @property
    def leaf_size(self) -> int:
        """Tokens per leaf."""
        return self.chunk_size >> self.height

    @property
    def embedded_level(self) -> int:
        """Level of the nodes that are embedded: the highest one of no more than EMBEDDED_TOKENS tokens a node."""
        return _embedded_level(self.chunk_size, self.height)

    @property
    def embedded_leaves(self) -> int:
        """Leaves of a span that is embedded as one."""
        return 2 ** (self.height - self.embedded_level)


@cache  # every document of a store asks for it when the store is opened
def _embedded_level(chunk_size: int, height: int) -> int:
    return next((level for level in range(height) if chunk_size >> level <= EMBEDDED_TOKENS), height)


def _is_ratio(value: object) -> bool:
    return isinstance(value, Integral) and int(value) >= 1


def paper_ratios(height: int) -> tuple[int | None, ...]:
    """Ratios of the levels in arXiv 2603.04759: 4 at the leaves, doubled at each level above; the root is always split.

    A tree of height 3 has (None, 16, 8, 4), which keeps an eighth of a chunk; one of height 0 has (4,).
    """
    return (None, *(4 * 2**level for level in reversed(range(height)))) if height else (4,)


@dataclass(frozen=True)
class CacheConfig:
    """Limits of the KV cache.

    Args:
        memory_bytes: bytes of KV kept in memory, of all namespaces together; the least recently used chunk goes first.
        disk_bytes: bytes of KV kept in the store's folder, and by each namespace that ``limit_kv`` gave no other limit.
            0 keeps none; a store in memory never keeps any.
        quantize: keep KV as int8 with one scale per channel, half the size of bfloat16.
        finest: the finest ratio that is kept of a chunk: 1 keeps all rows, 4 the most important quarter of them.
            Asking for a finer grain computes the chunk again.
    """

    memory_bytes: int = GIB
    disk_bytes: int = 8 * GIB
    quantize: bool = False
    finest: int = 1

    def __post_init__(self) -> None:
        _to_plain_numbers(self)
        require(_is_ratio(self.finest), "finest", self.finest, "must be a whole ratio of 1 or more")
        require(self.memory_bytes >= 0, "memory_bytes", self.memory_bytes, "must be 0 or more bytes")
        require(self.disk_bytes >= 0, "disk_bytes", self.disk_bytes, "must be 0 or more bytes")


@dataclass(frozen=True)
class StoreConfig:
    """How a store splits, scores and bounds what it holds.

    Args:
        tree: shape and grains of the context trees. Fixed when a store is made.
        cache: limits of the KV cache. May differ each time a store is opened.
        code_size: dimensions of a token code; a code takes one byte per dimension and two for its scale.
        neighbour_weight: share of each neighbouring leaf's score that is added to a leaf's own, because an answer
            and what it is recognised by often lie on both sides of a leaf's edge. 0 scores every leaf alone.
        section_weight: share of the mean score of a leaf's section (as many tokens around it as the budget, at most
            512) that is added to its own before that: what a question is about is often said in a run of text, of
            which few leaves have the question's words. 0 leaves it out.
        floor: share of the best leaf's score, counted from the mean, below which no leaf but the best one's
            neighbours is opened although the budget would allow it; 1 opens the best alone. What a question does not
            need dilutes what it does.
        min_score: below this score of a node (0 to 1) it is not shown, so that a question about something else may be
            shown nothing; 0 leaves nothing out. With the default model and embedder, questions about a text and
            questions about something else part at about 0.35.
        lead_in: tokens of a document before a chunk that are read first when the chunk is encoded, and are not part of
            it: what lies across the edge of two chunks would otherwise be encoded without its beginning.
        importance: how it is known which rows a coarse grain keeps: "repetition" costs half as much again as two
            passes over a chunk; "probe" nothing to speak of, where one was fitted for the model, and its guesses may
            lose a little more.
        max_document_bytes: larger documents are refused (bytes of UTF-8).
    """

    tree: TreeConfig = field(default_factory=TreeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    code_size: int = 64
    neighbour_weight: float = 0.4
    section_weight: float = 1.0
    floor: float = 0.4
    min_score: float = 0.0
    lead_in: int = 64
    importance: ImportanceMethod = "repetition"
    max_document_bytes: int = 32 * MIB

    def __post_init__(self) -> None:
        _to_plain_numbers(self)
        require(self.code_size >= 1, "code_size", self.code_size, "must be 1 or more dimensions")
        require(0 <= self.neighbour_weight <= 1, "neighbour_weight", self.neighbour_weight, "must lie between 0 and 1")
        require(0 <= self.section_weight <= 4, "section_weight", self.section_weight, "must lie between 0 and 4")
        floor = isinstance(self.floor, Real) and 0 <= self.floor <= 1
        require(floor, "floor", self.floor, "must lie between 0 and 1")
        least = isinstance(self.min_score, Real) and 0 <= self.min_score <= 1
        require(least, "min_score", self.min_score, "must lie between 0 and 1")
        one_of("importance", self.importance, ImportanceMethod)
        require(self.lead_in >= 0, "lead_in", self.lead_in, "must be 0 or more tokens")
        require(self.max_document_bytes >= 1, "max_document_bytes", self.max_document_bytes, "must be 1 byte or more")

    def fixed(self) -> dict[str, Any]:
        """The settings that stored data depends on, as JSON values."""
        return {"chunk_size": self.tree.chunk_size, "height": self.tree.height, "code_size": self.code_size}
