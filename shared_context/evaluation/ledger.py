"""Results kept as they come, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_context.config import StoreConfig
from shared_context.errors import ConfigError
from shared_context.progress import with_progress

if TYPE_CHECKING:
    from shared_context import SharedLLMModel


class Ledger:
    """Results by key, one line of JSON each; the first line holds the settings that they belong to.

    Args:
        path: the file, made where there is none; None keeps nothing.
        settings: what the results depend on, as JSON values; a store's default configuration is among them anyway.

    Raises:
        ConfigError: the file is something else, or its results belong to other settings; says which.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]):
        self._path = Path(path) if path is not None else None
        self._results: dict[str, Any] = {}
        if self._path is None:
            return
        settings = json.loads(json.dumps({**settings, "store": repr(StoreConfig())}))
        if not self._path.exists() or self._path.stat().st_size == 0:
            self._write(self._path, {"settings": settings})
            return
        self._read(self._path, settings)

    def results(
        self, keys: Sequence[str], compute: Callable[[list[str]], Iterable[Any]], *, together: int = 1, what: str
    ) -> list[Any]:
        """The results of these keys, JSON values: known already, or computed now and kept.

        Args:
            keys: one for each result.
            compute: the results of some keys, in their order.
            together: how many are computed at a time, as their order has them. Where one of those is missing all are
                computed anew: a result may hang on what is computed with it, and not on where a run was stopped.
            what: what the progress bar says.
        """
        several = list(dict.fromkeys(keys))
        batches = [several[at : at + together] for at in range(0, len(several), together)]
        missing = [batch for batch in batches if any(key not in self._results for key in batch)]
        for now in with_progress(missing, what):
            for key, result in zip(now, compute(now), strict=True):
                # Through JSON, so that a result is the same whether it was just computed or read back.
                self._results[key] = json.loads(json.dumps(result))
                if self._path is not None:
                    self._write(self._path, {"key": key, "result": self._results[key]})
        return [self._results[key] for key in keys]

    @staticmethod
    def _write(path: Path, row: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _read(self, path: Path, settings: Mapping[str, Any]) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *rows = [json.loads(line) for line in whole.splitlines()]
            known, results = first["settings"], {row["key"]: row["result"] for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--resume {path}: it is no state of a run; name another file") from error
        differ = sorted(name for name in known.keys() | settings.keys() if known.get(name) != settings.get(name))
        if differ:
            changes = "; ".join(f"{name} was {known.get(name)!r} and is {settings.get(name)!r}" for name in differ)
            raise ConfigError(f"--resume {path}: begun with other settings ({changes}); name another file")
        if len(whole) < len(content):  # the run was stopped while it wrote
            path.write_bytes(whole)
        self._results = results


def reader_identity(model: SharedLLMModel) -> str:
    """Changes with the model's weights, layers and dtype, and with the prompt that it is given."""
    prompt = model.prompt_format.render([{"role": "user", "content": "?"}], with_context=True)
    return f"{model.identity}/{hashlib.sha256(repr(prompt).encode()).hexdigest()[:8]}"
