"""What shards were made with, which must be the same for all of a store."""

from __future__ import annotations

from collections.abc import Mapping

from shared_context.errors import StoreFormatError
from shared_context.store.about import About

Made = tuple[bytes, bytes, bytes]
"""What a shard says of itself: its description, its codec and the salt of its chunks."""


def made_together(made: Mapping[int, Made], place: object) -> Made:
    """What all shards were made with; the first one's, where only limits of the cache differ.

    Args:
        made: by number of the shard.
        place: of the store, for the error.

    Raises:
        StoreFormatError: some were made with something else.
    """
    first = next(iter(made.values()))
    apart = [number for number, each in made.items() if not _same(each, first)]
    if apart:
        raise StoreFormatError(
            f"{place}: the shards {apart} were not made together with the first, so their scores do not compare. "
            "Ingest their documents into one store."
        )
    return first


def _same(one: Made, other: Made) -> bool:
    fixed = [(about.fingerprint, about.embedder, about.config.fixed()) for about in map(_about, (one, other))]
    return fixed[0] == fixed[1] and one[1:] == other[1:]


def _about(made: Made) -> About:
    return About.from_bytes(made[0])
