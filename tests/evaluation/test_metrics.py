"""Span recall and paired differences."""

import pytest

from shared_context.evaluation.metrics import holds_a_span, paired_difference


@pytest.mark.parametrize(
    ("shown", "wanted", "held"),
    [
        ([(0, 10)], [(3, 7)], True),
        ([(0, 10)], [(0, 10)], True),
        ([(0, 10)], [(9, 11)], False),
        ([(5, 10), (0, 5)], [(3, 7)], True),  # nodes that touch are read as one
        ([(0, 6), (4, 10)], [(3, 9)], True),  # so are chunks that overlap
        ([(0, 9), (4, 6)], [(7, 9)], True),  # and one inside another takes nothing away from it
        ([(0, 5), (6, 10)], [(3, 7)], False),  # a gap is not
        ([(0, 5)], [(20, 22), (1, 3)], True),  # any one of several gold answers
        ([], [(1, 3)], False),
    ],
)
def test_an_answer_is_found_only_where_it_is_shown_whole(shown, wanted, held):
    assert holds_a_span(shown, wanted) is held


def test_difference_of_paired_results_is_sharp_where_unpaired_ones_would_not_be():
    questions = [0.0, 10.0] * 50
    better = paired_difference(questions, [nll + 1.0 for nll in questions])
    assert better.mean == -1.0
    assert better.low == better.high == -1.0


def test_difference_without_a_direction_has_an_interval_around_zero():
    difference = paired_difference([0.0, 1.0] * 50, [1.0, 0.0] * 50)
    assert difference.mean == 0.0
    assert difference.low < 0.0 < difference.high
    assert difference == paired_difference([0.0, 1.0] * 50, [1.0, 0.0] * 50)  # repeatable


def test_interval_is_that_of_the_textbook():
    # Mean of n coin flips: standard error sqrt(p (1 - p) / n) = 0.05, and 1.96 of them to each side.
    difference = paired_difference([1.0] * 50 + [0.0] * 50, [0.0] * 100)
    assert difference.mean == 0.5
    assert difference.low == pytest.approx(0.402, abs=0.015)
    assert difference.high == pytest.approx(0.598, abs=0.015)


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 2.0]), ([], [])])
def test_unpaired_results_are_refused(first, second):
    with pytest.raises(ValueError, match="paired"):
        paired_difference(first, second)
