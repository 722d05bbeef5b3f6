"""The HTML report: it stands alone, reads by keyboard and without colours, and has every number as text."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from shared_context.evaluation.page import LONG_TABLE, page
from shared_context.evaluation.plots import HEIGHT, WIDTH, lines_svg
from shared_context.evaluation.report import (
    Answer,
    AskedQuestion,
    HeatMap,
    Lines,
    Point,
    Report,
    Series,
    Source,
    Table,
    Target,
)

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Tags with their attributes, and whether all are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def lines(count=3, **options):
    series = [
        Series(f"way <{n}>", [Point(128 * 2**i, n + i + 1.0, n + 0.5, n + i + 2.0) for i in range(4)])
        for n in range(count)
    ]
    return Lines("Recall & more", "tokens", "recall", series, **options)


@pytest.fixture
def report():
    return Report(
        "evidence <found>",
        {"model": "tiny"},
        [
            lines(),
            HeatMap("Needles", "depth", "tokens", ["0%", "50%"], ["1,024", "4,096"], [[1.0, 0.25], [0.5, None]]),
            Table("Ways", ("way", "seconds"), [("ours", 0.125), ("theirs", None)]),
            Table("Many", ("row",), [(n,) for n in range(LONG_TABLE)]),
        ],
        [Target("seconds", 2.0, "<=", 1.0)],
        {"BM25": "not installed"},
        ["Read <with> care."],
    )


def test_page_needs_nothing_but_itself(report):
    text = page("Two & two", [report])
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert not re.search(r"https?:|url\(|@import|src=", text)
    assert "prefers-color-scheme: dark" in text
    assert "<found>" not in text and "way <0>" not in text


def test_every_plot_is_followed_by_its_table(report):
    text = page("Report", [report])
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == 5  # two plots, two tables, what did not run
    assert all("<table>" in figure for figure in figures)
    assert "1.000 (0.500 to 2.000)" in figures[0]
    assert "0.250" in figures[1] and "0.25" in figures[1]
    assert "<details>" in figures[3] and "<details>" not in figures[2]
    assert "not installed" in figures[4]


def test_a_page_does_not_speak_of_what_this_library_aims_at(report):
    assert "Targets" not in page("Report", [report])


def test_each_question_is_shown_with_its_answers_sources_and_scores(report):
    source = Source("manual <1>", 1200, 1350, 0.75, "The gate opens at six.")
    answers = [
        Answer("selection", "<six>", 128, {"F1": 0.5, "NLL": 1.25}, [source]),
        Answer("none", "?", 0, {"F1": 0.0}),
    ]
    text = page(
        "Report", [replace(report, questions=[AskedQuestion("When & where?", ["at six", "6"], "manual <1>", answers)])]
    )
    read = " ".join(Reader(text).text)
    for shown in ("When & where?", "at six", "<six>", "0.500", "1.250", "characters 1,200 to 1,350", "The gate opens"):
        assert shown in read
    assert "<six>" not in text and text.count("Sources: ") == 1


def test_everything_is_reached_by_keyboard_and_named(report):
    read = Reader(page("Report", [report, report]))
    links = [attrs["href"].removeprefix("#") for attrs in read.of("a")]
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert set(links) <= set(ids) and len(ids) == len(set(ids))
    focusable = [attrs for tag, attrs in read.tags if tag in ("path", "div") and "tabindex" in attrs]
    assert all(attrs.get("aria-label") for attrs in focusable)
    points = [attrs["aria-label"] for attrs in read.of("path") if "tabindex" in attrs]
    assert "way <0>, 128 tokens: 1.000 (0.500 to 2.000)" in points
    assert "depth 50%, tokens 4,096: -" in points
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in read.of("svg"))


def drawn_lines(svg):
    """The lines of a plot; symbols of its legend have dashes, too, and are moved to their places."""
    return [attrs for attrs in Reader(svg).of("path") if "stroke-dasharray" in attrs and "transform" not in attrs]


def test_lines_differ_without_their_colours():
    drawn = [(attrs["stroke-dasharray"], attrs["stroke"]) for attrs in drawn_lines(lines_svg(lines(12)))]
    assert len(set(drawn)) == 12
    assert len({attrs["stroke-dasharray"] for attrs in drawn_lines(lines_svg(lines(8)))}) == 8


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [Point(128, 0.9), Point(4096, 0.99)],
        [Point(1, 0.0), Point(2, 0.0)],
        [Point(100, 5e-4, 4e-4, 9e-4), Point(10_000, 70.0)],
        [Point(5, 3.0)],
        [Point(1, -2.0, -3.0, 1.0), Point(2, 4.0)],
    ],
)
def test_points_lie_inside_the_plot(points, log):
    svg = lines_svg(Lines("t", "x", "y", [Series("s", points)], log, log))
    (line,) = drawn_lines(svg)
    places = re.findall(r"(-?[\d.]+),(-?[\d.]+)", line["d"])
    assert len(places) == len(points)
    assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT for x, y in places)


def test_shares_that_are_all_zero_have_no_negative_axis():
    svg = lines_svg(Lines("t", "x", "y", [Series("s", [Point(1, 0.0), Point(2, 0.0)])]))
    ticks = re.findall(r"<text [^>]*>([^<]*)<", svg)
    assert "0" in ticks and not any(tick.startswith(("-", "−")) for tick in ticks)


def test_a_plot_without_points_is_left_out():
    assert lines_svg(Lines("t", "x", "y", [])) == ""


def test_without_what_draws_a_page_has_the_tables_alone_and_says_why(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    text = page("Report", [report])
    assert "<svg" not in text and "pip install 'sharedllm[plots]'" in text
    assert "1.000 (0.500 to 2.000)" in text and "0.250" in text
