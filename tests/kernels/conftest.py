"""What the tests of kernels share."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU where there is one; elsewhere the processor, on which Triton interprets its kernels."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
