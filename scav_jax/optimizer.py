"""AdamW with linear warm-up and cosine decay (paper section IV), and what is not decayed."""

import jax
import optax

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import ABOVE_0, AT_LEAST_0, BELOW_1, check_range

# Norms, biases, position tables, gates' scales, modalities' vectors, and everything below
# `log_temperature`: decay would only pull them towards a value that means nothing.
NOT_DECAYED = ("bias", "scale", "position_table", "head_scale", "modality")


def learning_rate_schedule(
    *, learning_rate: float, warmup_steps: int, steps: int, final_learning_rate: float = 0.0
) -> optax.Schedule:
    """Linear from 0 to `learning_rate` over `warmup_steps`, then a cosine to the final one."""
    check_range("optimizer.learning_rate", learning_rate, AT_LEAST_0)
    if not 0 <= final_learning_rate <= learning_rate:
        raise InputError(
            "optimizer.final_learning_rate: expected 0 up to optimizer.learning_rate = "
            f"{learning_rate:g}, got {final_learning_rate:g}"
        )
    if not 0 <= warmup_steps < steps:
        raise InputError(
            f"optimizer.warmup_steps: expected 0 <= warmup_steps < train.steps = {steps}, "
            f"got {warmup_steps}"
        )
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, steps, final_learning_rate
    )


def is_decayed(params) -> dict:
    """The tree of `params` with True where weight decay applies: matrices of the layers only."""

    def decayed(path, _) -> bool:
        return str(path[-1].key) not in NOT_DECAYED and path[0].key != "log_temperature"

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(
    *,
    steps: int,
    learning_rate: float = 7e-4,
    warmup_steps: int = 5_000,
    b1: float = 0.95,
    b2: float = 0.98,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    final_learning_rate: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW as in the paper; weight decay and warm-up are ours (the paper names neither).

    Args:
      steps: of the whole training, where the cosine ends.
      learning_rate: the peak (paper: 7e-4).
      warmup_steps: steps of linear warm-up.
      b1, b2: Adam's decay rates (paper: 0.95, 0.98).
      weight_decay: decoupled, on the layers' matrices only.
      clip_norm: clips the global norm of the gradient; None does not.
      final_learning_rate: where the cosine ends.

    Raises:
      InputError: an option out of its range.
    """
    for name, rate in (("b1", b1), ("b2", b2)):
        check_range(f"optimizer.{name}", rate, BELOW_1)
    check_range("optimizer.weight_decay", weight_decay, AT_LEAST_0)
    check_range("optimizer.clip_norm", clip_norm, ABOVE_0)
    schedule = learning_rate_schedule(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        steps=steps,
        final_learning_rate=final_learning_rate,
    )
    adamw = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=is_decayed)
    if clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)
