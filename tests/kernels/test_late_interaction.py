"""Late-interaction scores against the formula, one similarity at a time."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import late_interaction_scores, quantize_codes


def naive(query, weights, codes, scales):
    unpacked = codes.double() * scales.double()[..., None]
    return torch.tensor(
        [
            sum(float(w) * max(float(q.double() @ t) for t in leaf) for q, w in zip(query, weights, strict=True))
            for leaf in unpacked
        ],
        dtype=torch.float64,
    )


@settings(max_examples=30, deadline=None)
@given(
    leaves=st.integers(1, 5), leaf_size=st.integers(1, 9), words=st.integers(1, 4), size=st.integers(1, 70),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_scores_are_those_of_the_formula(leaves, leaf_size, words, size, seed):
    random = torch.Generator().manual_seed(seed)
    codes, scales = quantize_codes(torch.randn((leaves, leaf_size, size), generator=random))
    query, weights = torch.randn((words, size), generator=random), torch.rand(words, generator=random)
    found = late_interaction_scores(query, weights, codes, scales)
    assert torch.allclose(found.double(), naive(query, weights, codes, scales), rtol=1e-4, atol=1e-4)


def test_many_leaves_are_scored_as_few_are():
    random = torch.Generator().manual_seed(0)
    codes, scales = quantize_codes(torch.randn((1300, 4, 8), generator=random))
    query, weights = torch.randn((3, 8), generator=random), torch.ones(3)
    together = late_interaction_scores(query, weights, codes, scales)
    apart = torch.cat(
        [late_interaction_scores(query, weights, codes[i : i + 1], scales[i : i + 1]) for i in range(1300)]
    )
    assert torch.allclose(together, apart, atol=1e-5)


def test_repeating_a_token_of_a_leaf_changes_nothing():
    codes, scales = quantize_codes(torch.randn((2, 3, 8), generator=torch.Generator().manual_seed(0)))
    longer = torch.cat([codes, codes[:, -1:]], dim=1), torch.cat([scales, scales[:, -1:]], dim=1)
    query, weights = torch.eye(8)[:2], torch.ones(2)
    assert torch.equal(
        late_interaction_scores(query, weights, codes, scales), late_interaction_scores(query, weights, *longer)
    )


def test_quantized_codes_keep_the_direction():
    codes = torch.nn.functional.normalize(torch.randn((100, 64), generator=torch.Generator().manual_seed(0)), dim=-1)
    packed, scales = quantize_codes(codes)
    assert torch.nn.functional.cosine_similarity(packed * scales.float()[:, None], codes).min() > 0.999
    assert torch.equal(quantize_codes(torch.zeros(2, 4))[0], torch.zeros(2, 4, dtype=torch.int8))
