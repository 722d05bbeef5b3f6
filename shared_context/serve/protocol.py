"""The requests of OpenAI's protocol, as far as they are served, and the fields that it has no word for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared_context.config import Policy

TURN_PARTS = "\n\n"
"""Between the text parts of one message."""


class Fields(BaseModel):
    """A JSON object whose fields are those named, of just these types."""

    # Texts are looked into, and lone surrogates refused, only where there is something to check; no body is so long.
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), str_max_length=1 << 30)


class ContextFields(Fields):
    """What OpenAI's protocol has no word for; clients send it as ``extra_body``.

    Attributes:
        budget: KV entries of the selection at most.
        ratio: everything that may be considered at this one grain; goes with no budget.
        fine: tokens for each KV entry of what is shown.
        policy: how nodes are scored.
        filters: of metadata.
        doc_ids: only these documents.
        min_score: score below which nothing is shown.
        prefilter: only so many documents, the nearest by embedding.
        show_metadata: each document's metadata are shown in front of it.
        context: false answers without the store.
        citations: the passages that the answer leans on ("attention"), or all that were shown ("shown").
        seen: the answer tells which parts of documents were seen whole and which coarsely.
    """

    budget: Annotated[int, Field(ge=1)] | None = None
    ratio: Annotated[int, Field(ge=1)] | None = None
    fine: Annotated[int, Field(ge=1)] | None = None
    policy: Policy | None = None
    filters: dict[str, Any] | None = None
    doc_ids: list[str] | None = None
    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    prefilter: Annotated[int, Field(ge=1)] | None = None
    show_metadata: bool = False
    context: bool = True
    citations: Literal["attention", "shown"] | None = None
    seen: bool = False

    @model_validator(mode="after")
    def one_limit(self) -> ContextFields:
        if self.ratio is not None and self.budget is not None:
            raise ValueError("ratio and budget exclude each other: give one of them")
        return self

    def selecting(self, budget: int) -> dict[str, Any]:
        """Arguments of the store's ``select``; ``budget`` is what is allowed where nothing is said."""
        named = ("fine", "policy", "filters", "doc_ids", "min_score", "prefilter", "show_metadata")
        options = {name: getattr(self, name) for name in named}
        if self.ratio is not None:
            return {**options, "ratio": self.ratio}
        return {**options, "budget": self.budget or budget}


def _none_asked(value: object) -> object:
    """Refuses a feature that is asked for; what stands for its absence passes."""
    if value in (None, False, 0, [], {}, "none", "text"):
        return None
    raise ValueError("is not served here; leave it out")


Absent = Annotated[None, BeforeValidator(_none_asked)]
"""A field that is known, for clients send it, and may ask for nothing."""


class StreamOptions(Fields):
    """Of a stream."""

    include_usage: bool | None = False
    include_obfuscation: bool | None = None


class Sampling(ContextFields):
    """What chat and text completions have in common."""

    model: str
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = 1
    frequency_penalty: Absent = None
    presence_penalty: Absent = None
    logit_bias: Absent = None
    user: str | None = None

    @model_validator(mode="after")
    def options_go_with_streams(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options go with stream: true only")
        return self

    def generation(self, max_tokens: int) -> dict[str, Any]:
        """Arguments of the model's ``stream``; ``max_tokens`` is the limit where none is given."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_tokens or max_tokens,
            "temperature": self.temperature or 0.0,
            "stop": self.stop,
        }
        given = {"top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
        return options | {name: value for name, value in given.items() if value is not None}


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text", "input_text"]
    text: str


class ChatMessage(BaseModel):
    """A message; of what other models said the text alone is read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def text_only(cls, content: object) -> object:
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if kind not in ("text", "input_text"):
                    raise ValueError(f"parts of type {str(kind)[:40]!r} are not read; give text")
        return content

    @model_validator(mode="after")
    def says_something(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    def turn(self) -> dict[str, str]:
        """The message as the library's models read it."""
        content = self.content or ""
        text = content if isinstance(content, str) else TURN_PARTS.join(part.text for part in content)
        return {"role": self.role, "content": text}


class JsonSchema(BaseModel):
    """A schema that the answer follows."""

    model_config = ConfigDict(populate_by_name=True, protected_namespaces=())

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_a_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema.schema is missing")
        return self


class ChatRequest(Sampling):
    """The body of ``/v1/chat/completions``.

    Attributes:
        conversation: goes on with the store's conversation of this id; ``messages`` holds what is new only.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    conversation: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    tools: Absent = None
    tool_choice: Absent | Literal["auto"] = None
    functions: Absent = None
    function_call: Absent = None
    logprobs: Absent = None
    top_logprobs: Absent = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def generation(self, max_tokens: int) -> dict[str, Any]:
        options = super().generation(self.max_completion_tokens or max_tokens)
        form = self.response_format
        if form is not None and form.type != "text":
            named = form.json_schema.schema_ if form.json_schema is not None else None
            options["response_schema"] = named or {"type": "object", "additionalProperties": True}
        return options


class CompletionRequest(Sampling):
    """The body of ``/v1/completions``.

    Attributes:
        prompt: what a user would say.
        formatted: the prompt is in the model's own format already, its control tokens with it.
    """

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    formatted: bool = False
    echo: Absent = None
    suffix: Absent = None
    logprobs: Absent = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = 1

    @property
    def text(self) -> str:
        """The one prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]
