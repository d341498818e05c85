"""The Euclidean distance: every fast form against the definition, which `test_distances` tests.

So few clips as there are compared by the definition. How exact many are: loops in float64.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from pairs import assert_close, lifted, with_gradients

from scav_jax.base.errors import InputError
from scav_jax.distances import euclidean as module
from scav_jax.distances import euclidean_many_grids, pairwise, resampling
from scav_jax.distances.euclidean import euclidean, euclidean_matrix, interpolation_weights
from scav_jax.distances.euclidean_blocks import Plan
from scav_jax.distances.resampling import Grid, InPlace
from scav_jax.sequences import RESAMPLINGS, Sequences, sequences

WIDTH = 16
AMPLE = 2**30
NOISE = 2e-6  # relative, of float32 when sums are taken in another order
FLOAT32 = jnp.dtype(jnp.float32)
each_direction = pytest.mark.parametrize("resample", RESAMPLINGS)


def stream(lengths, steps, seed, windows=None, fill=np.nan, dtype=np.float32) -> Sequences:
    """Random sequences, whole windows unless given."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(lengths), steps, WIDTH)).astype(dtype)
    values[np.arange(steps)[None] >= np.asarray(lengths)[:, None]] = fill
    windows = None if windows is None else jnp.asarray(windows, dtype)
    return sequences(jnp.asarray(values), jnp.asarray(lengths, jnp.int32), windows)


def in_loops(visual: Sequences, audio: Sequences, resample: str) -> np.ndarray:
    """Every pair by the formula, in float64."""

    def clips(one):
        values, windows = np.asarray(one.values, np.float64), np.asarray(one.windows, np.float64)
        return [
            (value[:length], tuple(window))
            for value, length, window in zip(values, np.asarray(one.lengths), windows, strict=True)
        ]

    return np.array(
        [
            [
                reference.interpolated_euclidean(v, a, v_window, a_window, direction=resample)
                for a, a_window in clips(audio)
            ]
            for v, v_window in clips(visual)
        ]
    )


@cache
def compiled(resample, definition=False, **how):
    if definition:
        return with_gradients(lifted(partial(euclidean, resample=resample)))
    options = {"block": None, "memory_bytes": AMPLE, "resample": resample} | how
    return with_gradients(lambda *pair: euclidean_matrix(*pair, **options)[0])


def results(visual, audio, resample, **how):
    """D and both gradients, as numpy arrays."""
    (_, distances), gradients = compiled(resample, **how)(visual, audio)
    return [np.asarray(x) for x in (distances, *gradients)]


# -- the forms ------------------------------------------------------------------------------------


def clips(lengths, steps, seed, windows=None) -> Sequences:
    """Two of each length: as few as there are pivots would be compared by differences."""
    return stream(lengths * 2, steps, seed, windows and windows * 2)


ONE = (0.25, 4.5)  # a window of 5 steps
CASES = {  # form for each direction, visual, audio; of one shape, so that compiling is shared
    "aligned": ((0, 0), clips([6] * 6, 9, 1), clips([6] * 6, 7, 2)),
    "aligned, fractional windows": (
        (0, 0),
        clips([5] * 6, 9, 3, [ONE] * 6),
        clips([5] * 6, 7, 4, [ONE] * 6),
    ),
    "equal lengths, other windows": (
        (1, 1),
        clips([5] * 6, 9, 33, [(0.5, 4.0)] * 6),
        clips([5] * 6, 7, 34, [ONE] * 6),
    ),
    "audio on one grid": ((1, 2), clips([9, 3, 1, 7, 8, 9], 9, 5), clips([5] * 6, 7, 6)),
    "one visual length, many audio": (
        (3, 1),
        clips([3] * 6, 9, 7),
        clips([6, 4, 5, 7, 1, 2], 7, 8),
    ),
    "few grids": ((2, 2), clips([9, 3, 1, 7, 8, 2], 9, 9), clips([5, 2, 5, 5, 2, 5], 7, 10)),
    "every audio its own": (
        (3, 2),
        clips([9, 3, 1, 7, 6, 9], 9, 11),
        clips([5, 2, 1, 6, 7, 4], 7, 12),
    ),
    "one length, many windows": (
        (3, 2),
        clips([5] * 6, 9, 13, [(0.1 * k, 5 - 0.2 * k) for k in range(6)]),
        clips([4] * 6, 7, 14, [(-0.1 * k, 4 + 0.1 * k) for k in range(6)]),
    ),
}
each_case = pytest.mark.parametrize("case", list(CASES))


