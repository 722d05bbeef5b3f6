"""The log: one JSON object a line, on stderr, with request ids and without anybody's text."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any


class JsonLines(logging.Formatter):
    """Records as lines of JSON. Of an exception its class and places are told; what it says may be somebody's text."""

    def format(self, record: logging.LogRecord) -> str:
        when, said = self.formatTime(record), record.getMessage()
        line: dict[str, Any] = {"time": when, "level": record.levelname, "event": said}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["failure"] = failure(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


def failure(error: BaseException) -> list[str]:
    """An exception's class, and where it came from."""
    return [type(error).__qualname__, *traceback.format_tb(error.__traceback__)]


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
"""Of Python's ``logging.config``, for uvicorn and this library alike."""
