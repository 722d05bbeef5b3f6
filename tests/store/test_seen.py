"""What a query sees of a document, cut into parts and as HTML."""

import html
import re
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


def test_a_selection_shows_itself_in_a_notebook(filled):
    document = filled.get(filled.ids()[0])
    budget = filled.config.tree.leaf_size
    selection = filled.select(document.text.split(".")[0], budget=budget, doc_ids=document.id)
    shown = selection._repr_html_()
    assert html.escape(document.id) in shown and f"{selection.kv_entries} KV entries of {budget}" in shown
    assert 'class="fine" title="ratio 1' in shown and "<script" not in shown
    marked = re.search("<pre[^>]*>(.*)</pre>", shown, re.DOTALL)[1]
    assert html.unescape(re.sub("<[^>]+>", "", marked)) == document.text
    seen = "".join(re.findall('<span class="fine"[^>]*>(.*?)</span>', marked, re.DOTALL))
    assert html.unescape(seen) == "".join(node.text for node in selection.nodes)


def test_a_whole_store_at_one_grain_is_seen_coarsely(filled):
    shown = filled.select(None, ratio=4)._repr_html_()
    assert shown.count("<h2>") == len(filled)
    assert 'class="coarse" title="ratio 4' in shown and 'class="fine" title' not in shown


def test_what_was_deleted_can_still_be_shown(filled):
    document = filled.get(filled.ids()[0])
    selection = filled.select(document.text.split(".")[0], doc_ids=document.id)
    filled.delete(document.id)
    assert html.escape(document.text[:40]) in selection._repr_html_()
