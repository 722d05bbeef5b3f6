"""Models that cannot be served are refused when they are loaded, with the reason."""

import json

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, disk_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    DeepseekV3Config,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen3NextConfig,
    SmolLM3Config,
    T5Config,
)

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError, ModelNotFoundError, UnsupportedModelError

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

REFUSED = {
    "learned positions": (GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4), "no rotary positions"),
    "ALiBi": (BloomConfig(vocab_size=320, hidden_size=64, n_layer=2, n_head=4), "ALiBi"),
    "encoder-decoder": (T5Config(vocab_size=320, d_model=64, d_ff=64, num_layers=2, num_heads=4), "encoder-decoder"),
    "narrow sliding window": (MistralConfig(**SMALL, sliding_window=512), "512 tokens"),
    "short window": (LlamaConfig(**SMALL, max_position_embeddings=512), "512 tokens"),
    "no layer with positions": (
        SmolLM3Config(**SMALL, max_position_embeddings=2048, no_rope_layers=[0, 0]),
        "no layer has positions",
    ),
    "no key-value heads": (
        GPTNeoXConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
        "of one number of heads",
    ),
    "latents": (
        DeepseekV3Config(
            **SMALL,
            max_position_embeddings=2048,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=16,
            first_k_dense_replace=2,
        ),
        "MLA",
    ),
    "linear attention": (
        Qwen3NextConfig(**SMALL, head_dim=16, layer_types=["linear_attention", "full_attention"], num_experts=4),
        "no attention .linear_attention.: they keep a running state",
    ),
    "convolutions": (
        Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]),
        "no attention .conv.: they keep a running state",
    ),
}


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a random model of a configuration and gives its folder."""

    def save(config):
        factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        factory.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_reason(save, what):
    config, reason = REFUSED[what]
    folder = save(config)
    with pytest.raises(UnsupportedModelError, match=reason) as refusal:
        SharedLLMModel.from_pretrained(folder)
    assert str(folder) in str(refusal.value)


def test_a_model_whose_layers_slide_is_served_within_their_window(save):
    config = Phi3Config(**SMALL, max_position_embeddings=4096, sliding_window=2047)
    assert SharedLLMModel.from_pretrained(save(config)).context_window == 2047


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context_window": 4096}, "context_window=4096"),
        ({"injection_layers": 3}, "injection_layers=3"),
        ({"injection_layers": 1.5}, "injection_layers=1.5"),
        ({"context_window": "512"}, "context_window='512'"),
        ({"injection": "suffix"}, "injection='suffix'"),
        ({"dtype": "float31"}, "dtype='float31'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"attn_implementation": "eager"}, "attn_implementation='eager'"),
        ({"trust_remote_code": True}, "trust_remote_code=True"),
        ({"revision": "v2"}, "revision='v2'"),
        ({"device_map": "auto"}, "device_map='auto'"),
        ({"device_map": {"": 0}}, "device_map={'': 0}"),
        ({"device_map": 0}, "device_map=0"),
        ({"device_map": {}}, "device_map={}"),
        ({"tp_plan": "auto"}, "tp_plan='auto'"),
        ({"subfolder": "weights"}, "subfolder='weights'"),
        ({"no_such_option": 3}, "no_such_option"),
        ({"quantization_config": "int8"}, "quantization_config='int8'"),
        ({"dtype": 16}, "dtype=16"),
        ({"dtype": "int8"}, "quantization_config"),
        ({"device": "meta"}, "device='meta'"),
        ({"output_attentions": True}, "output_attentions"),
    ],
)
def test_a_setting_out_of_range_is_named(save, options, named):
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048))
    with pytest.raises(ConfigError, match=named):
        SharedLLMModel.from_pretrained(folder, **options)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        SharedLLMModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_named(save):
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048))
    with pytest.raises(ConfigError, match="device='cuda'"):
        SharedLLMModel.from_pretrained(folder, device="cuda")


# Damage


def set_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def drop(folder, words):
    file = folder / "model.safetensors"
    save_file({k: w for k, w in load_file(file).items() if words not in k}, file, {"format": "pt"})


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


REMOTE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}

DAMAGED = {
    "unknown kind": (lambda f: set_config(f, model_type="martian"), UnsupportedModelError, "martian"),
    "code of its own": (
        lambda f: set_config(f, model_type="martian", auto_map=REMOTE),
        UnsupportedModelError,
        "custom code",
    ),
    "no tokenizer": (lambda f: [t.unlink() for t in f.glob("token*")], ModelNotFoundError, "tokenizer"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), ModelNotFoundError, "tokenizer"),
    "weights cut off": (cut_off, ModelNotFoundError, "weights of"),
    "a layer missing": (lambda f: drop(f, "layers.1."), ModelNotFoundError, "tensors are missing"),
    "rotary positions of an unknown kind": (
        lambda f: set_config(f, rope_parameters={"rope_type": "martian", "rope_theta": 1e4, "factor": 2.0}),
        UnsupportedModelError,
        "martian",
    ),
    "another shape": (lambda f: set_config(f, intermediate_size=128), ModelNotFoundError, "weights of"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_folder_is_refused_and_nothing_is_asked(save, monkeypatch, what):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on the terminal"))
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048))
    damage, error, reason = DAMAGED[what]
    damage(folder)
    with pytest.raises(error, match=reason) as refusal:
        SharedLLMModel.from_pretrained(folder)
    assert str(folder) in str(refusal.value)


def test_tied_weights_that_a_file_holds_once_are_not_missing(save):
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048, tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert SharedLLMModel.from_pretrained(folder).context_window == 2048


def offloaded(base, folder):
    return cpu_offload(base, execution_device=torch.device("cpu"))


def offloaded_to_disk(base, folder):
    return disk_offload(base, folder / "offloaded", execution_device=torch.device("cpu"))


def spread(base, folder):
    places = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers", "model.norm"], "cpu")
    return dispatch_model(base, places | {"lm_head": "disk"}, offload_dir=folder / "spread")


def hooked_to_move(base, folder):
    return cpu_offload_with_hook(base, torch.device("cpu"))[0]


def hooked_in_one_layer(base, folder):
    add_hook_to_module(base.model.layers[1].self_attn, ModelHook())
    return base


@pytest.mark.parametrize(
    ("treat", "where"),
    [
        (offloaded, "the whole model"),
        (offloaded_to_disk, "the whole model"),
        (spread, "the whole model"),
        (hooked_to_move, "the whole model"),
        (hooked_in_one_layer, "model.layers.1.self_attn"),
    ],
)
def test_a_model_with_hooks_of_accelerates_is_refused(make_model, tokenizer, tmp_path, treat, where):
    base = treat(make_model("llama").hf_model, tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"hooks are on it .on {where}.*without device_map"):
        SharedLLMModel(base, tokenizer, name="hooked")


def test_a_checkpoint_that_transformers_offloads_is_refused(save, tokenizer, tmp_path):
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048))
    places = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head"], "cpu")
    base = AutoModelForCausalLM.from_pretrained(
        folder, device_map=places | {"model.layers.1": "disk"}, offload_folder=tmp_path / "offloaded"
    )
    with pytest.raises(UnsupportedModelError, match="as device_map and offloading put them"):
        SharedLLMModel(base, tokenizer, name="offloaded")


def test_a_model_on_several_devices_or_on_none_is_refused(make_model, tokenizer):
    base = make_model("llama").hf_model
    base.model.layers[1].to("meta")
    with pytest.raises(UnsupportedModelError, match="weights are on cpu, meta"):
        SharedLLMModel(base, tokenizer, name="apart")
    with pytest.raises(UnsupportedModelError, match="weights are on meta"):
        SharedLLMModel(base.to("meta"), tokenizer, name="empty")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_transformers_loaded_whole_on_one_device_answers_as_one_loaded_here(save, tokenizer, attention):
    folder = save(LlamaConfig(**SMALL, max_position_embeddings=2048))
    base = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", attn_implementation=attention)
    theirs = SharedLLMModel(base, tokenizer, name="theirs")
    ours = SharedLLMModel.from_pretrained(folder, device="cpu", dtype="float32")
    with SharedLLMContextStore(ours, embedder=None) as store:
        store.add("the harbour master keeps the lamp and the log of the harbour " * 40, id="log")
        coarse = store.select("the lamp", ratio=4)
        expected, found = (model.nll("where", "the lamp", context=coarse) for model in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-4)


def test_what_is_no_model_is_named(make_model, tokenizer):
    whole = make_model("llama").hf_model
    for wrong, named in ((whole.model, "model='LlamaModel'"), (None, "model='NoneType'")):
        with pytest.raises(ConfigError, match=named):
            SharedLLMModel(wrong, tokenizer, name="none")
    with pytest.raises(ConfigError, match="tokenizer='NoneType'"):
        SharedLLMModel(whole, None, name="mute")
