"""Needles, found and named."""

import pytest

from shared_context.evaluation import needle
from shared_context.evaluation.report import HeatMap


def test_a_needle_in_a_short_haystack_is_shown_and_named(model, handbook, tmp_path):
    options = {"lengths": [400], "depths": [0.5], "tasks": ["single", "variable tracking"], "trials": 1}
    report = needle.measure(model, handbook, **options, resume=tmp_path / "state")
    maps = {part.title: part.values for part in report.parts if isinstance(part, HeatMap)}
    assert list(maps) == [
        "single: needles shown",
        "single: values named in the answer",
        "variable tracking: needles shown",
        "variable tracking: values named in the answer",
    ]
    assert maps["single: needles shown"] == [[1.0]]
    (summary,) = [part for part in report.parts if not isinstance(part, HeatMap)]
    for _, haystacks, shown, named, low, high, guessed in summary.rows:
        assert haystacks == 1 and 0 <= low <= named <= high <= 1 and 0 <= shown <= 1
        assert guessed == 0.0  # nobody knows a drawn number or name without the haystack
    again = needle.measure(model, handbook, **options, resume=tmp_path / "state")
    assert again.as_json() == report.as_json()


@pytest.mark.slow
def test_all_tasks_at_all_depths(model, handbook):
    report = needle.measure(model, handbook, lengths=[600], depths=[0.0, 1.0], trials=1)
    maps = {part.title: part for part in report.parts if isinstance(part, HeatMap)}
    assert len(maps) == 10
    assert maps["key-value: needles shown"].rows == ["0%", "100%"]
    assert maps["multi-value: needles shown"].rows == [needle.SPREAD]
    assert all(0 <= value <= 1 for part in maps.values() for row in part.values for value in row)


def test_a_haystack_at_one_grain_is_shown_whole(make_small_model, handbook):
    model = make_small_model(window=4096)
    report = needle.measure(model, handbook, lengths=[600], depths=[1.0], tasks=["single"], trials=1, ratio=8)
    maps = {part.title: part.values for part in report.parts if isinstance(part, HeatMap)}
    assert maps["single: needles shown"] == [[1.0]]
    assert report.setting["ratio"] == 8 and "budget" not in report.setting
