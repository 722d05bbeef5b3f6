"""How LangChain's messages become the conversation that the model reads. No model is needed for it."""

import pytest
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from shared_context.errors import QueryError
from shared_context.integrations.langchain.messages import to_conversation

IMAGE_BLOCKS = [
    {"type": "image", "base64": "aGk=", "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    {"type": "audio", "base64": "aGk=", "mime_type": "audio/wav"},
    {"type": "file", "base64": "aGk=", "mime_type": "application/pdf"},
]


def test_each_role_has_its_turn():
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("Who are you?"),
        AIMessage("A model."),
        ChatMessage(role="human", content="Whose?"),
    ]
    assert to_conversation(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Whose?"},
    ]


def test_neighbours_of_one_role_become_one_turn():
    turns = to_conversation([SystemMessage("a"), SystemMessage("b"), HumanMessage("c"), HumanMessage("d")])
    assert turns == [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "c\n\nd"}]


def test_a_tool_call_is_left_out_and_the_tools_output_is_read():
    call = {"name": "clock", "args": {}, "id": "1", "type": "tool_call"}
    turns = to_conversation(
        [HumanMessage("Time?"), AIMessage("", tool_calls=[call]), ToolMessage("9:30", tool_call_id="1")]
    )
    assert turns == [{"role": "user", "content": "Time?\n\n9:30"}]


def test_blocks_of_text_are_joined():
    assert to_conversation([HumanMessage(["When ", {"type": "text", "text": "does it start?"}])]) == [
        {"role": "user", "content": "When does it start?"}
    ]


def test_of_an_assistants_message_the_text_alone_is_read():
    blocks = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Nine."}]
    assert to_conversation([HumanMessage("When?"), AIMessage(blocks)])[1] == {"role": "assistant", "content": "Nine."}


@pytest.mark.parametrize("block", IMAGE_BLOCKS, ids=lambda block: block["type"])
def test_what_is_not_text_is_refused_by_name(block):
    with pytest.raises(QueryError, match=f"'{block['type']}'.*text only"):
        to_conversation([HumanMessage([{"type": "text", "text": "What is this?"}, block])])


def test_nothing_to_read_is_refused():
    with pytest.raises(QueryError, match="no message with text"):
        to_conversation([])


def test_with_tools_calls_and_results_are_written():
    call = {"name": "look", "args": {"place": "Zürich"}, "id": "1", "type": "tool_call"}
    turns = to_conversation(
        [HumanMessage("When?"), AIMessage("", tool_calls=[call]), ToolMessage("at six", tool_call_id="1")],
        with_tools=True,
    )
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == '<tool_call>\n{"name": "look", "arguments": {"place": "Zürich"}}\n</tool_call>'
    assert turns[2]["content"] == "<tool_response>\nat six\n</tool_response>"
