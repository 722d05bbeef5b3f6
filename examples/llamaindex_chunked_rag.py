"""Answers from the handbook with LlamaIndex: chunked RAG, as its documentation does it.

python examples/llamaindex_chunked_rag.py ["a question of your own" ...]
"""

import sys
from pathlib import Path

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from minilm_llamaindex import MiniLMEmbedding

from shared_context.integrations.llamaindex import SharedLLM

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"
QUESTIONS = [
    "How warm is the drying room kept?",
    "How much did the page torn out of the lock-keeper's log cost the Authority?",
    "In which town is the closest recompression chamber?",
]

Settings.llm = SharedLLM(model="smollm2-135m-instruct", max_new_tokens=48, stop=["\n"])
Settings.embed_model = MiniLMEmbedding()

documents = SimpleDirectoryReader(input_files=[HANDBOOK]).load_data()
index = VectorStoreIndex.from_documents(documents)
query_engine = index.as_query_engine()

for question in sys.argv[1:] or QUESTIONS:
    response = query_engine.query(question)
    print(f"\n{question}\n  {response}")
    for source in response.source_nodes:
        words = " ".join(source.text.split())
        print(f"  source: {source.metadata['file_name']}, {len(words)} characters: {words[:70]} ...")
