import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import ChunkKV


def random_data(tokens=16, dtype=torch.float32, seed=0, magnitude=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, 2, tokens, 8, generator=generator) * magnitude).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_describes_its_tensors(dtype):
    chunk_kv = ChunkKV(random_data(tokens=5, dtype=dtype))
    assert (chunk_kv.layers, chunk_kv.tokens) == (3, 5)
    assert chunk_kv.nbytes == 2 * 3 * 2 * 5 * 8 * dtype.itemsize
    # one byte a value and one float32 a channel
    assert chunk_kv.quantized().nbytes == 2 * 3 * 2 * 5 * 8 + 2 * 3 * 2 * 8 * 4


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 40), exponent=st.integers(-30, 30))
def test_int8_errs_by_at_most_half_a_step_of_the_channel(seed, tokens, exponent):
    data = random_data(tokens, seed=seed, magnitude=10.0**exponent)
    quantized = ChunkKV(data).quantized()
    assert quantized.data.dtype == torch.int8
    error = (quantized.dequantized(torch.float32).data - data).abs()
    assert (error <= quantized.scale * 0.5001).all()


def test_each_channel_has_its_own_scale():
    data = random_data()
    data[..., 0] *= 1000
    error = (ChunkKV(data).quantized().dequantized(torch.float32).data - data).abs()
    assert error[..., 1:].max() < 0.05


def test_zeros_stay_zeros():
    quantized = ChunkKV(torch.zeros(2, 1, 1, 4, 8)).quantized()
    assert torch.equal(quantized.dequantized(torch.float32).data, torch.zeros(2, 1, 1, 4, 8))


def test_conversions_that_change_nothing_copy_nothing():
    chunk_kv = ChunkKV(random_data(dtype=torch.bfloat16))
    quantized = chunk_kv.quantized()
    assert quantized.quantized() is quantized
    assert chunk_kv.dequantized(torch.bfloat16) is chunk_kv
    assert chunk_kv.dequantized(torch.float32).data.dtype == torch.float32
    assert quantized.dequantized(torch.float16).data.dtype == torch.float16


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_int8_cannot_hold_is_refused(value):
    data = random_data()
    data[1, 2, 1, 3, 4] = value
    with pytest.raises(ValueError, match="infinite or NaN"):
        ChunkKV(data).quantized()


@pytest.mark.parametrize(
    "data, scale",
    [
        (torch.zeros(3, 1, 4, 8), None),
        (torch.zeros(3, 1, 1, 4, 8), None),
        (torch.zeros(2, 1, 1, 0, 8), None),
        (torch.zeros(2, 1, 1, 4, 8, dtype=torch.float64), None),
        (torch.zeros(2, 1, 1, 4, 8, dtype=torch.int8), None),
        (torch.zeros(2, 1, 1, 4, 8), torch.ones(2, 1, 1, 1, 8)),
        (torch.zeros(2, 1, 1, 4, 8, dtype=torch.int8), torch.ones(2, 1, 1, 4, 8)),
        (torch.zeros(2, 1, 1, 4, 8, dtype=torch.int8), torch.ones(2, 1, 1, 1, 8, dtype=torch.float16)),
    ],
    ids=["four axes", "not a pair", "no token", "float64", "no scale", "needless scale", "scale shape", "scale dtype"],
)
def test_other_shapes_and_dtypes_are_refused(data, scale):
    with pytest.raises(ValueError, match="expected|needs"):
        ChunkKV(data, scale)


def test_dequantizing_to_integers_is_refused():
    with pytest.raises(ValueError, match="int32"):
        ChunkKV(random_data()).dequantized(torch.int32)
