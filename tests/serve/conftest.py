"""A server on a real socket, over one small store, for all tests of a module."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import uvicorn

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.serve import create_app

LIGHTHOUSE = """# The lighthouse

The lamp is trimmed by Perpetua Lindqvist, who lives on the third landing with her cat. The lamp burns whale-free oil
from blue cans, and one can lasts for nine nights. In fog the horn is blown every forty seconds.

# Visitors

Visitors come on Thursdays only. They leave their boots in the porch and pay with a riddle. Whoever knows no riddle
carries two buckets of coal to the second landing.
"""
FERRY = """# The ferry

The ferry is called Marigold and her captain is Anselm Okafor. She sails at seven and at noon, never on the day after a
storm. A bicycle rides for a copper coin, a goat for two, and children ride free if they sing.
"""


@pytest.fixture(scope="session")
def make_coast(make_small_model) -> Callable[..., SharedLLMContextStore]:
    """A new store of two short documents, in memory or in a folder, for a model that babbles at once."""
    model = make_small_model()

    def make(path: Path | None = None, of: SharedLLMModel = model) -> SharedLLMContextStore:
        store = SharedLLMContextStore(of, path, config=StoreConfig(tree=TreeConfig(chunk_size=128)), embedder=None)
        store.add(LIGHTHOUSE, id="coast/lighthouse.md", metadata={"tower": True})
        store.add(FERRY, id="coast/ferry.md", metadata={"tower": False})
        return store

    return make


@pytest.fixture(scope="session")
def coast(make_coast) -> SharedLLMContextStore:
    """The two documents; tests share them and must not change them."""
    return make_coast()


class Serving:
    """A running server.

    Attributes:
        url: of its root.
        address: host and port.
        server: uvicorn's.
    """

    def __init__(self, server: uvicorn.Server, address: tuple[str, int]):
        self.server, self.address = server, address
        self.url = f"http://{address[0]}:{address[1]}"

    def client(self, key: str = "none", **options: object) -> openai.OpenAI:
        """OpenAI's own client; it does not try again by itself."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **options})


@contextmanager
def _serving(*args: object, **options: object) -> Iterator[Serving]:
    app = create_app(*args, **options)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
    thread.start()
    try:
        yield Serving(server, listening.getsockname())
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def serving() -> Callable[..., object]:
    """``with serving({"name": store}, ...) as running:`` takes what create_app takes."""
    return _serving


@pytest.fixture(scope="session")
def served(coast) -> Iterator[Serving]:
    """The coast, served as "coast" to everybody."""
    with _serving({"coast": coast}) as running:
        yield running


@pytest.fixture
def client(served: Serving) -> openai.OpenAI:
    return served.client()
