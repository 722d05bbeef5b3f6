"""A vLLM server of one's own, started beside with the connector and ended with the process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared_context.errors import ConfigError
from shared_context.model.peft_export import export_lora
from shared_context.model.pretrained import resolve_model
from shared_context.model.shared_llm import SharedLLMModel

IN_MEMORY = Path("/dev/shm")
PACKAGE = Path(__file__).parent.parent.parent
API_SERVER = "vllm.entrypoints.openai.api_server"
SECONDS_TO_END = 20
ADAPTER = "shared-context-adapter"
COMPRESSING = "shared-context-adapter-compressing"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The largest rank that vLLM is told of is one of these."""


@contextmanager
def vllm_server(command: str, model: SharedLLMModel, *, compresses: bool = False) -> Iterator[tuple[str, Path]]:
    """Start vLLM on a free port of this machine; it may take minutes until it answers.

    Args:
        command: vLLM's executable, or the Python of its environment, a name or a path, and further arguments of
            ``vllm serve`` behind it.
        model: whose checkpoint, dtype and window it takes.
        compresses: it is to compute chunks, too, and so has an adapter's compressing set.

    Yields:
        Its address, and the folder through which it is handed selections.

    Raises:
        ConfigError: there is no such executable.
    """
    name, *further = shlex.split(command)
    executable = shutil.which(name)
    if executable is None:
        raise ConfigError(
            f"There is no command {name!r} to start vLLM with; give its path, or the address of one that runs."
        )
    with tempfile.TemporaryDirectory(prefix="selections-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        server = subprocess.Popen(
            [*launched_by(Path(executable)), *_arguments(model, port, Path(folder), compresses), *further],
            env={**os.environ, "PYTHONPATH": path},
            stdout=2,  # stdout is for results
            start_new_session=True,  # Ctrl-C is for this process, which ends the other one when its answers are given
        )
        try:
            yield f"http://127.0.0.1:{port}", Path(folder)
        finally:
            _end(server)


def launched_by(executable: Path) -> list[str]:
    """How vLLM's server is started by its command, or by the Python of its environment.

    The command of vLLM's build for processors ends at once, for it looks for a package called vllm: so the server is
    started by the Python that the command is a script of. What is no script of Python is taken for the command itself.
    """
    python = executable if executable.name.startswith("python") else _python_of(executable)
    return [str(executable), "serve"] if python is None else [str(python), "-m", API_SERVER]


def _python_of(script: Path) -> Path | None:
    """The Python that a script names in its first line."""
    with script.open("rb") as read:
        first = os.fsdecode(read.readline(4096))
    program, *_ = first.removeprefix("#!").split() or [""]
    return Path(program) if first.startswith("#!") and Path(program).name.startswith("python") else None


def _adapter(model: SharedLLMModel, folder: Path, compresses: bool) -> list[str]:
    """Arguments that have vLLM load what it needs of a model's adapter, which is written for it."""
    adapter = model.adapter()
    if adapter is None:
        return []
    decoding, compressing = export_lora(adapter, folder / "adapter", stack=model.hf_model.base_model_prefix)
    sets = {ADAPTER: decoding, COMPRESSING: compressing} if compresses else {ADAPTER: decoding}
    named = [json.dumps({"name": name, "path": str(path)}) for name, path in sets.items()]
    rank = next((rank for rank in RANKS if rank >= (adapter.config.rank or 0)), RANKS[-1])
    at_once = ["--max-loras", str(len(named))]  # so that answers and chunks are computed in the same step
    return ["--enable-lora", "--max-lora-rank", str(rank), *at_once, "--lora-modules", *named]


def _arguments(model: SharedLLMModel, port: int, folder: Path, compresses: bool) -> list[str]:
    transfer = {
        "kv_connector": "SharedContextConnector",
        "kv_connector_module_path": "shared_context.integrations.vllm.connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"selections": str(folder)},
    }
    return [
        *("--model", str(resolve_model(model.name))),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--dtype", str(model.dtype).removeprefix("torch.")),
        *("--max-model-len", str(model.context_window)),
        *("--generation-config", "vllm"),  # a checkpoint's own defaults would change what a request asks for
        *("--kv-transfer-config", json.dumps(transfer)),
        *_adapter(model, folder, compresses),
    ]


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and the processes of its own."""
    if server.poll() is None:
        server.terminate()
    try:
        server.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
