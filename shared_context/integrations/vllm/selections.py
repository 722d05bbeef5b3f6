"""The folder through which keys and values pass."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open

from shared_context.errors import SelectionError

FORMAT = "shared-context-selection-3"
HEADER_BYTES = 1024
"""What safetensors call the header, and its length; it is written last, when everything is known."""
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PARAMETER = "shared_context"
"""The key of a request's ``kv_transfer_params`` that holds what :func:`parameters` makes."""
ID = re.compile(r"[0-9a-f]{32}")
UNSALTED, MALFORMED = "unsalted", "malformed"
"""Ids under which what is asked for in a wrong way is loaded, which fails."""


def write_selection(folder: Path, token_ids: Sequence[int], layers: Iterable[torch.Tensor]) -> str:
    """Keep the keys and values of a prompt's beginning; whoever wrote them removes them.

    Args:
        folder: that the connector reads.
        token_ids: those whose keys and values these are.
        layers: of each layer [2, tokens, kv_heads, head_dim], keys first; each is written before the next is asked for.

    Returns:
        The id by which a request names them.

    Raises:
        SelectionError: the folder does not take them.
    """
    id = uuid4().hex
    write_rows(_file(folder, id), token_ids, layers)
    return id


def write_rows(path: Path, token_ids: Sequence[int], layers: Iterable[torch.Tensor], **further: int) -> None:
    """Write keys and values as safetensors; they appear by rename, so that a reader never meets half of them.

    Args:
        path: of the file.
        token_ids: of the whole prompt that they are of, or of its beginning.
        layers: as of :func:`write_selection`.
        **further: what else the file is to say of itself.

    Raises:
        SelectionError: the folder does not take them.
    """
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.seek(HEADER_BYTES)
            sums: list[int] = []
            shape: tuple[int, ...] = (0, 0, 0, 0)
            dtype = torch.float32
            for rows in layers:
                shape, dtype = tuple(rows.shape), rows.dtype
                sums.append(_sum(rows))
                for part in rows:
                    file.write(part.contiguous().view(torch.uint8).numpy().data)
            about = {"format": FORMAT, "tokens": digest_of(token_ids), "sum": sum(sums) % 2**64, **further}
            offsets = [0, file.tell() - HEADER_BYTES]
            tensor = {"dtype": DTYPES[dtype], "shape": [len(sums), *shape], "data_offsets": offsets}
            header = json.dumps({"__metadata__": {"about": json.dumps(about)}, "key_values": tensor}).encode()
            file.seek(0)
            file.write((HEADER_BYTES - 8).to_bytes(8, "little") + header.ljust(HEADER_BYTES - 8))
        os.replace(new, path)
    except OSError as error:
        raise SelectionError(
            f"No keys and values can be written into {path.parent}: {error}. Make room, or mend the folder."
        ) from error
    finally:
        new.unlink(missing_ok=True)  # where it did not get so far


def remove_selection(folder: Path, id: str) -> None:
    """Forget keys and values; requests that name them fail from now on."""
    _file(folder, id).unlink(missing_ok=True)


def parameters(id: str, tokens: int) -> dict[str, Any]:
    """A request's ``kv_transfer_params``: which keys and values, and of how many tokens at its beginning."""
    return {PARAMETER: {"id": id, "tokens": tokens}}


def asked_for(transfer: Mapping[str, Any] | None, prompt: int, salted: bool) -> tuple[str, int] | None:
    """The id that a request names, and of how many of its tokens keys and values are to be loaded.

    What is wrong with a request must fail that request and no other, and only a load can fail alone. So a request that
    asks in a wrong way is told that all of its prompt but the last token will be loaded, under an id that there is not.

    Args:
        transfer: its ``kv_transfer_params``.
        prompt: tokens of its prompt.
        salted: whether it has a ``cache_salt``, without which its blocks would be taken for those of text.

    Returns:
        None where it names nothing.
    """
    named = (transfer or {}).get(PARAMETER)
    if named is None:
        return None
    id, tokens = (named.get("id"), named.get("tokens")) if isinstance(named, Mapping) else (None, None)
    if (
        salted
        and isinstance(id, str)
        and ID.fullmatch(id) is not None
        and isinstance(tokens, int)
        and not isinstance(tokens, bool)
        and 0 < tokens < prompt
    ):
        return id, tokens
    return (UNSALTED if not salted else MALFORMED), prompt - 1


