import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from shared_context.errors import ConfigError
from shared_context.kernels import ChunkKV
from shared_context.store import kv_folder
from shared_context.store.kv_cache import TieredKVCache

MB = 10**6


def key_of(name):
    return hashlib.sha256(str(name).encode()).hexdigest()


def chunk(name=0, tokens=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(int(key_of(name)[:8], 16))
    return ChunkKV(torch.randn(2, 3, 2, tokens, 8, generator=generator).to(dtype))


TOKEN_BYTES = chunk(tokens=1).nbytes


def same(one, other):
    if (one.scale is None) != (other.scale is None) or one.data.dtype != other.data.dtype:
        return False
    return torch.equal(one.data, other.data) and (one.scale is None or torch.equal(one.scale, other.scale))


def files_in(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def put_all(cache, names, tokens=4):
    for name in names:
        cache.put(key_of(name), chunk(name, tokens))


def held(cache, names):
    return [name for name in names if key_of(name) in cache]


# ---- memory


def test_what_was_put_is_found():
    cache = TieredKVCache(MB)
    cache.put(key_of("a"), chunk("a"))
    assert same(cache.get(key_of("a")), chunk("a"))
    assert key_of("a") in cache and key_of("b") not in cache
    assert cache.get(key_of("b")) is None
    assert "not a key" not in cache and 7 not in cache


def test_the_least_recently_used_goes_first():
    cache = TieredKVCache(3 * 4 * TOKEN_BYTES)
    put_all(cache, "abc")
    cache.get(key_of("a"))
    put_all(cache, "d")
    assert held(cache, "abcd") == ["a", "c", "d"]
    stats = cache.stats()["memory"]
    assert stats["evictions"] == 1 and stats["entries"] == 3 and stats["bytes"] == stats["limit_bytes"]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(1, 12)),
        st.tuples(st.just("get"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("discard"), st.integers(0, 5), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(operations, st.integers(0, 20))
def test_memory_behaves_as_a_list_in_order_of_use(steps, limit):
    cache = TieredKVCache(limit * TOKEN_BYTES)
    model = OrderedDict()  # name: tokens, least recently used first
    for step, name, tokens in steps:
        if step == "put":
            cache.put(key_of(name), chunk(name, tokens))
            model.pop(name, None)
            if tokens <= limit:
                model[name] = tokens
                while sum(model.values()) > limit:
                    model.popitem(last=False)
        elif step == "get":
            found = cache.get(key_of(name))
            assert (None if found is None else found.tokens) == model.get(name)
            if name in model:
                model.move_to_end(name)
        else:
            cache.discard([key_of(name)])
            model.pop(name, None)
        assert held(cache, range(6)) == sorted(model)
        assert cache.stats()["memory"]["bytes"] == sum(model.values()) * TOKEN_BYTES


def test_a_view_of_something_larger_is_charged_and_kept_as_what_it_is():
    batch = torch.zeros(2, 3, 2, 10_000, 8)
    cache = TieredKVCache(MB)
    cache.put(key_of("a"), ChunkKV(batch[:, :, :, :4]))
    assert cache.get(key_of("a")).data.untyped_storage().nbytes() == 4 * TOKEN_BYTES


@pytest.mark.parametrize("limits", [{"memory": -1}, {"memory": 1, "disk_bytes": -1}])
def test_negative_limits_are_refused(limits):
    with pytest.raises(ConfigError, match="bytes=-1"):
        TieredKVCache(**limits)


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "ABCDEF", "abc/def", "a" * 200, None])
def test_keys_that_are_no_digests_are_refused(tmp_path, key):
    cache = TieredKVCache(MB, tmp_path)
    for call in (lambda: cache.get(key), lambda: cache.put(key, chunk()), lambda: cache.discard([key])):
        with pytest.raises(ValueError, match="hex"):
            call()


# ---- disk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantize", [False, True])
def test_reopened_it_finds_what_was_put(tmp_path, dtype, quantize):
    before = chunk("a", dtype=dtype)
    TieredKVCache(MB, tmp_path, quantize=quantize).put(key_of("a"), before)
    found = TieredKVCache(MB, tmp_path).get(key_of("a"))
    assert same(found, before.quantized() if quantize else before)
    assert found.data.is_contiguous()


def test_quantized_chunks_take_half_the_bytes_of_bfloat16():
    sizes = {}
    for quantize in (False, True):
        cache = TieredKVCache(10 * MB, quantize=quantize)
        cache.put(key_of("a"), chunk("a", tokens=1024, dtype=torch.bfloat16))
        sizes[quantize] = cache.stats()["memory"]["bytes"]
    assert sizes[True] < 0.51 * sizes[False]


def test_evicted_from_memory_it_is_found_on_disk(tmp_path):
    cache = TieredKVCache(4 * TOKEN_BYTES, tmp_path)
    put_all(cache, "abc")
    assert all(same(cache.get(key_of(name)), chunk(name)) for name in "abc")
    stats = cache.stats()
    assert stats["memory"]["entries"] == 1 and stats["disk"]["entries"] == 3
    # a, b and c each pushed out the one before, so none was in memory
    assert (stats["memory"]["hits"], stats["memory"]["misses"]) == (0, 3)
    assert (stats["disk"]["hits"], stats["disk"]["misses"]) == (3, 0)


def test_found_on_disk_it_is_kept_in_memory(tmp_path):
    put_all(TieredKVCache(MB, tmp_path), "a")
    cache = TieredKVCache(MB, tmp_path)
    cache.get(key_of("a"))
    assert same(cache.get(key_of("a")), chunk("a"))
    assert cache.stats()["memory"]["hits"] == 1 and cache.stats()["disk"]["hits"] == 1


@pytest.mark.parametrize("memory_bytes", [0, TOKEN_BYTES])
def test_a_chunk_larger_than_memory_is_served_from_disk(tmp_path, memory_bytes):
    cache = TieredKVCache(memory_bytes, tmp_path)
    cache.put(key_of("a"), chunk("a"))
    assert same(cache.get(key_of("a")), chunk("a"))
    assert cache.stats()["memory"]["entries"] == 0


@pytest.mark.parametrize("options", [{"folder": None}, {"disk_bytes": 0}, {"disk_bytes": 10}])
def test_without_room_on_disk_it_is_a_cache_in_memory(tmp_path, options):
    cache = TieredKVCache(**{"memory": MB, "folder": tmp_path, **options})
    put_all(cache, "a")
    assert held(cache, "a") == ["a"]
    assert files_in(tmp_path) == []
    assert cache.stats()["disk"]["entries"] == 0


def test_the_disk_drops_the_least_recently_used_first(tmp_path):
    cache = TieredKVCache(0, tmp_path)
    put_all(cache, "a")
    size = cache.stats()["disk"]["bytes"]
    cache = TieredKVCache(0, tmp_path, disk_bytes=3 * size)
    put_all(cache, "bc")
    cache.get(key_of("a"))
    put_all(cache, "d")
    assert held(cache, "abcd") == ["a", "c", "d"]
    assert cache.stats()["disk"]["evictions"] == 1


def test_what_memory_uses_stays_on_disk(tmp_path):
    cache = TieredKVCache(MB, tmp_path)
    put_all(cache, "a")
    size = cache.stats()["disk"]["bytes"]
    cache = TieredKVCache(MB, tmp_path, disk_bytes=3 * size)
    for name in "bcdef":
        put_all(cache, name)
        cache.get(key_of("a"))
    assert held(TieredKVCache(0, tmp_path), "abcdef") == ["a", "e", "f"]


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20), limit=st.integers(0, 60))
def test_the_disk_never_exceeds_its_limit(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("kv")
    caches = [TieredKVCache(0, folder, disk_bytes=limit * TOKEN_BYTES) for _ in range(2)]
    for name, tokens in enumerate(sizes):
        # the second process writes as well, so neither knows the sum
        caches[name % 2].put(key_of(name), chunk(name, tokens))
        assert sum(path.stat().st_size for path in files_in(folder)) <= limit * TOKEN_BYTES * (1 + 1 / 16)


def test_a_smaller_limit_is_met_at_the_next_write(tmp_path):
    put_all(TieredKVCache(0, tmp_path), range(10))
    size = files_in(tmp_path)[0].stat().st_size
    cache = TieredKVCache(0, tmp_path, disk_bytes=2 * size)
    put_all(cache, ["new"])
    assert cache.stats()["disk"]["entries"] == 2 and held(cache, ["new"]) == ["new"]


def test_discard_and_clear_reach_both_tiers(tmp_path):
    cache = TieredKVCache(MB, tmp_path)
    put_all(cache, "abcd")
    cache.discard([key_of("a"), key_of("b"), key_of("unknown")])
    cache.discard(key_of("c"))
    assert held(cache, "abcd") == held(TieredKVCache(MB, tmp_path), "abcd") == ["d"]
    (tmp_path / "notes.txt").write_text("not ours")
    cache.clear()
    assert held(cache, "d") == []
    assert files_in(tmp_path) == [tmp_path / "notes.txt"]
    assert cache.stats()["memory"]["bytes"] == cache.stats()["disk"]["bytes"] == 0


def test_stats_are_json(tmp_path):
    cache = TieredKVCache(MB, tmp_path)
    assert json.loads(json.dumps(cache.stats())) == cache.stats()
    assert set(cache.stats()["memory"]) == set(cache.stats()["disk"])


def test_a_loaded_chunk_outlives_its_file_and_can_be_written_over(tmp_path):
    put_all(TieredKVCache(MB, tmp_path), "a")
    loaded = TieredKVCache(0, tmp_path).get(key_of("a"))
    (file,) = files_in(tmp_path)
    with file.open("r+b") as opened:
        opened.truncate(0)  # a mapping would now crash the process
    assert same(loaded, chunk("a"))
    loaded.data.zero_()


# ---- damage


def corrupt(content, at):
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:7],
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        lambda content: corrupt(content, 3),
        lambda content: corrupt(content, 40),
        lambda content: corrupt(content, len(content) - 1),
        lambda content: content[:-64] + bytes(64),
        lambda content: b"[" * 100_000,
        lambda content: b"%PDF-1.7 something else altogether",
    ],
)
@pytest.mark.parametrize("quantize", [False, True])
def test_a_damaged_file_is_a_miss_and_goes(tmp_path, damage, quantize, caplog):
    cache = TieredKVCache(0, tmp_path, quantize=quantize)
    cache.put(key_of("a"), chunk("a"))
    (file,) = files_in(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get(key_of("a")) is None
    assert not file.exists()
    assert str(file) in caplog.text
    cache.put(key_of("a"), chunk("a"))
    assert cache.get(key_of("a")) is not None


@pytest.mark.parametrize(
    "tensors",
    [
        {"data": torch.tensor(1.0)},
        {"data": torch.zeros(2, 1, 1, 4, 2, dtype=torch.float8_e4m3fn)},
        {"data": torch.zeros(2, 1, 1, 4, 2, dtype=torch.complex64)},
        {"data": torch.zeros(2, 1, 1, 4, 2), "importance": torch.tensor(1.0, dtype=torch.float16)},
        {"data": torch.zeros(0), "importance": torch.zeros(0)},
    ],
    ids=["no axes", "eight bits", "complex", "importance without axes", "nothing"],
)
def test_tensors_that_no_chunk_has_are_a_miss_and_go(tmp_path, tensors):
    cache = TieredKVCache(0, tmp_path)
    put_all(cache, "a")
    (file,) = files_in(tmp_path)
    with safe_open(file, "pt") as written:
        metadata = written.metadata()
    for name, tensor in tensors.items():
        head = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        metadata[f"{name}_crc32"] = f"{zlib.crc32(content, head):08x}"
    file.write_bytes(save(tensors, metadata=metadata))
    assert cache.get(key_of("a")) is None
    assert not file.exists()


@pytest.mark.posix
@pytest.mark.parametrize(
    "instead",
    [
        lambda file: os.mkfifo(file),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: (file.touch(), os.truncate(file, 1 << 40)),
    ],
    ids=["a pipe", "an endless device", "a terabyte of holes"],
)
def test_what_is_no_file_of_this_cache_is_a_miss_and_never_waited_for(tmp_path, instead):
    cache = TieredKVCache(0, tmp_path)
    put_all(cache, "a")
    (file,) = files_in(tmp_path)
    file.unlink()
    instead(file)
    assert cache.get(key_of("a")) is None
    put_all(cache, "a")
    assert same(cache.get(key_of("a")), chunk("a"))


@settings(max_examples=100)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, at, bit):
    folder = tmp_path_factory.mktemp("kv")
    cache = TieredKVCache(0, folder)
    cache.put(key_of("a"), chunk("a", tokens=1))
    (file,) = files_in(folder)
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    file.write_bytes(content)
    found = cache.get(key_of("a"))
    assert found is None or same(found, chunk("a", tokens=1))  # padding of the header means nothing


