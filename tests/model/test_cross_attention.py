"""Cross-attention injection, and the adapters that carry its weights."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from shared_context import SharedLLMModel
from shared_context.errors import AdapterError, ModelMismatchError
from shared_context.kernels import rotate_keys
from shared_context.model.adapter import CONFIG_FILE, WEIGHTS_FILE, Adapter


@pytest.fixture
def trained(make_model: Callable[..., SharedLLMModel]) -> Callable[..., SharedLLMModel]:
    """A model whose cross-attention, as after training, is not zero."""

    def make(family: str = "llama", layers: int = 2) -> SharedLLMModel:
        model = make_model(family, injection="cross_attention", injection_layers=layers)
        for cross in model.injection.attentions:
            torch.nn.init.normal_(cross.o_proj.weight, std=0.3)
        return model

    return make


def test_untrained_it_leaves_the_model_as_it_was(make_model, inject, tokens, prompt, family):
    model = make_model(family, injection="cross_attention", injection_layers=3)
    context = inject(model, [tokens(40, 1)], [torch.arange(40)])
    running = prompt(model, tokens(9, 2))
    assert torch.equal(model.logits(running, context), model.logits(running))


def test_it_adds_the_papers_attention_to_each_of_the_bottom_layers(trained, inject, tokens, prompt):
    """The naive version: one query and one head at a time, over keys moved to their chunk's number."""
    model = trained(layers=1)
    chunks, rows = [tokens(40, 1), tokens(24, 2)], [torch.arange(0, 40, 4), torch.arange(24)]
    cross, base = model.injection.attentions[0], model.hf_model.base_model
    sink, head = len(model.prompt_format.prefix), cross.head_dim
    keys, values = [], []
    for number, (chunk_kv, taken) in enumerate(zip(model.compressor.encode(chunks), rows, strict=True)):
        keys.append(rotate_keys(chunk_kv.data[0, 0][:, taken], number - (sink + taken), model.injection.rotary))
        values.append(chunk_kv.data[1, 0][:, taken])
    keys, values = torch.cat(keys, dim=1), torch.cat(values, dim=1)

    seen = {}
    hooks = [
        base.layers[0].self_attn.register_forward_hook(lambda m, a, out: seen.__setitem__("own", out[0])),
        base.layers[0].register_forward_pre_hook(lambda m, a: seen.__setitem__("input", a[0])),
        base.layers[0].post_attention_layernorm.register_forward_pre_hook(lambda m, a: seen.__setitem__("sum", a[0])),
    ]
    # the hooks are entered before the injection's own, so "own" is what self-attention alone gives
    model.logits(prompt(model, tokens(7, 3)), inject(model, chunks, rows))
    for hook in hooks:
        hook.remove()

    states = seen["input"] + seen["own"]
    query = cross.q_proj(cross.norm(states))[0].view(-1, cross.heads, head)
    expected = torch.empty_like(query)
    for position in range(len(query)):
        for h in range(cross.heads):
            asked = rotate_keys(query[position, h][None], torch.tensor([len(chunks)]), model.injection.rotary)[0]
            shared = h * cross.kv_heads // cross.heads
            expected[position, h] = (keys[shared] @ asked / head**0.5).softmax(0) @ values[shared]
    expected = states[0] + cross.o_proj(expected.flatten(1))
    assert (seen["sum"][0] - expected).abs().max() < 1e-4


def test_the_right_context_changes_the_answer_and_no_hook_stays(trained, inject, tokens, prompt):
    model = trained()
    running = prompt(model, tokens(9, 4))
    contexts = [inject(model, [tokens(40, seed)], [torch.arange(40)]) for seed in (5, 6)]
    before = model.logits(running)
    right, wrong = (model.logits(running, context) for context in contexts)
    assert (right - wrong).abs().max() > 1e-2
    assert torch.equal(model.logits(running), before)


def test_a_batch_with_and_without_context_answers_as_one_by_one(trained, inject, tokens):
    model = trained()
    contexts = [
        inject(model, [tokens(40, 7)], [torch.arange(40)]),
        None,
        inject(model, [tokens(9, 8)], [torch.arange(9)]),
    ]
    questions = ["the lamp", "the log", "who keeps the harbour"]
    options = {"max_new_tokens": 8, "eos_token_id": 319}
    together = model.generate(questions, context=contexts, **options)
    assert together == [model.generate(q, context=c, **options) for q, c in zip(questions, contexts, strict=True)]


