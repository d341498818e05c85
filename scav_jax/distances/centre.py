"""One centre for all clips, taken off before products: no difference changes, nothing cancels.

Where clips lie in groups far apart no one centre helps, which is noticed (`scattered`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scav_jax.distances.euclidean_blocks import FULL_PRECISION, sum_dtype
from scav_jax.sequences import Sequences, zero_padding

FAR = 16.0  # times the median squared distance from the mean
PIVOTS = 16  # groups of clips, or clips far from all others, that are told apart
SKETCHED_STEPS, SKETCH_WIDTH = 8, 16
SCATTERED = 1e4  # squared distances from the centre, in those within groups: costs four digits


def typical(points: Float[Array, "N C"]) -> Float[Array, " C"]:
    """The mean of points, but for those far from the others; held in gradients.

    One broken clip, far away or not finite, shall not take the digits of all others.
    """
    points = jax.lax.stop_gradient(points)
    mean = _mean_of(points, jnp.all(jnp.isfinite(points), axis=1))
    apart = jnp.sum((points - mean[None]) ** 2, axis=1)
    apart = jnp.where(jnp.isfinite(apart), apart, jnp.inf)
    return _mean_of(points, (apart <= FAR * jnp.median(apart)) & jnp.isfinite(apart))


def _mean_of(points, chosen) -> Float[Array, " C"]:
    total = jnp.sum(jnp.where(chosen[:, None], points, 0.0), axis=0)
    return total / jnp.maximum(jnp.sum(chosen), 1).astype(points.dtype)


def scattered(visual: Sequences, audio: Sequences) -> Bool[Array, ""]:
    """Whether clips lie in a few groups much farther apart than the clips of a group.

    Seen from sketches of the clips, by pivots, each the clip that is farthest from those before it
    (Gonzalez 1985), at most as many as half of all clips.
    """
    points = jax.lax.stop_gradient(jnp.concatenate([_sketches(visual), _sketches(audio)]))
    centre = jnp.mean(points[len(visual.lengths) :], axis=0, keepdims=True)
    from_centre = jnp.sum((points - centre) ** 2, axis=1)

    def to_nearest(nearest, _):
        pivot = jax.lax.dynamic_slice_in_dim(points, jnp.argmax(nearest), 1)
        return jnp.minimum(nearest, jnp.sum((points - pivot) ** 2, axis=1)), None

    pivots = min(PIVOTS, len(points) // 2)
    unroll = jax.default_backend() != "cpu"  # where a loop's own kernels are half of all
    nearest, _ = jax.lax.scan(to_nearest, from_centre, None, length=pivots, unroll=unroll)
    return jnp.max(from_centre) > SCATTERED * jnp.mean(nearest)


def _sketches(stream: Sequences) -> Float[Array, "B 32"]:
    """Of each clip: the mean of some steps, and that of what lies beyond it with alternating signs.

    Projected at random: cheap beside a product of all pairs, and clips that are far apart stay so.
    """
    stride = max(1, stream.values.shape[1] // SKETCHED_STEPS)
    lengths = -(-stream.lengths // stride)
    values = zero_padding(stream.values[:, ::stride].astype(sum_dtype(stream)), lengths)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (values.shape[2], SKETCH_WIDTH))
    signs = jnp.asarray(signs, values.dtype)
    turns = jnp.asarray(1 - 2 * (np.arange(values.shape[1]) % 2), values.dtype)
    count = lengths[:, None].astype(values.dtype)
    mean = jnp.sum(values, axis=1) / count
    # Less the mean, of which an odd number of steps would leave a share: lengths are no groups.
    beyond = zero_padding(values - mean[:, None], lengths) * turns[None, :, None]
    sketches = mean, jnp.sum(beyond, axis=1) / count
    return jnp.concatenate(
        [jnp.matmul(x, signs, precision=FULL_PRECISION) for x in sketches], axis=1
    )
