"""Tools that a LlamaIndex LLM may call: how they are told to it, and its calls as LlamaIndex's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ContentBlock, TextBlock, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from shared_context.errors import QueryError
from shared_context.model.tool_calls import read_calls


class Calling(FunctionCallingLLM):
    """An LLM that calls tools: what it answers is words, or calls in the form that was asked for."""

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        asked = ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg
        return {
            "messages": [*(chat_history or []), *([asked] if asked is not None else [])],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("required" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer.

        Raises:
            QueryError: it has none, and ``error_on_no_tool_call``.
        """
        blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not blocks and error_on_no_tool_call:
            raise QueryError(
                f"the answer calls no tool: {response.message.content!r}. Ask with tool_required=True, or raise "
                "max_new_tokens if it ends in the middle of a call"
            )
        return [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=block.tool_kwargs if isinstance(block.tool_kwargs, dict) else {},
            )
            for block in blocks
        ]


def blocks_of(text: str) -> list[ContentBlock]:
    """A whole answer as blocks: its words, its calls, and as words a call that it ended in the middle of."""
    answer = read_calls(text)
    words = answer.text + answer.unfinished
    calls = [
        ToolCallBlock(tool_call_id=f"call_{uuid4().hex}", tool_name=call.name, tool_kwargs=call.arguments)
        for call in answer.calls
    ]
    return [*([TextBlock(text=words)] if words or not calls else []), *calls]
