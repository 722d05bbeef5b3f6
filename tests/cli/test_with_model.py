"""The commands on the embedded default model, over three short documents."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared_context import SharedLLMContextStore
from shared_context.cli import session
from shared_context.cli.main import app
from shared_context.store import document_store

KITCHEN = """# The kitchen

The kettle is in the blue cupboard, behind the flour. Tea is at four o'clock, and whoever comes late washes the cups.
The oven is lit on Saturdays only, because coal is dear and the cook prefers the garden.

# Bread

Bread is baked by Ottilie Brandt, who keeps the sourdough in a stone jar called Gustav. Nobody but her may feed Gustav.
A loaf costs nothing to those who live here and one song to everyone else.
"""
GARDEN = """# The garden

The beans stand along the southern wall. They are watered before sunrise from the green barrel, never from the pond,
since the pond belongs to the newts. The newts were counted in May: there are forty-one.

# Bees

Three hives stand under the lime tree. The beekeeper is Casimir Oduya, and his smoker hangs in the shed by the gate.
Honey is taken in the second week of August, when the lime has finished.
"""
LIBRARY = """# The library

Books are lent for a month. The catalogue is a drawer of cards, and the key to the drawer hangs behind the atlas.
Maps may not leave the room. The oldest book is a herbal of 1612; it is shown on Sundays with clean hands.
"""
NEWTS = "How many newts are there?"


@pytest.fixture(autouse=True)
def _one_model(model, monkeypatch):
    """A model is loaded once, not by every command."""
    monkeypatch.setattr(session, "load_model", lambda name, **loading: model)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A working directory with a folder of documents."""
    monkeypatch.chdir(tmp_path)
    write_house(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """A store of the documents that tests share and do not change, filled by the command itself."""
    folder = tmp_path_factory.mktemp("shared")
    write_house(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(session, "load_model", lambda name, **loading: model)
        result = run("ingest", "house.ctx", "house", "--chunk-size", 128)
    assert result.exit_code == 0, result.output
    return folder / "house.ctx"


def write_house(folder):
    (folder / "house").mkdir()
    for name, text in ("kitchen.md", KITCHEN), ("garden.md", GARDEN), ("library.md", LIBRARY):
        (folder / "house" / name).write_text(text)


def run(*args, **options):
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def test_a_question_is_answered_by_the_model_loaded_as_one_says(store, model, monkeypatch):
    loaded = []
    monkeypatch.setattr(session, "load_model", lambda name, **loading: loaded.append(loading) or model)
    wanted = {"adapter": "factoid", "dtype": "float32", "device": "cpu"}
    options = [word for name, value in wanted.items() for word in (f"--{name}", value)]
    assert run("ask", store, NEWTS, "--max-new-tokens", 4, *options).exit_code == 0
    assert run("chat", store, "--max-new-tokens", 4, *options, input=f"{NEWTS}\n").exit_code == 0
    assert loaded == [wanted, wanted]


def run_json(*args, exit_code=0):
    """Standard output of a command as JSON; fails where there is anything else on it."""
    result = run(*args, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def reopened(model, path):
    """The documents that another program finds in a store."""
    with SharedLLMContextStore(model, path) as store:
        return {document.id: document for document in store}


# ---- ingest


def test_ingest_reports_what_landed(house, model):
    report = run_json("ingest", "new.ctx", "house", "--no-embedder", "--metadata", "year=2024", "--warm")
    ids = ["house/garden.md", "house/kitchen.md", "house/library.md"]
    assert (report["added"], report["replaced"], report["refused"]) == (ids, [], {})
    assert report["tokens"] == sum(model.count_tokens(text) for text in (GARDEN, KITCHEN, LIBRARY))
    documents = reopened(model, "new.ctx")
    assert documents["house/garden.md"].text == GARDEN
    assert documents["house/garden.md"].metadata["year"] == 2024
    figures = run_json("stats", "new.ctx")
    assert (figures["documents"], figures["embedder"]) == (3, None)
    assert figures["kv_cache"]["disk"]["entries"] == figures["chunks"]  # warm


def test_documents_that_are_there_are_replaced_only_when_asked(house, model):
    assert run("ingest", "new.ctx", "house/garden.md", "house/library.md", "--no-embedder").exit_code == 0
    Path("house/garden.md").write_text("All is weeds.")

    refused = run("ingest", "new.ctx", "house", "--strict")
    assert refused.exit_code == 1
    assert "house/garden.md" in refused.stderr and "--replace" in refused.stderr
    assert list(reopened(model, "new.ctx")) == ["house/garden.md", "house/library.md"]

    report = run_json("ingest", "new.ctx", "house", "--replace")
    assert report["added"] == ["house/kitchen.md"]
    assert report["replaced"] == ["house/garden.md", "house/library.md"]
    documents = reopened(model, "new.ctx")
    assert len(documents) == 3 and documents["house/garden.md"].text == "All is weeds."


def test_replaced_documents_keep_their_metadata(house, model):
    garden = "house/garden.md"
    given = ["--metadata", "year=2024", "--metadata", "place=garden"]
    assert run("ingest", "new.ctx", garden, "--no-embedder", *given).exit_code == 0
    Path(garden).write_text("All is weeds.")
    assert run("ingest", "new.ctx", garden, "--replace", "--metadata", "year=2025").exit_code == 0
    document = reopened(model, "new.ctx")[garden]
    assert document.text == "All is weeds."
    assert (document.metadata["year"], document.metadata["place"]) == (2025, "garden")


def test_a_document_that_cannot_be_replaced_is_named_and_the_others_are_when_asked(house, model, monkeypatch):
    assert run("ingest", "new.ctx", "house", "--no-embedder").exit_code == 0
    Path("house/garden.md").write_text("All is weeds. " * 2000)
    Path("house/kitchen.md").write_text("The kettle is gone.")
    monkeypatch.setattr(document_store, "MAX_KEPT_BYTES", 100_000)
    report = run_json("ingest", "new.ctx", "house", "--replace", "--strict", exit_code=1)
    assert list(report["refused"]) == ["house/garden.md"] and report["replaced"] == []
    assert reopened(model, "new.ctx")["house/kitchen.md"].text == KITCHEN
    report = run_json("ingest", "new.ctx", "house", "--replace", exit_code=3)
    assert list(report["refused"]) == ["house/garden.md"]
    assert report["replaced"] == ["house/kitchen.md", "house/library.md"]
    documents = reopened(model, "new.ctx")
    assert documents["house/garden.md"].text == GARDEN
    assert documents["house/kitchen.md"].text == "The kettle is gone."


def test_the_good_ones_of_a_batch_are_added(house, model):
    Path("house/photo.txt").write_bytes(b"\xff\xd8\xff\xe0")
    assert run("ingest", "new.ctx", "house/garden.md", "--no-embedder").exit_code == 0
    result = run("ingest", "new.ctx", "house")
    assert result.exit_code == 3
    assert "photo.txt" in result.stderr and "garden.md" in result.stderr
    assert "2 added" in result.stdout
    assert set(reopened(model, "new.ctx")) == {f"house/{name}.md" for name in ("garden", "kitchen", "library")}


def test_settings_that_contradict_the_store_are_refused(store, house):
    result = run("ingest", store, "house", "--chunk-size", 512)
    assert result.exit_code == 1
    assert "chunk_size" in result.stderr and "Traceback" not in result.stderr


# ---- ask


def test_ask_answers_as_the_library_does(store, model):
    answer = run_json("ask", store, NEWTS, "--budget", 96, "--max-new-tokens", 6)
    with SharedLLMContextStore(model, store) as opened:
        selection = opened.select(NEWTS, budget=96)
        assert answer["answer"] == model.generate(NEWTS, context=selection, max_new_tokens=6)
    assert answer["kv_entries"] == selection.kv_entries <= 96
    assert answer["policy"] == "hybrid"
    assert 0 < answer["time_to_first_token"] <= answer["seconds"]
    best = answer["sources"][0]
    assert best["doc_id"] == "house/garden.md"
    assert GARDEN[best["start"] : best["end"]] == best["text"]
    assert [node["score"] for node in answer["sources"]] == sorted(
        (node.score for node in selection.nodes), reverse=True
    )


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_ask_prints_answer_and_sources(store, stream):
    options = [store, NEWTS, "--budget", 96, "--max-new-tokens", 4]
    result = run("ask", *options, stream)
    answer, sources = result.stdout.split("\n\nSources\n")
    assert answer == run_json("ask", *options)["answer"]
    assert "house/garden.md  characters" in sources and "score" in sources
    assert "of 96 KV entries" in result.stderr and "first token after" in result.stderr


def test_ask_without_sources_prints_the_answer_alone(store):
    result = run("ask", store, NEWTS, "--no-sources", "--max-new-tokens", 4)
    assert result.exit_code == 0 and "Sources" not in result.stdout
    assert "cut off by --max-new-tokens" in result.stderr


def test_ask_without_context_shows_the_model_nothing(store):
    answer = run_json("ask", store, NEWTS, "--no-context", "--max-new-tokens", 4)
    assert (answer["kv_entries"], answer["sources"]) == (0, [])


def test_filter_and_prefilter_limit_the_documents(store):
    filtered = run_json("ask", store, NEWTS, "--filter", "file_name=library.md", "--max-new-tokens", 2)
    assert {node["doc_id"] for node in filtered["sources"]} == {"house/library.md"}
    nearest = run_json("ask", store, NEWTS, "--prefilter", 1, "--max-new-tokens", 2)
    assert {node["doc_id"] for node in nearest["sources"]} == {"house/garden.md"}


@pytest.mark.parametrize("command", [("ask", NEWTS), ("inspect", NEWTS), ("chat",)])
def test_no_document_to_answer_from_ends_with_4(store, command):
    name, *question = command
    result = run(name, store, *question, "--filter", "file_name=cellar.md", "--json", input=NEWTS)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "no document passes the filter" in result.stderr


@pytest.mark.parametrize(
    "options, named", [(["--budget", "0"], "budget"), (["--filter", '{"a": {"$near": 1}}'], "$near")]
)
def test_what_the_library_refuses_ends_with_1(store, options, named):
    result = run("ask", store, NEWTS, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ") and named in result.stderr


# ---- chat


def test_chat_answers_every_line_of_a_pipe_and_remembers(store):
    questions = f"{NEWTS}\n\n{'word ' * 9000}\nWho counted them?\n"
    result = run("chat", store, "--json", "--conversation", "pond", "--max-new-tokens", 3, input=questions)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["question"] for answer in answers] == [NEWTS, "Who counted them?"]
    assert answers[1]["prompt_tokens"] > answers[0]["prompt_tokens"] + answers[0]["completion_tokens"]
    assert result.exit_code == 1 and "9000 tokens" in result.stderr  # the second line is longer than the window

    again = run("chat", store, "--json", "--conversation", "pond", "--max-new-tokens", 2, input="And in June?\n")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["prompt_tokens"] > answers[1]["prompt_tokens"]


def test_old_turns_are_injected(store, model):
    with SharedLLMContextStore(model, store) as opened:
        memory = opened.conversation("long")
        memory.append("user", "My name is Philippa. " * 40)
        memory.append("assistant", "Good day, Philippa. " * 300)
        memory.append("user", "Let us talk about bees.")
    result = run(
        "chat", store, "--json", "--conversation", "long", "--budget", 64, "--max-new-tokens", 2, input="Hm?\n"
    )
    (answer,) = map(json.loads, result.stdout.splitlines())
    from_documents = sum(node["kv_entries"] for node in answer["sources"])
    assert from_documents < answer["kv_entries"] <= 64


def test_chat_without_a_name_leaves_nothing_behind(store, model):
    with SharedLLMContextStore(model, store) as opened:
        before = opened.conversations()
    result = run("chat", store, "--max-new-tokens", 4, input=NEWTS)
    assert result.exit_code == 0 and result.stdout.strip()
    with SharedLLMContextStore(model, store) as opened:
        assert opened.conversations() == before


# ---- inspect


def test_inspect_json_covers_each_document(store):
    shown = run_json("inspect", store, NEWTS, "--budget", 48, "--coarse", "none,none,8", "--full")
    assert shown["kv_entries"] <= 48
    seen = {}
    for document in shown["documents"]:
        spans = document["spans"]
        assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
        assert "".join(span["text"] for span in spans) == (store.parent / document["id"]).read_text()
        for span in spans:
            seen[span["grain"]] = seen.get(span["grain"], "") + span["text"]
            assert (span["ratio"] is None) == (span["score"] is None) == (span["grain"] == "unseen")
    assert "forty-one" in seen["fine"] and seen["coarse"] and seen["unseen"]


def test_inspect_marks_what_is_seen_without_colour(store):
    shown = run("inspect", store, NEWTS, "--budget", 32).stdout
    assert "house/garden.md" in shown and "house/library.md" not in shown
    seen = shown.partition("characters finely")[2]
    assert "forty-one" in seen[seen.index("\u27e6") : seen.index("\u27e7")]
    assert "beekeeper" in seen[seen.index("\u27e7") :]


def test_inspect_uses_colour_where_it_may(store):
    options = ["inspect", store, NEWTS, "--budget", 32]
    coloured = run(*options, env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "500"}).stdout
    assert "\x1b[" in coloured and "\u27e6" not in coloured
    bare = run(*options, env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "500", "NO_COLOR": "1"}).stdout
    assert "\u27e6" in bare


def test_inspect_shows_an_unseen_document_when_asked(store):
    shown = run_json("inspect", store, NEWTS, "--budget", 32, "--document", "house/library.md")
    (document,) = shown["documents"]
    assert [(span["grain"], span["text"]) for span in document["spans"]] == [("unseen", None)]
    unknown = run("inspect", store, NEWTS, "--document", "house/cellar.md")
    assert unknown.exit_code == 1 and "house/cellar.md" in unknown.stderr


def test_long_unseen_parts_are_elided_and_commands_to_the_terminal_are_shown(house):
    text = f"The gate code is 7731.\n{'Nothing happens here. ' * 100}\x1b[2J The end."
    Path("log.txt").write_text(text)
    assert run("ingest", "log.ctx", "log.txt", "--chunk-size", 64, "--no-embedder").exit_code == 0
    options = ["inspect", "log.ctx", "What is the gate code?", "--budget", 32]
    short, full = run(*options).stdout, run(*options, "--full").stdout
    assert "characters ...]" in short and short.count("Nothing") < 30
    assert full.replace("\u27e7", "").count("Nothing happens") == 100
    assert "\x1b" not in full and "\\x1b[2J The end." in full


def test_inspect_writes_a_page_that_stands_alone(store, tmp_path):
    page = tmp_path / "page.html"
    result = run("inspect", store, "How many <newts>?", "--budget", 32, "--html", page)
    assert (result.exit_code, result.stdout) == (0, "")
    html = page.read_text(encoding="utf-8")
    assert "&lt;newts&gt;" in html and "<newts>" not in html
    assert 'class="fine" title="ratio 1' in html and "//" not in html


# ---- in a process of its own


def command(*args):
    return [sys.executable, "-m", "shared_context.cli.main", *map(str, args)]


def test_stdout_of_a_real_process_is_json_alone(store):
    done = subprocess.run(
        command("ask", store, NEWTS, "--json", "--max-new-tokens", 4), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sources"]
    assert "Loading weights" not in done.stderr


@pytest.mark.posix
def test_interrupted_chat_ends_cleanly(store):
    with subprocess.Popen(
        command("chat", store, "--json", "--max-new-tokens", 4),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as chat:
        chat.stdin.write(f"{NEWTS}\n")
        chat.stdin.flush()
        assert json.loads(chat.stdout.readline())["question"] == NEWTS
        chat.send_signal(signal.SIGINT)
        _, stderr = chat.communicate(timeout=60)
    assert chat.returncode == 0
    assert "Traceback" not in stderr
