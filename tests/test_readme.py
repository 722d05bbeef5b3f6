"""Every block of the README does what the README says, run as a reader runs it, without a network."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from shared_context.cli.main import app
from shared_context.model.pretrained import resolve_model
from shared_context.store.embedder import resolve_default_embedder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SWAPS = re.findall(r"^```diff\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
# Four blanks outside of fences; programs have such lines, too.
SHELL = re.findall(
    r"(?:^    \S.*\n)+", re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
)
LINES = [line.strip() for block in SHELL for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("shared-context ")]


def block(beginning: str) -> str:
    """The shell block that begins so."""
    (found,) = [text for text in SHELL if text.strip().startswith(beginning)]
    return re.sub(r"^    ", "", found, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def weights() -> None:
    """What programs find on this machine, so that they can run offline."""
    resolve_model("smollm2-135m-instruct")
    resolve_default_embedder()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the README takes from a checkout."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "docs")
    return tmp_path


def run(*command: str, cwd: Path, stdin: str = "") -> str:
    """What a command prints; it must end well."""
    unreachable = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    # The command of the environment that runs this test; a reader's is on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **unreachable, **here},
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=1800,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- what can be said without running it


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_takes_what_it_is_given(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, arguments = typer.main.get_command(app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        command = command.commands[name]
    command.make_context("shared-context", arguments)  # raises what it cannot take


def test_every_target_is_one_of_the_makefile():
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}\b.*:", makefile, re.MULTILINE)] == []


def test_every_extra_is_one_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = set(re.findall(r"pip install -e '\.\[([\w,]+)\]'", README))
    assert "demo" in named and named <= extras.keys()


# ---- what has to be run


@pytest.mark.slow
def test_the_first_program_prints_what_was_shown_and_the_answer(weights, checkout):
    *shown, answer = run(sys.executable, "-c", PROGRAMS[0], cwd=checkout).strip().splitlines()
    assert shown and all(re.match(r"examples/data/handbook.md \d+ \d+ \S", line) for line in shown)
    assert "41 °C" in answer


@pytest.mark.slow
def test_the_core_in_one_block_runs(weights, checkout):
    assert run(sys.executable, "-c", PROGRAMS[1], cwd=checkout).strip()


@pytest.mark.slow
def test_an_answer_changes_with_the_document(weights, checkout):
    printed = run("bash", "-euc", block("cp examples/data/handbook.md"), cwd=checkout)
    before, after = re.findall(r"^(?=.*°C).*\n(?=\nSources)", printed, re.MULTILINE)
    assert "41 °C" in before and "52 °C" in after


def side(diff: str, sign: str) -> str:
    """The program before (``-``) or after (``+``) a diff."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in ("", " ", sign))


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["-", "+"])
@pytest.mark.parametrize("number", range(len(SWAPS)))
def test_both_sides_of_a_swap_run(weights, checkout, number, sign):
    printed = run(sys.executable, "-c", side(SWAPS[number], sign), cwd=checkout / "examples")
    answer, sources = printed.strip().rsplit(" ", 1)
    assert answer and int(sources) > 0


@pytest.mark.slow
def test_the_commands_run_in_this_order(weights, checkout):
    lines = [line for line in block("shared-context ingest handbook.ctx docs/").splitlines() if " train " not in line]
    asked = "How warm is the drying room kept?"
    printed = [run("bash", "-euc", line, cwd=checkout, stdin=f"{asked}\n") for line in lines]
    assert all(text.strip() for line, text in zip(lines, printed, strict=True) if " copy " not in line)
    (answer,) = [text for line, text in zip(lines, printed, strict=True) if " ask " in line]
    assert "41 °C" in answer
