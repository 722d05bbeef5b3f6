"""Figures of the running server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared_context.errors import SharedContextError
from shared_context.model.generation import Completion
from shared_context.serve.engine import Engine
from shared_context.serve.stores import Stores

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what is asked and answered.

    Args:
        engine: whose queue is shown.
        stores: whose caches are shown.
    """

    def __init__(self, engine: Engine, stores: Stores):
        self._registry = CollectorRegistry()
        names: dict[str, Any] = {"registry": self._registry, "namespace": "shared_context"}
        self._requests = Counter("requests", "Requests by route and status.", ["route", "status"], **names)
        self._tokens = Counter(
            "tokens", "Tokens: prompt are read as text, injected come as keys and values.", ["store", "kind"], **names
        )
        self._seconds = {
            "selection": Histogram("selection_seconds", "Time to choose what is shown.", buckets=_SECONDS, **names),
            "first_token": Histogram(
                "first_token_seconds", "Time from the request to its first token.", buckets=_SECONDS, **names
            ),
            "answer": Histogram(
                "answer_seconds", "Time from the request to its last token.", buckets=_SECONDS, **names
            ),
        }
        self._registry.register(_Now(engine, stores))
        ProcessCollector(registry=self._registry)  # memory and processor time, where the system tells

    def request(self, route: str, status: int) -> None:
        """Count a request that was answered, however."""
        self._requests.labels(route, str(status)).inc()

    def answer(self, store: str, completion: Completion, seconds: dict[str, float]) -> None:
        """Count an answer: its tokens, and its times by the names above."""
        for kind in ("prompt", "injected", "completion"):
            count = completion.context_entries if kind == "injected" else getattr(completion, f"{kind}_tokens")
            self._tokens.labels(store, kind).inc(count)
        for name, value in seconds.items():
            self._seconds[name].observe(value)

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        return generate_latest(self._registry)


class _Now(Collector):
    """What is read when it is asked for."""

    def __init__(self, engine: Engine, stores: Stores):
        self._engine, self._stores = engine, stores

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("shared_context_running", "Requests that are worked on.", self._engine.running)
        yield GaugeMetricFamily("shared_context_waiting", "Requests that wait.", self._engine.waiting)
        families = {
            name: GaugeMetricFamily(f"shared_context_kv_cache_{name}", text, labels=["store", "tier"])
            for name, text in {
                "bytes": "Bytes of keys and values that are kept.",
                "hits": "Chunks that were found, since the start.",
                "misses": "Chunks that were not found, since the start.",
                "evictions": "Chunks that had to go, since the start.",
            }.items()
        }
        for served in self._stores:
            try:
                tiers = served.store.stats()["kv_cache"]
            except SharedContextError:  # the others' figures are wanted all the same
                continue
            for tier, figures in tiers.items():
                for name, family in families.items():
                    family.add_metric([served.name, tier], figures[name])
        yield from families.values()
