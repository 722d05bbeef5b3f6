"""What the tests of benchmarks share."""

import pytest


@pytest.fixture(scope="session")
def small(make_small_model):
    """A small random model with a window of 256 tokens."""
    return make_small_model(window=256)
