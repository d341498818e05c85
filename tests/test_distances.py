"""Every distance against its formula, its definition for one pair, and other packages.

A new distance is one more row in `ROWS`; every test that takes `row` then covers it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import assert_equal_products
from pairs import lifted, padded, with_gradients

from scav_jax import distances
from scav_jax.base.errors import InputError
from scav_jax.distances import DISTANCES, pairwise
from scav_jax.sequences import sequences

WIDTH = 5
VISUAL_LENGTHS, VISUAL_STEPS = [7, 1, 4, 6], 8
AUDIO_LENGTHS, AUDIO_STEPS = [3, 5, 1], 6


@dataclass(frozen=True)
class Row:
    """One distance with its options.

    Attributes:
      formula: of one unpadded pair, in numpy: (visual, audio, visual_window, audio_window).
      tolerance: relative, of float32 against the formula.
      noise: relative, of float32 when sums are taken in another order.
      gradient_options: options under which the gradient is that of the value.
      gradient_tolerance: of that, in float64.
      of_itself: the distance of a sequence to itself; None where it is not zero.
      scales_by_square: whether D(s V, s A) = s^2 D(V, A).
      offset_tolerance: relative, of float32 where all steps have a large offset in common.
    """

    name: str
    options: dict
    formula: Callable
    tolerance: float = 2e-5
    noise: float = 2e-6
    gradient_options: dict = field(default_factory=dict)
    gradient_tolerance: float = 1e-6
    of_itself: float | None = 0.0
    scales_by_square: bool = True
    offset_tolerance: float = 2e-5

    def __str__(self):
        return "-".join([self.name, *(str(value) for value in self.options.values())])


def without_windows(formula):
    return lambda visual, audio, visual_window, audio_window: formula(visual, audio)


def euclidean_row(direction):
    return Row(
        "euclidean",
        {"resample": direction},
        partial(reference.interpolated_euclidean, direction=direction),
        offset_tolerance=3e-4,  # what lies between two steps is rounded where it lies
    )


def soft_dtw_row(gamma):
    formula = without_windows(partial(reference.soft_dtw, gamma=gamma))
    options = {"gamma": gamma}
    return Row("soft_dtw", options, formula, of_itself=None, scales_by_square=False)


CONVERGED = {"blur": 1.5, "position_weight": 3.0, "scaling": 0.97, "diameter": 20.0}
ROWS = [
    euclidean_row("visual_to_audio"),
    euclidean_row("audio_to_visual"),
    soft_dtw_row(0.1),
    Row("dtw", {}, without_windows(reference.dtw)),
    Row(
        "wasserstein",
        {},
        without_windows(
            partial(reference.geomloss_wasserstein, blur=0.05, position_weight=10.0, diameter=256.0)
        ),
        tolerance=5e-5,
        noise=2e-5,
        gradient_options=CONVERGED,
        gradient_tolerance=2e-3,
        scales_by_square=False,
        offset_tolerance=5e-5,
    ),
    Row(
        "sinkhorn",
        {"epsilon": 0.3},
        without_windows(partial(reference.sinkhorn, epsilon=0.3, position_weight=0.2)),
        noise=1e-5,
        gradient_options={"iterations": 300},
        scales_by_square=False,
    ),
]
each_row = pytest.mark.parametrize("row", ROWS, ids=str)


def plain_sinkhorn_row(epsilon, position_weight):
    options = {"epsilon": epsilon, "position_weight": position_weight, "debiased": False}
    formula = without_windows(partial(reference.sinkhorn, **options))
    return Row("sinkhorn", options, formula, tolerance=1e-5)


# Options that change the value alone: in other tests they would show nothing more.
ROWS_OF_VALUES = [*ROWS, plain_sinkhorn_row(0.5, 0.3)]


def test_every_distance_has_a_row():
    assert {row.name for row in ROWS} == set(DISTANCES)


@dataclass(frozen=True)
class Stream:
    """Unpadded float64 sequences with fractional windows, and their padded form."""

    clips: list
    windows: list
    steps: int

    def padded(self, fill=np.nan, dtype=np.float32):
        return padded(self.clips, self.steps, dtype, fill, self.windows)


def stream(lengths, steps, seed, windows="fractional"):
    rng = np.random.default_rng(seed)
    clips = [rng.normal(size=(n, WIDTH)) for n in lengths]
    fractional = [(rng.uniform(-0.3, 0.4), n * rng.uniform(0.8, 1.1)) for n in lengths]
    whole = [(0, n) for n in lengths]
    return Stream(clips, fractional if windows == "fractional" else whole, steps)


VISUAL = stream(VISUAL_LENGTHS, VISUAL_STEPS, seed=1)
AUDIO = stream(AUDIO_LENGTHS, AUDIO_STEPS, seed=2)


def by_formula(row, visual=VISUAL, audio=AUDIO):
    """The matrix by loops over the reference."""
    return np.array(
        [
            [
                row.formula(v, a, v_window, a_window)
                for a, a_window in zip(audio.clips, audio.windows, strict=True)
            ]
            for v, v_window in zip(visual.clips, visual.windows, strict=True)
        ]
    )


@cache
def compiled_with_aux(name, options):
    """`pairwise` under jit, and what it says of its input; every test shares what is compiled."""
    return jax.jit(partial(distances.pairwise_with_aux, name, **dict(options)))


def compiled(name, options):
    return lambda visual, audio: compiled_with_aux(name, options)(visual, audio)[0]


@cache
def compiled_alignment(name, options):
    return jax.jit(partial(distances.alignment, name, **dict(options)))


def matrix(row, visual, audio):
    return np.asarray(compiled(row.name, tuple(row.options.items()))(visual, audio))


@cache
def compiled_gradient(name, options, by_definition=False, **settings):
    if by_definition:
        return with_gradients(lifted(partial(DISTANCES[name].pair, **dict(options))))
    return with_gradients(partial(pairwise, name, **settings, **dict(options)))


def value_and_gradients(row, visual, audio, **how):
    compiled = compiled_gradient(row.name, tuple(row.options.items()), **how)
    (_, result), gradients = compiled(visual, audio)
    return result, gradients


def scaled_tolerance(expected, relative):
    return {"rtol": relative, "atol": relative * float(np.max(np.abs(expected)))}


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS_OF_VALUES, ids=str)
def test_pairwise_is_the_formula_for_every_ragged_pair(row):
    expected = by_formula(row)
    result = matrix(row, VISUAL.padded(), AUDIO.padded())
    assert result.shape == (len(VISUAL_LENGTHS), len(AUDIO_LENGTHS))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, **scaled_tolerance(expected, row.tolerance))


@each_row
def test_padding_reaches_neither_value_nor_gradient(row):
    """NaN, infinity or zeros in the padding change no bit."""
    result, gradients = value_and_gradients(row, VISUAL.padded(), AUDIO.padded())
    for fill in (0.0, np.inf):
        other, other_gradients = value_and_gradients(row, VISUAL.padded(fill), AUDIO.padded(fill))
        np.testing.assert_array_equal(result, other)
        for ours, theirs in zip(gradients, other_gradients, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for gradient, lengths in zip(gradients, (VISUAL_LENGTHS, AUDIO_LENGTHS), strict=True):
        assert np.isfinite(gradient).all()
        for clip, length in zip(gradient, lengths, strict=True):
            assert not np.any(clip[length:])
            assert np.all(np.any(clip[:length], axis=-1))


@each_row
def test_pairwise_is_vmap_of_the_definition(row):
    result, gradients = value_and_gradients(row, VISUAL.padded(), AUDIO.padded())
    defined, defined_gradients = value_and_gradients(
        row, VISUAL.padded(), AUDIO.padded(), by_definition=True
    )
    np.testing.assert_allclose(result, defined, **scaled_tolerance(defined, row.noise))
    for ours, theirs in zip(gradients, defined_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, **scaled_tolerance(theirs, 20 * row.noise))


@pytest.mark.parametrize("name", ["euclidean", "soft_dtw", "sinkhorn"])
def test_several_runs_at_once_take_one_form_and_give_the_numbers_of_each(name, random):
    """A condition under `vmap` would compute every form; runs here want different ones."""
    runs, clips = 3, 12  # on one grid, ragged, and in groups far apart
    values = random.normal(size=(2, runs, clips, 7, WIDTH))
    values[:, 2, : clips // 2] += 300.0
    lengths = np.full((2, runs, clips), 7)
    lengths[:, 1] = random.integers(1, 8, size=(2, clips))

    def loss(values, lengths):
        streams = map(sequences, values, lengths)
        return jnp.sum(jnp.tanh(pairwise(name, *streams)))

    given = jnp.asarray(values, jnp.float32).swapaxes(0, 1), jnp.asarray(lengths).swapaxes(0, 1)
    one = jax.value_and_grad(loss)
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(one))(*given))
    alone = [jax.jit(one)(*run) for run in zip(*given, strict=True)]
    twice = jax.jit(jax.vmap(jax.vmap(one)))(*(leaf[None] for leaf in given))
    for many, theirs in zip(twice, map(np.stack, zip(*alone, strict=True)), strict=True):
        np.testing.assert_allclose(many[0], theirs, rtol=1e-4, atol=1e-5)


@each_row
def test_float16_is_float32_of_the_same_numbers_rounded_once(row):
    """Squares of the small ones are 0 in float16, sums of those of the large ones infinite."""
    for scale in (0.005, 30.0):
        exact = [stream.padded() for stream in (VISUAL, AUDIO)]
        rounded = [x.replace(values=(x.values * scale).astype(jnp.float16)) for x in exact]
        exact = [x.replace(values=x.values.astype(jnp.float32)) for x in rounded]
        result, gradients = value_and_gradients(row, *rounded)
        expected, expected_gradients = value_and_gradients(row, *exact)
        assert result.dtype == jnp.float16 and np.isfinite(result).all()
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-7)
        for ours, theirs in zip(gradients, expected_gradients, strict=True):
            assert ours.dtype == jnp.float16 and np.isfinite(ours).all()
            np.testing.assert_allclose(ours, theirs, **scaled_tolerance(theirs, 5e-3))
    pair = partial(DISTANCES[row.name].pair, **row.options)
    first = (jax.tree.map(lambda leaf: leaf[0], stream) for stream in rounded)
    defined = jax.jit(pair)(*first)
    assert defined.dtype == jnp.float16
    np.testing.assert_allclose(defined, expected[0, 0], rtol=1e-3)


@pytest.mark.parametrize("name", ["dtw", "wasserstein"])
def test_bfloat16_is_rounded_once_too(name):
    rounded = [s.padded() for s in (VISUAL, AUDIO)]
    rounded = [x.replace(values=x.values.astype(jnp.bfloat16)) for x in rounded]
    exact = [x.replace(values=x.values.astype(jnp.float32)) for x in rounded]
    result, expected = (pairwise(name, *streams) for streams in (rounded, exact))
    assert_equal_products(result, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["dtw", "sinkhorn", "wasserstein"])
@pytest.mark.parametrize("broken", [1e5, np.nan])
def test_a_clip_far_from_all_others_takes_none_of_their_digits(name, broken):
    """As the Euclidean distance has it, see test_euclidean; nor one that is not finite."""
    random = np.random.default_rng(3)
    visual, audio = (random.normal(size=(20, 6, 4)).astype(np.float32) for _ in range(2))
    compare = jax.jit(lambda audio: pairwise(name, sequences(jnp.asarray(visual)), audio))
    expected = compare(sequences(jnp.asarray(audio)))[:, :-1]
    audio[-1] = broken
    found = compare(sequences(jnp.asarray(audio)))[:, :-1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.std(expected))


def test_latents_of_fewer_bits_are_refused():
    for dtype in (jnp.float8_e4m3fn, jnp.int8):
        streams = (s.padded(0.0) for s in (VISUAL, AUDIO))
        cast = [stream.replace(values=stream.values.astype(dtype)) for stream in streams]
        with pytest.raises(InputError, match=f"float16, bfloat16, float32 .*got {dtype.__name__}"):
            pairwise("euclidean", *cast)


# That they change no number: the file of each distance.
@pytest.mark.parametrize("name", DISTANCES)
def test_settings_reach_the_matrix_form(monkeypatch, name):
    given = []

    def matrix_form(visual, audio, **how):
        given.append(how)
        return jnp.zeros((len(visual.lengths), len(audio.lengths))), {}

    monkeypatch.setitem(DISTANCES, name, DISTANCES[name]._replace(matrix=matrix_form))
    pairwise(name, VISUAL.padded(), AUDIO.padded(), block=5, memory_bytes=7)
    assert given == [{"block": 5, "memory_bytes": 7}]


@pytest.mark.parametrize("settings", [{"block": 5}, {"memory_bytes": 1}], ids=str)
def test_a_distance_without_a_matrix_form_is_lifted_in_blocks(monkeypatch, settings):
    row = soft_dtw_row(0.1)
    expected, expected_gradients = value_and_gradients(row, VISUAL.padded(), AUDIO.padded())
    monkeypatch.setitem(DISTANCES, "mine", DISTANCES["soft_dtw"]._replace(matrix=None))
    mine = Row("mine", row.options, row.formula)
    result, gradients = value_and_gradients(mine, VISUAL.padded(), AUDIO.padded(), **settings)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, **scaled_tolerance(theirs, 1e-5))


@each_row
def test_other_lengths_of_one_shape_compile_nothing(row):
    matrix(row, VISUAL.padded(), AUDIO.padded())
    program = compiled_with_aux(row.name, tuple(row.options.items()))
    compiled_before = program._cache_size()
    for seed, lengths in ((2, [1, 2, 3, 8]), (3, [8, 8, 8, 8])):
        visual = stream(lengths, VISUAL_STEPS, seed=seed)
        result = matrix(row, visual.padded(), AUDIO.padded())
        expected = by_formula(row, visual)
        np.testing.assert_allclose(result, expected, **scaled_tolerance(expected, row.tolerance))
    assert program._cache_size() == compiled_before


@each_row
def test_a_large_common_offset_changes_nothing(row):
    """Costs are differences: what float32 loses in products of 3,000 must not show."""
    moved = [
        Stream([np.float32(clip + 3000.0).astype(float) for clip in s.clips], s.windows, s.steps)
        for s in (VISUAL, AUDIO)
    ]
    expected = by_formula(row, *moved)
    result = matrix(row, *(s.padded() for s in moved))
    np.testing.assert_allclose(result, expected, **scaled_tolerance(expected, row.offset_tolerance))


@each_row
def test_a_sequence_is_at_distance_zero_from_itself(row):
    same = stream(AUDIO_LENGTHS, AUDIO_STEPS, seed=3)
    first = stream([2], VISUAL_STEPS, seed=4)
    visual = Stream(first.clips + same.clips, first.windows + same.windows, VISUAL_STEPS)
    result = matrix(row, visual.padded(), same.padded())
    own = np.diagonal(result[1:])
    if row.of_itself is None:
        assert np.all(own <= 1e-6)
        return
    np.testing.assert_allclose(own, row.of_itself, atol=2e-6)
    assert np.all(result[1:][~np.eye(len(own), dtype=bool)] > 0.01)


@each_row
def test_scale(row):
    if not row.scales_by_square:
        pytest.skip("has a length scale of its own")
    tripled = [
        Stream([3.0 * clip for clip in s.clips], s.windows, s.steps) for s in (VISUAL, AUDIO)
    ]
    expected = 9.0 * matrix(row, VISUAL.padded(), AUDIO.padded())
    result = matrix(row, *(s.padded() for s in tripled))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@each_row
def test_order_matters(row):
    """Reversing every visual sequence moves D; a distance of bags would not notice."""
    reversed_ = Stream([clip[::-1] for clip in VISUAL.clips], VISUAL.windows, VISUAL_STEPS)
    change = matrix(row, reversed_.padded(), AUDIO.padded()) - matrix(
        row, VISUAL.padded(), AUDIO.padded()
    )
    long = np.outer(np.array(VISUAL_LENGTHS) > 1, np.array(AUDIO_LENGTHS) > 1)
    assert np.all(np.abs(change)[long] > 1e-4)


# -- gradients ------------------------------------------------------------------------------------


@each_row
def test_gradient_is_that_of_the_value(row):
    """Along a random direction, by central differences of one program."""
    options = tuple({**row.options, **row.gradient_options}.items())
    tolerance = row.gradient_tolerance
    with jax.enable_x64(True):
        visual = stream([5], 5, seed=4).padded(dtype=np.float64)
        audio = stream([4], 4, seed=5).padded(dtype=np.float64)
        program, random = compiled_gradient(row.name, options), np.random.default_rng(6)
        values = [np.asarray(s.values) for s in (visual, audio)]
        along = [random.normal(size=x.shape) for x in values]

        def at(step):
            moved = [x + step * d for x, d in zip(values, along, strict=True)]
            (value, _), gradients = program(
                *(s.replace(values=x) for s, x in zip((visual, audio), moved, strict=True))
            )
            return float(value), gradients

        gradients = at(0.0)[1]
        found = sum(np.sum(g * d) for g, d in zip(gradients, along, strict=True))
        expected = (at(1e-5)[0] - at(-1e-5)[0]) / 2e-5
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("gamma", [1e-3, 10.0])
def test_soft_dtw_is_finite_and_right_at_extremes(gamma):
    row = soft_dtw_row(gamma)
    result, gradients = value_and_gradients(row, VISUAL.padded(), AUDIO.padded())
    expected = by_formula(row)
    np.testing.assert_allclose(result, expected, **scaled_tolerance(expected, 2e-5))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    if gamma == 1e-3:
        hard = by_formula(Row("dtw", {}, without_windows(reference.dtw)))
        np.testing.assert_allclose(result, hard, atol=0.02)


# -- other packages -------------------------------------------------------------------------------


def test_soft_dtw_equals_ott():
    """For more than one step: ott counts the cost of a 1x1 pair twice."""
    from ott.geometry.costs import SoftDTW

    v, a = (
        jnp.asarray(clip / np.sqrt(WIDTH), jnp.float32)
        for clip in (VISUAL.clips[0], AUDIO.clips[1])
    )
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(SoftDTW(gamma=2.0))(v, a)
    result = matrix(soft_dtw_row(2.0), VISUAL.padded(), AUDIO.padded())
    assert np.isclose(result[0, 1], expected, rtol=1e-5)


def pot_divergence(visual, audio, blur, position_weight):
    """The debiased divergence by POT: values of entropic transport with the KL regulariser."""
    import ot

    def transport(x, y):
        weights = [np.full(len(z), 1 / len(z)) for z in (x, y)]
        costs = 0.5 * ot.dist(x, y, metric="sqeuclidean")
        return ot.solve(
            costs, *weights, reg=blur**2, reg_type="KL", max_iter=100_000, tol=1e-11
        ).value

    x, y = (reference.transport_points(z, position_weight) for z in (visual, audio))
    return transport(x, y) - transport(x, x) / 2 - transport(y, y) / 2


def test_wasserstein_converges_to_the_divergence_of_pot():
    """Slow annealing converges; geomloss' `scaling=0.5` is the same iteration, cut short."""
    blur, weight = CONVERGED["blur"], CONVERGED["position_weight"]
    result = compiled("wasserstein", tuple(CONVERGED.items()))(VISUAL.padded(), AUDIO.padded())
    formula = without_windows(partial(reference.wasserstein, blur=blur, position_weight=weight))
    loops = by_formula(Row("wasserstein", {}, formula))
    np.testing.assert_allclose(result, loops, **scaled_tolerance(loops, 2e-3))
    for i, j in ((0, 0), (0, 1), (1, 2), (2, 1)):
        expected = pot_divergence(VISUAL.clips[i], AUDIO.clips[j], blur, weight)
        np.testing.assert_allclose(loops[i, j], expected, rtol=1e-5, atol=1e-6)


