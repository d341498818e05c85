"""One loss, whatever the number of devices and however a batch is cut: the equality table.

Loss, gradients and three training steps, of the towers from features on, with ragged clips. What is
equal here differs as soon as one statistic is a device's own, which is tested too. Without
`SCAV_WHOLE_TABLE=1` two cells of the table are tested: what a step is made of (a block, dropout,
changed features, a memory), and clips that are mixed before they are cut. Other objectives differ
in two parts of a step: what is of a clip alone (`test_doors`) and the loss, compared alone below.
`DIVIDED` is what else devices share: frozen backbones, checksums, what `jit` divides alone. A
search over devices is in `test_search`; runs whose devices change are in `test_processes`.
"""

import collections
import math
import os
from functools import cache, partial

import drawn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_clip_beats
import test_clip_model
from communication import communication_bytes

from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.distances import euclidean, pairwise
from scav_jax.encoders import Encoders
from scav_jax.encoders.dropout import draws_of, dropout
from scav_jax.encoders.precision import as_multiplied
from scav_jax.encoders.products import affine
from scav_jax.extract.backbones import clip_model
from scav_jax.extract.backbones.clip_weights import random_weights
from scav_jax.objectives import (
    Classification,
    EquivariantPlaying,
    Outputs,
    Place,
    Separate,
    Sequential,
    Temporal,
    cross_entropy,
    sequence_loss,
)
from scav_jax.objectives.free import Free
from scav_jax.optimizer import make_optimizer
from scav_jax.plan import memory
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.train_step import (
    compute_loss,
    init_params,
    loss_and_gradients,
    make_train_step,
    of_clips,
    state_shardings,
)
from scav_jax.training import checkpoints

MANY = 8
CLIPS, STEPS = 32, 3
WHOLE = bool(os.environ.get("SCAV_WHOLE_TABLE"))
# So few are compared by a distance's definition, which compiles in a tenth of the time; faster
# forms are below.
FEW = CLIPS if WHOLE else 8
TOLERANCE = 1e-5
PRE = Encoders(
    width=8,
    heads=2,
    feedforward=6,
    visual_blocks=1,
    audio_blocks=0,
    visual_hidden=7,
    audio_hidden=6,
    position_buckets=8,
    position_max_distance=12,
    dropout=0.3,
    pre_resample="visual_to_audio",
)
BARE = PRE.clone(visual_blocks=0, dropout=0.0)
POST = BARE.clone(pre_resample=None)
WASSERSTEIN = {"blur": 1.0, "position_weight": 2.0, "diameter": 16.0}
TEMPORAL = Temporal(  # its queue wraps round in the second step
    "temporal", visual_tokens=2, audio_tokens=2, audio_frames=3, speeds=2, hidden=6, width=5,
    queue=40, positives=2, negatives=3,
)  # fmt: skip
CLASSES = Classification(classes=("a", "b", "c"), mixup=0.6, multi_label=True)
PLAYING = EquivariantPlaying(
    visual_tokens=2, audio_tokens=2, audio_frames=3, speeds=2, hidden=6, intra_width=5,
    inter_width=4, code_width=6, centroid=2,
)  # fmt: skip


class Remembering(Sequential):
    """It also keeps of every clip what the loss saw, in the order of the batch."""

    def memory(self):
        return {"scale": super().memory(), "seen": jnp.zeros((FEW, PRE.width))}

    def remember(self, memory, outputs):
        return {"scale": memory["scale"], "seen": outputs.values[0][:, 0]}

    def loss(self, log_temperature, outputs, memory, place):
        return super().loss(log_temperature, outputs, memory["scale"], place)


OPTIONS = {"branch_hidden": 6, "branch_width": 5}
SEPARATE = {
    "separate": Separate(**OPTIONS),
    "separate_by_distance": Separate(
        **OPTIONS, dynamic="distance", normalize="deviation", branch="tower", branch_heads=1
    ),
}
CASES = {
    "pre": (BARE, Sequential()),
    "post": (POST, Sequential(distance_options={"resample": "audio_to_visual"})),
    "soft_dtw": (POST, Sequential(distance="soft_dtw")),
    "wasserstein": (POST, Sequential(distance="wasserstein", distance_options=WASSERSTEIN)),
    "sinkhorn": (POST, Sequential(distance="sinkhorn", distance_options={"epsilon": 0.5})),
    "step": (PRE, Remembering("sequence+aggregation", free=Free(0.8, (1, 5, 1, 1), (3, 3)))),
    "temporal": (POST, TEMPORAL),
    "classification": (POST, CLASSES),
    "playing": (POST, PLAYING),
    **{name: (BARE, objective) for name, objective in SEPARATE.items()},
}
EVERY = [(devices, parts) for devices in (1, 2, 4, MANY) for parts in (1, 2, 4)][1:]
WHOLE_TABLE = [(case, *where) for case in CASES for where in EVERY]
CHOSEN = [("step", 4, 2), ("classification", 4, 2)]
TABLE = WHOLE_TABLE if WHOLE else CHOSEN
# Softmax does not see what a key's bias adds: its gradient is rounding, which Adam makes a step of.
ROUNDING_ONLY = ("['key']['bias']",)
# Sequences less their mean do not see a constant either.
ROUNDING_OF = {"separate": (*ROUNDING_ONLY, "['encoders']['visual']['final_norm']['bias']")}
ROUNDING_OF["separate"] += ("['encoders']['audio']['final_norm']['bias']",)
needs_devices = pytest.mark.skipif(len(jax.devices()) < MANY, reason=f"needs {MANY} devices")


