"""Processes that may be killed: a server of object storage, a Ray cluster, and drivers that tell how far they are."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from shared_context.errors import SharedContextError

LATE_SECONDS = 900.0
"""After which what is waited for is taken not to come."""

STARTS = 5
"""Tries: Ray gives up after half a minute, which is too short on a busy machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(holds: Callable[[], object], seconds: float = LATE_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError("what was waited for did not come")
        time.sleep(0.02)


class Objects:
    """The server of the object storage."""

    def __init__(self, folder: Path):
        self._port = free_port()
        os.environ |= {
            "MOTO_RECORDER_FILEPATH": str(folder / "record"),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        program = Path(__file__).with_name("object_server.py")
        self._process = subprocess.Popen([sys.executable, program, str(self._port)])
        wait_for(self._answers)

    def _answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/data.json", trust_env=False).is_success
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def cluster(folder: Path) -> Iterator[psutil.Process]:
    """A Ray of our own, ended with all its processes; yields the one that began it."""
    port, log = free_port(), folder / "cluster.log"
    ports = ("ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += [f"--{name}={free_port()}" for name in ports]
    command += [f"--object-store-memory={80 << 20}", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}"]
    # By itself Ray's workers are so nice that on a busy machine what was killed takes many minutes to be there again.
    settings = os.environ | {"RAY_worker_niceness": "0"}
    # Else whoever has started a Ray of their own before has a token, which this one would ask all for.
    settings["RAY_AUTH_MODE"] = os.environ["RAY_AUTH_MODE"] = "disabled"
    for _ in range(STARTS):
        with log.open("w") as write:
            started = subprocess.Popen(command, stdout=write, stderr=write, env=settings)
        head = psutil.Process(started.pid)
        wait_for(lambda of=started: "Ray runtime started" in log.read_text() or of.poll() is not None)
        if started.poll() is None:
            break
    try:
        assert started.poll() is None, log.read_text()
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{port}"
        yield head
    finally:
        processes = [head, *head.children(recursive=True)] if head.is_running() else []
        started.terminate()
        _, alive = psutil.wait_procs(processes, timeout=30)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.wait()


def actors(head: psutil.Process, kind: str) -> list[psutil.Process]:
    """Processes of a cluster's actors of a class."""
    found = []
    for process in head.children(recursive=True):
        with suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(f"ray::{kind}"):
                found.append(process)
    return found


@dataclass
class Driver:
    """A process that does something to a store and tells how far it is, a line at a time."""

    pid: int
    marks: Path
    _over: bool = field(default=False)

    def told(self) -> list[str]:
        return self.marks.read_text().splitlines() if self.marks.exists() else []

    def over(self) -> bool:
        self._over = self._over or os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._over

    def kill(self) -> None:
        if not self.over():
            os.kill(self.pid, signal.SIGKILL)
            wait_for(self.over)


def drive(marks: Path, work: Callable[[Callable[[object], None]], None]) -> Driver:
    """Do work in a process of its own, which tells last: "done", what the library refused, or what went wrong."""
    marks.unlink(missing_ok=True)
    if pid := os.fork():
        return Driver(pid, marks)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable()
    with marks.open("a") as write:

        def tell(line: object) -> None:
            print(str(line).replace("\n", " "), file=write, flush=True)

        try:
            work(tell)
            tell("done")
        except SharedContextError as error:
            tell(f"refused: {type(error).__name__}: {error}")
        except BaseException as error:
            tell(f"failed: {type(error).__name__}: {error}")
    os._exit(0)
