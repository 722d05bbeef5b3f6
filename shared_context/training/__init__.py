"""Training of adapters: the objective, its data, and the run."""

from shared_context.training.averaging import average
from shared_context.training.config import TrainingConfig
from shared_context.training.layout import CutConfig
from shared_context.training.streams import Tasks
from shared_context.training.trainer import train, validate

__all__ = ["CutConfig", "Tasks", "TrainingConfig", "average", "train", "validate"]
