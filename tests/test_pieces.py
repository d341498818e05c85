"""Where pieces of sound are placed, from their timestamps alone."""

import itertools

import numpy as np
import pytest

from scav_jax.extract.decoding.pieces import Piece, placed

RATE, SIZE = 44_100, 1_024
S = SIZE / RATE


def pieces(seconds):
    return [Piece(float(one), RATE, np.full(SIZE, 0.1, np.float32)) for one in seconds]


def offsets(given, found):
    return np.array([b.seconds - a.seconds for a, b in zip(given, found, strict=True)])


def gaps(found):
    """Samples between two that follow each other; below 0 where they overlap."""
    return np.array([round((b.seconds - a.end) * RATE) for a, b in itertools.pairwise(found)])


@pytest.mark.parametrize("digits", [3, 6])
def test_rounded_timestamps_leave_no_gap(digits):
    exact = 5.0 + S * np.arange(300)
    found = placed(pieces(np.round(exact, digits)))
    assert not gaps(found).any()
    np.testing.assert_allclose([one.seconds for one in found], exact, rtol=0, atol=2e-4)


def test_timestamps_of_arrival_leave_no_gap(random):
    exact = S * np.arange(300)
    found = placed(pieces(exact + 0.004 * random.standard_normal(300)))
    assert not gaps(found).any()
    np.testing.assert_allclose([one.seconds for one in found], exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize("first", [0, 5, 40, 120])
@pytest.mark.parametrize("step", [0.012, 0.021, -0.021, 0.5])
def test_what_is_moved_for_good_is_moved_from_there_on(first, step):
    number = np.arange(first, 170)
    given = pieces(np.round(S * number + step * (number >= 128), 3))
    found = placed(given)
    assert np.abs(offsets(given, found)).max() < 1e-3
    (at,) = np.flatnonzero(gaps(found))
    assert at == 127 - first


def test_a_clock_that_drifts_is_followed():
    given = pieces(1.002 * S * np.arange(4_000))
    found = placed(given)
    assert np.abs(offsets(given, found)).max() < 0.02
    assert np.count_nonzero(gaps(found)) < 40


def test_each_part_keeps_its_time_where_silence_is_left_out():
    given = pieces(S * np.array([0, 1, 2, 3, 20, 21, 40, 60, 61, 62]))
    found = placed(given)
    assert np.abs(offsets(given, found)).max() < 1e-4
    assert np.count_nonzero(gaps(found)) == 3


def test_pieces_of_two_rates_stand_each_on_its_own():
    first = pieces(S * np.arange(20))
    rest = [Piece(first[-1].end + 0.02 * n, 48_000, np.zeros(960, np.float32)) for n in range(20)]
    found = placed([*first, *rest])
    assert [one.rate for one in found] == 20 * [RATE] + 20 * [48_000]
    assert np.abs(offsets([*first, *rest], found)).max() < 1e-4
