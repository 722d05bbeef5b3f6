"""A folder of sixty mixed files from its first ingestion to its removal: by commands, by code, in both frameworks."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared_context import SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.cli import session
from shared_context.cli.main import app
from shared_context.integrations.langchain import SharedContextChain
from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM

COUNTS = {".md": 12, ".txt": 8, ".html": 8, ".csv": 6, ".json": 6, ".py": 6, ".pdf": 4, ".docx": 3, ".pptx": 2}
COUNTS |= {".xlsx": 1, "": 1}
BAD = ["empty.md", "torn.pdf"]
NO_TEXT = ["logo.png"]
QUESTION = "Where does the pelican keep its umbrella?"
ANSWER = "The pelican keeps its umbrella in the cellar"


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture
def folder(tmp_path, monkeypatch, make_file):
    """Sixty files in a folder ``lockers`` of the working directory, three of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    Path("lockers/more").mkdir(parents=True)
    number = 0
    for suffix, count in COUNTS.items():
        for _ in range(count):
            number += 1
            place = Path("lockers/more" if number % 3 == 0 else "lockers", f"locker-{number}{suffix}")
            make_file(place, f"The word of locker {number} is {word(number)}.")
    for name, content in zip([*BAD, *NO_TEXT], [b"", b"%PDF-1.4 torn", b"\x89PNG\r\n\x1a\n"], strict=True):
        Path("lockers", name).write_bytes(content)
    assert sum(path.is_file() for path in Path("lockers").rglob("*")) == 60
    return Path("lockers")


def word(number):
    """A word for each number, made of syllables."""
    return "".join(("ba", "ke", "lo", "mi", "nu", "po", "ra")[number // 7**place % 7] for place in range(3))


def edit_and_delete():
    Path("lockers/locker-7.md").write_text(f"{ANSWER}, in locker 7.")
    Path("lockers/locker-8.md").unlink()


def check_both_frameworks(path, small):
    """Both find what the store holds now, and answer from it."""
    llm = SharedLLM(model=small, max_new_tokens=2)
    with SharedLLMContextStore(small, path) as store:
        response = SharedContextIndex.from_store(store, llm).as_query_engine(budget=64).query(QUESTION)
        assert ANSWER in " ".join(node.text for node in response.source_nodes)
        chain = SharedContextChain.from_store(store, budget=64)
        shown = chain.invoke({"input": QUESTION})["context"]
        assert ANSWER in " ".join(document.page_content for document in shown)


def run_json(*args, exit_code=0):
    result = CliRunner().invoke(app, [str(arg) for arg in (*args, "--json")])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def test_by_commands(folder, small, monkeypatch):
    monkeypatch.setattr(session, "load_model", lambda name, **loading: small)
    ingested = run_json("ingest", "all.ctx", folder, "--no-embedder", "--chunk-size", 64, exit_code=3)
    assert len(ingested["added"]) == 57
    assert set(ingested["refused"]) == {f"lockers/{name}" for name in BAD}
    assert set(ingested["skipped"]) == {f"lockers/{name}" for name in NO_TEXT}
    assert len(run_json("list", "all.ctx")["documents"]) == 57

    edit_and_delete()
    synced = run_json("sync", "all.ctx", folder, exit_code=3)
    assert (synced["added"], synced["replaced"], synced["removed"]) == (
        [],
        ["lockers/locker-7.md"],
        ["lockers/locker-8.md"],
    )
    assert len(synced["unchanged"]) == 55 and len(synced["skipped"]) == 3
    for kind in ".html", ".pdf", ".docx", ".pptx", ".xlsx", ".csv":
        (one, *_) = (line["id"] for line in run_json("list", "all.ctx")["documents"] if line["id"].endswith(kind))
        number = int(one.partition("-")[2].removesuffix(kind))
        assert f"locker {number} is {word(number)}" in run_json("show", "all.ctx", one)["text"]
    asked = run_json("ask", "all.ctx", QUESTION, "--budget", 64, "--max-new-tokens", 2)
    assert ANSWER in " ".join(source["text"] for source in asked["sources"])
    check_both_frameworks("all.ctx", small)

    run_json("rm", "all.ctx", *(line["id"] for line in run_json("list", "all.ctx")["documents"]))
    assert run_json("list", "all.ctx") == {"documents": []}
    assert run_json("stats", "all.ctx")["kv_cache"]["disk"]["entries"] == 0


def test_by_code(folder, small, caplog):
    with SharedLLMContextStore(
        small, "all.ctx", config=StoreConfig(tree=TreeConfig(chunk_size=64)), embedder=None
    ) as store:
        assert len(store.add(folder)) == len(store) == 57
        for name in [*BAD, *NO_TEXT]:
            assert f"lockers/{name}" in caplog.text
        edit_and_delete()
        done = store.sync(folder)
        assert (done.added, done.replaced, done.removed) == ((), ("lockers/locker-7.md",), ("lockers/locker-8.md",))
        assert len(done.unchanged) == 55 and set(done.skipped) == {f"lockers/{name}" for name in [*BAD, *NO_TEXT]}
    check_both_frameworks("all.ctx", small)
    with SharedLLMContextStore(small, "all.ctx") as store:
        store.delete(store.ids())
        assert len(store) == 0 and store.stats()["kv_cache"]["disk"]["entries"] == 0
