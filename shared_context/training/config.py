"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from shared_context.config import InjectionKind, one_of, require
from shared_context.training.layout import CutConfig
from shared_context.training.streams import Tasks

Stage = Literal["questions", "running_text"]

RATIOS: Mapping[int, float] = {1: 1.0, 2: 1.0, 4: 2.0, 8: 5.0, 16: 1.0}
"""How often each grain is drawn: one encoding has to serve all of them, an eighth most of all."""


@dataclass(frozen=True)
class TrainingConfig:
    """How an adapter is trained.

    Args:
        stage: "questions" learns from rows of question, answers and passage, the loss on the answer only;
            "running_text" from long texts, the loss on the text behind the compressed context.
        injection: "prefix" trains low-rank updates, "cross_attention" its own projections.
        injection_layers: M; None is all layers.
        steps: optimizer steps.
        batch_size: examples per step and process.
        learning_rate: at its peak; it rises over ``warmup`` steps and falls as a cosine.
        rank, alpha: of the low-rank updates, which are scaled by ``alpha / rank``.
        upper_layers: with cross-attention injection, low-rank updates of the attention of the layers above are trained
            too, as the paper trains that attention.
        distillation: weight of the divergence from the untrained model reading every token as text.
        self_distillation: weight of the divergence from the model that is trained, shown its context at ratio 1.
        tasks: what is made of the rows of the stage "questions" beside their questions, and of long texts beside them.
        cuts: how the grains of contexts are drawn.
        max_context: tokens of a context at most.
        running_tokens: tokens behind it, in the stage "running_text".
        held_out: rows at the end of the data that are kept for validation.
        validated: examples that validation looks at, of those held out.
        validation_ratio: grain at which validation shows its contexts.
        evaluate_every, save_every, log_every: steps between them.
        keep: checkpoints that are kept; older ones go.
        seed: of everything drawn at random.
    """

    stage: Stage = "questions"
    injection: InjectionKind = "prefix"
    injection_layers: int | None = None
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: int = 20
    rank: int = 16
    alpha: float = 32.0
    upper_layers: bool = False
    distillation: float = 0.0
    self_distillation: float = 0.0
    tasks: Tasks = field(default_factory=Tasks)
    cuts: CutConfig = field(default_factory=lambda: CutConfig(RATIOS, rows="importance"))
    max_context: int = 1024
    running_tokens: int = 256
    held_out: int = 200
    validated: int = 100
    validation_ratio: int = 8
    evaluate_every: int = 100
    save_every: int = 100
    log_every: int = 10
    keep: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("stage", self.stage, Stage)
        one_of("injection", self.injection, InjectionKind)
        for name in (
            "steps", "batch_size", "rank", "max_context", "held_out", "validated", "validation_ratio",
            "evaluate_every", "save_every", "log_every", "keep",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        require(self.running_tokens >= 2, "running_tokens", self.running_tokens, "must be 2 or more tokens")
        for name in ("learning_rate", "alpha"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        prefix = self.injection == "prefix"
        require(not (prefix and self.upper_layers), "upper_layers", True, "is of cross_attention injection")
        for name in ("distillation", "self_distillation", "warmup"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")

    @property
    def low_rank(self) -> tuple[int, float] | None:
        """Rank and alpha of the low-rank updates; None where none are trained."""
        return (self.rank, self.alpha) if self.injection == "prefix" or self.upper_layers else None

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        settings = asdict(self)
        settings["cuts"]["ratios"] = {str(ratio): weight for ratio, weight in self.cuts.ratios.items()}
        return settings
