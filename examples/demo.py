"""A long document, two frameworks: answers with their sources and with what they took. `make demo` runs this.

python examples/demo.py [STORE]

The first run provides the default model, compresses the handbook and computes the keys and values (KV) that the
questions need. They stay in the folder STORE, build/demo.ctx where none is named, so the next run starts where this
one ends.
"""

import json
import re
import sys
import time
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core import Document
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from transformers.utils import logging

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.integrations.langchain import ChatSharedLLM, SharedContextChain
from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM

EXAMPLES = Path(__file__).resolve().parent
HANDBOOK = EXAMPLES / "data" / "handbook.md"
QUESTIONS = EXAMPLES / "data" / "handbook-questions.json"
DEFAULT_STORE = EXAMPLES.parent / "build" / "demo.ctx"

ASKED_THROUGH_LLAMAINDEX = ("handbook-37", "handbook-06", "handbook-13")
ASKED_THROUGH_LANGCHAIN = ("handbook-32", "handbook-17", "handbook-03")

BUDGET = 256
"""KV entries of a context. More would distract so small a model; the library's default is 1,024."""

PASSAGES = 8
"""Passages, of 128 tokens each, of the longer context with which injecting and pasting are compared."""


def main(folder: Path = DEFAULT_STORE) -> None:
    logging.disable_progress_bar()
    started = time.perf_counter()
    model = SharedLLMModel.from_pretrained("smollm2-135m-instruct")
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"Model     {model.name}, {dtype} on {model.device}: loaded in {time.perf_counter() - started:.1f} s")

    started = time.perf_counter()
    with SharedLLMContextStore(model, folder) as store:
        llamaindex, langchain = ThroughLlamaIndex(store), ThroughLangChain(store)
        handbook = HANDBOOK.read_text(encoding="utf-8")
        [is_new] = llamaindex.index.refresh_ref_docs([Document(text=handbook, id_="handbook")])
        how = "compressed in" if is_new else "found compressed, opened in"
        print(f"Document  {HANDBOOK.name}, {store.stats()['tokens']:,} tokens: ", end="")
        print(f"{how} {time.perf_counter() - started:.1f} s")

        questions = read_questions()
        print("\n== LlamaIndex: SharedContextIndex.from_store(store).as_query_engine().query(question)")
        for asked in ASKED_THROUGH_LLAMAINDEX:
            show(llamaindex, store, *questions[asked])
        print("\n== LangChain: SharedContextChain.from_store(store).invoke({'input': question})")
        for asked in ASKED_THROUGH_LANGCHAIN:
            show(langchain, store, *questions[asked])
        compare(store, questions[asked][0])
        coarsen(store, *questions[asked])

        stats = store.stats()
        size = (stats["database_bytes"] + stats["kv_cache"]["disk"]["bytes"]) / 2**20
        kept, command = relpath(folder), relpath(Path(sys.executable).with_name("shared-context"))
        print(f"\nKept in {kept} ({size:.0f} MiB), so the next run is quicker; `make clean` deletes build/.")
        print("A model of this size gets some right and some wrong; the handbook's answers say which. Try others:")
        print(f'  {command} ask {kept} "How high is the lighthouse?" --budget {BUDGET}')


@dataclass
class Answer:
    """What a framework answered, where its sources stand in the handbook (characters), and what it took (seconds)."""

    text: str
    sources: list[tuple[int, int]]
    kv_entries: int
    first_token: float


class ThroughLlamaIndex:
    """Asks a LlamaIndex query engine."""

    def __init__(self, store: SharedLLMContextStore):
        self.events = LlamaDebugHandler(print_trace_on_end=False)
        callbacks = CallbackManager([self.events])
        llm = SharedLLM(model=store.model, max_new_tokens=32, callback_manager=callbacks)
        self.index = SharedContextIndex.from_store(store, llm=llm)
        self.engine = self.index.as_query_engine(budget=BUDGET)

    def ask(self, question: str) -> Answer:
        started = time.perf_counter()
        response = self.engine.query(question)
        seconds = time.perf_counter() - started
        call = self.events.get_event_pairs(CBEventType.LLM)[-1][-1].payload[EventPayload.RESPONSE].raw
        return Answer(
            text=str(response),
            sources=[(source.node.start_char_idx, source.node.end_char_idx) for source in response.source_nodes],
            kv_entries=call["usage"]["context_entries"],
            first_token=seconds - call["seconds"] + call["usage"]["time_to_first_token"],
        )


