"""The settings of the endpoint."""

from __future__ import annotations

from dataclasses import dataclass

from shared_context.config import MIB, require, require_count


@dataclass(frozen=True)
class ServeConfig:
    """How many are served at a time, and how much each may ask for.

    Args:
        parallel: answers that are written at a time, a token of each in turn.
        queue: requests that may wait for that; further ones are refused with 429.
        budget: KV entries of a selection where a request names none.
        max_tokens: tokens of an answer where a request names no limit.
        max_body_bytes: of a request's JSON; larger ones are refused with 413.
        max_upload_bytes: of an uploaded file.
        engine_timeout: seconds for which an engine beside may be silent.
    """

    parallel: int = 4
    queue: int = 64
    budget: int = 1024
    max_tokens: int = 256
    max_body_bytes: int = 8 * MIB
    max_upload_bytes: int = 64 * MIB
    engine_timeout: float = 60.0

    def __post_init__(self) -> None:
        require_count("parallel", self.parallel, "answers")
        require(isinstance(self.queue, int) and self.queue >= 0, "queue", self.queue, "must be 0 or more requests")
        require_count("budget", self.budget, "KV entries")
        require_count("max_tokens", self.max_tokens, "tokens")
        require_count("max_body_bytes", self.max_body_bytes, "bytes")
        require_count("max_upload_bytes", self.max_upload_bytes, "bytes")
        require(self.engine_timeout > 0, "engine_timeout", self.engine_timeout, "must be seconds above 0")
