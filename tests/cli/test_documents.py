"""The commands that list, show, find, change and remove what a store holds, on a small model."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared_context import SharedLLMContextStore
from shared_context.cli import session
from shared_context.cli.main import app

TEXTS = {
    "gate.md": "The gate opens at six. Its key hangs behind the clock.",
    "lamp.txt": "The lamp is lit at dusk and put out at dawn.",
    "guides/boat.md": "The boat leaves from berth four.",
}


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture(autouse=True)
def _one_model(small, monkeypatch):
    monkeypatch.setattr(session, "load_model", lambda name, **loading: small)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A working directory with a folder ``docs`` of three files and a store ``house.ctx`` of it."""
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        write(Path("docs", name), text)
    assert run("ingest", "house.ctx", "docs", "--no-embedder", "--chunk-size", 64).exit_code == 0
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run(*args, **options):
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def run_json(*args, exit_code=0, **options):
    result = run(*args, "--json", **options)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


# ---- list, show, rm, export, search


def test_list_names_every_document(house):
    listed = run_json("list", "house.ctx")["documents"]
    assert {line["id"]: line["characters"] for line in listed} == {
        f"docs/{name}": len(text) for name, text in TEXTS.items()
    }
    shown = run("list", "house.ctx").stdout
    assert all(f"docs/{name}" in shown for name in TEXTS)
    assert len(run_json("list", "house.ctx", "--filter", "file_name=lamp.txt")["documents"]) == 1


def test_show_prints_the_text_as_it_is_stored(house):
    assert run("show", "house.ctx", "docs/gate.md").stdout == TEXTS["gate.md"] + "\n"
    shown = run_json("show", "house.ctx", "docs/gate.md")
    assert (shown["text"], shown["metadata"]["file_name"]) == (TEXTS["gate.md"], "gate.md")


def test_rm_removes_all_or_none(house):
    refused = run("rm", "house.ctx", "docs/gate.md", "docs/cellar.md")
    assert refused.exit_code == 1
    assert "'docs/cellar.md'" in refused.stderr and "`shared-context list house.ctx`" in refused.stderr
    assert len(run_json("list", "house.ctx")["documents"]) == 3
    assert run_json("rm", "house.ctx", "docs/gate.md") == {"removed": ["docs/gate.md"]}
    assert run("rm", "house.ctx", "--filter", "file_name=lamp.txt").exit_code == 0
    assert [line["id"] for line in run_json("list", "house.ctx")["documents"]] == ["docs/guides/boat.md"]


@pytest.mark.parametrize("args", [[], ["docs/gate.md", "--filter", "file_name=gate.md"]])
def test_rm_is_told_what_in_one_way(house, args):
    assert run("rm", "house.ctx", *args).exit_code == 2


def test_conversations_are_listed_shown_and_removed(house, small):
    with SharedLLMContextStore(small, "house.ctx") as store:
        store.conversation("alice").append("user", "I am Alice.")
    assert run_json("list", "house.ctx", "--conversations") == {"conversations": [{"id": "alice", "messages": 1}]}
    assert run("show", "house.ctx", "alice", "--conversation").stdout == "user: I am Alice.\n"
    assert "list --conversations" in run("show", "house.ctx", "bob", "--conversation").stderr
    assert run("rm", "house.ctx", "alice", "--conversations").exit_code == 0
    assert run_json("list", "house.ctx", "--conversations") == {"conversations": []}


