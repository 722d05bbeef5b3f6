"""Answers from the handbook with LangChain: whole documents, injected.

python examples/langchain_shared_context.py ["a question of your own" ...]
"""

import sys
from pathlib import Path

from langchain_core.documents import Document

from shared_context.integrations.langchain import ChatSharedLLM, SharedContextChain

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"
QUESTIONS = [
    "How warm is the drying room kept?",
    "How much did the page torn out of the lock-keeper's log cost the Authority?",
    "In which town is the closest recompression chamber?",
]

llm = ChatSharedLLM(model="smollm2-135m-instruct", max_tokens=48, stop="\n")

documents = [Document(HANDBOOK.read_text(encoding="utf-8"), metadata={"source": HANDBOOK.name})]
chain = SharedContextChain.from_documents(documents, model=llm.model, llm=llm)

for question in sys.argv[1:] or QUESTIONS:
    response = chain.invoke({"input": question})
    print(f"\n{question}\n  {response['answer']}")
    for source in response["context"]:
        words = " ".join(source.page_content.split())
        print(f"  source: {source.metadata['source']}, {len(words)} characters: {words[:70]} ...")
