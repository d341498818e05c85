"""Training objectives as pure functions: `(loss, aux)`, aux holds every intermediate."""

from scav_jax.objectives.contrastive import (
    aggregation_loss,
    normalize_distances,
    sequence_loss,
    temperature,
)

__all__ = ["aggregation_loss", "normalize_distances", "sequence_loss", "temperature"]
