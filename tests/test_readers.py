"""Every reader is total: any bytes give the value that was written, or one line with a name.

The files, how they are read and what is done to them are those of
`scripts/benchmarks/mutations.py`, which tries more. Bombs, files that unpack to more than the
machine has, run in a process of their own.
"""

from collections import Counter

import mutations
import pytest

MUTATIONS = 64  # of a file that reads quickly


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    made = {}
    for make in mutations.MAKERS:
        for reader in make(tmp_path_factory.mktemp(make.__name__)):
            made[reader.name] = reader
    return made


@pytest.mark.parametrize("make", mutations.MAKERS, ids=lambda make: make.__name__)
def test_any_bytes_give_the_value_or_one_line(make, tmp_path):
    total: Counter = Counter()
    for reader in make(tmp_path):
        count = max(MUTATIONS // reader.cost, len(mutations.PLACES) + 2)
        counts, wrong = mutations.tried(reader, count, seed=0)
        assert not wrong, "\n".join(wrong)
        total += counts
    assert total["refused"] > total.total() // 4
    assert not total["other"] or make.__name__ in ("of_runs", "of_lists", "of_weights", "of_index")
