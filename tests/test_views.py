"""Views: excerpts whose labels say nothing about each other, and exactly what is read of them."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_equal_products

from scav_jax import views
from scav_jax.extract.backbones.plain import ColoursVisual, PlainAudio, PlainVisual
from scav_jax.sequences import AudioVisual, Sequences

DRAWS = 60_000
WINDOW_S, SPEEDS = 0.64, 4
DURATIONS = [10.0, 9.92, 3.84, 1.4]


@cache
def drawn(duration, begin=0.0):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    seconds = jnp.array([begin, begin + duration], jnp.float32)
    draw = jax.jit(lambda keys, seconds: jax.vmap(one_pair, (0, None))(keys, seconds))
    return jax.device_get(draw(keys, seconds))


def one_pair(key, seconds):
    first, second, fits = views.draw_pair(key, seconds, WINDOW_S, SPEEDS)
    return first, second, views.order_of(first.span, second.span), fits


def chi_square(one, other):
    """Of independence, in standard deviations above its mean."""
    counts = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(counts, (one, other), 1)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    degrees = max((counts.shape[0] - 1) * (counts.shape[1] - 1), 1)
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


def possible(duration):
    """Pairs of speeds whose spans fit side by side, as numbers."""
    return {
        i * SPEEDS + j
        for i in range(SPEEDS)
        for j in range(SPEEDS)
        if WINDOW_S * (2**i + 2**j) <= duration + 1e-6
    }


@pytest.mark.parametrize("duration", DURATIONS)
def test_labels_say_nothing_about_each_other(duration):
    first, second, order, fits = drawn(duration)
    assert fits.all()
    speeds = first.speed * SPEEDS + second.speed
    assert set(np.unique(speeds)) == possible(duration)
    directions = first.direction * 2 + second.direction
    for one, other in (
        (order, speeds),
        (order, first.speed),
        (order, second.speed),
        (order, directions),
        (speeds, directions),
        (first.direction, second.direction),
    ):
        assert chi_square(one, other) < 5
    np.testing.assert_allclose(np.bincount(order) / DRAWS, 1 / 3, atol=0.01)
    np.testing.assert_allclose(np.bincount(directions) / DRAWS, 1 / 4, atol=0.01)
    prior = views.speed_prior(jnp.float32(duration), WINDOW_S, SPEEDS)
    found = np.bincount(first.speed, minlength=SPEEDS) / DRAWS
    np.testing.assert_allclose(found, prior, atol=0.01)


@pytest.mark.parametrize("duration", DURATIONS[:3])
def test_speeds_drawn_for_the_order_at_hand_would_tell_it(duration, random):
    """The naive sampler: what overlaps may be longer than what lies side by side."""
    order = random.integers(0, 3, DRAWS)
    alone = [k for k in range(SPEEDS) if WINDOW_S * 2**k <= duration]
    overlapping = [i * SPEEDS + j for i in alone for j in alone]
    speeds = np.where(
        order == views.OVERLAPPING,
        random.choice(overlapping, DRAWS),
        random.choice(sorted(possible(duration)), DRAWS),
    )
    assert chi_square(order, speeds) > 20


@pytest.mark.parametrize("begin", [0.0, 0.37])
def test_spans_lie_in_the_clip_and_in_their_order(begin):
    first, second, order, _ = drawn(9.92, begin)
    spans = np.stack([first.span, second.span])
    assert begin - 1e-5 <= spans.min() and spans.max() <= begin + 9.92 + 1e-4
    for excerpt in (first, second):
        lengths = excerpt.span[:, 1] - excerpt.span[:, 0]
        np.testing.assert_allclose(lengths, WINDOW_S * 2.0**excerpt.speed, rtol=1e-4)
    shared = np.minimum(*spans[:, :, 1]) - np.maximum(*spans[:, :, 0])
    shorter = np.minimum(*(spans[:, :, 1] - spans[:, :, 0]))
    overlaps = order == views.OVERLAPPING
    assert (shared[overlaps] >= views.MIN_OVERLAP * shorter[overlaps] - 1e-4).all()
    assert (shared[~overlaps] <= 1e-4).all()
    swapped = jax.vmap(views.order_of)(jnp.asarray(second.span), jnp.asarray(first.span))
    np.testing.assert_array_equal(swapped, 2 - order)


def test_touching_is_ordered_and_a_token_in_common_overlaps():
    def order(one, other):
        return int(views.order_of(jnp.array(one), jnp.array(other)))

    assert order([0.0, 1.0], [1.0, 2.0]) == views.ORDERED
    assert order([1.0, 2.0], [0.0, 1.0]) == views.REVERSED
    assert order([0.0, 1.0], [0.92, 2.0]) == order([0.0, 9.0], [4.0, 5.0]) == views.OVERLAPPING


def test_a_clip_that_is_too_short_says_so():
    *_, fits = drawn(1.2)
    assert not fits.any()
    assert not views.speed_prior(jnp.float32(1.2), WINDOW_S, SPEEDS).any()


# ---- what is read ---------------------------------------------------------------------------


def ramp(steps, width=3, padded=600, fill=np.nan, begin=0.0, rate=25.0):
    """Features that are their own step's number; the window begins in the middle of a step."""
    values = np.full((max(steps, padded), width), fill, np.float32)
    values[:steps] = np.arange(steps)[:, None]
    window = jnp.array([0.25, steps - 0.5], jnp.float32)
    seconds = jnp.array([begin, begin + (steps - 0.5) / rate], jnp.float32)
    return Sequences(jnp.asarray(values), jnp.asarray(steps, jnp.int32), window), seconds


