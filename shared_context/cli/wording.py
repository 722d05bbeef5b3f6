"""The library's messages in the words of the command: options in the place of Python's arguments and calls."""

from __future__ import annotations

import re

_OPTIONS = (
    "budget|prefilter|policy|coarse|filters|max_new_tokens|chunk_size|adapter|dtype|device|model|k|metadata|resume"
)

_WORDS = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"ids\(\) lists the (\S+) known", r"`shared-context list` shows the \1 known"),
        (r"change it with update\(\) or add\(\.\.\., replace=True\)", "--replace updates it"),
        (r"; to store this text itself pass it (with id=, or )?as a Document", "; check the path"),
        (
            r"make the store with smaller chunks \(TreeConfig\(chunk_size=\.\.\.\)\)",
            "make the store with a smaller --chunk-size",
        ),
        (r", or raise max_document_bytes", ""),
        (r"Pass it with embedder=\.", "It can be used from Python only."),
        (r"open the store with embedder=None", "make the store with --no-embedder"),
        (r"; pass another with id=", "; rename the file"),
        (r"; leave it out to have one derived from the text", "; rename the file"),
        (rf"\b({_OPTIONS})=(?=[^\s])", lambda match: f"--{match[1].replace('_', '-')} "),
    )
]


def in_words_of_commands(message: str) -> str:
    """A message of the library as the command says it."""
    for pattern, words in _WORDS:
        message = pattern.sub(words, message)
    return message
