"""Optimal transport between sequences: plans, geomloss, POT, extremes, convergence and memory.

That values, gradients, padding and offsets are right: the rows of `test_distances`.
"""

import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import assert_equal_products
from pairs import assert_close, lifted, padded, with_gradients

from scav_jax.base.errors import InputError
from scav_jax.distances.products import inner_products
from scav_jax.distances.sinkhorn import absorb_minima, fixed_potentials, largest_exponent
from scav_jax.distances.transport import Costs
from scav_jax.distances.wasserstein import (
    FixedEpsilon,
    sinkhorn,
    sinkhorn_matrix,
    sinkhorn_plan,
    transport_plan,
    wasserstein,
    wasserstein_matrix,
)
from scav_jax.sequences import sequences

WIDTH = 5
VISUAL_LENGTHS, VISUAL_STEPS = [7, 1, 4, 6, 8], 9
AUDIO_LENGTHS, AUDIO_STEPS = [3, 5, 1], 6
WEIGHT = 0.3
PLAIN = {"epsilon": 0.5, "position_weight": WEIGHT, "debiased": False}
DEBIASED = {"epsilon": 0.5, "position_weight": WEIGHT}
FORMS = {"sinkhorn": (sinkhorn, sinkhorn_matrix), "wasserstein": (wasserstein, wasserstein_matrix)}


def clips(lengths, seed, width=WIDTH, scale=1.0):
    """Unpadded float64 sequences."""
    rng = np.random.default_rng(seed)
    return [scale * rng.normal(size=(length, width)) for length in lengths]


VISUAL, AUDIO = clips(VISUAL_LENGTHS, 1), clips(AUDIO_LENGTHS, 2)


def both(dtype=np.float32):
    return padded(VISUAL, VISUAL_STEPS, dtype), padded(AUDIO, AUDIO_STEPS, dtype)


@cache
def with_aux_and_gradients(form, options, by_definition=False):
    pair, matrix = FORMS[form]
    if not by_definition:
        return with_gradients(partial(matrix, **dict(options)))
    distances = lifted(partial(pair, **dict(options)))
    return with_gradients(lambda visual, audio: (distances(visual, audio), {}))


def result_and_gradients(form, options, visual, audio, **how):
    function = with_aux_and_gradients(form, tuple(options.items()), **how)
    (_, (result, _)), gradients = function(visual, audio)
    return np.asarray(result), gradients


def aux_of(form, options, visual, audio):
    (_, (_, aux)), _ = with_aux_and_gradients(form, tuple(options.items()))(visual, audio)
    return aux


def costs_of(visual, audio, weight=WEIGHT):
    """The costs of `sinkhorn`, in numpy from the formula."""
    apart = np.subtract.outer(*(np.arange(len(x)) / max(len(x) - 1, 1) for x in (visual, audio)))
    return reference.step_costs(visual, audio) + weight * apart**2


# -- values of other packages ---------------------------------------------------------------------


def test_sinkhorn_and_its_plan_equal_pot():
    import ot

    visual, audio = VISUAL[0], AUDIO[1]
    weights = [np.full(len(x), 1 / len(x)) for x in (visual, audio)]
    solution = ot.solve(
        costs_of(visual, audio), *weights, reg=0.2, reg_type="KL", max_iter=100_000, tol=1e-10
    )
    options = {**PLAIN, "epsilon": 0.2}
    v, a = both()
    v, a = jax.tree.map(lambda x: x[0], v), jax.tree.map(lambda x: x[1], a)
    value, plan = jax.jit(lambda v, a: (sinkhorn(v, a, **options), sinkhorn_plan(v, a, **options)))(
        v, a
    )
    assert np.isclose(value, solution.value, rtol=1e-5)
    np.testing.assert_allclose(plan[: len(visual), : len(audio)], solution.plan, atol=2e-6)
    assert not np.any(plan[len(visual) :])
    assert not np.any(plan[:, len(audio) :])


# Tiles of two by two, which neither 5 nor 3 fills, and next to no memory for what is kept.
TILED = {"block": 4, "memory_bytes": 1}
FEW_EPSILONS = {"blur": 0.5, "diameter": 30.0, "position_weight": 2.0}  # so that each counts


