"""GGUF files are loaded as the weights that they hold."""

import json

import pytest
import torch
from gguf import GGUFWriter, TokenType

from shared_context import SharedLLMModel
from shared_context.errors import ModelNotFoundError

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def as_written(name: str, weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries and keys stand in a GGUF with neighbouring channels paired."""
    if not name.endswith(("q_proj", "k_proj")):
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory, make_model, tokenizer):
    """A model, and the GGUF file that was written of it."""
    model = make_model("llama").hf_model
    config, file = model.config, tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    words += [f"unused{n}" for n in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL if w in ("<s>", "</s>") else TokenType.NORMAL for w in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        tensors |= {f"blk.{layer}.{short}": f"model.layers.{layer}.{name}" for name, short in NAMES.items()}
    for short, name in tensors.items():
        heads = config.num_key_value_heads if name.endswith("k_proj") else config.num_attention_heads
        weight = as_written(name, model.get_submodule(name).weight.detach(), heads)
        writer.add_tensor(f"{short}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, file


def test_a_gguf_file_is_loaded_as_the_weights_that_it_holds(written):
    base, file = written
    ids = torch.arange(3, 40)[None]
    for name, options in ((file, {}), (str(file), {}), (file.parent, {"gguf_file": file.name})):
        model = SharedLLMModel.from_pretrained(name, **options, dtype="float32", device="cpu")
        with torch.inference_mode():
            assert (model.hf_model(ids).logits - base(ids).logits).abs().max() < 1e-4
    assert model.tokenizer.decode(model.tokenize("the lamp").ids) == "the lamp"


def test_a_gguf_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="nowhere.gguf"):
        SharedLLMModel.from_pretrained(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelNotFoundError, match="small.gguf of some/where"):
        SharedLLMModel.from_pretrained("some/where", gguf_file="small.gguf")