@jax.jit
@partial(jax.vmap, in_axes=(0, None, None))
def excerpts_played(key, source, seconds):
    excerpt, *_ = views.draw_pair(key, seconds, WINDOW_S, SPEEDS)
    view = views.play(source, seconds, excerpt, 8)
    return excerpt, view, views.speed_of(view.times, 0.08), views.direction_of(view.times)


def some_views(source, seconds, count=500):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.device_get(excerpts_played(keys, source, seconds))


play = jax.jit(views.play, static_argnums=(3, 4))
at_rate = jax.jit(views.at_rate, static_argnums=(2, 3))


@pytest.mark.parametrize("rate", [25.0, 30.0, 29.97, 24.0, 60.0])
def test_times_are_those_of_the_steps_that_were_read(rate):
    """Speed, direction and nearness follow from times, at any frame rate that is high enough."""
    source, seconds = ramp(int(9.9 * rate), begin=0.1, rate=rate)
    excerpt, view, speeds, directions = some_views(source, seconds)
    index = view.sequence.values[..., 0]
    assert np.isfinite(index).all() and (view.sequence.lengths == 8).all()
    np.testing.assert_allclose(view.times, 0.1 + (index + 0.5 - 0.25) / rate, atol=1e-4)
    np.testing.assert_array_equal(np.round(speeds), excerpt.speed)
    np.testing.assert_array_equal(directions, excerpt.direction)
    parts = np.where(excerpt.direction[:, None] == 1, np.arange(8)[::-1], np.arange(8)) + 0.5
    wanted = excerpt.span[:, :1] + parts * (0.08 * 2.0 ** excerpt.speed[:, None])
    assert np.abs(view.times - wanted).max() <= 0.5 / rate + 1e-3
    assert np.abs(np.diff(index, axis=1)).min() >= 1, "a step twice would tell the speed"


@pytest.mark.parametrize("rate", [25.0, 25.001])
def test_a_whole_pace_reads_at_equal_distances(rate):
    """Also where the clock of a file is a little off."""
    excerpt, view, *_ = some_views(*ramp(240, rate=rate), count=4000)
    steps = np.abs(np.diff(view.sequence.values[..., 0], axis=1))
    assert (steps == 2 * 2.0 ** excerpt.speed[:, None]).all()


def excerpt(begin, end, speed, direction):
    span = jnp.array([begin, end], jnp.float32)
    return views.Excerpt(span, jnp.asarray(speed), jnp.asarray(direction))


def test_backward_is_forward_turned_round():
    source, seconds = ramp(100)
    one, other = (play(source, seconds, excerpt(0.4, 2.96, 2, d), 8) for d in (0, 1))
    np.testing.assert_array_equal(one.sequence.values[::-1], other.sequence.values)
    np.testing.assert_array_equal(one.times[::-1], other.times)


def test_padding_changes_nothing_and_gets_no_gradient():
    def total(values, source, seconds):
        view = views.play(source.replace(values=values), seconds, excerpt(2.0, 3.9, 1, 0), 8)
        return jnp.sum(view.sequence.values**2), view

    results = []
    gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
    for padded, fill in ((97, 0.0), (106, np.nan)):
        source, seconds = ramp(97, padded=padded, fill=fill)
        (_, view), slope = gradient(source.values, source, seconds)
        assert not np.isnan(slope).any() and not slope[97:].any()
        results.append((view.sequence.values, view.times, slope[:97]))
    jax.tree.map(assert_equal_products, *results)


