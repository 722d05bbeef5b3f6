"""LangGraph's threads, kept beside a store, and their messages as its conversations."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig, run_in_executor
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.sqlite import SqliteSaver

from shared_context import SharedLLMContextStore
from shared_context.integrations.langchain.history import SharedContextChatMessageHistory
from shared_context.integrations.langchain.settings import of_type

FILE = "threads.sqlite3"
"""In the store's folder; a namespace has one of its own."""

MESSAGES = "messages"
"""The channel of a graph's state that holds the conversation, as in LangGraph's MessagesState."""


class SharedContextSaver(SqliteSaver):
    """Keeps the checkpoints of a graph's threads in a store's folder, and their messages as the store's conversations.

        agent = graph.compile(checkpointer=SharedContextSaver(store))
        agent.invoke({"messages": [question]}, {"configurable": {"thread_id": "alice"}})

    A thread may outgrow the model's window: a ChatSharedLLM of the store's model that such a graph calls reads the last
    turns as they are, and of the older ones what the question needs, as injected KV. Any other model gets all messages.
    ``store.conversation("alice")`` is the thread's conversation; it is brought up to date whenever a turn is answered.

    Checkpoints are LangGraph's own (SqliteSaver): threads are resumed, branched and deleted as with it. The async
    methods run in threads.

    Args:
        store: keeps the conversations; with a path everything is there when it is opened again.
        recent_tokens: tokens of the last turns that stay verbatim.
        budget: the most KV entries of older turns that a ChatSharedLLM injects.
        serde: how LangGraph writes values; None is its own way.

    Raises:
        ConfigError: ``store`` is none.
    """

    def __init__(
        self,
        store: SharedLLMContextStore,
        *,
        recent_tokens: int = 1024,
        budget: int = 512,
        serde: SerializerProtocol | None = None,
    ):
        of_type("store", store, SharedLLMContextStore, "a SharedLLMContextStore")
        file: str | Path = ":memory:"
        if store.folder is not None:
            store.folder.mkdir(parents=True, exist_ok=True)  # a namespace's is made when it is needed
            file = store.folder / FILE
        super().__init__(sqlite3.connect(file, check_same_thread=False), serde=serde)
        self.store = store
        self.recent_tokens = recent_tokens
        self.budget = budget

    def close(self) -> None:
        """Close the file; the store stays open."""
        self.conn.close()

    def history(self, thread_id: str) -> SharedContextChatMessageHistory:
        """The conversation of a thread."""
        return SharedContextChatMessageHistory(
            thread_id, self.store, recent_tokens=self.recent_tokens, budget=self.budget
        )

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint, and take the turns that it completes into the conversation."""
        saved = super().put(config, checkpoint, metadata, new_versions)
        place = config["configurable"]
        if not place.get("checkpoint_ns"):  # a subgraph's messages are its own affair
            self._remember(str(place["thread_id"]), checkpoint["channel_values"].get(MESSAGES))
        return saved

    def _remember(self, thread_id: str, messages: Any) -> None:
        """Bring a conversation in line with a thread's turns, up to the last one that was answered.

        LangGraph saves while the next step runs already. A turn that is still open is in the prompt anyway, so what a
        model is shown hangs on what was answered before and not on which of the two is faster.
        """
        if not isinstance(messages, list) or not all(isinstance(message, BaseMessage) for message in messages):
            return
        answers = (
            n for n, message in enumerate(messages, 1) if isinstance(message, AIMessage) and not message.tool_calls
        )
        answered = messages[: max(answers, default=0)]
        history = self.history(thread_id)
        kept = history.messages
        if kept == answered[: len(kept)]:
            history.add_messages(answered[len(kept) :])
        elif answered[: len(kept)] != kept[: len(answered)]:  # another branch, or an edited turn
            history.clear()
            history.add_messages(answered)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread's checkpoints and its conversation."""
        super().delete_thread(thread_id)
        self.history(thread_id).clear()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """A checkpoint with all that belongs to it."""
        return await run_in_executor(None, self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints that fit, the newest first."""

        def found() -> list[CheckpointTuple]:
            return list(self.list(config, filter=filter, before=before, limit=limit))

        for each in await run_in_executor(None, found):
            yield each

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint, as :meth:`put`."""
        return await run_in_executor(None, self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Keep what a step wrote before its checkpoint is made."""
        await run_in_executor(None, self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete a thread's checkpoints and its conversation."""
        await run_in_executor(None, self.delete_thread, thread_id)
