"""Relative positions: which row of a learned table an offset between two steps reads."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import Range, check_range


def check_buckets(buckets: int, max_distance: int) -> None:
    """Raises `InputError` unless near offsets have buckets of their own, and far ones others.

    Args:
      buckets: of the table; the offsets below a quarter of them have one each.
      max_distance: in steps, up to which the others reach: beyond those of the near ones.
    """
    check_range("encoders.position_buckets", buckets, Range(4))
    check_range("encoders.position_max_distance", max_distance, Range(1, 2**20))
    if max_distance <= buckets // 4:
        raise InputError(
            "encoders.position_max_distance: expected more than a quarter of "
            f"encoders.position_buckets, {buckets // 4} of {buckets}, got {max_distance}; raise it "
            "or take fewer buckets"
        )


def offset_buckets(
    offsets: Int[np.ndarray, "*shape"], buckets: int, max_distance: int
) -> Int[np.ndarray, "*shape"]:
    """The bucket of each offset, key minus query, in steps (T5's bidirectional buckets).

    Half of the buckets serve keys after the query. Near offsets have a bucket each, far ones share
    logarithmically wide buckets up to `max_distance`; farther ones share the last. What both may be
    says `check_buckets`.

    >>> offset_buckets(np.array([-100, -1, 0, 1, 100]), 320, 800).tolist()
    [87, 1, 0, 161, 247]
    """
    half = buckets // 2
    exact = half // 2
    distance = np.abs(offsets)
    scale = np.log(np.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + np.floor(scale * (half - exact)).astype(np.int64), half - 1)
    bucket = np.where(distance < exact, distance, far) + half * (offsets > 0)
    return bucket.astype(np.int32)


def relative_buckets(steps: int, buckets: int, max_distance: int) -> Int[np.ndarray, "T T"]:
    """`offset_buckets` of every (query, key) pair of a sequence.

    >>> relative_buckets(3, 320, 800).tolist()
    [[0, 161, 162], [1, 0, 161], [2, 1, 0]]
    """
    if not isinstance(steps, int):  # a length that is not known while a tower is exported
        reach = np.arange(-max_distance, max_distance + 1)  # beyond it, buckets stay the same
        places = jnp.arange(steps)
        offsets = jnp.clip(places[None, :] - places[:, None], -max_distance, max_distance)
        return jnp.asarray(offset_buckets(reach, buckets, max_distance))[offsets + max_distance]
    offsets = np.arange(steps)[None, :] - np.arange(steps)[:, None]
    return offset_buckets(offsets, buckets, max_distance)