def batch(seed=0, dtype=np.float32, clips=CLIPS):
    rng = np.random.default_rng(seed)
    streams = []
    for steps, width in ((6, 5), (4, 9)):
        lengths = rng.integers(1, steps + 1, clips)
        values = rng.normal(size=(clips, steps, width)).astype(dtype)
        for row, length in zip(values, lengths, strict=True):
            row[length:] = np.nan
        streams.append(sequences(jnp.asarray(values), jnp.asarray(lengths, jnp.int32)))
    # A clock for those that play parts: as long as both streams, whatever lengths they have.
    seconds = np.tile(np.float32([0.0, 1.6]), (clips, 1))
    numbers = np.arange(clips, dtype=np.int32) + seed * clips
    made = as_batch(AudioVisual(*streams))._replace(numbers=numbers, seconds=seconds)
    made = made._replace(targets=(rng.uniform(size=(clips, 3)) < 0.4).astype(np.float32))
    return jax.tree.map(np.asarray, made)


def few(seed=0):
    return batch(seed, clips=FEW)


def optimizer():
    return make_optimizer(learning_rate=1e-3, warmup_steps=2, steps=10)


# Of a hundred small leaves AdamW would be most of a program; it is compared below.
DESCENT = optax.sgd(0.03)


def keeping_gradients(optimizer):
    """The same optimizer; what a step's gradients were is the first part of its state."""
    keep = optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda gradients, _, params=None: (gradients, gradients),
    )
    return optax.chain(keep, optimizer)


def program(case, devices=1, parts=1):
    """-> the compiled step, its mesh, the state at the start."""
    encoders, objective = CASES[case]
    mesh = sharding.make_mesh(devices)
    cut = {"microbatch": FEW // parts if parts > 1 else 0, "mesh": mesh}
    kept = keeping_gradients(DESCENT)
    step = jax.jit(make_train_step(encoders, objective, kept, seed=0, **cut))
    state = drawn.state(encoders, objective, kept, few())
    return step, mesh, sharding.put_replicated(state, mesh)


uncut = cache(program)  # for several tests


def train(case, devices=1, parts=1, steps=STEPS, of=program):
    """-> gradients at the start, the steps' losses, the parameters and metrics after them."""
    step, mesh, state = of(case, devices, parts)
    losses, first = [], None
    for number in range(steps):
        state, metrics = step(state, sharding.put_batch(few(number), mesh))
        first = first or jax.device_get(state.opt_state[0])
        losses.append(float(metrics["loss"]))
    memory, params = jax.device_get((state.memory, state.params))
    return first, losses, params | {"memory": memory}, jax.device_get(metrics)


@cache
def expected(case):
    """On one device, uncut."""
    return train(case, of=uncut)


def assert_equal(result, reference, rounding_only=ROUNDING_ONLY):
    gradients, losses, params, metrics = result
    their_gradients, their_losses, their_params, their_metrics = reference
    assert np.ptp(their_losses) > 1e-3, "nothing was learned, so nothing was compared"
    np.testing.assert_allclose(losses, their_losses, rtol=TOLERANCE)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(their_gradients))
    assert_trees(gradients, their_gradients, TOLERANCE * largest)
    assert_trees(params, their_params, TOLERANCE, rounding_only)
    for name, value in their_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def assert_trees(ours, theirs, atol, rounding_only=ROUNDING_ONLY):
    paths = jax.tree_util.tree_leaves_with_path(theirs)
    for (path, their), our in zip(paths, jax.tree.leaves(ours), strict=True):
        name = jax.tree_util.keystr(path)
        if not name.endswith(rounding_only):
            np.testing.assert_allclose(our, their, rtol=TOLERANCE, atol=atol, err_msg=name)


