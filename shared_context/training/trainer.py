"""Training on Hugging Face's Trainer: one processor, one GPU or many under torchrun run the same code."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from shared_context.config import require
from shared_context.errors import TrainingError
from shared_context.model.adapter import Adapter, AdapterConfig
from shared_context.model.shared_llm import SharedLLMModel
from shared_context.plotting import can_draw
from shared_context.training.callbacks import Progress, StopAtBrokenGradients, advice
from shared_context.training.card import model_card
from shared_context.training.config import TrainingConfig
from shared_context.training.curves import curves
from shared_context.training.examples import (
    Example,
    ExampleMaker,
)
from shared_context.training.layout import LayoutMaker
from shared_context.training.objective import InjectionObjective
from shared_context.training.rows import ExampleStream, Rows, held_out_examples
from shared_context.training.run_folder import (
    ADAPTER_FOLDER,
    CURVES_FILE,
    HISTORY_FILE,
    last_checkpoint,
    prepare,
    write_adapter,
    write_whole,
)
from shared_context.training.sharding import adapter_held_whole, deepspeed_stage, launched_with_fsdp, shard_layers
from shared_context.training.streams import other_contexts

PACKED_SEPARATOR = "\n\n"


def train(
    model: SharedLLMModel,
    data: str | Path | Sequence[str | Path],
    output: str | Path,
    config: TrainingConfig | None = None,
    *,
    texts: str | Path | Sequence[str | Path] = (),
    start: Adapter | None = None,
    skip_broken: bool = False,
    resume: bool = False,
) -> Adapter:
    """Train an adapter.

    What is written into ``output``: ``adapter``, the result; ``checkpoint-STEP``, each with its own ``adapter`` and
    all that is needed to go on; ``history.json``, every figure that was logged; and with the extra ``train``
    ``curves.svg``, its picture, and TensorBoard's logs in ``runs``.

    Args:
        model: the base model, without an adapter, with the injection and the layers that are to be trained. Launched
            with FSDP, its layers stay shared out among the processes; load it anew to serve it.
        data: one source or several, as :func:`~shared_context.training.data.read_rows` takes them.
        output: folder of the run.
        config: the settings.
        texts: sources of long texts, of which passages are drawn beside the rows of the stage "questions".
        start: begin with its weights instead of untrained ones, as one stage follows another; it was made for this
            model, with the injection, layers, rank and alpha of ``config``.
        skip_broken: pass over broken rows, with a warning each: lines that are no JSON object, texts that are missing
            or empty, questions that do not fit the window.
        resume: go on from the last whole checkpoint in ``output``, where there is one; of a run that has ended the
            adapter is returned as it lies there.

    Raises:
        TrainingDataError: data are broken or empty.
        TrainingError: the loss is no number any more, or a figure of a validation is none.
        ConfigError: a setting is out of range, not the model's, not those of ``start``, or not those of the run in
            ``output``; or the model has an adapter; or it was launched with DeepSpeed's third stage, FSDP's first
            version, or FSDP and no other process.
        ModelMismatchError: ``start``, or the run that is resumed, was trained on another base model.
    """
    config = config or TrainingConfig()
    output = Path(output)
    sharded, stage = launched_with_fsdp(), deepspeed_stage()
    _check_model(model, config)
    sources, long_texts = _listed(data), _listed(texts)
    require(not long_texts or config.stage == "questions", "texts", long_texts, 'belong to the stage "questions"')
    if start is not None:
        _check_start(start, model, config)
    arguments = _arguments(output, config, model.device)
    # One process makes the folder or refuses it, the others wait for that.
    with arguments.main_process_first(local=False):
        if arguments.should_save:
            launch = {"processes": arguments.world_size, "zero_stage": stage}
            prepare(output, model, config, {"data": sources, "texts": long_texts}, start, launch, resume)
    if resume and (output / ADAPTER_FOLDER).exists():  # what a run writes last
        return Adapter.from_pretrained(output / ADAPTER_FOLDER)
    checkpoint = last_checkpoint(output, arguments.world_size) if resume else None
    state = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME) if checkpoint else TrainerState()
    if checkpoint and state.global_step >= config.steps:  # the Trainer would take one step more
        adapter = Adapter.from_pretrained(checkpoint / ADAPTER_FOLDER)
    else:
        maker = ExampleMaker(model, config.max_context)
        rows = Rows(sources, skip_broken, config.stage, maker, config.held_out)
        books = Rows(long_texts, skip_broken, "running_text", maker)
        books.survey()
        # The end of an answer is no part of what it says, so validation leaves it out, as SharedLLMModel.score does.
        validation = held_out_examples(rows, ExampleMaker(model, config.max_context, ended=False), config)
        torch.manual_seed(config.seed)
        objective = _objective(model, config, start)
        if sharded:
            shard_layers(model.hf_model)
        stream = ExampleStream(rows, books, maker, config)
        named = [Path(source).name for source in (*sources, *long_texts)]
        with adapter_held_whole():
            trainer = AdapterTrainer(config, objective, stream, validation, arguments, named, start)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        adapter, state = trainer.adapter(), trainer.state
    if arguments.should_save:
        if can_draw():
            write_whole(output / CURVES_FILE, curves(state.log_history, f"{model.name}, {config.injection} injection"))
        write_adapter(output, adapter)
    return adapter


def validate(
    model: SharedLLMModel,
    adapter: Adapter | None,
    data: str | Path | Sequence[str | Path],
    config: TrainingConfig | None = None,
    *,
    skip_broken: bool = False,
) -> dict[str, float]:
    """The figures of an adapter on the rows that a run with these settings holds out of ``data``.

    Arguments and errors are those of :func:`train`; the adapter is in the place of ``start``, its contexts are shown by
    the rows that it is served with, and None stands for the model as it is before the first step.

    Returns:
        Nats per answer token: ``eval_right`` with the right context, ``eval_wrong`` with a wrong one of the same
        length, ``eval_gain``, the second minus the first.
    """
    config = config or TrainingConfig()
    _check_model(model, config)
    if adapter is not None:
        _check_start(adapter, model, config)
        config = replace(config, cuts=replace(config.cuts, rows=adapter.config.rows))
    maker = ExampleMaker(model, config.max_context, ended=False)
    examples = held_out_examples(Rows(_listed(data), skip_broken, config.stage, maker, config.held_out), maker, config)
    return _figures(_objective(model, config, adapter).eval(), examples, other_contexts(examples), config)


class AdapterTrainer(Trainer):
    """Hugging Face's Trainer over an :class:`InjectionObjective`.

    Args:
        config: the settings.
        objective: what is minimised, and the weights.
        stream: training examples without end.
        validation: examples that are never trained on.
        arguments: of the Trainer.
        sources: names of the data, for the adapter's card.
        start: the adapter that the weights were before the first step, None where they were untrained.
    """

    control: TrainerControl

    def __init__(
        self,
        config: TrainingConfig,
        objective: InjectionObjective,
        stream: IterableDataset,
        validation: Sequence[Example],
        arguments: TrainingArguments,
        sources: Sequence[str],
        start: Adapter | None = None,
    ):
        super().__init__(
            model=objective,
            args=arguments,
            data_collator=lambda examples: {"examples": examples},
            train_dataset=stream,
            eval_dataset=list(validation),
            callbacks=[StopAtBrokenGradients(), Progress()],
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, where a command's results go
        self.model_accepts_loss_kwargs = False
        self._config = config
        self._objective = objective
        self._sources, self._start = sources, start
        self._wrong = other_contexts(validation)
        self._parts: list[dict[str, float]] = []
        self._counted: tuple[float, int] | None = None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The loss of a batch; one that is no number stops the training before anything is changed by it."""
        parts = model(inputs["examples"])
        if not torch.isfinite(parts["loss"]):
            step = self.state.global_step + 1
            raise TrainingError(
                f"The loss is {parts['loss'].item()} at step {step}; it was not learned from. {advice(self.args)}"
            )
        self._parts.append({name: value.item() for name, value in parts.items() if name != "loss"})
        return (parts["loss"], parts) if return_outputs else parts["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the parts of the loss and the throughput, and keep it all in a file."""
        if "loss" in logs and self._parts:
            logs |= {name: fmean(part[name] for part in self._parts) for name in self._parts[0]}
            self._parts.clear()
            now, tokens = time.perf_counter(), int(self._objective.tokens_seen)
            if self._counted is not None:
                since, before = self._counted
                logs["tokens_per_second"] = (tokens - before) * self.args.world_size / (now - since)
            self._counted = now, tokens
        super().log(logs, *args, **kwargs)
        if self.args.should_save:
            # A norm of gradients may be infinite, which JSON has no word for.
            history = [{k: v if math.isfinite(v) else None for k, v in e.items()} for e in self.state.log_history]
            write_whole(Path(self.args.output_dir) / HISTORY_FILE, json.dumps(history, indent=1) + "\n")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """NLL of the held-out answers with the right context, with a wrong one of the same length, and the gain.

        One that is no number stops the training before a checkpoint of this step takes the place of an older one.
        """
        self.model.eval()
        metrics = _figures(self._objective, self.eval_dataset, self._wrong, self._config)
        self.model.train()
        for name, value in metrics.items():
            if not math.isfinite(value):
                step = self.state.global_step
                raise TrainingError(f"{name} is {value} at step {step}, which was not saved. {advice(self.args)}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def adapter(self) -> Adapter:
        """The adapter as it is now, its weights in bfloat16."""
        objective, config = self._objective, self._config
        model = objective.model
        rank, alpha = config.low_rank or (None, None)
        seen_before = 0 if self._start is None else self._start.config.tokens_seen
        described = AdapterConfig(
            base_model=model.name,
            base_fingerprint=model.fingerprint,
            injection=config.injection,
            injection_layers=model.injection.layers,
            base_revision=getattr(model.hf_model.config, "_commit_hash", None),
            rank=rank,
            alpha=alpha,
            ratios=tuple(sorted(config.cuts.ratios)),
            chunk_size=config.cuts.chunk_size,
            height=config.cuts.height,
            split_noise=config.cuts.split_noise,
            rows=config.cuts.rows,
            tokens_seen=seen_before + int(objective.tokens_seen) * self.args.world_size,
        )
        weights = {name: weight.to(torch.bfloat16) for name, weight in objective.trained.state_dict().items()}
        validated = (entry for entry in reversed(self.state.log_history) if "eval_gain" in entry)
        start = None if self._start is None else self._start.digest
        card = model_card(described, config, self.state.global_step, self._sources, next(validated, {}), start)
        return Adapter(described, weights, card)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        began = time.perf_counter()
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._counted is not None:
            # Validating and saving are no time of training: what has passed since the log is not counted.
            since, tokens = self._counted
            self._counted = since + time.perf_counter() - max(began, since), tokens

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        adapter = self.adapter()
        for name, weight in adapter.weights.items():
            # DeepSpeed keeps its gradients to itself, so that nothing before can have seen them.
            if not torch.isfinite(weight).all():
                step = self.state.global_step
                raise TrainingError(f"{name} is no number after step {step}, which was not saved. {advice(self.args)}")
        super()._save(output_dir, state_dict)
        adapter.save_pretrained(Path(output_dir or self.args.output_dir) / ADAPTER_FOLDER)


def _listed(sources: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [sources] if isinstance(sources, str | Path) else list(sources)


def _objective(model: SharedLLMModel, config: TrainingConfig, start: Adapter | None) -> InjectionObjective:
    objective = InjectionObjective(
        model,
        LayoutMaker(config.cuts, model.tokenizer(PACKED_SEPARATOR, add_special_tokens=False)["input_ids"]),
        low_rank=config.low_rank,
        distillation=config.distillation,
        self_distillation=config.self_distillation,
    )
    if start is not None:
        start.load_into(objective.trained)
    return objective


def _figures(
    objective: InjectionObjective, right: Sequence[Example], wrong: Sequence[Example], config: TrainingConfig
) -> dict[str, float]:
    means = {
        f"eval_{name}": fmean(
            nll
            for start in range(0, len(examples), config.batch_size)
            for nll in objective.nll(examples[start : start + config.batch_size], config.validation_ratio)
        )
        for name, examples in (("right", right), ("wrong", wrong))
    }
    return {**means, "eval_gain": means["eval_wrong"] - means["eval_right"]}


def _check_model(model: SharedLLMModel, config: TrainingConfig) -> None:
    require(config.injection == model.injection.kind, "injection", config.injection, f"{model!r} was given")
    layers = model.hf_model.config.num_hidden_layers if config.injection_layers is None else config.injection_layers
    require(layers == model.injection.layers, "injection_layers", layers, f"{model!r} was given")
    require(
        not model.has_adapter,
        "model",
        model,
        "has an adapter loaded; load it with adapter=None, and give the adapter by itself (start)",
    )
    running = config.running_tokens if config.stage == "running_text" else 0
    needed = len(model.prompt_format.prefix) + config.max_context + running
    require(
        needed <= model.context_window,
        "max_context",
        config.max_context,
        f"with the prompt's prefix and {running} running tokens that is {needed} tokens, and {model.name} reads "
        f"{model.context_window}",
    )


def _check_start(start: Adapter, model: SharedLLMModel, config: TrainingConfig) -> None:
    start.check_base(model.name, model.fingerprint)
    rank, alpha = config.low_rank or (None, None)
    wanted: dict[str, Any] = {
        "injection": config.injection,
        "injection_layers": model.injection.layers,
        "rank": rank,
        "alpha": alpha,
    }
    for name, value in wanted.items():
        found = getattr(start.config, name)
        require(found == value, name, value, f"is {found} in the adapter that training starts from")


def _arguments(output: Path, config: TrainingConfig, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(output),
        use_cpu=device.type == "cpu",
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=config.log_every,
        eval_strategy="steps",
        eval_steps=config.evaluate_every,
        save_steps=config.save_every,
        save_total_limit=config.keep,
        seed=config.seed,
        report_to=["tensorboard"] if find_spec("tensorboard") else [],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        # Examples are no tensors, so every process reads for itself and takes its share.
        accelerator_config={"dispatch_batches": False},
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        # One process trains on one GPU: copies of the trained weights on others would call the model on the first.
        arguments._n_gpu = 1
    return arguments
