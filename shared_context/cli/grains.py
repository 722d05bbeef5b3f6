"""`shared-context grains`: how coarse the KV of a model may be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli.evaluate import DataArgument, JsonFileOption, ResumeOption, SeedOption
from shared_context.cli.measuring import finish, load
from shared_context.cli.options import AdapterOption, DeviceOption, DtypeOption


def grains(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name or folder of the model.", show_default=False)],
    data: DataArgument,
    adapter: AdapterOption = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="Passages that are read, drawn at random.")] = 100,
    seed: SeedOption = 0,
    resume: ResumeOption = None,
    json_file: JsonFileOption = None,
) -> None:
    """How much does a model bear? Likelihood of answers by ratio, over right passages and wrong ones.

    The coarsest ratio that costs next to nothing is what to give as fine= in TreeConfig.
    """
    from shared_context.evaluation import compression as measurement

    reader = load(model, adapter, dtype, device)
    report = measurement.measure_passages(reader, Path(data), limit=limit, seed=seed, resume=resume)
    finish([report], f"{model}, {data.name}", json_file, None)
