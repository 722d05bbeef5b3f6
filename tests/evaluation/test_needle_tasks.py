"""Needles in haystacks: where they are, and what is asked."""

import re

import numpy as np
import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation.needle_tasks import AT_A_DEPTH, SEVERAL, TASKS, make_needles
from shared_context.model.tokenization import TokenizedText

HAYSTACK = " ".join(f"Sentence {n} says nothing of use." for n in range(200))


def words(text):
    """A word with the blank before it is a token."""
    starts = [match.start() for match in re.finditer(r" ?\S+", text)]
    return TokenizedText(np.zeros(len(starts), np.int32), np.array([*starts, len(text)]))


def make(task, depth=0.5, seed=0):
    return make_needles(task, HAYSTACK, depth, np.random.default_rng(seed), words)


@pytest.mark.parametrize("task", TASKS)
def test_every_needle_stands_where_its_span_says_and_names_its_value(task):
    made = make(task)
    sentences = [made.text[span.start : span.end] for span in made.spans]
    assert len(made.values) == len(made.spans) == len(set(made.values))
    assert all(value in sentence for value, sentence in zip(made.values, sentences, strict=True))
    assert all(made.text.count(sentence) == 1 for sentence in sentences)
    # The question does not give the answer away.
    assert not any(value in made.question for value in made.values)
    # Needles stand between sentences, not inside them.
    assert all(re.fullmatch(r"[A-Z][^.]*(\. [A-Z][^.]*)*\.", sentence) for sentence in sentences)


@pytest.mark.parametrize("task", AT_A_DEPTH)
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_lies_at_its_depth(task, depth):
    made = make(task, depth)
    assert made.spans[0].start / len(made.text) == pytest.approx(depth, abs=0.03)


@pytest.mark.parametrize("task", [task for task in TASKS if task != "key-value"])
def test_needles_take_the_place_of_as_many_tokens(task):
    made = make(task)
    before, after = words(HAYSTACK), words(made.text)
    assert len(after) == len(before)
    same = sum(
        HAYSTACK[slice(*before.characters(i, i + 1))] == made.text[slice(*after.characters(i, i + 1))]
        for i in range(len(before))
    )
    assert same >= len(before) - 10 * (2 * SEVERAL + 1)


def test_lockers_are_the_same_whichever_is_asked_for():
    assert make("key-value", 0.0).text == make("key-value", 1.0).text
    assert make("key-value", 0.0).question != make("key-value", 1.0).question


def test_a_haystack_without_room_is_refused():
    with pytest.raises(ConfigError, match="no room"):
        make_needles("single", "Too short.", 0.5, np.random.default_rng(0), words)


def test_haystacks_hold_what_their_task_says():
    lockers = {task: len(re.findall("The locker of", make(task).text)) for task in TASKS}
    assert lockers["single"] == 1
    assert lockers["multi-key"] == SEVERAL + 1
    assert lockers["multi-value"] == SEVERAL
    assert lockers["key-value"] > 50 and "Sentence" not in make("key-value").text
    owners = re.findall(r"The locker of (.+?) opens", make("key-value").text)
    assert len(owners) == len(set(owners))
    assert len({name for name in re.findall(r"The locker of (.+?) opens", make("multi-value").text)}) == 1


def test_crates_of_a_chain_lead_from_one_to_the_next():
    made = make("variable tracking")
    sentences = [made.text[span.start : span.end] for span in made.spans]
    assert len(sentences) == SEVERAL + 1
    for before, after, sentence in zip(made.values, made.values[1:], sentences[1:], strict=False):
        assert sentence == f"Crate {after} holds the same as crate {before}."
    assert [span.start for span in made.spans] == sorted(span.start for span in made.spans)


def test_the_same_seed_makes_the_same_needles():
    assert make("multi-key", seed=1) == make("multi-key", seed=1)
    assert make("multi-key", seed=1) != make("multi-key", seed=2)