@needs_devices
@pytest.mark.parametrize(("case", "devices", "parts"), TABLE)
def test_devices_and_microbatches_change_nothing(case, devices, parts):
    rounding_only = ROUNDING_OF.get(case, ROUNDING_ONLY)
    assert_equal(train(case, devices, parts), expected(case), rounding_only)


# The programs of playing take half a minute.
@pytest.mark.parametrize("case", ["classification", "playing"] if WHOLE else ["classification"])
def test_a_run_goes_on_from_its_state_bit_for_bit(case):
    """What is mixed and what is played follow from seed, step and number: nothing else is kept."""
    step, _, begin = uncut(case, 1, 1)

    def go_on(state, first, last):
        for number in range(first, last):
            state, metrics = step(state, few(number))
        return jax.device_get((state, metrics))

    whole = go_on(begin, 0, 3)
    stopped = jax.tree.map(jnp.asarray, go_on(begin, 0, 1)[0])
    jax.tree.map(np.testing.assert_array_equal, go_on(stopped, 1, 3), whole)
    another = go_on(begin.replace(step=begin.step + 1), 0, 1)[1]["loss"]
    assert abs(another - go_on(begin, 0, 1)[1]["loss"]) > 1e-4, "another step draws anew"


# None of these names the mesh: what is global for one is so for all.
OF_LOSSES = [*SEPARATE, "temporal", "playing"] if WHOLE else ["separate"]


@needs_devices
@pytest.mark.parametrize("case", OF_LOSSES)
def test_a_loss_on_eight_devices_is_that_of_one(case):
    """Gradients of what it sees of clips, its memory and metrics; once more with that memory."""
    encoders, objective = CASES[case]
    params = drawn.params(encoders, objective, few())
    see = jax.jit(partial(of_clips, encoders, objective))
    outputs = jax.device_get(see(params, few(), None, jax.random.key(1)))
    temperatures = jax.device_get(params.get("log_temperature", {}))

    def function(mesh):
        def loss(values, temperatures, about, memory):
            seen, place = Outputs(values, about), Place(2**20, mesh)
            value, aux = objective.loss(temperatures, seen, memory, place)
            return value, (objective.remember(memory, seen), objective.health(aux))

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))

    def twice(mesh):
        memory, found, compute = jax.device_get(objective.memory()), [], function(mesh)
        for _ in range(2):
            values, about = (sharding.put_batch(part, mesh) for part in outputs)
            rest = sharding.put_replicated((temperatures, memory), mesh)
            found.append(jax.device_get(compute(values, rest[0], about, rest[1])))
            memory = found[-1][0][1][0]
        return found

    one, many = twice(sharding.make_mesh(1)), twice(sharding.make_mesh(MANY))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), many, one)


# From latents on.
WITHOUT_DISTANCE = ("step", "temporal", "classification", "playing", *SEPARATE)
OF_DISTANCES = [case for case in CASES if case not in WITHOUT_DISTANCE]
# Of all pairs by the definition of one, which is compiled sooner.
DEFINITION = "scav_jax.distances.euclidean:euclidean"
SLOWER = {"post": Sequential(distance=DEFINITION, distance_options={"resample": "audio_to_visual"})}
OF_DISTANCES = OF_DISTANCES if WHOLE else ["post", "soft_dtw", "wasserstein"]


