"""The measurements behind docs/figures.md, which ``shared-context eval`` and ``shared-context bench`` run.

One module each for retrieval, answers, compression, needle, language_model, first_token, decoding, ingest, storage,
memory, cost, growth.
What they are measured against is in baselines and langchain_rag, which need the extra ``eval``; a measurement without
them says so.
"""
