"""The measurements that ``shared-context eval`` and ``shared-context bench`` run, on whatever data they are given.

One module each for retrieval, evidence, answers, compression, selections, needle, language_model, first_token,
decoding, ingest. What they are measured against is in baselines and langchain_rag, which need the extra ``eval``; a
measurement without them says so. What only backs the project's own figures is in benchmarks/ of the repository.
"""
