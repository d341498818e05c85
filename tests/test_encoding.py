"""Decoding and encoding at the same time, in bounded memory; arrays that change hands."""

import multiprocessing
import os
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from scav_jax.base.progress import progress_bar
from scav_jax.extract import handover, jobs, pool, program
from scav_jax.extract.backbones import Prepared
from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.encoding import Encoder, Results
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import ClipRequest

CLIP_BYTES = 2**20


class Model:
    """A backbone that takes its time and notes what it was given."""

    clips_at_once = 2

    def __init__(self, work=lambda clips: None):
        self.work, self.batches = work, []

    def encode(self, clips):
        self.work(clips)
        self.batches.append([int(clip.visual[0]) for clip in clips])
        return [(clip.visual[:1], clip.audio) for clip in clips]


def encoder_of(model, queue_bytes):
    return Encoder(model.encode, model.clips_at_once, queue_bytes)


def clip(number):
    visual = np.full(CLIP_BYTES, number, np.uint8)
    return Prepared(visual, np.zeros(0, np.float32))


# -- the encoder ------------------------------------------------------------------------------


def test_results_come_in_order_and_batches_are_as_large_as_they_may():
    started, go = threading.Event(), threading.Event()

    def work(clips):
        started.set()
        go.wait(10)

    model, got = Model(work), []
    with encoder_of(model, 10 * CLIP_BYTES) as encoder:
        for number in range(5):
            encoder.encode(clip(number), lambda features: got.append(int(features[0][0])))
            if number == 0:
                started.wait(10)  # it has taken the first one, alone
            if number == 2:
                encoder.call(lambda: got.append("between"))
        go.set()
    assert got == [0, 1, 2, "between", 3, 4]
    assert model.batches == [[0], [1, 2], [3, 4]]


def test_the_queue_is_bounded_and_whoever_brings_more_waits():
    free = threading.Semaphore(0)
    model, put = Model(lambda clips: free.acquire(timeout=10)), []
    model.clips_at_once = 1

    def bring(encoder):
        for number in range(9):
            encoder.encode(clip(number), lambda features: None)
            put.append(number)

    with encoder_of(model, int(3.5 * CLIP_BYTES)) as encoder:
        thread = threading.Thread(target=bring, args=(encoder,))
        thread.start()
        for encoded in range(9):
            until = time.monotonic() + 10
            while len(put) < min(encoded + 3, 9):
                assert time.monotonic() < until
                time.sleep(0.002)
            time.sleep(0.02)
            assert len(put) == min(encoded + 3, 9)
            free.release()
        thread.join()
    assert encoder.peak_bytes == 3 * CLIP_BYTES
    assert len(model.batches) == 9


