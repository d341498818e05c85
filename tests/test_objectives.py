"""Both losses against numpy loops, their invariances and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads

from scav_jax.objectives import (
    aggregation_loss,
    cross_entropy,
    normalize_distances,
    sequence_loss,
    temperature,
)

CLIPS, WIDTH = 6, 5
ZERO = jnp.zeros(())


def asymmetric(seed=0, size=CLIPS):
    """A distance matrix whose rows and columns differ in mean and in spread."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.5, 3.0, size)[:, None] * np.linspace(2.0, 0.2, size)[None]
    matrix = 4.0 + rng.uniform(0, 1, (size, size)) * spread + np.arange(size)[:, None]
    return matrix.astype(np.float32)


def log(value):
    return jnp.log(jnp.float32(value))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tau", [1.0, 0.07, 5.0])
def test_sequence_loss_is_the_formula(normalize, tau):
    distances = asymmetric()
    loss, _ = sequence_loss(jnp.asarray(distances), log(tau), normalize=normalize)
    expected = reference.sequence_loss(distances, tau, normalize)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    transposed = reference.sequence_loss(distances.T[::-1, ::-1], tau, normalize)
    if normalize:
        # Both directions are averaged: transposing D swaps them and changes nothing.
        np.testing.assert_allclose(transposed, expected, rtol=1e-9)


def test_visual_queries_normalize_rows_and_audio_queries_columns():
    distances = asymmetric()
    _, aux = sequence_loss(jnp.asarray(distances), log(0.5))
    rows = reference.normalize_each_row(distances)
    columns = reference.normalize_each_row(distances.T).T
    assert np.abs(rows - columns).max() > 0.5
    np.testing.assert_allclose(aux["normalized_v2a"], rows, atol=1e-4)
    np.testing.assert_allclose(aux["normalized_a2v"], columns, atol=1e-4)
    np.testing.assert_allclose(aux["logits_v2a"], -rows / 0.5, atol=2e-4)
    np.testing.assert_allclose(aux["logits_a2v"], -columns / 0.5, atol=2e-4)
    np.testing.assert_array_equal(aux["distances"], distances)
    np.testing.assert_allclose(aux["temperature"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_blocks_of_rows_and_columns_change_nothing(normalize, monkeypatch):
    """Three of two, as where D is too large to be worked on at once."""
    distances = jnp.asarray(asymmetric())

    def loss(distances, log_temperature):
        return sequence_loss(distances, log_temperature, normalize=normalize)[0]

    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(distances, log(0.5))
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", distances.nbytes // 3)
    assert cross_entropy.count_blocks(distances) == 3
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 1)  # less than a row
    assert cross_entropy.count_blocks(distances) == len(distances)
    monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", distances.nbytes // 3)
    found = jax.jit(jax.value_and_grad(lambda *x: loss(*x), (0, 1)))(distances, log(0.5))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["v2a", "a2v"])
def test_each_direction_compares_along_its_own_axis(direction):
    """One good query spoils only its own row (v2a) or column (a2v) of the softmax."""
    distances = asymmetric()
    _, aux = sequence_loss(jnp.asarray(distances), ZERO)
    logits = np.asarray(aux[f"logits_{direction}"], np.float64)
    logits = logits if direction == "v2a" else logits.T
    ours = reference.cross_entropy_of_rows(logits)
    other = "a2v" if direction == "v2a" else "v2a"
    rest = np.asarray(aux[f"logits_{other}"], np.float64)
    rest = rest if other == "v2a" else rest.T
    total = (ours + reference.cross_entropy_of_rows(rest)) / 2
    loss, _ = sequence_loss(jnp.asarray(distances), ZERO)
    np.testing.assert_allclose(loss, total, rtol=1e-5)


