"""Control tokens in prompts: the chat template writes them, and no text can."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase


class ControlTokens:
    """A tokenizer's control tokens: its special ones, and others that the chat template writes to part turns.

    Args:
        tokenizer: the model's.

    Attributes:
        nonce: what marks in rendered prompts begin with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        # Unguessable, so that no text holds it, and of letters and digits, so that no template touches it.
        self.nonce = secrets.token_hex(16)
        self._normalized = False
        self._words: dict[str, int] = {}
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self._take({id: token for id, token in added.items() if token.special})

    def add_written(self, skeleton: str) -> None:
        """Count added tokens that the template writes around turns among the control tokens, special or not.

        Args:
            skeleton: what it writes.
        """
        template = self._tokenizer.get_chat_template() if self._tokenizer.chat_template is not None else ""
        added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder()
        written = {id: token for id, token in added.items() if token.content in skeleton}
        self._take({id: token for id, token in written.items() if not _parsed(token.content, template)})

    def _take(self, tokens: Mapping[int, AddedToken]) -> None:
        self._words |= {token.content: id for id, token in tokens.items()}
        self._normalized = self._normalized or any(token.normalized for token in tokens.values())
        longest_first = sorted(self._words, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def hide(self, value: Any, hidden: list[str]) -> Any:
        """A value with a mark in the place of every control word in it, however deep.

        Args:
            value: a text, or a list or mapping with texts in it.
            hidden: the words are put into it; their numbers are in the marks.
        """
        if isinstance(value, str):
            pieces, at = [], 0
            for start, end in self._spans(value):
                pieces += [value[at:start], f"{self.nonce}t{len(hidden)}e"]
                hidden.append(value[start:end])
                at = end
            return "".join([*pieces, value[at:]])
        if isinstance(value, Mapping):
            return {key: self.hide(inner, hidden) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner, hidden) for inner in value]
        return value

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        core = self._tokenizer.backend_tokenizer
        if not self._normalized or core.normalizer is None:
            return [match.span() for match in self._pattern.finditer(text)]
        # What a normalizer makes of a text can be a control word, too; the tokenizer itself says where.
        found = core.encode(text, add_special_tokens=False)
        ids = set(self._words.values()) - {self._tokenizer.unk_token_id}
        return [span for id, span in zip(found.ids, found.offsets, strict=True) if id in ids]

    def ids(self, rendered: str, hidden: list[str]) -> tuple[int, ...]:
        """Token ids of a rendered prompt, in which marks are read as the words that they stand for, as plain text."""
        if self.nonce not in rendered:
            return tuple(self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])
        own = self._pattern.sub(lambda match: self._secret(match[0]), rendered)
        text = re.sub(f"{self.nonce}t(\\d+)e", lambda match: hidden[int(match[1])], own)
        core, real = self._renamed
        return tuple(real.get(id, id) for id in core.encode(text, add_special_tokens=False).ids)

    def first(self, text: str) -> int | None:
        """The first control token in a text that a template wrote; None where there is none."""
        match = self._pattern.search(text)
        return self._words[match[0]] if match else None

    def _secret(self, word: str) -> str:
        return f"{self.nonce}c{self._words[word]}e"

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer that knows its control tokens by secret names; and real ids by those of the copy."""
        data = json.loads(self._tokenizer.backend_tokenizer.to_str())
        data["post_processor"] = data["truncation"] = data["padding"] = None
        names: dict[str, int] = {}
        for token in data["added_tokens"]:
            if token["content"] in self._words:
                token["content"] = self._secret(token["content"])
            names[token["content"]] = token["id"]
        core = Tokenizer.from_str(json.dumps(data))
        return core, {number: id for name, id in names.items() if (number := core.token_to_id(name)) is not None}


def _parsed(word: str, template: str) -> bool:
    """Whether a template looks for a word in messages, as for the tags around reasoning, and so must see it."""
    quoted = rf"['\"]{re.escape(word)}['\"]"
    return re.search(rf"split\(\s*{quoted}|{quoted}\s+(not\s+)?in\s", template) is not None
