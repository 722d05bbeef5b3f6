"""What passes to vLLM; none of it needs vLLM."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache

from shared_context import SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.errors import ConfigError, SelectionError, WindowExceededError
from shared_context.integrations.vllm.selections import (
    asked_for,
    heads_of_rank,
    parameters,
    read_selection,
    remove_selection,
    write_selection,
)
from shared_context.model.cache import CACHE_ARGUMENT

IDS = [5, 6, 7, 8, 9]
LAYERS = 3


@pytest.fixture
def key_values():
    return torch.randn(LAYERS, 2, len(IDS), 2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_read(tmp_path, key_values, dtype):
    written = key_values.to(dtype)
    id = write_selection(tmp_path, IDS, written)
    assert torch.equal(read_selection(tmp_path, id, IDS, LAYERS), written)
    remove_selection(tmp_path, id)
    remove_selection(tmp_path, id)
    with pytest.raises(SelectionError, match=f"no selection {id}"):
        read_selection(tmp_path, id, IDS, LAYERS)


def test_other_tokens_and_other_models_are_refused(tmp_path, key_values):
    id = write_selection(tmp_path, IDS, key_values)
    for ids in ([5, 6, 7, 8], [5, 6, 7, 8, 10], [9, 8, 7, 6, 5]):
        with pytest.raises(SelectionError, match="other tokens"):
            read_selection(tmp_path, id, ids, LAYERS)
    with pytest.raises(SelectionError, match="another model"):
        read_selection(tmp_path, id, IDS, LAYERS + 1)


def test_every_damaged_byte_is_found(tmp_path, key_values):
    id = write_selection(tmp_path, IDS, key_values)
    path = tmp_path / f"{id}.safetensors"
    whole = path.read_bytes()
    for place in [0, 8, 20, *range(60, len(whole), 37), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(SelectionError):
            read_selection(tmp_path, id, IDS, LAYERS)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SelectionError):
            read_selection(tmp_path, id, IDS, LAYERS)


def test_a_request_that_names_nothing_loads_nothing():
    for transfer in (None, {}, {"other": 1}):
        assert asked_for(transfer, 100, True) is None


@pytest.mark.parametrize(
    "named",
    [7, "x", {}, {"id": "../../etc/passwd", "tokens": 3}, {"id": "0" * 32}, {"id": "0" * 32, "tokens": 0},
     {"id": "0" * 32, "tokens": 100}, {"id": "0" * 32, "tokens": True}, {"id": "0" * 32, "tokens": "3"}],
)  # fmt: skip
def test_a_request_that_asks_in_a_wrong_way_fails_when_it_is_loaded(tmp_path, named):
    id, tokens = asked_for({"shared_context": named}, 100, True)
    assert tokens == 99
    with pytest.raises(SelectionError, match="32 hex digits"):
        read_selection(tmp_path, id, range(99), LAYERS)


def test_a_request_without_a_salt_fails_when_it_is_loaded(tmp_path, key_values):
    id = write_selection(tmp_path, IDS, key_values)
    assert asked_for(parameters(id, 5), 10, True) == (id, 5)
    named, tokens = asked_for(parameters(id, 5), 10, False)
    with pytest.raises(SelectionError, match="cache_salt"):
        read_selection(tmp_path, named, range(tokens), LAYERS)


@pytest.mark.parametrize(("kv_heads", "ranks"), [(8, 1), (8, 2), (8, 8), (3, 1), (2, 8), (1, 4)])
def test_ranks_share_out_the_heads(kv_heads, ranks):
    held = [list(range(kv_heads))[heads_of_rank(kv_heads, rank, ranks)] for rank in range(ranks)]
    assert {len(heads) for heads in held} == {max(1, kv_heads // ranks)}
    assert sorted({head for heads in held for head in heads}) == list(range(kv_heads))
    assert held == sorted(held)


# ---- what is assembled


@pytest.fixture(scope="module")
def store(make_small_model):
    store = SharedLLMContextStore(
        make_small_model(), config=StoreConfig(tree=TreeConfig(chunk_size=128)), embedder=None
    )
    store.add("The otter sleeps by the weir until the bell. " * 40, id="otter")
    store.add("The heron stands in the reeds and waits for noon. " * 40, id="heron")
    return store


def test_an_assembled_prompt_answers_as_the_injected_one(store):
    """Keys and values put behind each other as another engine's cache has them give the model's own logits."""
    model, question = store.model, "Where does the heron stand?"
    selection = store.select(question, budget=160)
    prompt = model.assemble(question, context=selection, max_new_tokens=8)
    assert prompt.computed == len(model.prompt_format.prefix) + selection.kv_entries
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prompt.key_values.transpose(0, 1)):
        cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    rest = torch.tensor([prompt.token_ids[prompt.computed :]])
    positions = torch.arange(prompt.computed, len(prompt.token_ids))[None]
    with torch.inference_mode():
        found = model.hf_model(rest, **{CACHE_ARGUMENT: cache}, position_ids=positions, logits_to_keep=1).logits[:, -1]
    rendered = model.prompt_format.render([{"role": "user", "content": question}], with_context=True)
    torch.testing.assert_close(found[0], model.logits(rendered, selection)[-1], atol=1e-4, rtol=1e-4)


def test_without_a_context_the_whole_prompt_is_computed_there(store):
    prompt = store.model.assemble("Hello?", max_new_tokens=8)
    assert prompt.computed == 0 and prompt.key_values.shape[1] == 4


def test_coarse_grains_and_narrow_windows_are_refused(store):
    with pytest.raises(ConfigError, match="select without ratio"):
        store.model.assemble("Where?", context=store.select("Where?", ratio=4))
    with pytest.raises(WindowExceededError):
        store.model.assemble("Where?", context=store.select("Where?", budget=160), max_new_tokens=2048)


def test_it_needs_torch_and_safetensors_only(tmp_path):
    """vLLM's environment has none of the library's other dependencies."""
    program = (
        "import sys, shared_context.integrations.vllm.selections as s; "
        "print(sorted({'faiss', 'transformers', 'llguidance', 'Stemmer'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
