"""What an answer leans on: the attention that is watched is the model's own, and what is not watched is refused."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.errors import ConfigError
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.store.citing import leaned_on

QUESTION, ANSWER = "Where does the heron stand?", "The heron stands in the reeds."


@pytest.fixture(scope="module")
def store(make_small_model):
    config = StoreConfig(tree=TreeConfig(chunk_size=128))
    store = SharedLLMContextStore(make_small_model(), config=config, embedder=None)
    for animal, place in (("otter", "by the weir"), ("heron", "in the reeds")):
        days = (f"On day {day} the {animal} stands {place} and waits for bell {7 * day}." for day in range(20))
        store.add(" ".join(days), id=animal)
    return store


def reference(model, selection, question, answer):
    """The same from attention weights that transformers' own eager attention gives back."""
    prompt, ids = model.assemble(question, context=selection), model.tokenize(answer).ids.tolist()
    config = copy.deepcopy(model.hf_model.config)
    eager = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.hf_model.state_dict())
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prompt.key_values.transpose(0, 1)):
        cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    rest = torch.tensor([[*prompt.token_ids[prompt.computed :], *ids[:-1]]])
    with torch.inference_mode():
        seen = eager(rest, **{CACHE_ARGUMENT: cache}, output_attentions=True).attentions
    prefix, found = prompt.computed - selection.kv_entries, []
    begin = prefix
    for node in selection.nodes:
        end = begin + node.kv_entries
        by_head = []
        for layer in seen:
            in_front = layer[0, :, -len(ids) :, : prompt.computed]
            shares = in_front / in_front.sum(dim=-1, keepdim=True)
            by_head.append(shares[..., begin:end].amax(dim=-1).mean(dim=-1).amax())
        found.append(max(by_head).item())
        begin = end
    return found


def test_it_is_the_attention_of_the_model_itself(store):
    selection = store.select(QUESTION, budget=160)
    paid = store.model.attribute(QUESTION, ANSWER, context=selection)
    assert len(paid) == len(selection.nodes) > 2
    assert paid == pytest.approx(reference(store.model, selection, QUESTION, ANSWER), abs=1e-5)


def test_it_changes_nothing(store):
    selection = store.select(QUESTION, budget=160)
    before = store.model.generate(QUESTION, context=selection, max_new_tokens=8)
    store.model.attribute(QUESTION, ANSWER, context=selection)
    assert store.model.generate(QUESTION, context=selection, max_new_tokens=8) == before


def test_parts_of_a_joined_context_are_told_apart(store):
    first, second = (store.select(QUESTION, doc_ids=[id], budget=96) for id in ("otter", "heron"))
    paid = store.model.attribute(QUESTION, ANSWER, context=first + second)
    assert len(paid) == len(first.nodes) + len(second.nodes)


def test_an_empty_answer_leans_on_nothing(store):
    selection = store.select(QUESTION, budget=96)
    paid = store.model.attribute(QUESTION, "", context=selection)
    assert paid == [0.0] * len(selection.nodes) and leaned_on(selection, paid) == []


def test_what_is_not_watched_is_refused(store, make_small_model):
    coarse = store.select(QUESTION, ratio=4)
    with pytest.raises(ConfigError, match="coarse grains"):
        store.model.attribute(QUESTION, ANSWER, context=coarse)
    base = store.model.hf_model
    crossing = SharedLLMModel(base, store.model.tokenizer, name="crossing", injection="cross_attention")
    other = SharedLLMContextStore(crossing, embedder=None)
    other.add("The heron stands in the reeds.", id="heron")
    with pytest.raises(ConfigError, match="cross_attention"):
        crossing.attribute(QUESTION, ANSWER, context=other.select(QUESTION, budget=96))


def test_cited_passages_are_those_leaned_on_most_and_exact(store):
    selection = store.select(QUESTION, budget=160)
    paid = [0.1] * len(selection.nodes)
    most, less = 0, len(paid) - 1
    paid[most], paid[less] = 0.9, 0.5
    cited = leaned_on(selection, paid)
    assert [citation.attention for citation in cited] == [0.9, 0.5]
    for (passage, _), node in zip(cited, (selection.nodes[most], selection.nodes[less]), strict=True):
        assert passage.doc_id == node.doc_id
        assert passage.start <= node.start and node.end <= passage.end
        assert store.get(passage.doc_id).text[passage.start : passage.end] == passage.text
