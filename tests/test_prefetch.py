"""Reading ahead changes neither what is trained on nor where a resume goes on."""

import threading
import time

import jax
import numpy as np
import pytest
from test_batches import FakeSplit, assert_same

from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.features.batches import training_batches
from scav_jax.features.prefetch import Prefetch


class Numbers:
    """0, 1, 2, ... up to `end`; its state is the next number."""

    def __init__(self, end=10**9, wrong=None):
        self.next, self.end, self.wrong, self.threads = 0, end, wrong, set()

    def __next__(self):
        self.threads.add(threading.current_thread().name)
        if self.next == self.end:
            raise StopIteration
        if self.next == self.wrong:
            raise InputError(f"clip {self.wrong} is broken")
        self.next += 1
        return self.next - 1

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def eventually(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def first(batches, count):
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_order_and_state_are_those_of_the_batches_given(ahead):
    source = Numbers()
    batches = Prefetch(source, put=lambda n: ("on device", n), ahead=ahead)
    assert batches.get_state() == {"next": 0}
    for number in range(7):
        assert next(batches) == ("on device", number)
        eventually(lambda n=number: source.next == n + 1 + (ahead and ahead + 1))
        assert batches.get_state() == {"next": number + 1}  # however far it has read
    batches.close()


@pytest.mark.parametrize("ahead", [1, 2])
def test_no_more_than_asked_for_waits_on_the_devices(ahead):
    put = []
    batches = Prefetch(Numbers(), put=put.append, ahead=ahead)
    for given in range(1, 5):
        next(batches)
        eventually(lambda n=given: len(put) == n + ahead)
        time.sleep(0.01)
        assert len(put) == given + ahead
    batches.close()


def test_the_next_batch_is_read_and_put_in_another_thread_without_being_asked_for():
    source, threads = Numbers(), set()
    batches = Prefetch(source, put=lambda n: threads.add(threading.current_thread().name))
    next(batches)
    eventually(lambda: source.next >= 2)
    assert threads == source.threads == {"prefetch"}
    batches.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_an_error_comes_in_the_turn_of_its_batch(ahead):
    batches = Prefetch(Numbers(wrong=3), put=lambda n: n, ahead=ahead)
    assert first(batches, 3) == [0, 1, 2]
    for _ in range(2):  # asked again, it says so again
        with pytest.raises(InputError, match="clip 3"):
            next(batches)
    assert batches.get_state() == {"next": 3}


@pytest.mark.parametrize("ahead", [0, 2])
def test_the_end_ends(ahead):
    assert list(Prefetch(Numbers(end=5), put=lambda n: n, ahead=ahead)) == [0, 1, 2, 3, 4]


def test_an_error_of_put_is_not_swallowed():
    def put(number):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        next(Prefetch(Numbers(), put=put))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_set_back_drops_what_was_read_ahead(ahead):
    batches = Prefetch(Numbers(), put=lambda n: n, ahead=ahead)
    first(batches, 4)
    batches.set_state({"next": 2})
    assert batches.get_state() == {"next": 2}
    assert first(batches, 3) == [2, 3, 4]
    batches.close()


def test_closed_it_goes_on_after_what_was_given():
    source = Numbers()
    batches = Prefetch(source, put=lambda n: n, ahead=2)
    first(batches, 3)
    batches.close()
    assert source.get_state() == {"next": 3}
    assert first(batches, 2) == [3, 4]
    batches.close()


def test_fewer_than_no_batches_are_refused():
    with pytest.raises(InputError, match=r"data\.prefetch: expected 0 or more"):
        Prefetch(Numbers(), put=lambda n: n, ahead=-1)


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_pipeline_gives_the_batches_of_an_uninterrupted_one(stop):
    """Grain's threads, the devices, the reader: what a checkpoint keeps is enough, exactly."""
    split = FakeSplit(range(9, 31), [4, 6] * 11)
    mesh = sharding.make_mesh(2)

    def pipeline(ahead):
        made = training_batches(split, batch_size=4, seed=2, buckets=2, dtype="float16")
        return Prefetch(iter(made), lambda b: sharding.put_batch(b, mesh), ahead=ahead)

    whole = pipeline(ahead=0)
    expected = first(whole, 9)
    interrupted = pipeline(ahead=2)
    for batch, same in zip(first(interrupted, stop), expected, strict=False):
        assert_same(batch, same)
    time.sleep(0.02)  # it reads on
    state = interrupted.get_state()
    interrupted.close()
    assert state == {"next_index": stop}
    resumed = pipeline(ahead=1)
    resumed.set_state(state)
    for batch, same in zip(first(resumed, 9 - stop), expected[stop:], strict=True):
        assert_same(batch, same)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
        assert batch.features.visual.values.sharding.is_equivalent_to(
            sharding.batch_sharded(mesh), 3
        )
        assert batch.features.visual.values.dtype == np.float16
    resumed.close()
