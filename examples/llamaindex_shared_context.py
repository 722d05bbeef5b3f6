"""Answers from the handbook with LlamaIndex: whole documents, injected.

python examples/llamaindex_shared_context.py ["a question of your own" ...]
"""

import sys
from pathlib import Path

from llama_index.core import Settings, SimpleDirectoryReader

from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"
QUESTIONS = [
    "How warm is the drying room kept?",
    "How much did the page torn out of the lock-keeper's log cost the Authority?",
    "In which town is the closest recompression chamber?",
]

Settings.llm = SharedLLM(model="smollm2-135m-instruct", max_new_tokens=48, stop=["\n"])

documents = SimpleDirectoryReader(input_files=[HANDBOOK]).load_data()
index = SharedContextIndex.from_documents(documents)
query_engine = index.as_query_engine()

for question in sys.argv[1:] or QUESTIONS:
    response = query_engine.query(question)
    print(f"\n{question}\n  {response}")
    for source in response.source_nodes:
        words = " ".join(source.text.split())
        print(f"  source: {source.metadata['file_name']}, {len(words)} characters: {words[:70]} ...")
