"""One turn of a conversation over a store: what is remembered and what the documents say share one budget."""

from __future__ import annotations

from itertools import dropwhile
from typing import Any, NamedTuple

from shared_context.config import Policy
from shared_context.store.conversation_memory import ConversationMemory
from shared_context.store.selection import JoinedSelections, Selection
from shared_context.store.store import SharedLLMContextStore

MEMORY_SHARE = 4
"""Of this many KV entries one is kept for older turns, as far as they need it."""


class Turn(NamedTuple):
    """What a question is answered with.

    Attributes:
        messages: the recent turns word for word, and the question.
        context: older turns, and behind them the passages.
        passages: of the documents alone.
    """

    messages: list[dict[str, Any]]
    context: Selection | JoinedSelections
    passages: Selection


def next_turn(
    store: SharedLLMContextStore,
    memory: ConversationMemory,
    question: str,
    *,
    budget: int,
    policy: Policy | None = None,
    **options: Any,
) -> Turn:
    """What the next question of a conversation is answered with; nothing is remembered yet.

    Args:
        store: whose documents are asked.
        memory: the conversation, of this store or of another one of the same model.
        question: what the user says.
        budget: KV entries for older turns and passages together.
        policy: how nodes of both are scored.
        **options: of the store's ``select``.

    Raises:
        SharedContextError: as ``select`` does.
    """
    leaf = store.config.tree.leaf_size
    share = max(budget // MEMORY_SHARE, leaf)
    # A budget of one leaf or less than two is for the documents alone.
    older = memory.select(question, budget=share, policy=policy) if share + leaf <= budget else None
    left = budget - (older.kv_entries if older else 0)
    passages = store.select(question, budget=left, policy=policy, **options)
    # Many chat templates insist that a user speaks first; what that user said may be among the older turns.
    recent = dropwhile(lambda turn: turn["role"] != "user", memory.recent())
    messages: list[dict[str, Any]] = [*map(dict, recent), {"role": "user", "content": question}]
    return Turn(messages, older + passages if older else passages, passages)
