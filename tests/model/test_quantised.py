"""Weights in 8 and 4 bits, by torchao and bitsandbytes where these are installed."""

import pytest
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import AdapterError, ConfigError
from shared_context.model.adapter import Adapter
from shared_context.model.prompt import Prompt

TEXT = "The night shift starts at 21:47 at the north gate. The harbour master is Ingrid Vale."
QUESTION = "When does the night shift start?"


def by_torchao(bits: int) -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    if bits == 8:
        return TorchAoConfig(quantization.Int8WeightOnlyConfig())
    return TorchAoConfig(quantization.IntxWeightOnlyConfig(torch.int4, quantization.PerGroup(32)))


def by_bitsandbytes(bits: int) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=[(by_torchao, 8), (by_torchao, 4), (by_bitsandbytes, 8), (by_bitsandbytes, 4)])
def quantised(request):
    library, bits = request.param
    return SharedLLMModel.from_pretrained(quantization_config=library(bits), device="cpu", dtype="bfloat16")


def test_answers_come_from_the_injected_context(quantised, model):
    assert quantised.identity != model.identity
    with SharedLLMContextStore(quantised, embedder=None) as store:
        store.add(TEXT, id="gate")
        selection = store.select(QUESTION)
        assert "21:47" in quantised.generate(QUESTION, context=selection, max_new_tokens=12)
        injected, pasted = (quantised.nll(QUESTION, "21:47", context=c) for c in (selection, TEXT))
    assert abs(injected - pasted) < 0.1


def test_a_whole_chunk_gives_the_plain_models_logits_but_for_rounding(quantised):
    prefix, suffix = quantised.prompt_format.prefix, tuple(quantised.tokenize(QUESTION).ids.tolist())
    with SharedLLMContextStore(quantised, embedder=None) as store, torch.inference_mode():
        store.add(TEXT, id="gate")
        found = quantised.logits(Prompt(prefix, suffix), store.select(None, ratio=1)).float()
        whole = [*prefix, *quantised.tokenize(TEXT).ids.tolist(), *suffix]
        plain = quantised.hf_model(torch.tensor([whole])).logits[0, -len(suffix) :].float()
    # bitsandbytes rounds what goes into a layer to 8 bits, too, all tokens of a pass together
    eight = getattr(quantised.hf_model.config.quantization_config, "load_in_8bit", False)
    tolerance = 0.15 if eight else 0.03
    assert (found - plain).norm() < tolerance * plain.norm()


def test_what_needs_weights_in_floating_point_is_refused_by_name(quantised):
    with pytest.raises(AdapterError, match="floating point"):
        quantised.load_adapter(Adapter.from_pretrained("factoid"))
    with pytest.raises(ConfigError, match="step_weights='int8': .* floating point"):
        SharedLLMModel(quantised.hf_model, quantised.tokenizer, name=quantised.name, step_weights="int8")


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.is_bitsandbytes_available", lambda *_: False)
    with pytest.raises(ConfigError, match="quantization_config; install what it asks for.*bitsandbytes"):
        SharedLLMModel.from_pretrained(quantization_config=BitsAndBytesConfig(load_in_8bit=True), device="cpu")