def test_wasserstein_without_positions_is_a_distance_of_bags():
    reversed_ = Stream([clip[::-1] for clip in VISUAL.clips], VISUAL.windows, VISUAL_STEPS)
    bags = compiled("wasserstein", tuple({**CONVERGED, "position_weight": 0.0}.items()))
    expected = bags(VISUAL.padded(), AUDIO.padded())
    result = bags(reversed_.padded(), AUDIO.padded())
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_wasserstein_of_single_steps_is_half_the_squared_distance():
    result = compiled("wasserstein", ())(VISUAL.padded(), AUDIO.padded())
    expected = 0.5 * np.sum((VISUAL.clips[1] - AUDIO.clips[2]) ** 2)
    assert np.isclose(result[1, 2], expected, rtol=1e-5)


# -- alignments -----------------------------------------------------------------------------------


def one_pair():
    visual, audio = stream([5], 7, seed=14), stream([4], 6, seed=15)
    return visual, audio, *(jax.tree.map(lambda x: x[0], s.padded()) for s in (visual, audio))


@each_row
def test_alignment_is_a_matrix_of_real_steps(row):
    visual, audio, v, a = one_pair()
    result = np.asarray(compiled_alignment(row.name, tuple(row.options.items()))(v, a))
    assert result.shape == (visual.steps, audio.steps)
    assert np.isfinite(result).all()
    assert np.all(result >= 0)
    assert not np.any(result[5:])
    assert not np.any(result[:, 4:])
    assert result.sum() > 0.99


