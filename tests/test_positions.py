"""Buckets of relative positions against loops from the formula and against BEATs' values."""

import numpy as np
import pytest
import reference

from scav_jax.encoders.positions import relative_buckets


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
