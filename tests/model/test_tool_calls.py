"""Tools by prompting: what a grammar allows is what is read again."""

import json

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer

from shared_context.errors import ConfigError
from shared_context.model.tool_calls import Toolbox, ToolCall, call_text, read_calls, words_before_calls

ADD = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "integer", "maximum": 99}},
        "required": ["a", "b"],
    },
}
NOW = {"name": "jetzt — «now»", "description": 'Says "now".'}


@pytest.fixture(scope="module")
def noise(make_small_model):
    return make_small_model()


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_one(noise, seed):
    grammar = Toolbox([ADD, NOW], required=True).grammar()
    text = noise.generate("What?", grammar=grammar, temperature=1.5, seed=seed, max_new_tokens=100)
    answer = read_calls(text)
    assert answer.text == "" and not answer.unfinished
    (call,) = answer.calls
    assert call.arguments.keys() == ({"a", "b"} if call.name == "add" else set())


def test_the_only_tool_is_the_one_that_is_called(noise):
    text = noise.generate("What?", grammar=Toolbox([ADD, NOW], only=NOW["name"]).grammar(), max_new_tokens=100)
    assert read_calls(text).calls == (ToolCall(NOW["name"], {}),)


@pytest.mark.parametrize("parallel, most", [(False, 1), (True, 9)])
def test_words_calls_and_words_with_a_call_are_allowed(model, parallel, most):
    grammar = LLMatcher.grammar_from_lark(Toolbox([ADD, NOW], parallel=parallel).grammar())
    start = LLMatcher(from_tokenizer(model.tokenizer), grammar)
    call = call_text("add", {"a": 1, "b": 2})
    allowed = {
        "Just words < than > a call.": True,
        call: True,
        f"Let me see.\n{call}": True,
        f"{call}\n{call}": most > 1,
    }
    for text, expected in allowed.items():
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        matcher = start.deep_copy()
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) is expected, text


def test_beside_a_schema_an_answer_is_a_call_or_follows_it(model):
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    tools = Toolbox([ADD, NOW], schema=schema)
    assert json.dumps(schema) in tools.instructions()
    start = LLMatcher(from_tokenizer(model.tokenizer), LLMatcher.grammar_from_lark(tools.grammar()))
    call = call_text("add", {"a": 1, "b": 2})
    for text, expected in {'{"sum": 3}': True, call: True, "Three.": False, f'{{"sum": 3}}{call}': False}.items():
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        matcher = start.deep_copy()
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) is expected, text


def test_calls_are_read_with_the_words_before_them():
    first, second = (
        ToolCall("add", {"a": 1, "b": 2}),
        ToolCall("say", {"text": "</tool_call> is a tag, <tool_call> too"}),
    )
    text = "\n".join(["Let me see. ", *(call_text(call.name, call.arguments) for call in (first, second))])
    answer = read_calls(text)
    assert (answer.text, answer.calls, answer.unfinished) == ("Let me see. \n", (first, second), "")
    assert read_calls("Only words.").calls == ()


def test_a_call_that_is_cut_is_given_back_as_far_as_it_came():
    whole = call_text("add", {"a": 1, "b": 2})
    answer = read_calls(whole[:-20])
    assert answer.calls == () and answer.unfinished == whole[:-20].removeprefix("<tool_call>\n")


def test_words_are_given_as_soon_as_they_are_certain():
    text = "a < b\n" + call_text("add", {"a": 1, "b": 2})
    given = [words_before_calls(text[:end]) for end in range(len(text) + 1)]
    assert given[-1] == "a < b\n"
    assert all(after.startswith(before) for before, after in zip(given, given[1:], strict=False))
    assert given[4] == "a < "


def test_instructions_name_every_tool_and_the_form():
    told = Toolbox([ADD, NOW]).instructions()
    assert json.dumps(ADD["parameters"]) in told and NOW["name"] in told and "<tool_call>" in told


@pytest.mark.parametrize("tools, only", [([], None), ([{"description": "no name"}], None), ([ADD], "subtract")])
def test_wrong_tools_are_refused(tools, only):
    with pytest.raises(ConfigError, match="name"):
        Toolbox(tools, only=only)