@pytest.mark.parametrize(
    ("options", "dtype", "tolerances"),
    [
        ({}, np.float32, (1e-5, 3e-5)),
        ({**FEW_EPSILONS, **TILED}, np.float64, (1e-11, 1e-10)),
    ],
    ids=str,
)
def test_wasserstein_is_geomloss(options, dtype, tolerances):
    """Values and gradients of ragged pairs."""
    settings = {"blur": 0.05, "position_weight": 10.0, "diameter": 256.0} | options
    settings = {name: settings[name] for name in ("blur", "position_weight", "diameter")}
    with jax.enable_x64(dtype == np.float64):
        found, gradients = result_and_gradients("wasserstein", options, *both(dtype))
    assert found.dtype == dtype
    weights = np.random.default_rng(9).normal(size=found.shape)
    expected = np.zeros(found.shape)
    right = [np.zeros(gradient.shape) for gradient in gradients]
    for i, v in enumerate(VISUAL):
        for j, a in enumerate(AUDIO):
            value, of_visual, of_audio = reference.geomloss_with_gradients(
                v.astype(dtype), a.astype(dtype), **settings
            )
            expected[i, j] = value
            right[0][i, : len(v)] += weights[i, j] * of_visual
            right[1][j, : len(a)] += weights[i, j] * of_audio
    np.testing.assert_allclose(found, expected, rtol=tolerances[0])
    assert_close(gradients, right, tolerances[1])


@pytest.mark.parametrize("width", [8, 512])
def test_each_pair_is_geomloss_where_costs_are_a_hundred_thousand_epsilons(width):
    """Of noise, relative to the largest of a pair's own gradient: a batch hides its worst."""
    visual = [x.astype(np.float32) for x in clips([48, 37, 20, 29], 5 + width % 100, width=width)]
    audio = [x.astype(np.float32) for x in clips([31, 10, 24, 17], 6 + width % 100, width=width)]
    both = padded(visual, 48), padded(audio, 32)

    def distances(v, a):
        return wasserstein_matrix(both[0].replace(values=v), both[1].replace(values=a))[0]

    found, pull = jax.vjp(jax.jit(distances), *(x.values for x in both))
    for i, v in enumerate(visual):
        for j, a in enumerate(audio):
            value, *right = reference.geomloss_with_gradients(v, a, 0.05, 10.0, diameter=256.0)
            np.testing.assert_allclose(found[i, j], value, rtol=1e-6)
            of_v, of_a = pull(jnp.zeros_like(found).at[i, j].set(1.0))
            assert_close((of_v[i, : len(v)], of_a[j, : len(a)]), right, 5e-5)


@pytest.mark.parametrize(
    ("width", "dtype"), [(1, np.float32), (512, np.float32), (512, np.float64), (2000, np.float32)]
)
def test_inner_products_lose_only_a_rounding_of_the_result(width, dtype):
    """Where one matrix product of width 512 is ten roundings off."""
    rng = np.random.default_rng(width)
    x, y = (rng.normal(size=(count, width)).astype(dtype) for count in (40, 30))
    x[3], y[4] = 0.0, 1e30
    exact = x.astype(np.longdouble) @ y.astype(np.longdouble).T
    with jax.enable_x64(dtype == np.float64):
        found, pull = jax.vjp(partial(inner_products, "nc,mc->nm"), jnp.asarray(x), jnp.asarray(y))
        of_x, of_y = pull(jnp.ones_like(found))
    found = np.asarray(found)
    error = np.abs(found - exact)[:, np.arange(30) != 4]
    assert error.max() <= 2 * np.finfo(dtype).eps * np.abs(exact[:, :4]).max()
    np.testing.assert_allclose(found[:, 4], exact[:, 4].astype(dtype), rtol=1e-4)
    np.testing.assert_allclose(of_x, np.broadcast_to(y.sum(axis=0), x.shape), rtol=1e-4)
    np.testing.assert_allclose(of_y, np.broadcast_to(x.sum(axis=0), y.shape), rtol=1e-4, atol=1e-4)


# -- the matrix is the definition -----------------------------------------------------------------


