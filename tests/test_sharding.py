"""Where arrays live on a mesh, and which batches it can cut; what is computed: test_scaling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.sequences import AudioVisual, sequences

DEVICES = 8
needs_devices = pytest.mark.skipif(len(jax.devices()) < DEVICES, reason=f"needs {DEVICES} devices")


def batch(clips=2 * DEVICES, widths=(5, 9)):
    rng = np.random.default_rng(0)
    streams = []
    for steps, width in zip((6, 4), widths, strict=True):
        lengths = rng.integers(1, steps + 1, clips)
        values = rng.normal(size=(clips, steps, width)).astype(np.float32)
        for row, length in zip(values, lengths, strict=True):
            row[length:] = np.nan
        streams.append(sequences(jnp.asarray(values), jnp.asarray(lengths, jnp.int32)))
    return AudioVisual(*streams)


@needs_devices
def test_a_batch_is_cut_along_its_first_axis_and_parameters_are_whole():
    mesh = sharding.make_mesh(DEVICES)
    spread = sharding.put_batch(batch(), mesh)
    for before, leaf in zip(jax.tree.leaves(batch()), jax.tree.leaves(spread), strict=True):
        assert len(leaf.addressable_shards) == DEVICES
        for shard in leaf.addressable_shards:
            assert shard.data.shape == (2, *leaf.shape[1:])
        np.testing.assert_array_equal(leaf, before)
    whole = sharding.put_replicated({"kernel": jnp.ones((3, 5))}, mesh)["kernel"]
    assert whole.is_fully_replicated
    assert len(whole.addressable_shards) == DEVICES


@needs_devices
def test_a_mesh_takes_the_first_devices():
    assert sharding.make_mesh().size == len(jax.devices())
    assert sharding.make_mesh(3).size == 3
    assert list(sharding.make_mesh(3).devices.flat) == jax.devices()[:3]


@pytest.mark.parametrize("devices", [0, 10_000])
def test_impossible_meshes_are_named(devices):
    with pytest.raises(InputError, match=str(devices)):
        sharding.make_mesh(devices)


def test_batch_size_must_fit_the_devices():
    sharding.check_cuts(16, 0, devices=8)
    with pytest.raises(InputError, match=r"data\.batch_size: .* of the 8 devices.*use 16 or 24$"):
        sharding.check_cuts(19, 0, devices=8)
    with pytest.raises(InputError, match=r"use 8$"):
        sharding.check_cuts(5, 0, devices=8)