@needs_devices
@pytest.mark.parametrize("case", OF_DISTANCES)
def test_every_distance_on_eight_devices_is_that_of_one_and_audio_travels_once(case):
    """Loss, D of ragged clips, gradients of the latents, which travel once.

    Whatever loops and branches ragged lengths need.
    """
    objective, latents = CASES[case][1], ragged_latents(CLIPS)
    temperatures = {name: jnp.zeros(()) for name in objective.losses}

    def function(mesh, objective, **settings):
        def loss(values):
            streams = zip(latents, values, strict=True)
            cut = AudioVisual(*(s.replace(values=v) for s, v in streams))
            outputs = objective.of_clips(None, {"clip": cut}, ())
            value, aux = objective.loss(temperatures, outputs, {}, Place(2**20, mesh))
            return value, aux["sequence"]["distances"]

        values = [stream.values for stream in latents]
        return jax.jit(jax.value_and_grad(loss, has_aux=True), **settings).lower(values).compile()

    values, mesh = [stream.values for stream in latents], sharding.make_mesh(MANY)
    (expected_loss, expected), gradients = function(None, SLOWER.get(case, objective))(values)
    rows, whole = sharding.batch_sharded(mesh), sharding.replicated(mesh)
    program = function(mesh, objective, in_shardings=(rows,), out_shardings=((whole, rows), rows))
    (loss, distances), found = program(sharding.put_batch(values, mesh))
    np.testing.assert_allclose(loss, expected_loss, rtol=TOLERANCE)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    for ours, theirs in zip(found, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    received = communication_bytes(program, unknown_trips=1000)
    audio = latents.audio.values.nbytes * (MANY - 1) / MANY
    statistics = 4 * CLIPS * 64  # rows and columns of [B, B], in vectors
    assert sum(received.values()) < 2 * audio + statistics


def ragged_latents(clips, width=16):
    rng = np.random.default_rng(3)
    streams = []
    for steps in (6, 4):
        lengths = rng.integers(1, steps + 1, clips)
        values = rng.normal(size=(clips, steps, width)).astype(np.float32)
        values[np.arange(steps)[None] >= lengths[:, None]] = np.nan
        streams.append(sequences(jnp.asarray(values), jnp.asarray(lengths, jnp.int32)))
    return AudioVisual(*streams)


# -- what else devices share -----------------------------------------------------------------------


def euclidean_in_blocks(devices):
    """D and its gradients where `jit` alone divides rows, eight at a time; one compares pairs."""
    latents, mesh = ragged_latents(16), sharding.make_mesh(devices)
    visual = jax.device_put(latents.visual, sharding.batch_sharded(mesh))
    audio = sharding.put_replicated(latents.audio, mesh)
    name, how = (DEFINITION, {}) if devices == 1 else ("euclidean", {"block": 8 * 16})

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def weighted(values, streams):
        pair = [s.replace(values=v) for s, v in zip(streams, values, strict=True)]
        distances = pairwise(name, *pair, **how)
        weights = np.random.default_rng(9).normal(size=distances.shape)
        scattered = euclidean.scattered(*pair)
        return jnp.sum(distances * jnp.asarray(weights, jnp.float32)), (distances, scattered)

    (_, (distances, scattered)), gradients = weighted(
        (visual.values, audio.values), (visual, audio)
    )
    assert not scattered, "differences would be compared with differences"
    return distances, gradients


def checksums(devices):
    """Of an array that every device has, and of one that is cut over them."""
    mesh, array = sharding.make_mesh(devices), np.random.default_rng(0).normal(size=(16, 3))
    places = sharding.replicated(mesh), sharding.batch_sharded(mesh)
    sums = [checkpoints._checksum(jax.device_put(np.float32(array), place)) for place in places]
    assert sums[0] == sums[1]
    return sums


def clip_features(devices):
    """Of frames, resized by the host and by devices, and of texts: none fills its last batch."""
    frames = np.random.default_rng(0).integers(0, 256, (27, 33, 29, 3)).astype(np.uint8)
    ids = np.asarray([row for row, _ in test_clip_model.ROWS], np.int32)
    tensors = random_weights(test_clip_model.SMALL, seed=3)
    places = [clip_model.Batching(2, jax.local_devices()[:devices], r) for r in clip_model.RESIZES]
    models = [test_clip_model.small(tensors, place) for place in places]
    return [model.encode_images(frames) for model in models], models[0].encode_ids(ids)


def clip_beats_features(devices):
    """Of more frames and sounds than eight devices take at once; some have no step of sound."""
    clips = test_clip_beats.prepared(1, 2 * test_clip_beats.CHUNK - 1, 38)
    order = (1, 2, 0, 0, 2, 1, 2, 1, 2, 2, 1, 1)
    return test_clip_beats.of_devices(devices).encode([clips[index] for index in order])


DIVIDED = {  # of a number of devices; how far apart results may be, as a share of the largest
    "the Euclidean distance in blocks": (euclidean_in_blocks, 2e-6),
    "CLIP": (clip_features, 5e-7),
    "CLIP and BEATs, clip by clip": (clip_beats_features, 0.0),
    "checksums": (checksums, 0.0),
}


@needs_devices
@pytest.mark.parametrize(
    ("what", "devices"), [*((what, MANY) for what in DIVIDED), ("checksums", 2)]
)
def test_what_devices_share_is_what_one_computes(what, devices):
    compute, share = DIVIDED[what]

    def equal(ours, theirs):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        largest = np.abs(theirs).max(initial=0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * largest)

    jax.tree.map(equal, compute(devices), compute(1))


# -- what would be wrong ---------------------------------------------------------------------------


def groups(distances, axis, parts=2):
    """The index of the group, along an axis, that each entry of D is in."""
    return jnp.arange(distances.shape[axis]) * parts // distances.shape[axis]


def local_statistics(axis_made_local, distances, axis, *, of_all=cross_entropy.statistics):
    """z-score as it would be if each device knew its own share of an axis only."""
    if axis != axis_made_local:
        return of_all(distances, axis)
    halves = [of_all(half, axis) for half in jnp.split(distances, 2, axis)]
    size = distances.shape[axis] // 2
    return tuple(
        jnp.concatenate([jnp.repeat(x, size, axis) for x in pair], axis)
        for pair in zip(*halves, strict=True)
    )


def local_softmax(distances, axis, normalize, *, of_all=cross_entropy._z):
    """The softmax as it would be over a device's own share."""
    rows, columns = groups(distances, 0), groups(distances, 1)
    z = of_all(distances, axis, normalize)
    return jnp.where(rows[:, None] == columns[None], z, 1e4)


WRONG = {
    "the z-score of rows": ("statistics", partial(local_statistics, 1)),
    "the z-score of columns": ("statistics", partial(local_statistics, 0)),
    "the softmax": ("_z", local_softmax),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_local_statistic_would_be_seen(what, monkeypatch):
    matrix = jnp.asarray(np.random.default_rng(7).uniform(1.0, 2.0, (MANY, MANY)), jnp.float32)
    loss, _ = sequence_loss(matrix, jnp.zeros(()))
    monkeypatch.setattr(cross_entropy, *WRONG[what])
    wrong, _ = sequence_loss(matrix, jnp.zeros(()))
    assert abs(wrong - loss) > 100 * TOLERANCE * loss


# -- dropout ---------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames=("tower", "rate", "whole"))
def dropped(x, rows, key, place=0, tower=0, rate=0.3, whole=False):
    return dropout(x, rate, draws_of(key, rows, tower).at(place), whole=whole)


def test_a_mask_belongs_to_its_clip_and_its_step():
    x = jnp.ones((6, 50, 3))
    rows, key = jnp.arange(6, dtype=jnp.int32), jax.random.key(0)
    whole = np.asarray(dropped(x, rows, key))
    order = jnp.array([4, 0, 3], jnp.int32)
    np.testing.assert_array_equal(dropped(x[:3], order, key), whole[order])
    assert {0.0} < set(np.unique(whole))
    np.testing.assert_allclose(whole[whole > 0], 1 / 0.7, rtol=1e-6)
    assert len({row.tobytes() for row in whole}) == 6, "clips share a mask"
    others = [(jax.random.key(1), 0, 0), (key, 1, 0), (key, 0, 1)]
    for other in others:
        assert not np.array_equal(whole, dropped(x, rows, *other))
    np.testing.assert_array_equal(dropped(x, rows, key, rate=1.0), np.zeros_like(x))
    np.testing.assert_array_equal(dropped(x, rows, key, rate=0.0), x)
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    # Padding changes nothing, nor of a map of heads; a gradient goes where a number stayed.
    np.testing.assert_array_equal(dropped(jnp.ones((6, 70, 3)), rows, key)[:, :50], whole)
    maps = dropped(jnp.ones((6, 2, 9, 9)), rows, key)
    np.testing.assert_array_equal(dropped(jnp.ones((6, 2, 7, 7)), rows, key), maps[:, :, :7, :7])
    assert not np.array_equal(maps[:, 0], maps[:, 1]), "heads share a mask"
    of_sum = jax.grad(lambda x: jnp.sum(dropped(x, rows, key)))(x)
    np.testing.assert_array_equal(of_sum, whole)
    # A residual stays or goes as a whole, at a rate that may be computed.
    drop = jax.jit(partial(dropout, whole=True))
    residual = np.asarray(drop(x, jnp.float32(0.5), draws_of(key, rows)))
    assert {len(np.unique(row)) for row in residual} == {1} and len(np.unique(residual)) == 2


def test_masks_are_as_if_drawn_independently():
    """Rates, and correlations of places, clips, heads, layers, towers and steps, in deviations.

    Of some 70 figures of independent draws one in twenty lies beyond 2, and none beyond 4.5.
    """
    clips, rows, columns, rate = 32, 62, 256, 0.1
    rng_rows, deviation = jnp.arange(clips, dtype=jnp.int32), (rate * (1 - rate)) ** 0.5
    ones = jnp.ones((clips, rows, columns))

    @jax.jit
    def kept_of(key, place, tower_draws):
        return dropout(ones, rate, tower_draws.at(place)) > 0

    def noise(step=0, place=0, tower=0):
        key = jax.random.key(step)
        kept = kept_of(key, place, draws_of(key, rng_rows, tower))
        return (np.asarray(kept, np.float32) - (1 - rate)) / deviation

    def together(one, other):
        return float((one * other).mean() * one.size**0.5)

    x = noise()
    found = {"mean": float(x.mean() * x.size**0.5)}
    for down, right in (
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, -1),
        (2, 0),
        (0, 64),
        (31, 128),
    ):
        ahead = x[:, down:, max(right, 0) : columns + min(right, 0)]
        behind = x[:, : rows - down, max(-right, 0) : columns - max(right, 0)]
        found[f"place {down} {right}"] = together(ahead, behind)
    for apart in (1, 2, 3, 4, 8, 16):
        found[f"clips {apart}"] = together(x[apart:], x[:-apart])
    for n in range(1, 9):
        found |= {f"step {n}": together(x, noise(step=n)), f"layer {n}": together(x, noise(0, n))}
    found["tower"] = together(x, noise(tower=1))
    found["three in a row"] = float((x[..., 2:] * x[..., 1:-1] * x[..., :-2]).mean() * x.size**0.5)
    for axes in ((0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):  # chi-square of the sums along axes
        sums = x.sum(axes) / np.prod([x.shape[axis] for axis in axes]) ** 0.5
        found[f"chi-square {axes}"] = float((np.mean(sums**2) - 1) * (sums.size / 2) ** 0.5)
    # How often each pattern of six neighbours comes.
    patterns = (x > 0)[..., : columns // 6 * 6].reshape(-1, 6) @ (1 << np.arange(6))
    stay = np.array([f"{n:06b}".count("1") for n in range(64)])
    expected = (1 - rate) ** stay * rate ** (6 - stay) * len(patterns)
    often = expected > 20
    counts = np.bincount(patterns, minlength=64)
    chi_square = np.sum((counts - expected)[often] ** 2 / expected[often])
    found["patterns"] = (chi_square - often.sum()) / (2 * often.sum()) ** 0.5
    assert max(map(abs, found.values())) < 4.5, found
    assert np.std(list(found.values())) < 1.5, found


# -- rematerialisation, precision, storage ---------------------------------------------------------


@cache
def one_gradient(dtype="float32", of=PRE, **settings):
    """Loss and gradients at the start, of features of a dtype, as settings have it."""
    half = batch(dtype=np.float16)
    streams = (s.replace(values=s.values.astype(dtype)) for s in half.features)
    features = half._replace(features=AudioVisual(*streams))
    objective = Sequential("aggregation")
    params = drawn.params(of, objective, features)
    compute = jax.jit(partial(loss_and_gradients, of.clone(**settings), objective))
    (loss, _), gradients = compute(params, features, jax.random.key(5))
    return float(loss), jax.device_get(gradients)


def kept(encoders):
    """Shapes of what the forward pass keeps for the gradient."""
    example = partial(init_params, encoders, Sequential(), seed=0)
    features = jax.tree.map(jnp.asarray, batch())
    params = jax.eval_shape(example, features)["encoders"]

    def pull_back(params):
        def latents(params):
            return [s.values for s in encoders.apply({"params": params}, features.features)]

        return jax.vjp(latents, params)[1]

    return jax.tree.leaves(jax.eval_shape(pull_back, params))


def test_rematerialisation_changes_no_number_and_keeps_less():
    loss, gradients = one_gradient()
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    for remat in ("unrolled", "blocks"):
        again, same = one_gradient(remat=remat)
        np.testing.assert_allclose(again, loss, rtol=1e-6)
        assert_trees(same, gradients, 1e-6 * largest)
    deep = PRE.clone(visual_blocks=3)
    less, more = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in kept(encoders))
        for encoders in (deep.clone(remat="blocks"), deep)
    )
    assert less < 0.5 * more


def test_of_a_block_no_norm_nor_gelu_is_kept():
    """As many arrays of steps as the plan counts: a norm's input, not what it gives."""
    encoders = PRE.clone(visual_blocks=3)
    of_blocks = [leaf.shape for leaf in kept(encoders) if leaf.shape[:2] == (3, CLIPS)]
    sizes = collections.Counter(math.prod(s[3:]) for s in of_blocks if s[2] != encoders.heads)
    planned = memory.KEPT["none"]
    assert (sizes[encoders.width], sizes[encoders.feedforward]) == (planned.width, planned.hidden)


def test_stored_float16_gives_the_numbers_of_its_float32():
    loss, gradients = one_gradient("float16", BARE)
    expected_loss, expected_gradients = one_gradient("float32", BARE)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradients))
    assert_trees(gradients, expected_gradients, 1e-6 * largest)


