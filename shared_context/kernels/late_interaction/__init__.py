"""Late-interaction scores of leaves."""

from shared_context.kernels.late_interaction.scores import late_interaction_scores, quantize_codes

__all__ = ["late_interaction_scores", "quantize_codes"]
