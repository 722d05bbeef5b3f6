"""LangGraph's long-term memory over the documents of a store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from langchain_core.runnables import run_in_executor
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)
from langgraph.store.base.embed import get_text_at_path

from shared_context import Document, SharedLLMContextStore
from shared_context.errors import ConfigError, FilterError
from shared_context.integrations.langchain.settings import of_type

ITEM = "langgraph"
"""The key of a document's metadata that holds the item."""

HIDDEN = (ITEM, "value")

SomeItem = TypeVar("SomeItem", bound=Item)


class SharedContextMemoryStore(BaseStore):
    """Items in namespaces, found again by what they say.

        agent = graph.compile(store=SharedContextMemoryStore(SharedLLMContextStore(model, path="memories.ctx")))

    Every item is a document: ``search(("users", "ada"), query="What does she like?")`` finds it as the store finds a
    passage. Give it a store of its own, for who asks a store's documents finds every namespace's items among them. The
    async methods run in threads; items do not expire.

    Args:
        store: keeps the items; with a path they are there when it is opened again.

    Raises:
        ConfigError: ``store`` is none, or an operation is of a kind that is not known.
        DocumentError: a value is none that JSON has.
        FilterError: a filter compares in a way that is not known.
    """

    def __init__(self, store: SharedLLMContextStore):
        of_type("store", store, SharedLLMContextStore, "a SharedLLMContextStore")
        self.store = store

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """What comes of operations, which see what those before them wrote."""
        return [self._do(op) for op in ops]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """What comes of operations, in a thread."""
        return await run_in_executor(None, self.batch, list(ops))

    def _do(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            id = _id(op.namespace, op.key)
            return _item(self.store.get(id), Item) if id in self.store else None
        if isinstance(op, PutOp):
            self._put(op)
            return None
        if isinstance(op, SearchOp):
            return self._search(op)
        if isinstance(op, ListNamespacesOp):
            return self._namespaces(op)
        raise ConfigError(f"{op!r} is no operation of a LangGraph store: it knows get, put, search and list_namespaces")

    def _put(self, op: PutOp) -> None:
        id = _id(op.namespace, op.key)
        if op.value is None:
            if id in self.store:
                self.store.delete(id)
            return
        now = datetime.now(UTC).isoformat()
        made = self.store.get(id).metadata[ITEM]["created_at"] if id in self.store else now
        about = {
            "namespace": list(op.namespace),
            "key": op.key,
            "created_at": made,
            "updated_at": now,
            "searched": op.index is not False,
        }
        metadata = {ITEM: about, "value": dict(op.value)}
        document = Document(_text(op.value, op), id, metadata, unsearched_keys=HIDDEN, hidden_keys=HIDDEN)
        self.store.add(document, replace=True)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        found = [each for each in self._documents(op.namespace_prefix) if _passes(each.metadata["value"], op.filter)]
        page = slice(op.offset, op.offset + op.limit)
        if not op.query:
            return [_item(each, SearchItem) for each in found[page]]
        asked = {each.id: each for each in found if each.metadata[ITEM]["searched"]}
        scores: dict[str, float] = {}
        passages = 2 * page.stop
        while asked and passages:
            best = self.store.retrieve(op.query, passages, doc_ids=list(asked))
            for node in best:
                scores.setdefault(node.doc_id, node.score)
            # an item may have several passages among the best
            more = len(scores) < min(page.stop, len(asked)) and len(best) == passages
            passages = 2 * passages if more else 0
        ranked = [_item(asked[id], SearchItem, score=score) for id, score in scores.items()]
        return ranked[page]

    def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        found = {tuple(each.metadata[ITEM]["namespace"]) for each in self._documents(())}
        fitting = (each for each in found if all(_matches(rule, each) for rule in op.match_conditions or ()))
        return sorted({each[: op.max_depth] for each in fitting})[op.offset : op.offset + op.limit]

    def _documents(self, prefix: tuple[str, ...]) -> list[Document]:
        """The items' documents in the namespaces that begin so."""
        items = (document for document in self.store if ITEM in document.metadata)
        return [each for each in items if tuple(each.metadata[ITEM]["namespace"][: len(prefix)]) == prefix]


def _id(namespace: tuple[str, ...], key: str) -> str:
    return json.dumps([*namespace, key], ensure_ascii=False)


def _item(document: Document, kind: type[SomeItem], **more: Any) -> SomeItem:
    about = document.metadata[ITEM]
    return kind(
        value=dict(document.metadata["value"]),
        key=about["key"],
        namespace=tuple(about["namespace"]),
        created_at=datetime.fromisoformat(about["created_at"]),
        updated_at=datetime.fromisoformat(about["updated_at"]),
        **more,
    )


def _text(value: Mapping[str, Any], op: PutOp) -> str:
    """What an item is found by: the texts at the paths that it names, or all of it; never blank."""
    paths = op.index or list(value)
    texts = [text for path in paths for text in get_text_at_path(value, path)]
    return "\n".join(text for text in texts if text.strip()) or op.key


def _passes(value: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    """Whether a value has all that a filter wants; ``{"year": {"$gte": 2020}}`` compares, anything else is equality."""
    return all(_compares(value.get(key), condition) for key, condition in (wanted or {}).items())


def _compares(value: Any, condition: Any) -> bool:
    if not isinstance(condition, Mapping) or not any(name.startswith("$") for name in condition):
        return value == condition
    return all(_operator(name)(value, operand) for name, operand in condition.items())


def _operator(name: str) -> Any:
    comparisons = {
        "$eq": lambda value, operand: value == operand,
        "$ne": lambda value, operand: value != operand,
        "$gt": lambda value, operand: value is not None and value > operand,
        "$gte": lambda value, operand: value is not None and value >= operand,
        "$lt": lambda value, operand: value is not None and value < operand,
        "$lte": lambda value, operand: value is not None and value <= operand,
    }
    if name not in comparisons:
        raise FilterError(f"{name} is no comparison of a LangGraph store: use one of {', '.join(comparisons)}")
    return comparisons[name]


def _matches(rule: MatchCondition, namespace: tuple[str, ...]) -> bool:
    wanted = rule.path
    if len(namespace) < len(wanted):
        return False
    part = namespace[: len(wanted)] if rule.match_type == "prefix" else namespace[len(namespace) - len(wanted) :]
    return all(each in ("*", own) for each, own in zip(wanted, part, strict=True))
