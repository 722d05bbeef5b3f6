"""Span recall, likeness of answers, intervals and paired differences."""

import pytest

from shared_context.evaluation.metrics import (
    containment,
    exact_match,
    f1,
    holds_a_span,
    is_refusal,
    mean_with_interval,
    paired_difference,
    verdict,
)
from shared_context.evaluation.questions import Span


def spans(document, pairs):
    return [Span(document, start, end) for start, end in pairs]


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
    assert holds_a_span(spans("d", shown), spans("d", wanted)) is held
    assert not holds_a_span(spans("another", shown), spans("d", wanted))


def test_the_end_of_one_document_does_not_touch_the_beginning_of_another():
    assert not holds_a_span([Span("a", 0, 5), Span("b", 5, 10)], [Span("a", 3, 7), Span("b", 3, 7)])


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "contained", "words"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1, 1, 1.0),
        ("It is the Eiffel Tower", ["Eiffel Tower"], 0, 1, 2 / 3),
        ("a tower", ["Eiffel Tower", "towers"], 0, 0, 2 / 3),
        ("It opens with 192.", ["92"], 0, 0, 0.0),
        ("", ["92"], 0, 0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer, gold, exact, contained, words):
    assert exact_match(answer, gold) == exact
    assert containment(answer, gold) == contained
    assert f1(answer, gold) == pytest.approx(words)


def test_mean_with_its_interval():
    mean = mean_with_interval([1.0, 2.0, 3.0] * 30)
    assert mean.mean == 2.0
    assert mean.low < 2.0 < mean.high
    assert mean_with_interval([5.0]).low == 5.0
    with pytest.raises(ValueError, match="at least one"):
        mean_with_interval([])


def test_a_verdict_needs_an_interval_without_zero():
    assert verdict(paired_difference([1.0] * 9, [0.0] * 9)) == "better"
    assert verdict(paired_difference([1.0] * 9, [0.0] * 9), more_is_better=False) == "worse"
    assert verdict(paired_difference([0.0, 1.0] * 9, [1.0, 0.0] * 9)) == "not told apart"


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


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("The handbook does not mention a telephone number.", True),
        ("I'm sorry, but I don't have that information.", True),
        ("The price is not stated in the text.", True),
        ("There is no information about the dog.", True),
        ("It isn't specified. You could ask the office.", True),
        ("The night shift begins at 21:47.", False),
        ("Do not prop the red doors.", False),
        ("It costs £38. It is paid by the Authority. The rent of others is not stated.", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_by_how_the_answer_begins(answer, refused):
    assert is_refusal(answer) is refused
