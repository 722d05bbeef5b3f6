"""The floor: what a question does not need stays unopened although the budget would allow it."""

import numpy as np
import pytest
import torch

from shared_context import SharedLLMContextStore, StoreConfig
from shared_context.errors import ConfigError
from shared_context.store.scoring import FLOOR_LEAVES, above_floor

QUESTION = "Who raised the Temperance's bell from the seabed?"


def test_a_higher_floor_shows_less_and_always_the_best(handbook_store):
    shown = [handbook_store.select(QUESTION, budget=1024, floor=floor) for floor in (0.0, 0.4, 0.8, 1.0)]
    entries = [selection.kv_entries for selection in shown]
    assert entries == sorted(entries, reverse=True)
    assert entries[0] == 1024 > entries[-1] == handbook_store.config.tree.leaf_size
    for fewer, more in zip(shown[1:], shown, strict=False):
        assert set(fewer.nodes) <= set(more.nodes)
    assert all("Kalymnos" in selection.text for selection in shown)


def test_the_default_is_the_configurations(model, handbook_store):
    default = handbook_store.select(QUESTION)
    assert default.nodes == handbook_store.select(QUESTION, floor=handbook_store.config.floor).nodes
    assert default.kv_entries < handbook_store.select(QUESTION, floor=0.0).kv_entries


def test_few_leaves_have_no_floor(handbook_store):
    scores = torch.linspace(0, 1, FLOOR_LEAVES - 1)[None]
    assert above_floor(scores, 0.9) is scores
    enough = torch.linspace(0, 1, FLOOR_LEAVES)[None]
    assert above_floor(enough, 0.9).isneginf().sum() > FLOOR_LEAVES / 2


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
