"""The temporal objective: what is chosen from a queue, what a loss is, what tasks can be told from.

That it changes with no microbatch, device or row is shown beside the other objectives
(`test_doors`, `test_scaling`).
"""

import contextlib
from dataclasses import replace
from functools import cache, partial

import drawn as drawn_at_start
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import TOWERS, small_config

from scav_jax import objectives
from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.extract.backbones import load, make_fingerprint
from scav_jax.features import store
from scav_jax.features.batches import covered_seconds, evaluation_batches
from scav_jax.features.clip import Clip
from scav_jax.features.sides import playable
from scav_jax.objectives import Place, Temporal, aggregation_loss
from scav_jax.objectives.contrastive import unit_smoothed
from scav_jax.objectives.objective import Outputs
from scav_jax.objectives.selection import drawn, nearest, without
from scav_jax.objectives.temporal import cross_entropy
from scav_jax.sequences import AudioVisual, Batch, Sequences
from scav_jax.train_step import bound_heads, make_train_step, of_clips
from scav_jax.training.checkpoints import Checkpoints
from scav_jax.training.setup import prepare_training
from scav_jax.views import covered

CLIPS = 64
PLACE = Place(2**20)
SMALL = {"window_s": 0.64, "visual_tokens": 4, "audio_tokens": 4, "audio_frames": 2}
TEMPORAL = Temporal(
    "temporal", **SMALL, speeds=2, hidden=16, width=6, queue=160, positives=2, negatives=3
)
ENCODERS = Encoders(**TOWERS, dropout=0.0)
WITHOUT_BLOCKS = ENCODERS.clone(visual_blocks=0, audio_blocks=0)


def batch(seed=0, clips=CLIPS, values=None):
    """Clips of 2 s at 12.5 frames and 6.25 steps of sound a second, NaN in the padding."""
    rng = np.random.default_rng(seed)
    streams = []
    for steps, rate, width in ((28, 12.5, 5), (14, 6.25, 8)):
        drawn_values = rng.normal(size=(clips, steps, width)).astype(np.float32)
        stream = drawn_values if values is None else values(drawn_values)
        length = int(2.0 * rate)
        stream[:, length:] = np.nan
        windows = np.tile(np.float32([0.0, 2.0 * rate]), (clips, 1))
        streams.append(Sequences(stream, np.full(clips, length, np.int32), windows))
    seconds = np.tile(np.float32([0.0, 2.0]), (clips, 1))
    numbers = (np.arange(clips) + seed * clips).astype(np.int32)
    return jax.tree.map(jnp.asarray, Batch(AudioVisual(*streams), numbers, seconds))


# ---- what is chosen -------------------------------------------------------------------------


def test_neighbours_are_the_nearest_that_are_allowed_and_draws_are_others(random):
    similarities = jnp.asarray(random.normal(size=(5, 12)), jnp.float32)
    allowed = jnp.asarray(random.random((5, 12)) < 0.6).at[4].set(False)
    near = nearest(similarities, allowed, 3)
    rest = without(allowed, near)
    far = drawn(jax.random.split(jax.random.key(1), 5), similarities, rest, 4)
    similarities, allowed, near, far = jax.device_get((similarities, allowed, near, far))
    for row in range(5):
        places = np.flatnonzero(allowed[row])
        best = places[np.argsort(-similarities[row][places])][:3]
        np.testing.assert_array_equal(near.which[row][near.found[row]], best)
        others = set(places) - set(best.tolist())
        chosen = far.which[row][far.found[row]]
        assert set(chosen.tolist()) <= others and len(set(chosen)) == min(4, len(others))


def test_draws_have_the_odds_of_drawing_without_replacement():
    logits, count = jnp.array([1.0, 0.0, -0.5, 0.3]), 40_000
    keys = jax.random.split(jax.random.key(0), count)
    rows = jnp.broadcast_to(logits[None], (count, 4))
    found = np.asarray(
        jax.jit(partial(drawn, count=2))(keys, rows, jnp.ones_like(rows, bool)).which
    )
    p = np.exp(logits) / np.exp(logits).sum()
    expected = p[:, None] * p[None] / (1 - p[:, None])  # first i, then j
    np.fill_diagonal(expected, 0.0)
    counts = np.zeros((4, 4))
    np.add.at(counts, (found[:, 0], found[:, 1]), 1)
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(counts / count - expected) <= 5 * error).all()


