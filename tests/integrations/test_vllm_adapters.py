"""How adapters are multiplied in vLLM's build for processors; none of it needs vLLM."""

import pytest
import torch

from shared_context.integrations.vllm.adapters import expand, expand_of_head, shrink, shrink_of_head

RUNS = [(3, 1), (2, -1), (4, 0), (1, 1), (1, -1)]  # tokens, and the adapter that they have
OF_EACH = [adapter for tokens, adapter in RUNS for _ in range(tokens)]
WIDE, RANK = 12, 4


@pytest.fixture
def handed():
    """What vLLM hands over of the runs of a step."""
    lengths, indices = torch.tensor(RUNS).T
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)[:-1]])
    return starts, lengths, indices, len(RUNS), int(lengths.max()), len(OF_EACH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_is_multiplied_with_its_own_adapter_and_with_none_where_it_has_none(handed, dtype):
    inputs, weights = torch.randn(len(OF_EACH), WIDE).to(dtype), torch.randn(2, 1, RANK, WIDE).to(dtype)
    by_run, by_row = torch.zeros(2, len(OF_EACH), RANK)
    shrink(inputs, weights, by_run, *handed, 0.5)
    shrink_of_head(inputs, weights, by_row, torch.tensor(OF_EACH), 0.5)
    for output in (by_run, by_row):
        for row, given, adapter in zip(output, inputs.float(), OF_EACH, strict=True):
            expected = torch.zeros(RANK) if adapter < 0 else 0.5 * (weights[adapter, 0].float() @ given)
            torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("add", [True, False])
def test_columns_of_a_layers_output_get_what_the_adapters_make_of_it(handed, add):
    inputs, weights = torch.randn(len(OF_EACH), RANK), torch.randn(2, 1, 6, RANK)
    before = torch.randn(len(OF_EACH), WIDE)
    by_run, by_row = before.clone(), before.clone()
    expand(inputs, weights, by_run, *handed, 5, 6, add)
    expand_of_head(inputs, weights, by_row, torch.tensor(OF_EACH), add)
    for first, after in ((5, by_run), (0, by_row)):
        for row, was, given, adapter in zip(after, before, inputs, OF_EACH, strict=True):
            expected, columns = was.clone(), slice(first, first + 6)
            if adapter >= 0:
                expected[columns] = weights[adapter, 0] @ given + (was[columns] if add else 0)
            torch.testing.assert_close(row, expected)


def test_rows_of_a_prompt_have_the_adapter_of_their_request_where_it_is_alone_and_else_none():
    inputs, weights = torch.randn(5, WIDE), torch.randn(2, 1, RANK, WIDE)
    alone, in_company = torch.zeros(2, 5, RANK)
    shrink_of_head(inputs, weights, alone, torch.tensor([1]), 1.0)
    shrink_of_head(inputs, weights, in_company, torch.tensor([1, -1]), 1.0)
    torch.testing.assert_close(alone, inputs @ weights[1, 0].T)
    assert not in_company.any()
