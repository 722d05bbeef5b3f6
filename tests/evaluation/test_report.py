"""Reports, as people and as programs read them."""

import json

import pytest

from shared_context.evaluation.report import Report, Table, Target


@pytest.fixture
def report():
    return Report(
        "speed",
        {"model": "tiny", "tokens": 131072},
        [Table("Seconds", ("way", "seconds"), [("ours", 0.12345), ("theirs", 12.345), ("nobody's", None)])],
        [Target("times faster", 100.0, ">=", 8.0), Target("seconds", 0.12345, "<=", 0.1)],
        ["Read it with care."],
    )


def test_markdown_holds_every_figure_and_says_which_targets_are_missed(report):
    text = report.markdown()
    assert text.startswith("## speed\n\nmodel tiny, tokens 131,072\n")
    assert "| ours     | 0.123   |" in text
    assert "| theirs   | 12.3    |" in text
    assert "| nobody's | -       |" in text
    assert "| times faster | 100.0    | >= 8.000 | yes     |" in text
    assert "| seconds      | 0.123    | <= 0.100 | NO      |" in text
    assert text.endswith("Read it with care.\n")


def test_json_keeps_figures_unrounded(report):
    read = json.loads(json.dumps(report.as_json()))
    assert read["tables"][0]["rows"][0] == ["ours", 0.12345]
    assert [target["reached"] for target in read["targets"]] == [True, False]


@pytest.mark.parametrize(
    ("sign", "below", "equal", "above"),
    [(">=", False, True, True), (">", False, False, True), ("<=", True, True, False)],
)
def test_a_target_at_its_bound(sign, below, equal, above):
    assert [Target("it", value, sign, 1.0).reached for value in (0.9, 1.0, 1.1)] == [below, equal, above]
