"""A trace for each request, by OpenTelemetry's conventions for generative AI; next to nothing where nobody traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

Value = str | int | float | bool


class Tracing:
    """Makes the spans of requests. Texts are in none of them.

    Args:
        provider: of tracers; None is the process's own, which does nothing until somebody sets one up.
    """

    def __init__(self, provider: TracerProvider | None = None):
        self._tracer: Tracer = trace.get_tracer("shared_context.serve", tracer_provider=provider)

    @contextmanager
    def span(
        self, name: str, parent: Span | None = None, attributes: Mapping[str, Value] | None = None
    ) -> Iterator[Span]:
        """A span, below ``parent``. What fails within it is noted by the name of its class alone."""
        # Spans are handed on and never made current: an answer is worked on by several tasks and threads.
        context = trace.set_span_in_context(parent) if parent is not None else None
        kind = SpanKind.SERVER if parent is None else SpanKind.INTERNAL
        span = self._tracer.start_span(name, context=context, kind=kind, attributes=attributes)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            span.end()
