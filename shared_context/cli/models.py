"""`shared-context models`: the models worth naming to a newcomer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from shared_context.cli import output
from shared_context.cli.options import JsonOption


def models(as_json: JsonOption = False) -> None:
    """List known models: which is the default, which are on this machine, and where.

    Others work as well: any Hugging Face name or folder of a decoder-only model with rotary positions.
    """
    from shared_context.model.pretrained import DEFAULT_MODEL, KNOWN_MODELS, cache_folder

    known: list[dict[str, Any]] = []
    for model in KNOWN_MODELS.values():
        folder = _local_folder(model.name)
        known.append(
            {
                "name": model.name,
                "default": model.name == DEFAULT_MODEL,
                "downloaded": folder is not None,
                "folder": str(folder) if folder is not None else None,
                "description": model.description,
                "source": model.source,
            }
        )
    if as_json:
        output.print_json({"models": known, "cache": str(cache_folder())})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("model", "about", "on this machine"):
        table.add_column(heading, overflow="fold")
    for row in known:
        name = f"{row['name']} (default)" if row["default"] else row["name"]
        table.add_row(name, row["description"], row["folder"] or "not downloaded")
    output.results().print(table)


def _local_folder(name: str) -> Path | None:
    """Where the weights of a known model are on this machine, or None. No network."""
    from shared_context.model.pretrained import DEFAULT_MODEL, DEFAULT_REPO, cached_folder, local_snapshot

    if name == DEFAULT_MODEL:
        return cached_folder(DEFAULT_MODEL) or local_snapshot(DEFAULT_REPO)
    return local_snapshot(name)