@pytest.mark.parametrize("how", [{"block": 4}, {"block": 4, "memory_bytes": 4000}, TILED], ids=str)
def test_matrix_is_the_definition_in_float64_and_with_self_terms(how):
    """Where float32 does not hide a difference; costs, only potentials or nothing kept."""
    with jax.enable_x64(True):
        inputs = both(np.float64)
        expected, right = result_and_gradients("sinkhorn", DEBIASED, *inputs, by_definition=True)
        result, gradients = result_and_gradients("sinkhorn", {**DEBIASED, **how}, *inputs)
        assert result.dtype == np.float64
        assert_close([result], [expected], 1e-12)
        assert_close(gradients, right, 1e-10)


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.01, 10.0])
def test_gradients_are_finite_and_right_at_extremes(epsilon):
    """At 0.01 costs are up to 5,000 times epsilon, and the plan is that of unregularised transport.

    So it is where steps are far apart and both sides have as many; these random ones are.
    """
    import ot

    visual, audio = clips([5, 1, 5], 5, scale=3.0), clips([5, 5], 105, scale=3.0)
    options = {**PLAIN, "epsilon": epsilon, "iterations": 3000}
    inputs = padded(visual, 7), padded(audio, 6)
    result, gradients = result_and_gradients("sinkhorn", options, *inputs)
    weights = np.random.default_rng(9).normal(size=result.shape)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    right = [np.zeros((3, 7, WIDTH)), np.zeros((2, 6, WIDTH))]
    for i, v in enumerate(visual):
        for j, a in enumerate(audio):
            costs = costs_of(v, a)
            plan = (
                ot.emd([], [], costs) if epsilon < 1 else reference.transport_plan(costs, epsilon)
            )
            plan = weights[i, j] * plan * 2 / WIDTH
            right[0][i, : len(v)] += plan.sum(1)[:, None] * v - plan @ a
            right[1][j, : len(a)] += plan.sum(0)[:, None] * a - plan.T @ v
    assert_close(gradients, right, 1e-3 if epsilon < 1 else 1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_gradients_of_large_latents_stay_where_those_of_plans_are(scale):
    """A plan's row sums to 1/n, whatever float32 has lost of costs that are far above epsilon."""
    (visual,), (audio,) = clips([1], 6, scale=scale), clips([9], 106, scale=scale)
    sides = [
        sequences(jnp.asarray(x[None], jnp.float32), jnp.array([len(x)])) for x in (visual, audio)
    ]

    def total(values, distance):
        return jnp.sum(distance(sides[0].replace(values=values), sides[1], debiased=False))

    def one(v, a, **options):
        return sinkhorn(*(jax.tree.map(lambda x: x[0], side) for side in (v, a)), **options)

    for distance in (lambda *both, **options: sinkhorn_matrix(*both, **options)[0], one):
        found = np.asarray(jax.grad(total)(sides[0].values, distance))[0, 0]
        least, most = (2 / WIDTH * (visual[0] - end) for end in (audio.max(0), audio.min(0)))
        assert (least - 1e-4 * scale < found).all() and (found < most + 1e-4 * scale).all()


# -- Sinkhorn iterations --------------------------------------------------------------------------


def random_problems(pairs, n, m, width, seed=5):
    """Costs `[P, N, M]` of random sequences, float64."""
    items = clips([n] * pairs, seed, width), clips([m] * pairs, seed + 1, width)
    return np.stack([costs_of(v, a) for v, a in zip(*items, strict=True)])


def masks(costs, n, m):
    """Masks of problems of which only the first n rows and m columns are real."""
    pairs, steps, others = costs.shape
    rows, columns = jnp.arange(steps) < n, jnp.arange(others) < m
    return jnp.broadcast_to(rows, (pairs, steps)), jnp.broadcast_to(columns, (pairs, others))


def whole(costs):
    """Costs of which nothing is kept apart."""
    return Costs(costs, jnp.zeros_like(costs[:, :, 0]), jnp.zeros_like(costs[:, 0]))


def test_every_real_row_and_column_has_a_zero_when_minima_are_absorbed():
    costs = jnp.asarray(random_problems(2, 7, 6, width=3)).at[:, :, 4:].add(-5.0)
    rows, columns = masks(costs, 5, 4)
    f, g, reduced = absorb_minima(costs, rows, columns)
    real = np.asarray(reduced)[:, :5, :4]
    assert np.all(real.min(axis=1) == 0) and np.all(real.min(axis=2) == 0)
    whole = f[:, :5, None] + g[:, None, :4] + real
    np.testing.assert_allclose(whole, costs[:, :5, :4], rtol=1e-5, atol=1e-6)
    assert not np.any(reduced[:, 5:]) and not np.any(reduced[:, :, 4:])
    assert not np.any(f[:, 5:]) and not np.any(g[:, 4:])


def test_kernels_are_stored_as_long_as_they_do_not_underflow():
    costs = random_problems(2, 7, 6, width=3)
    everything = masks(costs, 7, 6)
    reduced = costs - costs.min(axis=2, keepdims=True)
    largest = np.max(reduced - reduced.min(axis=1, keepdims=True))
    solve = jax.jit(
        partial(fixed_potentials, epsilon=0.125, iterations=20), static_argnames="kernel"
    )
    for share, kernel, other in ((0.999, "stored", "log"), (1.001, "log", "stored")):
        scaled = costs * (share * 0.125 * largest_exponent(np.float32) / largest)
        scaled = jnp.asarray(scaled, jnp.float32)
        chosen = solve(scaled, *everything)
        assert_equal_products(chosen.f, solve(scaled, *everything, kernel=kernel).f)
        assert np.any(chosen.f != solve(scaled, *everything, kernel=other).f)
    assert 79 < largest_exponent(np.float32) < 81
    assert 700 < largest_exponent(np.float64) < 708


def test_beyond_that_a_stored_kernel_would_be_wrong():
    """Every row is nearest to the first column, yet the best plan is the other diagonal.

    Less the minima the costs are `2 x_i y_j`, so the plan needs an entry that costs 200 epsilon.
    """
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 8.0])
    costs = jnp.asarray((x[:, None] + y)[None] ** 2, jnp.float32)
    everything = masks(costs, 3, 3)
    plans = {}
    for kernel in ("auto", "stored"):
        method = FixedEpsilon(0.04, 400, kernel=kernel)
        f, g, _ = jax.jit(method.potentials)(whole(costs), *everything)
        plans[kernel] = 3 * np.asarray(method.plans(costs, f, g, *everything)[0][0])
    np.testing.assert_allclose(plans["auto"], np.eye(3)[::-1], atol=1e-2)
    assert not np.allclose(plans["stored"], np.eye(3)[::-1], atol=0.1)


