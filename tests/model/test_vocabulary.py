"""Tokens that a model has no embedding for, and special ids that are none, are named when it is loaded."""

import json

import pytest
from transformers import AddedToken, AutoModelForCausalLM, LlamaConfig

from shared_context import SharedLLMModel
from shared_context.errors import ConfigError, UnsupportedModelError

EMBEDDED = 320


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A random model with its tokenizer."""
    config = LlamaConfig(
        vocab_size=EMBEDDED,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def put(folder, file, **settings):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def grown(folder, tokenizer, more, **kinds):
    """The folder with a tokenizer of so many more tokens than there are embeddings."""
    tokenizer = type(tokenizer).from_pretrained(folder)
    words = [f"harbour{n}" for n in range(EMBEDDED + more - len(tokenizer))]
    tokenizer.add_tokens([AddedToken(word, **kinds) for word in words])
    tokenizer.save_pretrained(folder)
    return tokenizer, words


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes_and_the_mend(folder, tokenizer):
    grown_one, _ = grown(folder, tokenizer, 3, special=False)
    with pytest.raises(UnsupportedModelError, match=r"323 tokens and its embedding 320.*resize_token_embeddings\(323"):
        SharedLLMModel.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match="mill .*323 tokens and its embedding 320"):
        SharedLLMModel(plain, grown_one, name="mill")
    plain.resize_token_embeddings(len(grown_one))
    assert SharedLLMModel(plain, grown_one, name="mill").generate("harbour7", max_new_tokens=2) is not None


def test_a_control_token_that_nothing_reads_may_lie_behind_the_last_embedding(folder, tokenizer):
    grown(folder, tokenizer, 1, special=True)
    assert SharedLLMModel.from_pretrained(folder).count_tokens("harbour") > 0


def test_a_control_token_that_prompts_hold_may_not(folder, tokenizer):
    _, words = grown(folder, tokenizer, 1, special=True)
    template = "{% for m in messages %}" + words[-1] + "{{ m.content }}{% endfor %}"
    put(folder, "tokenizer_config.json", chat_template=template)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModelError, match="'harbour.*' has the id 320"):
        SharedLLMModel.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("setting", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-7, EMBEDDED, 10**9])
def test_a_special_id_that_is_no_token_is_named(folder, file, setting, value):
    put(folder, file, **{setting: value})
    with pytest.raises(UnsupportedModelError, match=rf"{setting}={value} in its {file}"):
        SharedLLMModel.from_pretrained(folder)


@pytest.mark.parametrize("value", [[1, -2], "</s>", [1, "a"]])
def test_ends_of_answers_that_are_no_tokens_are_named(folder, value):
    put(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(UnsupportedModelError, match="eos_token_id=.*generation_config.json"):
        SharedLLMModel.from_pretrained(folder)


def test_no_special_ids_and_the_old_way_to_say_that_nothing_is_filled_up_are_served(folder):
    put(folder, "config.json", bos_token_id=None, eos_token_id=[1, 2], pad_token_id=-1)
    assert SharedLLMModel.from_pretrained(folder).ends[:2] == (1, 2)


@pytest.mark.parametrize("method", ["superbits", 7, ["gptq"]])
def test_a_way_to_quantise_that_is_none_is_named_with_those_that_are_served(folder, method):
    put(folder, "config.json", quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(UnsupportedModelError, match="quant_method=.*torchao and bitsandbytes"):
        SharedLLMModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "broken", [{"num_hidden_layers": 0}, {"num_hidden_layers": -1}, {"num_key_value_heads": 0}, {"head_dim": 0}]
)
def test_a_configuration_of_nothing_is_refused(folder, broken):
    put(folder, "config.json", **broken)
    with pytest.raises(UnsupportedModelError, match=str(folder)):
        SharedLLMModel.from_pretrained(folder)


def test_settings_that_no_reading_can_go_by_are_named(folder):
    put(folder, "tokenizer_config.json", model_max_length="long")
    with pytest.raises(UnsupportedModelError, match="model_max_length='long'"):
        SharedLLMModel.from_pretrained(folder)
    put(folder, "config.json", return_dict=False)
    with pytest.raises(UnsupportedModelError, match="return_dict=False"):
        SharedLLMModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "wish",
    [
        {"forced_eos_token_id": 10**7},
        {"bad_words_ids": [[10**7]]},
        {"exponential_decay_length_penalty": [1]},
        {"repetition_penalty": 0.0},
    ],
)
def test_what_a_checkpoint_wishes_of_generation_and_cannot_be_honoured_is_named(folder, wish):
    put(folder, "generation_config.json", **wish)
    model = SharedLLMModel.from_pretrained(folder)
    with pytest.raises(ConfigError, match="the model's own generation_config"):
        model.generate("What grinds the grain?", max_new_tokens=4)
    with pytest.raises(ConfigError, match="the model's own generation_config"):
        model.generate(["What grinds the grain?", "And what turns?"], max_new_tokens=4)


def test_a_checkpoint_that_wishes_for_beams_answers_with_one(folder):
    expected = SharedLLMModel.from_pretrained(folder).generate("What grinds the grain?", max_new_tokens=4)
    put(folder, "generation_config.json", num_beams=4)
    assert SharedLLMModel.from_pretrained(folder).generate("What grinds the grain?", max_new_tokens=4) == expected
