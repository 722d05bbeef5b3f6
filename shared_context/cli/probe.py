"""`shared-context probe`: a cheaper way to know which rows coarse grains keep, fitted for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli import output
from shared_context.cli.measuring import load
from shared_context.cli.options import DeviceOption, DtypeOption, to_be_written


def probe(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or folder of the model.", show_default=False)],
    texts: Annotated[
        list[Path],
        typer.Argument(metavar="TEXT...", help="Text files, or JSONL with a text on each line.", show_default=False),
    ],
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    file: Annotated[
        Path, typer.Option("--output", metavar="FILE", help="Where the probe goes.", callback=to_be_written)
    ] = Path("probe.safetensors"),
    chunks: Annotated[int, typer.Option("--chunks", min=1, help="Chunks that it is fitted on.")] = 200,
    chunk_size: Annotated[int, typer.Option("--chunk-size", min=1, help="Tokens of each.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Of the drawing of chunks.")] = 0,
) -> None:
    """Fit a probe: it guesses from a chunk's keys and values what a repetition would find important.

    Load it with ImportanceProbe.load into model.probe, for stores with StoreConfig(importance="probe").
    """
    from shared_context.evaluation.long_text import read_texts
    from shared_context.training.probing import fit_probe

    found = [text for path in texts for text in read_texts(path)]
    reader = load(model, dtype=dtype, device=device)
    fit_probe(reader, found, chunks=chunks, chunk_size=chunk_size, seed=seed).save(file)
    output.messages().print(f"wrote {file}", soft_wrap=True)
