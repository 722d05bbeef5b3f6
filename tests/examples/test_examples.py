"""Every example runs as a newcomer runs it, without a network."""

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared_context.model.pretrained import resolve_model
from shared_context.store.embedder import resolve_default_embedder

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
QUESTION = "How warm is the drying room kept?"


@pytest.fixture(scope="module")
def weights() -> None:
    """What the examples find on this machine, so that they can run offline."""
    resolve_model("smollm2-135m-instruct")
    resolve_default_embedder()


def run(*arguments: str | Path, cwd: Path = ROOT) -> str:
    """What a Python program prints; it must end well."""
    unreachable = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **unreachable, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- the demo


@pytest.fixture(scope="module")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "demo.ctx"


@pytest.fixture(scope="module")
def demo(weights: None, demo_store: Path) -> str:
    """What the first run prints."""
    return run(EXAMPLES / "demo.py", demo_store)


def test_demo_answers_through_both_frameworks_with_sources_and_figures(demo: str):
    llamaindex, langchain = re.split(r"^== LangChain", demo, flags=re.MULTILINE)
    for printed in (llamaindex, langchain):
        assert len(re.findall(r"^    answer +\S", printed, re.MULTILINE)) == 3
        assert len(re.findall(r"^    handbook +\S", printed, re.MULTILINE)) == 3
        assert len(re.findall(r"^    sources +\S.* \(characters [\d,]+ to [\d,]+\):$", printed, re.MULTILINE)) == 3
        used = [int(entries) for entries in re.findall(r"^    KV +(\d+) entries", printed, re.MULTILINE)]
        assert len(used) == 3 and all(0 < entries <= 256 for entries in used)
        assert len(re.findall(r"^ +(first token +)?[\d.]+ s \(", printed, re.MULTILINE)) == 6


def test_demo_finds_the_passage_that_answers(demo: str):
    asked = demo.partition(QUESTION)[2].partition("first token")[0]
    assert "Bunkhouse, laundry and drying room" in asked
    assert "is held at 41 °C" in asked


def test_demo_tells_cold_from_warm(demo: str):
    assert re.search(r"first token +[\d.]+ s \(cold, KV of \d chunks? computed\)\n +[\d.]+ s \(warm", demo)
    injected, pasted = re.search(r"([\d.]+) s injected and warm, ([\d.]+) s pasted as text", demo).groups()
    assert float(injected) < float(pasted)


def test_demo_says_where_its_store_lies(demo: str, demo_store: Path):
    assert f"Kept in {os.path.relpath(demo_store, ROOT)} (" in demo
    assert demo_store.is_dir()


@pytest.mark.slow
def test_second_demo_neither_compresses_nor_computes_again(demo: str, demo_store: Path):
    second = run(EXAMPLES / "demo.py", demo_store)
    assert "found compressed" in second
    assert "computed" not in second
    answer = re.compile(r"^    answer +(.+)$", re.MULTILINE)
    assert answer.findall(second) == answer.findall(demo)


# ---- the pairs


@pytest.mark.slow
@pytest.mark.parametrize("way", ["chunked_rag", "shared_context"])
@pytest.mark.parametrize("framework", ["llamaindex", "langchain"])
def test_pair_answers_a_question_of_ones_own(weights: None, framework: str, way: str):
    question, answer, *sources = run(EXAMPLES / f"{framework}_{way}.py", QUESTION).strip().splitlines()
    assert question == QUESTION
    assert answer.strip()
    assert sources and all(source.startswith("  source: handbook.md, ") for source in sources)


@pytest.mark.parametrize("framework", ["llamaindex", "langchain"])
def test_pair_differs_in_the_swap_alone(framework: str):
    before, after = (
        (EXAMPLES / f"{framework}_{way}.py").read_text(encoding="utf-8").splitlines()
        for way in ("chunked_rag", "shared_context")
    )
    added = [line[2:] for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    title, command, *code = added
    assert title.startswith('"""') and command.startswith("python examples/")
    assert len(code) <= 3 and len(after) < len(before)


# ---- the other examples


@pytest.mark.slow
def test_chat_recalls_a_turn_that_left_the_window(weights: None):
    printed = run(EXAMPLES / "chat_with_memory.py")
    kept, compressed = map(int, re.search(r"the last (\d+) word for word, (\d+) compressed", printed).groups())
    assert kept and compressed
    asked = printed.partition("What is the code of my lock?")[2].partition("user:       ")[0]
    assert "the code of its lock is 8264" in asked
    assert "8264" in asked.partition("assistant:")[2].partition("\n")[0]
    assert "8264" not in asked.partition("without them it answers:")[2]


@pytest.mark.slow
def test_many_documents_are_narrowed_by_prefilter_and_filters(weights: None):
    printed = run(EXAMPLES / "many_documents.py")
    sources = {
        options: set(names.split("; "))
        for options, names in re.findall(r"^  (\S.*)\n    answer .*\n    sources  (.+)$", printed, re.MULTILINE)
    }
    everything, prefiltered, pilotage, _ = sources.values()
    assert "Eating at night" in everything & prefiltered
    assert len(prefiltered) <= 5
    assert pilotage <= {
        "The pilots' station",
        "Which ships must take a pilot",
        "Boarding and landing",
        "How the pilots take their turns",
        "Becoming a pilot",
    }


# ---- the data


def test_every_answer_stands_word_for_word_in_the_handbook():
    handbook = (EXAMPLES / "data" / "handbook.md").read_text(encoding="utf-8")
    articles = json.loads((EXAMPLES / "data" / "handbook-questions.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    questions = [qa for paragraph in paragraphs for qa in paragraph["qas"]]
    assert len({qa["id"] for qa in questions}) == len(questions) == 40
    for paragraph in paragraphs:
        assert handbook.count(paragraph["context"]) == 1
        for qa in paragraph["qas"]:
            for answer in qa["answers"]:
                start = answer["answer_start"]
                assert paragraph["context"][start : start + len(answer["text"])] == answer["text"], qa["id"]
