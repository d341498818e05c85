"""Warping in float64, in blocks and tiles, given costs, paths and memory.

That values, gradients, padding and offsets are right: the rows of `test_distances`.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from pairs import assert_close, lifted, padded, with_gradients

from scav_jax.base.errors import InputError
from scav_jax.distances import dtw, warping
from scav_jax.sequences import Sequences, sequences

WIDTH = 4
LONG, SHORT = [10, 1, 6, 8, 3], [5, 2, 1, 4, 6, 3, 5]  # of 10 and of 6 steps: some fill theirs
STEPS = {"long": 10, "short": 6}
AMPLE, TIGHT = 2**30, 1  # bytes: alignments are kept, or computed again a pair at a time


def clips(lengths, seed, width=WIDTH):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, width)) for length in lengths]


def one(stream: Sequences) -> Sequences:
    return jax.tree.map(lambda x: x[0], stream)


def streams(order="long first", **how):
    """Visual and audio sequences, either of which may be the longer ones."""
    long, short = (
        padded(clips(LONG, 1), STEPS["long"], **how),
        padded(clips(SHORT, 2), STEPS["short"], **how),
    )
    return (long, short) if order == "long first" else (short, long)


each_gamma = pytest.mark.parametrize("gamma", [0.1, None])


def all_pairs(visual, audio, gamma, block=None, memory_bytes=AMPLE):
    how = {"block": block, "memory_bytes": memory_bytes}
    if gamma is None:
        distances, aux = dtw.dtw_matrix(visual, audio, **how)
    else:
        distances, aux = dtw.soft_dtw_matrix(visual, audio, gamma=gamma, **how)
    assert aux == {}
    return distances


def by_definition(visual, audio, gamma):
    pair = dtw.dtw if gamma is None else partial(dtw.soft_dtw, gamma=gamma)
    return lifted(pair)(visual, audio)


@cache
def compiled(function, **how):
    return with_gradients(partial(function, **how))


def run(function, visual, audio, **how):
    """D and both gradients, as numpy arrays."""
    (_, distances), gradients = compiled(function, **how)(visual, audio)
    return [np.asarray(x) for x in (distances, *gradients)]


# -- all pairs ------------------------------------------------------------------------------------


@each_gamma
def test_all_pairs_where_audio_has_more_steps(gamma):
    """Visual has more in `test_distances`, where both streams change places for it."""
    visual, audio = streams("short first")
    results = run(all_pairs, visual, audio, gamma=gamma)
    assert_close(results, run(by_definition, visual, audio, gamma=gamma), 1e-5)
    formula = reference.dtw if gamma is None else partial(reference.soft_dtw, gamma=gamma)
    expected = np.array([[formula(v, a) for a in clips(LONG, 1)] for v in clips(SHORT, 2)])
    np.testing.assert_allclose(results[0], expected, rtol=1e-5, atol=1e-5)


@each_gamma
def test_clips_in_groups_far_apart_are_told_apart(gamma):
    """Clips that differ by 0.1, in groups 200 apart: products would round all of that away."""
    groups = [
        [clip + 1e3 * (-1) ** (number // 3) for number, clip in enumerate(clips(lengths, seed))]
        for lengths, seed in (([9, 3, 5, 7, 4, 6], 3), ([4, 5, 2, 6, 3, 5], 4))
    ]
    groups = [[0.1 * np.float32(clip) for clip in group] for group in groups]
    visual, audio = (padded(group, 9) for group in groups)
    found = run(all_pairs, visual, audio, gamma=gamma)
    assert_close(found, run(by_definition, visual, audio, gamma=gamma), 1e-4)
    formula = reference.dtw if gamma is None else partial(reference.soft_dtw, gamma=gamma)
    for rows in (slice(3), slice(3, 6)):
        expected = [[formula(v.astype(float), a.astype(float)) for a in groups[1][rows]]
                    for v in groups[0][rows]]  # fmt: skip
        np.testing.assert_allclose(found[0][rows, rows], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("block", "memory_bytes"),
    [(1, AMPLE), (4, TIGHT), (33, AMPLE), (None, TIGHT)],
)
def test_block_and_memory_change_nothing(block, memory_bytes):
    """Of 35 pairs: one at a time, a number that does not divide, and more than there are."""
    visual, audio = streams()
    expected = run(all_pairs, visual, audio, gamma=0.1)
    how = {"block": block, "memory_bytes": memory_bytes}
    assert_close(run(all_pairs, visual, audio, gamma=0.1, **how), expected, 2e-6)


@pytest.mark.parametrize(
    ("stream", "group", "across", "on_cpu"),
    [(3, 2, 2, True), (1, 7, 4, False), (2, 1, 5, False)],
)
def test_every_tiling_gives_the_same(monkeypatch, stream, group, across, on_cpu):
    """Items side by side and one after another, with and without some left over."""
    visual, audio = streams("short first")
    expected = run(all_pairs, visual, audio, gamma=0.1)
    if not on_cpu:  # there are several diagonals in a pass of a loop, too
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert warping.fast_block(5, 6, 4, AMPLE) > warping.CPU_CELLS // 30
        assert warping.tiling(100, 200, 5000) == warping.Tiling(1, 25, 200)
    tiling = warping.Tiling(stream, group, across)
    monkeypatch.setattr(warping, "tiling", lambda *_: tiling)

    def by_these_tiles(visual, audio):
        return all_pairs(visual, audio, gamma=0.1, memory_bytes=AMPLE if on_cpu else TIGHT)

    assert_close(run(by_these_tiles, visual, audio), expected, 2e-6)


def test_tiles_are_even_and_within_the_block():
    for queries, candidates, block in [(256, 256, 272), (7, 5, 33), (1000, 3, 64), (1, 999, 10)]:
        stream, group, across = warping.tiling(queries, candidates, block)
        assert stream * group * across <= block
        rows, columns = -(-queries // (stream * group)), -(-candidates // across)
        in_vain = rows * stream * group * columns * across / (queries * candidates)
        assert in_vain < 1.2


@each_gamma
def test_float64(gamma):
    with jax.enable_x64(True):
        visual, audio = streams(dtype=np.float64)
        results = run(all_pairs, visual, audio, gamma=gamma, block=4, memory_bytes=TIGHT)
        assert results[0].dtype == np.float64
        assert_close(results, run(by_definition, visual, audio, gamma=gamma), 1e-13)


def test_float32_stays_float32_beside_float64():
    visual, audio = streams()
    expected = run(all_pairs, visual, audio, gamma=0.1)
    with jax.enable_x64(True):
        found = run(all_pairs, visual, audio, gamma=0.1)
    assert {one.dtype for one in found} == {np.dtype(np.float32)}
    assert_close(found, expected, 1e-6)


def test_equally_cheap_steps_share_the_gradient():
    """Sequences that repeat one step: every cell ties; the definition shares equally too."""
    rng = np.random.default_rng(0)
    ones = [np.ones((n, 1)) * rng.normal(size=(1, WIDTH)) for n in (4, 3, 5)]
    visual, audio = padded(ones[:2], 5), padded(ones[1:], 6)
    results = run(all_pairs, visual, audio, gamma=None)
    assert_close(results, run(by_definition, visual, audio, gamma=None), 1e-5)


# -- accuracy -------------------------------------------------------------------------------------


def course(steps, seed):
    """Two noisy recordings of the same events at different paces."""
    rng = np.random.default_rng(seed)
    events = rng.normal(size=(max(steps), 64))
    return [events[np.arange(n) * max(steps) // n] + 0.3 * rng.normal(size=(n, 64)) for n in steps]


@pytest.mark.parametrize("gamma", [1e-3, 10.0])
def test_gradients_of_long_paths_are_those_of_float64(gamma):
    """Costs of up to 1e5 gamma: where differences of S lose the gradient in float32."""
    pairs = [course((40, 130), seed) for seed in range(3)]
    pairs[2] = clips([40, 130], 7, width=64)
    visual, audio = ([pair[k] for pair in pairs] for k in (0, 1))
    results = run(all_pairs, padded(visual, 40), padded(audio, 130), gamma=gamma)
    with jax.enable_x64(True):
        exact = padded(visual, 40, dtype=np.float64), padded(audio, 130, dtype=np.float64)
        expected = run(by_definition, *exact, gamma=gamma)
    for result, right, tolerance in zip(results, expected, (1e-6, 3e-4, 3e-4), strict=True):
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result, right, atol=tolerance * np.abs(right).max(), rtol=0)


# -- given costs ----------------------------------------------------------------------------------


def given_costs(n, m, pairs, seed=0):
    """As a tile has them: two problems after each other on each lane."""
    rng = np.random.default_rng(seed)
    costs = rng.uniform(size=(n, 2, m, pairs // 2)).astype(np.float32)
    rows = rng.integers(1, n + 1, (2, pairs // 2)).astype(np.int32)
    columns = rng.integers(1, m + 1, (2, pairs // 2)).astype(np.int32)
    rows[0, 0], columns[0, 0] = n, m
    return costs, rows, columns


@pytest.mark.parametrize(
    ("n", "m", "gamma"),
    [
        *((3, 5, gamma) for gamma in (0.01, 0.3, 5.0, None)),
        *((*shape, gamma) for shape in ((5, 3), (1, 4)) for gamma in (0.3, None)),
        (1, 1, 0.3),
    ],
)
def test_given_costs_are_summed_over_every_path(n, m, gamma):
    """Values by loops, alignments by the enumeration of all paths; 0 outside of the real cells."""
    costs, rows, columns = given_costs(n, m, pairs=8)
    solve = jax.jit(partial(warping.solve_tile, gamma=gamma, aligned=True))
    values, alignments = jax.device_get(solve(*map(jnp.asarray, (costs, rows, columns))))
    for k in np.ndindex(rows.shape):
        own = (slice(None), k[0], slice(None), k[1])
        real = costs[own].astype(float)[: rows[k], : columns[k]]
        np.testing.assert_allclose(
            values[k], reference.soft_dtw_of_costs(real, gamma or 0), rtol=1e-5, atol=1e-5
        )
        alignment = np.zeros((n, m))
        alignment[: rows[k], : columns[k]] = reference.soft_dtw_alignment(real, gamma or 1e-7)
        np.testing.assert_allclose(alignments[own], alignment, atol=2e-5)
        assert not np.any(alignments[own][rows[k] :])
        assert not np.any(alignments[own][:, columns[k] :])


def test_a_cost_that_is_not_a_number_is_not_hidden():
    costs = jnp.ones((3, 1, 4, 2)).at[1, 0, 2, 0].set(jnp.nan)
    values, _ = warping.solve_tile(
        costs, jnp.full((1, 2), 3), jnp.full((1, 2), 4), 0.1, aligned=False
    )
    np.testing.assert_array_equal(np.isnan(values[0]), [True, False])


def test_warping_equals_tslearn(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # its compilation takes seconds
    from tslearn import metrics

    visual, audio = clips([9, 1, 6], 1), clips([5, 2, 1], 2)

    @jax.jit
    def ours(*pair):
        soft = dtw.soft_dtw(*pair, gamma=0.5), dtw.soft_alignment(*pair, gamma=0.5)
        return *soft, dtw.dtw(*pair), *dtw.hard_path(*pair)

    for v, a in zip(visual, audio, strict=True):
        pair = (one(padded([x], steps)) for x, steps in ((v, 9), (a, 6)))
        soft, alignment, hard, path, cells = ours(*pair)
        scaled = [x / np.sqrt(WIDTH) for x in (v, a)]  # tslearn sums over channels
        expected, distance = metrics.soft_dtw_alignment(*scaled, gamma=0.5)
        np.testing.assert_allclose(soft, distance, rtol=1e-5)
        np.testing.assert_allclose(alignment[: len(v), : len(a)], expected, atol=1e-5)
        expected, distance = metrics.dtw_path(*scaled)
        np.testing.assert_allclose(hard, distance**2, rtol=1e-5)
        np.testing.assert_array_equal(path[:cells], expected)


# -- paths ----------------------------------------------------------------------------------------


@jax.jit
def path_and_alignment(visual, audio):
    return *dtw.hard_path(visual, audio), dtw.hard_alignment(visual, audio)


@pytest.mark.parametrize("lengths", [(5, 4), (3, 6), (1, 4), (5, 1), (1, 1), (6, 6)])
def test_hard_path_is_the_cheapest_of_all(lengths):
    v, a = clips([lengths[0]], 11)[0], clips([lengths[1]], 12)[0]
    path, cells, alignment = path_and_alignment(one(padded([v], 6)), one(padded([a], 7)))
    costs = reference.step_costs(v, a)
    best = min(
        reference.monotone_paths(*lengths), key=lambda path: sum(costs[cell] for cell in path)
    )
    assert path.shape == (6 + 7 - 1, 2)
    assert cells == len(best)
    np.testing.assert_array_equal(path[:cells], best)
    np.testing.assert_array_equal(path[cells:], [best[-1]] * (len(path) - len(best)))
    on_path = np.zeros((6, 7))
    on_path[tuple(np.transpose(best))] = 1.0  # without ties the gradient is the path
    np.testing.assert_array_equal(alignment, on_path)


def test_hard_path_prefers_the_diagonal():
    same = [sequences(jnp.ones((n, WIDTH))) for n in (3, 4)]
    path, cells = dtw.hard_path(*same)
    assert path[:cells].tolist() == [[0, 0], [1, 1], [2, 2], [2, 3]]


# -- memory -----------------------------------------------------------------


def temporary_bytes(batch, n, m, memory_bytes, backward=True, block=None):
    shapes = [
        jax.ShapeDtypeStruct((size, steps, 16), jnp.float32)
        for size, steps in ((batch, n), (batch, m))
    ]

    def total(v, a):
        how = {"gamma": 0.1, "block": block, "memory_bytes": memory_bytes}
        return jnp.sum(all_pairs(sequences(v), sequences(a), **how))

    function = jax.grad(total, (0, 1)) if backward else total
    program = jax.jit(function).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_is_a_setting():
    """The alignments of all pairs are kept where they fit, and never where they do not."""
    batch, n, m = 64, 40, 100
    latents, kept = 4 * batch * (n + m) * 16, 4 * batch**2 * n * m
    for budget in (2**22, 2**26):
        assert temporary_bytes(batch, n, m, budget) <= budget + 6 * latents
    assert kept <= temporary_bytes(batch, n, m, 2**28) <= 2**28
    most = kept / (3 if jax.default_backend() == "cpu" else 1)  # else in few tiles, costs whole
    assert temporary_bytes(batch, n, m, 2**28, backward=False) < most
    one_pair = temporary_bytes(batch, n, m, 2**24, block=1)
    assert one_pair < 2 * warping.tile_bytes(n, m, 4) + 6 * latents


def test_memory_does_not_grow_with_the_number_of_pairs():
    budget = 2**23
    small, large = (temporary_bytes(batch, 20, 50, budget) for batch in (32, 128))
    assert large - small <= 6 * 4 * (128 - 32) * 70 * 16 + 2 * 4 * 128**2


# -- what a person gets wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan"), float("inf")])
def test_gamma_is_checked(gamma):
    visual, audio = streams()
    pair = one(visual), one(audio)
    for call in (
        lambda: dtw.soft_dtw(*pair, gamma=gamma),
        lambda: dtw.soft_alignment(*pair, gamma=gamma),
        lambda: dtw.soft_dtw_matrix(visual, audio, block=None, memory_bytes=AMPLE, gamma=gamma),
    ):
        with pytest.raises(InputError, match="gamma"):
            jax.eval_shape(call)
