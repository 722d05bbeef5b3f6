"""`shared-context copy`: a store in another folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli import output, session
from shared_context.cli.options import ModelOption, StoreArgument


def copy(
    path: StoreArgument,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Folder of the copy, new or empty.", show_default=False)],
    model: ModelOption = None,
) -> None:
    """Copy a store; keys and values are left behind and computed again. Others may use the store meanwhile."""
    if new.resolve() == path.resolve():
        raise typer.BadParameter(f"{new} is the store itself; name another folder.", param_hint="NEW")
    with session.open_store(path, model) as store:
        store.persist(new)
        count = len(store)
    print(f"{count} documents copied to {output.printable(str(new))}")
