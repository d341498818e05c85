"""Parameters and states for tests that do not ask how they begin: drawn by NumPy.

Only shapes are traced. Compiling an initialisation takes as long as compiling a training step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax.train_step import TrainState
from scav_jax.training.runs import parameter_shapes


def params(encoders, objective, example, seed=0):
    """As of `init_params`, with scales near 1 and biases near 0, none of them at a special value.

    Temperatures are the objective's.
    """
    widths = {name: stream.values.shape[2] for name, stream in example.features._asdict().items()}
    shapes = parameter_shapes(encoders, objective, widths)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [str(part.key) for part in path]
        if names[0] == "log_temperature":
            return np.log(np.float32(objective.temperatures()[names[1]]))
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.1
        values = spread * rng.normal(size=leaf.shape) + ("scale" in names[-1])
        return values.astype(leaf.dtype)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def state(encoders, objective, optimizer, example, seed=0):
    """As of `init_state`; the optimizer's is zero at the start, as all of ours are."""
    drawn = params(encoders, objective, example, seed)
    shapes = jax.eval_shape(optimizer.init, drawn)
    zeros = jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), shapes)
    step, skipped, in_row = (jnp.asarray(np.int32(0)) for _ in range(3))
    memory = jax.tree.map(jnp.array, objective.memory())
    return TrainState(step, drawn, zeros, memory, skipped, in_row)
