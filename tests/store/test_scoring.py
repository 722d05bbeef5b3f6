"""What surrounds a leaf, and how it counts."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared_context.store.scoring import section_leaves, with_section


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