def products(precision):
    """(dtype, precision) of every product of the towers, forward and backward."""
    encoders = PRE.clone(precision=precision, conv_position=True, width=16)
    params = jax.eval_shape(
        partial(init_params, encoders, Sequential("aggregation"), seed=0), batch()
    )
    jaxpr = jax.make_jaxpr(partial(loss_and_gradients, encoders, Sequential("aggregation")))(
        params, batch()
    )
    return {
        (equation.invars[0].aval.dtype.name, equation.params["precision"])
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
        # The distances' and the loss's own are over the latents of two streams.
        and equation.invars[0].aval.ndim > 2
    }


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(sub)


def test_precision_is_what_products_are_multiplied_in():
    highest, default = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
    assert products("float32") == {("float32", (highest, highest))}
    assert products("tensorfloat32") == {("float32", (default, default))}
    assert products("bfloat16") == {("bfloat16", (default, default))}


def test_the_gradient_of_a_bfloat16_kernel_is_no_product_to_be_transposed():
    """That has no fast program on CPUs: most of a step's time."""
    x, kernel, bias = jnp.ones((2, 3, 5)), jnp.ones((5, 7)), jnp.ones(7)
    pull_back = jax.grad(
        lambda kernel: affine(x, [kernel], [bias], "bfloat16").sum().astype("float32")
    )
    found = [e for e in equations(jax.make_jaxpr(pull_back)(kernel).jaxpr)]
    shapes = {e.outvars[0].aval.shape for e in found if e.primitive.name == "dot_general"}
    assert kernel.shape in shapes and kernel.shape[::-1] not in shapes


