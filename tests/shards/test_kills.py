"""The campaign of kills in small: what was told is never lost, nothing half-published is seen."""

import subprocess
import sys
from pathlib import Path

import pytest

for name in ("ray", "moto.server", "s3fs"):
    pytest.importorskip(name)

pytestmark = [
    pytest.mark.slow,  # every process that is killed loads torch again
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks at processes as Linux shows them"),
]


def test_no_kill_loses_or_doubles_what_was_told():
    program = Path(__file__).with_name("kills.py")
    command = [sys.executable, str(program), "--kills", "8", "--seconds", "1500", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert "| the server that is published to | " in done.stdout and ", 0 wrong" in done.stdout
