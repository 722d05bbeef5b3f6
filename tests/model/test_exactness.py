"""Injection is exact: what it computes is what the plain model computes over the same tokens."""

from collections.abc import Sequence

import pytest
import torch

from shared_context import SharedLLMModel
from shared_context.model.context import CoarseKV, ContextKV
from shared_context.model.generation import advance

TOLERANCE = 1e-4


def plain_logits(model: SharedLLMModel, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits of the unchanged model, computed by transformers' own attention."""
    model.hf_model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return model.hf_model(input_ids=ids[None], use_cache=False, **inputs).logits[0]
    finally:
        model.hf_model.set_attn_implementation("shared_context")


def test_one_whole_chunk_gives_the_plain_models_logits(make_model, inject, tokens, prompt, family):
    model = make_model(family)
    prefix, chunk, suffix = torch.tensor(model.prompt_format.prefix), tokens(90, 1), tokens(17, 2)
    expected = plain_logits(model, torch.cat([prefix, chunk, suffix]))[-len(suffix) :]
    found = model.logits(prompt(model, suffix), inject(model, [chunk], [torch.arange(90)]))
    assert (found - expected).abs().max() < TOLERANCE


def block_diagonal(prefix: torch.Tensor, chunks: Sequence[torch.Tensor], suffix: torch.Tensor):
    """Ids, positions and mask of one pass of the plain model in which every chunk stands behind its own prefix.

    Positions of chunks are contiguous; the prefix in front of each stands right before it. Chunks see themselves and
    their prefix; the running text sees the first prefix, all chunks and itself.
    """
    ids, positions, blocks, at = [prefix], [torch.arange(len(prefix))], [torch.zeros(len(prefix))], len(prefix)
    for number, chunk in enumerate(chunks, start=1):
        ids += [prefix, chunk]
        positions += [torch.arange(at - len(prefix), at), torch.arange(at, at + len(chunk))]
        blocks += [torch.full((len(prefix),), -number), torch.full((len(chunk),), number)]
        at += len(chunk)
    ids.append(suffix)
    positions.append(torch.arange(at, at + len(suffix)))
    blocks.append(torch.full((len(suffix),), len(chunks) + 1))
    block = torch.cat(blocks)
    seen = (block[:, None].abs() == block.abs()) | ((block[:, None] == len(chunks) + 1) & (block >= 0))
    mask = torch.zeros(1, 1, len(block), len(block)).masked_fill(~seen.tril(), torch.finfo(torch.float32).min)
    return torch.cat(ids), torch.cat(positions), mask


def by_layer(model: SharedLLMModel, mask: torch.Tensor, positions: torch.Tensor):
    """A mask as the plain model takes it: where its layers have windows, one for each type of them."""
    config = model.hf_model.config
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return mask
    beyond = positions[:, None] - positions[None] >= config.sliding_window
    windowed = mask.masked_fill(beyond, torch.finfo(torch.float32).min)
    return {"full_attention": mask, "sliding_attention": windowed}


def test_several_chunks_give_the_logits_of_a_block_diagonal_mask(make_model, inject, tokens, prompt, family):
    model = make_model(family)
    prefix, suffix = torch.tensor(model.prompt_format.prefix), tokens(11, 3)
    chunks = [tokens(64, 4), tokens(64, 5), tokens(29, 6)]
    ids, positions, mask = block_diagonal(prefix, chunks, suffix)
    masks = by_layer(model, mask, positions)
    expected = plain_logits(model, ids, position_ids=positions[None], attention_mask=masks)[-len(suffix) :]
    found = model.logits(prompt(model, suffix), inject(model, chunks, [torch.arange(len(c)) for c in chunks]))
    assert (found - expected).abs().max() < TOLERANCE


def test_what_is_not_selected_has_no_influence_and_what_is_has(make_model, inject, tokens, prompt):
    model = make_model("llama")
    chunk, suffix = tokens(64, 7), tokens(9, 8)
    changed = chunk.clone()
    changed[40:] = tokens(24, 9)
    first, last = torch.arange(0, 40), torch.arange(40, 64)
    logits = {
        (name, half): model.logits(prompt(model, suffix), inject(model, [ids], [rows]))
        for name, ids in (("chunk", chunk), ("changed", changed))
        for half, rows in (("first", first), ("last", last))
    }
    assert torch.equal(logits["chunk", "first"], logits["changed", "first"])
    assert (logits["chunk", "last"] - logits["changed", "last"]).abs().max() > 1e-2


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_above_the_injection_layers_see_only_the_running_text(make_model, inject, tokens, prompt, layers):
    """The naive version: the plain model with a mask that hides the context from the upper layers."""
    model = make_model("llama", injection_layers=layers)
    prefix, chunk, suffix = torch.tensor(model.prompt_format.prefix), tokens(50, 10), tokens(13, 11)
    ids = torch.cat([prefix, chunk, suffix])
    size = len(ids)
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    hidden = causal.clone()
    hidden[-len(suffix) :, len(prefix) : len(prefix) + len(chunk)] = False
    masks = [torch.zeros(1, 1, size, size).masked_fill(~m, torch.finfo(torch.float32).min) for m in (causal, hidden)]

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": masks[1]}

    hooks = [
        layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in model.hf_model.base_model.layers[layers:]
    ]
    try:
        expected = plain_logits(model, ids, attention_mask=masks[0])[-len(suffix) :]
    finally:
        for hook in hooks:
            hook.remove()
    found = model.logits(prompt(model, suffix), inject(model, [chunk], [torch.arange(len(chunk))]))
    assert (found - expected).abs().max() < TOLERANCE


def test_a_batch_over_different_selections_answers_as_one_by_one(make_model, inject, tokens):
    model = make_model("llama")
    contexts = [
        inject(model, [tokens(64, 12)], [torch.arange(64)]),
        inject(model, [tokens(40, 13), tokens(20, 14)], [torch.arange(0, 40, 2), torch.arange(20)]),
        None,
    ]
    questions = ["the lamp", "who keeps the log of the harbour", "harbour"]
    options = {"max_new_tokens": 12, "eos_token_id": 319}
    together = model.generate(questions, context=contexts, **options)
    apart = [model.generate(q, context=c, **options) for q, c in zip(questions, contexts, strict=True)]
    assert together == apart


def test_beams_and_several_answers_are_those_over_the_same_text_pasted(make_model, inject):
    model = make_model("llama")
    text = "the harbour master keeps the lamp and the log of the harbour"
    ids = torch.from_numpy(model.tokenize(text).ids.astype("int64"))
    context = inject(model, [ids], [torch.arange(len(ids))])
    options = {"max_new_tokens": 8, "eos_token_id": 319, "num_beams": 3, "num_return_sequences": 2}
    answers = model.generate("the lamp", context=context, **options)
    assert len(answers) == 2
    assert answers == model.generate("the lamp", context=text, **options)
    assert answers != model.generate("the lamp", context=text[::-1], **options)


def test_a_batch_that_is_wider_than_a_sliding_window_hides_nothing(make_model, inject, tokenizer):
    model = make_model("mistral-sliding")
    window = model.context_window
    wide = inject(model, [torch.arange(2, 2 + window // 2) % 300 + 2], [torch.arange(window // 2)])
    narrow = inject(model, [torch.arange(2, 42)], [torch.arange(40)])
    long = "the lamp and the log of the harbour " * 200
    while len(model.prompt_format.render([{"role": "user", "content": long}], with_context=True)) > window - 60:
        long = long[:-10]
    questions, contexts = ["the lamp", long], [wide, narrow]
    alone = [model.nll(q, "the harbour", context=c) for q, c in zip(questions, contexts, strict=True)]
    assert model.nll(questions, ["the harbour"] * 2, context=contexts) == pytest.approx(alone, abs=1e-4)


def test_streams_that_go_on_together_answer_as_each_alone(make_model, inject, tokens, family):
    """As contexts of several kinds and none: some end before others, and one comes later."""
    model = make_model(family)
    even, coarse = tokens(64, 12), tokens(80, 21)
    contexts = [
        inject(model, [even], [torch.arange(64)]),
        Rows(model, coarse, torch.arange(0, 80, 3), ragged=True),
        None,
        inject(model, [even, coarse], [torch.arange(0, 64, 2), torch.arange(80)]),
    ]
    asked = list(zip(["the lamp", "who keeps the log", "harbour", "master"], contexts, [12, 5, 9, 12], strict=True))
    alone = [model.generate(q, context=c, max_new_tokens=n, eos_token_id=319) for q, c, n in asked]
    reading = {q: model.stream(q, context=c, max_new_tokens=n, eos_token_id=319) for q, c, n in asked}
    found, begun = dict.fromkeys(reading, ""), 0
    while reading:
        begun += 1
        ready = list(reading)[: begun + 1]
        for question, piece in zip(ready, advance([reading[q] for q in ready]), strict=True):
            if piece is None:
                del reading[question]
            else:
                found[question] += piece
    assert list(found.values()) == alone


WINDOWED = ["olmo3", "gemma2", "gemma3", "gpt-oss", "cohere2", "exaone4"]


@pytest.mark.parametrize("family", WINDOWED)
def test_answers_go_on_past_a_windows_edge_as_over_the_same_text_pasted(make_model, inject, family):
    """As the context leaves the window step by step, alone, in a batch of unequal rows and with beams."""
    model = make_model(family)
    text = "the harbour master keeps the lamp and the log of the harbour" * 2
    ids = torch.from_numpy(model.tokenize(text).ids.astype("int64"))
    context = inject(model, [ids], [torch.arange(len(ids))])
    short = inject(model, [ids[:20]], [torch.arange(20)])
    pasted = model.tokenizer.decode(ids[:20])
    options = {"max_new_tokens": 60, "eos_token_id": 319}
    assert model.generate("the lamp", context=context, **options) == model.generate("the lamp", context=text, **options)
    prompts = ["the lamp", "who keeps the log of the harbour", "harbour"]
    together = model.generate(prompts, context=[context, short, context], **options)
    assert together == [
        model.generate(p, context=c, **options) for p, c in zip(prompts, [text, pasted, text], strict=True)
    ]
    beams = {"max_new_tokens": 12, "eos_token_id": 319, "num_beams": 2}
    assert model.generate("the lamp", context=context, **beams) == model.generate("the lamp", context=text, **beams)


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("layers", [None, 2])
def test_rows_of_each_heads_own_are_seen_within_each_layers_window(make_model, tokens, prompt, family, layers):
    """Rows that every head shows, put as ragged rows, give what the same rows give in the cache."""
    model = make_model(family, injection_layers=layers)
    chunk, suffix = tokens(80, 21), tokens(15, 22)
    rows = torch.arange(80)
    even = Rows(model, chunk, rows, ragged=False)
    ragged = Rows(model, chunk, rows, ragged=True)
    found, expected = (model.logits(prompt(model, suffix), context) for context in (ragged, even))
    assert (found - expected).abs().max() < TOLERANCE
    fewer = Rows(model, chunk, rows[::3], ragged=True)
    assert (model.logits(prompt(model, suffix), fewer) - expected).abs().max() > 1e-2


class Rows:
    """Some rows of a chunk, where they stood, as columns of the cache or as rows of each head's own."""

    def __init__(self, model: SharedLLMModel, chunk: torch.Tensor, rows: torch.Tensor, ragged: bool):
        (encoded,) = model.compressor.encode([chunk])
        if not ragged:
            self._context = ContextKV([encoded], [rows], chunk[rows], [rows], extent=len(chunk))
        else:
            kept = torch.zeros(len(chunk), dtype=torch.bool)
            kept[rows] = True
            heads = encoded.layers, encoded.data.shape[2]
            every = rows.repeat(heads[0] * heads[1])
            coarse = CoarseKV(encoded.ragged(kept.expand(*heads, -1)), every, every)
            nothing = torch.zeros(0, dtype=torch.long)
            self._context = ContextKV([None], [nothing], nothing, [nothing], [nothing], [coarse], len(chunk))
        self.kv_entries = len(rows)

    def key_values(self, room: int | None = None) -> ContextKV:
        return self._context
