"""Padded sequences: masks, means and resampling in time, against loops over unpadded sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from beartype.roar import BeartypeCallHintViolation
from jax.test_util import check_grads

from scav_jax.base.errors import InputError
from scav_jax.distances import pairwise
from scav_jax.encoders import Encoders
from scav_jax.objectives import sequence_loss
from scav_jax.sequences import (
    AudioVisual,
    Sequences,
    masked_mean,
    resample,
    resample_like,
    resample_pairs,
    resample_positions,
    sequences,
    step_mask,
    with_rises,
    zero_padding,
)

# torch.nn.functional.interpolate([0, 1, 4, 9, 16], size, mode="linear", align_corners=False)
TORCH_INTERPOLATED = {
    3: [0.33333333333333337, 4.0, 13.666666666666668],
    7: [0.0, 0.5714285714285714, 1.8571428571428574, 4.0, 7.571428571428572, 12.0, 16.0],
}


def padded(values, steps, fill=np.nan, window=None, dtype=np.float32):
    """One numpy sequence as `Sequences`, padded with `fill` to `steps`."""
    whole = np.full((steps, values.shape[1]), fill, dtype)
    whole[: len(values)] = values
    window = None if window is None else jnp.asarray(window, dtype)
    return sequences(jnp.asarray(whole), jnp.asarray(len(values)), window)


@pytest.mark.parametrize("size", TORCH_INTERPOLATED)
def test_whole_sequences_are_resampled_as_torch_does(size):
    source = np.arange(5.0)[:, None] ** 2
    target = sequences(jnp.zeros((size, 1)))
    ours = resample_like(padded(source, 8), target).values[:, 0]
    np.testing.assert_allclose(ours, TORCH_INTERPOLATED[size], rtol=1e-6)
    loops = reference.resample(source, (0, 5), size, (0, size))[:, 0]
    np.testing.assert_allclose(loops, TORCH_INTERPOLATED[size], rtol=1e-12)


@pytest.mark.parametrize("source_steps", [1, 2, 9])
@pytest.mark.parametrize("target_steps", [1, 3, 13])
def test_resampling_goes_by_time_in_windows(source_steps, target_steps):
    rng = np.random.default_rng(source_steps * 100 + target_steps)
    source = rng.normal(size=(source_steps, 2))
    source_window = (rng.uniform(-0.4, 0.6), source_steps * rng.uniform(0.7, 1.2))
    target_window = (rng.uniform(-0.4, 0.6), target_steps * rng.uniform(0.7, 1.2))
    target = padded(np.zeros((target_steps, 2)), 15, window=target_window)
    ours = resample_like(padded(source, 11, window=source_window), target)
    expected = reference.resample(source, source_window, target_steps, target_window)
    np.testing.assert_allclose(ours.values[:target_steps], expected, atol=3e-6)
    assert not np.any(ours.values[target_steps:])
    assert int(ours.lengths) == target_steps
    np.testing.assert_array_equal(ours.windows, target.windows)


def test_a_target_step_reads_the_source_at_its_own_second():
    """4 s of video at 5 Hz whose value is the time; 24 audio steps that end at 3.84 s."""
    video = (np.arange(20) + 0.5)[:, None] / 5.0
    shared = 3.84
    source = padded(video, 23, window=(0.0, shared * 5.0))
    target = padded(np.zeros((24, 1)), 24)
    ours = np.asarray(resample_like(source, target).values[:, 0])
    seconds = (np.arange(24) + 0.5) * 0.16
    inside = (seconds >= 0.1) & (seconds <= 3.9)
    np.testing.assert_allclose(ours[inside], seconds[inside], atol=1e-5)


def test_resampling_a_constant_is_exactly_constant():
    value = np.float32(0.1)
    source = padded(np.full((7, 1), value), 9, window=(0.3, 6.1))
    ours = resample(source, jnp.asarray(11), jnp.array([0.2, 10.3]), 12)
    np.testing.assert_array_equal(ours[:11], np.full((11, 1), value))


def test_resampling_onto_itself_is_the_identity():
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    one = padded(values, 6)
    np.testing.assert_allclose(resample_like(one, one).values, values, atol=1e-6)


def test_padding_reaches_neither_value_nor_gradient():
    values = np.random.default_rng(1).normal(size=(5, 2))
    target = padded(np.zeros((3, 2)), 4, window=(0.25, 2.5))

    def total(source_values, fill_source):
        moved = resample_like(fill_source.replace(values=source_values), target).values
        return jnp.sum(jnp.sin(moved))

    gradients = []
    for fill in (0.0, np.nan, np.inf):
        source = padded(values, 8, fill=fill, window=(0.5, 4.0))
        value, gradient = jax.value_and_grad(total)(source.values, source)
        assert np.isfinite(value)
        assert not np.any(gradient[5:])
        gradients.append(gradient)
    np.testing.assert_array_equal(gradients[0], gradients[1])
    np.testing.assert_array_equal(gradients[0], gradients[2])


def test_resampling_gradient():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        source = padded(rng.normal(size=(5, 2)), 5, window=(0.3, 4.1), dtype=np.float64)
        target = padded(np.zeros((7, 2)), 7, window=(0.1, 6.6), dtype=np.float64)

        @jax.jit  # check_grads passes numpy arrays, which our signatures do not take
        def moved(values):
            return resample_like(source.replace(values=values), target).values

        check_grads(moved, (source.values,), order=1, modes=("fwd", "rev"))


def test_positions_are_torchs_formula_for_whole_windows():
    positions = resample_positions(jnp.array([0.0, 9.0]), jnp.array([0.0, 4.0]), 4)
    np.testing.assert_allclose(positions, [(t + 0.5) * 9 / 4 - 0.5 for t in range(4)], rtol=1e-6)


def test_every_step_is_read_where_it_lies_when_compiled():
    """All of 1..300 steps onto 1..62: a floor and a fraction that disagree would be a step off."""
    numbers = jnp.broadcast_to(jnp.arange(300, dtype=jnp.float32)[None, :, None], (300, 300, 1))
    counts = jnp.arange(1, 301, dtype=jnp.int32)
    source = sequences(numbers, counts)  # each value says where it lies

    @jax.jit
    def read(steps):
        target = sequences(jnp.zeros((300, 62, 1)), jnp.full(300, steps, jnp.int32))
        return jax.vmap(resample_like)(source, target).values[..., 0]

    for steps in range(1, 63):
        share = (np.arange(steps) + 0.5) / steps
        expected = np.clip(
            share[None] * np.arange(1, 301)[:, None] - 0.5, 0, np.arange(300)[:, None]
        )
        np.testing.assert_allclose(read(jnp.int32(steps))[:, :steps], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("direction", "points", "join"),
    [
        ("visual_to_audio", 1, "beside"),
        ("audio_to_visual", 1, "mean"),
        ("visual_to_audio", 3, "beside"),
        ("visual_to_audio", 4, "mean"),
    ],
)
def test_pairs_are_resampled_clip_by_clip(direction, points, join):
    rng = np.random.default_rng(3)
    lengths = {"visual": [9, 4, 1], "audio": [3, 5, 2]}
    steps, width = {"visual": 10, "audio": 6}, {"visual": 2, "audio": 3}
    clips, windows, streams = {}, {}, {}
    for name in lengths:
        clips[name] = [rng.normal(size=(n, width[name])) for n in lengths[name]]
        windows[name] = [(rng.uniform(-0.3, 0.3), n * rng.uniform(0.8, 1)) for n in lengths[name]]
        rows = [
            padded(clip, steps[name], window=window)
            for clip, window in zip(clips[name], windows[name], strict=True)
        ]
        streams[name] = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)
    batch = AudioVisual(**streams)
    how = direction, points, join
    result = jax.device_get(jax.jit(lambda batch: resample_pairs(batch, *how))(batch))
    moved, kept = ("visual", "audio") if direction == "visual_to_audio" else ("audio", "visual")
    for a, b in zip(
        jax.tree.leaves(getattr(result, kept)), jax.tree.leaves(streams[kept]), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    out = getattr(result, moved)
    wider = points if join == "beside" else 1
    assert out.values.shape == (3, steps[kept], wider * width[moved])
    np.testing.assert_array_equal(out.lengths, lengths[kept])
    np.testing.assert_array_equal(out.windows, streams[kept].windows)
    for i, target in enumerate(lengths[kept]):
        window = tuple(points * end for end in windows[kept][i])  # in points
        fine = reference.resample(clips[moved][i], windows[moved][i], points * target, window)
        fine = fine.reshape(target, points, width[moved])
        expected = fine.mean(axis=1) if join == "mean" else fine.reshape(target, -1)
        np.testing.assert_allclose(out.values[i, :target], expected, atol=3e-6)
        assert not np.any(out.values[i, target:])


def test_four_points_are_the_four_frames_of_a_step():
    frames = np.random.default_rng(4).normal(size=(12, 2)).astype(np.float32)
    visual, audio = padded(frames, 14), padded(np.zeros((3, 5)), 4)
    read = resample_like(visual, audio, points=4)
    np.testing.assert_array_equal(read.values[:3], frames.reshape(3, 8))
    mean = resample_like(visual, audio, points=4, join="mean").values[:3]
    np.testing.assert_allclose(mean, frames.reshape(3, 4, 2).mean(axis=1), atol=1e-6)


def test_rises_lie_beside_what_rose():
    stream = padded(np.array([[1.0, 5.0], [3.0, 4.0], [3.5, 6.0]]), 5, fill=np.nan)
    expected = [[1, 5, 0, 0], [3, 4, 4, 0], [3.5, 6, 1, 4]]
    np.testing.assert_array_equal(with_rises(stream, 2.0).values[:3], expected)


def test_an_unknown_direction_is_named():
    one = sequences(jnp.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="a_to_v"):
        resample_pairs(AudioVisual(one, one), "a_to_v")


def test_mask_and_zero_padding():
    lengths = jnp.array([[1, 4], [3, 2]])
    mask = step_mask(lengths, 5)
    assert mask.shape == (2, 2, 5)
    np.testing.assert_array_equal(mask.sum(-1), lengths)
    assert not np.any(np.diff(np.asarray(mask, int), axis=-1) > 0)  # padding is a suffix
    values = jnp.where(mask[..., None], 2.0, jnp.nan) * jnp.ones((1, 1, 1, 3))
    np.testing.assert_array_equal(zero_padding(values, lengths)[1, 0, :, 1], [2, 2, 2, 0, 0])


def test_masked_mean_is_the_mean_of_the_real_steps():
    rng = np.random.default_rng(4)
    clips = [rng.normal(size=(n, 3)) for n in (1, 6, 4)]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *(padded(clip, 7) for clip in clips))
    expected = [clip.mean(axis=0) for clip in clips]
    np.testing.assert_allclose(masked_mean(batch.values, batch.lengths), expected, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(masked_mean(x, batch.lengths) ** 2))(batch.values)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[0, 1:])


def test_what_is_left_out_means_all_of_it():
    one = sequences(jnp.zeros((2, 5, 3)))
    assert isinstance(one, Sequences)
    np.testing.assert_array_equal(one.lengths, [5, 5])
    np.testing.assert_array_equal(one.windows, [[0, 5], [0, 5]])
    ragged = sequences(jnp.zeros((2, 5, 3)), jnp.array([2, 4]))
    np.testing.assert_array_equal(ragged.windows, [[0, 2], [0, 4]])


@pytest.mark.parametrize(
    ("values", "lengths"),
    [
        (jnp.zeros((2, 3, 4)), jnp.zeros(3, jnp.int32)),  # two clips are not three
        (jnp.zeros((2, 3, 4)), jnp.zeros(2, jnp.float32)),
        (jnp.zeros(4), jnp.zeros((), jnp.int32)),
        (jnp.zeros((2, 3, 4), jnp.int32), jnp.zeros(2, jnp.int32)),
    ],
)
def test_signatures_are_checked_in_tests(values, lengths):
    with pytest.raises(BeartypeCallHintViolation):
        masked_mean(values, lengths)


GIVEN = np.zeros((4, 5, 8), np.float32)
WRONG = {  # what a notebook may call, and what it is told
    "a list": (lambda: sequences([[1.0, 2.0]]), "an array.*got list"),
    "one number": (lambda: sequences(np.zeros(3)), r"an array.*got shape \(3,\)"),
    "fewer lengths": (
        lambda: sequences(GIVEN, np.array([5, 5])),
        r"shape \(4,\).*got int.* \(2,\)",
    ),
    "broken lengths": (lambda: sequences(GIVEN, np.full(4, 2.5)), "integers.*got float"),
    "arrays": (lambda: pairwise("euclidean", GIVEN, GIVEN), "visual: expected Sequences, got nd"),
    "an option in words": (
        lambda: pairwise("soft_dtw", sequences(GIVEN), sequences(GIVEN), gamma="low"),
        "'soft_dtw'.*gamma='low'",
    ),
    "one stream": (
        lambda: Encoders(width=8, heads=2).init(jax.random.key(0), sequences(GIVEN)),
        "AudioVisual.*got Sequences",
    ),
    "one clip": (
        lambda: Encoders(width=8, heads=2).init(
            jax.random.key(0), AudioVisual(sequences(GIVEN[0]), sequences(GIVEN[0]))
        ),
        r"AudioVisual.*got \[\(5, 8\), \(5, 8\)\]",
    ),
    "more videos than sounds": (
        lambda: sequence_loss(jnp.ones((2, 3)), jnp.zeros(())),
        r"as many visual as audio clips, got shape \(2, 3\)",
    ),
    "their gradient": (
        lambda: jax.grad(lambda D: sequence_loss(D, jnp.zeros(()))[0])(jnp.ones((2, 3))),
        r"as many visual as audio clips, got shape \(2, 3\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_call_is_told_what_was_expected(what, unchecked_shapes):
    call, words = WRONG[what]
    with pytest.raises(InputError, match=words):
        call()
