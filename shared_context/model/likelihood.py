"""How likely the model finds an answer, and what of the context it leans on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, overload

import torch

from shared_context.config import require
from shared_context.errors import QueryError
from shared_context.model.attribution import attention_paid
from shared_context.model.batching import batches
from shared_context.model.conversation import Message
from shared_context.model.decoder import InjectingDecoder
from shared_context.model.decoding import whole_number
from shared_context.model.prompt import Prompt
from shared_context.model.requests import Context, Request
from shared_context.model.stacked import StackedModel


def nll_batch(decoder: InjectingDecoder, requests: Sequence[Request], answers: Sequence[Sequence[int]]) -> list[float]:
    """Mean negative log-likelihood of each answer's tokens, behind the prompts of one batch."""
    # The last token of the prompt predicts the first of the answer.
    behind = [
        replace(request, prompt=Prompt(request.prompt.prefix, (*request.prompt.suffix, *answer[:-1])))
        for request, answer in zip(requests, answers, strict=True)
    ]
    logits = decoder.logits(behind, max(map(len, answers)))
    return [
        torch.nn.functional.cross_entropy(
            row[-len(answer) :].float(), torch.tensor(answer, device=logits.device)
        ).item()
        for row, answer in zip(logits, answers, strict=True)
    ]


class ShownNode(Protocol):
    """A node of a selection."""

    @property
    def kv_entries(self) -> int:
        """KV entries that are shown of it."""


class ContextOfNodes(Context, Protocol):
    """A context that says which nodes it shows, as a Selection does."""

    @property
    def nodes(self) -> Sequence[ShownNode]:
        """In the order in which they are injected."""


class LikelihoodModel(StackedModel):
    """A model that says how likely an answer is, and what it leans on."""

    @overload
    def nll(
        self,
        question: str | Sequence[Message],
        answer: str,
        *,
        context: Context | str | None = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        batch_size: int = ...,
    ) -> float: ...
    @overload
    def nll(
        self,
        question: Sequence,
        answer: Sequence[str],
        *,
        context: Context | str | Sequence[Context | str | None] | None = ...,
        chat_template_kwargs: Mapping[str, Any] | None = ...,
        batch_size: int = ...,
    ) -> list[float]: ...
    @torch.inference_mode()
    def nll(
        self,
        question: str | Sequence,
        answer: str | Sequence[str],
        *,
        context: Context | str | Sequence[Context | str | None] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 8,
    ) -> float | list[float]:
        """Mean negative log-likelihood of an answer, in nats per token.

        Args:
            question: as ``prompt`` of :meth:`complete`.
            answer: the text to judge; one for each question of a batch.
            context, chat_template_kwargs, batch_size: as in :meth:`complete`.

        Raises:
            WindowExceededError, QueryError: as :meth:`complete`.
        """
        require(isinstance(answer, Sequence), "answer", answer, "must be a text, or a list with one for each question")
        answers = [answer] if isinstance(answer, str) else list(answer)
        answer_ids = [self.tokenize(a).ids.tolist() for a in answers]
        if not all(answer_ids):
            raise QueryError("The answer is empty; give at least one token.")
        new_tokens = [len(ids) for ids in answer_ids]
        single, requests = self._requests.read(
            question, context, False, new_tokens, self.identity, chat_template_kwargs
        )
        batch_size = whole_number("batch_size", batch_size, "prompts")
        nlls: dict[int, float] = {}
        for batch in batches(requests, batch_size, new_tokens, self.context_window, self.injection.in_cache):
            found = nll_batch(self._decoder, [requests[i] for i in batch], [answer_ids[i] for i in batch])
            nlls |= zip(batch, found, strict=True)
        return nlls[0] if single else [nlls[i] for i in range(len(requests))]

    def score(self, *args: Any, **kwargs: Any) -> Any:
        """The former name of :meth:`nll`, which a score of leaves must not be confused with."""
        warnings.warn(
            "SharedLLMModel.score() is called nll(); the old name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.nll(*args, **kwargs)

    def logits(self, prompt: Prompt, context: Context | None = None, *, in_place: bool = False) -> torch.Tensor:
        """Logits [suffix tokens, vocabulary] over a prompt's running text.

        Args:
            prompt: the running text, behind its prefix.
            context: what is injected.
            in_place: read the context as the first step of a stream does, where its encodings lie if that is possible,
                and not from a copy of them. It makes no difference but of rounding.
        """
        request = Request(prompt, context, context is not None)
        return self._decoder.logits([request], len(prompt.suffix), in_place)[0]

    def attribute(
        self,
        prompt: str | Sequence[Message],
        answer: str,
        *,
        context: ContextOfNodes,
        formatted: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """How much an answer leans on each node of its context, by the attention that its tokens pay to it.

        The answer is read once more behind the context, all of its tokens together, which costs about what its first
        token did.

        Args:
            prompt: what was answered, one question or conversation.
            answer: the text of the answer.
            context: the Selection that was injected.
            formatted, chat_template_kwargs: as in :meth:`complete`.

        Returns:
            For each of ``context.nodes`` the share of its attention, between 0 and 1, that the head most interested in
            it pays to its most interesting row, on average over the answer's tokens; 0 for all where the answer is
            empty. Compare them within one answer only.

        Raises:
            ConfigError: the attention is not watched: of cross-attention injection, of models with sliding windows, of
                grains coarser than 1.
            WindowExceededError, QueryError: as :meth:`complete`.
        """
        nodes = hasattr(context, "nodes")
        require(nodes, "context", type(context).__name__, "must be the Selection that was injected")
        ids = self.tokenize(answer).ids.tolist()
        single, (request, *_) = self._requests.read(
            prompt, context, formatted, max(1, len(ids)), self.identity, chat_template_kwargs
        )
        require(single, "prompt", type(prompt).__name__, "must be one prompt, no batch")
        if not ids:
            return [0.0] * len(context.nodes)
        return attention_paid(self._decoder, request, [node.kv_entries for node in context.nodes], ids)
