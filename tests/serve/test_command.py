"""`shared-context serve` as it is started."""

import os
import signal
import subprocess
import sys

import httpx
import pytest
from typer.testing import CliRunner

from shared_context.cli.main import app


def run(*args):
    return CliRunner().invoke(app, ["serve", *map(str, args)])


def test_beyond_loopback_it_wants_keys(tmp_path):
    done = run(tmp_path, "--host", "0.0.0.0")
    assert done.exit_code == 2 and "--keys" in done.output


def test_what_is_no_store_is_named(tmp_path):
    done = run(tmp_path / "nothing.ctx")
    assert done.exit_code == 1 and "nothing.ctx" in done.output
    done = run(tmp_path / "a" / "x.ctx", tmp_path / "b" / "x.ctx")
    assert done.exit_code == 1 and "NAME=FOLDER" in done.output
    done = run(tmp_path, "--keys", tmp_path / "none.json")
    assert done.exit_code == 1 and "none.json" in done.output
    done = run(tmp_path, "--engine", "vllm", "--engine-timeout", 0)
    assert done.exit_code == 1 and "engine_timeout" in done.output


@pytest.mark.posix
@pytest.mark.slow
def test_it_answers_and_ends_when_it_is_told_to(model, tmp_path):
    from shared_context import SharedLLMContextStore

    path = tmp_path / "note.ctx"
    with SharedLLMContextStore(model, path, embedder=None) as store:
        store.add("The gate opens at six.", id="gate")
    command = [sys.executable, "-m", "shared_context", "serve", f"gates={path}", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ}) as server:
        lines = iter(server.stderr.readline, "")
        url = next(line for line in lines if "running on" in line).split("running on ")[1].split(" ")[0]
        asked = {"model": "gates", "messages": [{"role": "user", "content": "When?"}], "max_tokens": 4}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120).json()["choices"]
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 0  # and not by the signal: stores were closed
