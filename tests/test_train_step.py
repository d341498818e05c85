"""One training step: the loss it takes, what it reports, and what it does with a bad batch."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.sequences import AudioVisual, as_batch, sequences, zero_padding
from scav_jax.train_step import compute_loss, init_params, init_state, make_train_step

CLIPS = 5
VISUAL_LENGTHS, AUDIO_LENGTHS = [7, 3, 1, 6, 5], [4, 2, 3, 1, 4]


def batch(seed=0, fill=np.nan):
    rng = np.random.default_rng(seed)
    streams = []
    for lengths, steps, width in ((VISUAL_LENGTHS, 8, 5), (AUDIO_LENGTHS, 6, 9)):
        values = rng.normal(size=(CLIPS, steps, width)).astype(np.float32)
        for row, length in zip(values, lengths, strict=True):
            row[length:] = fill
        streams.append(sequences(jnp.asarray(values), jnp.array(lengths)))
    return as_batch(AudioVisual(*streams))


class OneLayer(Encoders):
    """A layer and dropout for each stream: all of the towers that a step can notice."""

    @nn.compact
    def __call__(self, features, *, deterministic=True):
        latents = []
        for name, stream in zip(features._fields, features, strict=True):
            values = zero_padding(stream.values, stream.lengths)
            values = nn.Dropout(self.dropout)(values, deterministic=deterministic)
            values = jnp.tanh(nn.Dense(self.width, name=name)(values))
            latents.append(stream.replace(values=zero_padding(values, stream.lengths)))
        return AudioVisual(*latents)


ENCODERS = OneLayer(width=8, dropout=0.2)
PLAIN = OneLayer(width=8, dropout=0.0)
OPTIMIZER = make_optimizer(learning_rate=0.01, warmup_steps=0, steps=100)
OBJECTIVES = [
    Sequential(distance="euclidean", distance_options={"resample": "audio_to_visual"}),
    Sequential(distance="soft_dtw", temperature=0.07, normalize="none"),
    Sequential("aggregation"),
    Sequential("sequence+aggregation", temperature=2.0),
]


@cache
def initial(objective_index=3):
    return init_state(ENCODERS, OBJECTIVES[objective_index], OPTIMIZER, batch(), seed=3)


@cache
def compiled_step(objective_index=3, seed=3):
    return jax.jit(make_train_step(ENCODERS, OBJECTIVES[objective_index], OPTIMIZER, seed))


def equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@cache
def compiled_latents():
    return jax.jit(lambda params, features: ENCODERS.apply({"params": params}, features))


@pytest.mark.parametrize("index", range(len(OBJECTIVES)), ids=lambda i: OBJECTIVES[i].name)
def test_loss_is_the_formula_on_the_latents(index):
    objective = OBJECTIVES[index]
    params = init_params(ENCODERS, objective, batch(), seed=1)
    features = batch(seed=4)
    loss, aux = jax.jit(partial(compute_loss, ENCODERS, objective))(params, features)
    latents = compiled_latents()(params["encoders"], features.features)
    clips = [
        [np.asarray(v[:n], float) for v, n in zip(stream.values, stream.lengths, strict=True)]
        for stream in latents
    ]
    visual, audio = clips

    def distance(v, a):
        if objective.distance == "soft_dtw":
            return reference.soft_dtw(v, a, 0.1)
        direction = objective.distance_options.get("resample", "visual_to_audio")
        return reference.interpolated_euclidean(v, a, (0, len(v)), (0, len(a)), direction)

    expected = 0.0
    if "sequence" in objective.losses:
        matrix = np.array([[distance(v, a) for a in audio] for v in visual])
        z_score = objective.normalize == "z_score"
        expected += reference.sequence_loss(matrix, objective.temperature, z_score)
        np.testing.assert_allclose(aux["sequence"]["distances"], matrix, rtol=1e-3, atol=1e-4)
    if "aggregation" in objective.losses:
        means = [np.stack([clip.mean(axis=0) for clip in stream]) for stream in clips]
        expected += reference.aggregation_loss(*means, objective.aggregation_temperature)
        for ours, mean in zip(aux["embeddings"], means, strict=True):
            np.testing.assert_allclose(ours, mean, atol=1e-5)
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    distance = {"distance"} if "sequence" in objective.losses else set()
    assert set(aux) == {"latents", "embeddings", *objective.losses, *distance}
    assert set(params["log_temperature"]) == set(objective.losses)


def test_the_objectives_temperatures_are_learned_from_their_start():
    params = initial().params["log_temperature"]
    np.testing.assert_allclose(params["sequence"], np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(params["aggregation"], np.log(0.07), rtol=1e-6)
    state, _ = compiled_step()(initial(), batch())
    for name, before in params.items():
        assert state.params["log_temperature"][name] != before


def test_a_step_is_one_update_by_the_gradient_of_the_loss():
    state = initial()
    features = batch()
    key = jax.random.fold_in(jax.random.key(3), 0)

    def loss(params):
        return compute_loss(ENCODERS, OBJECTIVES[3], params, features, key)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(state.params)
    new, metrics = compiled_step()(state, features)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    weights = {name: part for name, part in gradients.items() if name != "log_temperature"}
    assert weights.keys() < gradients.keys()
    for name, part in (("gradient_norm", gradients), ("weights_gradient_norm", weights)):
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(part)))
        np.testing.assert_allclose(metrics[name], norm, rtol=1e-4)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = OPTIMIZER.update(gradients, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    # Adam's first step is lr * sign(gradient): leave out what is zero but for rounding.
    for ours, theirs, gradient in zip(
        *(jax.tree.leaves(tree) for tree in (new.params, expected, gradients)), strict=True
    ):
        clear = np.abs(gradient) > 1e-5 * norm
        np.testing.assert_allclose(
            np.asarray(ours)[clear], np.asarray(theirs)[clear], rtol=1e-3, atol=1e-5
        )
    assert int(new.step) == 1


def test_a_step_is_pure_and_deterministic():
    """Three steps twice give the same bits; the inputs are left as they were."""
    state = initial()
    before = jax.tree.map(np.array, state)

    def three_steps():
        current, reports = state, []
        for seed in range(3):
            current, metrics = compiled_step()(current, batch(seed))
            reports.append(metrics)
        return current, reports

    one, two = three_steps(), three_steps()
    equal_trees(one, two)
    equal_trees(before, state)
    assert int(one[0].step) == 3
    assert int(one[0].skipped) == 0


def test_the_same_seed_gives_the_same_start():
    again = init_state(ENCODERS, OBJECTIVES[3], OPTIMIZER, batch(seed=9), seed=3)
    equal_trees(initial(), again)  # the example's content is not read
    other = init_state(ENCODERS, OBJECTIVES[3], OPTIMIZER, batch(), seed=4)
    kernel = ["encoders", "visual", "kernel"]
    one, two = initial().params, other.params
    for key in kernel:
        one, two = one[key], two[key]
    assert np.abs(one - two).max() > 0.01


def test_dropout_depends_on_seed_and_step_only():
    state = initial()
    features = batch()
    _, here = compiled_step()(state, features)
    _, later = compiled_step()(state.replace(step=state.step + 1), features)
    assert here["loss"] != later["loss"]


def test_without_jit_it_is_the_same_step():
    objective = Sequential("aggregation")
    optimizer = optax.sgd(0.1)
    state = init_state(PLAIN, objective, optimizer, batch(), seed=0)
    step = make_train_step(PLAIN, objective, optimizer, seed=0)
    compiled, metrics = jax.jit(step)(state, batch())
    with jax.disable_jit():
        plain, plain_metrics = step(state, batch())
    for ours, theirs in zip(
        jax.tree.leaves((compiled, metrics)), jax.tree.leaves((plain, plain_metrics)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_batch_changes_nothing_and_is_counted(bad, monkeypatch):
    step = compiled_step()
    if bad == np.inf:  # as on an accelerator
        choice = lambda *given, cpu, default: default(*given)  # noqa: E731
        monkeypatch.setattr(jax.lax, "platform_dependent", choice)
        step = compiled_step.__wrapped__()
    state, _ = step(initial(), batch())
    features = batch()
    audio = features.features.audio
    poisoned = features._replace(
        features=features.features._replace(
            audio=audio.replace(values=audio.values.at[2, 0, 4].set(bad))
        )
    )
    skipped, metrics = step(state, poisoned)
    # tanh takes infinity to 1: the loss is finite, its gradient is not
    assert np.isfinite(metrics["loss"]) == (bad == np.inf)
    assert not np.isfinite(metrics["gradient_norm"])
    equal_trees(skipped.params, state.params)
    equal_trees(skipped.opt_state, state.opt_state)
    assert (int(skipped.step), int(skipped.skipped), int(skipped.skipped_in_row)) == (2, 1, 1)
    twice, metrics = step(skipped, poisoned)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (2, 2)
    recovered, metrics = step(twice, features)
    assert (int(recovered.skipped), int(recovered.skipped_in_row)) == (2, 0)
    assert np.isfinite(metrics["loss"])
    changes = jax.tree.map(lambda a, b: np.any(a != b), recovered.params, twice.params)
    assert all(jax.tree.leaves(changes["encoders"]["visual"]))


@pytest.mark.parametrize("index", [0, 2, 3], ids=lambda i: OBJECTIVES[i].name)
def test_metrics_are_finite_scalars(index):
    objective = OBJECTIVES[index]
    step = make_train_step(ENCODERS, objective, OPTIMIZER, seed=3)
    state = jax.eval_shape(lambda: init_state(ENCODERS, objective, OPTIMIZER, batch(), seed=3))
    _, metrics = jax.eval_shape(step, state, batch())
    expected = {"loss", "gradient_norm", "skipped", "skipped_in_row", "embedding_spread"}
    expected |= {"temperature", "recall_v2a", "recall_a2v", "weights_gradient_norm"}
    if "sequence" in objective.losses:
        expected |= {"distance_mean", "distance_spread"}
    if len(objective.losses) == 2:
        expected |= {f"aggregation_{n}" for n in ("temperature", "recall_v2a", "recall_a2v")}
    assert set(metrics) == expected
    assert all(value.shape == () for value in metrics.values())


def test_metrics_say_what_they_are_called():
    """Against the matrices of the same batch, without dropout."""
    objective = Sequential(distance="dtw")
    state = init_state(PLAIN, objective, OPTIMIZER, batch(), seed=0)
    loss = jax.jit(partial(compute_loss, PLAIN, objective))
    step = jax.jit(make_train_step(PLAIN, objective, OPTIMIZER, seed=0))
    recalls = []
    for seed in range(8):
        _, aux = loss(state.params, batch(seed))
        _, metrics = step(state, batch(seed))
        distances = np.asarray(aux["sequence"]["distances"])
        own = np.diagonal(distances)
        v2a = np.mean(np.sum(distances <= own[:, None], axis=1) == 1)
        a2v = np.mean(np.sum(distances <= own[None, :], axis=0) == 1)
        np.testing.assert_allclose(metrics["recall_v2a"], v2a)
        np.testing.assert_allclose(metrics["recall_a2v"], a2v)
        np.testing.assert_allclose(metrics["distance_mean"], distances.mean(), rtol=1e-4)
        np.testing.assert_allclose(metrics["distance_spread"], distances.std(), rtol=1e-3)
        np.testing.assert_allclose(metrics["temperature"], 1.0, rtol=1e-6)
        recalls.append((v2a, a2v))
    assert any(v2a != a2v for v2a, a2v in recalls)  # else the directions could be swapped


def test_collapse_shows_and_ties_count_against_the_query():
    """All clips alike: every distance is the same, nothing is retrieved, nothing is spread."""
    features = batch(fill=0.0)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), features)
    objective = Sequential(distance="dtw")
    state = init_state(PLAIN, objective, OPTIMIZER, features, seed=0)
    step = jax.jit(make_train_step(PLAIN, objective, OPTIMIZER, seed=0))
    new, metrics = step(state, same)
    assert metrics["recall_v2a"] == metrics["recall_a2v"] == 0.0
    assert metrics["embedding_spread"] < 1e-3
    np.testing.assert_allclose(metrics["loss"], np.log(CLIPS), rtol=1e-3)
    assert int(new.skipped) == 0  # a constant matrix has finite gradients
    _, healthy = step(state, features)
    assert healthy["embedding_spread"] > 0.05


def test_training_learns_the_pairs():
    """30 steps on one batch bring its loss well below where it started."""
    objective = Sequential()
    optimizer = make_optimizer(learning_rate=0.02, warmup_steps=0, steps=200)
    state = init_state(PLAIN, objective, optimizer, batch(), seed=0)
    step = jax.jit(make_train_step(PLAIN, objective, optimizer, seed=0))
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.6 * losses[0]
    assert metrics["recall_v2a"] == metrics["recall_a2v"] == 1.0


def test_mistakes_are_named():
    with pytest.raises(InputError, match="sequence"):
        Sequential("sequnce")
    with pytest.raises(InputError, match="euclidean"):
        Sequential(distance="euclid")
    with pytest.raises(InputError, match="gamma"):
        Sequential(distance="soft_dtw", distance_options={"gama": 1.0})
