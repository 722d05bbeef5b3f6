"""A model that is small enough to be trained in seconds, over the default model's vocabulary and prompt format."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from shared_context import SharedLLMModel
from shared_context.model.injection import ATTENTION


@pytest.fixture(scope="session")
def make_small_model(model: SharedLLMModel) -> Callable[..., SharedLLMModel]:
    """A float32 Llama of four layers with random weights; options go to SharedLLMModel."""
    config = LlamaConfig(
        vocab_size=len(model.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )

    def make(seed: int = 0, **options: object) -> SharedLLMModel:
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).float().eval()
        return SharedLLMModel(base, model.tokenizer, name=f"small-{seed}", **options)

    return make