def test_fifty_iterations_converge_where_plain_ones_do_not():
    """Random steps at epsilon 0.03: within 1e-3 of the converged gradient."""
    costs = random_problems(4, 40, 40, width=64)
    expected = np.stack([reference.transport_plan(cost, 0.03) for cost in costs])

    def error(plans):
        difference = np.linalg.norm(plans - expected, axis=(1, 2))
        return np.max(difference / np.linalg.norm(expected, axis=(1, 2)))

    single = jnp.asarray(costs, jnp.float32)
    everything = masks(costs, 40, 40)
    method = FixedEpsilon(0.03, 50)
    f, g, _ = jax.jit(method.potentials)(whole(single), *everything)
    assert error(np.asarray(method.plans(single, f, g, *everything)[0])) < 1e-3
    plain = np.exp(-costs / 0.03)
    for _ in range(50):
        plain /= 40 * plain.sum(axis=1, keepdims=True)
        plain /= 40 * plain.sum(axis=2, keepdims=True)
    assert error(plain) > 2e-3


# -- convergence and plans ------------------------------------------------------------------------


def test_aux_says_how_far_the_columns_of_the_plan_are_off():
    options = {"epsilon": 0.05, "iterations": 2, "debiased": False}

    @jax.jit
    def aux_and_plans(visual, audio):
        plan = partial(sinkhorn_plan, **options)
        plans = lifted(plan)(visual, audio)
        return sinkhorn_matrix(visual, audio, **options)[1], plans

    aux, plans = aux_and_plans(*both())
    errors = np.stack([column_errors(row, AUDIO_LENGTHS) for row in np.asarray(plans)])
    np.testing.assert_allclose(aux["marginal_error"], errors, atol=2e-5)
    np.testing.assert_array_equal(aux["converged"], errors < 1e-3)
    assert aux["converged"].any()  # a single step is served at once
    assert not aux["converged"].all()


def test_aux_of_wasserstein_is_that_of_its_plans():
    """Of the pair or of a self term, whichever is worse; geomloss' loop does not converge."""

    @jax.jit
    def plans(visual, audio):
        cross = lifted(transport_plan)(visual, audio)
        return cross, *(jax.vmap(lambda x: transport_plan(x, x))(x) for x in (visual, audio))

    cross, *own = (np.asarray(plan) for plan in plans(*both()))
    errors = np.stack([column_errors(row, AUDIO_LENGTHS) for row in cross])
    errors = np.maximum(errors, column_errors(own[0], VISUAL_LENGTHS)[:, None])
    errors = np.maximum(errors, column_errors(own[1], AUDIO_LENGTHS)[None])
    aux = aux_of("wasserstein", {}, *both())
    np.testing.assert_allclose(aux["marginal_error"], errors, atol=2e-3)
    assert not aux["converged"].all()


