"""The leaves side by side: places, statistics, and finding documents by their embeddings."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context import TreeConfig
from shared_context.store import prefilter
from shared_context.store.node_data import NodeData
from shared_context.store.node_index import NodeIndex
from shared_context.store.prefilter import Prefilter

TREE = TreeConfig(chunk_size=8, height=1)
VOCABULARY, CODE, DIMENSION = 50, 3, 16


def data(token_ids: np.ndarray, embeddings: np.ndarray | None = None) -> NodeData:
    """Codes that repeat the token's id, embeddings that number the span of two leaves."""
    spans = np.arange(-(-len(token_ids) // 8))[:, None]
    return NodeData(
        np.repeat(token_ids[:, None], CODE, axis=1).astype(np.int8),
        token_ids.astype(np.float16),
        np.repeat(spans, DIMENSION, axis=1).astype(np.float32) if embeddings is None else embeddings,
    )


def index_of(documents: dict[int, list[int]]) -> NodeIndex:
    index = NodeIndex(TREE, VOCABULARY)
    for key, ids in documents.items():
        index.add(key, np.array(ids), data(np.array(ids)))
    return index


documents = st.dictionaries(
    st.integers(1, 99), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30), min_size=1, max_size=6
)


@settings(max_examples=50)
@given(documents, st.data())
def test_the_index_is_that_of_the_documents_it_holds_whatever_came_and_went(held, drawn):
    index = index_of(held)
    gone = drawn.draw(st.sets(st.sampled_from(sorted(held)), max_size=len(held) - 1))
    if drawn.draw(st.booleans()):
        index.leaves()
    for key in gone:
        index.remove(key)
    left = {key: ids for key, ids in held.items() if key not in gone}
    leaves = index.leaves()
    assert len(index) == len(left)
    assert index.tokens == sum(map(len, left.values()))
    expected = [
        (key, chunk, slot, ids[chunk * 8 + slot * 4 :][:4])
        for key, ids in sorted(left.items())
        for chunk in range(-(-len(ids) // 8))
        for slot in range(-(-len(ids[chunk * 8 :][:8]) // 4))
    ]
    assert len(leaves) == len(expected)
    for row, (key, chunk, slot, ids) in enumerate(expected):
        at = leaves.chunk[row]
        assert (leaves.document[row], leaves.slot[row]) == (key, slot)
        assert (leaves.chunk_document[at], leaves.chunk_number[at]) == (key, chunk)
        assert leaves.chunk_length[at] == len(left[key][chunk * 8 :][:8])
        padded = ids + [ids[-1]] * (4 - len(ids))
        assert leaves.codes[row, :, 0].tolist() == padded
        assert leaves.scales[row].tolist() == padded
        # the span it is in, and the one on its side where the document has one
        beside = chunk + 2 * slot - 1
        spans = -(-len(left[key]) // 8)
        assert leaves.embeddings[leaves.spans[row], 0].tolist() == [chunk, min(max(beside, 0), spans - 1)]
        assert leaves.span_document[leaves.spans[row]].tolist() == [key, key]
        assert leaves.span_chunk[leaves.spans[row, 0]] == at
    chunks = [(key, n) for key, ids in sorted(left.items()) for n in range(-(-len(ids) // 8))]
    assert leaves.places(leaves.chunks(list(left))) == chunks
    ends = {key: leaves.places(leaves.end(key, 9)) for key in left}
    assert all(
        [n for _, n in ends[key]] == sorted({token // 8 for token in range(len(ids))[-9:]}) for key, ids in left.items()
    )
    for token in range(0, VOCABULARY, 7):
        with_it = sum(token in ids for *_, ids in expected)
        weight = index.weights(np.array([token])).item()
        assert weight == pytest.approx(math.log((len(expected) + 1) / (with_it + 0.5)), rel=1e-5)


def random_spans(count: int, per_document: int) -> NodeIndex:
    random = np.random.default_rng(0)
    index = NodeIndex(TREE, VOCABULARY)
    for key in range(1, count // per_document + 1):
        embeddings = random.standard_normal((per_document, DIMENSION)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        ids = np.zeros(per_document * 8, dtype=np.int64)
        index.add(key, ids, data(ids, embeddings))
    return index


def nearest(index: NodeIndex, query: np.ndarray) -> list[int]:
    leaves = index.leaves()
    near = leaves.embeddings.numpy() @ query
    return list(dict.fromkeys(leaves.span_document[np.argsort(-near)].tolist()))


def nearest_by_prefilter(index: NodeIndex, query: np.ndarray, count: int) -> list[int]:
    leaves = index.leaves()
    return Prefilter(leaves).nearest(query, leaves.span_document, count)[0].tolist()


@pytest.mark.parametrize("count", [1, 3, 50, 99, 100])
def test_the_prefilter_finds_the_nearest_documents(count):
    index = random_spans(600, 6)
    query = np.random.default_rng(1).standard_normal(DIMENSION).astype(np.float32)
    found = nearest_by_prefilter(index, query, count)
    assert found == nearest(index, query)[:count]


def test_a_document_whose_every_span_is_near_does_not_crowd_out_the_others():
    index = random_spans(60, 6)
    query = np.eye(DIMENSION, dtype=np.float32)[0]
    ids = np.zeros(8000, dtype=np.int64)
    index.add(1000, ids, data(ids, np.tile(query, (1000, 1))))
    found = nearest_by_prefilter(index, query, 4)
    assert found == nearest(index, query)[:4]
    assert found[0] == 1000


@pytest.mark.parametrize("count", [1, 20, 200, 333])
def test_a_large_prefilter_reads_as_many_lists_as_it_takes(monkeypatch, count):
    monkeypatch.setattr(prefilter, "EXHAUSTIVE_SPANS", 500)
    monkeypatch.setattr(prefilter, "PROBED_LISTS", 2)
    index = random_spans(999, 3)
    query = np.random.default_rng(1).standard_normal(DIMENSION).astype(np.float32)
    found = nearest_by_prefilter(index, query, count)
    assert len(found) == len(set(found)) == count
    exact = nearest(index, query)
    if count == 333:
        assert set(found) == set(exact)
    else:
        assert len(set(found) & set(exact[: 2 * count + 10])) > count / 4


@pytest.mark.parametrize("exhaustive", [20_000, 300])
def test_a_prefilter_follows_every_change_as_if_it_were_made_anew(monkeypatch, exhaustive):
    monkeypatch.setattr(prefilter, "EXHAUSTIVE_SPANS", exhaustive)
    monkeypatch.setattr(prefilter, "PROBED_LISTS", 1000)
    index, draw = random_spans(120, 3), np.random.default_rng(2)
    kept = Prefilter(index.leaves())
    for change in range(8):
        for key in draw.choice(index.leaves().document, 3):
            if int(key) in index.token_ids():
                index.remove(int(key))
        for key in range(1000 * change + 500, 1000 * change + 500 + 40 * change):
            ids = np.zeros(8, dtype=np.int64)
            index.add(key, ids, data(ids, draw.standard_normal((1, DIMENSION)).astype(np.float32)))
        leaves, query = index.leaves(), draw.standard_normal(DIMENSION).astype(np.float32)
        kept.update(leaves)
        for of_span in leaves.span_document, leaves.span_chunk:
            expected, found = (of.nearest(query, of_span, 20)[0] for of in (Prefilter(leaves), kept))
            assert found.tolist() == expected.tolist()