def test_a_saved_adapter_gives_the_same_logits_when_it_is_loaded(tmp_path, trained, inject, tokens, prompt, make_model):
    model = trained()
    model.adapter().save_pretrained(tmp_path)
    fresh = make_model("llama", injection="cross_attention", injection_layers=2)
    fresh.load_adapter(Adapter.from_pretrained(tmp_path))
    running, chunk = prompt(model, tokens(9, 9)), tokens(40, 10)
    logits = [m.logits(running, inject(m, [chunk], [torch.arange(40)])) for m in (model, fresh)]
    assert torch.equal(*logits)


def test_a_loaded_adapter_keeps_its_description_with_the_weights_as_they_are_now(trained, make_model):
    given = trained().adapter()
    described = replace(given.config, ratios=(1, 8), chunk_size=512, split_noise=0.1, tokens_seen=1000)
    fresh = make_model("llama", injection="cross_attention", injection_layers=2)
    assert not fresh.has_adapter
    fresh.load_adapter(Adapter(described, given.weights, "# A card"))
    assert fresh.has_adapter
    assert (fresh.adapter().config, fresh.adapter().card) == (described, "# A card")
    assert fresh.adapter().digest == given.digest
    torch.nn.init.ones_(fresh.injection.attentions[0].o_proj.weight)
    assert fresh.adapter().digest != given.digest


def test_from_pretrained_takes_injection_and_layers_from_the_adapter(tmp_path, trained, tokenizer):
    model = trained()
    model.hf_model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model.adapter().save_pretrained(tmp_path / "adapter")
    loaded = SharedLLMModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", dtype="float32")
    assert (loaded.injection.kind, loaded.injection.layers) == ("cross_attention", 2)
    assert torch.equal(loaded.injection.attentions[1].o_proj.weight, model.injection.attentions[1].o_proj.weight)


def test_another_base_model_is_refused_with_both_names(tmp_path, trained, make_model):
    trained().adapter().save_pretrained(tmp_path)
    other = make_model("qwen2", injection="cross_attention", injection_layers=2)
    with pytest.raises(ModelMismatchError, match="trained on llama .* onto qwen2"):
        other.load_adapter(Adapter.from_pretrained(tmp_path))


def test_a_damaged_adapter_is_refused(tmp_path, trained):
    model = trained()
    model.adapter().save_pretrained(tmp_path)
    weights, config = tmp_path / WEIGHTS_FILE, tmp_path / CONFIG_FILE

    fewer = {name: w for name, w in model.adapter().weights.items() if "1.o_proj" not in name}
    with pytest.raises(AdapterError, match=r"attentions\.1\.o_proj"):
        model.load_adapter(Adapter(model.adapter().config, fewer))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot be read"):
        Adapter.from_pretrained(tmp_path)
    config.write_text(json.dumps({"injection": "prefix"}))
    with pytest.raises(AdapterError, match="cannot be read"):
        Adapter.from_pretrained(tmp_path)
    weights.unlink()
    config.unlink()
    with pytest.raises(AdapterError, match=f"{CONFIG_FILE} is missing"):
        Adapter.from_pretrained(tmp_path)


def test_another_thread_encodes_what_it_always_would_while_an_answer_is_computed(trained, inject, tokens, prompt):
    model = trained()
    alone = model.compressor.encode([tokens(24, 5)])[0].data
    inside, go_on, answering = threading.Event(), threading.Event(), threading.current_thread
    encoded = []

    def wait(*_):
        if answering().name == "answers":
            inside.set()
            go_on.wait(60)

    hook = model.hf_model.base_model.layers[0].self_attn.register_forward_hook(wait)
    context, running = inject(model, [tokens(40, 1)], [torch.arange(40)]), prompt(model, tokens(9, 2))
    threads = [
        threading.Thread(target=model.logits, args=(running, context), name="answers"),
        threading.Thread(target=lambda: encoded.extend(model.compressor.encode([tokens(24, 5)])), name="encodes"),
    ]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    threads[1].join(0.5)  # long enough for it to be done, were it not to wait
    go_on.set()
    for thread in threads:
        thread.join(60)
    hook.remove()
    assert torch.equal(encoded[0].data, alone)
