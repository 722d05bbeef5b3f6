"""What is shown begins and ends at words, whatever was scored."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context import Document, StoreConfig, TreeConfig
from shared_context.model.tokenization import TokenizedText
from shared_context.store.node_data import StoredText
from shared_context.store.passages import LONGEST_WORD
from shared_context.store.word_edges import WordEdges, word_edge
from shared_context.tree import Node

PROSE = (
    "The drying-house at Lower Quay takes 149 euros a month, heating included, and the harbourmaster's own account "
    "number is 4471-0098. Ropemakers, sailmakers and netmenders pay 1,250.50 crowns for an extraordinary season. "
)
TABLE = "item,price,weight\n" + "".join(f"sieve{n},{n * 7919},{n * 104729}\n" for n in range(40))
CHINESE = "港口的燈塔每天日落前一小時點亮,費用是149歐元。看守人叫艾達·奎斯特,她走112級臺階,擦拭1874年的透鏡。🏮🚢"
TEXTS = {
    "prose": PROSE * 4,
    "table": TABLE,
    "chinese": CHINESE * 5,
    "digits": f"{7**200} {3**90}",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
}
SMALL = StoreConfig(tree=TreeConfig(chunk_size=64, height=3), floor=0.0, lead_in=32)
"""Leaves of 8 tokens, so that there are many edges."""


def cuts_a_word(text, at):
    """Whether a character lies within a run of letters or digits that is no longer than a word may be."""
    unspaced = "\u3040" <= text[at : at + 1] <= "\u9fff" or "\u3040" <= text[max(at - 1, 0) : at] <= "\u9fff"
    if not 0 < at < len(text) or unspaced or not (text[at - 1].isalnum() and text[at].isalnum()):
        return False
    start, end = at, at
    while start > 0 and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    return end - start <= LONGEST_WORD


@pytest.fixture(scope="module")
def store(model):
    from shared_context import SharedLLMContextStore

    with SharedLLMContextStore(model, config=SMALL, embedder=None) as store:
        store.add([Document(text, id) for id, text in TEXTS.items()])
        yield store


@pytest.mark.parametrize("query", ["What does it cost?", "149", "sieve13", "日落", "the account of the harbourmaster"])
@pytest.mark.parametrize("budget", [20, 100, 400])
def test_no_edge_of_what_is_shown_lies_in_a_word_and_the_budget_holds(store, query, budget):
    selection = store.select(query, budget=budget)
    assert 0 < selection.kv_entries <= budget
    for node in selection.nodes:
        text = TEXTS[node.doc_id]
        assert not cuts_a_word(text, node.start) and not cuts_a_word(text, node.end), node.text
        assert node.text == text[node.start : node.end] and node.token_count > 0
    for chunk, part in zip(selection.chunks, selection.key_values().rows, strict=True):
        shown = store.model.tokenizer.decode(chunk.token_ids[part.numpy()])
        assert shown.replace("\ufffd", "") == "".join(node.text for node in chunk.nodes)


@pytest.mark.parametrize("options", [{"ratio": 1}, {"search": "split_and_search"}])
def test_all_that_may_be_shown_is_shown_once(store, options):
    shown = store.select("Who pays?", **options)
    assert sum(node.token_count for node in shown.nodes) == sum(map(store.model.count_tokens, TEXTS.values()))
    for id, text in TEXTS.items():
        assert "".join(node.text for node in shown.nodes if node.doc_id == id) == text


def test_a_selection_is_made_again_of_its_runs(store):
    first = store.select("What does the season cost?", budget=200)
    spans = [(run[0].doc_id, run[0].start, run[-1].end, run[0].ratio, run[0].score) for run in first.runs]
    again = store.selection_from(spans)
    assert [(n.doc_id, n.start, n.end) for n in again.nodes] == [(n.doc_id, n.start, n.end) for n in first.nodes]


def test_a_word_across_two_chunks_is_shown_by_the_later_one(store):
    chunks = {id: store.model.count_tokens(text) // 64 for id, text in TEXTS.items()}
    shown = store.select("Who pays?", ratio=1).chunks
    assert any(chunk.begin < chunk.lead_in for chunk in shown) and len(shown) > sum(chunks.values())


letters = st.sampled_from([*"ab1 .,-\n", "é", "港", "👩"])
pieces = st.lists(st.tuples(st.text(letters, min_size=0, max_size=4)), min_size=1, max_size=40)


@given(pieces, st.integers(0, 3))
def test_edges_never_fall_and_leaves_tile_the_document(found, lead_in):
    text = "".join(piece for (piece,) in found) or "a"
    bounds = np.concatenate([[0], np.cumsum([len(piece) for (piece,) in found])])
    bounds[-1] = len(text)
    stored = StoredText(text, TokenizedText(np.zeros(len(bounds) - 1, np.int32), bounds))
    tree = TreeConfig(chunk_size=4, height=1)
    edges = WordEdges(tree, lead_in, lambda key: stored)
    tokens = len(stored.tokens)
    spans = [edges.span(1, number, Node(1, slot)) for number in range(-(-tokens // 4)) for slot in (0, 1)]
    assert spans[0][0] == 0 and spans[-1][1] == tokens
    assert all(end == start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert all(start <= end for start, end in spans)
    for token in range(tokens):
        first, end = spans[edges.leaf(1, token)]
        assert first <= token < end
        assert word_edge(stored, token, tokens) <= token
