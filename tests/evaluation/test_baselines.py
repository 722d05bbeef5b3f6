"""Chunked RAG, the baseline: that it is what it says, and is treated fairly."""

import re

import pytest
from llama_index.core.llms import ChatMessage, ChatResponse

from shared_context.evaluation.baselines import CHUNK_SIZE, ChunkedRAG, pasted
from shared_context.evaluation.indexing import indexers
from shared_context.integrations.llamaindex import SharedLLM
from shared_context.store.embedder import load_default_embedder

QUESTION = "When does the night shift begin?"


@pytest.fixture(scope="module")
def documents(handbook):
    # Chapters 1 to 5, some 10,000 tokens; watches are explained in the first document.
    first, second, *_ = re.split(r"(?m)^(?=# Chapter [46]:)", handbook)
    return {"first": first, "second": second}


@pytest.fixture(scope="module")
def rag(model, documents):
    return ChunkedRAG(model, load_default_embedder(), documents)


def test_chunks_are_exact_pieces_of_their_documents_counted_by_the_models_own_tokenizer(rag, model, documents):
    chunks = rag.top(QUESTION, 10_000)
    assert {chunk.node.ref_doc_id for chunk in chunks} == {"first", "second"}
    for chunk in chunks:
        document = documents[chunk.node.ref_doc_id]
        assert document[chunk.node.start_char_idx : chunk.node.end_char_idx] == chunk.text
        assert model.count_tokens(chunk.text) <= CHUNK_SIZE
    assert rag.count_tokens(chunks) == sum(model.count_tokens(chunk.text) for chunk in chunks)


def test_best_chunk_answers_the_question(rag):
    assert "21:47" in pasted(rag.top(QUESTION, 4))


@pytest.mark.parametrize("budget", [256, 512, 1024])
def test_chunks_within_a_budget_use_it_as_far_as_chunks_can(rag, budget):
    chunks = rag.within(rag.top(QUESTION, len(rag)), budget)
    assert budget - CHUNK_SIZE < rag.count_tokens(chunks) <= budget
    assert chunks[0].node_id == rag.top(QUESTION, 1)[0].node_id
    assert [c.score for c in chunks] == sorted((c.score for c in chunks), reverse=True)


@pytest.mark.parametrize("ranking", ["vector", "bm25", "fusion by rank", "fusion by score"])
def test_every_ranking_finds_the_answer_and_no_chunk_twice(rag, ranking):
    ranked = rag.retriever(ranking, fused=10).retrieve(QUESTION)
    assert any("21:47" in chunk.text for chunk in ranked[:6])
    ids = [chunk.node_id for chunk in ranked]
    assert len(ids) == len(set(ids)) <= 20
    assert len(rag.retriever(ranking).retrieve(QUESTION)) >= len(ids)


def test_a_fusion_is_led_by_what_both_sides_find(rag):
    sides = [{c.node_id for c in rag.retriever(side, 3).retrieve(QUESTION)} for side in ("vector", "bm25")]
    both = sides[0] & sides[1]
    fused = [chunk.node_id for chunk in rag.retriever("fusion by rank", 3).retrieve(QUESTION)]
    assert both and set(fused[: len(both)]) == both


def test_as_many_best_chunks_as_a_budget_holds(rag):
    k = rag.most_within(QUESTION, 1024)
    assert rag.count_tokens(rag.top(QUESTION, k)) <= 1024 < rag.count_tokens(rag.top(QUESTION, k + 1))
    assert rag.most_within(QUESTION, 1) == 1


def test_both_frameworks_paste_the_best_chunks_that_a_budget_holds(model, documents):
    made = indexers({}, default_chunks=False)
    assert len(made) == 2
    for indexer in made.values():
        index = indexer(model, load_default_embedder(), documents)
        narrow, wide = index.context(QUESTION, 512), index.context(QUESTION, 1024)
        assert "21:47" in wide and wide.startswith(narrow)  # best first
        assert model.count_tokens(narrow) <= 512 < model.count_tokens(wide) <= 1024 + 8  # blank lines between them
        assert index.context(QUESTION, 1)  # the best one, whatever its length


def test_query_engine_pastes_the_chunks_in_one_call(rag, model):
    calls = []

    class Listening(SharedLLM):
        def stream_chat(self, messages, **kwargs):
            calls.append(messages)
            yield ChatResponse(message=ChatMessage("At 21:47."), delta="At 21:47.")

    k = rag.most_within(QUESTION, 7800)  # a context that only just fits the window beside LlamaIndex's prompt
    response = rag.query_engine(Listening(model=model, max_new_tokens=1), k).query(QUESTION)
    assert list(response.response_gen) == ["At 21:47."]
    (messages,) = calls
    assert len(response.source_nodes) == k > 28
    assert all(chunk.text.strip() in messages[-1].content for chunk in response.source_nodes)
    conversation = [{"role": m.role.value, "content": m.content} for m in messages]
    model.check_window(conversation, max_new_tokens=1)