@each_direction
@each_case
def test_the_form_is_the_one_that_fits(case, resample):
    """So that the tests below test what they say."""
    forms, visual, audio = CASES[case]
    plan = Plan(resample, None, AMPLE)
    assert int(module._form(plan, visual, audio)) == forms[RESAMPLINGS.index(resample)]
    assert not module.scattered(visual, audio), "differences would be compared with differences"


@each_direction
@each_case
def test_every_form_is_the_definition(case, resample):
    """Values and gradients; NaN lies in the padding, and gets no gradient."""
    _, visual, audio = CASES[case]
    found = results(visual, audio, resample)
    assert_close(found, results(visual, audio, resample, definition=True), NOISE)
    for gradient, one in zip(found[1:], (visual, audio), strict=True):
        for clip, length in zip(gradient, one.lengths, strict=True):
            assert not np.any(clip[length:])


@each_direction
def test_runs_of_any_width_give_the_same(monkeypatch, resample):
    """Groups larger than a run, runs at the end of the array, single ones; as on an accelerator."""
    monkeypatch.setattr(euclidean_many_grids, "TILE_WIDTHS", (2, 3))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    uncached = compiled.__wrapped__(resample)
    for case in ("few grids", "every audio its own"):
        _, visual, audio = CASES[case]
        (_, distances), gradients = uncached(visual, audio)
        expected = results(visual, audio, resample, definition=True)
        assert_close([np.asarray(x) for x in (distances, *gradients)], expected, NOISE)


@pytest.mark.parametrize(
    ("how", "resample"), [({"block": 38}, RESAMPLINGS[0]), ({"memory_bytes": 1}, RESAMPLINGS[1])]
)
def test_blocks_change_nothing(how, resample):
    """Three visual sequences at a time, and one."""
    for _, visual, audio in CASES.values():
        expected = results(visual, audio, resample)
        assert_close(results(visual, audio, resample, **how), expected, NOISE)


@each_direction
def test_float64(resample):
    with jax.enable_x64(True):
        visual = stream([9, 3, 1, 7, 8, 2] * 2, 9, 9, dtype=np.float64)
        audio = stream([5, 2, 5, 5, 2, 5] * 2, 7, 10, dtype=np.float64)
        assert not module.scattered(visual, audio)
        distances = jax.jit(partial(pairwise, "euclidean", resample=resample))(visual, audio)
    np.testing.assert_allclose(distances, in_loops(visual, audio, resample), rtol=1e-13)


# -- where steps are read -------------------------------------------------------------------------


@cache
def compiled_taps(steps: int):
    return jax.jit(
        lambda source, target: resampling.taps_of_many(
            source, target, jnp.arange(steps, dtype=jnp.int32), FLOAT32
        )
    )


def grids(lengths, windows) -> Grid:
    return Grid(jnp.asarray(lengths, jnp.int32), jnp.asarray(windows, jnp.float32))


