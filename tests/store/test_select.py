"""Selecting and retrieving: budgets, grains, policies, filters, and whose text it is."""

import sys
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_context import Document, SharedLLMContextStore, StoreConfig, TreeConfig, errors
from shared_context.config import Policy, paper_ratios
from shared_context.store import prefilter as prefilters
from shared_context.tree import cut_rows

QUERY = "When does the last ferry to Holm leave on Sundays?"
POLICIES = list(get_args(Policy))
policies = pytest.mark.parametrize("policy", POLICIES)
once = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def covered(selection, documents) -> dict[str, list[int]]:
    """Characters shown of each document, in the order in which they are shown."""
    texts = {d.id: d.text for d in documents}
    found = {}
    for node in selection.nodes:
        assert node.text == texts[node.doc_id][node.start : node.end]
        found.setdefault(node.doc_id, []).extend(range(node.start, node.end))
    return found


# What is found


@pytest.mark.parametrize(
    ("query", "doc_id", "answer"),
    [
        (QUERY, "ferry", "Sundays only the last one"),
        ("Who is the keeper of the lamp?", "lamp", "Ada Quist"),
        ("What do guests with an allergy to shellfish wear?", "kitchen", "blue ribbon"),
        ("How much is it to take a bicycle?", "ferry", "12 crowns"),
    ],
)
@pytest.mark.parametrize(
    ("policy", "budget"), [("hybrid", 64), ("late_interaction", 64), ("lexical", 64), ("embedding", 128)]
)
def test_the_answer_is_in_a_small_selection(hybrid, query, doc_id, answer, policy, budget):
    selection = hybrid.select(query, budget=budget, policy=policy)
    assert doc_id in selection.doc_ids
    assert answer in " ".join(selection.text.split())


def test_the_best_policy_there_is_is_the_default(hybrid, filled):
    assert hybrid.select(QUERY).policy == "hybrid"
    assert filled.select(QUERY).policy == "hybrid"


@policies
def test_nodes_are_in_document_order_with_exact_text(hybrid, documents, policy):
    selection = hybrid.select(QUERY, budget=96, policy=policy)
    assert 0 < selection.kv_entries <= 96
    places = [(hybrid.ids().index(n.doc_id), n.start) for n in selection.nodes]
    assert places == sorted(places)
    assert all(len(set(shown)) == len(shown) for shown in covered(selection, documents).values())
    assert all(n.level == 2 and n.ratio == 1 and n.kv_entries == n.token_count for n in selection.nodes)
    assert all(np.isfinite(n.score) for n in selection.nodes)


def test_the_text_joins_what_touches_and_parts_what_does_not(hybrid):
    selection = hybrid.selection_from([("lamp", 0, 100), ("lamp", 230, 260), ("ferry", 0, 20)])
    assert selection.text.count("\n\n") == 2
    assert selection.doc_ids == ["lamp", "ferry"]


