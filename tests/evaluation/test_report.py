"""Reports, as people and as programs read them."""

import json

import pytest

from shared_context.errors import ConfigError
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
    read_reports,
)


@pytest.fixture
def report():
    return Report(
        "speed",
        {"model": "tiny", "tokens": 131072},
        [
            Table("Seconds", ("way", "seconds"), [("ours", 0.12345), ("theirs", 12.345), ("nobody's", None)]),
            Lines("Growth", "tokens", "s", [Series("ours", [Point(128, 0.5, 0.4, 0.6), Point(256, 1.0)])], log_x=True),
            HeatMap("Needles", "depth", "tokens", ["0%", "100%"], ["1,024"], [[1.0], [None]]),
        ],
        [Target("times faster", 100.0, ">=", 8.0), Target("seconds", 0.12345, "<=", 0.1)],
        {"BM25": "not installed"},
        ["Read it with care."],
        [
            AskedQuestion(
                "When?", ["at six"], "a", [Answer("none", "six", 4, {"F1": 0.5}, [Source("a", 0, 4, 0.5, "At")])]
            )
        ],
    )


def test_markdown_holds_every_figure_and_says_which_targets_are_missed(report):
    text = report.markdown()
    assert text.startswith("## speed\n\nmodel tiny, tokens 131,072\n")
    assert "| ours     | 0.123   |" in text
    assert "| theirs   | 12.3    |" in text
    assert "| nobody's | -       |" in text
    assert "| times faster | 100.0    | >= 8.000 | yes     |" in text
    assert "| seconds      | 0.123    | <= 0.100 | NO      |" in text
    assert "| ours   | 0.500 (0.400 to 0.600) | 1.000 |" in text
    assert "| 100%           | -     |" in text
    assert "| BM25 | not installed |" in text
    assert text.endswith("Read it with care.\n")


def test_json_keeps_figures_unrounded(report):
    read = json.loads(json.dumps(report.as_json()))
    assert read["parts"][0]["rows"][0] == ["ours", 0.12345]
    assert [target["reached"] for target in read["targets"]] == [True, False]


@pytest.mark.parametrize(
    ("sign", "below", "equal", "above"),
    [(">=", False, True, True), (">", False, False, True), ("<=", True, True, False), ("<", True, False, False)],
)
def test_a_target_at_its_bound(sign, below, equal, above):
    assert [Target("it", value, sign, 1.0).reached for value in (0.9, 1.0, 1.1)] == [below, equal, above]


def test_results_are_read_back_as_they_were_written(report, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"reports": [report.as_json()] * 2}))
    first, second = read_reports(file)
    assert first.markdown() == second.markdown() == report.markdown()
    assert first.questions == report.questions


def test_results_of_before_questions_were_kept_are_read(report, tmp_path):
    values = report.as_json()
    del values["questions"]
    (tmp_path / "results.json").write_text(json.dumps({"reports": [values]}))
    assert read_reports(tmp_path / "results.json")[0].questions == []


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"reports": [{"name": "speed"}]}', '{"name": "speed"}'])
def test_a_file_that_is_no_result_is_refused_by_name(content, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"other\.json"):
        read_reports(file)
