"""Late-interaction scores of leaves, and of the nodes above them."""

from shared_context.kernels.late_interaction.naive import late_interaction_scores_naive, node_scores_naive
from shared_context.kernels.late_interaction.scoring import late_interaction_scores, node_scores, quantize_codes

__all__ = [
    "late_interaction_scores",
    "late_interaction_scores_naive",
    "node_scores",
    "node_scores_naive",
    "quantize_codes",
]