def test_everything_at_one_grain(hybrid, documents):
    for ratio in (1, 4, 1000):
        selection = hybrid.select(QUERY, ratio=ratio)
        assert [sorted(c) for c in covered(selection, documents).values()] == [
            list(range(len(d.text))) for d in documents
        ]
        assert all(
            n.ratio == ratio and n.level == 0 and n.kv_entries == -(-n.token_count // ratio) for n in selection.nodes
        )
        assert selection.budget is None


def test_everything_at_one_grain_needs_no_query(hybrid):
    assert hybrid.select(None, ratio=8).kv_entries == hybrid.select(QUERY, ratio=8).kv_entries


def test_everything_at_one_grain_keeps_to_filters_documents_and_the_prefilter(hybrid):
    assert hybrid.select(None, ratio=8, filters={"place": "inn"}).doc_ids == ["kitchen"]
    assert hybrid.select(None, ratio=8, doc_ids=["lamp"]).doc_ids == ["lamp"]
    assert hybrid.select(QUERY, ratio=8, prefilter=1).doc_ids == ["ferry"]


def test_the_default_budget_is_1024(hybrid):
    selection = hybrid.select(QUERY)
    assert selection.budget == 1024
    assert selection.kv_entries == hybrid.select(None, ratio=1).kv_entries


# Budgets


@once
@given(
    budget=st.integers(1, 400),
    coarse=st.one_of(st.none(), st.sampled_from([(None, 8, 4), (16, 8, 4), (None, None, 4), (3, 2, 1)])),
    fine=st.integers(1, 4),
    policy=st.sampled_from(POLICIES),
)
def test_the_budget_is_never_exceeded(hybrid, documents, budget, coarse, fine, policy):
    try:
        selection = hybrid.select(QUERY, budget=budget, coarse=coarse, fine=fine, policy=policy)
    except errors.BudgetError:
        assert budget < 16
        return
    assert 0 < selection.kv_entries <= budget
    kv = sum(len(cut_rows(chunk.tree, chunk.cut)) for chunk in selection.chunks)
    assert kv == selection.kv_entries
    covered(selection, documents)


def test_chunks_that_are_shown_coarsely_are_covered_exactly_once(hybrid, documents):
    selection = hybrid.select(QUERY, budget=100, coarse=(16, 8, 4))
    assert {n.ratio for n in selection.nodes} > {1}
    for chunk in selection.chunks:
        tokens = [t for node, _ in chunk.cut for t in range(*chunk.tree.span(node))]
        assert tokens == list(range(chunk.tree.length))


@pytest.mark.parametrize("budget", [0, -1, -1000, 1.5, "64", float("nan")])
def test_a_budget_that_is_no_positive_whole_number_is_refused(hybrid, budget):
    for search in ("best_first", "split_and_search"):
        with pytest.raises(errors.BudgetError, match="budget="):
            hybrid.select(QUERY, budget=budget, search=search)


def test_a_budget_below_the_smallest_cut_is_refused_with_the_one_that_is_not(hybrid):
    for coarse in (None, (2, 2, 1), (None, 2, 1), (None, None, 1)):
        with pytest.raises(errors.BudgetError, match="smallest cut") as caught:
            hybrid.select(QUERY, budget=1, coarse=coarse)
        enough = int(str(caught.value).split("takes ")[1].split()[0])
        assert hybrid.select(QUERY, budget=enough, coarse=coarse)
        with pytest.raises(errors.BudgetError):
            hybrid.select(QUERY, budget=enough - 1, coarse=coarse)


def test_numpy_integers_are_numbers(hybrid):
    assert hybrid.select(QUERY, budget=np.int64(64)).kv_entries <= 64
    assert len(hybrid.retrieve(QUERY, k=np.int32(2))) == 2


# The floor


def test_the_floor_is_without_effect_where_the_budget_holds_everything(hybrid):
    assert hybrid.select(QUERY, budget=10_000, floor=1.0).nodes == hybrid.select(QUERY, budget=10_000, floor=0.0).nodes


@once
@given(budget=st.integers(1, 64), floor=st.floats(0, 1), policy=st.sampled_from(POLICIES))
def test_the_floor_refuses_no_budget_that_holds_something(hybrid, budget, floor, policy):
    try:
        expected = hybrid.select(QUERY, budget=budget, policy=policy, floor=0.0)
    except errors.BudgetError:
        with pytest.raises(errors.BudgetError):
            hybrid.select(QUERY, budget=budget, policy=policy, floor=floor)
        return
    assert 0 < hybrid.select(QUERY, budget=budget, policy=policy, floor=floor).kv_entries <= expected.kv_entries


# Split and search


def test_split_and_search_shows_a_part_of_every_chunk(hybrid):
    selection = hybrid.select(QUERY, search="split_and_search")
    assert len(selection.chunks) == hybrid.stats()["chunks"]
    assert {n.ratio for n in selection.nodes} <= {r for r in paper_ratios(2) if r}
    for chunk in selection.chunks:
        assert [t for node, _ in chunk.cut for t in range(*chunk.tree.span(node))] == list(range(chunk.tree.length))


def test_without_a_query_split_and_search_keeps_the_end_of_every_chunk_finest(hybrid):
    selection = hybrid.select(None, search="split_and_search")
    assert selection.policy is None
    for chunk in selection.chunks:
        ratios = [ratio for _, ratio in chunk.cut]
        assert ratios == sorted(ratios, reverse=True)
        assert ratios[-1] == 4


@pytest.mark.parametrize("policy", ["late_interaction", "last_token"])
def test_with_a_query_split_and_search_follows_it(hybrid, policy):
    paths = {
        tuple(g.node for chunk in hybrid.select(q, search="split_and_search", policy=policy).chunks for g in chunk.cut)
        for q in (QUERY, "Who is the keeper of the lamp?", "soup of cod, leeks and barley", "the parrot Admiral")
    }
    assert len(paths) > 1


def test_split_and_search_leaves_out_what_its_ratios_do_not_show(hybrid):
    selection = hybrid.select(QUERY, search="split_and_search", coarse=(None, None, 2))
    assert all(n.ratio == 2 and n.level == 2 for n in selection.nodes)
    assert selection.kv_entries == sum(n.kv_entries for n in selection.nodes) > 0


def test_split_and_search_over_a_budget_is_refused_with_the_number(hybrid):
    needed = hybrid.select(QUERY, search="split_and_search").kv_entries
    assert hybrid.select(QUERY, search="split_and_search", budget=needed).kv_entries == needed
    with pytest.raises(errors.BudgetError, match=f"{needed} KV entries"):
        hybrid.select(QUERY, search="split_and_search", budget=needed - 1)


# Retrieving


@policies
def test_retrieve_gives_the_best_passages_best_first(hybrid, documents, policy):
    nodes = hybrid.retrieve(QUERY, k=3, policy=policy)
    assert len(nodes) == 3
    scores = [n.score for n in nodes]
    assert scores == sorted(scores, reverse=True)
    everything = hybrid.retrieve(QUERY, k=10_000, policy=policy)
    assert everything[:3] == nodes
    assert len(everything) == hybrid.stats()["chunks"]  # one is embedded as a whole, so small are they here
    texts = {d.id: d.text for d in documents}
    assert all(n.text == texts[n.doc_id][n.start : n.end] for n in everything)


@policies
def test_retrieve_and_select_agree_on_what_is_best(hybrid, policy):
    (passage,) = hybrid.retrieve(QUERY, k=1, policy=policy)
    (leaf,) = hybrid.select(QUERY, budget=16, policy=policy).nodes
    assert leaf.doc_id == passage.doc_id
    assert passage.start <= leaf.start < leaf.end <= passage.end
    assert leaf.score == pytest.approx(passage.score)


# Which documents


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (None, ["lamp", "ferry", "kitchen"]),
        ({"place": "pier"}, ["lamp", "ferry"]),
        ({"year": {"$lt": 1900}}, ["lamp"]),
        ({"$or": [{"tags": {"$contains": "food"}}, {"year": 1874}]}, ["lamp", "kitchen"]),
        ({"place": "moon"}, []),
    ],
)
def test_filters_say_which_documents_are_seen(hybrid, filters, ids):
    assert hybrid.ids(filters) == ids
    assert set(hybrid.select(QUERY, filters=filters).doc_ids) == set(ids)
    assert {n.doc_id for n in hybrid.retrieve(QUERY, k=100, filters=filters)} == set(ids)


