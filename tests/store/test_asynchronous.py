"""The core for event loops: the same answers as without, other work meanwhile, and nothing computed for nobody."""

import asyncio

import pytest

from shared_context import Document, SharedLLMContextStore
from shared_context.errors import DuplicateDocumentError, QueryError

QUESTION = "When does the gate open?"


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture
async def store(small):
    with SharedLLMContextStore(small, embedder=None) as store:
        await store.aadd("The gate opens at six. The lamp is lit at dusk.", id="gate")
        yield store


async def test_it_gives_what_the_same_calls_give_without_an_event_loop(store, small):
    selection = await store.aselect(QUESTION, budget=64)
    assert selection.text == store.select(QUESTION, budget=64).text
    assert [n.text for n in await store.aretrieve(QUESTION, k=1)] == [n.text for n in store.retrieve(QUESTION, k=1)]
    options = {"context": selection, "max_new_tokens": 8}
    expected = small.generate(QUESTION, **options)
    assert await small.agenerate(QUESTION, **options) == expected
    stream = small.astream(QUESTION, **options)
    assert "".join([piece async for piece in stream]) == expected == stream.completion.text
    assert await small.agenerate([QUESTION, "And when not?"], **options) == small.generate(
        [QUESTION, "And when not?"], **options
    )
    assert len(await small.acomplete(QUESTION, num_return_sequences=2, do_sample=True, **options)) == 2


async def test_what_is_wrong_with_a_call_is_raised_where_it_is_awaited(store, small):
    with pytest.raises(QueryError):
        await small.agenerate(" ")
    with pytest.raises(QueryError):
        await anext(small.astream(" "))
    with pytest.raises(DuplicateDocumentError):
        await store.aadd([Document("Another text.", id="gate")])


async def test_the_event_loop_goes_on_while_an_answer_is_computed(small):
    answer = asyncio.create_task(small.agenerate(QUESTION, max_new_tokens=16))
    turns = 0
    while not answer.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1


async def test_nothing_more_is_computed_for_a_task_that_was_cancelled(small):
    endless = {"max_new_tokens": 1000, "suppress_tokens": list(small.ends)}
    stream, begun = small.astream(QUESTION, **endless), asyncio.Event()

    async def read():
        async for _ in stream:
            begun.set()

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert 1 <= stream.completion.completion_tokens < 1000


async def test_a_stream_that_is_closed_has_ended(small):
    stream = small.astream(QUESTION, max_new_tokens=1000, suppress_tokens=list(small.ends))
    await anext(stream)
    await stream.aclose()
    assert stream.completion.completion_tokens < 1000
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
