"""What reads a long text instead of a store: each does what it is said to do, so that its cost is that of the thing."""

import pytest
import torch
from transformers import DynamicCache

from benchmarks.readers import EncoderDecoder, FullAttention, Stream, reading
from shared_context.errors import ConfigError
from shared_context.kernels import rotate_keys
from shared_context.model.cache import CACHE_ARGUMENT


@pytest.fixture(scope="module")
def ids(small):
    return torch.randint(0, 1000, (300,), generator=torch.Generator().manual_seed(1))


def read(reader, ids, steps):
    """Logits after each step."""
    logits = []
    for part in ids.split(steps):
        logits.append(reader.read(part))
    return torch.stack(logits)


@torch.inference_mode()
def plainly(small, ids, steps):
    """Logits after each step of one pass over everything."""
    logits = small.hf_model(input_ids=ids[None]).logits[0]
    return logits[torch.tensor(steps).cumsum(0) - 1]


@torch.inference_mode()
def streamed_slowly(small, ids, steps, window, sinks):
    """Logits after each step: what is in sight is copied into a new cache, every key moved to its place in that."""
    model, rotary = small.hf_model, small.injection.rotary
    nothing = torch.zeros(1, 2, 0, model.config.head_dim)
    kept = [(nothing, nothing) for _ in model.base_model.layers]
    stood = torch.zeros(0, dtype=torch.long)  # where each kept key stood when it was rotated
    logits = []
    for part in ids.split(steps):
        dropped = max(0, len(stood) + len(part) - window)
        stays = torch.tensor([i for i in range(len(stood)) if i < sinks or i >= sinks + dropped], dtype=torch.long)
        cache = DynamicCache()
        for i, (keys, values) in enumerate(kept):
            moved = rotate_keys(keys[:, :, stays], torch.arange(len(stays)) - stood[stays], rotary)
            cache.update(moved, values[:, :, stays], i)
        out = model(input_ids=part[None], **{CACHE_ARGUMENT: cache})
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        stood = torch.arange(len(stays) + len(part))
        logits.append(out.logits[0, -1])
    return torch.stack(logits)


def test_full_attention_step_by_step_is_one_pass(small, ids):
    steps = [100, 1, 60, 89]
    with reading(small):
        stepwise = read(FullAttention(small, 250), ids[:250], steps)
    torch.testing.assert_close(stepwise, plainly(small, ids[:250], steps), atol=1e-4, rtol=1e-4)


def test_a_stream_within_its_window_is_one_pass(small, ids):
    steps = [2, 100, 1, 97]
    with reading(small):
        streamed = read(Stream(small, window=200), ids[:200], steps)
    torch.testing.assert_close(streamed, plainly(small, ids[:200], steps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [[30] * 10, [60, 7, 60, 60, 1, 52, 60], [1] * 300])
def test_a_stream_sees_its_sinks_and_the_last_tokens_at_their_places_in_the_cache(small, ids, steps):
    with reading(small):
        streamed = read(Stream(small, window=64, sinks=4), ids, steps)
    slowly = streamed_slowly(small, ids, steps, 64, 4)
    torch.testing.assert_close(streamed, slowly, atol=1e-4, rtol=1e-4)
    assert (streamed[-1] - plainly(small, ids, steps)[-1]).abs().max() > 0.01  # what was dropped is missed


def test_a_step_or_a_window_that_cannot_be_is_refused(small, ids):
    with pytest.raises(ConfigError, match="60 beside the sinks"):
        Stream(small, window=64, sinks=4).read(ids[:61])
    with pytest.raises(ConfigError, match="window=257"):
        Stream(small, window=257)


def test_the_layout_attends_to_every_token_of_every_chunk_in_every_layer(small, ids):
    layout = EncoderDecoder(small, chunk_size=64)
    prompt = torch.tensor([5, 6, 7])
    untrained = layout.first_token(ids, prompt)
    torch.testing.assert_close(untrained, plainly(small, prompt, [3])[0], atol=1e-4, rtol=1e-4)
    for cross in layout.injection.attentions:
        torch.nn.init.normal_(cross.o_proj.weight, std=0.1)
    seen = layout.first_token(ids, prompt)
    for at in 0, 150, 299:
        changed = ids.clone()
        changed[at] += 1
        assert (layout.first_token(changed, prompt) - seen).abs().max() > 1e-6


def test_the_model_attends_as_before_once_reading_is_over(small, ids):
    own = small.hf_model.config._attn_implementation
    with pytest.raises(RuntimeError), reading(small):
        assert small.hf_model.config._attn_implementation != own
        raise RuntimeError
    assert small.hf_model.config._attn_implementation == own
