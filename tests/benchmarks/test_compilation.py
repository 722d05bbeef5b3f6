"""Every kernel compiles for every architecture, without a device."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_kernels_compile_ahead_of_time(target, tmp_path):
    # another process, because what is interpreted in this one cannot be compiled in it
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compilation", target],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    lines = [line for line in done.stdout.splitlines() if f" {target} " in line]
    assert {line.split(",")[0].split(" " * 3)[0] for line in lines} >= {"leaf scores", "node scores", "KV assembly"}
    assert all(int(line.split()[-1]) == 0 for line in lines), f"registers are spilled:\n{done.stdout}"