def test_normalized_rows_have_mean_zero_and_unbiased_deviation_one():
    distances = jnp.asarray(asymmetric()[:, :4])  # rectangular: an axis mix-up cannot hide
    for axis in (0, 1):
        normalized = np.asarray(normalize_distances(distances, axis=axis))
        assert normalized.shape == distances.shape
        np.testing.assert_allclose(normalized.mean(axis=axis), 0, atol=1e-5)
        np.testing.assert_allclose(normalized.std(axis=axis, ddof=1), 1, rtol=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(7.0, 0.0), (1e-2, 0.0), (0.5, 20.0)])
def test_sequence_loss_does_not_see_the_scale_or_offset_of_distances(scale, shift):
    """`D -> a D + b` changes neither the loss nor where its gradient points."""
    with jax.enable_x64(True):
        distances = jnp.asarray(asymmetric(), jnp.float64)
        value_and_gradient = jax.jit(
            jax.value_and_grad(lambda d: sequence_loss(d, jnp.zeros(()))[0])
        )
        loss, gradient = value_and_gradient(distances)
        moved, moved_gradient = value_and_gradient(scale * distances + shift)
        np.testing.assert_allclose(moved, loss, rtol=1e-5)
        np.testing.assert_allclose(moved_gradient * scale, gradient, rtol=1e-4, atol=1e-7)
        plain, _ = sequence_loss(distances, jnp.zeros(()), normalize=False)
        plain_moved, _ = sequence_loss(scale * distances, jnp.zeros(()), normalize=False)
        assert scale == 1.0 or abs(float(plain - plain_moved)) > 1e-3


def test_gradient_flows_through_mean_and_deviation():
    """Invariance, infinitesimally: <dL/dD, D> = 0 and sum dL/dD = 0; not so if held constant."""
    distances = jnp.asarray(asymmetric())
    gradient = np.asarray(jax.grad(lambda d: sequence_loss(d, ZERO)[0])(distances))
    size = np.abs(gradient).sum()
    assert size > 0.1
    assert abs(gradient.sum()) < 1e-5 * size
    assert abs((gradient * asymmetric()).sum()) < 1e-4 * size
    with jax.enable_x64(True):
        double = jnp.asarray(asymmetric(), jnp.float64)
        check_grads(jax.jit(lambda d: sequence_loss(d, jnp.zeros(()))[0]), (double,), 1, ("rev",))


def test_a_constant_row_has_finite_gradients():
    distances = asymmetric()
    distances[2] = 3.0
    distances[:, 4] = 3.0
    distances[2, 4] = 3.0

    def loss(d, t):
        return sequence_loss(d, t)[0]

    for matrix in (distances, np.full((4, 4), 2.0, np.float32)):
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        value, gradients = both(jnp.asarray(matrix), ZERO)
        assert np.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)


def test_small_distances_are_normalized_too():
    """The floor of the variance lies far below the spread of mean squared errors."""
    distances = asymmetric()
    loss, _ = sequence_loss(jnp.asarray(distances), ZERO)
    small, _ = sequence_loss(jnp.asarray(distances * np.float32(1e-4)), ZERO)
    np.testing.assert_allclose(small, loss, rtol=1e-3)


def test_best_possible_loss_is_that_of_the_lowest_z_score():
    """All negatives alike: z = -(B - 1) / sqrt(B) for the positive, with ddof 1."""
    size = 5
    loss, aux = sequence_loss(1.0 - jnp.eye(size), ZERO)
    own = -(size - 1) / np.sqrt(size)
    other = 1 / np.sqrt(size)
    np.testing.assert_allclose(np.diagonal(aux["normalized_v2a"]), own, rtol=1e-5)
    expected = np.log(1 + (size - 1) * np.exp(own - other))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_temperature_is_clipped():
    for value, expected in ((1.0, 1.0), (0.07, 0.07), (1e-4, 0.01), (1e5, 100.0)):
        np.testing.assert_allclose(temperature(log(value)), expected, rtol=1e-6)
    # It learns within, comes back from beyond a bound, and goes no further.
    of = jax.vmap(jax.grad(lambda log_t, sign: sign * temperature(log_t)), (0, 0))
    logs = np.log(np.float32([0.005, 0.01, 0.5, 100.0, 200.0]))
    np.testing.assert_allclose(of(logs, np.ones(5)), [0, 0, 0.5, 100, 100], rtol=1e-6)
    np.testing.assert_allclose(of(logs, -np.ones(5)), [-0.01, -0.01, -0.5, 0, 0], rtol=1e-6)
    distances = jnp.asarray(asymmetric())
    clipped, aux = sequence_loss(distances, log(1e-6))
    at_bound, _ = sequence_loss(distances, log(0.01))
    np.testing.assert_allclose(clipped, at_bound, rtol=1e-5)
    np.testing.assert_allclose(aux["temperature"], 0.01, rtol=1e-5)