def test_a_loop_over_bfloat16_blocks_keeps_whole_numbers_and_no_kernel_again():
    """Or XLA's CPU compiler widens all blocks' at each block, and a kernel is stored twice."""
    encoders, features = PRE.clone(precision="bfloat16"), jax.tree.map(jnp.asarray, batch())
    params = jax.eval_shape(partial(init_params, encoders, Sequential(), seed=0), features)

    def loss(params):
        streams = encoders.apply({"params": as_multiplied(encoders, params)}, features.features)
        return sum(stream.values.sum() for stream in streams)

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params["encoders"]).jaxpr
    loops = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    forward = [e for e in loops if not e.params["reverse"]]
    made = [(e.params["length"], var.aval) for e in forward for var in e.outvars]
    kept = [leaf for length, leaf in made if leaf.shape[:1] == (length,)]
    assert len(forward) < len(loops) and len(kept) > 4
    assert {leaf.dtype.name for leaf in kept} == {"uint16", "float32"}
    sizes = {leaf.size for leaf in jax.tree.leaves(params["encoders"]) if leaf.ndim > 2}
    assert not sizes & {leaf.size for leaf in kept}


def test_bfloat16_is_near_float32_and_leaves_parameters_and_latents_alone():
    loss, gradients = one_gradient()
    rounded, rounded_gradients = one_gradient(precision="bfloat16")
    assert 1e-7 < abs(rounded - loss) < 0.02 * loss
    flat, rounded_flat = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (gradients, rounded_gradients)
    )
    cosine = flat @ rounded_flat / np.linalg.norm(flat) / np.linalg.norm(rounded_flat)
    assert cosine > 0.99
    encoders = PRE.clone(precision="bfloat16")
    given = jax.random.key(0), batch().features
    latents, _ = jax.eval_shape(encoders.init_with_output, *given)
    assert {stream.values.dtype for stream in latents} == {jnp.dtype(jnp.float32)}
    # Latents have the steps of the features, products a multiple of eight.
    steps = given[1].audio.values.shape[1]
    assert steps % 8 and {stream.values.shape[1] for stream in latents} == {steps}
    jaxpr = jax.make_jaxpr(encoders.init_with_output)(*given)
    matrices = [
        e.invars[0].aval for e in equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"
    ]
    assert {x.shape[1] % 8 for x in matrices if x.ndim == 3} == {0}