def units(random, *shape):
    rows = random.normal(size=shape).astype(np.float32)
    return jnp.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


@pytest.mark.parametrize("space", ["same_modality", "cross_modal"])
def test_the_contrast_is_its_formula(random, space):
    """Both terms each way, with draws of their own; for clip 0 there is one of the queue alone."""
    size, places = 5, 12
    t = replace(TEMPORAL, queue=places, temperature=0.2, nn_space=space, weight_va=0.5)
    first, second, heard, unheard = (units(random, size, 6) for _ in range(4))
    memory = {name: units(random, places, 6) for name in ("visual", "audio")}
    memory |= {"number": jnp.array([-1] * 3 + [0] * 8 + [6]), "next": jnp.int32(0)}
    drawing = jax.random.split(jax.random.key(0), size)
    number = jnp.arange(size)
    about = {"labels": {}, "number": number, "key": jax.vmap(jax.random.key_data)(drawing)}
    keys = {"visual": jnp.stack([first, second], 1), "audio": jnp.stack([heard, unheard], 1)}
    about["speed_prior"] = jnp.ones((size, 2))
    loss, aux = t.loss({}, Outputs({"keys": keys}, about), memory, PLACE)

    def term(draw, anchors, keys, own, stream):
        past, space_of = memory[stream], memory[own if space == "same_modality" else stream]
        noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, draw), (places,)))
        near = np.asarray(anchors @ space_of.T)
        far = near / t.selection_temperature + noise(drawing)
        total = 0.0
        for i in range(size):
            there = [q for q in range(places) if memory["number"][q] not in (-1, i)]
            p = sorted(there, key=lambda q: -near[i, q])[: t.positives]
            rest = [q for q in there if q not in p]
            n = sorted(rest, key=lambda q: -far[i, q])[: t.negatives]
            s = np.exp(np.asarray(anchors[i] @ keys.T, float) / 0.2)
            of_past = np.exp(np.asarray(anchors[i] @ past.T, float) / 0.2)
            others = s.sum() - s[i] + of_past[n].sum()
            total -= np.mean([np.log(one / (one + others)) for one in (s[i], *of_past[p])])
        return total / size

    vv = term(0, first, second, "visual", "visual") + term(1, second, first, "visual", "visual")
    va = term(2, first, heard, "visual", "audio") + term(3, heard, first, "audio", "visual")
    np.testing.assert_allclose(aux["losses"]["vv"], vv / 2, rtol=1e-5)
    np.testing.assert_allclose(aux["losses"]["va"], va / 2, rtol=1e-5)
    np.testing.assert_allclose(loss, vv / 2 + 0.5 * va / 2, rtol=1e-5)


@pytest.mark.parametrize("queue", [0, 160])
def test_without_a_queue_or_with_an_empty_one_it_is_info_nce(random, queue):
    """`aggregation_loss`, in value and in the gradient of both sides."""
    weights = {f"weight_{task}": 0.0 for task in ("vv", "speed", "direction", "order")}
    objective = replace(TEMPORAL, queue=queue, temperature=0.2, **weights)
    outputs = outputs_of(TEMPORAL)
    pair = [jnp.asarray(random.normal(size=(CLIPS, 6)), jnp.float32) for _ in range(2)]

    def ours(pair):
        keys = {
            name: jnp.stack([unit_smoothed(one), unit_smoothed(one)], axis=1)
            for name, one in zip(("visual", "audio"), pair, strict=True)
        }
        values = outputs.values | {"keys": keys}
        return objective.loss({}, outputs._replace(values=values), objective.memory(), PLACE)[0]

    def theirs(pair):
        return aggregation_loss(*pair, jnp.log(jnp.float32(0.2)))[0]

    (found, slope), (expected, expected_slope) = (
        jax.jit(jax.value_and_grad(f))(pair) for f in (ours, theirs)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), slope, expected_slope
    )


@cache
def outputs_of(objective):
    state = started(objective)
    return seen(objective)(state.params, batch(), jax.random.key(0))


@cache
def seen(objective, encoders=ENCODERS):
    return jax.jit(
        lambda params, batch, key: of_clips(encoders, objective, params, batch, None, key)
    )


