"""SharedContextMemoryStore: what LangGraph asks of a store, and that items are found by what they say."""

import pytest

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, FilterError
from shared_context.integrations.langgraph import SharedContextMemoryStore

ADA, BEN = ("users", "ada"), ("users", "ben")


@pytest.fixture
def memories(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        yield SharedContextMemoryStore(store)


def test_an_item_comes_back_as_it_was_put(memories):
    value = {"text": "She likes pears.", "tags": ["fruit"], "weight": {"grams": 180}}
    memories.put(ADA, "pears", value)
    item = memories.get(ADA, "pears")
    assert (item.value, item.key, item.namespace) == (value, "pears", ADA)
    memories.put(ADA, "pears", {"text": "She likes plums."})
    later = memories.get(ADA, "pears")
    assert later.value == {"text": "She likes plums."}
    assert later.created_at == item.created_at < later.updated_at
    assert memories.get(BEN, "pears") is None
    memories.delete(ADA, "pears")
    memories.delete(ADA, "pears")
    assert memories.get(ADA, "pears") is None


def test_search_by_namespace_filter_and_page(memories):
    for year in range(2020, 2025):
        memories.put(ADA, str(year), {"year": year, "kind": "note"})
    memories.put(BEN, "2022", {"year": 2022, "kind": "note"})
    assert len(memories.search(("users",))) == 6
    assert [item.key for item in memories.search(ADA, filter={"year": {"$gte": 2023}, "kind": "note"})] == [
        "2023",
        "2024",
    ]
    assert [item.key for item in memories.search(ADA, limit=2, offset=1)] == ["2021", "2022"]
    assert memories.search(ADA, filter={"year": 1999}) == []
    with pytest.raises(FilterError, match=r"\$near"):
        memories.search(ADA, filter={"year": {"$near": 2020}})


def test_search_by_what_an_item_says(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        memories = SharedContextMemoryStore(store)
        memories.put(ADA, "a", {"text": "The code of the safe is 4711."})
        memories.put(ADA, "b", {"text": "The night shift starts at 22:15."})
        memories.put(ADA, "c", {"text": "The safe was painted green.", "secret": True}, index=False)
        memories.put(BEN, "d", {"title": "The code of the safe is 1234.", "text": "Something else."}, index=["text"])
        found = memories.search(ADA, query="What is the code of the safe?")
        assert [item.key for item in found] == ["a", "b"]
        assert found[0].score >= found[1].score
        assert [item.key for item in memories.search(ADA, query="When does the night shift start?", limit=1)] == ["b"]
        assert store.get('["users", "ben", "d"]').text == "Something else."


def test_namespaces(memories):
    for namespace in (ADA, BEN, ("teams", "mill", "notes")):
        memories.put(namespace, "k", {"text": "A text."})
    assert memories.list_namespaces() == [("teams", "mill", "notes"), ADA, BEN]
    assert memories.list_namespaces(prefix=("users",)) == [ADA, BEN]
    assert memories.list_namespaces(suffix=("notes",)) == [("teams", "mill", "notes")]
    assert memories.list_namespaces(prefix=("*", "ada")) == [ADA]
    assert memories.list_namespaces(max_depth=1) == [("teams",), ("users",)]


async def test_async_forms(memories):
    await memories.aput(ADA, "k", {"text": "A text."})
    assert (await memories.aget(ADA, "k")).value == {"text": "A text."}
    assert [item.key for item in await memories.asearch(ADA, query="text")] == ["k"]
    await memories.adelete(ADA, "k")
    assert await memories.alist_namespaces() == []


def test_other_documents_of_the_store_are_no_items(memories):
    memories.store.add("The gate opens at six.", id="gate")
    assert memories.search(()) == [] and memories.list_namespaces() == []


def test_what_is_no_store_is_refused_in_words():
    with pytest.raises(ConfigError, match="store is a str"):
        SharedContextMemoryStore("memories.ctx")