@pytest.mark.parametrize("windows", ["whole", "fractional"])
def test_every_step_is_read_where_it_lies(windows):
    """All pairs of 1..300 and 1..62 steps. Many positions are integers, where floor can slip."""
    rng = np.random.default_rng(17)
    counts = np.arange(1, 301)
    for steps in range(1, 63):
        source = np.stack([np.zeros(300), counts], axis=1).astype(np.float32)
        target = np.array([0, steps], np.float32)
        if windows == "fractional":
            source[:, 0] += rng.uniform(-0.4, 0.4, 300).astype(np.float32)
            source[:, 1] *= rng.uniform(0.9, 1.0, 300).astype(np.float32)
            target = (target + rng.uniform(-0.05, 0.05, 2)).astype(np.float32)
        taps = compiled_taps(62)(grids(counts, source), grids(steps, target))
        exact = source.astype(np.float64)
        begin, extent = target.astype(np.float64)
        share = (np.arange(steps) + 0.5 - begin) / extent
        expected = exact[:, :1] + share[None] * exact[:, 1:] - 0.5
        expected = np.clip(expected, 0, counts[:, None] - 1)
        found = (np.asarray(taps.left) + np.asarray(taps.weight, np.float64))[:, :steps]
        # What a float32 position of 300 has is 1.5e-5.
        tolerance = 4e-6 if steps > 8 else 3e-5
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_windows_decide_which_part_is_read():
    """Two visual steps lie after the sound's end: what they hold makes no difference."""
    whole, audio = stream([8], 8, 29), stream([3], 3, 30)
    distances_of = jax.jit(partial(pairwise, "euclidean"))
    found = {}
    for window in (8.0, 6.0):
        for added in (0.0, 5.0):
            values = whole.values.at[:, 6:].add(added)
            visual = sequences(values, None, jnp.array([[0.0, window]]))
            found[window, added] = float(distances_of(visual, audio)[0, 0])
    assert found[6.0, 0.0] == found[6.0, 5.0]
    assert found[8.0, 0.0] != found[8.0, 5.0]


@each_direction
def test_interpolation_weights_are_the_resampling(resample):
    """For plotting: `[visual steps, audio steps]`, 0 in the padding of both."""
    windows = (0.2, 4.6), (-0.1, 4.2)
    visual, audio = stream([5], 7, 31, [windows[0]]), stream([4], 6, 32, [windows[1]])
    one = [jax.tree.map(lambda x: x[0], both) for both in (visual, audio)]
    weights = np.asarray(jax.jit(partial(interpolation_weights, resample=resample))(*one))
    assert not np.any(weights[5:])
    assert not np.any(weights[:, 4:])
    clips = [np.asarray(visual.values[0, :5]), np.asarray(audio.values[0, :4])]
    operator = weights[:5, :4].T if resample == "visual_to_audio" else weights[:5, :4]
    moved = 0 if resample == "visual_to_audio" else 1
    expected = reference.resample(
        clips[moved], windows[moved], len(clips[1 - moved]), windows[1 - moved]
    )
    np.testing.assert_allclose(operator @ clips[moved], expected, atol=1e-5)


def test_a_grid_reads_itself_exactly():
    counts = np.arange(1, 100)
    window = np.stack([np.full(99, 0.3), counts * 0.97], axis=1)
    taps = compiled_taps(100)(grids(counts, window), grids(counts, window))
    found = np.asarray(jnp.where(taps.weight > 0.5, taps.right, taps.left))
    real = np.arange(100)[None] < counts[:, None]
    np.testing.assert_array_equal(found[real], np.broadcast_to(np.arange(100), found.shape)[real])
    assert set(np.asarray(taps.weight)[real]) <= {0.0, 1.0}