# Of one vector: of a hundred small leaves it would be most of a program.
ADAM = optax.flatten(optax.adam(3e-3))


@cache
def started(objective, encoders=ENCODERS):
    return drawn_at_start.state(encoders, objective, ADAM, batch())


@cache
def step_of(objective, encoders=ENCODERS):
    return jax.jit(make_train_step(encoders, objective, ADAM, seed=0))


def test_the_queue_is_a_ring_of_the_latest_clips_and_takes_no_bad_step():
    state, step = started(TEMPORAL), step_of(TEMPORAL)
    assert (state.memory["number"] == -1).all()
    before = {}
    for seed in range(3):  # 192 clips into 160 places
        key = jax.random.fold_in(jax.random.key(0), seed)
        outputs = seen(TEMPORAL)(state.params, batch(seed), key)
        keys, labels = outputs.values["keys"]["audio"][:, 0], outputs.about["labels"]
        both = labels["direction_visual"] != labels["direction_audio"]
        assert 0.3 < both.mean() < 0.7  # each view has a direction of its own
        before |= dict(zip(np.arange(CLIPS) + seed * CLIPS, np.asarray(keys), strict=True))
        state, _ = step(state, batch(seed))
    memory = jax.device_get(state.memory)
    np.testing.assert_array_equal(memory["number"], [*range(160, 192), *range(32, 160)])
    assert memory["next"] == 32
    for number, key in zip(memory["number"], memory["audio"], strict=True):
        np.testing.assert_allclose(key, before[number], atol=1e-5)
    bad = batch(3, values=lambda values: values * np.nan)
    skipped, metrics = step(state, bad)
    assert metrics["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, skipped.memory, state.memory)
    # Of a batch that is larger than the queue, the last.
    short, number = replace(TEMPORAL, queue=5), jnp.arange(8)
    keys = dict.fromkeys(("visual", "audio"), jnp.zeros((8, 2, TEMPORAL.width)))
    kept = short.remember(short.memory(), Outputs({"keys": keys}, {"number": number}))
    np.testing.assert_array_equal(kept["number"], [3, 4, 5, 6, 7])


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    """Stopped after two steps: parameters, queue and what is drawn from it afterwards."""
    step, whole = step_of(TEMPORAL), started(TEMPORAL)
    with contextlib.closing(Checkpoints(tmp_path, 1)) as checkpoints:
        for seed in range(4):
            if seed == 2:
                checkpoints.save(2, whole, {}, None)
            whole, _ = step(whole, batch(seed))
        checkpoints.wait()
        found, again, _ = checkpoints.restore_latest(started(TEMPORAL))
    assert found == 2 and (np.asarray(again.memory["number"]) == -1).sum() == 160 - 2 * CLIPS
    for seed in (2, 3):
        again, _ = step(again, batch(seed))
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_a_clip_is_no_neighbour_of_itself():
    """Its own key of an earlier step lies nearest of all."""
    objective = replace(TEMPORAL, positives=1, negatives=0)
    outputs = outputs_of(TEMPORAL)
    memory = objective.remember(objective.memory(), outputs)
    keys = outputs.values["keys"]["visual"][:, 0]
    _, near, _ = objective._chosen(outputs.about, memory, 0, ("visual", keys), "audio")
    numbers = np.asarray(memory["number"])[np.asarray(near.which)[:, 0]]
    similarities = np.array(keys @ memory["visual"][:CLIPS].T)
    np.fill_diagonal(similarities, -2.0)
    np.testing.assert_array_equal(numbers, similarities.argmax(axis=1))
    more = replace(objective, negatives=20)
    _, near, far = more._chosen(outputs.about, memory, 0, ("visual", keys), "audio")
    assert near.found.all() and far.found.all()
    assert not (np.asarray(near.which) == np.asarray(far.which)).any(), "a neighbour is no negative"
    assert (np.asarray(far.which) != np.arange(CLIPS)[:, None]).all()
    crossed = replace(objective, nn_space="cross_modal")
    _, near, _ = crossed._chosen(outputs.about, memory, 0, ("visual", keys), "audio")
    similarities = np.array(keys @ memory["audio"][:CLIPS].T)
    np.fill_diagonal(similarities, -2.0)
    np.testing.assert_array_equal(np.asarray(near.which)[:, 0], similarities.argmax(axis=1))


# ---- what can be told, and what cannot --------------------------------------------------------


def losses(objective, state, encoders, seeds=range(500, 508), values=None):
    """Cross-entropy and accuracy by task over some views; each true class weighs the same."""

    @jax.jit
    def tasks(params, batch, key):
        return objective.tasks(of_clips(encoders, objective, params, batch, None, key))

    found = [
        tasks(state.params, batch(seed, values=values), jax.random.key(seed)) for seed in seeds
    ]
    result = {}
    for name in found[0]:
        logits = np.concatenate(
            [np.reshape(f[name].logits, (-1, f[name].logits.shape[-1])) for f in found]
        )
        labels = np.concatenate([np.reshape(f[name].labels, -1) for f in found])
        log_p = np.asarray(jax.nn.log_softmax(logits))
        each = [-log_p[labels == label, label].mean() for label in np.unique(labels)]
        result[name] = float(np.mean(each)), float((logits.argmax(1) == labels).mean())
    return result


def ramp(values):
    """Time itself, in every channel, with a little noise."""
    return np.arange(values.shape[1], dtype=np.float32)[None, :, None] * 0.2 + 0.02 * values


def test_tasks_are_learned_from_time_and_from_nothing_else():
    """Of a ramp; under controls what is left is what theory says, whatever was learned."""
    state, step = started(TEMPORAL), step_of(TEMPORAL)
    for seed in range(250):
        state, _ = step(state, batch(seed, values=ramp))
    solved = losses(TEMPORAL, state, ENCODERS, values=ramp)
    assert all(accuracy > 0.9 for _, accuracy in solved.values()), solved
    for task, (loss, _) in losses(TEMPORAL.under("static"), state, ENCODERS, values=ramp).items():
        assert loss >= np.log(3 if task.startswith("order") else 2) - 0.02, (task, loss)
    shuffled = losses(TEMPORAL.under("shuffled"), state, ENCODERS, values=ramp)
    for task in ("direction_visual", "direction_audio"):
        assert shuffled[task][0] >= np.log(2) - 0.02


def test_without_positions_direction_cannot_be_told():
    """A mean over steps that do not see each other: the same for a view and for its reverse."""
    found = losses(TEMPORAL, started(TEMPORAL, WITHOUT_BLOCKS), WITHOUT_BLOCKS, values=ramp)
    assert found["direction_visual"][0] >= np.log(2) - 0.01
    assert found["direction_audio"][0] >= np.log(2) - 0.01


def test_cross_entropy_leaves_out_what_has_no_label(random):
    logits = jnp.asarray(random.normal(size=(4, 2, 3)), jnp.float32)
    labels = jnp.asarray(random.integers(0, 3, (4, 2)), jnp.int32)
    usable = jnp.array([True, False, True, False])
    loss, accuracy = cross_entropy(objectives.objective.Task(logits, labels, usable))
    log_p = np.asarray(jax.nn.log_softmax(logits))[::2].reshape(-1, 3)
    true = np.asarray(labels)[::2].reshape(-1)
    np.testing.assert_allclose(loss, -log_p[np.arange(4), true].mean(), rtol=1e-6)
    np.testing.assert_allclose(accuracy, (log_p.argmax(1) == true).mean())
    none = objectives.objective.Task(logits, labels, jnp.zeros(4, bool))
    assert cross_entropy(none) == (0.0, 0.0)


def test_what_it_shows_and_how_it_embeds():
    """Pictures at the rate of views, one vector of length 1 a stream, the same every time."""
    shown = jax.jit(TEMPORAL.shown)(batch())
    np.testing.assert_array_equal(shown.visual.lengths, int(2.0 / 0.16 + 1e-3))
    np.testing.assert_array_equal(shown.audio.lengths, int(2.0 / 0.16 + 1e-3))

    @jax.jit
    def embedded(params):
        latents = WITHOUT_BLOCKS.apply({"params": params["encoders"]}, shown)
        heads = bound_heads(WITHOUT_BLOCKS, TEMPORAL, params)
        return TEMPORAL.embed(heads, "audio", latents.audio)

    found = embedded(started(TEMPORAL, WITHOUT_BLOCKS).params)
    assert found.shape == (CLIPS, 6)
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=1), 1.0, rtol=1e-4)