def test_transport_plan_moves_all_mass():
    visual, audio, v, a = one_pair()
    plan = np.asarray(compiled_alignment("wasserstein", tuple(CONVERGED.items()))(v, a))[:5, :4]
    points = [reference.transport_points(s.clips[0], 3.0) for s in (visual, audio)]
    expected = reference.transport_plan(reference.transport_costs(*points), 1.5**2)
    np.testing.assert_allclose(plan, expected, atol=1e-3)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 5, rtol=1e-5)


# -- what a person gets wrong ---------------------------------------------------------------------


def test_mistakes_are_named():
    v, a = VISUAL.padded(), AUDIO.padded()
    with pytest.raises(InputError, match="soft_dtw"):
        pairwise("softdtw", v, a)
    with pytest.raises(InputError, match="gamma"):
        pairwise("soft_dtw", v, a, gama=1.0)
    with pytest.raises(InputError, match="width"):
        pairwise("dtw", v, a.replace(values=a.values[..., :-1]))
    for block in (0, True, "all"):
        with pytest.raises(InputError, match=r"block.*'auto' or a number"):
            pairwise("dtw", v, a, block=block)
    with pytest.raises(InputError, match="memory_bytes"):
        pairwise("dtw", v, a, memory_bytes=0)


def broken_inputs():
    """(what is wrong, visual, audio, which argument and which number it is)"""
    v, a = VISUAL.padded(), AUDIO.padded()
    nan, infinite = a.values.at[1, 4, 2].set(jnp.nan), v.values.at[3, 0, 0].set(-jnp.inf)
    return [
        ("no step", v.replace(lengths=v.lengths.at[2].set(0)), a, "visual", 2),
        ("too long", v, a.replace(lengths=a.lengths.at[1].set(AUDIO_STEPS + 1)), "audio", 1),
        ("negative", v, a.replace(lengths=a.lengths.at[0].set(-1)), "audio", 0),
        ("no window", v.replace(windows=v.windows.at[1, 1].set(0.0)), a, "visual", 1),
        ("NaN", v, a.replace(values=nan), "audio", 1),
        ("infinity", v.replace(values=infinite), a, "visual", 3),
    ]


