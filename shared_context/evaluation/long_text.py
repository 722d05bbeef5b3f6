"""Text of any length, for what is measured by length alone."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from shared_context import SharedLLMModel
from shared_context.config import require
from shared_context.errors import DocumentError
from shared_context.evaluation.question_files import JSON_LINES, json_lines


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file of JSON lines with a ``text`` each (also ``.gz``), or the one text of any other file.

    Raises:
        DocumentError: the file is none of both.
    """
    path = Path(path)
    try:
        if path.name.endswith(JSON_LINES):
            return [row["text"] for row in json_lines(path)]
        return [path.read_text(encoding="utf-8")]
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError(
            f"{path} is neither UTF-8 text nor lines of JSON with a text each: {error!r}. Give one of both."
        ) from error


def repeat_to(model: SharedLLMModel, text: str, tokens: int) -> str:
    """A text of ``tokens`` tokens: the sections of a Markdown text, over and over, each under a heading of its own."""
    require(tokens >= 1, "tokens", tokens, "must be 1 or more")
    sections = [section.strip() for section in re.split(r"(?m)^(?=#)", text) if section.strip()]
    require(bool(sections), "text", text, "holds no word to repeat")
    parts, count = [], 0
    for number, section in enumerate(itertools.cycle(sections), start=1):
        parts.append(f"# Part {number}\n\n{section}\n\n")
        count += model.count_tokens(parts[-1])
        if count >= tokens:
            break
    whole = "".join(parts)
    # Tokens may join across parts, which leaves a few less than were counted; no figure hangs on them.
    tokenized = model.tokenize(whole)
    return whole[: tokenized.characters(0, min(tokens, len(tokenized)))[1]]
