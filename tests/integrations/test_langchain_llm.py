"""SharedLLM: text in, text out."""

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import PromptTemplate

from shared_context import SharedLLMContextStore
from shared_context.errors import AdapterError, ConfigError, WindowExceededError
from shared_context.integrations.langchain import ChatSharedLLM, SharedLLM

QUESTION = "What is the code of the safe?"


@pytest.fixture(scope="module")
def store(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add("The code of the safe is 4711. Only the porter knows it.", id="safe")
        yield store


@pytest.fixture(scope="module")
def llm(model):
    return SharedLLM(model=model, max_tokens=12)


def test_all_forms_give_the_models_answer(model, llm):
    expected = model.generate(QUESTION, max_new_tokens=12)
    assert llm.invoke(QUESTION) == expected
    assert "".join(llm.stream(QUESTION)) == expected


async def test_all_async_forms_give_the_same_answer(llm):
    expected = llm.invoke(QUESTION)
    assert await llm.ainvoke(QUESTION) == expected
    assert "".join([piece async for piece in llm.astream(QUESTION)]) == expected
    assert await llm.abatch([QUESTION]) == [expected]


def test_a_setting_that_is_none_is_named(model):
    for kind in SharedLLM, ChatSharedLLM:
        with pytest.raises(
            ConfigError, match=f"{kind.__name__} has no setting max_tokns, model_name: .*generate_kwargs"
        ):
            kind(model=model, max_tokns=4, model_name="another")


def test_a_batch_takes_a_context_for_each_prompt(llm, store):
    selection = store.select(QUESTION)
    without, injected = llm.batch([QUESTION, QUESTION], context=[None, selection])
    assert "4711" not in without
    assert "4711" in injected


def test_a_context_serves_every_prompt_of_a_batch(llm, store):
    answers = llm.batch([QUESTION, "Tell me the code of the safe."], context=store.select(QUESTION))
    assert all("4711" in answer for answer in answers)


def test_a_formatted_prompt_is_continued_as_it_stands(model):
    llm = SharedLLM(model=model, max_tokens=3, formatted=True)
    assert "Paris" in llm.invoke("The capital of France is")
    assert "Paris" in "".join(llm.stream("The capital of France is"))


def test_a_result_says_what_it_took(llm, store):
    result = llm.generate([QUESTION], context=store.select(QUESTION))
    info = result.generations[0][0].generation_info
    assert info["context_entries"] > 0
    assert info["finish_reason"] in ("stop", "length")
    assert info["usage_metadata"]["output_tokens"] > 0


def test_callbacks_see_every_piece(llm):
    class Tokens(BaseCallbackHandler):
        def __init__(self):
            self.tokens = []

        def on_llm_new_token(self, token, **kwargs):
            self.tokens.append(token)

    handler = Tokens()
    pieces = list(llm.stream(QUESTION, config={"callbacks": [handler]}))
    assert "".join(handler.tokens) == "".join(pieces)


def test_a_cached_answer_is_never_another_calls(model, store):
    llm = SharedLLM(model=model, max_tokens=12, cache=InMemoryCache())
    without = llm.invoke(QUESTION)
    assert "4711" in llm.invoke(QUESTION, context=store.select(QUESTION))
    assert llm.invoke(QUESTION) == without
    assert llm.invoke(QUESTION, max_tokens=2) != without


def test_stop_and_prompt_template(llm):
    chain = PromptTemplate.from_template("Repeat after me: {words}") | llm
    whole = chain.invoke({"words": "one two three four"})
    word = whole.split()[2]
    assert (PromptTemplate.from_template("Repeat after me: {words}") | llm.bind(stop=[word])).invoke(
        {"words": "one two three four"}
    ) == whole[: whole.index(word)]


def test_what_does_not_fit_the_window_is_refused(llm):
    with pytest.raises(WindowExceededError):
        llm.invoke("word " * 9000)


def test_a_cache_tells_stop_strings_of_the_model_apart(model):
    cache = InMemoryCache()
    question = "Repeat after me: one two three four"
    whole = SharedLLM(model=model, max_tokens=12, cache=cache).invoke(question)
    word = whole.split()[2]
    stopped = SharedLLM(model=model, max_tokens=12, cache=cache, stop=word)
    assert stopped.invoke(question) == whole[: whole.index(word)]


async def test_contexts_stay_with_their_prompts_whatever_runs_at_once(llm, store):
    contexts, config = [None, store.select(QUESTION)], {"max_concurrency": 1}
    for answers in (
        llm.batch([QUESTION, QUESTION], config, context=contexts),
        await llm.abatch([QUESTION, QUESTION], [config, config], context=contexts),
    ):
        assert ["4711" in answer for answer in answers] == [False, True]


def test_a_model_that_is_named_is_loaded_as_one_says(model):
    exact = SharedLLM("smollm2-135m-instruct", dtype="float32", device="cpu").model
    assert str(exact.dtype) == "torch.float32"
    assert SharedLLM("smollm2-135m-instruct", dtype="float32", device="cpu").model is exact
    with pytest.raises(ConfigError, match="device='nowhere'"):
        SharedLLM(device="nowhere")
    with pytest.raises(AdapterError, match="nothing/like-it"):
        SharedLLM(adapter="nothing/like-it")
    with pytest.raises(ConfigError, match="adapter.*loaded already"):
        SharedLLM(model, adapter="factoid")


def test_what_a_model_is_loaded_with_and_how_it_generates_are_apart(model):
    brief = SharedLLM("smollm2-135m-instruct", max_tokens=12, model_kwargs={"system_prompt": "Answer in one word."})
    assert brief.model.system_prompt == "Answer in one word."
    settings = {"repetition_penalty": 1.8}
    generating = SharedLLM(model, max_tokens=12, generate_kwargs=settings)
    assert generating.invoke(QUESTION) == model.generate(QUESTION, max_new_tokens=12, **settings)
    with pytest.raises(ConfigError, match="system_prompt.*loaded already"):
        SharedLLM(model, model_kwargs={"system_prompt": "Answer in one word."})


def test_settings_of_generation_among_model_kwargs_still_count_with_a_warning(model):
    settings = {"repetition_penalty": 1.8}
    with pytest.warns(DeprecationWarning, match=r"generate_kwargs.*0\.3") as warned:
        llm = SharedLLM(model, max_tokens=12, model_kwargs=settings)
    assert warned[0].filename == __file__  # whoever has to change it sees where
    assert llm.invoke(QUESTION) == SharedLLM(model, max_tokens=12, generate_kwargs=settings).invoke(QUESTION)