def test_collect_and_scatter_are_the_adjoint_of_read():
    """<W x, y> = <x, W' y>, and W'W as `collect` has it gives |W y|^2."""
    visual, audio = stream([9, 3, 1, 7], 9, 18, fill=0.0), stream([5, 5, 5, 5], 7, 19, fill=0.0)
    shared = jax.tree.map(lambda leaf: leaf[0], resampling.grid_of(audio))
    own = resampling.grid_of(visual)
    # audio -> visual: few sources, so W' is gathered

    @jax.jit
    def both(visual, audio):
        taps = resampling.taps_of_many(shared, own, jnp.arange(9, dtype=jnp.int32), FLOAT32)
        moved = resampling.read(InPlace(audio, None, None), taps)
        collected = resampling.collect(InPlace(visual, None, None), taps, shared, own, 7)
        return moved, collected, resampling.scatter(jnp.zeros_like(audio), visual, taps)

    moved, collected, scattered = both(visual.values, audio.values)
    np.testing.assert_allclose(collected.values, scattered, atol=1e-5)
    np.testing.assert_allclose(
        np.sum(moved * visual.values), np.sum(audio.values * collected.values), rtol=1e-5
    )
    squares = np.sum(np.asarray(audio.values) ** 2, -1)
    following = np.sum(np.asarray(audio.values[:, :-1] * audio.values[:, 1:]), -1)
    norms = np.sum(collected.own * squares, 1) + np.sum(collected.next[:, :-1] * following, 1)
    np.testing.assert_allclose(norms, np.sum(np.asarray(moved) ** 2, (1, 2)), rtol=1e-5)


@each_direction
def test_whole_windows_are_interpolated_as_torch_does(resample):
    """Where torch is installed: `torch.nn.functional.interpolate(mode="linear")`, in float64."""
    torch = pytest.importorskip("torch")
    visual, audio = stream([9, 3, 1, 7] * 3, 9, 35), stream([5, 2, 1, 6, 7] * 2, 7, 36)
    assert not module.scattered(visual, audio)

    def clips(one):
        values = torch.from_numpy(np.asarray(one.values, np.float64))
        return [value[:length] for value, length in zip(values, one.lengths.tolist(), strict=True)]

    def pair(v, a):
        moved, target = (v, a) if resample == "visual_to_audio" else (a, v)
        size = len(target)
        moved = torch.nn.functional.interpolate(moved.T[None], size=size, mode="linear")[0].T
        return float(torch.mean((moved - target) ** 2))

    expected = [[pair(v, a) for a in clips(audio)] for v in clips(visual)]
    distances_of = jax.jit(partial(pairwise, "euclidean", resample=resample))
    np.testing.assert_allclose(distances_of(visual, audio), expected, rtol=1e-6)


# -- accuracy -------------------------------------------------------------------------------------


@each_direction
def test_ragged_lengths_are_exact_to_a_millionth(resample):
    """Long visual sequences, where float32 positions alone lose five digits."""
    visual = stream([117, 209, 184, 175, 300, 250, 61, 299, 300], 300, 21)
    audio = stream([45, 33, 62, 21, 20, 36, 40, 57, 62, 21], 62, 22)
    assert not module.scattered(visual, audio)
    expected = in_loops(visual, audio, resample)
    distances = jax.jit(partial(pairwise, "euclidean", resample=resample))(visual, audio)
    error = np.abs(distances - expected) / expected
    assert error.max() <= 1e-6


@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_a_common_mean_takes_no_digits(lengths):
    """Mean 30, noise 0.01: without centring, nothing would be left."""
    rng = np.random.default_rng(23)
    shape, steps = (12, 62, 512), [62] * 12 if lengths == "equal" else [62, 40] * 6
    visual, audio = (
        sequences(jnp.asarray(30 + 0.01 * rng.normal(size=shape), jnp.float32)) for _ in range(2)
    )
    audio = sequences(audio.values, jnp.asarray(steps, jnp.int32))
    assert not module.scattered(visual, audio)  # one centre is enough
    found = jax.jit(partial(pairwise, "euclidean"))(visual, audio)
    for k, length in enumerate(steps):
        target = np.asarray(audio.values[k, :length], np.float64)
        for distance, values in zip(found[:, k], visual.values, strict=True):
            moved = reference.resample(np.asarray(values), (0, 62), length, (0, length))
            expected = np.mean((moved - target) ** 2)
            assert abs(distance - expected) <= 2e-6 * expected