@pytest.mark.parametrize("case", broken_inputs(), ids=lambda case: case[0])
def test_data_that_no_distance_can_compare_is_named(case):
    _, visual, audio, stream_name, number = case
    with pytest.raises(InputError, match=f"{stream_name}.*expected.*number {number}"):
        pairwise("euclidean", visual, audio)


def test_a_stream_that_is_a_constant_of_what_is_traced_is_compared_and_checked():
    """As in a notebook: the gradient of one stream's values beside a sound that is at hand."""
    v, a = VISUAL.padded(), AUDIO.padded()

    def of_values(values, audio=a):
        return jnp.sum(pairwise("euclidean", v.replace(values=values), audio))

    compiled_slope, slope = jax.jit(jax.grad(of_values))(v.values), jax.grad(of_values)(v.values)
    np.testing.assert_allclose(compiled_slope, slope, rtol=1e-4, atol=1e-6)
    spoilt = a.replace(values=a.values.at[1, 4, 2].set(jnp.nan))
    with pytest.raises(InputError, match=r"audio: expected finite latents, number 1"):
        jax.jit(partial(of_values, audio=spoilt))(v.values)


@each_row
@pytest.mark.parametrize("case", broken_inputs(), ids=lambda case: case[0])
def test_under_jit_it_is_flagged_and_gives_nan(row, case):
    _, visual, audio, stream_name, number = case
    result, aux = compiled_with_aux(row.name, tuple(row.options.items()))(visual, audio)
    usable = {"visual": np.asarray(aux["usable_visual"]), "audio": np.asarray(aux["usable_audio"])}
    assert not usable[stream_name][number]
    assert sum((~flags).sum() for flags in usable.values()) == 1
    broken = result[number] if stream_name == "visual" else result[:, number]
    assert np.isnan(broken).any()
    if case[0] not in ("NaN", "infinity"):  # these may lie where interpolation reads nothing
        assert np.isnan(broken).all()
    assert not np.isinf(result).any()


def test_streams_of_the_wrong_shape_are_refused_when_traced():
    v, a = VISUAL.padded(), AUDIO.padded()
    for visual, audio, message in (
        (jax.tree.map(lambda x: x[0], v), a, r"visual.*\[batch, steps, channels\]"),
        (v.replace(lengths=v.lengths[:-1]), a, r"visual\.lengths.*shape \(4,\)"),
        (v, a.replace(windows=a.windows[:, 0]), r"audio\.windows.*shape \(3, 2\)"),
        (v, a.replace(values=a.values.astype(jnp.float16)), "one dtype"),
    ):
        with pytest.raises(InputError, match=message):
            jax.eval_shape(partial(pairwise, "euclidean"), visual, audio)


def test_retrieval_uses_hard_warping():
    assert distances.retrieval_form("soft_dtw", {"gamma": 1.0}) == ("dtw", {})
    resampled = ("euclidean", {"resample": "audio_to_visual"})
    assert distances.retrieval_form(*resampled) == resampled
    assert {distances.retrieval_form(name, {})[0] for name in DISTANCES} <= set(DISTANCES)
