"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared_context.config import Policy
from shared_context.remote.address import is_address


def _parse_folder(text: str) -> Path:
    return folder_of(_parse_place(text))


def folder_of(place: Path | str) -> Path:
    """The folder of a store that is to be changed, which no published one is."""
    if is_address(place):
        raise typer.BadParameter(
            f"{place} is published, so it never changes: `shared-context pull {place} FOLDER`, change the "
            f"folder, and `shared-context push FOLDER {place}`."
        )
    return Path(place)


def _parse_place(text: str) -> Path | str:
    return text if is_address(text) else Path(text)


StoreArgument = Annotated[
    Path, typer.Argument(parser=_parse_folder, metavar="STORE", help="Folder of the store.", show_default=False)
]
PlaceArgument = Annotated[
    Any,  # typer has no unions: a Path, or a str that is an address
    typer.Argument(
        parser=_parse_place,
        metavar="STORE",
        help="Folder of the store, or the address of a published one, as s3://bucket/name.",
        show_default=False,
    ),
]
QuestionArgument = Annotated[
    str, typer.Argument(metavar="QUESTION", help="- reads it from a pipe.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Name or folder of the model; by default the store's own.")
]
AdapterOption = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        help="A trained adapter: its folder, its name on the Hub, or factoid, which ships for the default model and "
        "gives short answers to questions of fact. By default none.",
    ),
]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Of weights and KV, by torch's name; auto is what the device is fastest in.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps; auto takes a GPU where one is.")]
BudgetOption = Annotated[int, typer.Option("--budget", help="KV entries that the context may hold.")]
FineOption = Annotated[
    int | None,
    typer.Option("--fine", metavar="RATIO", help="Tokens for each KV entry of what is shown; by default the store's."),
]
PolicyOption = Annotated[
    Policy | None,
    typer.Option("--policy", help="How passages are scored; hybrid if left out."),
]
FilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="KEY=VALUE",
        help="Only documents with this metadata; VALUE is JSON or a string. May be given several times, all must "
        'hold. Operators as JSON: --filter \'{"year": {"$gte": 2020}}\'.',
    ),
]
PrefilterOption = Annotated[
    int | None, typer.Option("--prefilter", metavar="N", help="Consider the N best documents by embedding only.")
]
MaxNewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Tokens of the answer at most.")]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="PATTERN",
        help="Of folders take only files that match, by name or path below the folder: '*.md', 'guides/*'. Several.",
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Of folders leave out files and folders that match. Several."),
]
KvLimitOption = Annotated[
    str | None,
    typer.Option(
        "--kv-limit",
        metavar="SIZE",
        help="Of keys and values keep at most so much in the store's folder, from now on: 500MB, 2GB, 0 for none.",
    ),
]
NamespaceOption = Annotated[
    str | None,
    typer.Option("--namespace", metavar="NAME", help="A store of its own in this one, with ids and documents apart."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


def parse_filters(given: list[str] | None) -> dict[str, Any] | None:
    """The store's filter for all `--filter` options together, or None where there are none.

    Raises:
        typer.BadParameter: one is neither KEY=VALUE nor a JSON object.
    """
    filters = [_parse_object(text) if text.startswith("{") else parse_pair(text, "--filter") for text in given or ()]
    return {"$and": filters} if filters else None


def parse_metadata(given: list[str] | None) -> dict[str, Any] | None:
    """The metadata for all `--metadata` options together, or None where there are none."""
    pairs = [parse_pair(text, "--metadata") for text in given or ()]
    return {key: value for pair in pairs for key, value in pair.items()} or None


_UNITS = {"": 1, "b": 1} | {
    unit + byte: base**power
    for power, unit in enumerate("kmgt", start=1)
    for byte, base in (("", 1000), ("b", 1000), ("ib", 1024))
}


def parse_bytes(text: str | None, option: str) -> int | None:
    """A size such as ``500MB`` or ``1.5GiB`` in bytes; None stays.

    Raises:
        typer.BadParameter: it is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise typer.BadParameter(f"{text!r} is no size such as 500MB, 2GB or 0.", param_hint=option)
    return int(float(match[1]) * _UNITS[match[2]])


def read_question(given: str) -> str:
    """The question of a command: what was given, or for ``-`` what a pipe says.

    Raises:
        typer.BadParameter: the pipe says nothing.
    """
    question = sys.stdin.read().strip() if given == "-" else given
    if not question.strip():
        raise typer.BadParameter("the question is empty.", param_hint="QUESTION")
    return question


def to_be_written(file: Path | None) -> Path | None:
    """The file of an option, which a long run writes at its end.

    Raises:
        typer.BadParameter: it cannot be written, said before the run begins.
    """
    if file is not None:
        if not file.parent.is_dir():
            raise typer.BadParameter(f"{file} cannot be written: there is no folder {file.parent}; make it first.")
        if file.is_dir():
            raise typer.BadParameter(f"{file} is a folder; name a file.")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise typer.BadParameter(f"{file} cannot be written: it is not permitted.")
    return file


def parse_pair(text: str, option: str) -> dict[str, Any]:
    """`KEY=VALUE` as a dict of one entry; a value that is no JSON is a string.

    Raises:
        typer.BadParameter: it has no key or no equals sign.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint=option)
    try:
        return {key: json.loads(value, parse_constant=_refuse_constant)}
    except ValueError:
        return {key: value}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _parse_object(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}.", param_hint="--filter") from error