# ---- data, runs ---------------------------------------------------------------------------------

FINGERPRINT = make_fingerprint(load("colours"))


def write(folder, fingerprint=FINGERPRINT, seconds=lambda number: 2.0, rate=12.5, clips=29):
    """Clips of noise with the widths of `SMALL`."""
    random = np.random.default_rng(0)
    made = []
    for number in range(clips):
        duration = seconds(number)
        n, m = int(duration * rate), int(duration * 6.25)
        clip = Clip(
            id=f"clip {number}",
            visual=random.normal(size=(n, 5)).astype(np.float16),
            visual_span=(0.0, n / rate),
            audio=random.normal(size=(m, 32)).astype(np.float16),
            audio_span=(0.0, 0.16 * m),
            source="a.mp4",
            start=2.0 * number,
            end=2.0 * number + 2.0,
            label=f"class {number % 3}",
        )
        made.append(("validation" if number >= clips - 5 else "train", clip))
    store.write(made, folder, fingerprint=fingerprint, videos="", rejected=[])
    return folder


RUN = {
    "objective.audio_frames": 16,
    "objective.visual_tokens": 4,
    "objective.speeds": 2,
    "objective.queue": 20,
    "objective.positives": 2,
    "objective.negatives": 5,
    "objective.hidden": 8,
    "objective.width": 6,
}