@pytest.mark.parametrize(  # equal lengths are not resampled
    ("lengths", "resample"), [("equal", RESAMPLINGS[0]), *(("ragged", d) for d in RESAMPLINGS)]
)
@pytest.mark.parametrize("kind", ["outlier", "groups", "both", "alternating"])
def test_clips_far_from_others_take_no_digits(kind, lengths, resample):
    """Ranks among near clips survive one that is 10,000 away, and groups at +-1,000."""
    rng = np.random.default_rng(36)
    count, steps, width = 12, 7, WIDTH
    values = 0.05 * rng.normal(size=(2, count, steps, width))
    if kind in ("groups", "both"):
        values[:, ::2] += 1_000.0 / width**0.5
        values[:, 1::2] -= 1_000.0 / width**0.5
    if kind in ("outlier", "both"):
        values[:, 7] += 10_000.0 / width**0.5
    if kind == "alternating":
        values[:, 7] += 3_000.0 * (-1.0) ** np.arange(steps)[:, None]
    cut = [steps] * count if lengths == "equal" else [7, 4, 6, 7, 5, 7] * 2
    visual, audio = (  # as many steps as in `CASES`, so that compiling is shared
        sequences(
            jnp.pad(jnp.asarray(one, jnp.float32), ((0, 0), (0, more), (0, 0))),
            jnp.asarray(cut, jnp.int32),
        )
        for one, more in zip(values, (2, 0), strict=True)
    )
    distances, *gradients = results(visual, audio, resample)
    expected = in_loops(visual, audio, resample)
    # Interpolated values of 250 are rounded to 1.5e-5, the definition's too.
    np.testing.assert_allclose(distances, expected, rtol=2e-6 if lengths == "equal" else 5e-4)
    assert_close(gradients, results(visual, audio, resample, definition=True)[1:], 3e-6)


def test_ordinary_clips_are_not_scattered():
    """Else products would be given up: trained latents, classes and matches close together."""
    rng = np.random.default_rng(37)
    latents = rng.normal(size=(2, 48, 8, 16))
    classes = rng.normal(size=(6, 8, 16))[rng.integers(0, 6, 48)]
    for spread in (1.0, 0.1, 0.03):
        both = classes + spread * latents
        both[1] = both[0] + 1e-3 * latents[1]  # matches nearly found
        visual, audio = (sequences(jnp.asarray(one, jnp.float32)) for one in both)
        assert not jax.jit(module.scattered)(visual, audio)


# -- memory, mistakes -----------------------------------------------------------------------------


def temporary_bytes(function, *shapes):
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def total(v, a):
        return jnp.sum(function(sequences(v), sequences(a)))

    program = jax.jit(jax.grad(total, (0, 1))).lower(*inputs).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_is_a_fiftieth_of_the_naive_form():
    def naive(visual, audio):
        return jax.vmap(lambda v: jax.vmap(lambda a: jnp.mean((v - a) ** 2))(audio.values))(
            visual.values
        )

    shapes = (128, 62, 64), (128, 62, 64)
    own = temporary_bytes(partial(pairwise, "euclidean"), *shapes)
    assert own * 50 <= temporary_bytes(naive, *shapes)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere all steps are taken at once")
def test_latents_are_not_copied():
    """Read in place: neither a centred nor a reshaped copy of either stream is made."""
    batch, steps, width = 64, 62, 64
    own = temporary_bytes(partial(pairwise, "euclidean"), *[(batch, steps, width)] * 2)
    assert own < batch * steps * width * 4 / 2


def test_options_are_checked():
    streams = stream([3], 4, 27), stream([2], 3, 28)
    with pytest.raises(InputError, match="visual_to_audio"):
        pairwise("euclidean", *streams, resample="visual_to_audo")
    with pytest.raises(InputError, match="expected options among resample, got 'storage'"):
        pairwise("euclidean", *streams, storage="float32")
