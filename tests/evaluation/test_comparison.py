"""Two runs side by side."""

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation.comparison import NO_INTERVAL, compare_runs
from shared_context.evaluation.report import HeatMap, Lines, Point, Report, Series, Table, Target


def run(recall, seconds, *, model="small", name="retrieval", extra=()):
    return Report(
        name,
        {"model": model, "threads": 2},
        [
            Lines("Recall", "tokens", "recall", [Series("hybrid", [Point(128, recall), Point(256, 1.0)]), *extra]),
            HeatMap("Needles", "depth", "tokens", ["0%"], ["1,024"], [[recall]]),
            Table("Seconds", ("way", "median", "setting"), [("ours", seconds, "best"), ("theirs", None, "best")]),
        ],
        not_run={"BM25": "missing"} if model == "large" else {},
    )


def tables(report):
    return {table.title: table.rows for table in report.tables()}


def test_differences_are_the_second_run_minus_the_first():
    (report,) = compare_runs([run(0.5, 2.0)], [run(0.75, 1.0, model="large")], ("a", "b"))
    shown = tables(report)
    assert shown["Settings that differ"] == [("model", "small", "large")]
    assert shown["Recall: hybrid, difference"] == [(128, 0.5, 0.75, 0.25), (256, 1.0, 1.0, 0.0)]
    assert shown["Needles"] == [("0%", "1,024", 0.5, 0.75, 0.25)]
    assert shown["Seconds"] == [("ours", "median", 2.0, 1.0, -1.0)]
    assert shown["Not run"] == [("BM25 (b)", "missing")]
    (plot,) = [part for part in report.parts if isinstance(part, Lines)]
    assert [(line.name, line.points[0].y) for line in plot.series] == [("a", 0.5), ("b", 0.75)]
    assert report.setting == {"threads": 2}


def test_rows_are_paired_by_the_cells_that_name_them_whatever_was_found():
    def timed(seconds, verdict):
        rows = [(n, "ours", seconds * n, verdict) for n in (1024, 7800)]
        return Report("first-token", {}, [Table("Seconds", ("context", "way", "median", "is"), rows, keys=2)])

    (report,) = compare_runs([timed(0.001, "better")], [timed(0.002, "not told apart")], ("a", "b"))
    assert tables(report)["Seconds"] == [
        ("1,024, ours", "median", 1.024, 2.048, 1.024),
        ("7,800, ours", "median", 7.8, 15.6, 7.8),
    ]
    assert report.notes == [NO_INTERVAL]


def test_what_only_one_run_has_is_said():
    first = run(0.5, 2.0)
    second = Report("retrieval", first.setting, [*first.parts[:2], Table("Tokens", ("way",), [])])
    (report,) = compare_runs([first], [second], ("a", "b"))
    assert report.notes == [NO_INTERVAL, "In one of the runs only: Seconds; Tokens."]
    another = Table("Seconds", ("way", "median", "setting"), [("ours", 2.0, "best"), ("BM25", 1.0, "best")])
    second = Report("retrieval", first.setting, [*first.parts[:2], another])
    (report,) = compare_runs([first], [second], ("a", "b"))
    assert report.notes == [NO_INTERVAL, "In one of the runs only: Seconds: theirs; Seconds: BM25."]


def test_columns_are_paired_by_name_and_those_of_one_run_are_named():
    def by_tokens(recall):
        columns = [str(tokens) for tokens in recall]
        parts = [
            Table("Recall", ("way", *columns), [("hybrid", *recall.values())]),
            HeatMap("Needles", "depth", "tokens", ["0%"], columns, [list(recall.values())]),
        ]
        return Report("retrieval", {}, parts)

    (report,) = compare_runs([by_tokens({128: 0.25, 256: 0.5})], [by_tokens({256: 0.75, 512: 1.0})], ("a", "b"))
    for title, row in ("Recall", "hybrid"), ("Needles", "0%"):
        assert tables(report)[title] == [(row, "256", 0.5, 0.75, 0.25)]
        assert all(f"{title}: {column}" in report.notes[-1] for column in ("128", "512"))
    assert "256" not in report.notes[-1]


def test_targets_of_both_runs_are_kept():
    first, second = (Report("speed", {}, [], [Target("times faster", value, ">=", 8.0)]) for value in (9.0, 5.0))
    (report,) = compare_runs([first], [second], ("a", "b"))
    assert tables(report)["Targets"] == [
        ("times faster (a)", 9.0, ">= 8.000", "yes"),
        ("times faster (b)", 5.0, ">= 8.000", "NO"),
    ]


def test_runs_without_a_common_measurement_are_refused():
    with pytest.raises(ConfigError, match="nothing in common"):
        compare_runs([run(0.5, 1.0)], [run(0.5, 1.0, name="answers")], ("a", "b"))