def config_of(data, name="temporal", **changes):
    prefix = "objective.temporal_" if "+" in name else "objective."
    options = {key.replace("objective.", prefix): value for key, value in RUN.items()}
    steps = {"train.steps": 9, "train.validate_every": 4, "train.checkpoint_every": 0}
    return small_config(data, **{"objective.name": name} | options | steps | changes)


def test_a_sum_is_the_weighted_sum_of_its_parts():
    name = "sequence+temporal"
    own = {key: getattr(TEMPORAL, key) for key in ("speeds", "hidden", "width", "queue")}
    own |= {"positives": 2, "negatives": 3, **SMALL}
    both = objectives.find(name)(
        name=name,
        sequence_weight=0.5,
        temporal_weight=2.0,
        sequence_temperature=0.7,
        **{f"temporal_{key}": value for key, value in own.items()},
    )
    assert both.parts["temporal"] == TEMPORAL
    state, key = started(both, WITHOUT_BLOCKS), jax.random.key(0)

    def loss_of(objective, params):
        outputs = of_clips(WITHOUT_BLOCKS, objective, params, batch(), None, key)
        return objective.loss(params["log_temperature"], outputs, objective.memory(), PLACE)

    @jax.jit
    def losses_of(params):
        alone = {}
        for part in ("sequence", "temporal"):
            own = {
                "encoders": params["encoders"],
                "heads": params["heads"].get(f"parts_{part}"),
                "log_temperature": {"sequence": params["log_temperature"]["sequence_sequence"]},
            }
            alone[part], _ = loss_of(both.parts[part], own)
        return loss_of(both, params), alone

    (total, aux), alone = losses_of(state.params)
    expected = 0.0
    for part, weight in (("sequence", 0.5), ("temporal", 2.0)):
        loss = alone[part]
        np.testing.assert_allclose(aux["losses"][part], loss, rtol=1e-5)
        expected += weight * loss
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert np.exp(state.params["log_temperature"]["sequence_sequence"]) == pytest.approx(0.7)
    health = both.health(aux)
    assert {"temperature", "temporal_prior_speed", "loss_sequence"} <= health.keys()
    assert both.methods == ("sequence", "aggregation") and both.title == "SCAV + Temporal"
    assert both.under("static").parts["temporal"].control == "static"
    with pytest.raises(InputError, match=r"objective\.temporal_queue: expected at least"):
        replace(both, temporal_queue=3)
    with pytest.raises(InputError, match=r"objective\.temporal_weight: expected 0 or more"):
        replace(both, temporal_weight=-1.0)
    with pytest.raises(InputError, match="expected a weight above 0"):
        replace(both, temporal_weight=0.0, sequence_weight=0.0)
    with pytest.raises(InputError, match=r"expected a sum of .* your own is trained alone"):
        objectives.find("sequence+my_package:Mine")
    for wrong in ("sequence+sequence", "sequence+temporel"):
        with pytest.raises(InputError, match="expected one of"):
            objectives.find(wrong)