def test_filters_and_documents_and_the_prefilter_all_hold(hybrid):
    assert hybrid.select(QUERY, doc_ids=["lamp", "kitchen"]).doc_ids == ["lamp", "kitchen"]
    assert hybrid.select(QUERY, doc_ids="lamp").doc_ids == ["lamp"]
    assert hybrid.select(QUERY, doc_ids=["lamp", "kitchen"], filters={"place": "pier"}).doc_ids == ["lamp"]
    assert hybrid.select(QUERY, prefilter=1).doc_ids == ["ferry"]
    assert hybrid.select(QUERY, prefilter=1, filters={"year": 1990}).doc_ids == ["ferry"]
    assert hybrid.select("Who lights the lamp?", prefilter=1, filters={"year": 1990}).doc_ids != ["lamp"]
    assert len(hybrid.select(QUERY, prefilter=2, doc_ids=["lamp", "kitchen"]).doc_ids) == 2
    assert not hybrid.select(QUERY, doc_ids=[])
    assert hybrid.retrieve(QUERY, doc_ids=[]) == []


@pytest.mark.parametrize("prefilter", [3, 4, 10_000])
def test_a_prefilter_of_more_documents_than_there_are_lets_all_through(hybrid, prefilter):
    assert len(hybrid.select(QUERY, prefilter=prefilter).doc_ids) == 3