def test_another_chunks_file_under_this_name_is_a_miss(tmp_path):
    cache = TieredKVCache(0, tmp_path)
    put_all(cache, "ab")
    first, second = files_in(tmp_path)
    second.write_bytes(first.read_bytes())
    assert len(held(cache, "ab")) == 2
    assert sorted(cache.get(key_of(name)) is None for name in "ab") == [False, True]


def test_somebody_elses_safetensors_are_a_miss(tmp_path):
    from safetensors.torch import save_file

    cache = TieredKVCache(0, tmp_path)
    put_all(cache, "a")
    (file,) = files_in(tmp_path)
    save_file({"data": chunk("a").data}, file)
    assert cache.get(key_of("a")) is None


def test_files_that_vanish_are_misses(tmp_path):
    first, second = TieredKVCache(0, tmp_path), TieredKVCache(0, tmp_path)
    put_all(first, "ab")
    assert second.get(key_of("a")) is not None
    second.clear()
    assert first.get(key_of("a")) is None
    for path in sorted(tmp_path.iterdir()):
        path.rmdir()
    tmp_path.rmdir()
    assert first.get(key_of("b")) is None
    put_all(first, "b")
    assert second.get(key_of("b")) is not None


def test_killed_while_writing_it_leaves_nothing_that_is_found(tmp_path):
    program = """
import os, sys, torch
from shared_context.kernels import ChunkKV
from shared_context.store.kv_cache import TieredKVCache
cache = TieredKVCache(0, sys.argv[1])
os.replace = lambda *paths: os._exit(9)
cache.put("abc123", ChunkKV(torch.zeros(2, 1, 1, 4, 8)))
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)]).returncode == 9
    (left,) = files_in(tmp_path)
    cache = TieredKVCache(MB, tmp_path)
    assert "abc123" not in cache and cache.get("abc123") is None
    assert cache.stats()["disk"]["entries"] == 0
    assert left.exists()  # another process may be writing it right now
    an_hour_ago = time.time() - 3600
    os.utime(left, (an_hour_ago, an_hour_ago))
    TieredKVCache(MB, tmp_path)
    assert files_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_logged_once(tmp_path, caplog):
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, not a folder")
    cache = TieredKVCache(MB, occupied)
    put_all(cache, "abc")
    assert held(cache, "abc") == list("abc")
    assert cache.get(key_of("a")) is not None and cache.get(key_of("unknown")) is None
    cache.discard([key_of("a")])
    cache.clear()
    assert len(caplog.records) == 1 and str(occupied) in caplog.text
    assert occupied.read_text() == "a file, not a folder"


def test_a_full_disk_is_logged_once_and_used_again_later(tmp_path, caplog, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = TieredKVCache(MB, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        put_all(cache, "ab")
    assert held(cache, "ab") == ["a", "b"]
    assert files_in(tmp_path) == []
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    put_all(cache, "c")
    assert files_in(tmp_path) == []
    later = time.monotonic() + 3600
    monkeypatch.setattr(kv_folder.time, "monotonic", lambda: later)
    put_all(cache, "d")
    assert held(TieredKVCache(MB, tmp_path), "abcd") == ["d"]


def test_quantizing_what_is_not_finite_is_refused(tmp_path):
    cache = TieredKVCache(MB, tmp_path, quantize=True)
    with pytest.raises(ValueError, match="infinite or NaN"):
        cache.put(key_of("a"), ChunkKV(torch.full((2, 1, 1, 1, 1), float("inf"))))


# ---- threads


def test_threads_and_instances_share_a_folder(tmp_path):
    """Every chunk found is whole and the right one, and the sums still agree at the end."""
    size = 5 * TOKEN_BYTES
    caches = [TieredKVCache(3 * size, tmp_path, disk_bytes=8 * size) for _ in range(2)]
    expected = {name: chunk(name) for name in range(12)}
    problems = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        cache = caches[seed % 2]
        try:
            for _ in range(60):
                name, action = torch.randint(0, 12, (2,), generator=generator).tolist()
                if action < 5:
                    cache.put(key_of(name), expected[name])
                elif action < 11:
                    found = cache.get(key_of(name))
                    if found is not None and not same(found, expected[name]):
                        problems.append(f"{name} is another chunk")
                else:
                    cache.discard([key_of(name)])
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for cache in caches:
        stats = cache.stats()
        assert stats["memory"]["bytes"] == 4 * TOKEN_BYTES * stats["memory"]["entries"] <= 3 * size
        assert stats["disk"]["bytes"] <= 8 * size * (1 + 1 / 16)
    assert not [path for path in files_in(tmp_path) if path.suffix == ".tmp"]
