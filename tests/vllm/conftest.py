"""vLLM lives in an environment of its own, whose Python SHARED_CONTEXT_VLLM_PYTHON names."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.model.pretrained import resolve_model

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def python() -> Path:
    """vLLM's own Python."""
    named = os.environ.get("SHARED_CONTEXT_VLLM_PYTHON")
    if named is None:
        pytest.skip("SHARED_CONTEXT_VLLM_PYTHON names no Python with vLLM")
    return Path(named)


@pytest.fixture(scope="session")
def exact() -> SharedLLMModel:
    return SharedLLMModel.from_pretrained(dtype="float32")


@pytest.fixture(scope="session")
def store(exact: SharedLLMModel, handbook: str) -> SharedLLMContextStore:
    store = SharedLLMContextStore(exact, embedder=None)
    store.add(handbook, id="handbook")
    return store


@pytest.fixture(scope="session")
def questions() -> Callable[[int], list[str]]:
    """``questions(count)`` about the handbook, of the 40 that there are."""
    data = json.loads((ROOT / "examples" / "data" / "handbook-questions.json").read_text(encoding="utf-8"))["data"]
    found = [qa["question"] for article in data for p in article["paragraphs"] for qa in p["qas"]]
    return lambda count: found[: int(os.environ.get("SHARED_CONTEXT_VLLM_QUESTIONS", count))]


@pytest.fixture(scope="session")
def answers(python: Path) -> Callable[..., tuple[list[dict[str, Any]], str]]:
    """``answers(cases, folder)``: what vLLM says to each, and its log."""

    def ask(cases: list[dict[str, Any]], folder: Path, dtype: str = "float32") -> tuple[list[dict[str, Any]], str]:
        (folder / "cases.json").write_text(json.dumps(cases))
        files = [folder / "cases.json", folder / "answers.json"]
        program, model = Path(__file__).parent / "answers.py", resolve_model("smollm2-135m-instruct")
        command = [str(part) for part in (python, program, model, folder, *files, dtype)]
        done = subprocess.run(command, env={**os.environ, **SETTINGS}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(files[1].read_text()), done.stdout + done.stderr

    return ask
