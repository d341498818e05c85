"""AdamW by hand, the schedule at given steps, and what is not decayed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.optimizer import is_decayed, learning_rate_schedule, make_optimizer
from scav_jax.sequences import AudioVisual, sequences

SETTINGS = {"learning_rate": 0.02, "warmup_steps": 3, "steps": 11}
RATE = {"peak": 0.02, "warmup_steps": 3, "steps": 11}


def encoder_params(**fields):
    encoders = Encoders(
        width=16, heads=2, feedforward=6, visual_blocks=1, audio_blocks=1, visual_hidden=5,
        audio_hidden=7, position_buckets=8, position_max_distance=20, **fields,
    )  # fmt: skip
    example = AudioVisual(sequences(jnp.ones((1, 3, 4))), sequences(jnp.ones((1, 2, 9))))
    return jax.eval_shape(encoders.init, jax.random.key(0), example)["params"]


def test_schedule():
    schedule = learning_rate_schedule(**SETTINGS)
    for step in range(14):
        expected = reference.learning_rate(step, **RATE)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)
    assert schedule(0) == 0.0
    np.testing.assert_allclose(schedule(3), 0.02, rtol=1e-6)
    np.testing.assert_allclose(schedule(11), 0.0, atol=1e-8)


def test_the_papers_schedule():
    schedule = learning_rate_schedule(learning_rate=7e-4, warmup_steps=5000, steps=250_000)
    np.testing.assert_allclose(schedule(2500), 3.5e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(5000), 7e-4, rtol=1e-5)
    np.testing.assert_allclose(schedule(127_500), 3.5e-4, rtol=1e-4)
    np.testing.assert_allclose(schedule(250_000), 0.0, atol=1e-9)


def test_no_warmup():
    schedule = learning_rate_schedule(learning_rate=0.1, warmup_steps=0, steps=4)
    np.testing.assert_allclose([schedule(0), schedule(2), schedule(4)], [0.1, 0.05, 0], atol=1e-8)


def test_a_schedule_may_end_above_zero():
    settings = {"learning_rate": 0.1, "warmup_steps": 2, "steps": 6}
    schedule = learning_rate_schedule(**settings, final_learning_rate=0.02)
    np.testing.assert_allclose(
        [schedule(2), schedule(4), schedule(6)], [0.1, 0.06, 0.02], rtol=1e-6
    )
    with pytest.raises(
        InputError, match=r"final_learning_rate: expected 0 up to .* 0\.1, got 0\.2"
    ):
        learning_rate_schedule(**settings, final_learning_rate=0.2)


@pytest.mark.parametrize("warmup", [-1, 11, 12])
def test_impossible_warmup_is_named(warmup):
    with pytest.raises(InputError, match=f"warmup.*{warmup}"):
        learning_rate_schedule(learning_rate=0.1, warmup_steps=warmup, steps=11)


def gradients_of(params, step):
    """Reproducible gradients of very different sizes."""
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda x: np.asarray(rng.normal(size=x.shape) * 10.0 ** rng.integers(-3, 2), np.float32),
        params,
    )


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_steps_are_adamw_with_decay_of_matrices_only(clip_norm):
    rng = np.random.default_rng(0)
    params = {
        "encoders": {
            "visual": {
                "projection_in": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
                "blocks": {
                    "attention_norm": {"scale": rng.normal(size=4), "bias": rng.normal(size=4)},
                    "attention": {
                        "query": {"kernel": rng.normal(size=(4, 2, 2))},
                        "head_scale": rng.normal(size=(1, 1, 2)),
                    },
                },
                "position_table": rng.normal(size=(8, 2)),
            }
        },
        "log_temperature": {"sequence": np.float64(0.3), "aggregation": np.float64(-2.7)},
    }
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    decayed = {"kernel"}
    expected, states = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        decay = 0.3 if path[-1].key in decayed else 0.0
        states[path] = reference.AdamW(decay=decay)
        expected[path] = leaf.astype(np.float64)

    optimizer = make_optimizer(**SETTINGS, weight_decay=0.3, clip_norm=clip_norm)
    ours = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(ours)

    @jax.jit
    def update(gradients, state, params):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(5):
        gradients = gradients_of(params, step)
        with jax.numpy_dtype_promotion("standard"):
            ours, state = update(gradients, state, ours)
        squares = sum(np.sum(np.asarray(g, np.float64) ** 2) for g in jax.tree.leaves(gradients))
        factor = 1.0 if clip_norm is None else min(1.0, clip_norm / np.sqrt(squares))
        rate = reference.learning_rate(step, **RATE)
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            gradient = np.asarray(gradient, np.float64) * factor
            expected[path] = states[path].step(expected[path], gradient, rate)
    for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("conv_position", [False, True])
def test_every_parameter_of_the_towers_is_decayed_or_not_as_meant(conv_position):
    """Matrices are decayed; anything with one axis, the tables and the gates' scales are not."""
    shapes = encoder_params(conv_position=conv_position)
    mask = is_decayed({"encoders": shapes, "log_temperature": {"sequence": jnp.zeros(())}})
    assert mask["log_temperature"]["sequence"] is False
    kernels = others = 0
    for path, decayed in jax.tree_util.tree_leaves_with_path(mask["encoders"]):
        name = path[-1].key
        assert decayed == (name == "kernel"), path
        kernels, others = kernels + decayed, others + (not decayed)
    assert kernels >= 2 * 8
    assert others >= 2 * 10


def test_defaults_are_the_papers():
    """One step from zero moments: the update's size tells b1, b2 and the weight decay."""
    optimizer = make_optimizer(learning_rate=1.0, warmup_steps=0, steps=10**6)
    params = {"layer": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)}}
    state = optimizer.init(params)
    expected = {"kernel": reference.AdamW(decay=0.01), "bias": reference.AdamW(decay=0.0)}
    values = {"kernel": 2.0, "bias": 2.0}
    for gradient in (1.0, -0.5, 0.25):
        tree = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        for name, by_hand in expected.items():
            values[name] = by_hand.step(values[name], gradient, 1.0)
    for name, value in values.items():
        np.testing.assert_allclose(params["layer"][name], value, rtol=1e-5)
