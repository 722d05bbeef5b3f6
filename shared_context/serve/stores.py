"""The stores that are served, each under the name by which requests call it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shared_context.config import require
from shared_context.serve.access import Caller
from shared_context.serve.faults import Refusal
from shared_context.store.store import SharedLLMContextStore

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ServedStore:
    """A store and what it is called.

    Attributes:
        name: of the model that it is in OpenAI's protocol, and of the vector store.
        store: open.
        created: when it began to be served, seconds since 1970.
        made_here: it was made by a request and may be deleted by one.
    """

    name: str
    store: SharedLLMContextStore
    created: int = field(default_factory=lambda: int(time.time()))
    made_here: bool = False


class Stores:
    """Stores by name; what a caller may not see is to him as what there is not.

    Raises:
        ConfigError: a name cannot stand in an address.
    """

    def __init__(self, stores: Mapping[str, SharedLLMContextStore]):
        self._served: dict[str, ServedStore] = {}
        for name, store in stores.items():
            self.add(ServedStore(name, store))

    def add(self, served: ServedStore) -> None:
        """Serve one more."""
        self.check_name(served.name)
        require(served.name not in self._served, "the store's name", served.name, "is taken; name it: NAME=FOLDER")
        self._served[served.name] = served

    @staticmethod
    def check_name(name: str) -> None:
        """Refuse a name that cannot stand in an address.

        Raises:
            ConfigError: it cannot.
        """
        mend = "must be 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first"
        require(NAME.fullmatch(name) is not None, "the store's name", name, mend)

    def remove(self, name: str) -> None:
        """Serve it no longer."""
        del self._served[name]

    def __contains__(self, name: str) -> bool:
        return name in self._served

    def __iter__(self) -> Iterator[ServedStore]:
        return iter(list(self._served.values()))

    def seen_by(self, caller: Caller) -> list[ServedStore]:
        """Those that a caller may use."""
        return [served for served in self if caller.may_use(served.name)]

    def get(self, name: str, caller: Caller, *, param: str = "model") -> ServedStore:
        """The store of this name.

        Raises:
            Refusal: there is none that the caller may use.
        """
        served = self._served.get(name)
        if served is None or not caller.may_use(name):
            known = ", ".join(one.name for one in self.seen_by(caller)) or "none"
            raise Refusal(
                404,
                f"There is no store {name[:64]!r}; those served are: {known}.",
                code="model_not_found" if param == "model" else "not_found",
                param=param,
            )
        return served
