"""What a query sees of a document, cut into parts and as HTML."""

from dataclasses import dataclass

import pytest

from shared_context.store.seen import parts_of


@dataclass
class Node:
    start: int
    end: int
    ratio: int = 1


@pytest.mark.parametrize(
    "nodes, expected",
    [
        ([], [(0, 10, "unseen")]),
        ([Node(0, 10)], [(0, 10, "fine")]),
        ([Node(2, 4), Node(4, 6, ratio=8)], [(0, 2, "unseen"), (2, 4, "fine"), (4, 6, "coarse"), (6, 10, "unseen")]),
        ([Node(0, 4), Node(3, 6), Node(5, 6)], [(0, 4, "fine"), (4, 6, "fine"), (6, 10, "unseen")]),
    ],
)
def test_parts_cover_a_document_once(nodes, expected):
    assert [(part.start, part.end, part.grain) for part in parts_of(10, nodes, fine=1)] == expected


def test_the_finest_grain_of_a_store_counts_as_fine():
    assert [part.grain for part in parts_of(9, [Node(0, 4, ratio=2), Node(4, 9, ratio=4)], fine=2)] == [
        "fine",
        "coarse",
    ]
