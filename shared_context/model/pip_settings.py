"""How pip is configured on this machine, read without pip, which not every environment has.

Files and variables are those of pip's documentation ("Configuration"): the machine's files, the user's, the
environment's, the one that PIP_CONFIG_FILE names, then variables; a later one overrides an earlier one, option by
option, and in files the section of the command overrides [global].
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from configparser import Error, RawConfigParser
from dataclasses import dataclass, field
from pathlib import Path

from shared_context.errors import ModelNotFoundError

SECTIONS = ("global", "download")
"""The sections of pip's files that count for a package that is fetched and not installed; a later one overrides."""

TRUE = ("1", "true", "yes", "on", "y", "t")


def default_index() -> str:
    """The index of pip's that is asked where none is named, as unearth knows it."""
    from unearth import PackageFinder

    return PackageFinder().sources[0]["url"]


@dataclass(frozen=True)
class PipSettings:
    """Where packages come from and how they are reached, under pip's own names.

    Attributes:
        index_urls: package indexes, the main one first; none where pip is told to ask none.
        find_links: folders, files and pages that list packages, as URLs.
        cert: file or folder of trusted certificates; None is the system's.
        client_cert: file of the certificate to show, with its key.
        proxy: for everything; None is what HTTPS_PROXY and its like say.
        trusted_hosts: hosts, with a port where they name one, whose certificates are not looked at.
        timeout: seconds without an answer after which a connection is given up.
    """

    index_urls: tuple[str, ...] = field(default_factory=lambda: (default_index(),))
    find_links: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    trusted_hosts: tuple[str, ...] = ()
    timeout: float = 15.0

    def ssl_context(self) -> ssl.SSLContext | bool:
        """What connections are verified by; True where nothing is configured.

        Raises:
            ModelNotFoundError: a certificate cannot be read.
        """
        if self.cert is None and self.client_cert is None:
            return True
        try:
            folder = self.cert is not None and Path(self.cert).is_dir()
            context = (
                ssl.create_default_context(capath=self.cert) if folder else ssl.create_default_context(cafile=self.cert)
            )
            if self.client_cert is not None:
                context.load_cert_chain(self.client_cert)
        except OSError as error:
            given = f"cert={self.cert}, client-cert={self.client_cert}"
            raise ModelNotFoundError(f"pip is configured with {given}, which cannot be read: {error}") from error
        return context


def read_pip_settings() -> PipSettings:
    """What pip would use here and now.

    Raises:
        ModelNotFoundError: a configuration file cannot be read, or a value in it or in the environment means nothing.
    """
    options: dict[str, str] = {}
    files = list(_files())
    for section in SECTIONS:
        for file in files:
            options |= {_option(name): value for name, value in _section(file, section).items()}
    options |= {_option(name[4:]): value for name, value in os.environ.items() if name.startswith("PIP_") and value}

    indexes = [options.get("index-url") or default_index(), *options.get("extra-index-url", "").split()]
    timeout = options.get("timeout") or options.get("default-timeout") or "15"
    try:
        seconds = float(timeout)
    except ValueError as error:
        raise ModelNotFoundError(f"pip is configured with timeout={timeout!r}: no number of seconds") from error
    # requests, which pip is built on, heeds these two as well
    cert = options.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return PipSettings(
        index_urls=() if options.get("no-index", "").lower() in TRUE else tuple(map(_as_url, indexes)),
        find_links=tuple(map(_as_url, options.get("find-links", "").split())),
        cert=cert or None,
        client_cert=options.get("client-cert") or None,
        proxy=options.get("proxy") or None,
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        timeout=seconds,
    )


def _files() -> Iterator[Path]:
    """The configuration files that there are, the most general first."""
    import platformdirs

    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's way to have no file read
        return
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    machine = platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep)
    users = [platformdirs.user_config_dir("pip", appauthor=False, roaming=True)]
    if sys.platform == "darwin":
        users.insert(0, str(Path.home() / ".config" / "pip"))
    files = [
        *(Path(folder, name) for folder in reversed(machine)),
        *([] if sys.platform in ("win32", "darwin") else [Path("/etc", name)]),
        Path.home() / ("pip" if sys.platform == "win32" else ".pip") / name,
        *(Path(folder, name) for folder in users),
        Path(sys.prefix, name),
        *([Path(named)] if named else []),
    ]
    yield from filter(Path.is_file, files)


def _section(file: Path, section: str) -> Mapping[str, str]:
    parser = RawConfigParser()
    try:
        parser.read_string(file.read_text(encoding="utf-8"), source=str(file))
    except (OSError, UnicodeDecodeError, Error) as error:
        raise ModelNotFoundError(f"pip's configuration file {file} cannot be read: {error}") from error
    return dict(parser[section]) if section in parser else {}


def _option(name: str) -> str:
    return name.lower().removeprefix("--").replace("_", "-")


def _as_url(location: str) -> str:
    """A location as a URL; pip takes paths as well."""
    scheme = location.partition(":")[0].lower()
    if scheme in ("http", "https", "file"):
        return location
    return Path(location).expanduser().absolute().as_uri()
