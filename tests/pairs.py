"""Padded clips, and the distances of all pairs with their gradients, for the tests of distances."""

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax.sequences import Sequences, sequences


def padded(items, steps, dtype=np.float32, fill=np.nan, windows=None) -> Sequences:
    """Clips `[length, width]` as `Sequences` of so many steps, whole windows unless given."""
    values = np.full((len(items), steps, items[0].shape[1]), fill, dtype)
    for row, item in zip(values, items, strict=True):
        row[: len(item)] = item
    lengths = jnp.array([len(item) for item in items], jnp.int32)
    windows = None if windows is None else jnp.asarray(windows, dtype)
    return sequences(jnp.asarray(values), lengths, windows)


def lifted(pair):
    """All pairs of a function of one pair: the definition of D."""
    return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))


def with_gradients(function):
    """Jitted `(visual, audio) -> ((total, what the function gives), gradients)`.

    The total is a random contraction of D, which the function gives alone or first of several; the
    gradients are its for the values of both streams.
    """

    def weighted(v, a, visual, audio):
        found = function(visual.replace(values=v), audio.replace(values=a))
        D = found[0] if isinstance(found, tuple) else found
        weights = np.random.default_rng(9).normal(size=D.shape).astype(D.dtype)
        return jnp.sum(D * weights), found

    compiled = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))
    return lambda visual, audio: compiled(visual.values, audio.values, visual, audio)


def assert_close(found, expected, relative):
    """Relative to the largest number of each array."""
    for ours, theirs in zip(found, expected, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * np.abs(theirs).max())
