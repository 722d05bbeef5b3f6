"""Answers from the handbook with LangChain: chunked RAG, as its documentation does it.

python examples/langchain_chunked_rag.py ["a question of your own" ...]
"""

import sys
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from minilm_langchain import MiniLMEmbeddings

from shared_context.integrations.langchain import ChatSharedLLM

HANDBOOK = Path(__file__).parent / "data" / "handbook.md"
QUESTIONS = [
    "How warm is the drying room kept?",
    "How much did the page torn out of the lock-keeper's log cost the Authority?",
    "In which town is the closest recompression chamber?",
]
PROMPT = """You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer \
the question. If you don't know the answer, just say that you don't know. Use three sentences maximum and keep the \
answer concise.
Question: {input}
Context: {context}
Answer:"""


def format_docs(inputs: dict) -> dict:
    return {**inputs, "context": "\n\n".join(doc.page_content for doc in inputs["context"])}


llm = ChatSharedLLM(model="smollm2-135m-instruct", max_tokens=48, stop="\n")

documents = [Document(HANDBOOK.read_text(encoding="utf-8"), metadata={"source": HANDBOOK.name})]
splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
vector_store = InMemoryVectorStore.from_documents(splitter.split_documents(documents), MiniLMEmbeddings())
answer = format_docs | ChatPromptTemplate.from_template(PROMPT) | llm | StrOutputParser()
chain = RunnablePassthrough.assign(context=itemgetter("input") | vector_store.as_retriever()).assign(answer=answer)

for question in sys.argv[1:] or QUESTIONS:
    response = chain.invoke({"input": question})
    print(f"\n{question}\n  {response['answer']}")
    for source in response["context"]:
        words = " ".join(source.page_content.split())
        print(f"  source: {source.metadata['source']}, {len(words)} characters: {words[:70]} ...")
