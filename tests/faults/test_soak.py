"""The soak in small: threads of several processes on one store meet no error that is not the library's own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors as Linux has them")


@pytest.mark.slow
def test_a_store_under_load_stays_whole():
    command = [sys.executable, Path(__file__).with_name("soak.py"), "--seconds", "20", "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| descriptors |" in done.stdout and "'done': " in done.stdout
