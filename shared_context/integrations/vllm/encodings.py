"""What vLLM computes for others: keys and values of a prompt's tokens, which the connector saves where room was made.

Whoever wants them makes room in the folder (:func:`make_room`), names it in a request of one new token
(:func:`parameters`), reads them when the answer has come (:func:`read_encoding`), and removes the room. What comes too
late finds no room and is dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from shared_context.errors import SelectionError
from shared_context.integrations.vllm.selections import ID, heads_of_rank, read_rows, write_rows

PARAMETER = "shared_context_save"
"""The key of a request's ``kv_transfer_params`` that holds what :func:`parameters` makes."""


def make_room(folder: Path) -> str:
    """Make room for the keys and values of one request.

    Args:
        folder: that the connector has.

    Returns:
        The id by which the request names it.

    Raises:
        SelectionError: the folder does not take it.
    """
    id = uuid4().hex
    try:
        (folder / id).mkdir()
    except OSError as error:
        raise SelectionError(
            f"No keys and values can be written into {folder}: {error}. Make room, or mend the folder."
        ) from error
    return id


def remove_room(folder: Path, id: str) -> None:
    """Forget what was saved, and drop what is to come."""
    shutil.rmtree(folder / id, ignore_errors=True)


def parameters(id: str, first: int) -> dict[str, Any]:
    """A request's ``kv_transfer_params``: where its keys and values go, those from token ``first`` on."""
    return {PARAMETER: {"id": id, "first": first}}


def asked_to_save(transfer: Mapping[str, Any] | None, prompt: int) -> tuple[str, int] | None:
    """Where a request's keys and values go, and from which of its tokens on; None where it asks for nothing.

    Args:
        transfer: its ``kv_transfer_params``.
        prompt: tokens of its prompt.

    Raises:
        SelectionError: it asks in a wrong way.
    """
    named = (transfer or {}).get(PARAMETER)
    if named is None:
        return None
    id, first = (named.get("id"), named.get("first")) if isinstance(named, Mapping) else (None, None)
    if (
        isinstance(id, str)
        and ID.fullmatch(id) is not None
        and isinstance(first, int)
        and not isinstance(first, bool)
        and 0 <= first < prompt
    ):
        return id, first
    raise SelectionError(
        f"kv_transfer_params[{PARAMETER!r}] must be an id of 32 hex digits and the first of the prompt's tokens whose "
        "keys and values are wanted."
    )


def write_encoding(
    folder: Path, id: str, token_ids: Sequence[int], layers: Iterable[torch.Tensor], rank: int, ranks: int
) -> None:
    """Save what one of several tensor-parallel ranks has.

    Args:
        folder: that the connector was given.
        id: of the room.
        token_ids: of the whole prompt.
        layers: of each layer [2, tokens, own kv_heads, head_dim], keys first, of the last tokens of the prompt.
        rank, ranks: which one, of how many.

    Raises:
        SelectionError: there is no room.
    """
    write_rows(_file(folder, id, rank), token_ids, layers, ranks=ranks)


def read_encoding(
    folder: Path, id: str, token_ids: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Keys and values that were saved, [layers, 2, tokens, kv_heads, head_dim], keys first.

    Args:
        folder: that the connector has.
        id: of the room.
        token_ids: of the whole prompt.
        shape: layers, tokens, kv_heads and head_dim that there have to be.
        dtype: that they have to have.

    Raises:
        SelectionError: they are missing, damaged, of something else, or of another dtype.
    """
    layers, tokens, kv_heads, head_dim = shape
    whole: torch.Tensor | None = None
    rank, ranks = 0, 1
    while rank < ranks:
        try:
            part, about = read_rows(_file(folder, id, rank), "What the engine saved", token_ids)
        except FileNotFoundError as error:
            raise SelectionError(
                f"The engine saved no keys and values in {folder / id}, of its rank {rank}: its log has the reason, "
                "unless its connector is of another version or has another folder."
            ) from error
        ranks = about["ranks"]
        own = range(kv_heads)[heads_of_rank(kv_heads, rank, ranks)]
        expected = (layers, 2, tokens, len(own), head_dim)
        if tuple(part.shape) != expected:
            raise SelectionError(
                f"What the engine saved has the shape {list(part.shape)}, and the model needs {list(expected)}: it is "
                "of another model."
            )
        if part.dtype != dtype:
            raise SelectionError(f"What the engine saved is of {part.dtype}, and the model computes in {dtype}.")
        if ranks == 1:
            return part
        whole = torch.empty((layers, 2, tokens, kv_heads, head_dim), dtype=dtype) if whole is None else whole
        whole[:, :, :, own.start : own.stop] = part
        rank += 1
    assert whole is not None  # there is a rank at least
    return whole


def _file(folder: Path, id: str, rank: int) -> Path:
    return folder / id / f"{rank}.safetensors"
