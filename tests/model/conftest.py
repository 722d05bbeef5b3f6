"""Small random models of every supported family, with a tokenizer trained on the spot; and a machine that has none."""

from collections.abc import Callable, Sequence

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GptOssConfig,
    HeliumConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from shared_context import SharedLLMModel
from shared_context.model.attention import ATTENTION
from shared_context.model.context import ContextKV
from shared_context.model.prompt import Prompt

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.1,
}


def rope(kind: str, **values: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


LLAMA3 = rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=512)
BY_TYPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=512)

FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-multi-head": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "llama-llama3-rope": LlamaConfig(**SIZES, **LLAMA3),
    "llama-linear-rope": LlamaConfig(**SIZES, **rope("linear", factor=2.0)),
    "llama-dynamic-rope": LlamaConfig(**SIZES, **rope("dynamic", factor=2.0)),
    "llama-yarn-rope": LlamaConfig(**SIZES, **YARN),
    "mistral": MistralConfig(**SIZES, head_dim=32),
    "mistral-sliding": MistralConfig(**SIZES, sliding_window=1024),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "phi3": Phi3Config(**SIZES),
    "olmo2": Olmo2Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1, 0]),
    "smollm3-first-layer-bare": SmolLM3Config(**SIZES, no_rope_layers=[0, 1, 1, 0]),
    "cohere": CohereConfig(**SIZES),
    "glm": GlmConfig(**SIZES, head_dim=16),
    "glm4": Glm4Config(**SIZES, head_dim=16),
    "ernie4.5": Ernie4_5Config(**SIZES, head_dim=16),
    "helium": HeliumConfig(**SIZES, head_dim=16),
    "olmo3-one-window": Olmo3Config(**SIZES, sliding_window=2048, rope_parameters=BY_TYPE),
    "olmo3": Olmo3Config(**SIZES, sliding_window=24, rope_parameters=BY_TYPE),
    "gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=40, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(
        **SIZES, head_dim=16, sliding_window=40, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "gpt-oss": GptOssConfig(**SIZES, head_dim=16, sliding_window=32, num_local_experts=4, rope_parameters=DEFAULT),
    "cohere2": Cohere2Config(**SIZES, sliding_window=32),
    "exaone4": Exaone4Config(**SIZES, sliding_window=32, sliding_window_pattern=2),
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 words, without a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(["the harbour master keeps the lamp and the log of the harbour"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def make_model(tokenizer: PreTrainedTokenizerFast) -> Callable[..., SharedLLMModel]:
    """A float32 model of a family with random weights; options go to SharedLLMModel."""

    def make(family: str, **options: object) -> SharedLLMModel:
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation=ATTENTION).float().eval()
        return SharedLLMModel(base, tokenizer, name=family, **options)

    return make


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """The name of every supported family in turn."""
    return request.param


class Injected:
    """Chunks that are injected at the rows given, without a store."""

    def __init__(self, model: SharedLLMModel, chunks: Sequence[torch.Tensor], rows: Sequence[torch.Tensor]):
        shown = torch.cat([chunk[r] for chunk, r in zip(chunks, rows, strict=True)])
        self._context = ContextKV(model.compressor.encode(chunks), rows, shown)

    @property
    def kv_entries(self) -> int:
        return self._context.columns

    def key_values(self, room: int | None = None) -> ContextKV:
        return self._context


@pytest.fixture(scope="session")
def inject() -> type[Injected]:
    """``inject(model, chunks, rows)`` makes a context of token ids [tokens] and the positions [n] shown of each."""
    return Injected


@pytest.fixture(scope="session")
def tokens() -> Callable[[int, int], torch.Tensor]:
    """``tokens(count, seed)`` draws token ids."""

    def draw(count: int, seed: int) -> torch.Tensor:
        return torch.randint(3, SIZES["vocab_size"], (count,), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def prompt() -> Callable[[SharedLLMModel, torch.Tensor], Prompt]:
    """``prompt(model, suffix)`` puts running text behind the model's own prefix."""

    def make(model: SharedLLMModel, suffix: torch.Tensor) -> Prompt:
        return Prompt(model.prompt_format.prefix, tuple(suffix.tolist()))

    return make


@pytest.fixture
def new_machine(tmp_path, monkeypatch):
    """Nothing is cached, nothing answers: an empty home, a Hub that refuses connections, a pip without an index."""
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path


@pytest.fixture
def beside_locks():
    """Names in a folder, sorted, but for lock files, which some releases of filelock take away themselves."""
    return lambda folder: sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")
