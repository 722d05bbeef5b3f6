"""Importance: the most of each row that a repetition of a chunk takes up, by its attention and by what it adds."""

from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache

from shared_context import SharedLLMModel
from shared_context.errors import WindowExceededError
from shared_context.model.compressor import Compressor
from shared_context.model.importance import OVERLAP, REQUEST, parts_of_a_repetition
from shared_context.model.low_rank import InjectionLoRA, by_layer
from shared_context.tree import important_rows


def request_of(model: SharedLLMModel) -> torch.Tensor:
    return torch.tensor(model.prompt_format.render([{"role": "user", "content": REQUEST}], with_context=True).suffix)


def naive(model: SharedLLMModel, chunk: torch.Tensor, repeated_from: int = 0, lead_in: int = 0) -> torch.Tensor:
    """From the attention weights of one pass of the plain model over the chunk and its repetition.

    Where layers have no norm behind their attention, their squares are multiplied by the lengths of what values add.
    """
    prefix, request = torch.tensor(model.prompt_format.prefix), request_of(model)
    ids, before = torch.cat([prefix, chunk, request, chunk[repeated_from:]]), len(prefix) + len(chunk)
    model.hf_model.set_attn_implementation("eager")
    with torch.inference_mode():
        read = model.hf_model(ids[None], output_attentions=True, past_key_values=DynamicCache())
    weights, cache = read.attentions, read.past_key_values
    model.hf_model.set_attn_implementation("shared_context")
    found, kv_heads = [], model.hf_model.config.num_key_value_heads
    for layer, kept, module in zip(weights, cache.layers, model.hf_model.model.layers, strict=True):
        shares = layer[0, :, before:, :before]
        # behind a narrow window some queries see nothing that stands in front
        shares = (shares / shares.sum(-1, keepdim=True)).nan_to_num(0.0)
        squares = shares[..., len(prefix) :].square().sum(1)
        if not hasattr(module, "post_feedforward_layernorm") and not hasattr(module, "post_self_attn_layernorm"):
            values, projection = kept.values[0, :, len(prefix) : before], module.self_attn.o_proj
            for head in range(len(squares)):
                alone = torch.zeros(len(chunk), len(squares), values.shape[-1])
                alone[:, head] = values[head * kv_heads // len(squares)]
                with torch.inference_mode():
                    added = projection(alone.flatten(1)) - projection(torch.zeros_like(alone.flatten(1)))
                squares[head] *= added.norm(dim=-1)
        found.append(squares.view(kv_heads, -1, len(chunk)).sum(1).sqrt())
    scores = torch.stack(found[: model.compressor.layers])
    return scores / scores[..., lead_in:].max()


@pytest.mark.parametrize("layers", [2, 4])
def test_importance_is_the_most_that_is_taken_up(make_model, tokens, layers):
    model, chunk = make_model("llama", injection_layers=layers), tokens(70, 1)
    (found,) = model.compressor.importance([chunk], model.compressor.encode([chunk]))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), naive(model, chunk), atol=1e-4, rtol=1e-3)