@pytest.mark.parametrize("doc_ids", [None, ["ferry", "kitchen"]], ids=["by FAISS", "one by one"])
def test_a_prefilter_of_chunks_considers_the_nearest_of_all_documents(hybrid, doc_ids):
    (best,) = hybrid.retrieve(QUERY, k=1, policy="embedding", doc_ids=doc_ids)
    for narrowed in (
        hybrid.select(QUERY, prefilter_chunks=1, doc_ids=doc_ids),
        hybrid.select(QUERY, prefilter_chunks=1, doc_ids=doc_ids, search="split_and_search"),
        hybrid.select(QUERY, prefilter_chunks=1, doc_ids=doc_ids, ratio=1),
    ):
        assert (narrowed.doc_ids, len(narrowed.chunks)) == (["ferry"], 1)
        assert (narrowed.nodes[0].start, narrowed.nodes[-1].end) == best.shown
    nodes = hybrid.retrieve(QUERY, k=10, prefilter_chunks=2, doc_ids=doc_ids)
    assert len(nodes) == 2
    assert best.start in [node.start for node in nodes if node.doc_id == "ferry"]


@policies
def test_a_prefilter_of_as_many_chunks_as_there_are_changes_nothing(hybrid, policy):
    chunks = hybrid.stats()["chunks"]
    expected = hybrid.select(QUERY, budget=64, policy=policy)
    for count in (chunks, chunks + 1, 10_000):
        assert hybrid.select(QUERY, budget=64, policy=policy, prefilter_chunks=count).nodes == expected.nodes


def test_a_prefilter_of_many_spans_without_faiss_names_the_extra(open_store, embedder, documents, monkeypatch):
    store = open_store(embedder=embedder)
    store.add(documents)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with monkeypatch.context() as few:
        few.setattr(prefilters, "EXHAUSTIVE_SPANS", 2)
        with pytest.raises(errors.ConfigError, match=r"pip install 'sharedllm\[faiss\]'"):
            store.select(QUERY, prefilter=1)
    assert len(store.select(QUERY, prefilter=1).doc_ids) == 1


def test_both_prefilters_hold(hybrid):
    selection = hybrid.select("Who lights the lamp?", prefilter=1, prefilter_chunks=1)
    assert (selection.doc_ids, len(selection.chunks)) == (["lamp"], 1)


def test_of_one_long_document_a_few_chunks_are_considered_and_they_hold_the_answer(handbook_store):
    selection = handbook_store.select("Who raised the Temperance's bell from the seabed?", prefilter_chunks=3)
    assert 0 < len(selection.chunks) <= 3
    assert "Kalymnos" in selection.text


def test_chunks_that_do_not_touch_are_no_neighbours(open_store):
    def give(counts):
        return np.float32(counts)

    config = StoreConfig(tree=TreeConfig(chunk_size=16, height=2), neighbour_weight=0.0)
    store = open_store(config=config, embedder=OddEmbedder(give))
    store.add("a a a a a a a a a a a a a a a a" + " e" * 48 + " a e a e a e a e a e a e a e a e", id="apart")
    options = {"policy": "late_interaction", "budget": 64, "floor": 0.0}
    alone, both = (store.select("a banana", prefilter_chunks=count, **options) for count in (1, 2))
    assert [node.start for node in alone.nodes] == [node.start for node in both.chunks[0].nodes]
    assert len(both.chunks) == 2 and both.nodes[-1].start > 100


def test_scores_are_of_the_documents_considered_and_no_others(hybrid, open_store, documents, embedder):
    alone = open_store(config=hybrid.config, embedder=embedder)
    alone.add(documents[1])
    ours = hybrid.retrieve(QUERY, k=3, doc_ids=["ferry"], policy="embedding")
    theirs = alone.retrieve(QUERY, k=3, policy="embedding")
    assert [(n.start, n.text) for n in ours] == [(n.start, n.text) for n in theirs]


