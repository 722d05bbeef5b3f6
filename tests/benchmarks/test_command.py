"""``python -m benchmarks``, and `make figures`, which calls it."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from benchmarks.__main__ import app
from shared_context.cli import main, session

ROOT = Path(__file__).parents[2]
RECIPE = re.search(r"\nfigures: .+?\n\n", (ROOT / "Makefile").read_text(encoding="utf-8"), re.DOTALL)[0]
STEPS = re.findall(r"\t@\$\(BIN\)/(?:python -m )?(benchmarks|shared-context) (.+)\n", RECIPE)


def test_a_measurement_prints_tables_and_writes_its_numbers(model, few_questions, monkeypatch, tmp_path):
    monkeypatch.setattr(session, "load_model", lambda *given: model)
    results = tmp_path / "storage.json"
    done = CliRunner().invoke(app, ["storage", str(few_questions), "--length", "512", "--json", str(results)])
    assert done.exit_code == 0 and "## storage" in done.stdout, done.output
    assert [report["name"] for report in json.loads(results.read_text())["reports"]] == ["storage"]


@pytest.mark.parametrize(("program", "arguments"), STEPS, ids=[arguments for _, arguments in STEPS])
def test_every_step_of_make_figures_takes_what_it_is_given(program, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    command = typer.main.get_command(app if program == "benchmarks" else main.app)
    given = shlex.split(arguments.replace("$(QUESTIONS)", str(ROOT / "examples" / "data" / "handbook-questions.json")))
    while hasattr(command, "commands"):
        command = command.commands[given.pop(0)]
    command.make_context(program, given)  # raises what it cannot take


def test_every_measurement_of_the_program_is_one_of_the_figures():
    """Left out is what needs more than a machine: kvpress, vLLM, Ray, an address to publish to."""
    steps = {arguments.split()[0] for program, arguments in STEPS if program == "benchmarks"}
    assert steps | {"presses", "serving", "ray-ingest", "published"} == set(typer.main.get_command(app).commands)
