"""The folder of a run: its settings, its checkpoints, what is written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from shared_context.config import require
from shared_context.errors import ModelMismatchError
from shared_context.model.adapter import Adapter
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.training.config import TrainingConfig

ADAPTER_FOLDER = "adapter"
SETTINGS_FILE = "training.json"
HISTORY_FILE = "history.json"
CURVES_FILE = "curves.svg"


def prepare(
    output: Path,
    model: SharedLLMModel,
    config: TrainingConfig,
    sources: Mapping[str, Sequence[str | Path]],
    start: Adapter | None,
    launch: Mapping[str, int | None],
    resume: bool,
) -> None:
    """Write down the settings of a new run, or see that they are those of the run that is resumed."""
    settings = {
        **config.as_json(),
        **{name: [str(source) for source in several] for name, several in sources.items()},
        "start": None if start is None else start.digest,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        **launch,
    }
    file = output / SETTINGS_FILE
    if file.exists() and (_checkpoints(output) or (output / HISTORY_FILE).exists()):
        require(resume, "output", str(output), "holds a run already; resume it, or name another folder")
        former = json.loads(file.read_text(encoding="utf-8"))
        if former.get("fingerprint", model.fingerprint) != model.fingerprint:
            raise ModelMismatchError(
                f"The run in {output} trains an adapter for {former['model']} ({former['fingerprint']}), and "
                f"{model.name} ({model.fingerprint}) was given; resume it with its own base model."
            )
        changed = sorted(name for name in settings.keys() | former.keys() if settings.get(name) != former.get(name))
        require(not changed, "settings", changed, f"are others than those of the run in {output}, which is resumed")
        return
    output.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(settings, indent=2) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)


def write_adapter(output: Path, adapter: Adapter) -> None:
    """Write the result of a run whole or not at all."""
    folder, unfinished = output / ADAPTER_FOLDER, output / f".{ADAPTER_FOLDER}.unfinished"
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    adapter.save_pretrained(unfinished)
    unfinished.rename(folder)


def last_checkpoint(output: Path, processes: int = 1) -> Path | None:
    """The last checkpoint in a folder that so many processes wrote to its end; None where there is none."""
    return next((folder for folder in reversed(_checkpoints(output)) if _is_whole(folder, processes)), None)


def _checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run in the order of their steps, whole or not."""
    steps = {folder: folder.name.rpartition("-")[2] for folder in output.glob("checkpoint-*")}
    return sorted((folder for folder, step in steps.items() if step.isdecimal()), key=lambda f: int(steps[f]))


def _is_whole(checkpoint: Path, processes: int) -> bool:
    """Whether a checkpoint's files can be read, the last written among them."""
    deepspeed = checkpoint / "latest"
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt") as weights:
            weights.keys()
        # DeepSpeed names a folder, with one file or with another one of each process that holds a part.
        parts = list((checkpoint / deepspeed.read_text()).glob("*.pt")) if deepspeed.exists() else None
    except (OSError, ValueError, SafetensorError):
        return False
    if parts is not None and len(parts) not in (1, 1 + processes):
        return False
    optimizer = [checkpoint / "optimizer.pt"] if parts is None else parts
    random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all(map(zipfile.is_zipfile, [*optimizer, *(checkpoint / name for name in ("scheduler.pt", *random))]))
