"""Late-interaction scores against the formula in float64: the path of processors, and Triton's kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import late_interaction_scores, node_scores, quantize_codes
from shared_context.kernels.late_interaction import late_interaction_scores_naive, node_scores_naive

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")


def with_triton(query, weights, codes, scales, *, leaves=None, adjacent=None):
    triton_kernel = pytest.importorskip("shared_context.kernels.late_interaction.triton_kernel")
    many = query.unsqueeze(0) if query.ndim == 2 else query
    scores = triton_kernel.leaf_scores_triton(many, weights.view(many.shape[:2]), codes, scales, leaves, adjacent)
    return scores[0] if query.ndim == 2 else scores


PATHS = [late_interaction_scores, with_triton]


def example(leaves, leaf_size, size, words, *, queries=None, dtype=torch.int8, seed=0, device="cpu"):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randn((leaves, leaf_size, size), generator=random)
    codes, scales = quantize_codes(tokens) if dtype == torch.int8 else (tokens.to(dtype), None)
    many = () if queries is None else (queries,)
    query = torch.nn.functional.normalize(torch.randn((*many, words, size), generator=random), dim=-1)
    weights = torch.rand((*many, words), generator=random)
    return [x if x is None else x.to(device) for x in (query, weights, codes, scales)]


def one_by_one(query, weights, codes, scales, adjacent=None):
    unpacked = codes.double() * (1 if scales is None else scales.double()[..., None])

    def score(tokens):
        return sum(float(w) * max(float(q.double() @ t) for t in tokens) for q, w in zip(query, weights, strict=True))

    scores = []
    for number, leaf in enumerate(unpacked):
        around = [leaf]
        if adjacent is not None:
            around += [unpacked[number - 1]] if number and adjacent[number - 1] else []
            around += [unpacked[number + 1]] if number < len(adjacent) and adjacent[number] else []
        scores.append(score(leaf) + (0 if adjacent is None else score(torch.cat(around))))
    return torch.tensor(scores, dtype=torch.float64)


def in_float64(query, weights, codes, scales, **which):
    return late_interaction_scores_naive(query.double(), weights.double(), codes, scales, **which)


def assert_close(found, expected, codes_norm=8.0):
    """float32 up to the bits that a query split in two bfloat16 keeps, relative to the norms that were multiplied."""
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4 * codes_norm)


@settings(max_examples=30)
@given(
    leaves=st.integers(1, 5), leaf_size=st.integers(1, 9), words=st.integers(1, 4), size=st.integers(1, 70),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_the_reference_is_the_formula_one_similarity_at_a_time(leaves, leaf_size, words, size, seed):
    arguments = example(leaves, leaf_size, size, words, seed=seed)
    assert torch.allclose(in_float64(*arguments), one_by_one(*arguments), rtol=1e-12)
    adjacent = torch.rand(leaves - 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    with_neighbours = one_by_one(*arguments, adjacent)
    assert torch.allclose(in_float64(*arguments, adjacent=adjacent), with_neighbours, rtol=1e-12)


@pytest.mark.parametrize(
    "path, dtype",
    [(path, dtype) for path in PATHS for dtype in (torch.int8, torch.bfloat16)]
    + [(late_interaction_scores, torch.float32), (late_interaction_scores, torch.float16)],
)
@pytest.mark.parametrize(
    "leaves, leaf_size, size, words, queries",
    [
        (1, 1, 1, 1, None),
        (1, 1, 64, 1, 2),
        (9, 128, 64, 12, None),
        (8, 128, 64, 16, 3),
        (3, 127, 64, 17, None),
        (17, 16, 96, 5, None),
        (2, 300, 33, 3, 2),
        (2, 8, 64, 130, None),
        (3, 7, 100, 70, 2),
    ],
    ids=str,
)
def test_scores_over_a_table_of_shapes(path, dtype, leaves, leaf_size, size, words, queries, device):
    for seed in range(2):
        arguments = example(leaves, leaf_size, size, words, queries=queries, dtype=dtype, seed=seed, device=device)
        assert_close(path(*arguments), in_float64(*arguments), words**0.5 * 8)
        adjacent = torch.arange(leaves - 1, device=device) % 3 != seed
        with_neighbours = in_float64(*arguments, adjacent=adjacent)
        assert_close(path(*arguments, adjacent=adjacent), with_neighbours, words**0.5 * 16)


@settings(max_examples=25)
@given(
    leaves=st.integers(1, 20), leaf_size=st.integers(1, 40), size=st.integers(1, 80), words=st.integers(1, 20),
    queries=st.one_of(st.none(), st.integers(1, 3)), dtype=st.sampled_from([torch.int8, torch.bfloat16]),
    seed=st.integers(0, 1000), data=st.data(),
)  # fmt: skip
def test_scores_of_any_shape_and_any_leaves(leaves, leaf_size, size, words, queries, dtype, seed, data, device):
    arguments = example(leaves, leaf_size, size, words, queries=queries, dtype=dtype, seed=seed, device=device)
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(0, leaves - 1), min_size=1, max_size=30)))
    chosen = None if chosen is None else torch.tensor(chosen, device=device)
    count = leaves if chosen is None else len(chosen)
    adjacent = data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=count - 1, max_size=count - 1)))
    adjacent = None if adjacent is None else torch.tensor(adjacent, dtype=torch.bool, device=device)
    expected = in_float64(*arguments, leaves=chosen, adjacent=adjacent)
    for path in PATHS:
        assert_close(path(*arguments, leaves=chosen, adjacent=adjacent), expected, words**0.5 * 16)


def test_many_leaves_are_scored_as_few_are(device):
    query, weights, codes, scales = example(5000, 4, 8, 3, device=device)
    together = late_interaction_scores(query, weights, codes, scales)
    parts = [
        late_interaction_scores(query, weights, c, s) for c, s in zip(codes.split(9), scales.split(9), strict=True)
    ]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_repeating_a_token_of_a_leaf_changes_nothing(path, device):
    query, weights, codes, scales = example(2, 3, 8, 2, device=device)
    longer = torch.cat([codes, codes[:, -1:]], dim=1), torch.cat([scales, scales[:, -1:]], dim=1)
    assert torch.allclose(path(query, weights, codes, scales), path(query, weights, *longer), atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_tensors_need_not_be_contiguous(path, device):
    query, weights, codes, scales = example(6, 10, 24, 4, queries=2, device=device)
    expected = in_float64(query, weights, codes[::2], scales[::2])
    apart = query.mT.contiguous().mT, weights.T.contiguous().T
    for strided in (codes[::2], codes.mT.contiguous().mT[::2]):
        assert_close(path(*apart, strided, scales.T.contiguous().T[::2]), expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("where", ["codes", "scales"])
def test_nan_makes_the_score_of_its_leaf_nan_and_of_no_other(path, where, device):
    dtype = torch.int8 if where == "scales" else torch.bfloat16
    query, weights, codes, scales = example(20, 10, 16, 3, dtype=dtype, device=device)
    (codes if where == "codes" else scales)[7, 4] = torch.nan
    found = path(query, weights, codes, scales)
    assert found.isnan().nonzero().flatten().tolist() == [7]
    adjacent = torch.arange(19, device=device) != 7  # 7 is no neighbour of 8
    found = path(query, weights, codes, scales, adjacent=adjacent)
    assert found.isnan().nonzero().flatten().tolist() == [6, 7]


@pytest.mark.parametrize("path", PATHS)
def test_infinity_stays_in_its_leaf(path, device):
    query, weights, codes, scales = example(20, 10, 16, 3, dtype=torch.bfloat16, device=device)
    expected = in_float64(query, weights, codes, scales)
    codes[7, 4] = torch.inf
    found = path(query, weights, codes, scales)
    assert not found[7].isfinite()
    others = torch.arange(20, device=device) != 7
    assert_close(found[others], expected[others])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_that_is_not_finite_gives_no_finite_score(path, value, device):
    query, weights, codes, scales = example(5, 10, 16, 3, device=device)
    query[1, 2] = value
    assert not path(query, weights, codes, scales).isfinite().any()


def test_nothing_to_score_gives_nothing():
    query, weights, codes, scales = example(4, 10, 16, 3)
    none = torch.empty(0, dtype=torch.long)
    assert late_interaction_scores(query, weights, codes, scales, leaves=none).shape == (0,)
    assert late_interaction_scores(query, weights, codes[:0], scales[:0]).shape == (0,)
    assert late_interaction_scores(query, weights, codes, scales, leaves=none, adjacent=none.bool()).shape == (0,)
    assert torch.equal(late_interaction_scores(query[:0], weights[:0], codes, scales), torch.zeros(4))
    assert late_interaction_scores(query[None, :, :][:0], weights[None][:0], codes, scales).shape == (0, 4)


def test_shapes_that_do_not_fit_are_refused():
    query, weights, codes, scales = example(4, 10, 16, 3)
    for wrong in ((query[:, :5], weights, codes, scales), (query, weights[:2], codes, scales),
                  (query, weights, codes, scales[:3]), (query, weights, codes[:, :0], scales[:, :0])):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            late_interaction_scores(*wrong)
    with pytest.raises(ValueError, match=r"adjacent \(4,\)"):
        late_interaction_scores(query, weights, codes, scales, adjacent=torch.ones(4, dtype=torch.bool))


def test_inference_mode_and_compile_change_nothing():
    arguments, adjacent = example(40, 16, 16, 3), torch.arange(39) % 4 > 0
    expected = late_interaction_scores(*arguments, adjacent=adjacent)
    with torch.inference_mode():
        assert torch.equal(late_interaction_scores(*arguments, adjacent=adjacent), expected)
    compiled = torch.compile(late_interaction_scores, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*arguments, adjacent=adjacent), expected, atol=1e-5)


def test_quantized_codes_keep_the_direction():
    codes = torch.nn.functional.normalize(torch.randn((100, 64), generator=torch.Generator().manual_seed(0)), dim=-1)
    packed, scales = quantize_codes(codes)
    assert torch.nn.functional.cosine_similarity(packed * scales.float()[:, None], codes).min() > 0.999
    assert torch.equal(quantize_codes(torch.zeros(2, 4))[0], torch.zeros(2, 4, dtype=torch.int8))


@pytest.mark.parametrize("height", [0, 1, 3, 6])
@pytest.mark.parametrize("chunks", [1, 13, 600])
def test_a_node_is_as_good_as_its_best_leaf(height, chunks, device):
    leaf_scores = torch.randn((chunks, 2**height), generator=torch.Generator().manual_seed(0)).to(device)
    leaf_scores[chunks // 2, -1] = torch.nan
    leaf_scores[chunks // 3] = -torch.inf
    expected = [leaf_scores.view(chunks, 2**w, -1).amax(dim=2) for w in range(height + 1)]
    triton_kernel = pytest.importorskip("shared_context.kernels.late_interaction.triton_kernel")
    for function in (node_scores, node_scores_naive, triton_kernel.node_scores_triton):
        assert torch.equal(function(leaf_scores).nan_to_num(7), torch.cat(expected, dim=1).nan_to_num(7))
    assert node_scores(leaf_scores[:0]).shape == (0, 2 ** (height + 1) - 1)
