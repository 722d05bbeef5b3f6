import pickle
import subprocess
import sys

import pytest


@pytest.fixture
def in_another_process(tmp_path):
    """What a program prints of a ``thing`` that was pickled here, or the last line of its error."""

    def run(program, thing):
        (tmp_path / "pickled").write_bytes(pickle.dumps(thing))
        program = f"import pickle, sys\nthing = pickle.load(open(sys.argv[1], 'rb'))\n{program}"
        command = [sys.executable, "-c", program, str(tmp_path / "pickled")]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    return run
