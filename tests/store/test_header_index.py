"""What headers count for a query is what comparing it with each header in turn gives."""

import numpy as np
import pytest
import torch

from shared_context.kernels.late_interaction import quantize_codes
from shared_context.store import header_index
from shared_context.store.header_index import SAME_WORD, HeaderIndex, KeptHeaders, join_headers
from shared_context.store.node_data import HeaderData

SIZE, DIMENSION, WORDS = 16, 8, 5


def header(drawn: np.random.Generator, query: torch.Tensor, longest: int) -> HeaderData:
    """One of any length, a third of whose tokens are like a word of the query."""
    count, spans = int(drawn.integers(1, longest + 1)), int(drawn.integers(1, 4))
    tokens = torch.from_numpy(drawn.standard_normal((count, SIZE)).astype(np.float32))
    tokens = torch.nn.functional.normalize(tokens, dim=1)
    alike = torch.from_numpy(drawn.random(count) < 1 / 3)
    near = query[torch.from_numpy(drawn.integers(0, WORDS - 1, count))]  # nobody says the last word
    codes, scales = quantize_codes(torch.where(alike[:, None], near + 0.3 * tokens, tokens))
    embeddings = drawn.standard_normal((spans, DIMENSION)).astype(np.float32)
    return HeaderData(codes.numpy(), scales.numpy(), embeddings)


def words_naive(headers: dict[int, HeaderData], query: torch.Tensor, weights: torch.Tensor) -> dict[int, float]:
    """What each header's words count, one header after the other."""
    shares = {}
    for key, of in headers.items():
        similar = (torch.from_numpy(of.codes).float() @ query.T) * torch.from_numpy(of.scales).float()[:, None]
        shares[key] = ((similar.amax(dim=0) - SAME_WORD) / (1 - SAME_WORD)).clamp(0, 1)
    said = sum(shares.values(), torch.zeros(WORDS))
    rare = torch.log((len(headers) + 1) / (said + 0.5)).clamp(min=0)
    return {key: float(of @ torch.minimum(rare, weights)) for key, of in shares.items()}


def cosines_naive(headers: dict[int, HeaderData], embedding: torch.Tensor) -> dict[int, float]:
    return {key: max(0.0, float((of.embeddings @ embedding.numpy()).max())) for key, of in headers.items()}


def assert_scores(found, expected: dict[int, float], documents: np.ndarray) -> None:
    given = found.of(documents)
    assert given == pytest.approx([expected.get(key, 0.0) for key in documents.tolist()], abs=1e-4)


@pytest.mark.parametrize("together", [1, 7, 1 << 13])
@pytest.mark.parametrize("longest", [1, 2, 6, 33])
def test_headers_count_what_one_after_the_other_does(monkeypatch, together, longest):
    monkeypatch.setattr(header_index, "COMPARED_TOGETHER", together)
    drawn = np.random.default_rng(longest)
    query = torch.nn.functional.normalize(torch.from_numpy(drawn.standard_normal((WORDS, SIZE))).float(), dim=1)
    weights, embedding = torch.tensor([4.0, 0.1, 2.0, 0.0, 3.0]), torch.from_numpy(drawn.standard_normal(DIMENSION))
    embedding = embedding.float()
    headers = {2 * key + 1: header(drawn, query, longest) for key in range(60)}
    # Of a file, of which some are gone, and beside it others, some of them in the place of the file's.
    kept: KeptHeaders = join_headers({key: headers[key] for key in list(headers)[:40]}, {})
    index, there = HeaderIndex(), np.arange(40) % 5 != 0
    index.adopt(kept, there)
    gone = []
    for place, key in enumerate(headers):
        if place >= 40 or place % 10 == 0:
            headers[key] = header(drawn, query, longest)
            index.put(key, headers[key])
        elif place % 10 == 5:
            gone.append(key)
    for key in gone:
        del headers[key]

    assert len(index) == len(headers)
    everyone = np.arange(125)
    assert_scores(index.scores(query, weights), words_naive(headers, query, weights), everyone)
    cosines = cosines_naive(headers, embedding)
    assert_scores(index.near(embedding), cosines, everyone)
    some = np.array([0, 1, 4, 11, 21, 33, 81, 99, 119, 124])
    of_some = index.near(embedding, some)
    assert_scores(of_some, {key: cosines[key] for key in some.tolist() if key in cosines}, everyone)


def test_no_header_counts_nothing():
    index, query = HeaderIndex(), torch.ones(WORDS, SIZE)
    assert index.scores(query, torch.ones(WORDS)).of(np.array([1, 2])).tolist() == [0, 0]
    assert index.near(torch.ones(DIMENSION)).of(np.array([1, 2])).tolist() == [0, 0]
    assert index.near(torch.ones(DIMENSION), np.array([2])).of(np.array([1, 2])).tolist() == [0, 0]