def test_kernels_of_bfloat16_have_its_gradients_unless_several_are_summed():
    """They are those of the float32 parameters."""
    _, gradients = one_gradient(precision="bfloat16")
    half, encoders = batch(dtype=np.float16), PRE.clone(precision="bfloat16")
    objective = Sequential("aggregation")
    params = drawn.params(PRE, objective, half)
    of_loss = jax.jit(jax.grad(partial(compute_loss, encoders, objective), has_aux=True))
    expected, _ = of_loss(params, half, jax.random.key(5))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert leaf.dtype == (jnp.bfloat16 if path[-1].key == "kernel" else np.float32), path
    jax.tree.map(np.testing.assert_array_equal, gradients, jax.device_get(expected))

    state = drawn.state(POST, PLAYING, optimizer(), batch())
    compute = partial(loss_and_gradients, POST.clone(precision="bfloat16"), PLAYING)
    _, of_two = jax.eval_shape(compute, state.params, batch(), memory=state.memory)
    assert {leaf.dtype for leaf in jax.tree.leaves(of_two)} == {jnp.dtype(jnp.float32)}


def test_an_unknown_precision_is_named():
    with pytest.raises(InputError, match=r"train\.precision: .*got 'bfloat'.*bfloat16"):
        init_params(PRE.clone(precision="bfloat"), Sequential(), batch(), seed=0)


