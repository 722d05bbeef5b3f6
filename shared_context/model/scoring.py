"""Scoring: how likely the model finds an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from shared_context.model.decoder import InjectingDecoder
from shared_context.model.prompt import Prompt
from shared_context.model.requests import Request


def score_batch(
    decoder: InjectingDecoder, requests: Sequence[Request], answers: Sequence[Sequence[int]]
) -> list[float]:
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
