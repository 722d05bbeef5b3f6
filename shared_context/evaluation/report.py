"""What a measurement gives back: tables and targets, as Markdown for reading and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from shared_context import SharedLLMModel

T = TypeVar("T")

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Target:
    """A figure with the bound it has to keep.

    Attributes:
        what: what was measured.
        value: the figure.
        sign, bound: value ``sign`` bound is what is wanted.
    """

    what: str
    value: float
    sign: Literal[">=", ">", "<="]
    bound: float

    @property
    def reached(self) -> bool:
        """Whether the figure keeps the bound."""
        return {">=": self.value >= self.bound, ">": self.value > self.bound, "<=": self.value <= self.bound}[self.sign]


@dataclass(frozen=True)
class Report:
    """A measurement's results.

    Attributes:
        name: the measurement.
        setting: what it was measured with.
        tables, targets: the results.
        notes: what a reader must know to read them rightly.
    """

    name: str
    setting: dict[str, Cell]
    tables: Sequence[Table]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        """The report for people."""
        setting = ", ".join(f"{name} {_text(value)}" for name, value in self.setting.items())
        parts = [f"## {self.name}", setting]
        for table in self.tables:
            parts += [f"**{table.title}**", _grid(table.columns, table.rows)]
        if self.targets:
            rows = [(t.what, t.value, f"{t.sign} {_text(t.bound)}", "yes" if t.reached else "NO") for t in self.targets]
            parts += ["**Targets**", _grid(("what", "measured", "wanted", "reached"), rows)]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """The report for programs: JSON values, unrounded."""
        targets = [{**asdict(target), "reached": target.reached} for target in self.targets]
        return {**asdict(self), "targets": targets}


def model_setting(model: SharedLLMModel) -> dict[str, Cell]:
    """What a model's results depend on beside its weights."""
    return {
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def with_progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    return track(items, what, console=Console(stderr=True), transient=True)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [list(columns), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], ["-" * width for width in widths], *padded[1:]])


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
