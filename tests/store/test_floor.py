"""The floor: what a question does not need stays unopened although the budget would allow it."""

import numpy as np
import pytest
import torch

from shared_context import SharedLLMContextStore, StoreConfig
from shared_context.errors import ConfigError
from shared_context.store.floor import FLOOR_LEAVES, above_floor

QUESTION = "Who raised the Temperance's bell from the seabed?"


def test_a_higher_floor_shows_less_and_always_the_best(handbook_store):
    shown = [handbook_store.select(QUESTION, budget=1024, floor=floor) for floor in (0.0, 0.4, 0.8, 1.0)]
    entries = [selection.kv_entries for selection in shown]
    assert entries == sorted(entries, reverse=True)
    leaf = handbook_store.config.tree.leaf_size  # its edges are moved to words
    assert 1024 - leaf < entries[0] <= 1024 and leaf / 2 < entries[-1] < 2 * leaf
    # Without a floor, others that score more than the best one's neighbours may take their room.
    for fewer, more in zip(shown[2:], shown[1:], strict=False):
        spans = ({(node.doc_id, node.start, node.end) for node in selection.nodes} for selection in (fewer, more))
        assert next(spans) <= next(spans)
    assert all("Kalymnos" in selection.text for selection in shown)


def test_the_default_is_the_configurations(model, handbook_store):
    default = handbook_store.select(QUESTION)
    assert default.nodes == handbook_store.select(QUESTION, floor=handbook_store.config.floor).nodes
    assert default.kv_entries < handbook_store.select(QUESTION, floor=0.0).kv_entries


@pytest.mark.parametrize("question", ["How warm is the drying room kept?", "What is the keeper's dog called?"])
def test_where_the_floor_lies_does_not_hang_on_the_budget(handbook_store, question):
    fits = handbook_store.select(question, budget=1024)
    assert fits.kv_entries < 1024
    assert handbook_store.select(question, budget=3072).nodes == fits.nodes


def test_few_leaves_have_no_floor(handbook_store):
    scores = torch.linspace(0, 1, FLOOR_LEAVES - 1)[None]
    assert above_floor(scores, 0.9, np.zeros(1)) is scores
    enough = torch.linspace(0, 1, FLOOR_LEAVES)[None]
    assert above_floor(enough, 0.9, np.zeros(1)).isneginf().sum() > FLOOR_LEAVES / 2


def test_the_neighbours_of_the_best_leaf_are_exempt_within_its_document():
    chunks = torch.zeros(FLOOR_LEAVES // 4 + 1, 8)
    chunks[2:, 4:] = -torch.inf  # documents of one chunk, the last half of which has no leaves
    chunks[1, 0] = 1.0
    document = np.array([0, 0, *range(1, len(chunks) - 1)])
    kept = above_floor(chunks, 0.9, document).isfinite()
    assert kept.nonzero().tolist() == [[0, 7], [1, 0], [1, 1]]
    chunks[1, 0], chunks[2, 3] = 0.0, 1.0
    assert above_floor(chunks, 0.9, document).isfinite().nonzero().tolist() == [[2, 2], [2, 3]]
    assert above_floor(chunks, 1.0, document).isfinite().nonzero().tolist() == [[2, 3]]


def test_a_fact_across_the_edge_of_a_leaf_is_shown_whole(model):
    filler = "The path leads along the river and over the hill. " * 600
    ids = model.tokenize(filler)
    fact = " The locker of Hedwig R. Corvin opens with the number 48213."
    size = model.count_tokens(fact)
    start = 2048 - size + 3  # its last three tokens, digits of the number, begin another leaf and chunk
    text = filler[: ids.bounds[start]] + fact + filler[ids.bounds[start] :]
    store = SharedLLMContextStore(model)
    store.add(text, id="text")
    assert fact in store.select("Which number opens the locker of Hedwig R. Corvin?", budget=1024).text


def test_a_floor_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"floor=1\.5"):
        StoreConfig(floor=1.5)


def test_the_most_promising_passage_is_read_last(model, handbook):
    store = SharedLLMContextStore(model)
    store.add(handbook, id="handbook")
    selection = store.select(QUESTION, floor=0.0)
    context = selection.key_values()
    places = np.concatenate([place.numpy() for place in context.places])
    assert sorted(places) == list(range(selection.kv_entries))
    best = max(selection.nodes, key=lambda node: node.score)
    at = sum(node.kv_entries for node in selection.nodes[: selection.nodes.index(best)])
    run = next(run for run in selection.passages if best in run)
    after = sum(node.kv_entries for node in run[run.index(best) + 1 :])
    assert places[at + best.kv_entries - 1] == selection.kv_entries - 1 - after
