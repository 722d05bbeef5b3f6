"""A context of which every head shows rows of its own is read as the whole one with all other rows masked."""

import pytest
import torch

from shared_context.model.context import CoarseKV, ContextKV

TOLERANCE = 1e-4


class Ragged:
    """Chunks of which every head shows the rows that ``kept`` [layers, kv_heads, tokens] has of each."""

    def __init__(self, model, chunks, kept, even=None):
        encodings, at = model.compressor.encode(chunks), 0
        parts, rows, places, ids = [], [], [], []
        for number, (chunk, mask) in enumerate(zip(chunks, kept, strict=True)):
            shown = torch.arange(0) if even is None else even[number]
            coarse = encodings[number].ragged(mask)
            tokens = coarse.tokens.long()
            parts.append(CoarseKV(coarse, at + tokens, tokens))
            rows.append(shown)
            places.append(at + shown)
            ids.append(chunk[shown])
            at += len(chunk)
        self._context = ContextKV(encodings, rows, torch.cat(ids), places, rows, parts, at)
        self.kv_entries = at

    def key_values(self, room=None):
        return self._context


class Spaced:
    """Rows of a chunk that every head shows, where they stood, behind them as many positions as the chunk has."""

    def __init__(self, model, chunk, rows):
        self._context = ContextKV(model.compressor.encode([chunk]), [rows], chunk[rows], [rows], extent=len(chunk))
        self.kv_entries = len(rows)

    def key_values(self, room=None):
        return self._context


def everything(model, chunks):
    heads = model.hf_model.config.num_key_value_heads
    return [torch.ones(model.compressor.layers, heads, len(chunk), dtype=torch.bool) for chunk in chunks]


def uneven(model, chunks, seed=3):
    """A third of all rows; the first head of each layer keeps none of them, the last one nearly all."""
    draw = torch.Generator().manual_seed(seed)
    kept = [torch.rand(mask.shape, generator=draw) < 0.33 for mask in everything(model, chunks)]
    for mask in kept:
        mask[:, 0] = False
        mask[:, -1, 1:] = True
    return kept


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_ragged_rows_that_are_all_rows_are_the_whole_context(make_model, inject, tokens, prompt, family, injection):
    model = make_model(family, injection=injection)
    if injection == "cross_attention":
        torch.nn.init.normal_(model.injection.attentions[0].o_proj.weight, std=0.1)
    suffix, chunks = prompt(model, tokens(17, 2)), [tokens(64, 4), tokens(29, 6)]
    expected = model.logits(suffix, inject(model, chunks, [torch.arange(len(c)) for c in chunks]))
    found = model.logits(suffix, Ragged(model, chunks, everything(model, chunks)))
    assert (found - expected).abs().max() < TOLERANCE
    assert (expected - model.logits(suffix)).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("layers", [2, 4])
