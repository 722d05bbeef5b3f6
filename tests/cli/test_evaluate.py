"""eval, bench and report on the command line."""

import json
import sys

import pytest
from typer.testing import CliRunner

from shared_context.cli import session
from shared_context.cli.main import app
from shared_context.evaluation.report import Lines, Point, Report, Series


@pytest.fixture(autouse=True)
def loaded(model, monkeypatch):
    """One model stands for all that are asked for; what was asked for is kept."""
    asked = []
    monkeypatch.setattr(session, "load_model", lambda *given: asked.append(given) or model)
    return asked


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def questions(tmp_path):
    """A folder of two documents with a question about each."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gate.md").write_text("The gate is opened by the warden at six in the morning. " * 4)
    (tmp_path / "data" / "lamp.md").write_text("The lamp burns colza oil, which is kept in the cellar. " * 4)
    rows = [
        {"question": "When is the gate opened?", "answers": ["six in the morning"], "document": "gate.md"},
        {"question": "What does the lamp burn?", "answers": ["colza oil"], "document": "lamp.md"},
    ]
    (tmp_path / "data" / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "data"


def test_retrieval_on_a_folder_prints_tables_and_writes_both_files(questions, tmp_path):
    results, page, state = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "r.state"
    options = ["--tokens", 128, "--limit", 1, "--seed", 5, "--json", results, "--html", page, "--resume", state]
    result = run("eval", "retrieval", questions, *options)
    assert result.exit_code == 0, result.output
    assert "## retrieval" in result.stdout and "| hybrid" in result.stdout
    (report,) = json.loads(results.read_text())["reports"]
    assert (report["setting"]["questions"], report["setting"]["documents"]) == (1, 2)
    assert page.read_text().startswith("<!doctype html>") and "<svg" in page.read_text()
    again = run("eval", "retrieval", questions, *options)
    assert again.stdout == result.stdout


@pytest.mark.parametrize("command", ["retrieval", "answers"])
def test_data_that_is_none_is_named(command, tmp_path):
    path = tmp_path / "letter.json"
    path.write_text("Dear all")
    for data, name in (path, "letter.json"), (tmp_path / "missing.json", "missing.json"):
        result = run("eval", command, data)
        assert result.exit_code == 1
        assert name in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["--json", "--html", "--resume"])
def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_loaded(option, questions, loaded, tmp_path):
    for file in tmp_path / "missing" / "file", tmp_path:
        result = run("eval", "retrieval", questions, option, file)
        assert result.exit_code == 2 and option in result.stderr, result.output
    assert loaded == [] and not (tmp_path / "missing").exists()


@pytest.mark.parametrize("part", [(), ("--part", "grains")])
def test_what_cannot_be_resumed_is_refused(part, questions, loaded, tmp_path):
    result = run("eval", "compression", questions, *part, "--resume", tmp_path / "state")
    assert result.exit_code == 2 and "selections" in result.stderr
    assert loaded == [] and not (tmp_path / "state").exists()


def test_what_was_measured_is_kept_where_a_later_measurement_fails(questions, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("shared_context.evaluation.ingest.measure", fail)
    results, page = tmp_path / "b.json", tmp_path / "b.html"
    only = ["--only", "decoding", "--only", "ingest", "--context-tokens", 100_000]  # more than there is: not run
    result = run("bench", "latency", questions, *only, "--json", results, "--html", page)
    assert result.exit_code == 1 and "## decoding" in result.stdout
    assert [report["name"] for report in json.loads(results.read_text())["reports"]] == ["decoding"]
    assert f"<h1>{questions.name}: decoding</h1>" in page.read_text()


INGEST = ["--only", "ingest", "--tokens", 512, "--windows", 1, "--runs", 1]


def test_bench_measures_only_what_is_asked_for(questions, tmp_path):
    results = tmp_path / "b.json"
    result = run("bench", "latency", questions, *INGEST, "--json", results)
    assert result.exit_code == 0, result.output
    (report,) = json.loads(results.read_text())["reports"]
    assert report["name"] == "ingest" and report["setting"]["adapter"] == "none"  # the model of these tests has none


@pytest.mark.parametrize(("given", "wanted"), [([], None), (["--adapter", "factoid"], "factoid")])
def test_bench_measures_the_model_as_it_is_by_default_and_with_an_adapter_by_name(questions, loaded, given, wanted):
    assert run("bench", "latency", questions, *INGEST, *given).exit_code == 0
    ((_, adapter, *_),) = loaded
    assert adapter == wanted


@pytest.mark.parametrize(
    "command",
    [
        ("eval", "retrieval"),
        ("eval", "evidence"),
        ("eval", "answers"),
        ("eval", "compression"),
        ("eval", "needle"),
        ("eval", "language-model"),
        ("grains", "a-model"),
    ],
)
def test_every_measurement_loads_its_model_as_one_says(command, loaded, tmp_path):
    run(*command, tmp_path / "missing.json", "--dtype", "float32", "--device", "cpu")
    ((*_, dtype, device),) = loaded
    assert (dtype, device) == ("float32", "cpu")


def test_marked_evidence_is_measured(tmp_path):
    text = "The gate is opened by the warden at six in the morning. The lamp burns colza oil. " * 2
    asked = [("When is the gate opened?", 0, 54), ("What does the lamp burn?", 55, 81)]
    questions = [{"question": question, "evidence": [[start, end]]} for question, start, end in asked]
    (tmp_path / "marked.jsonl").write_text(json.dumps({"text": text, "questions": questions}))
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": text, "questions": questions[:1]}))
    result = run("eval", "evidence", tmp_path / "one.jsonl")
    assert result.exit_code == 1 and "control" in result.stderr
    options = ["--limit", 1, "--tokens", 64, "--html", tmp_path / "page.html"]
    result = run("eval", "evidence", tmp_path / "marked.jsonl", *options)
    assert result.exit_code == 0, result.output
    assert "## evidence" in result.stdout
    assert "marked.jsonl" in (tmp_path / "page.html").read_text()


def test_bench_without_the_frameworks_says_what_to_install(questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.first_token", None)
    monkeypatch.delattr("shared_context.evaluation.first_token", raising=False)
    result = run("bench", "latency", questions, "--only", "first-token")
    assert result.exit_code == 0, result.output
    assert "**Not run**" in result.stdout and "sharedllm[eval]" in result.stdout


def test_compression_needs_the_frameworks_only_where_it_measures_against_them(questions, monkeypatch):
    for name in "compression", "baselines":
        monkeypatch.delattr(f"shared_context.evaluation.{name}", raising=False)
        monkeypatch.delitem(sys.modules, f"shared_context.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.baselines", None)
    for part, missing in ("passages", "A wrong passage"), ("grains", "sharedllm[eval]"):
        result = run("eval", "compression", questions, "--part", part)
        assert result.exit_code == 1 and missing in result.stderr, result.output


# ---- report


@pytest.fixture
def results(tmp_path):
    """Two runs of a measurement and one of another."""
    paths = []
    for file, name, y in ("before.json", "speed", 1.0), ("after.json", "speed", 0.5), ("other.json", "size", 2.0):
        report = Report(name, {}, [Lines("Time", "tokens", "s", [Series("ours", [Point(128, y)])])])
        paths.append(tmp_path / file)
        paths[-1].write_text(json.dumps({"reports": [report.as_json()]}))
    return paths


def test_two_runs_are_compared(results, tmp_path):
    page = tmp_path / "page.html"
    result = run("report", *results[:2], "--html", page)
    assert (result.exit_code, result.stdout) == (0, "") and "page.html" in result.stderr
    assert "before and after" in page.read_text() and "-0.500" in page.read_text()


def test_results_are_put_together(results, tmp_path):
    page = tmp_path / "page.html"
    assert run("report", *results, "--together", "--html", page).exit_code == 0
    assert page.read_text().count("<section") == 3
    assert run("report", results[0], "--html", page).exit_code == 0
    assert page.read_text().count("<section") == 1


def test_what_cannot_be_compared_is_refused(results, tmp_path):
    page = tmp_path / "page.html"
    assert run("report", *results, "--html", page).exit_code == 2
    result = run("report", results[0], results[2], "--html", page)
    assert result.exit_code == 1 and "nothing in common" in result.stderr
    assert not page.exists()
