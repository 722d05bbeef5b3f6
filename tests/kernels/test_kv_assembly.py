"""KV assembly against its reference in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_context.kernels import AssemblyByLayer, ChunkKV, Rotary, assemble, assemble_reference, rotate_keys

LAYERS, HEADS, HEAD_DIM = 3, 2, 16
INV_FREQ = 1.0 / 10000 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
PARTIAL = INV_FREQ[:5]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton")
LAYERED = Rotary(torch.stack([PARTIAL, torch.zeros(5), 10 * PARTIAL]), (0, 1, 2))
INTERLEAVED = Rotary(INV_FREQ[None], None, interleaved=True)
INTERLEAVED_IN_SOME = Rotary(torch.stack([torch.zeros(5), PARTIAL]), (1, 0, 1), interleaved=True)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def with_triton(chunks, rows, deltas, inv_freq, out):
    triton_kernel = pytest.importorskip("shared_context.kernels.kv_assembly.triton_kernel")
    place = out.cuda() if torch.cuda.is_available() else out
    triton_kernel.assemble_triton(chunks, rows, deltas, inv_freq, place)
    out.copy_(place)


def layer_by_layer(chunks, rows, deltas, inv_freq, out):
    assembly = AssemblyByLayer(chunks, rows, deltas, inv_freq)
    for layer in range(out.shape[1]):
        assembly.write(layer, out[:, layer])


PATHS = [assemble, with_triton, layer_by_layer]


def chunk(tokens: int, dtype: torch.dtype, seed: int) -> ChunkKV:
    values = torch.randn((2, LAYERS, HEADS, tokens, HEAD_DIM), generator=torch.Generator().manual_seed(seed))
    return ChunkKV(values.to(dtype))


def assembled(function, chunks, rows, deltas, inv_freq, dtype):
    out = torch.full((2, LAYERS, HEADS, sum(map(len, rows)), HEAD_DIM), torch.nan, dtype=dtype)
    function(chunks, rows, deltas, inv_freq, out)
    return out


def naive(chunks, rows, deltas, rotary):
    """One number at a time, in float64."""
    rotary = Rotary.of(rotary)
    columns = []
    for chunk_kv, taken, delta in zip(chunks, rows, deltas, strict=True):
        data = chunk_kv.data.double() * (1 if chunk_kv.scale is None else chunk_kv.scale.double())
        for row, move in zip(taken.tolist(), delta.tolist(), strict=True):
            column = data[:, :, :, row].clone()
            for layer in range(data.shape[1]):
                frequencies = rotary.inv_freq[0 if rotary.kinds is None else rotary.kinds[layer]].double()
                for i, frequency in enumerate(frequencies):
                    cos, sin = torch.cos(move * frequency), torch.sin(move * frequency)
                    one, other = (2 * i, 2 * i + 1) if rotary.interleaved else (i, i + len(frequencies))
                    a, b = data[0, layer, :, row, one], data[0, layer, :, row, other]
                    column[0, layer, :, one], column[0, layer, :, other] = a * cos - b * sin, b * cos + a * sin
            columns.append(column)
    return torch.stack(columns, dim=3)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    stride=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    quantize=st.booleans(),
    inv_freq=st.sampled_from([INV_FREQ, PARTIAL, LAYERED, INTERLEAVED, INTERLEAVED_IN_SOME]),
    seed=st.integers(0, 1000),
)
def test_assembly_is_what_one_number_at_a_time_gives(lengths, stride, dtype, quantize, inv_freq, seed):
    random = torch.Generator().manual_seed(seed)
    chunks = [chunk(n, dtype, seed + i) for i, n in enumerate(lengths)]
    chunks = [c.quantized() for c in chunks] if quantize else chunks
    rows = [torch.randperm(n, generator=random)[: max(1, n // stride)].sort().values for n in lengths]
    deltas = [torch.randint(-8000, 8000, (len(r),), generator=random) for r in rows]
    expected = naive(chunks, rows, deltas, inv_freq)
    for function in (assemble, assemble_reference, with_triton, layer_by_layer):
        found = assembled(function, chunks, rows, deltas, inv_freq, dtype)
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], function.__name__


@pytest.mark.parametrize("path", PATHS)
def test_it_writes_into_a_view_and_nowhere_else(path):
    room = torch.full((2, LAYERS, 1, HEADS, 20, HEAD_DIM), 7.0)
    source = chunk(6, torch.float32, 0)
    path([source], [torch.arange(6)], [torch.zeros(6, dtype=torch.long)], INV_FREQ, room[:, :, 0, :, 4:10])
    assert torch.equal(room[:, :, 0, :, 4:10], source.data)
    assert (room[..., :4, :] == 7).all()
    assert (room[..., 10:, :] == 7).all()


@pytest.mark.parametrize("path", PATHS)
def test_the_encodings_are_left_as_they_are(path):
    source = chunk(6, torch.float32, 0)
    before = source.data.clone()
    assembled(path, [source], [torch.arange(6)], [torch.full((6,), 9)], INV_FREQ, torch.float32)
    assert torch.equal(source.data, before)


@pytest.mark.parametrize("path", [assemble, layer_by_layer])
def test_nothing_selected_writes_nothing(path):
    path([], [], [], INV_FREQ, torch.empty(2, LAYERS, HEADS, 0, HEAD_DIM))


@pytest.mark.parametrize("path", PATHS)
def test_a_chunk_of_which_nothing_is_taken_is_passed_over(path):
    chunks, none = [chunk(6, torch.float32, seed) for seed in range(2)], torch.empty(0, dtype=torch.long)
    rows, deltas = [none, torch.arange(6)], [none, torch.zeros(6, dtype=torch.long)]
    assert torch.equal(assembled(path, chunks, rows, deltas, INV_FREQ, torch.float32), chunks[1].data)


@pytest.mark.parametrize("path", PATHS)
def test_int8_chunks_stand_beside_others(path):
    chunks = [chunk(9, torch.bfloat16, 0), chunk(70, torch.bfloat16, 1).quantized(), chunk(3, torch.bfloat16, 2)]
    rows = [torch.arange(0, c.tokens, 2) for c in chunks]
    deltas = [torch.full((len(r),), 100 * i) for i, r in enumerate(rows)]
    expected = naive(chunks, rows, deltas, INV_FREQ)
    found = assembled(path, chunks, rows, deltas, INV_FREQ, torch.bfloat16)
    assert (found.double() - expected).abs().max() / expected.abs().max() < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("head_dim, half", [(8, 4), (64, 32), (80, 10), (96, 48), (128, 64), (256, 32)])
@pytest.mark.parametrize("quantize", [False, True])
def test_heads_of_every_size(path, head_dim, half, quantize):
    random = torch.Generator().manual_seed(head_dim)
    source = ChunkKV(torch.randn((2, 2, 3, 45, head_dim), generator=random))
    source = source.quantized() if quantize else source
    inv_freq = 1.0 / 10000 ** (torch.arange(half) / half)
    rows, deltas = [torch.arange(4, 45, 3)], [torch.randint(-(10**6), 10**6, (14,), generator=random)]
    out = torch.empty((2, 2, 3, 14, head_dim))
    path([source], rows, deltas, inv_freq, out)
    assert (out.double() - naive([source], rows, deltas, inv_freq)).abs().max() < 1e-5


@pytest.mark.parametrize("path", PATHS)
def test_tensors_need_not_be_contiguous(path):
    whole = chunk(12, torch.float32, 0).data
    sources = [
        ChunkKV(whole[:, :, :, 1::2]),
        ChunkKV(whole.transpose(2, 3).contiguous().transpose(2, 3)),
        ChunkKV(whole.mT.contiguous().mT),
    ]
    rows = [torch.arange(0, c.tokens, 2) for c in sources]
    deltas = [torch.full((len(r),), 5) for r in rows]
    expected = naive(sources, rows, deltas, INV_FREQ)
    room = torch.zeros((2, LAYERS, HEADS, HEAD_DIM, sum(map(len, rows))))
    path(sources, rows, deltas, INV_FREQ, room.mT)
    assert (room.mT.double() - expected).abs().max() < 1e-5


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_own_row(path, value):
    source = chunk(6, torch.float32, 0)
    source.data[:, :, :, 2] = value
    moved = assembled(path, [source], [torch.arange(6)], [torch.full((6,), 3)], INV_FREQ, torch.float32)
    finite = torch.isfinite(moved).all(dim=-1).all(dim=2).all(dim=1).all(dim=0)
    assert finite.tolist() == [True, True, False, True, True, True]


def test_inference_mode_and_compile_change_nothing():
    source, rows, deltas = chunk(6, torch.float32, 0), torch.arange(6), torch.full((6,), 3)
    expected = assembled(assemble, [source], [rows], [deltas], INV_FREQ, torch.float32)
    with torch.inference_mode():
        assert torch.equal(assembled(assemble, [source], [rows], [deltas], INV_FREQ, torch.float32), expected)
    compiled = torch.compile(assemble, backend="eager")
    found = assembled(compiled, [source], [rows], [deltas], INV_FREQ, torch.float32)
    assert torch.allclose(found, expected, atol=1e-6)


def test_rotations_add_up():
    keys = chunk(5, torch.float32, 1).data[0]
    once = rotate_keys(keys, torch.full((5,), 12), INV_FREQ)
    twice = rotate_keys(rotate_keys(keys, torch.full((5,), 7), INV_FREQ), torch.full((5,), 5), INV_FREQ)
    assert (once - twice).abs().max() < 1e-5
    assert torch.equal(rotate_keys(keys, torch.zeros(5), INV_FREQ), keys)


def test_positions_need_not_lie_where_the_keys_do():
    keys = torch.empty(3, 5, 8, device="meta")
    assert rotate_keys(keys, torch.arange(5), torch.ones(4)).device == keys.device