def test_what_a_head_does_not_keep_it_does_not_see(make_model, tokens, prompt, layers, in_place):
    """The naive version: the plain model with a mask for every layer and head, by transformers' own attention."""
    model = make_model("llama", injection_layers=layers)
    prefix, chunk, suffix = torch.tensor(model.prompt_format.prefix), tokens(400, 1), tokens(17, 2)
    # rows that every head shows, long enough to be read in place, and ragged ones behind them
    even, (kept,) = torch.arange(0, 300), uneven(model, [chunk])
    kept[:, :, :300] = False
    context = Ragged(model, [chunk], [kept], [even])
    ids, config = torch.cat([prefix, chunk, suffix]), model.hf_model.config
    size, group = len(ids), config.num_attention_heads // config.num_key_value_heads
    masks = []
    for layer in range(config.num_hidden_layers):
        seen = torch.ones(config.num_attention_heads, size, size, dtype=torch.bool).tril()
        shown = torch.zeros(config.num_key_value_heads, len(chunk), dtype=torch.bool)
        if layer < layers:
            shown = kept[layer] | (torch.arange(len(chunk)) < 300)
        seen[:, -len(suffix) :, len(prefix) : len(prefix) + len(chunk)] &= shown.repeat_interleave(group, 0)[:, None]
        masks.append(torch.zeros(1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min))

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": masks[module.self_attn.layer_idx]}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in model.hf_model.base_model.layers]
    model.hf_model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = model.hf_model(input_ids=ids[None], use_cache=False).logits[0, -len(suffix) :]
    model.hf_model.set_attn_implementation("shared_context")
    for hook in hooks:
        hook.remove()
    found = model.logits(prompt(model, suffix), context, in_place=in_place)
    assert (found - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_a_batch_over_ragged_contexts_answers_as_one_by_one(make_model, inject, tokens, injection):
    model = make_model("llama", injection=injection)
    if injection == "cross_attention":
        torch.nn.init.normal_(model.injection.attentions[1].o_proj.weight, std=0.3)
    first, second = [tokens(64, 12)], [tokens(40, 13), tokens(20, 14)]
    contexts = [
        Ragged(model, first, uneven(model, first)),
        Ragged(model, second, uneven(model, second), [torch.arange(0, 40, 2), torch.arange(0)]),
        inject(model, first, [torch.arange(64)]),
        None,
    ]
    questions = ["the lamp", "who keeps the log of the harbour", "harbour", "the log"]
    options = {"max_new_tokens": 12, "eos_token_id": 319}
    together = model.generate(questions, context=contexts, **options)
    apart = [model.generate(q, context=c, **options) for q, c in zip(questions, contexts, strict=True)]
    assert together == apart
    assert apart[0] != model.generate(questions[0], **options)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    both = model.generate(questions[:2], context=contexts[:2], **options, **beams)
    alone = [model.generate(q, context=c, **options, **beams) for q, c in zip(questions[:2], contexts, strict=False)]
    assert both == alone[0] + alone[1]


@pytest.mark.parametrize("family", ["llama", "olmo3"])
def test_a_context_of_more_positions_than_columns_needs_no_ragged_rows(make_model, tokens, prompt, family):
    model = make_model(family)
    suffix, chunk, rows = prompt(model, tokens(17, 2)), tokens(64, 1), torch.arange(0, 64, 4)
    (kept,) = everything(model, [chunk])
    kept[..., torch.arange(64) % 4 > 0] = False
    expected = model.logits(suffix, Ragged(model, [chunk], [kept]))
    assert (model.logits(suffix, Spaced(model, chunk, rows)) - expected).abs().max() < TOLERANCE
    questions, options = ["the lamp", "who keeps the log"], {"max_new_tokens": 8, "eos_token_id": 319}
    spaced, ragged = ([of, None] for of in (Spaced(model, chunk, rows), Ragged(model, [chunk], [kept])))
    assert model.generate(questions, context=spaced, **options) == model.generate(questions, context=ragged, **options)


def test_positions_go_on_behind_a_ragged_context(make_model, tokens, prompt):
    """A stream's later tokens, a batch's and a score's see the distances that the first pass saw."""
    model = make_model("llama")
    chunk = [tokens(90, 20)]
    context, options = Ragged(model, chunk, uneven(model, chunk)), {"max_new_tokens": 10, "eos_token_id": 319}
    answer = "".join(model.stream("the lamp", context=context, **options))
    assert answer == model.generate(["the lamp"], context=[context], **options)[0]
    question = model.prompt_format.render([{"role": "user", "content": "the lamp"}], with_context=True)
    ids = list(question.suffix)
    for _ in range(10):
        ids.append(int(model.logits(prompt(model, torch.tensor(ids)), context)[-1].argmax()))
    assert answer == model.tokenizer.decode(ids[len(question.suffix) :], skip_special_tokens=True)


def test_an_answer_under_way_keeps_its_rows_while_others_come_and_go(make_model, tokens):
    """The memory of rows is used again, but not before the answer over them is done."""
    model, contexts = make_model("llama"), []
    for number in range(3):
        chunks = [tokens(60 - 10 * number, number)]  # each finds room where the one before was
        contexts.append(Ragged(model, chunks, uneven(model, chunks, number)))
    alone = ["".join(make_model("llama").stream("a b c", context=one, max_new_tokens=12)) for one in contexts]
    assert len(set(alone)) == 3
    under_way = iter(model.stream("a b c", context=contexts[0], max_new_tokens=12))
    text = next(under_way)
    assert ["".join(model.stream("a b c", context=one, max_new_tokens=12)) for one in contexts[1:]] == alone[1:]
    assert text + "".join(under_way) == alone[0]
