"""A few questions, small enough for every measurement."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shared_context import SharedLLMModel
from shared_context.evaluation.questions import read_questions

HANDBOOK_QUESTIONS = Path(__file__).parents[2] / "examples" / "data" / "handbook-questions.json"


@pytest.fixture(scope="session")
def few_questions(tmp_path_factory):
    """A SQuAD file of the handbook's first six sections that have questions, each an article, about 2,500 tokens."""
    (article,) = json.loads(HANDBOOK_QUESTIONS.read_text(encoding="utf-8"))["data"]
    articles = [{"title": str(n), "paragraphs": [p]} for n, p in enumerate(article["paragraphs"][:6])]
    path = tmp_path_factory.mktemp("data") / "few.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def handbook_questions():
    """All of the handbook's questions."""
    return read_questions(HANDBOOK_QUESTIONS)


@pytest.fixture(scope="session")
def small(model):
    """Four random layers in float32 with the default model's tokenizer and a window of 256 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(model.tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        attn_implementation="shared_context",
    )
    return SharedLLMModel(LlamaForCausalLM(config), model.tokenizer, name="small")
