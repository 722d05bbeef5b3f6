"""What the package is called, and what it brings along."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import shared_context

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OTHER_PROJECT = re.compile(
    r"""shared[-_]context (?: \[(?:llamaindex|langchain|demo|eval|train|dev)\b | \s*[=>~]=\s*\d )
      | \b(?:install|pip3?|uv|uvx|pipx|poetry|pdm|conda) (?:[ \t]+[\w.-]+)* [ \t]+['"]?
        shared[-_]context\b (?![/.\w-])""",
    re.VERBOSE,
)
"""Words that have a reader install shared-context, which on the public index is another project."""


def texts() -> list[Path]:
    """Everything here that people read, or that pip does."""
    folders = ("shared_context", "benchmarks", "tests", "examples", "docs", ".ci", ".github")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")] + list(ROOT.glob("*"))
    kinds = {".py", ".md", ".toml", ".txt", ".lock", ".yml", ".yaml", ".json", ""}
    return [path for path in found if path.is_file() and path.suffix in kinds and path != Path(__file__)]


def asks_for_the_other_project(text: str) -> str | None:
    found = OTHER_PROJECT.search(text)
    return found.group() if found else None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install shared-context", True),
        ("pip install 'shared-context[demo]'", True),
        ('"uv add shared_context[train]"', True),
        ("uvx shared-context ask", True),
        ("demo = [\n'shared-context[llamaindex]']", True),
        ("shared-context>=0.1", True),
        ("pip install sharedllm; shared-context ask handbook.ctx", False),
        ("shared-context ingest handbook.ctx docs/", False),
        ("install it, then `shared-context models`", False),
    ],
)
def test_what_counts_as_asking_for_the_other_project(text, wrong):
    assert bool(asks_for_the_other_project(text)) is wrong


def test_nobody_is_told_to_install_the_other_project_of_that_name():
    assert PROJECT["name"] == "sharedllm"
    found = {path: asks_for_the_other_project(path.read_text(encoding="utf-8")) for path in texts()}
    assert {path: words for path, words in found.items() if words} == {}


def test_it_brings_types_along():
    assert Path(shared_context.__file__).with_name("py.typed").is_file()


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "shared_context", "--version"], capture_output=True, text=True)
    assert done.stdout == f"shared-context {shared_context.__version__}\n"
