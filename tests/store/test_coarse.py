"""Coarse grains of a store: the rows that the model needs most, kept, cached and squeezed as the settings say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared_context import CacheConfig, SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.kernels import RaggedKV
from shared_context.store.encoding import kept_rows

TREE = TreeConfig(chunk_size=64, height=2)
TEXT = "the harbour master keeps the lamp and the log of the harbour and trims the wick before the fog comes in " * 8


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


def make(model, path=None, **options):
    store = SharedLLMContextStore(model, path, embedder=None, config=StoreConfig(**{"tree": TREE, **options}))
    store.add(TEXT, id="log")
    return store


def likelihood(model, store, ratio):
    return model.nll("the lamp", "harbour", context=store.select(None, ratio=ratio))


def rows_of(context, layers, kv_heads):
    """By chunk and head, the tokens that a context shows coarsely."""
    found = []
    for part in context.coarse:
        heads = part.kv.tokens.split(part.kv.counts.flatten().tolist())
        assert part.kv.counts.shape == (layers, kv_heads)
        found.append([set(tokens.tolist()) for tokens in heads])
    return found


def test_a_grain_keeps_as_many_rows_as_it_says_on_average_and_is_nested(small):
    store = make(small)
    shown = {ratio: store.select(None, ratio=ratio).key_values() for ratio in (2, 4, 8)}
    for ratio, context in shown.items():
        for part, chunk in zip(context.coarse, store.select(None, ratio=ratio).chunks, strict=True):
            assert part.kv.entries == -(-chunk.tree.length // ratio)
    for finer, coarser in ((2, 4), (4, 8)):
        for fine, coarse in zip(rows_of(shown[finer], 4, 2), rows_of(shown[coarser], 4, 2), strict=True):
            assert all(few <= many for few, many in zip(coarse, fine, strict=True))
    counts = shown[8].coarse[0].kv.counts
    assert counts.min() < counts.max()


def test_nothing_of_the_lead_in_is_kept(small):
    store = make(small, lead_in=16)
    second = store.select(None, ratio=2).key_values().coarse[1]
    assert second.kv.tokens.min() >= 16


def test_ratio_1_by_importance_is_ratio_1_by_stride(small):
    store = make(small)
    found, expected = (store.select(None, ratio=1, rows=rows) for rows in ("importance", "stride"))
    assert small.nll("the lamp", "harbour", context=found) == small.nll("the lamp", "harbour", context=expected)
    coarse = [store.select(None, ratio=4, rows=rows) for rows in ("importance", "stride")]
    assert coarse[0].kv_entries == coarse[1].kv_entries
    scores = [small.nll("the lamp", "harbour", context=selection) for selection in coarse]
    assert scores[0] != scores[1]


def test_leaves_may_be_whole_and_the_rest_coarse(small):
    store = make(small)
    selection = store.select("the lamp", budget=80, coarse=(8, 8, 8), floor=1.0)
    assert {node.ratio for node in selection.nodes} == {1, 8}
    context = selection.key_values()
    assert context.columns == sum(node.kv_entries for node in selection.nodes if node.ratio == 1)
    assert sum(part.kv.entries for part in context.coarse_parts) + context.columns == selection.kv_entries <= 80


@pytest.mark.parametrize("room", [None, 400, 60, 24])
def test_rows_keep_their_distances_as_far_as_there_is_room(small, room):
    selection = make(small).select(None, ratio=8)
    context = selection.key_values(room)
    assert context.length <= (room or selection.positions)
    places = torch.cat([part.places for part in context.coarse])
    assert places.min() >= 0
    assert places.max() < context.length
    for part in context.coarse:
        # rows that stand later in the text never stand earlier in the context
        order = np.lexsort((part.positions, part.places))
        assert (np.diff(part.positions.numpy()[order]) >= 0).all()
        if room is None or room >= selection.positions:
            assert len({int(place - row) for place, row in zip(part.places, part.positions, strict=True)}) == 1


def test_a_window_reads_a_text_of_many_windows_at_a_coarse_grain(make_small_model):
    """Every position lies inside the window, whatever there is room for."""
    model = make_small_model(window=320)
    store = make(model)
    assert store.select(None, ratio=1).kv_entries > 150
    store.add(TEXT * 4, id="more")
    selection = store.select(None, ratio=8)
    assert selection.positions > 2 * model.context_window
    assert isinstance(model.generate("lamp", context=selection, max_new_tokens=4), str)


@pytest.mark.parametrize("quantize", [False, True])
def test_a_store_kept_at_a_ratio_serves_all_coarser_ones_as_a_whole_one(small, tmp_path, quantize):
    whole = make(small, cache=CacheConfig(quantize=quantize))
    kept = make(small, tmp_path / "store", cache=CacheConfig(quantize=quantize, finest=4))
    kept.warm()
    again = SharedLLMContextStore(small, tmp_path / "store", embedder=None, config=kept.config)
    before = again.stats()["kv_cache"]["disk"]["misses"]
    for ratio in (4, 8, 16):
        scores = [likelihood(small, store, ratio) for store in (whole, kept, again)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5) == pytest.approx(scores[2], abs=1e-5)
    assert again.stats()["kv_cache"]["disk"]["misses"] == before
    # a finer grain computes the chunk again and gives what the whole one gives
    for ratio in (1, 2):
        scores = [likelihood(small, store, ratio) for store in (whole, again)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    sizes = [make(small, tmp_path / str(finest), cache=CacheConfig(finest=finest)) for finest in (1, 4)]
    for store in sizes:
        store.warm()
    whole_bytes, kept_bytes = (store.stats()["kv_cache"]["disk"]["bytes"] for store in sizes)
    assert kept_bytes < whole_bytes / 2


@pytest.mark.parametrize("finest", [1, 2])
def test_a_store_kept_coarser_before_computes_what_is_missing_again(small, tmp_path, finest):
    """Once more rows are to be kept, those of before are not taken for all that there is."""
    whole, before = make(small), make(small, tmp_path / "store", cache=CacheConfig(finest=4))
    before.warm()
    before.close()
    with SharedLLMContextStore(
        small, tmp_path / "store", embedder=None, config=replace(before.config, cache=CacheConfig(finest=finest))
    ) as finer:
        for ratio in (8, 2, 1):
            expected = likelihood(small, whole, ratio)
            assert likelihood(small, finer, ratio) == pytest.approx(expected, abs=1e-5)


def test_what_is_shown_coarsely_stays_in_memory_without_the_rest(small):
    """As long as its document is there: a cache too small for whole chunks serves the second question from it."""
    chunk_bytes = 2 * 4 * 2 * 64 * small.hf_model.config.head_dim * 4
    store = make(small, cache=CacheConfig(memory_bytes=chunk_bytes))
    selection = store.select(None, ratio=8)
    expected = small.nll("the lamp", "harbour", context=selection)
    before = store.stats()["kv_cache"]["memory"]
    assert 0 < before["bytes"] <= chunk_bytes
    assert small.nll("the lamp", "harbour", context=store.select(None, ratio=8)) == expected
    assert store.stats()["kv_cache"]["memory"]["misses"] == before["misses"]
    store.delete("log")
    assert small.nll("the lamp", "harbour", context=selection) == pytest.approx(expected)
    assert store.stats()["kv_cache"]["memory"]["bytes"] == 0


def test_warming_computes_the_importance_that_coarse_nodes_need(small, monkeypatch):
    coarse, chosen = make(small, tree=replace(TREE, fine=4)), make(small)
    coarse.warm()
    chosen.warm()
    chosen.warm(chosen.select(None, ratio=8))
    monkeypatch.setattr(small.compressor, "_importance", lambda *_: pytest.fail("computed again"))
    for selection in (coarse.select("the lamp", budget=80), chosen.select(None, ratio=8)):
        assert isinstance(small.nll("the lamp", "harbour", context=selection), float)


def test_importance_of_another_method_is_computed_again(small, tmp_path, monkeypatch):
    for finest in (1, 4):
        path = tmp_path / str(finest)
        store = make(small, path, cache=CacheConfig(finest=finest))
        expected = small.nll("the lamp", "harbour", context=store.select(None, ratio=8))
        store.close()
        monkeypatch.setattr(small.compressor, "importance_method", "another")
        with SharedLLMContextStore(small, path, embedder=None) as again:
            assert small.nll("the lamp", "harbour", context=again.select(None, ratio=8)) == pytest.approx(expected)
            names = again._rooms.encoder._names(again.select(None, ratio=8).chunks)
            computed = [again._rooms.cache.get(key) for key in names]
            assert all(kv.importance is not None for kv in computed)
        monkeypatch.undo()


def test_equal_scores_are_cut_the_same_way_every_time():
    kv = RaggedKV(
        torch.zeros(2, 12, 4), torch.arange(6, dtype=torch.int32).repeat(2), torch.tensor([[6, 6]]), None,
        torch.full((12,), 0.5, dtype=torch.float16),
    )  # fmt: skip
    kept = kept_rows(kv, [(0, 6, 3)])
    assert kept.tolist() == [[[False] * 4 + [True] * 2] * 2]
