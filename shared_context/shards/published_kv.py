"""Keys and values of a published store of shards."""

from __future__ import annotations

from shared_context.remote.fetching import Checkout


class PublishedKV:
    """Keys and values that were published with any of the shards."""

    def __init__(self, checkout: Checkout):
        self._of_stores = checkout.kv

    def __contains__(self, key: object) -> bool:
        return any(key in published for published in self._of_stores)

    def read(self, key: str) -> bytes | None:
        """The file of a key; None where it cannot be had."""
        return next((published.read(key) for published in self._of_stores if key in published), None)
