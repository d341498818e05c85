"""Augmentation of features: changes that a backbone declares free, since they say nothing new.

A picture may be mirrored, its colours may change places, its sound may be higher or lower: what
happens when stays the same. What is drawn follows from the step's key and a clip's number, and
holds for the whole clip. Features are reordered, nothing else: padding and precision stay.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from scav_jax.sequences import AudioVisual, Batch, Sequences

MOST_BINS = 10  # by which a spectrum is moved, up or down


class Free(NamedTuple):
    """What may be changed, in which share of the clips.

    Attributes:
      share: of the clips that are changed, 0 to 1.
      grid: (kinds, rows, columns, colours) of visual features, of which rows and columns are
        mirrored and colours change places; () leaves them as they are.
      mel: (frames, bins) of audio features, whose spectrum is moved by up to `MOST_BINS` bins and
        its end repeated; () leaves them.
    """

    share: float = 0.0
    grid: tuple[int, ...] = ()
    mel: tuple[int, ...] = ()


NOTHING = Free()


def changed(free: Free, batch: Batch, key: Array) -> Batch:
    """Some clips with their features changed; `key` is the step's."""
    if not free.share:
        return batch

    def of_clip(number: Int[Array, ""], clip: AudioVisual) -> AudioVisual:
        whether, *own = jax.random.split(jax.random.fold_in(key, number), 3)
        change = jax.random.uniform(whether) < free.share
        orders = _of_grid(free.grid, own[0]), _of_mel(free.mel, own[1])
        return AudioVisual(*(_reordered(*one, change) for one in zip(clip, orders, strict=True)))

    features = jax.tree.map(jnp.asarray, batch.features)
    return batch._replace(features=jax.vmap(of_clip)(jnp.asarray(batch.numbers), features))


def _reordered(stream: Sequences, order: Int[Array, " D"] | None, change: Array) -> Sequences:
    if order is None:
        return stream
    order = jnp.where(change, order, jnp.arange(order.size))
    return stream.replace(values=jnp.take(stream.values, order, axis=1))


def _of_grid(grid: tuple[int, ...], key: Array) -> Int[Array, " D"] | None:
    """Which feature comes where in a grid that is mirrored, each way with even odds."""
    if not grid:
        return None
    places, (flips, colours) = jnp.arange(math.prod(grid)).reshape(grid), jax.random.split(key)
    for axis, flip in zip((1, 2), jax.random.bernoulli(flips, shape=(2,)), strict=True):
        places = jnp.where(flip, jnp.flip(places, axis), places)
    return jax.random.permutation(colours, places, axis=3).reshape(-1)


def _of_mel(mel: tuple[int, ...], key: Array) -> Int[Array, " D"] | None:
    """The same in frames of a spectrum, all moved alike."""
    if not mel:
        return None
    places, last = jnp.arange(math.prod(mel)).reshape(mel), mel[1] - 1
    moved = jnp.arange(mel[1]) - jax.random.randint(key, (), -MOST_BINS, MOST_BINS + 1)
    return jnp.take(places, jnp.clip(moved, 0, last), axis=1).reshape(-1)
