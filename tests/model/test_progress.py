"""Loading draws no bars, unless Hugging Face's libraries are told to."""

import pytest
from huggingface_hub import constants
from transformers.utils import logging

from shared_context import SharedLLMModel


@pytest.fixture
def folder(make_model, tokenizer, tmp_path):
    logging.enable_progress_bar()  # whatever ran before in this process
    make_model("llama").hf_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_is_loaded_without_a_word(folder, capfd):
    capfd.readouterr()
    SharedLLMModel.from_pretrained(folder)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled(), "what others draw is theirs"


def test_bars_are_drawn_where_they_are_asked_for(folder, capfd, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", False)
    capfd.readouterr()
    SharedLLMModel.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err
