"""The store: documents, node codes, KV cache, persistence, prefilter, conversations."""
