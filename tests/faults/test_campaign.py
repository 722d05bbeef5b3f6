"""The fault campaign in small: what was told is never lost, no damage is silent; `make faults` is the large one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("campaign.py")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="records what Linux processes do, with a C compiler"
)


def campaign(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CAMPAIGN), "--each", "6", "--seconds", "600", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_no_fault_loses_or_mixes_anything_unnoticed():
    done = campaign("--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = ("kill", "power cut, torn", "power cut, some lost", "power cut, all lost", "clock jumps")
    assert all(f"| {kind} |" in done.stdout for kind in kinds) and "| log of a killed writer, " in done.stdout
    mounted = 6 if "| a file system fills up |" in done.stdout else 0
    assert f"{48 + mounted} faults" in done.stdout


@pytest.mark.slow
def test_a_disk_that_forgets_is_noticed():
    done = campaign("--seed", "7", "--no-fsync")
    assert done.returncode == 1 and "power cut, all lost, seed 7" in done.stdout
