"""What watches a training run, step by step: broken gradients stop it, and its figures are printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shared_context.errors import TrainingError
from shared_context.training.run_folder import ADAPTER_FOLDER, last_checkpoint


class StopAtBrokenGradients(TrainerCallback):
    """Keeps an update by gradients that are no numbers out of the weights, and so out of the next checkpoint."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                step = state.global_step + 1
                raise TrainingError(
                    f"The gradient of {name} is no number at step {step}; it was not learned from. {advice(args)}"
                )


def advice(args: TrainingArguments) -> str:
    """What to do after a number that is none: a run is resumed with its own settings only, so a new one is needed."""
    checkpoint = last_checkpoint(Path(args.output_dir), args.world_size)
    start = f"from the last checkpoint's adapter (--start {checkpoint / ADAPTER_FOLDER}) " if checkpoint else ""
    return (
        f"Begin a new run {start}with a lower learning rate (--learning-rate) in another folder (--output), or look "
        "at the data of this step."
    )


class Progress(TrainerCallback):
    """One line on stderr for all that is logged."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if name != "epoch")
            print(f"step {state.global_step}/{state.max_steps}  {figures}", file=sys.stderr, flush=True)