def column_errors(plans, lengths):
    """`sum_j |sum_i P_ij - 1/m|` of plans `[K, N, M]`; their rows are exact."""
    errors = []
    for plan, length in zip(plans, lengths, strict=True):
        real = plan[np.any(plan > 0, axis=1)]
        np.testing.assert_allclose(real.sum(axis=1), 1 / len(real), rtol=2e-5)
        assert not np.any(plan[:, length:])
        errors.append(np.abs(plan.sum(axis=0)[:length] - 1 / length).sum())
    return np.array(errors)


def test_fifty_iterations_say_that_they_converged():
    assert aux_of("sinkhorn", DEBIASED, *both())["converged"].all()


def test_self_terms_that_do_not_converge_are_told():
    """Near steps make a slow self term; the cross term with a single step is exact at once."""
    near = np.zeros((3, WIDTH))
    near[2, 0] = 0.6
    slow, single = padded([near], 3), padded([near[:1] + 1.0], 1)
    for pair in ((slow, single), (single, slow)):
        _, aux = jax.jit(partial(sinkhorn_matrix, epsilon=0.02, iterations=3))(*pair)
        assert aux["marginal_error"] > 1e-6


# -- memory ---------------------------------------------------------------------------------------


def temporary_bytes(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_a_setting():
    """1,024 pairs of 60 x 40: costs and plans are whole only where there is memory for them."""
    shapes = (32, 60, 16), (32, 40, 16)
    costs, potentials = 4 * 1024 * 60 * 40, 4 * 1024 * (60 + 40)

    def total(v, a, memory_bytes=2**30):
        options = {**PLAIN, "block": 16, "memory_bytes": memory_bytes}
        return jnp.sum(sinkhorn_matrix(sequences(v), sequences(a), **options)[0])

    forward = temporary_bytes(total, *shapes)
    everything, only_potentials, nothing = (
        temporary_bytes(jax.grad(partial(total, memory_bytes=memory), (0, 1)), *shapes)
        for memory in (2**30, 4 * potentials, potentials)
    )
    assert forward < costs / 10
    assert nothing < costs / 10
    assert potentials < only_potentials < nothing + 2 * potentials
    assert costs < everything < 2 * costs


@pytest.mark.slow
def test_ott_is_imported_only_where_it_is_used():
    """It takes seconds."""
    code = "import sys, scav_jax.distances; sys.exit('ott' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0},
        {"epsilon": -0.1},
        {"epsilon": float("nan")},
        {"epsilon": float("inf")},
        {"iterations": 0},
        {"position_weight": -1.0},
    ],
    ids=str,
)
def test_sinkhorn_names_the_option_that_is_wrong(options):
    (name,) = options
    visual, audio = both()
    for function in (sinkhorn_matrix, sinkhorn, sinkhorn_plan):
        with pytest.raises(InputError, match=f"sinkhorn: {name} should be"):
            jax.eval_shape(partial(function, **options), visual, audio)


@pytest.mark.parametrize(
    "options",
    [
        {"blur": 0.0},
        {"scaling": 1.0},
        {"scaling": 0.0},
        {"diameter": 0.01},
        {"diameter": float("inf")},
        {"position_weight": float("nan")},
    ],
    ids=str,
)
def test_wasserstein_names_the_option_that_is_wrong(options):
    (name,) = options
    visual, audio = both()
    for function in (wasserstein_matrix, wasserstein, transport_plan):
        with pytest.raises(InputError, match=f"wasserstein: {name} should be"):
            jax.eval_shape(partial(function, **options), visual, audio)


# -- with machine code as users have it; last, as it forgets what the tests above share -----------


@pytest.mark.usefixtures("optimized")  # to the last digits
def test_both_domains_agree():
    """Plain and over-relaxed by one half and by three quarters."""
    costs = jnp.asarray(random_problems(3, 7, 6, width=8), jnp.float32)
    for iterations in (1, 30, 60):
        solve = partial(fixed_potentials, epsilon=0.1, iterations=iterations)
        stored, log = (
            jax.jit(partial(solve, kernel=kernel))(costs, *masks(costs, 5, 6))
            for kernel in ("stored", "log")
        )
        for ours, theirs in zip(stored, log, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
        assert not np.any(stored.f[:, 5:])