def test_temperature_learns():
    distances = jnp.asarray(asymmetric())

    def loss(t):
        return sequence_loss(distances, t)[0]

    step = 1e-2
    slope = (loss(log(0.8) + step) - loss(log(0.8) - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(log(0.8)), slope, rtol=1e-2, atol=1e-3)
    assert abs(slope) > 1e-2


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_aggregation_loss_is_the_formula(tau):
    rng = np.random.default_rng(1)
    visual, audio = rng.normal(size=(2, CLIPS, WIDTH)) * np.array([3.0, 0.2])[:, None, None]
    loss, aux = aggregation_loss(
        jnp.asarray(visual, jnp.float32), jnp.asarray(audio, jnp.float32), log(tau)
    )
    np.testing.assert_allclose(loss, reference.aggregation_loss(visual, audio, tau), rtol=1e-4)
    norms = np.linalg.norm(visual, axis=1)[:, None] * np.linalg.norm(audio, axis=1)[None]
    cosines = visual @ audio.T / norms
    np.testing.assert_allclose(aux["similarities"], cosines, atol=1e-5)
    np.testing.assert_allclose(aux["logits_v2a"], cosines / tau, atol=1e-4)
    np.testing.assert_allclose(aux["logits_a2v"], cosines / tau, atol=1e-4)
    np.testing.assert_allclose(aux["temperature"], tau, rtol=1e-6)


def test_aggregation_gradients():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        visual, audio = jnp.asarray(rng.normal(size=(2, 4, 3)))
        check_grads(
            jax.jit(lambda v, a, t: aggregation_loss(v, a, t)[0]),
            (visual, audio, jnp.asarray(-0.5)),
            order=1,
            modes=("rev",),
        )


def test_aggregation_sees_directions_only_and_bears_a_zero_embedding():
    rng = np.random.default_rng(3)
    visual, audio = jnp.asarray(rng.normal(size=(2, CLIPS, WIDTH)), jnp.float32)
    loss, _ = aggregation_loss(visual, audio, ZERO)
    scales = jnp.asarray(rng.uniform(0.5, 4.0, size=(CLIPS, 1)), jnp.float32)
    scaled, _ = aggregation_loss(visual * scales, audio, ZERO)
    np.testing.assert_allclose(scaled, loss, rtol=1e-5)
    gradient = jax.grad(lambda v: aggregation_loss(v, audio, ZERO)[0])(visual.at[1].set(0.0))
    assert np.isfinite(gradient).all()


def test_matching_pairs_lie_on_the_diagonal():
    """Rolling the audio clips makes every pair a wrong one: the loss must rise."""
    rng = np.random.default_rng(4)
    visual = jnp.asarray(rng.normal(size=(CLIPS, WIDTH)), jnp.float32)
    right, _ = aggregation_loss(visual, visual, ZERO)
    wrong, _ = aggregation_loss(visual, jnp.roll(visual, 1, axis=0), ZERO)
    assert wrong > right + 0.5
    distances = jnp.sum((visual[:, None] - visual[None]) ** 2, axis=-1)
    right, _ = sequence_loss(distances, ZERO)
    wrong, _ = sequence_loss(jnp.roll(distances, 1, axis=1), ZERO)
    assert wrong > right + 0.5
