"""Constrained decoding: answers that follow a JSON schema or a grammar, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from shared_context.errors import ConfigError
from shared_context.model.tokenization import check_text

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

JSON_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
}
"""JSON on one line, as models write it: where white space is free, a small model may go on with it for ever."""


def closed(schema: Any) -> Any:
    """The schema, in which an object that names its properties has no others unless it says so.

    JSON Schema allows any others where nothing is said, and a model that may invent a key often does. Parts of an
    ``allOf`` stay open, for each of them describes the same object.
    """
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        if isinstance(schema.get(key), Mapping):
            result[key] = {name: closed(part) for name, part in schema[key].items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(schema.get(key), Sequence):
            result[key] = [closed(part) for part in schema[key]]
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            result[key] = closed(schema[key])
    if "properties" in schema and not schema.keys() & {"additionalProperties", "patternProperties", "allOf"}:
        result["additionalProperties"] = False
    return result


def inline_json(schema: Mapping[str, Any]) -> str:
    """JSON that follows ``schema``, as an expression of a grammar."""
    return f"%json {json.dumps({**closed(schema), 'x-guidance': JSON_FORM})}"


class Constraint:
    """What answers must follow: a grammar, compiled for one model.

    Args:
        matcher: at the beginning of an answer.
    """

    def __init__(self, matcher: LLMatcher):
        self._matcher = matcher

    def processor(self) -> LogitsProcessor:
        """A logits processor for one generation, which keeps every row of a batch to the grammar."""
        return _Mask(self._matcher)


class ConstraintCompiler:
    """Compiles schemas and grammars for one model.

    Args:
        tokenizer: the model's, a fast one.
        vocabulary: tokens that the model gives logits for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._by_ends: dict[tuple[int, ...], LLTokenizer] = {}

    def compile(
        self, response_schema: Mapping[str, Any] | None, grammar: str | None, ends: int | Sequence[int]
    ) -> Constraint | None:
        """The constraint of a call; None where it has none.

        Args:
            response_schema, grammar: as in ``SharedLLMModel.complete``.
            ends: token ids that end an answer.

        Raises:
            ConfigError: both are given, or one of them is not what it should be or cannot be enforced; says why.
        """
        if response_schema is None and grammar is None:
            return None
        if response_schema is not None and grammar is not None:
            raise ConfigError("response_schema= and grammar= are both given; an answer follows one of them.")
        if grammar is not None:
            if not isinstance(grammar, str):
                raise ConfigError(f"grammar is a {type(grammar).__name__}; give a Lark grammar as text.")
            check_text("The grammar", grammar)
            return self._constraint("grammar", LLMatcher.grammar_from_lark(grammar), ends)
        if not isinstance(response_schema, Mapping):
            raise ConfigError(
                f"response_schema is a {type(response_schema).__name__}; give a JSON schema as a dict, for instance "
                "that of a Pydantic class by its model_json_schema()."
            )
        try:
            rules = LLMatcher.grammar_from_json_schema(json.dumps(closed(response_schema)), overrides=JSON_FORM)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"response_schema is no JSON schema: {error}") from error
        return self._constraint("response_schema", rules, ends)

    def _constraint(self, name: str, rules: str, ends: int | Sequence[int]) -> Constraint:
        matcher = LLMatcher(self._words(ends), rules, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip().splitlines()[0]
            raise ConfigError(f"{name} cannot be enforced: {reason}. Leave that part out of it.")
        return Constraint(matcher)

    def _words(self, ends: int | Sequence[int]) -> LLTokenizer:
        ends = (ends,) if isinstance(ends, int) else tuple(ends)
        if ends not in self._by_ends:  # it takes about a second for a vocabulary of 50,000
            self._by_ends[ends] = from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=list(ends))
        return self._by_ends[ends]


class _Mask(LogitsProcessor):
    """Leaves to each row the tokens that its grammar allows next."""

    def __init__(self, matcher: LLMatcher):
        self._start = matcher
        self._rows: list[LLMatcher] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            self._rows = [self._start.deep_copy() for _ in range(len(scores))]
        else:
            for matcher, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        masks = [np.frombuffer(matcher.compute_bitmask(), np.uint8) for matcher in self._rows]
        allowed = np.unpackbits(np.stack(masks), axis=1, bitorder="little")[:, : scores.shape[1]]
        return scores.masked_fill(torch.from_numpy(allowed == 0).to(scores.device), -torch.inf)
