"""A document as a selection shows it, cut into parts and as HTML."""

import html
import re
from dataclasses import dataclass, replace

import pytest

from shared_context.store.shown_document import as_html, parts_of


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
    marked = re.sub("<sup.*?</sup>", "", marked)
    assert html.unescape(re.sub("<[^>]+>", "", marked)) == document.text
    seen = "".join(re.findall('<span class="fine"[^>]*>(.*?)</span>', marked, re.DOTALL))
    assert html.unescape(seen) == "".join(node.text for node in selection.nodes)


def test_selections_that_are_joined_show_themselves_one_below_the_other(filled):
    lamp, ferry = (filled.select("When does it leave?", doc_ids=id) for id in ("lamp", "ferry"))
    assert (lamp + ferry)._repr_html_() == f"{lamp._repr_html_()}\n{ferry._repr_html_()}"


def test_a_whole_store_at_one_grain_is_seen_coarsely(filled):
    shown = filled.select(None, ratio=4)._repr_html_()
    assert shown.count("<h2>") == len(filled)
    assert 'class="coarse" title="ratio 4' in shown and 'class="fine" title' not in shown


def test_what_was_deleted_can_still_be_shown(filled):
    document = filled.get(filled.ids()[0])
    selection = filled.select(document.text.split(".")[0], doc_ids=document.id)
    filled.delete(document.id)
    assert html.escape(document.text[:40]) in selection._repr_html_()


def parts_seen(text, *words):
    """What is seen of a text: these words, at ratio 1."""
    nodes = [Seen(at, at + len(word)) for word in words for at in [text.index(word)]]
    return parts_of(len(text), nodes)


@dataclass
class Seen(Node):
    score: float = 1.0
    kv_entries: int = 3


FILLER = "Nothing happens here. " * 500


def test_of_a_long_document_what_is_seen_and_its_surroundings_are_shown():
    text = f"{FILLER}Before the gate. THE GATE. After the gate. {FILLER}THE LAMP.{FILLER}"
    page = as_html("", [("log", text, parts_seen(text, "THE GATE.", "THE LAMP."))])
    assert len(page) < len(text) / 4
    assert "Before the gate. " in page and "After the gate. " in page
    left_out = [int(number.replace(",", "")) for number in re.findall(r"\[\.\.\. ([\d,]+) characters", page)]
    body = re.sub(
        '<sup.*?</sup>|<span class="gap">.*?</span>', "", re.search("<pre[^>]*>(.*)</pre>", page, re.DOTALL)[1]
    )
    assert len(left_out) == 3
    assert len(html.unescape(re.sub("<[^>]+>", "", body))) + sum(left_out) == len(text)
    assert text in html.unescape(re.sub("<[^>]+>", "", as_html("", [("log", text, parts_seen(text))], full=True)))


def test_links_lead_from_passage_to_passage():
    texts = [f"ONE {FILLER} TWO", "THREE and four"]
    seen = [parts_seen(texts[0], "ONE", "TWO"), parts_seen(texts[1], "THREE")]
    page = as_html("", [(str(n), text, parts) for n, (text, parts) in enumerate(zip(texts, seen, strict=True))])
    targets = re.findall(r'id="(seen-\w+-\d)"', page)
    assert len(targets) == 3
    assert set(re.findall('href="#([^"]+)"', page)) == set(targets)
    second = re.search(rf'id="{targets[1]}"[^>]*>(.*?)</sup>', page)[1]
    assert re.findall('href="#([^"]+)"', second) == [targets[0], targets[2]]


def test_a_document_that_nothing_is_seen_of_is_named_and_not_shown():
    page = as_html("", [("log", FILLER, parts_seen(FILLER))])
    assert "Nothing" not in page and f"[... {len(FILLER):,} characters ...]" in page


def test_a_store_shows_itself_in_a_notebook(filled):
    shown = filled._repr_html_()
    assert all(html.escape(id) in shown for id in filled.ids())
    assert filled.model.name in shown and f"{filled.stats()['tokens']:,} in" in shown
    filled.close()
    assert filled._repr_html_() is None


def test_an_answer_shows_itself_in_a_notebook(filled):
    answer = filled.model.complete("What is <b>bold</b>? Say <i>.", max_new_tokens=3)
    shown = replace(answer, text="<i>a</i>")._repr_html_()
    assert "&lt;i&gt;a&lt;/i&gt;" in shown and "3 tokens" in shown
