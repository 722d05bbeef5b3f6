"""What the command does before, or without, loading a model."""

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from shared_context import __version__
from shared_context.cli.main import app
from shared_context.cli.options import parse_bytes, parse_filters, parse_metadata

COMMANDS = [
    "ingest",
    "sync",
    "ask",
    "chat",
    "search",
    "inspect",
    "list",
    "show",
    "rm",
    "export",
    "stats",
]
COMMANDS += ["gc", "compact", "copy", "check", "models", "grains", "probe", "report", "eval", "bench", "train"]


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


# ---- help, version, usage


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_explains_the_exit_codes(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Exit codes: 0 done" in result.stdout
    if not command:
        assert all(name in result.stdout for name in COMMANDS)


def test_help_imports_nothing_heavy():
    program = (
        "import sys\n"
        "from shared_context.cli.main import app\n"
        "for command in [], *([name] for name in sys.argv[1:]):\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'sentence_transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *COMMANDS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


@pytest.mark.parametrize("command", [[], ["ask"], ["eval"], ["eval", "answers"]])
def test_help_has_a_short_name(command):
    assert run(*command, "-h").stdout == run(*command, "--help").stdout != ""


def test_the_shell_is_told_how_to_complete():
    program = "from shared_context.cli.main import app; app(prog_name='shared-context')"
    environment = {
        **os.environ,
        "_SHARED_CONTEXT_COMPLETE": "complete_bash",
        "COMP_WORDS": "shared-context s",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert set(done.stdout.split()) == {"sync", "search", "serve", "show", "stats"}


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"shared-context {__version__}\n")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fetch"],
        ["ask", "some.ctx"],
        ["ask", "some.ctx", "Why?", "--policy", "bm25"],
        ["ask", "some.ctx", "Why?", "--filter", "year"],
        ["ask", "some.ctx", "Why?", "--filter", "{year: 2024}"],
        ["inspect", "some.ctx", "Why?", "--coarse", "none,two"],
        ["inspect", "some.ctx", "Why?", "--json", "--html", "page.html"],
        ["ask", "some.ctx", "Why?", "--kv-limit", "much"],
        ["gc", "some.ctx", "--keep", "-1"],
    ],
)
def test_wrong_usage_ends_with_2(args):
    result = run(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# ---- filters and metadata


@pytest.mark.parametrize(
    "given, value",
    [
        ("year=2024", 2024),
        ("year=2024.5", 2024.5),
        ('year="2024"', "2024"),
        ("year=MMXXIV", "MMXXIV"),
        ("year=true", True),
        ("year=NaN", "NaN"),  # JSON has no such number
        ("year=", ""),
        ("year=a=b", "a=b"),
    ],
)
def test_a_value_is_json_or_a_string(given, value):
    assert parse_metadata([given]) == {"year": value}
    assert parse_filters([given]) == {"$and": [{"year": value}]}


@pytest.mark.parametrize(
    "given, value", [("0", 0), ("1500", 1500), ("500MB", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("2k", 2000), (None, None)]
)
def test_sizes(given, value):
    assert parse_bytes(given, "--kv-limit") == value


def test_filters_add_up_and_take_operators():
    assert parse_filters(["a=1", "a=2", '{"b": {"$gte": 3}}']) == {"$and": [{"a": 1}, {"a": 2}, {"b": {"$gte": 3}}]}
    assert parse_filters(None) is None
    assert parse_metadata([]) is None


@pytest.mark.parametrize("given", ["year", "=2024", ""])
def test_what_is_no_pair_is_refused(given):
    with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
        parse_filters([given])


# ---- stores that are none


@pytest.mark.parametrize(
    "command", [["ask", "Why?"], ["inspect", "Why?"], ["chat"], ["stats"], ["list"], ["gc"], ["compact"]]
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_missing_store_is_not_made(tmp_path, command, exists):
    path = tmp_path / "typo.ctx"
    if exists:
        path.mkdir()
    name, *rest = command
    result = run(name, path, *rest)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"there is no store in {path}" in result.stderr and "ingest" in result.stderr
    assert path.exists() == exists and not (exists and any(path.iterdir()))


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear all")
    for args in ["ask", tmp_path, "Why?"], ["ingest", tmp_path, tmp_path / "letter.txt"]:
        result = run(*args)
        assert result.exit_code == 1
        assert "not a store" in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


# ---- bad documents


@pytest.fixture
def mixed(tmp_path):
    """A folder with a good, a binary and an empty file."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "good.md").write_text("The kettle is in the blue cupboard.")
    (folder / "binary.txt").write_bytes(b"\x00\x01\x02")
    (folder / "empty.md").write_text("")
    return folder


def test_every_bad_document_is_named_and_no_store_is_made_when_strict(mixed, tmp_path):
    store = tmp_path / "new.ctx"
    result = run("ingest", store, mixed, tmp_path / "nowhere.md", "--strict")
    assert result.exit_code == 1
    for name, reason in ("binary.txt", "binary"), ("empty.md", "empty"), ("nowhere.md", "no file"):
        assert any(name in line and reason in line for line in result.stderr.splitlines())
    assert "good.md" not in result.output
    assert not store.exists()


def test_nothing_is_left_where_all_are_bad(mixed, tmp_path):
    result = run("ingest", tmp_path / "new.ctx", mixed / "binary.txt")
    assert result.exit_code == 1 and "Nothing was stored" in result.stderr
    assert not (tmp_path / "new.ctx").exists()


def test_bad_documents_as_json(mixed, tmp_path):
    (mixed / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = run("ingest", tmp_path / "new.ctx", mixed, "--json", "--strict")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert list(report["skipped"]) == [str(mixed / "logo.png")] and "PNG" in result.stderr
    assert (report["added"], report["tokens"]) == ([], 0)
    assert set(report["refused"]) == {str(mixed / "binary.txt"), str(mixed / "empty.md")}


# ---- models


def test_models_lists_one_default():
    listed = json.loads(run("models", "--json").stdout)["models"]
    assert [model["name"] for model in listed if model["default"]] == ["smollm2-135m-instruct"]
    assert all(model["downloaded"] == (model["folder"] is not None) for model in listed)
    shown = run("models").stdout
    assert all(model["name"] in shown for model in listed)
