"""Adapters of prefix injection: merged into two sets of weights, bound to their base, marked in the identity."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from shared_context import SharedLLMModel
from shared_context.errors import AdapterError, ConfigError, ModelMismatchError
from shared_context.model.adapter import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Adapter, AdapterConfig
from shared_context.model.low_rank import InjectionLoRA, projection_of
from shared_context.model.peft_export import export_lora


@pytest.fixture
def make_adapter(make_model: Callable[..., SharedLLMModel]) -> Callable[..., Adapter]:
    """An adapter for a family, as after training: its updates are not zero."""

    def make(family: str = "llama", layers: int = 3, seed: int = 0) -> Adapter:
        model = make_model(family, injection_layers=layers)
        torch.manual_seed(seed)
        lora = InjectionLoRA(model.hf_model, layers, rank=4, alpha=8.0)
        for name, weight in lora.named_parameters():
            if ".up." in name:
                torch.nn.init.normal_(weight, std=0.1)
        config = AdapterConfig(
            family, model.fingerprint, "prefix", layers, rank=4, alpha=8.0, ratios=(1, 8), tokens_seen=99
        )
        return Adapter(config, lora.state_dict(), "# A card\n")

    return make


@pytest.fixture
def loaded(make_model, make_adapter) -> Callable[..., SharedLLMModel]:
    def load(family: str = "llama", layers: int = 3, seed: int = 0) -> SharedLLMModel:
        model = make_model(family, injection_layers=layers)
        model.load_adapter(make_adapter(family, layers, seed))
        return model

    return load


def test_the_compressor_and_the_decoder_run_with_weights_of_their_own(
    make_model, make_adapter, loaded, inject, tokens, prompt, family
):
    """The naive version: two whole models, one with each set of weights."""
    adapter = make_adapter(family)
    lora = InjectionLoRA(make_model(family).hf_model, 3, rank=4, alpha=8.0)
    lora.load_state_dict(adapter.weights)
    naive = {}
    for name in ("compress", "decode"):
        naive[name] = make_model(family, injection_layers=3)
        for key, weight in getattr(lora, name).merged(naive[name].hf_model).items():
            projection_of(naive[name].hf_model, key).weight.data = weight
    model, chunk, running = loaded(family), tokens(40, 1), prompt(make_model(family), tokens(9, 2))
    (kv,), (expected,) = model.compressor.encode([chunk]), naive["compress"].compressor.encode([chunk])
    assert torch.equal(kv.data, expected.data)
    context = inject(model, [chunk], [torch.arange(3, 40, 4)])
    assert torch.equal(model.logits(running, context), naive["decode"].logits(running, context))
    assert (model.logits(running, context) - make_model(family).logits(running)).abs().max() > 1e-2


def test_first_layer_states_stay_those_of_the_base_model(make_model, loaded, tokens, family):
    model, base, chunk = loaded(family), make_model(family), tokens(30, 3)
    assert torch.equal(model.compressor.first_layer_states([chunk])[0], base.compressor.first_layer_states([chunk])[0])
    assert torch.equal(model.compressor.query_states(chunk), base.compressor.query_states(chunk))


def test_the_identity_tells_adapters_apart_and_the_fingerprint_does_not(make_model, loaded):
    base, first, second = make_model("llama", injection_layers=3), loaded(), loaded(seed=1)
    assert len({base.identity, first.identity, second.identity}) == 3
    assert first.identity == loaded().identity
    assert base.fingerprint == first.fingerprint == second.fingerprint


def test_prefixes_computed_before_are_computed_anew(make_model, make_adapter, loaded, inject, tokens, prompt):
    model = make_model("llama", injection_layers=3)
    running, chunk = prompt(model, tokens(9, 4)), tokens(20, 5)
    before = model.logits(running, inject(model, [chunk], [torch.arange(20)]))
    model.load_adapter(make_adapter())
    after = model.logits(running, inject(model, [chunk], [torch.arange(20)]))
    fresh = loaded()
    assert torch.equal(after, fresh.logits(running, inject(fresh, [chunk], [torch.arange(20)])))
    assert not torch.equal(before, after)


def test_another_adapter_takes_the_place_of_the_first(make_adapter, loaded, inject, tokens, prompt):
    model, second = loaded(), loaded(seed=1)
    model.load_adapter(make_adapter(seed=1))
    running, chunk = prompt(model, tokens(9, 6)), tokens(20, 7)
    logits = [m.logits(running, inject(m, [chunk], [torch.arange(20)])) for m in (model, second)]
    assert torch.equal(*logits)
    assert model.identity == second.identity


def test_prompts_without_a_context_are_answered_by_the_base_model(make_model, loaded):
    model, base = loaded(), make_model("llama", injection_layers=3)
    options = {"max_new_tokens": 8, "eos_token_id": 319}
    prompts, contexts = ["the lamp", "the log", "the harbour"], [None, "the lamp and the log", None]
    together = model.generate(prompts, context=contexts, **options)
    assert together == [model.generate(p, context=c, **options) for p, c in zip(prompts, contexts, strict=True)]
    assert [together[0], together[2]] == [base.generate(prompts[i], **options) for i in (0, 2)]
    assert model.nll("the lamp", "log", context=contexts[1]) != base.nll("the lamp", "log", context=contexts[1])
    assert model.nll("the lamp", "log") == base.nll("the lamp", "log")
    assert "".join(model.stream("the log", **options)) == base.generate("the log", **options)


def test_no_hook_is_left_to_slow_the_first_token(loaded):
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded().hf_model.modules())


def test_a_saved_adapter_is_read_as_it_was(tmp_path, make_adapter):
    adapter = make_adapter()
    adapter.save_pretrained(tmp_path)
    again = Adapter.from_pretrained(tmp_path)
    assert (again.config, again.card, again.digest) == (adapter.config, adapter.card, adapter.digest)
    assert again.config.ratios == (1, 8)
    assert (tmp_path / CARD_FILE).read_text() == "# A card\n"


def test_from_pretrained_merges_it_and_takes_its_layers(tmp_path, make_adapter, make_model, tokenizer, loaded):
    make_model("llama").hf_model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_adapter().save_pretrained(tmp_path / "adapter")
    model = SharedLLMModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", dtype="float32")
    assert model.identity == loaded().identity
    assert model.adapter().digest == make_adapter().digest
    with pytest.raises(ConfigError, match="injection_layers"):
        SharedLLMModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", injection_layers=2)


def test_what_does_not_fit_is_refused_and_changes_nothing(make_model, make_adapter, loaded):
    model, adapter = make_model("llama", injection_layers=3), make_adapter()
    identity = model.identity
    with pytest.raises(ModelMismatchError, match="trained on llama .* onto qwen2"):
        make_model("qwen2", injection_layers=3).load_adapter(adapter)
    with pytest.raises(AdapterError, match="prefix injection over 3 layers, and llama has prefix injection over 4"):
        make_model("llama").load_adapter(adapter)
    with pytest.raises(AdapterError, match="over 3 layers, and llama has cross_attention"):
        make_model("llama", injection="cross_attention", injection_layers=3).load_adapter(adapter)
    fewer = {name: w for name, w in adapter.weights.items() if name != "decode.up.2_v_proj"}
    with pytest.raises(AdapterError, match=r"decode\.up\.2_v_proj has shape none"):
        model.load_adapter(replace(adapter, weights=fewer))
    reshaped = {**adapter.weights, "compress.down.0_q_proj": torch.zeros(5, 64)}
    with pytest.raises(AdapterError, match=r"compress\.down\.0_q_proj has shape \(5, 64\) where \(4, 64\)"):
        model.load_adapter(replace(adapter, weights=reshaped))
    broken = {**adapter.weights, "compress.down.0_q_proj": torch.full((4, 64), torch.nan)}
    with pytest.raises(AdapterError, match=r"compress\.down\.0_q_proj holds infinities or NaN"):
        model.load_adapter(replace(adapter, weights=broken))
    huge = {name: torch.full_like(weight, 1e30) for name, weight in adapter.weights.items()}
    with pytest.raises(AdapterError, match=r"update of \w+ is larger than torch\.float32 holds"):
        model.load_adapter(replace(adapter, weights=huge))
    whole = {**adapter.weights, "compress.down.0_q_proj": torch.zeros(4, 64, dtype=torch.int32)}
    with pytest.raises(AdapterError, match=r"compress\.down\.0_q_proj is of torch\.int32"):
        model.load_adapter(replace(adapter, weights=whole))
    with pytest.raises(AdapterError, match="rank is 1000000000, and the model is no wider than 64"):
        model.load_adapter(replace(adapter, config=replace(adapter.config, rank=10**9)))
    assert model.identity == identity
    assert model.adapter() is None


def test_damaged_files_are_refused(tmp_path, make_adapter):
    make_adapter().save_pretrained(tmp_path)
    config, weights = tmp_path / CONFIG_FILE, tmp_path / WEIGHTS_FILE
    written = json.loads(config.read_text())
    for wrong in (
        {"rank": None},
        {"rank": 0},
        {"rank": 4.5},
        {"rank": True},
        {"alpha": math.inf},
        {"alpha": True},
        {"injection_layers": 0},
        {"injection": "none"},
        {"surprise": 1},
    ):
        config.write_text(json.dumps(written | wrong))
        with pytest.raises(AdapterError, match=f"cannot be read .*{next(iter(wrong))}"):
            Adapter.from_pretrained(tmp_path)
    for wrong in ("[" * 100_000, '{"rank": 1' + "0" * 5000 + "}"):
        config.write_text(wrong)
        with pytest.raises(AdapterError, match="cannot be read"):
            Adapter.from_pretrained(tmp_path)
    config.write_text(json.dumps(written))
    config.write_text(json.dumps(written | {"alpha": 2 * written["alpha"]}))
    assert Adapter.from_pretrained(tmp_path).digest != make_adapter().digest
    config.write_text(json.dumps(written))
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(AdapterError, match="cannot be read"):
        Adapter.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(AdapterError, match=f"{WEIGHTS_FILE} is missing"):
        Adapter.from_pretrained(tmp_path)


@pytest.mark.posix
@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])
@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_what_is_no_regular_file_is_not_read(tmp_path, make_adapter, name, make):
    make_adapter().save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    getattr(os, make)(tmp_path / name)
    with pytest.raises(AdapterError, match=f"{name} is no regular file"):
        Adapter.from_pretrained(tmp_path)


def test_an_unknown_name_says_what_was_tried(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AdapterError, match="adapter 'nobody/nothing' is no folder, none of those that ship"):
        Adapter.from_pretrained("nobody/nothing")


def test_it_is_pushed_whole(make_adapter, monkeypatch, tmp_path):
    pushed = {}

    class Hub:
        def create_repo(self, repo, **options):
            return type("Repo", (), {"repo_id": f"someone/{repo}"})

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            pushed[repo_id] = Adapter.from_pretrained(folder_path)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    adapter = make_adapter()
    assert adapter.push_to_hub("adapter") == "someone/adapter"
    assert pushed["someone/adapter"].digest == adapter.digest
    assert pushed["someone/adapter"].card == adapter.card


def test_the_sets_are_exported_as_peft_adapters_that_give_the_same_weights(make_model, make_adapter, tmp_path):
    adapter = make_adapter()
    folders = export_lora(adapter, tmp_path / "lora")
    model = make_model("llama", injection_layers=3).hf_model
    lora = InjectionLoRA(model, 3, rank=4, alpha=8.0)
    adapter.load_into(lora)
    for folder, own in zip(folders, (lora.decode, lora.compress), strict=True):
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8)
        weights = load_file(folder / "adapter_model.safetensors")
        merged = own.merged(model)
        assert len(weights) == 2 * len(merged)
        for key, expected in merged.items():
            index, _, name = key.partition("_")
            assert name in settings["target_modules"] and int(index) in settings["layers_to_transform"]
            place = f"base_model.model.model.layers.{index}.self_attn.{name}"
            a, b = (weights[f"{place}.lora_{side}.weight"] for side in "AB")
            base = model.get_submodule(place.removeprefix("base_model.model.")).weight
            torch.testing.assert_close(base + settings["lora_alpha"] / settings["r"] * b @ a, expected)


def test_what_is_no_update_of_the_base_model_is_not_exported(make_adapter, tmp_path):
    adapter = make_adapter()
    crossing = replace(adapter, config=replace(adapter.config, injection="cross_attention"))
    with pytest.raises(AdapterError, match="cross_attention"):
        export_lora(crossing, tmp_path)
    with pytest.raises(AdapterError, match="is not known"):
        export_lora(replace(adapter, weights={"decode.up.x_y": torch.zeros(1)}), tmp_path)