def test_excerpts_are_drawn_where_there_are_steps():
    """A window may reach half a step of 16 frames beyond what is kept of the sound."""
    rate, kept, frames = 6.25, 23, 16
    seconds = jnp.array([0.05, 3.7], jnp.float32)
    sound = Sequences(
        jnp.arange(kept * frames, dtype=jnp.float32).reshape(kept, frames),
        jnp.asarray(kept, jnp.int32),
        jnp.array([-0.3, 3.65 * rate], jnp.float32),  # the first step begins 48 ms late
    )
    picture, _ = ramp(95)
    picture = picture.replace(windows=jnp.array([0.0, 3.65 * 25], jnp.float32))
    there = np.asarray(views.covered(AudioVisual(picture, sound), seconds))
    np.testing.assert_allclose(there, [0.05 + 0.3 * 0.16, 3.7], atol=1e-5)
    whole = excerpt(*there, 0, 0)
    count = 22 * frames
    frames_read = play(sound, seconds, whole, 22, frames).sequence.values.reshape(-1)
    assert len(set(frames_read.tolist())) == count and frames_read[0] == 0
    shown = at_rate(sound, seconds, 0.16, frames)
    assert shown.lengths == 22 and shown.windows[0] == pytest.approx(-0.3)
    np.testing.assert_array_equal(shown.values[:22], sound.values[:22])


@pytest.mark.parametrize("rate", [25.0, 30.0])
def test_a_whole_clip_at_the_rate_of_views(rate):
    source, seconds = ramp(int(4 * rate), begin=0.2, rate=rate)
    view = at_rate(source, seconds, 0.08)
    length = int(view.lengths)
    assert length == int((4 * rate - 0.5) / rate / 0.08 + 1e-3)
    times = 0.2 + (view.values[:length, 0] + 0.25) / rate
    wanted = 0.2 + (np.arange(length) + 0.5) * 0.08
    np.testing.assert_allclose(times, wanted, atol=0.5 / rate + 1e-3)
    np.testing.assert_allclose(view.windows, [0.0, (4 * rate - 0.5) / rate / 0.08], rtol=1e-5)


def test_controls_take_time_away():
    source, seconds = ramp(40, width=6, padded=40)
    source = source.replace(values=source.values + jnp.arange(6.0)[None] / 10)
    still = jax.jit(views.still, static_argnums=1)(source, 2)
    assert len(np.unique(np.asarray(still.values).reshape(-1, 3), axis=0)) == 1
    view = play(source, seconds, excerpt(0.0, 1.28, 1, 0), 4, 2).sequence
    turned = views.shuffled(jax.random.key(0), view, 2)
    one, other = (np.asarray(v.values).reshape(-1, 3) for v in (view, turned))
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(np.sort(one, axis=0), np.sort(other, axis=0))


# ---- E(x)[I] = E(x[I]) ----------------------------------------------------------------------


def agreement(one, other):
    """The correlation of two log-mels, each band's mean left out."""
    one, other = (np.asarray(x).reshape(-1, 128) for x in (one, other))
    one, other = one - one.mean(0), other - other.mean(0)
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def test_log_mel_played_by_frames_is_the_log_mel_of_the_sound_played(random):
    """A hop of 20 ms exactly; backward but for pre-emphasis, which looks at the sample before."""
    samples = 400 + 160 * 16 * 12 - 160  # whole steps, and frames end where the sound ends
    sound = random.normal(size=samples).astype(np.float32) * 0.1
    stored = PlainAudio().prepare(sound)
    steps = len(stored)
    source = Sequences(
        jnp.asarray(stored), jnp.asarray(steps, jnp.int32), jnp.array([0.0, steps], jnp.float32)
    )
    seconds = jnp.array([0.0, 0.16 * steps], jnp.float32)
    frames = stored.reshape(-1, 128)
    faster = play(source, seconds, excerpt(0.0, 1.28, 1, 0), 4, 16).sequence.values
    np.testing.assert_array_equal(np.reshape(faster, (-1, 128)), frames[1:129:2])
    back = play(source, seconds, excerpt(0.0, 0.16 * steps, 0, 1), steps, 16)
    np.testing.assert_array_equal(np.reshape(back.sequence.values, (-1, 128)), frames[::-1])
    turned = PlainAudio().prepare(np.ascontiguousarray(sound[::-1]))
    assert agreement(back.sequence.values, turned) > 0.9
    # The control: whole stacks, each still forward inside.
    assert agreement(stored[::-1], turned) < 0.2


def test_colours_commute_with_playing_and_frame_differences_do_not(random):
    walk = np.cumsum(random.normal(size=(40, 64, 64, 3)), axis=0) * 4 + 128
    frames = np.clip(walk, 0, 255).astype(np.uint8)
    colours, plain = ColoursVisual(), PlainVisual()
    stored, with_differences = colours.prepare(frames, None), plain.prepare(frames, None)
    np.testing.assert_array_equal(stored, with_differences[:, :192])
    for index in (slice(0, 32, 2), slice(None, None, -1)):
        played = np.ascontiguousarray(frames[index])
        np.testing.assert_array_equal(colours.prepare(played, None), stored[index])
        again = plain.prepare(played, None)
        # All but the first, which has no frame before it.
        assert np.abs(again[1:, 192:] - with_differences[index][1:, 192:]).max() > 0.05
