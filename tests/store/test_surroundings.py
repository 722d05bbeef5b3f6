"""What surrounds a leaf, and how it counts."""

from itertools import accumulate
from statistics import fmean

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared_context import SharedLLMContextStore
from shared_context.store.surroundings import (
    RUN_WEIGHT,
    run_leaves,
    run_weight,
    section_leaves,
    with_runs,
    with_section,
)


@given(
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=1, max_size=40),
    st.integers(0, 9),
    st.floats(0, 4),
)
def test_a_section_is_what_lies_around_a_leaf_and_ends_with_its_stretch(leaves, reach, weight):
    scores = torch.tensor([score for score, _ in leaves], dtype=torch.float32)
    touch = np.array([touches for _, touches in leaves[1:]], dtype=bool)
    expected = []
    for row, score in enumerate(scores.tolist()):
        around = [
            scores[other] - scores.mean()
            for other in range(max(0, row - reach), min(len(scores), row + reach + 1))
            if touch[min(row, other) : max(row, other)].all()
        ]
        expected.append(score + weight * sum(around) / len(around))
    torch.testing.assert_close(with_section(scores, touch, reach, weight), torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_a_section_is_as_long_as_what_is_shown_and_no_longer_than_the_longest():
    assert [section_leaves(shown, 32) for shown in (16, 64, 128, 256, 512, 10_000)] == [0, 1, 2, 4, 8, 8]


@given(
    st.lists(st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 9),
    st.floats(0, 1),
)
def test_a_leaf_is_as_good_as_the_best_run_that_it_is_in(leaves, length, weight):
    scores = [score for score, _ in leaves]
    touch = [touches for _, touches in leaves[1:]]
    stretch = list(accumulate([0, *(not touches for touches in touch)]))
    expected = []
    for row, score in enumerate(scores):
        own = [other for other in range(len(scores)) if stretch[other] == stretch[row]]
        runs = [own[at : at + length] for at in range(max(1, len(own) - length + 1))]
        best = max(fmean(scores[other] for other in run) for run in runs if row in run)
        expected.append(score if length == 1 else (1 - weight) * score + weight * best)
    found = with_runs(torch.tensor(scores), np.array(touch, bool), length, weight)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_runs_count_where_a_good_part_of_the_text_is_shown():
    assert [run_leaves(shown, 32) for shown in (32, 128, 1024, 10_000)] == [0, 2, 16, 16]
    weights = [run_weight(1024, tokens) for tokens in (1_000_000, 20_480, 18_000, 16_384, 500)]
    assert weights[:2] == [0, 0] and 0 < weights[2] < RUN_WEIGHT and weights[3:] == [RUN_WEIGHT] * 2
    assert run_weight(100_000, 1_000_000) == 0


def test_a_story_is_shown_in_runs(model):
    """What is asked about is told in one place; single words of the question stand everywhere."""
    places = ["mill", "bridge", "forest", "harbour", "castle", "chapel"]
    places += ["meadow", "quarry", "orchard", "island", "market", "tower"]
    things = ["lantern", "ladder", "barrel", "saddle", "blanket", "hammer"]
    things += ["basket", "mirror", "candle", "spade", "rope", "drum"]
    told = (
        "The cooper brought a golden kettle to the miller. She set it upon the stove and blew into the fire. "
        "It hummed, and it hissed, and at last it sang. All who heard it had to dance until they fell. "
        "So they danced around the table, and out of the door, and down to the bridge. "
        "Nobody in the valley slept that night, and the dogs barked until morning. "
        "When the sun rose, the song ended. They lay in the grass and did not know where they were. "
        "There the cooper stood and laughed. That is what came of the golden kettle. "
    )
    parts = []
    for number in range(48):
        place, thing = places[number % 12], things[(number * 5 + number // 12) % 12]
        parts.append(f"At the {place} an old woman kept a {thing} under the roof. The winter of that year was long, ")
        parts.append(f"and snow lay on the {place} until May. ")
        if number % 4 == 1:
            place, thing = places[number // 4], things[number // 4]
            parts.append(f"The cooper of the {place} sold a golden {thing} to a miller. ")
    middle = len(parts) // 2
    text = "".join([*parts[:middle], told, *parts[middle:]])
    with SharedLLMContextStore(model) as store:
        store.add(text, id="story")
        shown = store.select("What happened when the cooper brought the golden kettle to the miller?", budget=384)
    assert told.strip() in shown.text
    assert len(shown.passages) == 1
