"""What backs docs/figures.md and nobody needs for documents of their own: from a checkout, ``python -m benchmarks``.

``make figures`` runs all of it on the sample data. What a user measures on own questions and hardware is the package's:
``shared-context eval`` and ``shared-context bench``.
"""