@pytest.mark.parametrize("name", ["sequence+separate", "separate+aggregation"])
def test_a_part_of_a_sum_sees_what_it_would_see_alone(name):
    """One shows features less their mean, the other as they are; towers that change nothing."""
    clips, key = batch(clips=3), jax.random.key(0)
    both = objectives.make({"name": name, "separate_statics": "remove"}, {"name": "euclidean"})
    found = both.views(clips, key)
    assert sorted(found.features) == ["clip", "separate/clip"]
    outputs = both.of_clips(None, *found)
    for part, alone in both.parts.items():
        expected = alone.of_clips(None, *alone.views(clips, key))
        jax.tree.map(np.testing.assert_array_equal, outputs.values[part], expected.values)


def test_covered_seconds_are_those_that_views_find(tmp_path):
    """On disk and in a batch, where streams begin and end apart."""
    data = write(tmp_path / "data", seconds=lambda number: 1.5 + 0.07 * number)
    split = store.read(data, "train")
    (found,) = evaluation_batches(split, batch_size=len(split))
    there = jax.vmap(covered)(*jax.tree.map(jnp.asarray, (found.features, found.seconds)))
    np.testing.assert_allclose(covered_seconds(split), there, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (
            {"seconds": lambda number: 1.0 if number in (3, 5, 8, 13) else 2.0},
            {},
            r"train\): 4 of 24 clips last less than two excerpts of 0\.64 s, .*"
            r"\('clip 3', 'clip 5', 'clip 8', \.\.\.\); drop them or lower objective\.window_s",
        ),
        (
            {"rate": 6.0},
            {},
            r"24 of 24 clips have fewer visual steps than one in 0\.16 s, .*visual_tokens",
        ),
        ({}, {"objective.audio_tokens": 5, "objective.speeds": 2}, "fewer audio steps than one in"),
        (
            {},
            {"objective.speeds": 3},
            r"objective\.speeds: .*expected a clip of at least 3\.2 s for 4 times beside normal",
        ),
        ({}, {"data.align": "index"}, "data.align: expected 'time', got 'index': the temporal"),
        ({}, {"objective.audio_frames": 8}, "expected 8 frames in a step of audio .* they have 16"),
        (
            {"fingerprint": make_fingerprint(load("plain"))},
            {},
            "visual features cannot be played: frame differences know .* --backbone colours",
        ),
        (
            {"fingerprint": {"backbone": {"visual": {"name": "clip"}, "audio": {"name": "beats"}}}},
            {},
            "audio features cannot be played: every token of BEATs .* --backbone clip_mel",
        ),
        ({"fingerprint": {"backbone": "random"}}, {}, "nothing says that each step has seen"),
    ],
)
def test_what_cannot_be_trained_on_is_named_before_training(tmp_path, data, changes, words):
    with pytest.raises(InputError, match=words):
        prepare_training(config_of(write(tmp_path / "data", **data), **changes))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("queue", 6, r"objective\.queue: expected at least positives \+ negatives = 7, got 6"),
        ("speeds", 0, r"objective\.speeds: expected 1 to 16, got 0"),
        ("window_s", 0.0, r"objective\.window_s: expected more than 0, got 0"),
        ("weight_vv", -1.0, r"objective\.weight_vv: expected at least 0, got -1"),
        ("nn_space", "cross", "expected one of same_modality, cross_modal, got 'cross'"),
        ("control", "statc", "Did you mean 'static'"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(option, value, words):
    with pytest.raises(InputError, match=words):
        replace(TEMPORAL, **{"positives": 2, "negatives": 5, option: value})


def test_what_is_playable_is_said_by_the_fingerprint():
    def of(visual, audio, **more):
        return playable({"backbone": {"visual": visual, "audio": audio}, **more})

    assert of({"name": "clip"}, {"name": "plain"}) == {"visual": 1, "audio": 16}
    mine = {"name": "my_package.dino:Dino", "playable": 1}
    assert of(mine, {"name": "plain"})["visual"] == 1
    assert "BEATs" in of(mine, {"name": "beats"})["audio"]
    copied = of({"name": "clip"}, {"name": "plain"}, resampled={"direction": "x"})
    assert all("interpolated" in words for words in copied.values())
