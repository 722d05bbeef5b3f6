"""`shared-context report`: pages from results, and comparisons of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared_context.cli import output
from shared_context.cli.options import to_be_written


def report(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="What --json of eval and bench wrote.", show_default=False),
    ],
    html_file: Annotated[
        Path, typer.Option("--html", metavar="FILE", help="Where the page goes.", callback=to_be_written)
    ] = Path("report.html"),
    together: Annotated[
        bool, typer.Option("--together", help="Put all results on one page as they are, instead of comparing two runs.")
    ] = False,
) -> None:
    """Make a page of results that stands alone: plots and tables, no network.

    Two files are compared, measurement by measurement: plots with both lines, tables with the differences.
    """
    from shared_context.evaluation.comparison import compare_runs
    from shared_context.evaluation.page import page
    from shared_context.evaluation.report import read_reports

    if len(files) > 2 and not together:
        raise typer.BadParameter("two runs can be compared; to show more, add --together.", param_hint="FILE...")
    runs = [read_reports(file) for file in files]
    if len(runs) == 2 and not together:
        names = _names(files[0], files[1])
        reports, title = compare_runs(runs[0], runs[1], names), f"{names[0]} and {names[1]}"
    else:
        reports = [one for run in runs for one in run]
        title = ", ".join(dict.fromkeys(one.name for one in reports))
    html_file.write_text(page(title, reports), encoding="utf-8")
    output.messages().print(f"wrote {html_file}", soft_wrap=True)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The shortest names that tell two files apart."""
    return (first.stem, second.stem) if first.stem != second.stem else (first.as_posix(), second.as_posix())
