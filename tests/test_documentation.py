"""README and docs say what is so: every block runs as a reader runs it, without a network; names and links exist."""

import os
import re
import shlex
import shutil
import socket
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
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page."""
    return [text for found, text in FENCE.findall(PAGES[page]) if found == language]


def shell(page: str) -> list[str]:
    """The shell blocks of a page: indented by four blanks, outside of fences."""
    found = re.findall(r"(?:^    \S.*\n)+", FENCE.sub("", PAGES[page]), re.MULTILINE)
    return [re.sub(r"^    ", "", text, flags=re.MULTILINE) for text in found]


def shell_block(page: str, beginning: str) -> str:
    (found,) = [text for text in shell(page) if text.startswith(beginning)]
    return found


LINES = [line.strip() for page in PAGES for block in shell(page) for line in block.splitlines()]
COMMANDS = sorted({line for line in LINES if line.startswith("shared-context ")})
TRAINING = "docs/training.md"
"""Its programs train on data that do not ship, and push to the Hub."""
WITH_PROGRAMS = [page for page in PAGES if page.startswith("docs/") and blocks(page, "python") and page != TRAINING]
SWAPS = [(page, swap) for page in PAGES for swap in blocks(page, "diff")]


@pytest.fixture(scope="module")
def weights() -> None:
    """What programs find on this machine, so that they can run offline."""
    resolve_model("smollm2-135m-instruct")
    resolve_default_embedder()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what the pages take from a checkout."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "docs")
    return tmp_path


def run(*command: str, cwd: Path, stdin: str = "") -> str:
    """What a command prints; it must end well."""
    unreachable = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    # The command of the environment that runs this test; a reader's is on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    here |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")  # a page's own server is not asked through a proxy
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
    text = "\n".join(PAGES.values())
    installed = re.findall(r"pip install (?:-e '\.|'sharedllm)\[([\w,]+)\]'", text)
    named = {extra for several in installed for extra in several.split(",")}
    assert "demo" in named and named <= extras.keys()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md"])
def test_every_link_within_the_repository_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not target.startswith("https://")]
    assert local or page == "CHANGELOG.md"
    assert [target for target in local if not ((ROOT / page).parent / target).exists()] == []


def test_every_file_that_a_page_names_is_there():
    ours = re.compile(r"`((?:tests|shared_context|benchmarks|examples)/[\w/.]+)`")
    named = {name for page in PAGES for name in ours.findall(PAGES[page])}
    short = re.findall(r"`((?:store|model|kernels|tree|integrations)/[\w/.]+)`", PAGES["docs/concepts.md"])
    assert named and short
    assert [name for name in named | {f"shared_context/{name}" for name in short} if not (ROOT / name).exists()] == []


def test_every_message_under_troubleshooting_is_one_that_the_library_says():
    own = PAGES["docs/troubleshooting.md"].partition("## From others")[0]
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "shared_context").rglob("*.py"))
    # A message may be written in several pieces, one a line.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    messages = re.findall(r"^\| `(.+?)` \|", own, re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if message not in source] == []


def test_figures_of_the_readme_stand_among_the_figures():
    table = PAGES["README.md"].partition("| what, on which questions |")[2].partition("\n\n")[0]
    rows = [re.split(r"\s*\|\s*", row.strip("| ")) for row in table.splitlines()[2:]]
    assert len(rows) >= 6
    for row in rows:
        ours, theirs = row[2], row[3].partition(",")[0]
        assert {ours, theirs} <= set(re.findall(r"\d\.\d{3}", PAGES["docs/figures.md"])), row
        assert float(row[4]) == pytest.approx(float(ours) / float(theirs), abs=0.006), row


@pytest.mark.slow
def test_the_site_is_built_of_pages_that_are_all_in_its_menu(tmp_path):
    run("mkdocs", "build", "--quiet", "--site-dir", str(tmp_path), cwd=ROOT)
    reference = (tmp_path / "reference" / "index.html").read_text(encoding="utf-8")
    assert 'id="shared_context.SharedLLMContextStore.select"' in reference and ":class:" not in reference
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert {f"docs/{name}" for name in re.findall(r": (\S+\.md)$", menu, re.MULTILINE)} == {
        page for page in PAGES if page.startswith("docs/")
    }


# ---- what has to be run


@pytest.mark.slow
def test_the_first_program_prints_what_the_readme_says(weights, checkout):
    program = blocks("README.md", "python")[0]
    said = shell_block("README.md", "examples/data/handbook.md ").splitlines()
    *shown, answer = run(sys.executable, "-c", program, cwd=checkout).strip().splitlines()
    assert shown and all(re.match(r"examples/data/handbook.md \d+-\d+ \S", line) for line in shown)
    assert set(shown) & set(said)  # not all of them: scores differ a little between processors
    assert answer == said[-1] and "41 °C" in answer


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_the_swaps_of_the_readme_answer(weights, checkout, number):
    assert "41 °C" in run(sys.executable, "-c", blocks("README.md", "python")[number], cwd=checkout)


@pytest.mark.slow
def test_an_answer_changes_with_the_document(weights, checkout):
    printed = run("bash", "-euc", shell_block("docs/command-line.md", "cp examples/data/handbook.md"), cwd=checkout)
    # Degrees are written in one way or the other: selections differ a little between processors.
    before, after = re.findall(r"^.*\d\d (?:°C|degrees).*\n(?=\nSources)", printed, re.MULTILINE)
    assert "41 " in before and "52 " in after


def free_port() -> str:
    """Instead of the one that a page names, which something else on this machine may have."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PROGRAMS)
def test_the_programs_of_a_page_run_one_after_the_other(weights, checkout, page):
    program = "\n".join(blocks(page, "python")).replace("8765", free_port())
    (checkout / "program.py").write_text(program, encoding="utf-8")
    assert run(sys.executable, "program.py", cwd=checkout).strip()


def side(diff: str, sign: str) -> str:
    """The program before (``-``) or after (``+``) a diff."""
    return "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in ("", " ", sign))


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["-", "+"])
@pytest.mark.parametrize(("page", "swap"), SWAPS, ids=[page for page, _ in SWAPS])
def test_both_sides_of_a_swap_run(weights, checkout, page, swap, sign):
    printed = run(sys.executable, "-c", side(swap, sign), cwd=checkout / "examples")
    answer, sources = printed.strip().rsplit(" ", 1)
    assert answer and int(sources) > 0


@pytest.mark.slow
def test_the_commands_run_in_this_order(weights, checkout):
    block = shell_block("docs/command-line.md", "shared-context ingest handbook.ctx docs/")
    left_out = {"train", "export-lora", "serve"}  # no data, nothing trained, no end
    lines = [line for line in block.splitlines() if not left_out & set(line.split())]
    asked = "How warm is the drying room kept?"
    printed = [run("bash", "-euc", line, cwd=checkout, stdin=f"{asked}\n") for line in lines]
    silent = {"copy", "namespaces"}  # there are none
    assert all(text.strip() for line, text in zip(lines, printed, strict=True) if not silent & set(line.split()))
    (answer,) = [text for line, text in zip(lines, printed, strict=True) if " ask " in line]
    assert "41 °C" in answer