# -- where arrays live -----------------------------------------------------------------------------


@needs_devices
@pytest.mark.parametrize("params", [False, True])
def test_a_state_that_is_cut_over_devices_trains_the_same(params):
    objective, adam, mesh = Sequential("aggregation"), optimizer(), sharding.make_mesh(4)
    state = drawn.state(BARE, objective, adam, batch())
    places = state_shardings(state, mesh, shard_params=params, shard_optimizer=True)
    step = jax.jit(
        make_train_step(BARE, objective, adam, seed=0, mesh=mesh),
        in_shardings=(places, sharding.batch_sharded(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
    )
    state = jax.device_put(state, places)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, sharding.put_batch(batch(number), mesh))
        losses.append(float(metrics["loss"]))
    their_losses, their_params = trained_whole()
    np.testing.assert_allclose(losses, their_losses, rtol=TOLERANCE)
    assert_trees(jax.device_get(state.params), their_params, TOLERANCE)
    moment = next(leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (7, 8))
    assert moment.addressable_shards[0].data.shape == (7, 2)
    kernels = [leaf for leaf in jax.tree.leaves(state.params) if leaf.shape == (7, 8)]
    for leaf in kernels:
        assert leaf.addressable_shards[0].data.shape == ((7, 2) if params else (7, 8))
    assert kernels


@cache
def trained_whole():
    """Losses and parameters by AdamW, on one device."""
    objective, adam = Sequential("aggregation"), optimizer()
    step = jax.jit(make_train_step(BARE, objective, adam, seed=0))
    state, losses = drawn.state(BARE, objective, adam, batch()), []
    for number in range(STEPS):
        state, metrics = step(state, batch(number))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@needs_devices
def test_features_stay_on_their_device_and_gradients_travel_once():
    """Of a microbatched step: what travels does not grow with features or with microbatches."""
    mesh = sharding.make_mesh(MANY)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharded(mesh)
    objective = Sequential("aggregation")

    def received(parts):
        state = drawn.state(BARE, objective, DESCENT, batch())
        step = make_train_step(BARE, objective, DESCENT, 0, microbatch=CLIPS // parts, mesh=mesh)
        shardings = {"in_shardings": (whole, rows), "out_shardings": whole}
        program = jax.jit(step, **shardings).lower(state, batch()).compile()
        return sum(communication_bytes(program).values()), state

    few, state = received(2)
    many, _ = received(4)
    params = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    embeddings = 2 * 4 * CLIPS * BARE.width
    features = sum(leaf.nbytes for leaf in jax.tree.leaves(batch()))
    assert many == few
    # Gradients in a ring, latents' means in both passes, D and its statistics; no features.
    assert 2 * params * (MANY - 1) / MANY <= few < 2 * params + 8 * embeddings
    assert features > 2 * embeddings


def test_the_largest_axis_that_the_devices_divide_is_cut():
    mesh = sharding.make_mesh(min(2, len(jax.devices())))
    if mesh.size == 1:
        pytest.skip("needs 2 devices")
    shapes = {"a": (3, 4), "b": (6, 4), "c": (3, 5), "d": (), "e": (4, 4)}
    tree = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    placed = jax.device_put(tree, sharding.cut_along_largest(tree, mesh))
    pieces = {name: leaf.addressable_shards[0].data.shape for name, leaf in placed.items()}
    assert pieces == {"a": (3, 2), "b": (3, 4), "c": (3, 5), "d": (), "e": (2, 4)}


def test_a_microbatch_must_divide_the_batch_and_be_cut_over_devices():
    for size in (0, 4, 8, 12, 24):
        sharding.check_cuts(24, size, devices=4)
    with pytest.raises(InputError, match=r"24 that is a multiple of the 4 devices.*use 8 or 12$"):
        sharding.check_cuts(24, 10, devices=4)
    with pytest.raises(InputError, match=r"got 2; use 4$"):
        sharding.check_cuts(24, 2, devices=4)
    with pytest.raises(InputError, match=r"got 48; use 24$"):
        sharding.check_cuts(24, 48, devices=4)
    with pytest.raises(InputError, match=r"got -4; use 4$"):
        sharding.check_cuts(24, -4, devices=4)
