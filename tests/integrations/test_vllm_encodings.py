"""What vLLM computes for others, and where a paged cache has it; none of it needs vLLM."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared_context.errors import SelectionError
from shared_context.integrations.vllm.encodings import (
    asked_to_save,
    make_room,
    parameters,
    read_encoding,
    remove_room,
    write_encoding,
)
from shared_context.integrations.vllm.paged import places, rows, slots
from shared_context.integrations.vllm.selections import heads_of_rank

IDS = [5, 6, 7, 8, 9]
SHAPE = 3, 4, 4, 8  # layers, tokens, kv_heads, head_dim: the first of the tokens is the prefix's


@pytest.fixture
def key_values():
    layers, tokens, kv_heads, head_dim = SHAPE
    return torch.randn(layers, 2, tokens, kv_heads, head_dim)


# ---- the folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_what_the_ranks_saved_is_read_as_one(tmp_path, key_values, ranks, dtype):
    written, id = key_values.to(dtype), make_room(tmp_path)
    for rank in reversed(range(ranks)):
        write_encoding(tmp_path, id, IDS, written[:, :, :, heads_of_rank(SHAPE[2], rank, ranks)], rank, ranks)
    assert torch.equal(read_encoding(tmp_path, id, IDS, SHAPE, dtype), written)
    remove_room(tmp_path, id)
    assert list(tmp_path.iterdir()) == []


def test_what_comes_late_finds_no_room_and_leaves_nothing(tmp_path, key_values):
    id = make_room(tmp_path)
    remove_room(tmp_path, id)
    remove_room(tmp_path, id)
    with pytest.raises(SelectionError, match="Make room"):
        write_encoding(tmp_path, id, IDS, key_values, 0, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_of_something_else_is_named(tmp_path, key_values):
    id = make_room(tmp_path)
    with pytest.raises(SelectionError, match="saved no keys and values"):
        read_encoding(tmp_path, id, IDS, SHAPE, torch.float32)
    write_encoding(tmp_path, id, IDS, key_values[:, :, :, :2], 0, 2)
    with pytest.raises(SelectionError, match="of its rank 1"):
        read_encoding(tmp_path, id, IDS, SHAPE, torch.float32)
    write_encoding(tmp_path, id, IDS, key_values, 0, 1)
    with pytest.raises(SelectionError, match="other tokens"):
        read_encoding(tmp_path, id, [*IDS[:-1], 0], SHAPE, torch.float32)
    with pytest.raises(SelectionError, match="another model"):
        read_encoding(tmp_path, id, IDS, (4, *SHAPE[1:]), torch.float32)
    with pytest.raises(SelectionError, match="float32, and the model computes in torch.bfloat16"):
        read_encoding(tmp_path, id, IDS, SHAPE, torch.bfloat16)
    with pytest.raises(SelectionError, match="Make room"):
        make_room(tmp_path / "none")


def test_damage_is_found(tmp_path, key_values):
    id = make_room(tmp_path)
    write_encoding(tmp_path, id, IDS, key_values, 0, 1)
    (path,) = (tmp_path / id).iterdir()
    whole = path.read_bytes()
    for place in [0, 8, 20, *range(60, len(whole), 97), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(SelectionError):
            read_encoding(tmp_path, id, IDS, SHAPE, torch.float32)


def test_a_request_says_what_it_wants_saved():
    for transfer in (None, {}, {"other": 1}):
        assert asked_to_save(transfer, 100) is None
    assert asked_to_save(parameters("0" * 32, 4), 100) == ("0" * 32, 4)


@pytest.mark.parametrize(
    "named",
    [7, "x", {}, {"id": "../../etc/passwd", "first": 3}, {"id": "0" * 32}, {"id": "0" * 32, "first": -1},
     {"id": "0" * 32, "first": 100}, {"id": "0" * 32, "first": True}, {"id": "0" * 32, "first": "3"}],
)  # fmt: skip
def test_a_request_that_asks_in_a_wrong_way_is_refused(named):
    with pytest.raises(SelectionError, match="32 hex digits"):
        asked_to_save({"shared_context_save": named}, 100)


# ---- the paged cache


@given(st.data())
def test_each_token_has_the_place_that_its_block_gives_it(data):
    block_size = data.draw(st.sampled_from([1, 16, 32, 128]))
    stop = data.draw(st.integers(1, 400))
    start = data.draw(st.integers(0, stop - 1))
    blocks = data.draw(st.permutations(range(-(-stop // block_size))))
    cache = torch.full((len(blocks) * block_size,), -1)
    cache[slots(blocks, start, stop, block_size)] = torch.arange(start, stop)
    in_order = cache.view(-1, block_size)[list(blocks)].flatten()
    assert in_order[start:stop].tolist() == list(range(start, stop))
    assert (in_order[:start] == -1).all() and (in_order[stop:] == -1).all()


BLOCK, HEADS, HEAD_DIM = 16, 3, 32


def token_after_token(keys, values, cache, where):
    """Blocks of [keys and values, tokens, heads, numbers]."""
    for part, written in enumerate((keys, values)):
        cache[where // BLOCK, part, where % BLOCK] = written


def head_after_head(keys, values, cache, where):
    """Blocks of [heads, tokens, numbers of keys and then of values]."""
    cache[where // BLOCK, :, where % BLOCK] = torch.cat([keys, values], dim=-1)


def keys_turned(keys, values, cache, where):
    """Blocks whose keys lie as a processor's kernels multiply them, number by number over all tokens, with a gap."""
    of_keys = cache[:, : HEADS * HEAD_DIM * BLOCK].view(-1, HEADS, HEAD_DIM, BLOCK)
    of_keys[where // BLOCK, :, :, where % BLOCK] = keys
    of_values = cache[:, -HEADS * BLOCK * HEAD_DIM :].view(-1, HEADS, BLOCK, HEAD_DIM)
    of_values[where // BLOCK, :, where % BLOCK] = values


LAYOUTS = {
    token_after_token: (2, BLOCK, HEADS, HEAD_DIM),
    head_after_head: (HEADS, BLOCK, 2 * HEAD_DIM),
    keys_turned: (2 * BLOCK * HEADS * HEAD_DIM + 64,),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 16), (5, 40), (16, 32), (31, 33), (47, 48)])
def test_rows_are_found_wherever_a_backend_has_them(write, dtype, start, stop):
    cache, blocks = torch.randn(6, *LAYOUTS[write]).to(dtype), [4, 1, 5]
    keys, values = torch.randn(2, 48, HEADS, HEAD_DIM).to(dtype)
    write(keys, values, cache, slots(blocks, 0, 48, BLOCK))
    before = cache.clone()
    found = places(write, cache, (BLOCK, HEADS, HEAD_DIM), dtype)
    assert torch.equal(cache, before)  # other requests' rows are in there
    read = rows(cache, found, blocks, start, stop)
    assert torch.equal(read, torch.stack([keys, values])[:, start:stop])


def test_a_cache_that_is_not_laid_out_block_by_block_is_refused():
    def parts_first(keys, values, cache, where):
        for part, written in zip(cache, (keys, values), strict=True):
            part.view(-1, HEADS, HEAD_DIM)[where] = written

    def latent(keys, values, cache, where):
        cache.view(-1, HEAD_DIM)[where] = keys.sum(1)

    for write, cache in (
        (parts_first, torch.zeros(2, 6, BLOCK, HEADS, HEAD_DIM)),
        (latent, torch.zeros(6, BLOCK, HEAD_DIM)),
    ):
        with pytest.raises(SelectionError, match="block by block"):
            places(write, cache, (BLOCK, HEADS, HEAD_DIM), torch.float32)