def test_export_writes_every_document_as_a_line(house):
    assert run("export", "house.ctx", "all.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert {row["id"]: row["text"] for row in rows} == {f"docs/{name}": text for name, text in TEXTS.items()}
    assert rows[0]["metadata"]["file_name"] == Path(rows[0]["id"]).name
    assert run("export", "house.ctx", "-").stdout == Path("all.jsonl").read_text()


def test_search_finds_passages_without_an_answer(house):
    found = run_json("search", "house.ctx", "Where does the boat leave?", "--k", 2)["passages"]
    assert len(found) == 2
    assert TEXTS[found[0]["doc_id"].removeprefix("docs/")][found[0]["start"] : found[0]["end"]] == found[0]["text"]
    shown = run("search", "house.ctx", "-", "-k", 1, input="Where does the boat leave?\n")
    assert shown.exit_code == 0 and "characters" in shown.stdout
    assert run("search", "house.ctx", "Where?", "--filter", "file_name=none").exit_code == 4


def test_sources_name_the_other_documents_that_say_the_same(house):
    name, text = next(iter(TEXTS.items()))
    write(Path("copy.md"), text)
    assert run("ingest", "house.ctx", "copy.md").exit_code == 0
    same = {f"docs/{name}", "copy.md"}
    for command in (["search", "house.ctx", text], ["ask", "house.ctx", text, "--max-new-tokens", 1]):
        told = run_json(*command)
        (found,) = [one for one in told.get("passages") or told["sources"] if one["doc_id"] in same]
        assert {found["doc_id"], *found["also_in"]} == same
        assert f"also in {found['also_in'][0]}" in run(*command).stdout


# ---- sync


def test_sync_follows_a_folder(house):
    os.utime("docs/lamp.txt")  # touched, not changed
    write(Path("docs/gate.md"), "The gate opens at seven.")
    write(Path("docs/new.md"), "The well is dry.")
    Path("docs/guides/boat.md").unlink()
    planned = run_json("sync", "house.ctx", "docs", "--dry-run")
    assert run_json("list", "house.ctx")["documents"][0]["id"] == "docs/gate.md"
    done = run_json("sync", "house.ctx", "docs")
    assert (
        planned
        == done
        == {
            "added": ["docs/new.md"],
            "replaced": ["docs/gate.md"],
            "removed": ["docs/guides/boat.md"],
            "unchanged": ["docs/lamp.txt"],
            "skipped": {},
        }
    )
    assert run("show", "house.ctx", "docs/gate.md").stdout == "The gate opens at seven.\n"
    again = run("sync", "house.ctx", "docs")
    assert again.stdout == "0 added, 0 replaced, 0 removed, 3 unchanged\n"


def test_sync_knows_a_file_whatever_its_path_is_written_like(house):
    done = run_json("sync", "house.ctx", house / "docs")
    assert (len(done["unchanged"]), done["added"], done["removed"]) == (3, [], [])


def test_sync_tells_a_link_from_the_file_that_it_leads_to(house):
    Path("docs/door.md").symlink_to("gate.md")
    assert run_json("sync", "house.ctx", "docs")["added"] == ["docs/door.md"]
    write(Path("docs/gate.md"), "The gate opens at eight.")
    assert run_json("sync", "house.ctx", "docs")["replaced"] == ["docs/door.md", "docs/gate.md"]
    assert run("show", "house.ctx", "docs/gate.md").stdout == "The gate opens at eight.\n"
    Path("docs/door.md").unlink()
    assert run_json("sync", "house.ctx", "docs")["removed"] == ["docs/door.md"]


def test_sync_leaves_other_documents_and_what_it_cannot_read(house, small):
    with SharedLLMContextStore(small, "house.ctx") as store:
        store.add("Said on the telephone.", id="call")
    write(Path("elsewhere.md"), "Another place.")
    assert run("ingest", "house.ctx", "elsewhere.md").exit_code == 0
    write(Path("docs/gate.md"), "")
    Path("docs/logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("sync", "house.ctx", "docs", "--exclude", "guides")
    assert done.exit_code == 3
    assert "gate.md' is empty" in done.stderr and "logo.png' is a PNG" in done.stderr
    assert "0 removed" in done.stdout
    listed = {line["id"] for line in run_json("list", "house.ctx")["documents"]}
    assert listed == {"call", "elsewhere.md", *(f"docs/{name}" for name in TEXTS)}
    assert run("show", "house.ctx", "docs/gate.md").stdout == TEXTS["gate.md"] + "\n"


def test_sync_of_a_folder_that_is_not_there_removes_nothing(house, small):
    assert run("sync", "house.ctx", "dcos").exit_code == 2
    with SharedLLMContextStore(small, "house.ctx") as store:
        with pytest.raises(Exception, match="'dcos' is no folder"):
            store.sync("dcos")
        assert len(store) == 3


def test_sync_makes_a_store(house):
    assert run_json("sync", "new.ctx", "docs", "--include", "*.md")["added"] == ["docs/gate.md", "docs/guides/boat.md"]


# ---- disk


def kept(path="house.ctx"):
    return run_json("stats", path)["kv_cache"]["disk"]


def test_what_is_kept_on_disk_is_said_and_bounded(house):
    assert run("ingest", "house.ctx", "docs", "--replace", "--warm").exit_code == 0
    one = kept()["bytes"] // kept()["entries"]
    asked = run("ask", "house.ctx", "When does the gate open?", "--max-new-tokens", 1, "--kv-limit", f"{2 * one}B")
    assert asked.exit_code == 0 and "of keys and values kept on disk" in asked.stderr
    assert kept()["bytes"] <= kept()["limit_bytes"] == 2 * one
    # It is the store's own from now on.
    assert run("ingest", "house.ctx", "docs", "--replace", "--warm").exit_code == 0
    assert 0 < kept()["bytes"] <= kept()["limit_bytes"] == 2 * one
    asked = run("ask", "house.ctx", "When does the gate open?", "--max-new-tokens", 1, "--kv-limit", "0")
    assert asked.exit_code == 0
    assert (kept()["bytes"], kept()["limit_bytes"]) == (0, 0)
    assert run("ask", "house.ctx", "When does the gate open?", "--max-new-tokens", 1).exit_code == 0
    assert kept()["bytes"] == 0


def test_gc_drops_what_no_document_needs(house):
    assert run("ingest", "house.ctx", "docs", "--replace", "--warm").exit_code == 0
    entries = kept()["entries"]
    stray = next(Path("house.ctx/kv").rglob("*.safetensors"))
    name = "ab" + "0" * (len(stray.stem) - 2)
    write(Path("house.ctx/kv/ab", f"{name}.safetensors"), "of a document that is gone")
    freed = run_json("gc", "house.ctx")
    assert freed["freed_bytes"] > 0 and kept()["entries"] == entries
    assert run_json("gc", "house.ctx", "--keep", "0")["kv_cache"]["bytes"] == 0
    assert kept()["limit_bytes"] > 0


def test_compact_gives_space_back(house, small):
    with SharedLLMContextStore(small, "house.ctx") as store:
        store.add("The pump. " * 5000, id="long")
        store.delete("long")
    sizes = run_json("compact", "house.ctx")
    assert sizes["after_bytes"] < sizes["before_bytes"] / 2
    assert len(run_json("list", "house.ctx")["documents"]) == 3


def test_copy_makes_a_store_of_its_own(house):
    assert run("copy", "house.ctx", "twin.ctx").exit_code == 0
    assert run("rm", "twin.ctx", "docs/gate.md").exit_code == 0
    assert len(run_json("list", "house.ctx")["documents"]) == 3
    assert len(run_json("list", "twin.ctx")["documents"]) == 2
    assert run("copy", "house.ctx", "twin.ctx").exit_code == 1
    assert run("copy", "house.ctx", "house.ctx").exit_code == 2


# ---- a question from a pipe, and the words of messages


def test_a_question_is_read_from_a_pipe(house):
    answer = run_json("ask", "house.ctx", "-", "--max-new-tokens", 1, input="When does\nthe gate open?\n")
    assert answer["question"] == "When does\nthe gate open?"
    assert run("ask", "house.ctx", "-", input=" \n").exit_code == 2


@pytest.mark.parametrize(
    "args, option",
    [
        (["ask", "house.ctx", "When?", "--budget", "0"], "--budget 0"),
        (["ask", "house.ctx", "When?", "--prefilter", "0"], "--prefilter 0"),
        (["ask", "house.ctx", "When?", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["inspect", "house.ctx", "When?", "--document", "docs/cellar.md"], "`shared-context list`"),
        (["ingest", "house.ctx", "docs/gate.md"], "--replace"),
        (["ingest", "house.ctx", "nowhere.md"], "check the path"),
        (["ingest", "new.ctx", "docs", "--chunk-size", "4096"], "--chunk-size"),
        (["ingest", "house.ctx", "docs", "--replace", "--chunk-size", "128"], "chunk_size"),
    ],
)
def test_messages_speak_of_commands_and_options(house, args, option):
    result = run(*args)
    assert result.exit_code == 1
    assert option in result.stderr
    assert not any(word in result.stderr for word in ("()", "(...", "budget=", "id=", "TreeConfig", "Document,"))


# ---- namespaces


def test_a_namespace_is_a_store_of_its_own(house):
    write(Path("own", "lamp.txt"), "The lamp of the tenant is lit at noon.")
    assert run("ingest", "house.ctx", "own", "--namespace", "tenant").exit_code == 0
    (own,) = run_json("list", "house.ctx", "--namespace", "tenant")["documents"]
    assert own["id"] == "own/lamp.txt"
    assert len(run_json("list", "house.ctx")["documents"]) == 3
    found = run_json("search", "house.ctx", "When is the lamp lit?", "--namespace", "tenant")["passages"]
    assert [passage["text"] for passage in found] == ["The lamp of the tenant is lit at noon."]
    assert run_json("namespaces", "house.ctx") == {"namespaces": [{"name": "tenant", "documents": 1}]}
    assert run_json("namespaces", "house.ctx", "--drop", "tenant") == {"namespaces": []}
    assert len(run_json("list", "house.ctx")["documents"]) == 3


def test_a_namespace_that_is_not_there_is_not_made_by_a_question(house):
    result = run("list", "house.ctx", "--namespace", "tenent")
    assert result.exit_code == 1 and "house.ctx has no namespaces" in " ".join(result.output.split())
    assert run_json("namespaces", "house.ctx") == {"namespaces": []}
