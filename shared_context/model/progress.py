"""Progress bars that other libraries draw while weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading() -> Iterator[None]:
    """While entered, transformers draws no bar: loading takes a second, and a bar per model is noise in every program.

    ``HF_HUB_DISABLE_PROGRESS_BARS=0``, by which Hugging Face's libraries are told to show them in any case, is heeded.
    Downloads take minutes and keep theirs.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is False or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
