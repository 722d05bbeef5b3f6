"""`shared-context train`: an adapter for a model, from questions with their passages or from long texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from shared_context.cli import output
from shared_context.cli.options import JsonOption
from shared_context.config import InjectionKind, Rows


def train(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="JSON lines, SQuAD files or plain texts, also .gz; or data sets that `datasets` loads, as NAME or "
            "NAME:CONFIGURATION:SPLIT.",
            show_default=False,
        ),
    ],
    folder: Annotated[Path, typer.Option("--output", help="Folder of the run.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="Name or folder; the default model's if none.")] = None,
    stage: Annotated[
        str, typer.Option("--stage", help="questions (with answers and passages) or running_text (long texts).")
    ] = "questions",
    texts: Annotated[
        list[str] | None,
        typer.Option("--texts", help="Long texts, of which passages are drawn beside the rows; may be repeated."),
    ] = None,
    quotes: Annotated[float, typer.Option("--quotes", help="Share of passages that are also quoted from.")] = 1.0,
    clozes: Annotated[
        float, typer.Option("--clozes", help="Share of passages of which a sentence is also shown with a gap.")
    ] = 0.0,
    key_values: Annotated[
        float, typer.Option("--key-values", help="Share of rows followed by a made-up passage of facts.")
    ] = 0.1,
    needles: Annotated[
        float, typer.Option("--needles", help="Share of passages that are also shown with made-up facts in them.")
    ] = 0.0,
    tracking: Annotated[
        float, typer.Option("--tracking", help="Share of rows followed by made-up comparisons that form chains.")
    ] = 0.0,
    injection: Annotated[InjectionKind, typer.Option("--injection", help="What is trained.")] = "prefix",
    injection_layers: Annotated[
        int | None, typer.Option("--injection-layers", help="The bottom layers that see the context; all by default.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="ADAPTER", help="Begin with this adapter's weights, as one stage follows another."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimizer steps.")] = 1000,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples per step and process.")] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At its peak.")] = 1e-3,
    rank: Annotated[int, typer.Option("--rank", help="Of the low-rank updates.")] = 16,
    alpha: Annotated[float, typer.Option("--alpha", help="Low-rank updates are scaled by alpha / rank.")] = 32.0,
    upper_layers: Annotated[
        bool,
        typer.Option(
            "--upper-layers", help="With cross-attention, also train the attention of the layers above, by updates."
        ),
    ] = False,
    distillation: Annotated[
        float, typer.Option("--distillation", help="Weight of the divergence from the untrained model reading text.")
    ] = 0.0,
    self_distillation: Annotated[
        float, typer.Option("--self-distillation", help="Weight of the divergence from itself at ratio 1.")
    ] = 0.0,
    ratios: Annotated[
        str | None, typer.Option("--ratios", metavar="RATIO:WEIGHT,...", help="How often each grain is drawn.")
    ] = None,
    rows: Annotated[
        Rows, typer.Option("--rows", help="Which rows coarse grains keep, as the adapter is then served.")
    ] = "importance",
    split_noise: Annotated[
        float | None,
        typer.Option("--split-noise", help="Deviation of the split points of trees, as a share of the span. [0.1]"),
    ] = None,
    running_tokens: Annotated[
        int, typer.Option("--running-tokens", help="Tokens behind a context, in the stage running_text.")
    ] = 256,
    max_context: Annotated[int, typer.Option("--max-context", help="Tokens of a context at most.")] = 1024,
    held_out: Annotated[int, typer.Option("--held-out", help="Rows at the end, kept for validation.")] = 200,
    evaluate_every: Annotated[int, typer.Option("--evaluate-every", help="Steps between validations.")] = 100,
    save_every: Annotated[int, typer.Option("--save-every", help="Steps between checkpoints.")] = 100,
    log_every: Annotated[int, typer.Option("--log-every", help="Steps between lines of figures.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", help="Steps in which the learning rate rises.")] = 20,
    seed: Annotated[int, typer.Option("--seed", help="Of everything drawn at random.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Pass over broken rows.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last whole checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train an adapter; its folder is OUTPUT/adapter, for --adapter and from_pretrained.

    Validation shows held-out passages at an eighth of their KV, next to wrong passages of the same length.
    """
    settings: dict[str, Any] = {
        "stage": stage,
        "injection": injection,
        "injection_layers": injection_layers,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "rank": rank,
        "alpha": alpha,
        "upper_layers": upper_layers,
        "distillation": distillation,
        "self_distillation": self_distillation,
        "running_tokens": running_tokens,
        "max_context": max_context,
        "held_out": held_out,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
        "log_every": log_every,
        "warmup": warmup,
        "seed": seed,
    }
    cuts: dict[str, Any] = {"rows": rows} | ({} if split_noise is None else {"split_noise": split_noise})
    weights = None if ratios is None else _parse_ratios(ratios)
    tasks = {
        "quotes": quotes,
        "clozes": clozes,
        "key_values": key_values,
        "needles": needles,
        "tracking": tracking,
    }
    with redirect_stdout(sys.stderr):  # DeepSpeed, where it is installed, logs to where results go
        history = _train(
            data, texts or [], folder, settings, tasks, weights, cuts, model, start, device, skip_broken, resume
        )
    if int(os.environ.get("RANK", "0")) > 0:  # of several processes the first one reports
        return
    last: Mapping[str, float] = next((entry for entry in reversed(history) if "eval_gain" in entry), {})
    report = {"adapter": str(folder / "adapter"), **{name: value for name, value in last.items() if name != "epoch"}}
    if as_json:
        output.print_json(report)
        return
    print(f"adapter: {report['adapter']}")
    if last:
        print(
            f"held-out answers, nats per token: {last['eval_right']:.3f} with the right passage at ratio 8, "
            f"{last['eval_wrong']:.3f} with a wrong one"
        )


def _train(
    data: list[str],
    texts: list[str],
    folder: Path,
    settings: dict[str, Any],
    tasks: dict[str, float],
    ratios: dict[int, float] | None,
    cuts: dict[str, Any],
    model: str | None,
    start: str | None,
    device: str,
    skip_broken: bool,
    resume: bool,
) -> list[dict[str, Any]]:
    import json

    from shared_context import SharedLLMModel
    from shared_context.model.adapter import Adapter
    from shared_context.model.pretrained import DEFAULT_MODEL
    from shared_context.training import CutConfig, Tasks, TrainingConfig
    from shared_context.training import train as run
    from shared_context.training.config import RATIOS
    from shared_context.training.run_folder import HISTORY_FILE

    config = TrainingConfig(**settings, cuts=CutConfig(ratios or RATIOS, **cuts), tasks=Tasks(**tasks))
    base = SharedLLMModel.from_pretrained(
        model or DEFAULT_MODEL,
        adapter=None,
        device=device,
        injection=config.injection,
        injection_layers=config.injection_layers,
    )
    first = None if start is None else Adapter.from_pretrained(start)
    run(base, data, folder, config, texts=texts, start=first, skip_broken=skip_broken, resume=resume)
    return json.loads((folder / HISTORY_FILE).read_text(encoding="utf-8"))


def _parse_ratios(text: str) -> dict[int, float]:
    try:
        return {int(ratio): float(weight) for ratio, _, weight in (part.partition(":") for part in text.split(","))}
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not RATIO:WEIGHT,RATIO:WEIGHT,...", param_hint="--ratios") from error
