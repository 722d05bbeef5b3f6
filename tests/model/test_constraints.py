"""Constrained decoding: answers follow a schema or a grammar, whatever the model would rather say."""

import json
import re

import pytest

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError
from shared_context.model.constraints import closed

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
}
COLOURS = {"enum": ["red", "green"]}


@pytest.fixture(scope="module")
def noise(make_small_model):
    """A model of random weights, which by itself never says anything that has a form."""
    return make_small_model()


def check_person(text):
    person = json.loads(text)
    assert person.keys() == {"name", "age"}
    assert len(person["name"]) <= 6 and 0 <= person["age"] <= 99


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_the_schema(noise, seed):
    completion = noise.complete("Who?", response_schema=PERSON, temperature=1.5, seed=seed, max_new_tokens=120)
    check_person(completion.text)
    assert completion.finish_reason == "stop"


def test_a_stream_says_the_same(noise):
    pieces = list(noise.stream("Who?", response_schema=PERSON, max_new_tokens=120))
    assert len(pieces) > 3
    assert "".join(pieces) == noise.generate("Who?", response_schema=PERSON, max_new_tokens=120)


def test_every_row_of_a_batch_is_kept_to_it(noise):
    options = {"response_schema": PERSON, "max_new_tokens": 120}
    questions = ["Who?", "And who else was there on that day?", "Why?"]
    answers = noise.generate(questions, **options)
    for answer in answers:
        check_person(answer)
    assert answers == [noise.generate(question, **options) for question in questions]
    for completion in noise.complete("Who?", num_return_sequences=3, temperature=1.0, seed=1, **options):
        check_person(completion.text)


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 0.01}])
def test_limits_of_the_sampling_leave_something_to_choose(noise, limits):
    options = {"response_schema": COLOURS, "max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    assert json.loads(noise.generate("Which?", **options, **limits)) in COLOURS["enum"]


def test_a_grammar(noise):
    grammar = 'start: /[a-f]{3}/ "-" ("left" | "right")'
    assert re.fullmatch("[a-f]{3}-(left|right)", noise.generate("Where?", grammar=grammar, max_new_tokens=40))


def test_a_short_limit_leaves_the_answer_unfinished_and_says_so(noise):
    completion = noise.complete("Who?", response_schema=PERSON, max_new_tokens=2)
    assert completion.finish_reason == "length"
    assert completion.text.startswith("{")


def test_what_is_injected_fills_the_schema(model):
    schema = {"type": "object", "properties": {"code": {"type": "integer", "maximum": 99999}}, "required": ["code"]}
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add("The code of the safe is 4711. Only the porter knows it.", id="safe")
        question = "What is the code of the safe?"
        answer = model.generate(question, context=store.select(question), response_schema=schema, max_new_tokens=24)
    assert json.loads(answer) == {"code": 4711}


@pytest.mark.parametrize("others", [True, {"type": "integer"}])
def test_closing_leaves_what_a_schema_says_itself(others):
    schema = {"type": "object", "properties": {"a": {}}, "additionalProperties": others}
    assert closed(schema) == schema


def test_closing_reaches_parts_and_not_values():
    nested = {
        "$defs": {"p": PERSON},
        "properties": {"properties": {"type": "array", "items": PERSON}, "example": {"const": {"properties": {}}}},
    }
    result = closed(nested)
    assert result["$defs"]["p"]["additionalProperties"] is False
    assert result["properties"]["properties"]["items"]["additionalProperties"] is False
    assert result["properties"]["example"] == {"const": {"properties": {}}}
    together = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert closed(together) == together


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"response_schema": "a person"}, "response_schema is a str"),
        ({"response_schema": {"type": "colour"}}, "response_schema cannot be enforced.*colour"),
        ({"response_schema": {"not": {"type": "string"}}}, "response_schema cannot be enforced.*not"),
        ({"response_schema": {"const": {1, 2}}}, "response_schema is no JSON schema"),
        ({"grammar": "start: nothing"}, "grammar cannot be enforced.*nothing"),
        ({"grammar": PERSON}, "grammar is a dict"),
        ({"grammar": 'start: "a"', "response_schema": PERSON}, "both given"),
        ({"response_schema": PERSON, "num_beams": 2}, "num_beams"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_words(noise, wrong, message):
    with pytest.raises(ConfigError, match=message):
        noise.complete("Who?", **wrong)
    if "num_beams" not in wrong:
        with pytest.raises(ConfigError, match=message):
            noise.stream("Who?", **wrong)
