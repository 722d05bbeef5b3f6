"""Adapters: trained weights on top of an unchanged base model, with the configuration they need."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared_context.config import InjectionKind, Rows, one_of, require, require_count
from shared_context.errors import AdapterError, ModelMismatchError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"
CARD_FILE = "README.md"

SHIPPED = Path(__file__).parent / "checkpoints"
"""Adapters that come with the library, a folder each."""


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter was made for.

    Attributes:
        base_model: name of the base model.
        base_fingerprint: its fingerprint; the adapter is refused on any other.
        injection: how the decoder is shown the context.
        injection_layers: M, the bottom layers that see it.
        base_revision: commit of the base model on the Hub, where it is known.
        rank, alpha: of the low-rank updates, which are scaled by ``alpha / rank``: those of prefix injection, or with
            cross-attention injection of the layers above, None where they are as in the base model.
        ratios: grains it was trained on.
        chunk_size: tokens per chunk at most while it was trained.
        height: levels below the root of the trees it was trained on.
        split_noise: noise of the split points of the trees it was trained on, as a share of the span.
        tokens_seen: tokens that it was trained on, those of contexts, prompts and answers together.
        rows: which rows of a coarse grain it is served with, where nothing else is asked for.
    """

    base_model: str
    base_fingerprint: str
    injection: InjectionKind
    injection_layers: int
    base_revision: str | None = None
    rank: int | None = None
    alpha: float | None = None
    ratios: tuple[int, ...] = ()
    chunk_size: int | None = None
    height: int | None = None
    split_noise: float | None = None
    tokens_seen: int = 0
    rows: Rows = "stride"

    def __post_init__(self) -> None:
        one_of("injection", self.injection, InjectionKind)
        one_of("rows", self.rows, Rows)
        require_count("injection_layers", self.injection_layers, "layers")
        if self.injection == "prefix" or self.rank is not None:
            require_count("rank", self.rank, "rows")
            is_scale = isinstance(self.alpha, Real) and not isinstance(self.alpha, bool) and 0 < self.alpha < math.inf
            require(is_scale, "alpha", self.alpha, "must be a number above 0")
        object.__setattr__(self, "ratios", tuple(self.ratios))


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies on disk: ``adapter_config.json``, ``adapter.safetensors`` and its card in one folder.

    Attributes:
        config: what it was made for.
        weights: by name.
        card: what a reader should know of it, as Markdown.
    """

    config: AdapterConfig
    weights: dict[str, torch.Tensor]
    card: str = ""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files into ``folder``, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: w.detach().contiguous().cpu() for name, w in self.weights.items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")
        if self.card:
            (folder / CARD_FILE).write_text(self.card, encoding="utf-8")

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Upload the files to a repository on the Hugging Face Hub, made if it is missing; returns its name."""
        from huggingface_hub import HfApi

        hub = HfApi()
        name = hub.create_repo(repo, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload adapter")
        return name

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> Adapter:
        """Read an adapter.

        Args:
            name_or_folder: a folder; or the name of one that ships with the library; or a repository on the Hub.

        Raises:
            AdapterError: where there is none, or a file is missing, cut off or not what it should be.
        """
        folder = _find(name_or_folder)
        written = folder / CARD_FILE
        for path in (folder / CONFIG_FILE, folder / WEIGHTS_FILE, written):
            if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
                raise AdapterError(f"{folder} is not an adapter: {path.name} is no regular file.")
        try:
            config = AdapterConfig(**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
            weights = load_file(folder / WEIGHTS_FILE)
            card = written.read_text(encoding="utf-8") if written.is_file() else ""
        except FileNotFoundError as error:
            missing = Path(error.filename or WEIGHTS_FILE).name  # safetensors names none
            raise AdapterError(f"{folder} is not an adapter: {missing} is missing.") from error
        except (ValueError, TypeError, RecursionError, SafetensorError) as error:
            raise AdapterError(f"The adapter in {folder} cannot be read ({error}); save or fetch it again.") from error
        return cls(config, weights, card)

    @cached_property
    def digest(self) -> str:
        """Eight hex digits of the weights and their scale, read once: every selection asks, and they are megabytes."""
        digest = hashlib.sha256(f"{self.config.alpha}".encode())
        for name, weight in sorted(self.weights.items()):
            digest.update(f"{name}{weight.dtype}{tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:8]

    def check_base(self, name: str, fingerprint: str) -> None:
        """Refuse another base model than the one the adapter was trained on.

        Raises:
            ModelMismatchError: naming both.
        """
        if fingerprint != self.config.base_fingerprint:
            raise ModelMismatchError(
                f"The adapter was trained on {self.config.base_model} ({self.config.base_fingerprint}) and cannot be "
                f"loaded onto {name} ({fingerprint}); load it with its own base model."
            )

    def load_into(self, module: torch.nn.Module) -> None:
        """Copy the weights into a module.

        Raises:
            AdapterError: where a tensor is missing, unexpected, of another shape, or holds anything but finite numbers.
        """
        expected = {name: tuple(weight.shape) for name, weight in module.state_dict().items()}
        found = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            name = wrong[0]
            raise AdapterError(
                f"The adapter's tensor {name} has shape {found.get(name, 'none')} where {expected.get(name, 'none')} "
                f"is needed ({len(wrong)} tensors differ); save or fetch the adapter again."
            )
        for name, weight in self.weights.items():
            if not weight.is_floating_point():
                raise AdapterError(f"The adapter's tensor {name} is of {weight.dtype}; save it in floating point.")
            if not torch.isfinite(weight).all():
                raise AdapterError(f"The adapter's tensor {name} holds infinities or NaN; save or fetch it again.")
        module.load_state_dict(self.weights)


def shipped_adapters() -> list[str]:
    """Names of the adapters that come with the library."""
    return sorted(folder.parent.name for folder in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def _find(name_or_folder: str | Path) -> Path:
    """The folder of an adapter; one on the Hub is fetched."""
    folder, name = Path(name_or_folder).expanduser(), str(name_or_folder)
    if not folder.is_dir() and name in shipped_adapters():
        return SHIPPED / name
    if not folder.is_dir() and name == "auto":
        raise AdapterError(
            "adapter='auto': no adapter is chosen by itself any more; name one, such as 'factoid' for short answers to "
            "questions of fact, or leave it out."
        )
    if folder.is_dir() or isinstance(name_or_folder, Path):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE]))
    except (OSError, ValueError) as error:  # no such repository, no network, no name of a repository
        raise AdapterError(
            f"adapter {name!r} is no folder, none of those that ship ({', '.join(shipped_adapters())}), and "
            f"could not be fetched from the Hub: {str(error).splitlines()[0]}"
        ) from error