def test_an_empty_store_gives_an_empty_selection(store, model):
    selection = store.select(QUERY)
    assert not selection
    assert (len(selection), selection.kv_entries, selection.text, selection.nodes) == (0, 0, "", ())
    assert not store.select(QUERY, search="split_and_search")
    assert not store.select(None, ratio=8)
    assert store.retrieve(QUERY) == []
    assert model.generate("Say a word.", context=selection, max_new_tokens=2)


# Wrong arguments


@pytest.mark.parametrize("query", ["", "  \n", None, 5])
def test_an_empty_query_is_refused(hybrid, store, query):
    for asked in (hybrid, store):
        with pytest.raises(errors.QueryError, match="empty"):
            asked.select(query)
        with pytest.raises(errors.QueryError, match="empty"):
            asked.retrieve(query)


def test_a_query_longer_than_the_window_is_refused_with_both_numbers(hybrid, model):
    query = "why " * (model.context_window + 1)
    with pytest.raises(errors.QueryError, match=f"reads {model.context_window}") as caught:
        hybrid.select(query)
    assert str(len(model.tokenize(query))) in str(caught.value)
    with pytest.raises(errors.QueryError):
        hybrid.retrieve(query)


def test_a_query_with_a_lone_surrogate_is_refused(hybrid):
    with pytest.raises(errors.QueryError, match="surrogate at character 4"):
        hybrid.select("why \ud83d not")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"filters": {"year": {"$near": 1}}}, errors.FilterError, r"\$near"),
        ({"filters": ["year"]}, errors.FilterError, "filters"),
        ({"doc_ids": ["lamp", "nobody"]}, errors.DocumentNotFoundError, "nobody"),
        ({"policy": "bm25"}, errors.ConfigError, "hybrid"),
        ({"policy": "bm25", "ratio": 8}, errors.ConfigError, "hybrid"),
        ({"search": "random"}, errors.ConfigError, "split_and_search"),
        ({"ratio": 0}, errors.ConfigError, "ratio=0"),
        ({"ratio": 2.5}, errors.ConfigError, "ratio=2.5"),
        ({"ratio": 8, "budget": 10}, errors.ConfigError, "budget=10: ratio=8"),
        ({"prefilter": 0}, errors.ConfigError, "prefilter=0"),
        ({"prefilter": "many"}, errors.ConfigError, "prefilter='many'"),
        ({"prefilter_chunks": 0}, errors.ConfigError, "prefilter_chunks=0"),
        ({"coarse": (16, 8)}, errors.ConfigError, "coarse"),
        ({"coarse": (16, 8, 0)}, errors.ConfigError, "coarse"),
        ({"coarse": ("a", 8, 4)}, errors.ConfigError, "coarse=.'a'"),
        ({"coarse": 8}, errors.ConfigError, "coarse=8"),
        ({"fine": 0}, errors.ConfigError, "fine"),
        ({"fine": "1"}, errors.ConfigError, "fine='1'"),
        ({"recent": "a"}, errors.ConfigError, "recent='a'"),
        ({"floor": "x"}, errors.ConfigError, "floor='x'"),
        ({"floor": -0.1}, errors.ConfigError, "floor=-0.1"),
        ({"floor": 1.5}, errors.ConfigError, "floor=1.5"),
    ],
)
def test_wrong_arguments_are_named(hybrid, arguments, error, match):
    with pytest.raises(error, match=match):
        hybrid.select(QUERY, **arguments)


@pytest.mark.parametrize("k", [0, -1, 2.5, "all"])
def test_a_k_that_is_no_positive_whole_number_is_refused(hybrid, k):
    with pytest.raises(errors.ConfigError, match="k="):
        hybrid.retrieve(QUERY, k=k)


def test_a_prefilter_needs_a_query_and_an_embedder(hybrid, filled):
    with pytest.raises(errors.ConfigError, match="without a query"):
        hybrid.select(None, ratio=8, prefilter=1)
    with pytest.raises(errors.ConfigError, match="prefilter_chunks=1"):
        hybrid.select(None, ratio=8, prefilter_chunks=1)
    for arguments in (
        {"prefilter": 1},
        {"prefilter": 100},
        {"prefilter_chunks": 100},
        {"policy": "embedding"},
    ):
        with pytest.raises(errors.ConfigError, match="no embedder"):
            filled.select(QUERY, **arguments)