class ThroughLangChain:
    """Asks a LangChain chain."""

    def __init__(self, store: SharedLLMContextStore):
        llm = ChatSharedLLM(model=store.model, max_tokens=32)
        self.chain = SharedContextChain.from_store(store, llm=llm, budget=BUDGET)

    def ask(self, question: str) -> Answer:
        call = ModelCall()
        started = time.perf_counter()
        response = self.chain.invoke({"input": question}, {"callbacks": [call]})
        return Answer(
            text=response["answer"],
            sources=[(source.metadata["start"], source.metadata["end"]) for source in response["context"]],
            kv_entries=call.details["context_entries"],
            first_token=call.started - started + call.details["time_to_first_token"],
        )


class ModelCall(BaseCallbackHandler):
    """Notes when a chain hands its prompt to the model, and what the model says of its answer."""

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.details = response.generations[0][0].message.response_metadata


def show(
    framework: ThroughLlamaIndex | ThroughLangChain, store: SharedLLMContextStore, question: str, expected: str
) -> None:
    """Ask, and ask again when all KV are in memory; print the answer beside the handbook's, sources and figures."""
    before = store.stats()["kv_cache"]["disk"]
    answer = framework.ask(question)
    after = store.stats()["kv_cache"]["disk"]
    again = framework.ask(question)
    print(f"\n  {question}")
    print(f"    answer       {' '.join(answer.text.split())}")
    print(f"    handbook     {expected}")
    handbook = store.get("handbook").text
    for number, (start, end) in enumerate(answer.sources):
        # Where the passage holds what was asked for, that part of it is shown, else its beginning.
        at = max(start, handbook.find(expected, start, end))
        print(f"    {'' if number else 'sources':<12} {heading(handbook, at)} (characters {start:,} to {end:,}):")
        print(f"    {'':<12} {excerpt(handbook[max(start, at - 40) : end])}")
    print(f"    KV           {answer.kv_entries} entries of at most {BUDGET}")
    computed, read = after["misses"] - before["misses"], after["hits"] - before["hits"]
    how = f"cold, KV of {chunks(computed)} computed" if computed else f"KV of {chunks(read)} read from disk"
    print(f"    first token  {answer.first_token:.2f} s ({how if computed or read else 'warm'})")
    print(f"                 {again.first_token:.2f} s (warm, asked again)")


def compare(store: SharedLLMContextStore, question: str) -> None:
    """Print the time to first token over a longer context, injected and pasted as text; searching is left out."""
    passages = store.retrieve(question, k=PASSAGES)
    selection = store.selection_from((passage.doc_id, passage.start, passage.end) for passage in passages)
    store.warm(selection)
    injected, pasted = (
        store.model.complete(question, context=context, max_new_tokens=1).time_to_first_token
        for context in (selection, selection.text)
    )
    print(f"\n== First token over {selection.kv_entries:,} tokens of context, once they are found: ", end="")
    print(f"{injected:.2f} s injected and warm, {pasted:.2f} s pasted as text")


def coarsen(store: SharedLLMContextStore, question: str, expected: str) -> None:
    """Print what is answered over the same passages at two grains, and how likely the handbook's answer is."""
    passages = store.retrieve(question, k=2)
    print(f"\n== The best two passages, whole and an eighth of their KV: {question}")
    for ratio in (1, 8):
        spans = [(passage.doc_id, passage.start, passage.end, ratio) for passage in passages]
        selection = store.selection_from(spans)
        answer = store.model.generate(question, context=selection, max_new_tokens=32)
        nll = store.model.nll(question, expected, context=selection)
        print(f"    ratio {ratio:<2}     {selection.kv_entries:>4} entries, {nll:.2f} nats: {' '.join(answer.split())}")


def read_questions() -> dict[str, tuple[str, str]]:
    """Question and expected answer by id."""
    articles = json.loads(QUESTIONS.read_text(encoding="utf-8"))["data"]
    found = (qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"])
    return {qa["id"]: (qa["question"], qa["answers"][0]["text"]) for qa in found}


def heading(text: str, position: int) -> str:
    """The title of the section in which a character stands."""
    return re.findall(r"^#+ (.+)$", text[: position + 1], flags=re.MULTILINE)[-1]


def chunks(number: int) -> str:
    return f"{number} chunk{'s' if number > 1 else ''}"


def excerpt(text: str, width: int = 90) -> str:
    """The beginning of a text on one line."""
    words = " ".join(text.split())
    return f"... {words[:width]} ..."


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
