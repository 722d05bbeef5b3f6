"""The package as a whole: what it says where LangChain is missing."""

import importlib
import sys

import pytest

PACKAGE = "shared_context.integrations.langchain"


def test_import_without_langchain_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_core", None)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(ImportError, match=r"pip install sharedllm\[langchain\]"):
        importlib.import_module(PACKAGE)
