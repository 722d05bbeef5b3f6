"""Fixtures that every test may use: the embedded default model, loaded once, and the sample handbook."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU, kernels run in Triton's interpreter; it is chosen when triton is first imported, as transformers does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from shared_context import SharedLLMContextStore, SharedLLMModel  # noqa: E402
from shared_context.model.injection import ATTENTION  # noqa: E402

# How long an example of a property test takes says how busy the machine is, and nothing else.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

HANDBOOK = Path(__file__).parent.parent / "examples" / "data" / "handbook.md"


@pytest.fixture(scope="session", autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> SharedLLMModel:
    """The embedded default model, untrained: what is tested with it holds for any model."""
    return SharedLLMModel.from_pretrained(adapter=None)


@pytest.fixture(scope="session")
def handbook() -> str:
    """The sample handbook's text, about 25,000 tokens."""
    return HANDBOOK.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def handbook_store(model: SharedLLMModel, handbook: str) -> SharedLLMContextStore:
    """The handbook in a store in memory; tests share it and must not change it."""
    store = SharedLLMContextStore(model)
    store.add(handbook, id="handbook")
    return store


@pytest.fixture(scope="session")
def make_small_model(model: SharedLLMModel) -> Callable[..., SharedLLMModel]:
    """A float32 Llama of four layers with random weights, small enough to be trained in seconds.

    It has the default model's vocabulary and prompt format; options go to SharedLLMModel.
    """
    sizes = dict(
        vocab_size=len(model.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
        tie_word_embeddings=True,
    )

    def make(seed: int = 0, window: int = 2048, **options: object) -> SharedLLMModel:
        torch.manual_seed(seed)
        config = LlamaConfig(**sizes, max_position_embeddings=window)
        base = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).float().eval()
        return SharedLLMModel(base, model.tokenizer, name=f"small-{seed}", **options)

    return make
