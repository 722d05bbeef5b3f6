"""Selections injected into vLLM: its requests begin with keys and values that a store has assembled.

Whoever asks writes the keys and values of a prompt's beginning into a folder (:mod:`.selections`), and names them in
the request; the connector (:mod:`.connector`), which runs inside vLLM, copies them into its paged cache. The other way
round it saves those of a prompt that vLLM has computed, where somebody made room (:mod:`.encodings`). Nothing here
imports vLLM but the connector, and nothing of this library's dependencies but torch and safetensors, so that vLLM's
environment needs no more than this package on its path.
"""