def read_selection(folder: Path, id: str, token_ids: Sequence[int], layers: int) -> torch.Tensor:
    """Keys and values that a request names, [layers, 2, tokens, kv_heads, head_dim], keys first.

    Args:
        folder: where they lie.
        id: names them.
        token_ids: the tokens that the request begins with, for which they have to be.
        layers: of the model.

    Raises:
        SelectionError: they cannot be loaded; says why.
    """
    if id == UNSALTED:
        raise SelectionError(
            "The request names a selection and has no cache_salt: its blocks would pass for those of the text. Send "
            "the selection's id as cache_salt."
        )
    if ID.fullmatch(id) is None:
        raise SelectionError(
            f"kv_transfer_params[{PARAMETER!r}] must be an id of 32 hex digits and a number of tokens, of which the "
            "prompt has more."
        )
    try:
        key_values, _ = read_rows(_file(folder, id), f"The selection {id}", token_ids)
    except FileNotFoundError as error:
        raise SelectionError(
            f"There is no selection {id} in {folder}; write it, and remove it after the answer."
        ) from error
    if key_values.shape[:3] != (layers, 2, len(token_ids)):
        raise SelectionError(
            f"The selection {id} has the shape {list(key_values.shape)}, and the model needs "
            f"[{layers}, 2, {len(token_ids)}, kv_heads, head_dim]: it is of another model."
        )
    return key_values


def read_rows(path: Path, what: str, token_ids: Sequence[int]) -> tuple[torch.Tensor, dict[str, Any]]:
    """Keys and values that :func:`write_rows` wrote, and what their file says of itself.

    Args:
        path: of the file.
        what: it is, at the beginning of a sentence.
        token_ids: that it was written with.

    Returns:
        [layers, 2, tokens, kv_heads, head_dim], of whatever numbers of these.

    Raises:
        FileNotFoundError: there is no such file.
        SelectionError: it is damaged, or of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            key_values = file.get_tensor("key_values")
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise SelectionError(f"{what} cannot be read: {error}. Write it again.") from error
    if about.get("format") != FORMAT:
        raise SelectionError(f"{what} is of the format {about.get('format')!r}, and this is {FORMAT!r}.")
    if about.get("tokens") != digest_of(token_ids):
        raise SelectionError(f"{what} is of other tokens than the request's first {len(token_ids)}.")
    if about.get("sum") != sum(map(_sum, key_values)) % 2**64:
        raise SelectionError(f"{what} is damaged. Write it again.")
    if key_values.ndim != 5:
        raise SelectionError(f"{what} has the shape {list(key_values.shape)}, which no keys and values have.")
    return key_values, about


def heads_of_rank(kv_heads: int, rank: int, ranks: int) -> slice:
    """The KV heads that one of several tensor-parallel ranks holds; where there are fewer heads, ranks share one."""
    if kv_heads >= ranks:
        each = kv_heads // ranks
        return slice(rank * each, (rank + 1) * each)
    head = rank * kv_heads // ranks
    return slice(head, head + 1)


def digest_of(token_ids: Sequence[int]) -> str:
    """Of tokens, such that others have another one."""
    return hashlib.sha256(torch.tensor(list(token_ids), dtype=torch.int64).numpy().tobytes()).hexdigest()


def _sum(rows: torch.Tensor) -> int:
    """Tells what was damaged, no more: a CRC, or a digest that nobody can forge, takes longer than the copying does."""
    data = rows.contiguous().flatten().view(torch.uint8)
    whole = len(data) // 8 * 8
    return int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum(dtype=torch.int64))


def _file(folder: Path, id: str) -> Path:
    return folder / f"{id}.safetensors"
