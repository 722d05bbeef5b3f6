"""Two runs of one measurement, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from shared_context.errors import ConfigError
from shared_context.evaluation.report import Cell, Exhibit, HeatMap, Lines, Report, Series, Table, text_of

NO_INTERVAL = (
    "Differences are the second run's figures minus the first's, without an interval: results do not hold the figures "
    "of single questions, which an interval would have to be paired by."
)


def compare_runs(first: Sequence[Report], second: Sequence[Report], names: tuple[str, str]) -> list[Report]:
    """The measurements that two runs have in common, compared.

    Args:
        first, second: the reports of the runs.
        names: what the two runs are called.

    Raises:
        ConfigError: they have none in common.
    """
    theirs = {report.name: report for report in second}
    compared = [_compare(report, theirs[report.name], names) for report in first if report.name in theirs]
    if not compared:
        ours = ", ".join(report.name for report in first)
        raise ConfigError(f"{names[0]} has {ours}, {names[1]} has {', '.join(theirs)}: nothing in common to compare")
    return compared


def _compare(first: Report, second: Report, names: tuple[str, str]) -> Report:
    """The numbers of two reports, the second minus the first, and their lines in one plot for each way."""
    settings = [
        (name, first.setting.get(name), second.setting.get(name))
        for name in dict.fromkeys([*first.setting, *second.setting])
        if first.setting.get(name) != second.setting.get(name)
    ]
    parts: list[Exhibit] = [Table("Settings that differ", ("setting", *names), settings)] if settings else []
    others = {(type(part), part.title): part for part in second.parts}
    left_out = []
    for part in first.parts:
        other = others.pop((type(part), part.title), None)
        if other is None:
            left_out.append(part.title)
        else:
            parts += _compared(part, other, names)
            left_out += _unpaired(part, other)
    left_out += [title for _, title in others]
    notes = [NO_INTERVAL, *([f"In one of the runs only: {'; '.join(left_out)}."] if left_out else [])]
    targets = [
        replace(target, what=f"{target.what} ({name})")
        for name, r in zip(names, (first, second), strict=True)
        for target in r.targets
    ]
    not_run = {
        f"{what} ({name})": why
        for name, r in zip(names, (first, second), strict=True)
        for what, why in r.not_run.items()
    }
    shared = {name: value for name, value in first.setting.items() if second.setting.get(name) == value}
    return Report(f"{first.name}: {names[0]} and {names[1]}", shared, parts, targets, not_run, [*first.notes, *notes])


def _compared(first: Exhibit, second: Exhibit, names: tuple[str, str]) -> Iterator[Exhibit]:
    if isinstance(first, Lines) and isinstance(second, Lines):
        theirs = {series.name: series for series in second.series}
        for series in first.series:
            if series.name in theirs:
                pair = [Series(name, s.points) for name, s in zip(names, (series, theirs[series.name]), strict=True)]
                title = f"{first.title}: {series.name}"
                yield Lines(title, first.x, first.y, pair, first.log_x, first.log_y)
                yield _line_differences(title, *pair)
    elif isinstance(first, HeatMap) and isinstance(second, HeatMap):
        for name, part in zip(names, (first, second), strict=True):
            yield HeatMap(f"{part.title}: {name}", part.row, part.column, part.rows, part.columns, part.values)
        yield _differences(first.table(), second.table(), names)
    elif isinstance(first, Table) and isinstance(second, Table):
        yield _differences(first, second, names)


def _line_differences(title: str, first: Series, second: Series) -> Table:
    theirs = {point.x: point.y for point in second.points}
    rows = [(p.x, p.y, theirs[p.x], theirs[p.x] - p.y) for p in first.points if p.x in theirs]
    return Table(f"{title}, difference", ("at", first.name, second.name, "difference"), rows)


def _differences(first: Table, second: Table, names: tuple[str, str]) -> Table:
    """Each number of the first run, of the second, and the difference, by row and column."""
    rows: list[tuple[Cell, ...]] = []
    theirs = _by_key(second)
    for key, row in _by_key(first).items():
        other = theirs.get(key, {})
        for column, a in row.items():
            b = other.get(column)
            if isinstance(a, int | float) and isinstance(b, int | float):
                rows.append((key, column, a, b, b - a))
    return Table(first.title, ("row", "column", *names, "difference"), rows, keys=2)


def _unpaired(first: Exhibit, second: Exhibit) -> list[str]:
    """Rows and columns that only one of the tables has."""
    one, other = first.table(), second.table()
    named = [(list(_by_key(table)), list(table.columns[table.keys :])) for table in (one, other)]
    return [
        f"{first.title}: {name}"
        for ours, theirs in zip(*named, strict=True)
        for name in dict.fromkeys([*ours, *theirs])
        if name not in ours or name not in theirs
    ]


def _by_key(table: Table) -> dict[str, dict[str, Cell]]:
    """The cells of each row behind those that name it, by column, by the row's name."""
    columns = table.columns[table.keys :]
    return {
        ", ".join(map(text_of, row[: table.keys])): dict(zip(columns, row[table.keys :], strict=True))
        for row in table.rows
    }
