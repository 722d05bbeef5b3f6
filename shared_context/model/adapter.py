"""Adapters: trained weights on top of an unchanged base model, with the configuration they need."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared_context.config import InjectionKind, one_of
from shared_context.errors import AdapterError, ConfigError, ModelMismatchError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter was made for.

    Attributes:
        base_model: name of the base model.
        base_fingerprint: its fingerprint; the adapter is refused on any other.
        injection: how the decoder is shown the context.
        injection_layers: M, the bottom layers that see it.
    """

    base_model: str
    base_fingerprint: str
    injection: InjectionKind
    injection_layers: int

    def __post_init__(self) -> None:
        one_of("injection", self.injection, InjectionKind)


@dataclass(frozen=True)
class Adapter:
    """An adapter as it lies on disk: ``adapter_config.json`` and ``adapter.safetensors`` in one folder."""

    config: AdapterConfig
    weights: dict[str, torch.Tensor]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both files into ``folder``, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: w.detach().contiguous().cpu() for name, w in self.weights.items()}, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Adapter:
        """Read an adapter.

        Raises:
            AdapterError: where a file is missing, cut off or not what it should be.
        """
        folder = Path(folder)
        try:
            config = AdapterConfig(**json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
            weights = load_file(folder / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise AdapterError(f"{folder} is not an adapter: {Path(error.filename).name} is missing.") from error
        except (json.JSONDecodeError, TypeError, ConfigError, SafetensorError, UnicodeDecodeError) as error:
            raise AdapterError(f"The adapter in {folder} cannot be read ({error}); save or fetch it again.") from error
        return cls(config, weights)

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
            AdapterError: where a tensor is missing, unexpected or of another shape.
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
        module.load_state_dict(self.weights)