def test_a_clip_larger_than_the_bound_goes_alone():
    model = Model()
    with encoder_of(model, CLIP_BYTES // 2) as encoder:
        for number in range(3):
            encoder.encode(clip(number), lambda features: None)
    assert model.batches == [[0], [1], [2]] and encoder.peak_bytes == CLIP_BYTES


def test_an_error_in_the_thread_reaches_whoever_waits():
    def fail(clips):
        raise ValueError("no such kernel")

    with pytest.raises(ValueError, match="no such kernel"), encoder_of(Model(fail), 1) as encoder:
        for number in range(3):
            encoder.encode(clip(number), lambda features: None)
    with pytest.raises(ValueError, match="no such kernel"), encoder_of(Model(fail), 1) as encoder:
        encoder.encode(clip(0), lambda features: None)  # seen only when leaving
    with pytest.raises(KeyError), encoder_of(Model(), 1):
        raise KeyError("ours")


def test_what_was_encoded_is_called_back_before_the_next_clip_fails():
    begun, may_end, kept = threading.Event(), threading.Event(), []

    def encode(clips):
        if begun.is_set():
            raise ValueError("no such kernel")
        begun.set()
        may_end.wait(30)
        return [None for _ in clips]

    with pytest.raises(ValueError, match="no such kernel"), Encoder(encode, 1, 2**30) as encoder:
        encoder.encode(clip(0), lambda features: None)
        assert begun.wait(30)
        encoder.call(lambda: kept.append(0))  # taken together with the clip that fails
        encoder.encode(clip(1), lambda features: None)
        may_end.set()
    assert kept == [0]


# -- arrays that change hands -----------------------------------------------------------------


def test_arrays_arrive_as_they_were_sent(random):
    value = {
        "large": random.integers(0, 256, (50, 40, 30, 3)).astype(np.uint8),
        "empty": np.zeros((0, 3), np.float32),
        "sound": random.standard_normal(5_000).astype(np.float32),
        "transposed": random.standard_normal((70, 90)).T,
        "text": "x",
    }
    one, other = multiprocessing.Pipe()
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert handover.send(one, handover.pack(value))
    got = other.recv().open(other)
    assert got.keys() == value.keys() and got["text"] == "x"
    for name in ("large", "empty", "sound", "transposed"):
        np.testing.assert_array_equal(got[name], value[name])
        assert got[name].dtype == value[name].dtype
    del got
    if open_files is not None:
        assert len(os.listdir("/proc/self/fd")) == open_files
    assert not handover.send(one, handover.pack({"few": np.arange(3)}))
    assert other.recv()["few"].tolist() == [0, 1, 2]


def work_in_steps(job, *, folder):
    """Every step brings a megabyte; a file says that it was made."""
    for step in range(6):
        (folder / f"{job}-{step}").touch()
        yield np.full(CLIP_BYTES, step, np.uint8)
    return "end"


def test_a_parent_that_is_busy_stops_its_workers(tmp_path):
    """While an event is kept, a worker has sent one step's arrays and made the next one's."""
    work = partial(work_in_steps, folder=tmp_path)
    events = pool.run(work, deque([7]), workers=1, timeout_s=0.5)
    results = []
    for taken, (_, event) in enumerate(events, 1):
        if isinstance(event, pool.Done):
            assert event.result == "end"
            continue
        time.sleep(0.7 if taken == 2 else 0.1)  # longer than the limit, which is not the worker's
        made = len(list(tmp_path.iterdir()))
        assert made <= taken + 2
        results.append(int(event.result[0]))
    assert results == [0, 1, 2, 3, 4, 5]


# -- both together ----------------------------------------------------------------------------


def request(name):
    return ClipRequest("x.mp4", 0.0, 2.0, name)


def outcome(place):
    features = np.full((5, 2), place, np.float32)
    prepared = Prepared(features, features)
    return jobs.Outcome(place, request(f"c{place}"), prepared, (0.0, 2.0), 2.0, 0.16)


@pytest.mark.parametrize("values", [1e-9, 1e6, np.nan])
def test_features_that_float16_cannot_hold_reject_their_clip(values):
    fine, bad = np.ones((5, 2), np.float32), np.full((5, 2), values, np.float32)
    assert outcome(0).clip((fine, fine)).visual.dtype == np.float16
    for features, stream in ((bad, fine), "visual"), ((fine, bad), "audio"):
        with pytest.raises(Unusable, match=f"unusable features: clip 'c0': {stream}"):
            outcome(0).clip(features)


class Echo(Model):
    def encode(self, clips):
        return [(clip.visual, clip.audio) for clip in clips]


def test_what_a_lost_worker_had_sent_is_forgotten(tmp_path, monkeypatch):
    """Its job is done again from the start: nothing is kept twice, counted twice or lost."""
    job = jobs.Job(0, tuple((place, request(f"c{place}")) for place in range(3)))
    rejection = {"id": "c2"}
    second = jobs.again(job, pool.Lost("crashed", 2))
    events = [
        (job, pool.Step(outcome(0))),
        (job, pool.Step(outcome(1))),
        (job, pool.Lost("crashed", 2)),
        (second, pool.Step(outcome(0))),
        (second, pool.Step(outcome(1))),
        (second, pool.Step(jobs.Outcome(2, request("c2"), rejection=rejection))),
        (second, pool.Done(None)),
    ]
    ledger, waiting, counted = Ledger(tmp_path), deque(), []
    with (
        Results(ledger, lambda *of: counted.append((*of[:2], len(of[2])))) as results,
        encoder_of(Echo(), 10**9) as encoder,
    ):
        monkeypatch.setattr(pool, "run", lambda *_, **__: (event for event in events))
        program._encode(jobs.run(iter, waiting, workers=1, timeout_s=1.0), encoder, results)
    assert list(waiting) == [second]
    assert ledger.rejected(0) == {2: rejection}
    assert [float(ledger.clip(0, place).visual[0, 0]) for place in (0, 1)] == [0.0, 1.0]
    assert np.sum(counted, axis=0).tolist() == [3.0, 4.0, 1.0]
    assert (-2, -4.0, 0) in counted


def test_what_is_rejected_is_told_while_it_works(capsys):
    with progress_bar("extracting", 30, "clip") as bar:
        progress = program._Progress(bar)
        rows = [request(f"c{place}").rejection("features", "not finite") for place in range(30)]
        for row in rows[:19]:
            progress.add(1, 0.0, [row])
        progress.add(-2, 0.0, rows[17:19])  # a worker is lost, its job done again
        for row in rows[17:20]:
            assert "so far" not in capsys.readouterr().err
            progress.add(1, 0.0, [row])
        progress.add(1, 2.0, [])
        assert bar.n == 21 and bar.postfix.endswith("h of video/h, 20 rejected")
    told = "all 20 clips tried so far were rejected, the last (c19) for: not finite"
    assert capsys.readouterr().err.count(told) == 1


def test_decoding_goes_on_while_encoding(tmp_path):
    """The first clip's encoding waits for the decoder to have brought another one."""
    brought = threading.Event()
    number = deque(range(3))

    def steps():
        while number:
            place = number.popleft()
            if place == 2:
                brought.set()
            job = jobs.Job(place, ((place, request(f"c{place}")),))
            yield job, pool.Step(outcome(place))
            yield job, pool.Done(None)

    class Waits(Echo):
        def encode(self, clips):
            assert brought.wait(10), "nothing was decoded meanwhile"
            return super().encode(clips)

    with (
        Results(Ledger(tmp_path), lambda *_: None) as results,
        encoder_of(Waits(), 10**9) as encoder,
    ):
        program._encode(steps(), encoder, results)
    assert all(Ledger(tmp_path).is_done(job) for job in range(3))


def test_a_ledger_that_cannot_write_ends_the_run(tmp_path):
    file = Path(tmp_path / "file")
    file.touch()
    job = jobs.Job(0, ((0, request("c0")),))
    events = [(job, pool.Step(outcome(0))), (job, pool.Done(None))]
    with (
        pytest.raises(OSError, match="file"),
        Results(Ledger(file), lambda *_: None) as results,
        encoder_of(Echo(), 10**9) as encoder,
    ):
        program._encode(iter(events), encoder, results)
