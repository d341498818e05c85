"""Eight devices give one device's loss and gradients, for every objective and distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train_step import OneLayer

from scav_jax import sharding
from scav_jax.distances import DISTANCES, pairwise
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.objectives import sequence_loss
from scav_jax.optimizer import make_optimizer
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.train_step import Objective, compute_loss, init_params, init_state, make_train_step

DEVICES = 8
ENCODERS = Encoders(
    width=8,
    heads=2,
    feedforward=6,
    visual_blocks=1,
    audio_blocks=1,
    visual_hidden=7,
    audio_hidden=6,
    position_buckets=8,
    position_max_distance=12,
    dropout=0.0,
)
WIDTH = 8
OPTIONS = {"wasserstein": {"blur": 1.0, "position_weight": 2.0, "diameter": 16.0}}
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


def assert_same_on_many(value_and_gradient, replicated, batched):
    """One function, once on one device and once with its batch cut over eight."""
    mesh = sharding.make_mesh(DEVICES)
    compiled = jax.jit(value_and_gradient)
    expected, expected_gradients = compiled(replicated, batched)
    result, gradients = compiled(
        sharding.put_replicated(replicated, mesh), sharding.put_batch(batched, mesh)
    )
    assert len(result.sharding.device_set) == DEVICES
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True))
    largest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * largest)


@needs_devices
def test_loss_and_gradients_of_the_towers_on_eight_devices_are_those_of_one():
    """From features, with ragged clips: a mean per device would differ from the batch's mean."""
    objective = Objective("sequence+aggregation")

    def loss(params, features):
        return compute_loss(ENCODERS, objective, params, features)[0]

    params = init_params(ENCODERS, objective, batch(), seed=0)
    assert_same_on_many(jax.value_and_grad(loss), params, batch())


@needs_devices
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance_on_eight_devices_is_that_of_one(name, normalize):
    """From latents on: D of the global batch, its z-score and the loss, gradients for latents."""
    if not normalize and name != "euclidean":
        pytest.skip("the normalisation does not depend on the distance")
    latents = batch(widths=(WIDTH, WIDTH))

    def loss(log_temperature, latents):
        def of_values(values):
            moved = [s.replace(values=v) for s, v in zip(latents, values, strict=True)]
            distances = pairwise(name, *moved, **OPTIONS.get(name, {}))
            return sequence_loss(distances, log_temperature, normalize=normalize)[0]

        return jax.value_and_grad(of_values)([stream.values for stream in latents])

    assert_same_on_many(loss, jnp.zeros(()), latents)


@needs_devices
def test_whole_steps_on_eight_devices_are_those_of_one():
    """Dropout included: the same seed draws the same mask however the batch is cut."""
    objective = Objective()
    encoders = OneLayer(width=WIDTH, dropout=0.3)
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=2, steps=10)
    state = init_state(encoders, objective, optimizer, batch(), seed=0)
    step = jax.jit(make_train_step(encoders, objective, optimizer, seed=0))
    mesh = sharding.make_mesh(DEVICES)
    features, spread = batch(), sharding.put_batch(batch(), mesh)
    many = sharding.put_replicated(state, mesh)
    for _ in range(3):
        state, metrics = step(state, features)
        many, many_metrics = step(many, spread)
    for name, value in metrics.items():
        np.testing.assert_allclose(many_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert int(many.step) == 3
    for leaf in jax.tree.leaves(many.params):
        assert len(leaf.sharding.device_set) == DEVICES
        assert leaf.is_fully_replicated


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


@needs_devices
def test_batch_size_must_fit_the_devices():
    mesh = sharding.make_mesh(DEVICES)
    sharding.check_batch_size(16, mesh)
    with pytest.raises(InputError, match="16 or 24"):
        sharding.check_batch_size(19, mesh)
    with pytest.raises(InputError, match=r"use 8$"):
        sharding.check_batch_size(5, mesh)
