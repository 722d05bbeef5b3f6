"""KV assembly against its reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import ChunkKV, assemble, assemble_reference, rotate_keys

LAYERS, HEADS, HEAD_DIM = 3, 2, 16
INV_FREQ = 1.0 / 10000 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
PARTIAL = INV_FREQ[:5]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def chunk(tokens: int, dtype: torch.dtype, seed: int) -> ChunkKV:
    values = torch.randn((2, LAYERS, HEADS, tokens, HEAD_DIM), generator=torch.Generator().manual_seed(seed))
    return ChunkKV(values.to(dtype))


def assembled(function, chunks, rows, deltas, inv_freq, dtype):
    out = torch.full((2, LAYERS, HEADS, sum(map(len, rows)), HEAD_DIM), torch.nan, dtype=dtype)
    function(chunks, rows, deltas, inv_freq, out)
    return out


def naive(chunks, rows, deltas, inv_freq):
    """One number at a time, in float64."""
    columns = []
    for chunk_kv, taken, delta in zip(chunks, rows, deltas, strict=True):
        data = chunk_kv.data.double() * (1 if chunk_kv.scale is None else chunk_kv.scale.double())
        for row, move in zip(taken.tolist(), delta.tolist(), strict=True):
            column = data[:, :, :, row].clone()
            half = len(inv_freq)
            for i, frequency in enumerate(inv_freq.double()):
                cos, sin = torch.cos(move * frequency), torch.sin(move * frequency)
                a, b = data[0, :, :, row, i], data[0, :, :, row, i + half]
                column[0, :, :, i], column[0, :, :, i + half] = a * cos - b * sin, b * cos + a * sin
            columns.append(column)
    return torch.stack(columns, dim=3)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    stride=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    quantize=st.booleans(),
    inv_freq=st.sampled_from([INV_FREQ, PARTIAL]),
    seed=st.integers(0, 1000),
)
def test_assembly_is_what_one_number_at_a_time_gives(lengths, stride, dtype, quantize, inv_freq, seed):
    random = torch.Generator().manual_seed(seed)
    chunks = [chunk(n, dtype, seed + i) for i, n in enumerate(lengths)]
    chunks = [c.quantized() for c in chunks] if quantize else chunks
    rows = [torch.randperm(n, generator=random)[: max(1, n // stride)].sort().values for n in lengths]
    deltas = [torch.randint(-8000, 8000, (len(r),), generator=random) for r in rows]
    expected = naive(chunks, rows, deltas, inv_freq)
    for function in (assemble, assemble_reference):
        found = assembled(function, chunks, rows, deltas, inv_freq, dtype)
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], function.__name__


def test_it_writes_into_a_view_and_nowhere_else():
    room = torch.full((2, LAYERS, 1, HEADS, 20, HEAD_DIM), 7.0)
    source = chunk(6, torch.float32, 0)
    assemble([source], [torch.arange(6)], [torch.zeros(6, dtype=torch.long)], INV_FREQ, room[:, :, 0, :, 4:10])
    assert torch.equal(room[:, :, 0, :, 4:10], source.data)
    assert (room[..., :4, :] == 7).all()
    assert (room[..., 10:, :] == 7).all()


def test_the_encodings_are_left_as_they_are():
    source = chunk(6, torch.float32, 0)
    before = source.data.clone()
    assembled(assemble, [source], [torch.arange(6)], [torch.full((6,), 9)], INV_FREQ, torch.float32)
    assert torch.equal(source.data, before)


def test_nothing_selected_writes_nothing():
    assemble([], [], [], INV_FREQ, torch.empty(2, LAYERS, HEADS, 0, HEAD_DIM))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_own_row(value):
    source = chunk(6, torch.float32, 0)
    source.data[:, :, :, 2] = value
    moved = assembled(assemble, [source], [torch.arange(6)], [torch.full((6,), 3)], INV_FREQ, torch.float32)
    finite = torch.isfinite(moved).all(dim=-1).all(dim=2).all(dim=1).all(dim=0)
    assert finite.tolist() == [True, True, False, True, True, True]


def test_rotations_add_up():
    keys = chunk(5, torch.float32, 1).data[0]
    once = rotate_keys(keys, torch.full((5,), 12), INV_FREQ)
    twice = rotate_keys(rotate_keys(keys, torch.full((5,), 7), INV_FREQ), torch.full((5,), 5), INV_FREQ)
    assert (once - twice).abs().max() < 1e-5
    assert torch.equal(rotate_keys(keys, torch.zeros(5), INV_FREQ), keys)
