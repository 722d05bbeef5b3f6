"""The exceptions of the library.

Every message names the thing that is wrong, the value that was met and the mend. All of them derive from
:class:`SharedContextError`, so one ``except`` clause catches what this library refuses and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping


class SharedContextError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigError(SharedContextError, ValueError):
    """A setting is outside its range or contradicts another one."""


class ModelNotFoundError(SharedContextError, OSError):
    """Weights can neither be found on this machine nor fetched."""


class UnsupportedModelError(SharedContextError, ValueError):
    """The model cannot be stacked on itself: learned positions, ALiBi, an encoder, a window that is too narrow."""


class ModelMismatchError(SharedContextError, ValueError):
    """A store or an adapter was made with another model than the one it is opened with."""


class AdapterError(SharedContextError, ValueError):
    """An adapter's files are incomplete, reshaped or not an adapter."""


class TrainingError(SharedContextError, RuntimeError):
    """Training cannot go on: the loss is not a number, or a checkpoint to resume from is incomplete."""


class TrainingDataError(TrainingError, ValueError):
    """Training data are broken, empty or cannot be read."""


class WindowExceededError(SharedContextError, ValueError):
    """Context, prompt and answer together do not fit the model's window."""


class DocumentError(SharedContextError, ValueError):
    """A document cannot be stored: its content, id or metadata are refused."""


class UnreadableError(DocumentError):
    """A document's content cannot be stored: it is empty, damaged, binary, not UTF-8 or too large."""


class DuplicateDocumentError(DocumentError):
    """A document id is stored already, or appears twice in one call."""


class DocumentNotFoundError(SharedContextError, KeyError, ValueError):
    """No document has this id."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class DocumentChangedError(SharedContextError, ValueError):
    """A document's text is another one than when a passage was taken from it."""


class BatchError(DocumentError):
    """Some documents of a batch were refused, and none of the batch was stored.

    Attributes:
        failures: the error of each refused document, by its id (or its position, ``"#3"``, where it has none).
    """

    def __init__(self, message: str, failures: Mapping[str, DocumentError]):
        super().__init__(message)
        self.failures = dict(failures)


class QueryError(SharedContextError, ValueError):
    """A query is empty, or longer than the model can read."""


class BudgetError(SharedContextError, ValueError):
    """A KV budget is not positive, or holds not even the smallest cut."""


class FilterError(SharedContextError, ValueError):
    """A metadata filter uses an unknown operator or a value of the wrong type."""


class SelectionError(SharedContextError, ValueError):
    """Keys and values that pass from or to another engine are missing, damaged or of something else."""


class StoreFormatError(SharedContextError, ValueError):
    """A folder is not a store, is half written, or is of a format this version cannot read."""


class StoreClosedError(SharedContextError, ValueError):
    """The store was closed and can no longer be used."""


class StoreUnavailableError(SharedContextError, OSError):
    """A store's file cannot be read or written now: the disk is full, it is locked, access is denied."""


class SnapshotNotFoundError(SharedContextError, LookupError):
    """Nothing was published at an address, or not the snapshot of this number."""


class SnapshotConflictError(SharedContextError, RuntimeError):
    """Another snapshot was published at an address since the one that a store came from."""


class ShardUnavailableError(SharedContextError, RuntimeError):
    """A part of a store of shards does not answer: its process died, or it takes too long."""
