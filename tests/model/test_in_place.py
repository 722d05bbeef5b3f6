"""Reading encodings where they lie gives what reading an assembled copy of them gives."""

import pytest
import torch

from shared_context import CacheConfig, SharedLLMContextStore, StoreConfig
from shared_context.kernels import ChunkKV, attention_with_lse
from shared_context.model.context import ContextKV
from shared_context.model.in_place import EncodingsInPlace, Run, split_runs

TOLERANCE = 1e-4


class Shown:
    """A context of given encodings, rows and places, without a store."""

    def __init__(self, chunks, rows, places):
        entries = sum(map(len, rows))
        self._context = ContextKV(chunks, rows, torch.full((entries,), 5), places)

    @property
    def kv_entries(self):
        return self._context.columns

    def key_values(self, room=None):
        return self._context


def layout(model, tokens, quantize_last=False):
    """Three chunks: a long run and a short one, every second row, and two runs that are read in turned order."""
    chunks = model.compressor.encode([tokens(300, 1), tokens(260, 2), tokens(450, 3)])
    if quantize_last:
        chunks[2] = chunks[2].quantized()
    rows = [
        torch.cat([torch.arange(3, 270), torch.arange(280, 291)]),
        torch.arange(1, 260, 2),
        torch.cat([torch.arange(0, 201), torch.arange(230, 450)]),
    ]
    places = [torch.arange(220, 498), torch.arange(498, 628), torch.cat([torch.arange(628, 829), torch.arange(0, 220)])]
    return Shown(chunks, rows, places)


def runs_of(model, context, queries=5):
    kv = context.key_values()
    deltas = [place - row for place, row in zip(kv.places, kv.rows, strict=True)]
    return split_runs(kv.chunks, kv.rows, deltas, model.dtype, queries)


def test_runs_that_are_long_and_moved_by_one_delta_are_read_in_place(make_model, tokens):
    model = make_model("llama")
    runs, (_, rows, _) = runs_of(model, layout(model, tokens))
    assert [(run.first, run.end) for run in runs] == [(3, 270), (0, 201), (230, 450)]
    assert [r.tolist() for r in rows] == [list(range(280, 291)), list(range(1, 260, 2))]
    runs, (chunks, _, _) = runs_of(model, layout(model, tokens, quantize_last=True))
    assert [(run.first, run.end) for run in runs] == [(3, 270)]
    assert chunks[-1].scale is not None
    assert not runs_of(model, layout(model, tokens), queries=200)[0]


@pytest.mark.parametrize("quantize_last", [False, True])
def test_in_place_and_assembled_give_the_same_logits(make_model, tokens, prompt, family, quantize_last):
    model = make_model(family)
    context, suffix = layout(model, tokens, quantize_last), prompt(model, tokens(9, 4))
    expected = model.logits(suffix, context)
    found = model.logits(suffix, context, in_place=True)
    assert (found - expected).abs().max() < TOLERANCE
    assert (expected - model.logits(suffix)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_above_the_injection_layers_read_nothing_in_place(make_model, tokens, prompt, layers):
    model = make_model("llama", injection_layers=layers)
    context, suffix = layout(model, tokens), prompt(model, tokens(9, 4))
    found = model.logits(suffix, context, in_place=True)
    assert (found - model.logits(suffix, context)).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_softmax_over_runs_and_cache_as_by_the_formula(dtype):
    """Against the naive formula in float64, with a part of each head that has no rotation."""
    kv_heads, rows, head_dim, half = 2, 10, 16, 6
    draw = torch.Generator().manual_seed(0)
    inv_freq = 1.0 / 100 ** (torch.arange(half) / half)
    chunks = [ChunkKV(torch.randn((2, 3, kv_heads, 40, head_dim), generator=draw).to(dtype)) for _ in range(2)]
    runs = [Run(chunks[0], 2, 31, 170), Run(chunks[1], 0, 40, -3), Run(chunks[0], 35, 36, 0)]
    query, key, value = (torch.randn((1, kv_heads, n, head_dim), generator=draw).to(dtype) for n in (rows, 7, 7))
    mask = torch.zeros(1, 1, rows, 7, dtype=dtype)
    mask[..., :5, 4:] = torch.finfo(dtype).min
    for layer in range(3):
        cache = attention_with_lse(query, key, value, mask, 0.3)
        found = EncodingsInPlace(runs, inv_freq).attend(layer, query, [cache], 0.3)
        keys, values = [key.double()[0]], [value.double()[0]]
        for run in runs:
            part = run.chunk.data[:, layer, :, run.first : run.end].double()
            angle = run.delta * inv_freq.double()
            a, b, rest = part[0].split([half, half, head_dim - 2 * half], dim=-1)
            turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest
            keys.append(torch.cat(turned, dim=-1))
            values.append(part[1])
        scores = 0.3 * query.double()[0] @ torch.cat(keys, dim=1).transpose(1, 2)
        scores[..., :7] += mask[0].double()
        expected = scores.softmax(-1) @ torch.cat(values, dim=1)
        assert (found[0] - expected).abs().max() < (1e-5 if dtype == torch.float32 else 3e-2)


def test_a_stream_goes_on_though_the_cache_dropped_what_it_reads(make_model):
    """Its first token is read in place and all others from a copy, as in an answer that is not streamed."""
    model = make_model("llama")
    store = SharedLLMContextStore(model, embedder=None, config=StoreConfig(cache=CacheConfig(memory_bytes=1)))
    store.add("".join(f"on day {day} the harbour master keeps the log " for day in range(60)), id="log")
    selection = store.select("the lamp", budget=600)
    runs, _ = runs_of(model, selection)
    assert sum(run.length for run in runs) > 300
    options = {"max_new_tokens": 12, "eos_token_id": 319}
    stream = model.stream("the lamp", context=selection, **options)
    pieces = [next(stream)]
    model.generate("the log", context=store.select("the harbour", budget=500), **options)
    assert "".join([*pieces, *stream]) == model.generate("the lamp", context=selection, **options)