# Selections made otherwise


@once
@given(data=st.data())
def test_a_selection_from_spans_covers_them_with_whole_leaves(hybrid, documents, data):
    document = data.draw(st.sampled_from(documents))
    start = data.draw(st.integers(0, len(document.text) - 1))
    end = data.draw(st.integers(start + 1, len(document.text)))
    selection = hybrid.selection_from([(document.id, start, end)])
    shown = covered(selection, documents)[document.id]
    assert set(range(start, end)) <= set(shown)
    assert shown == sorted(set(shown))
    edges = {n.start for n in hybrid.selection_from([(document.id, 0, len(document.text))]).nodes}
    assert {n.start for n in selection.nodes} <= edges
    assert sum(n.end > start and n.start < end for n in selection.nodes) >= len(selection) - 1


def test_spans_may_overlap_and_the_finest_grain_wins(hybrid):
    selection = hybrid.selection_from([("lamp", 0, 120, 8), ("lamp", 40, 60, 2), ("ferry", 0, 10)], query=QUERY)
    assert [n.ratio for n in selection.nodes if n.doc_id == "lamp"].count(2) >= 1
    assert {n.ratio for n in selection.nodes if n.doc_id == "lamp"} == {2, 8}
    assert {n.ratio for n in selection.nodes if n.doc_id == "ferry"} == {1}
    assert selection.query == QUERY
    starts = [(n.doc_id, n.start) for n in selection.nodes]
    assert len(starts) == len(set(starts))


