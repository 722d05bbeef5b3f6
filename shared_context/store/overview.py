"""What a store holds, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.filesize import decimal

DOCUMENTS_SHOWN = 20


def overview_html(stats: Mapping[str, Any], ids: Sequence[str]) -> str:
    """A store's figures and the first of its documents: no script, nothing fetched.

    Args:
        stats: what the store's ``stats`` gives.
        ids: of all documents.
    """
    disk, memory = stats["kv_cache"]["disk"], stats["kv_cache"]["memory"]
    rows = {
        "store": stats["path"] or "in memory",
        "model": stats["model"],
        "embedder": stats["embedder"] or "none",
        "documents": f"{stats['documents']:,}",
        "conversations": f"{stats['conversations']:,}",
        "tokens": f"{stats['tokens']:,} in {stats['chunks']:,} chunks",
        "documents and codes": decimal(stats["database_bytes"]),
        "keys and values": f"{decimal(memory['bytes'])} in memory, {decimal(disk['bytes'])} on disk "
        f"({decimal(disk['limit_bytes'])} at most)",
    }
    table = "".join(
        f'<tr style="text-align: left"><th scope="row">{name}</th><td>{escape(value)}</td></tr>'
        for name, value in rows.items()
    )
    shown = "".join(f"<li>{escape(id)}</li>" for id in ids[:DOCUMENTS_SHOWN])
    more = f"<li>and {len(ids) - DOCUMENTS_SHOWN:,} more</li>" if len(ids) > DOCUMENTS_SHOWN else ""
    return f"<table>{table}</table>\n<ul>{shown}{more}</ul>"