def test_a_lead_in_is_read_and_neither_repeated_nor_important(make_model, tokens):
    model, chunk, lead_in = make_model("llama"), tokens(70, 1), 20
    (found,) = model.compressor.importance([chunk], model.compressor.encode([chunk]), lead_in)
    assert found.shape[-1] == len(chunk) and not found[..., :lead_in].any()
    expected = naive(model, chunk, repeated_from=lead_in - OVERLAP, lead_in=lead_in)[..., lead_in:]
    torch.testing.assert_close(found[..., lead_in:].float(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen2", "glm4", "exaone4", "phi3"])
def test_what_a_value_adds_counts_where_no_norm_stands_behind_it(make_model, tokens, family):
    model, chunk = make_model(family), tokens(30, 1)
    (found,) = model.compressor.importance([chunk], model.compressor.encode([chunk]))
    torch.testing.assert_close(found.float(), naive(model, chunk), atol=1e-4, rtol=1e-3)


def test_what_is_put_onto_a_projection_while_it_is_trained_counts(make_model, tokens):
    """Updates that hooks add give the importance that the same ones give when they are merged."""
    chunk, found = tokens(40, 1), []
    for merged in False, True:
        model = make_model("llama")
        torch.manual_seed(1)
        lora = InjectionLoRA(model.hf_model, 4, 2, 2.0)
        for up in lora.decode.up.values():
            torch.nn.init.normal_(up)
        (encoding,) = model.compressor.encode([chunk])
        if merged:
            model.compressor.adapt(model.hf_model, {}, by_layer(lora.decode.merged(model.hf_model)))
            found += model.compressor.importance([chunk], [encoding])
        else:
            model.compressor.read_prefix()
            with lora.decode.installed(model.hf_model):
                found += model.compressor.importance([chunk], [encoding])
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt-oss", "olmo3", "cohere2"])
def test_importance_is_that_of_windows_capped_logits_and_sinks(make_model, tokens, family):
    model, chunk = make_model(family), tokens(30, 1)
    (found,) = model.compressor.importance([chunk], model.compressor.encode([chunk]))
    torch.testing.assert_close(found.float(), naive(model, chunk), atol=1e-4, rtol=1e-3)


def test_importance_is_the_same_however_chunks_are_batched(make_model, tokens):
    model = make_model("llama")
    chunks = [tokens(50, 1), tokens(31, 2), tokens(50, 3), tokens(1, 4)]
    together = model.compressor.importance(chunks, model.compressor.encode(chunks))
    for chunk, scores in zip(chunks, together, strict=True):
        (alone,) = model.compressor.importance([chunk], model.compressor.encode([chunk]))
        torch.testing.assert_close(scores, alone, atol=1e-4, rtol=1e-3)


def test_importance_in_bfloat16_is_that_of_float32_but_for_rounding(make_model, tokens):
    chunk, found = tokens(300, 1), []
    for dtype in torch.float32, torch.bfloat16:
        model = make_model("llama")
        # the same weights in both, those that bfloat16 has
        model.hf_model.to(torch.bfloat16).to(dtype)
        compressor = Compressor(model.hf_model, 4, model.prompt_format.prefix, model.compressor.request_ids)
        found += compressor.importance([chunk], compressor.encode([chunk]))
    exact, rounded = (scores.float() for scores in found)
    assert (exact - rounded).abs().max() < 0.05 * exact.max()
    kept = [important_rows(scores.flatten(0, 1).numpy(), [(0, 300, 8)]) for scores in (exact, rounded)]
    assert (kept[0] & kept[1]).sum() > 0.95 * kept[0].sum()


def test_a_repetition_that_does_not_fit_the_window_is_done_in_parts(make_model, tokens):
    whole, chunk = make_model("llama"), tokens(60, 1)
    taken = len(whole.prompt_format.prefix) + len(chunk) + len(request_of(whole))
    narrow = make_model("llama", context_window=taken + OVERLAP + 20)
    (expected,) = whole.compressor.importance([chunk], whole.compressor.encode([chunk]))
    (found,) = narrow.compressor.importance([chunk], narrow.compressor.encode([chunk]))
    assert found.shape == expected.shape
    # Parts are other repetitions, but they need the same rows: much more so than those of another chunk.
    (other,) = whole.compressor.importance([tokens(60, 2)], whole.compressor.encode([tokens(60, 2)]))
    near, far = ((found - scores).abs().mean() for scores in (expected, other))
    assert near < far / 2
    too_narrow = make_model("llama", context_window=taken + OVERLAP)
    with pytest.raises(WindowExceededError, match="chunk_size=.*rows="):
        too_narrow.compressor.importance([chunk], too_narrow.compressor.encode([chunk]))


@pytest.mark.parametrize(("tokens", "room"), [(1, 9), (20, 20), (21, 20), (100, 13), (64, 9)])
def test_parts_of_a_repetition_cover_a_chunk_and_fit(tokens, room):
    parts = parts_of_a_repetition(tokens, room)
    assert all(0 < end - begin <= room for begin, end in parts)
    assert {place for begin, end in parts for place in range(begin, end)} == set(range(tokens))
    # Each part but the first begins with tokens that were repeated before.
    assert all(begin < end for (_, end), (begin, _) in pairwise(parts))
