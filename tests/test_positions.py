"""Buckets of relative positions against loops from the formula and against BEATs' values."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import unchecked

from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.encoders.positions import check_buckets, relative_buckets


@pytest.mark.parametrize(("buckets", "max_distance"), [(320, 800), (32, 128), (8, 12)])
def test_buckets_are_t5s(buckets, max_distance):
    ours = relative_buckets(40, buckets, max_distance)
    for query in range(40):
        for key in range(40):
            expected = reference.position_bucket(key - query, buckets, max_distance)
            assert ours[query, key] == expected


def test_buckets_of_beats():
    known = {-300: 125, -100: 87, -1: 1, 0: 0, 1: 161, 61: 221, 79: 239, 80: 240, 100: 247}
    known |= {300: 285, 495: 303}
    ours = relative_buckets(496, 320, 800)
    for offset, bucket in known.items():
        assert reference.position_bucket(offset, 320, 800) == bucket
        query, key = max(-offset, 0), max(offset, 0)
        assert ours[query, key] == bucket
        # only the offset counts, not where it lies
        assert set(np.diagonal(ours, offset)) == {bucket}
    far = relative_buckets(1000, 320, 800)
    assert far[0, 999] == 319
    assert far[999, 0] == 159


@pytest.mark.parametrize(
    ("buckets", "max_distance"), [(320, 800), (320, 81), (4, 2), (5, 2), (7, 90), (11, 3), (64, 17)]
)
def test_buckets_stay_in_the_table_and_are_the_same_where_lengths_are_symbols(
    buckets, max_distance
):
    check_buckets(buckets, max_distance)
    steps = 2 * max_distance + 5
    plain = relative_buckets(steps, buckets, max_distance)
    with unchecked():  # such a length is no `int`
        exported = jax.export.export(
            jax.jit(lambda x: relative_buckets(x.shape[0], buckets, max_distance))
        )(jax.ShapeDtypeStruct(jax.export.symbolic_shape("steps"), jnp.float32))
    symbolic = exported.call(jnp.zeros(steps))
    np.testing.assert_array_equal(symbolic, plain)
    for after in (plain[0], plain[:, 0] + buckets // 2):  # farther is never a smaller bucket
        assert (np.diff(after[1:]) >= 0).all() and after[-1] == buckets // 2 * 2 - 1
    assert plain.min() == 0


@pytest.mark.parametrize(
    ("buckets", "max_distance", "words"),
    [(320, 40, "80 of 320, got 40"), (320, 80, "80 of 320, got 80"), (3, 9, "at least 4, got 3")],
)
def test_buckets_that_far_offsets_cannot_have_are_refused(buckets, max_distance, words):
    with pytest.raises(InputError, match=rf"encoders\.position_.*{words}"):
        check_buckets(buckets, max_distance)
    with pytest.raises(InputError, match="position_buckets"):
        Encoders(position_buckets=buckets, position_max_distance=max_distance)
