"""Answers are decoded with quantised copies of the weights, and everything is read with the weights themselves."""

import pytest
import torch
from transformers import DynamicCache

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError
from shared_context.model.cache import CACHE_ARGUMENT
from shared_context.model.step_weights import Stepping

TEXT = "The night shift starts at 21:47 at the north gate. The harbour master is Ingrid Vale."
QUESTION = "When does the night shift start?"
NATS = {"int8": 0.05, "int4": 0.1}


@pytest.fixture(scope="module", params=sorted(NATS))
def bits(request):
    return request.param


@pytest.fixture(scope="module")
def quantised(model, bits):
    """The default model with other weights for its steps; it shares those that read."""
    return SharedLLMModel(model.hf_model, model.tokenizer, name=model.name, step_weights=bits)


@pytest.fixture(scope="module")
def store(model):
    store = SharedLLMContextStore(model, embedder=None)
    store.add(TEXT, id="gate")
    return store


def test_a_text_that_is_read_step_by_step_is_nearly_as_likely(model, bits):
    ids = torch.from_numpy(model.tokenize(TEXT).ids.astype("int64"))[None]
    stepper, cache, found = Stepping(bits, model.device)(model.hf_model), DynamicCache(), []
    with torch.inference_mode():
        exact = model.hf_model(ids).logits[0].float()
        for token in ids[0]:
            found.append(stepper(token.view(1, 1), **{CACHE_ARGUMENT: cache}).logits[0, -1].float())
    stepped = torch.stack(found)
    assert not torch.equal(exact, stepped)
    wanted, found = (torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]) for logits in (exact, stepped))
    assert abs(found - wanted) < NATS[bits]


def test_what_is_read_is_read_by_the_weights_themselves(model, quantised, store):
    selection = store.select(QUESTION)
    assert quantised.identity == model.identity
    assert quantised.nll(QUESTION, "21:47", context=selection) == model.nll(QUESTION, "21:47", context=selection)
    assert quantised.nll(QUESTION, "Yes") == model.nll(QUESTION, "Yes")


@pytest.mark.parametrize("fine", [1, 2])
def test_answers_come_from_the_context_alone_and_in_a_batch(quantised, store, fine):
    selection = store.select(QUESTION, fine=fine)
    assert "21:47" in quantised.generate(QUESTION, context=selection, max_new_tokens=12)
    answers = quantised.generate([QUESTION, QUESTION], context=[selection, None], max_new_tokens=12)
    assert ["21:47" in answer for answer in answers] == [True, False]


def test_an_adapter_answers_with_them():
    trained = SharedLLMModel.from_pretrained(adapter="factoid", step_weights="int4")
    assert trained.generate("Who is the harbour master?", context=TEXT, max_new_tokens=12) == "Ingrid Vale"


def test_every_family_steps_with_them(make_model, family, tokens):
    exact = make_model(family).hf_model
    ids = tokens(24, seed=1)[None]
    with torch.inference_mode():
        cache, stepper = DynamicCache(), Stepping("int8", exact.device)(exact)
        exact(ids[:, :-1], **{CACHE_ARGUMENT: cache})
        found = stepper(ids[:, -1:], **{CACHE_ARGUMENT: cache}).logits[0, -1]
        wanted = exact(ids).logits[0, -1]
    assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"step_weights": "int5"}, "step_weights='int5'"),
        ({"step_weights": "int8", "injection": "cross_attention"}, "prefix injection"),
    ],
)
def test_what_they_cannot_serve_is_refused_by_name(make_small_model, options, reason):
    with pytest.raises(ConfigError, match=reason):
        make_small_model(**options)


def test_they_are_for_processors():
    with pytest.raises(ConfigError, match="step_weights='int4': it is for processors, and the model is on meta"):
        Stepping("int4", torch.device("meta"))
