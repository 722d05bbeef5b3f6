"""The end of the last document can be opened before all else, for a text that goes on."""

import pytest

from shared_context.errors import ConfigError

QUESTION = "Who raised the Temperance's bell from the seabed?"


def test_the_end_is_shown_beside_what_the_query_finds(handbook_store, handbook, model):
    leaf = handbook_store.config.tree.leaf_size
    plain, recent = (handbook_store.select(QUESTION, budget=1024, recent=recent) for recent in (0, 300))
    end = recent.passages[-1]
    assert end[-1].end == len(handbook)
    assert 300 <= sum(node.token_count for node in end) < 300 + leaf
    assert min(node.score for node in end) > max(node.score for node in recent.nodes if node not in end)
    assert "Kalymnos" in recent.text
    assert plain.nodes[-1].end < len(handbook)


def test_of_an_end_larger_than_the_budget_the_last_is_shown(handbook_store, handbook):
    selection = handbook_store.select(QUESTION, budget=200, recent=1000)
    end = selection.passages[-1]
    assert end[-1].end == len(handbook)
    assert sum(node.token_count for node in end) > 200 - handbook_store.config.tree.leaf_size


def test_only_the_last_document_has_an_end_and_no_prefilter_takes_it_away(hybrid):
    query = "When does the last ferry to Holm leave on Sundays?"
    selection = hybrid.select(query, budget=64, recent=10_000, prefilter=1)
    assert selection.doc_ids == ["kitchen"]
    assert hybrid.select(query, budget=64, recent=20, prefilter=1).doc_ids == ["ferry", "kitchen"]
    narrowed = hybrid.select(query, budget=64, recent=20, prefilter_chunks=1)
    assert narrowed.doc_ids == ["ferry", "kitchen"]
    assert narrowed.nodes[-1].end == len(hybrid.get("kitchen").text)
    assert hybrid.select(query, budget=32, recent=32, doc_ids=["lamp", "ferry"]).doc_ids == ["ferry"]


@pytest.mark.parametrize(
    "options", [{"recent": -1}, {"recent": 8, "ratio": 8}, {"recent": 8, "search": "split_and_search"}]
)
def test_where_nothing_is_searched_best_first_there_is_no_end(hybrid, options):
    with pytest.raises(ConfigError, match="recent"):
        hybrid.select(QUESTION, **options)
