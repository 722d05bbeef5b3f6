"""Many documents: a prefilter that narrows the search to the nearest ones, and filters by metadata.

python examples/many_documents.py

Every section of the handbook becomes a document of its own, with its chapter as metadata.
"""

import re
import time
from pathlib import Path

from shared_context import Document, SharedLLMContextStore, SharedLLMModel

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"
BUDGET = 256


def read_sections(text: str) -> list[Document]:
    """The `##` sections of a Markdown text; metadata say under which `#` chapter each stands."""
    documents, chapter = [], ""
    for part in re.split(r"^(?=##? )", text, flags=re.MULTILINE):
        title = part.partition("\n")[0].lstrip("# ")
        if part.startswith("## "):
            documents.append(Document(part, id=title, metadata={"chapter": chapter}))
        else:
            chapter = title.partition(": ")[2]
    return documents


def ask(question: str, **options) -> None:
    """Select under these options, answer, and print which documents the answer is from."""
    started = time.perf_counter()
    selection = store.select(question, budget=BUDGET, **options)
    seconds = time.perf_counter() - started
    answer = model.generate(question, context=selection, max_new_tokens=16)
    described = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
    print(f"\n  {described}")
    print(f"    answer   {answer}")
    print(f"    sources  {'; '.join(selection.doc_ids)}")
    print(f"    KV       {selection.kv_entries} entries, selected in {1000 * seconds:.0f} ms")


model = SharedLLMModel.from_pretrained("smollm2-135m-instruct")
store = SharedLLMContextStore(model)
store.add(read_sections(HANDBOOK.read_text(encoding="utf-8")))
print(f"{len(store)} documents, {store.stats()['tokens']:,} tokens")

question = "What is the name of the cat?"
print(f"\n{question}")
ask(question)
# FAISS finds the five documents nearest to the question and only these are searched, which keeps a store of thousands
# quick. The first use builds its index.
ask(question, prefilter=5)

question = "Who cooks?"
print(f"\n{question}")
ask(question, filters={"chapter": "Pilotage"})
ask(question, filters={"chapter": {"$in": ["Safety and Emergencies", "Canteen, Quarters and Welfare"]}})
