"""The measurements behind docs/figures.md: ``python -m shared_context.evaluation --help``.

One module each for evidence, answers, first_token, memory and ingest. What they are measured against is in baselines,
which needs the extra ``llamaindex``.
"""
