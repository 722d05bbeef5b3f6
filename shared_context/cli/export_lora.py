"""`shared-context export-lora`: an adapter's sets of updates as PEFT adapters, which vLLM loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli import output


def export_lora(
    adapter: Annotated[
        str,
        typer.Argument(metavar="ADAPTER", help="Folder, name on the Hub, or factoid, which ships.", show_default=False),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where a folder for each set goes.", show_default=False)
    ],
) -> None:
    """Write an adapter's decoding and compressing sets as PEFT adapters, for engines that load those.

    FOLDER/decode is active while answers are written, FOLDER/compress while chunks are encoded.
    """
    from shared_context.model.adapter import Adapter
    from shared_context.model.peft_export import export_lora

    output.silence_libraries()
    for written in export_lora(Adapter.from_pretrained(adapter), folder):
        output.messages().print(f"wrote {written}", soft_wrap=True)