def test_a_whole_document_by_its_span_is_that_document_at_one_grain(hybrid, model, documents):
    spans = hybrid.selection_from([(d.id, 0, len(d.text)) for d in documents])
    whole = hybrid.select(None, ratio=1)
    assert spans.kv_entries == whole.kv_entries
    assert "".join(n.text for n in spans.nodes) == "".join(n.text for n in whole.nodes)
    scores = [model.nll(QUERY, "at 17:30", context=selection) for selection in (spans, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


@pytest.mark.parametrize("span", [(0, 0), (5, 4), (-1, 5), (0, 10_000), (10_000, 10_001)])
def test_a_span_outside_its_document_is_refused(hybrid, span):
    with pytest.raises(errors.ConfigError, match="lamp"):
        hybrid.selection_from([("lamp", *span)])


def test_a_span_of_an_unknown_document_or_a_wrong_ratio_is_refused(hybrid):
    with pytest.raises(errors.DocumentNotFoundError, match="nobody"):
        hybrid.selection_from([("nobody", 0, 5)])
    with pytest.raises(errors.ConfigError, match="ratio=0"):
        hybrid.selection_from([("lamp", 0, 5, 0)])
    with pytest.raises(errors.ConfigError, match="whole numbers"):
        hybrid.selection_from([("lamp", 0, "5")])


def test_a_span_whose_text_has_changed_is_refused(filled):
    node = filled.retrieve(QUERY, k=1)[0]
    span = node.doc_id, node.start, node.end, 1, 0.0, node.text
    assert node.text in filled.selection_from([span]).text
    for change in (
        lambda: filled.update(node.doc_id, "Another text. " * 99),
        lambda: filled.update(node.doc_id, "No."),
    ):
        change()
        with pytest.raises(errors.DocumentChangedError, match=f"{node.doc_id!r} has changed"):
            filled.selection_from([span])


def test_no_spans_are_an_empty_selection(hybrid):
    assert not hybrid.selection_from([])


def test_a_subset_shows_only_the_nodes_kept(hybrid, model):
    selection = hybrid.select(QUERY, budget=96)
    kept = selection.subset(selection.nodes[::2])
    assert kept.nodes == selection.nodes[::2]
    assert kept.kv_entries == sum(n.kv_entries for n in selection.nodes[::2])
    assert (kept.query, kept.budget, kept.policy) == (selection.query, selection.budget, selection.policy)
    assert selection.subset(reversed(selection.nodes)).nodes == selection.nodes
    assert not selection.subset([])
    stranger = hybrid.selection_from([("lamp", 0, 5)])
    assert selection.subset(stranger.nodes).nodes == () or stranger.nodes[0] in selection.nodes
    same = hybrid.selection_from([(n.doc_id, n.start, n.end, n.ratio, n.score) for n in kept.nodes])
    assert same.kv_entries == kept.kv_entries
    scores = [model.nll(QUERY, "at 17:30", context=s) for s in (kept, same)]
    assert scores[0] == pytest.approx(scores[1], abs=0.01)


# Odd trees and embedders


@pytest.mark.parametrize(
    "tree",
    [
        TreeConfig(chunk_size=32, height=0),
        TreeConfig(chunk_size=32, height=5),
        TreeConfig(chunk_size=1, height=0),
        TreeConfig(chunk_size=2048, height=3),
        TreeConfig(chunk_size=64, height=2, coarse=(16, 8, 4), fine=2),
    ],
    ids=["no levels", "leaves of a token", "chunks of a token", "one chunk", "coarse"],
)
def test_trees_of_any_shape(open_store, documents, tree):
    store = open_store(config=StoreConfig(tree=tree))
    store.add(documents)
    assert "".join(n.text for n in store.select(None, ratio=1).nodes) == "".join(d.text for d in documents)
    selection = store.select(QUERY, budget=300)
    assert 0 < selection.kv_entries <= 300
    covered(selection, documents)
    assert store.select(QUERY, search="split_and_search")
    assert len(store.retrieve(QUERY, k=3)) == 3


def test_no_leaf_lies_within_a_character_and_each_token_has_a_place_of_its_own(open_store, model):
    store = open_store(config=StoreConfig(tree=TreeConfig(chunk_size=8, height=3)))
    text = "The 🦔 met the 🦦 at 🕰 noon, and 🧿 watched."
    store.add(text, id="emoji")
    selection = store.selection_from([("emoji", 0, len(text))])
    assert all(node.text for node in selection.nodes) and selection.kv_entries == model.count_tokens(text)
    places = torch.cat(selection.key_values().places)
    assert sorted(places.tolist()) == list(range(selection.kv_entries))


class OddEmbedder:
    """Two letters counted, in whatever form ``give`` returns."""

    name, dimension = "odd", 2

    def __init__(self, give):
        self.give = give

    def encode(self, texts):
        counts = np.array([[text.count("a"), text.count("e") + 1] for text in texts], dtype=np.float64)
        return self.give(counts / np.linalg.norm(counts, axis=1, keepdims=True))


def test_an_embedder_of_one_s_own_may_give_any_floats(open_store, documents):
    stores = [open_store(embedder=OddEmbedder(give)) for give in (np.float32, np.float64, np.ndarray.tolist)]
    for store in stores:
        store.add(documents)
    found = [store.retrieve("eee", k=5, policy="embedding") for store in stores]
    assert found[0] == found[1] == found[2]


def test_an_embedder_that_reads_queries_otherwise_is_asked_to(open_store, documents, embedder):
    class Asymmetric:
        name, dimension = "asymmetric", embedder.dimension

        def __init__(self):
            self.queries, self.documents = [], []

        def encode(self, texts):
            self.documents += texts
            return embedder.encode(texts)

        def encode_query(self, texts):
            self.queries += texts
            return embedder.encode(texts)

    own = Asymmetric()
    store = open_store(embedder=own)
    store.add(documents)
    assert store.retrieve("When does the ferry leave?", 1, prefilter=1)[0].doc_id == "ferry"
    assert own.queries == ["When does the ferry leave?"]
    assert own.queries[0] not in own.documents


@pytest.mark.parametrize(
    "give",
    [lambda e: e[:, :1], lambda e: e[:-1] if len(e) > 1 else e[:0], lambda e: e * np.nan, lambda e: e / 0],
    ids=["too narrow", "too few", "NaN", "infinite"],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_an_embedder_that_gives_something_else_is_named_and_nothing_is_stored(open_store, documents, give):
    store = open_store(embedder=OddEmbedder(give))
    with pytest.raises(errors.ConfigError, match="'odd'"):
        store.add(documents)
    assert len(store) == 0


def test_what_is_no_embedder_is_refused(open_store):
    with pytest.raises(errors.ConfigError, match="embedder='minilm'"):
        open_store(embedder="minilm")


def test_one_leaf_alone_is_found_by_every_policy(open_store, embedder):
    store = open_store(embedder=embedder)
    store.add(Document("Hello.", "one"))
    for policy in POLICIES:
        assert store.select("Hello?", policy=policy, budget=10).doc_ids == ["one"]


# Selections together


def test_joined_selections_are_read_one_behind_the_other(hybrid, model):
    ferry, lamp = hybrid.select(QUERY, budget=48, doc_ids="ferry"), hybrid.select(QUERY, budget=48, doc_ids="lamp")
    kitchen = hybrid.select(QUERY, budget=48, doc_ids="kitchen")
    joined = ferry + lamp + kitchen
    assert joined.nodes == (*ferry.nodes, *lamp.nodes, *kitchen.nodes)
    assert joined.kv_entries == ferry.kv_entries + lamp.kv_entries + kitchen.kv_entries
    places = joined.key_values().places
    assert sorted(p for chunk in places for p in chunk.tolist()) == list(range(joined.kv_entries))
    last = [p for chunk in places[-len(kitchen.chunks) :] for p in chunk.tolist()]
    assert min(last) == ferry.kv_entries + lamp.kv_entries
    completion = model.complete(QUERY, context=joined, max_new_tokens=8)
    assert completion.context_entries == joined.kv_entries
    same = model.complete(QUERY, context=ferry + (lamp + kitchen), max_new_tokens=8)
    assert completion.text == same.text


def test_joined_selections_are_read_as_one_selection_is_in_that_order(hybrid, model):
    whole = hybrid.selection_from([("kitchen", 0, 60, 1, 2.0), ("ferry", 0, 80, 1, 1.0)])
    kitchen, ferry = (whole.subset(n for n in whole.nodes if n.doc_id == id) for id in ("kitchen", "ferry"))
    scores = [model.nll(QUERY, "At 17:30.", context=context) for context in (whole, ferry + kitchen, kitchen + ferry)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    assert scores[2] != pytest.approx(scores[0], rel=1e-3)


def test_selections_for_different_models_are_not_joined(hybrid, make_small_model):
    other = SharedLLMContextStore(make_small_model(), embedder=None)
    other.add("Another store.", id="other")
    with pytest.raises(errors.ModelMismatchError, match="same model"):
        hybrid.select(QUERY) + other.select(QUERY)


ON_TOPIC = ["When does the night shift start?", "How warm is the drying room kept?"]
OFF_TOPIC = [
    "Which bitcoin exchange was hacked in 2014?",
    "Who wrote the opera Carmen?",
]


def test_scores_tell_questions_about_a_text_from_others(handbook_store):
    def best(question):
        return handbook_store.retrieve(question, 1)[0].score

    about, others = [best(q) for q in ON_TOPIC], [best(q) for q in OFF_TOPIC]
    assert all(0 <= score <= 1 for score in about + others)
    assert min(about) > 0.35 > max(others)


def test_below_the_least_score_nothing_is_shown(handbook_store):
    question = OFF_TOPIC[0]
    assert handbook_store.select(question).kv_entries > 0
    assert handbook_store.select(question, min_score=0.35).kv_entries == 0
    assert handbook_store.retrieve(question, min_score=0.35) == []
    shown = handbook_store.select(ON_TOPIC[0], min_score=0.35)
    assert shown.kv_entries > 0
    assert min(node.score for node in shown.nodes) >= 0.35


def test_a_score_means_the_same_in_another_store(hybrid, open_store, embedder, documents):
    alone = open_store(embedder=embedder)
    alone.add(documents[1])
    question = "What does a ticket to Holm cost?"
    scores = [store.retrieve(question, 1)[0].score for store in (hybrid, alone)]
    assert abs(scores[0] - scores[1]) < 0.1


@pytest.mark.parametrize("least", [-0.1, 1.5, "much", float("nan")])
def test_a_least_score_outside_its_range_is_refused(hybrid, least):
    with pytest.raises(errors.ConfigError, match="min_score"):
        hybrid.select("ferry", min_score=least)
