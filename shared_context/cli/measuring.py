"""What the commands that measure have in common: the model that is measured, and what becomes of its reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared_context.cli import output, session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shared_context import SharedLLMModel
    from shared_context.evaluation.report import Report


def load(name: str | None, adapter: str | None = None, dtype: str = "auto", device: str = "auto") -> SharedLLMModel:
    """The model named, or the default one, with an adapter or none."""
    from shared_context.model.pretrained import DEFAULT_MODEL

    output.silence_libraries()
    return session.load_model(name or DEFAULT_MODEL, adapter, dtype, device)


def finish(reports: Iterable[Report], data: str, json_file: Path | None, html_file: Path | None) -> None:
    """Print each report as it comes, and write all so far where that is wanted: a later one may fail or be stopped.

    Args:
        data: the name of what was measured on, the page's title.
    """
    from shared_context.evaluation.report import write_reports

    done = []
    for report in reports:
        print(report.markdown(), flush=True)
        done.append(report)
        if json_file is not None:
            write_reports(json_file, done)
        if html_file is not None:
            from shared_context.evaluation.page import page

            title = ", ".join(one.name for one in done)
            html_file.write_text(page(f"{data}: {title}", done), encoding="utf-8")
