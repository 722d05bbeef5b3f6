"""What a measurement gives back: tables, plots and targets, as Markdown for reading and as JSON for programs."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from shared_context.errors import ConfigError

TARGETS = "Targets"

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under their columns.

    Attributes:
        keys: how many of the first columns name a row; the others hold what was found for it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    keys: int = 1

    def table(self) -> Table:
        """The table itself."""
        return self


@dataclass(frozen=True)
class Point:
    """A point of a line, with its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line, from left to right."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Lines:
    """A plot of lines.

    Attributes:
        x, y: what stands on the axes, with the unit.
        log_x, log_y: whether an axis is logarithmic.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    log_y: bool = False

    def table(self) -> Table:
        """The plot's numbers: a row for each line, a column for each place on the x axis."""
        places = sorted({point.x for line in self.series for point in line.points})
        at = [{point.x: point for point in line.points} for line in self.series]
        rows = [(line.name, *(_cell(of.get(x)) for x in places)) for line, of in zip(self.series, at, strict=True)]
        return Table(f"{self.title} ({self.y})", (self.x, *(text_of(_whole(x)) for x in places)), rows)


@dataclass(frozen=True)
class HeatMap:
    """A plot of numbers between 0 and 1 by row and column.

    Attributes:
        row, column: what the rows and columns are, with the unit.
        rows, columns: their names.
        values: by row; None where nothing was measured.
    """

    title: str
    row: str
    column: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]

    def table(self) -> Table:
        """The plot's numbers."""
        rows = [(name, *values) for name, values in zip(self.rows, self.values, strict=True)]
        return Table(self.title, (f"{self.row} \\ {self.column}", *self.columns), rows)


Exhibit = Table | Lines | HeatMap

_KINDS: dict[str, type[Table] | type[Lines] | type[HeatMap]] = {"table": Table, "lines": Lines, "heat map": HeatMap}


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
    sign: Literal[">=", ">", "<=", "<"]
    bound: float

    @property
    def reached(self) -> bool:
        """Whether the figure keeps the bound."""
        return {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[self.sign](
            self.value, self.bound
        )


@dataclass(frozen=True)
class Source:
    """A passage that a question was shown.

    Attributes:
        document: its id; None where only the text is known.
        start, end: characters of the document.
        score: how promising the passage was found; comparable within one answer only.
        text: its beginning.
    """

    document: str | None
    start: int | None
    end: int | None
    score: float | None
    text: str


@dataclass(frozen=True)
class Answer:
    """What a question was answered in one way.

    Attributes:
        way: what the question was shown, and how.
        text: the answer.
        tokens: KV entries or tokens that were shown.
        scores: by the metric's name.
        sources: what was shown, best first.
    """

    way: str
    text: str
    tokens: int
    scores: Mapping[str, float]
    sources: Sequence[Source] = ()


@dataclass(frozen=True)
class AskedQuestion:
    """A question with all that it was answered.

    Attributes:
        text: the question.
        gold: the answers that count as right.
        document: id of the document that they are in.
        answers: in each of the ways.
    """

    text: str
    gold: Sequence[str]
    document: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Report:
    """A measurement's results.

    Attributes:
        name: the measurement.
        setting: what it was measured with.
        parts: tables and plots.
        targets: bounds, and whether they are kept.
        not_run: what was to be compared with but could not run, and why.
        notes: what a reader must know to read the results rightly.
        questions: each question by itself, where answers were measured; for pages and programs, not in the text.
    """

    name: str
    setting: Mapping[str, Cell]
    parts: Sequence[Exhibit]
    targets: Sequence[Target] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    questions: Sequence[AskedQuestion] = ()

    def markdown(self) -> str:
        """The report for people."""
        setting = ", ".join(f"{name} {text_of(value)}" for name, value in self.setting.items())
        parts = [f"## {self.name}", setting]
        for table in self.tables():
            parts += [f"**{table.title}**", _grid(table.columns, table.rows)]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def tables(self) -> list[Table]:
        """Every number: the parts as tables, the targets, and what did not run."""
        tables = [part.table() for part in self.parts]
        if self.targets:
            rows = [
                (t.what, t.value, f"{t.sign} {text_of(t.bound)}", "yes" if t.reached else "NO") for t in self.targets
            ]
            tables.append(Table(TARGETS, ("what", "measured", "wanted", "reached"), rows))
        if self.not_run:
            tables.append(Table("Not run", ("what", "why"), list(self.not_run.items())))
        return tables

    def as_json(self) -> dict[str, Any]:
        """The report for programs: JSON values, unrounded."""
        kinds = {kind: name for name, kind in _KINDS.items()}
        return {
            "name": self.name,
            "setting": dict(self.setting),
            "parts": [{"kind": kinds[type(part)], **asdict(part)} for part in self.parts],
            "targets": [{**asdict(target), "reached": target.reached} for target in self.targets],
            "not_run": dict(self.not_run),
            "notes": list(self.notes),
            "questions": [asdict(question) for question in self.questions],
        }


def write_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write reports as JSON, for programs and :func:`read_reports`."""
    content = json.dumps({"reports": [report.as_json() for report in reports]}, indent=1)
    path.write_text(content + "\n", encoding="utf-8")


def read_reports(path: str | Path) -> list[Report]:
    """Reports from the JSON that a measurement wrote.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return [
            Report(
                values["name"],
                values["setting"],
                [_part(part) for part in values["parts"]],
                [Target(t["what"], t["value"], t["sign"], t["bound"]) for t in values["targets"]],
                values["not_run"],
                values["notes"],
                [_question(question) for question in values.get("questions", ())],
            )
            for values in content["reports"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no results ({error!r}): give what --json of eval or bench wrote") from error


def _part(values: dict[str, Any]) -> Exhibit:
    kind = _KINDS[values.pop("kind")]
    if kind is Lines:
        values["series"] = [Series(s["name"], [Point(**point) for point in s["points"]]) for s in values["series"]]
    return kind(**values)


def _question(values: dict[str, Any]) -> AskedQuestion:
    answers = [
        Answer(a["way"], a["text"], a["tokens"], a["scores"], [Source(**source) for source in a["sources"]])
        for a in values["answers"]
    ]
    return AskedQuestion(values["text"], values["gold"], values["document"], answers)


def model_setting(model: Any) -> dict[str, Cell]:
    """What a model's results depend on beside its weights.

    Args:
        model: a SharedLLMModel.
    """
    import torch

    adapter = model.adapter()
    return {
        "model": model.name,
        "adapter": adapter.digest if adapter is not None else "none",
        "injection": f"{model.injection.kind}, {model.compressor.layers} layers",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def text_of(cell: Cell) -> str:
    """A cell as people read it."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _cell(point: Point | None) -> Cell:
    if point is None or point.low is None or point.high is None:
        return None if point is None else point.y
    return f"{text_of(point.y)} ({text_of(point.low)} to {text_of(point.high)})"


def _whole(x: float) -> int | float:
    return int(x) if float(x).is_integer() else x


def _grid(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [list(columns), *([text_of(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], ["-" * width for width in widths], *padded[1:]])
