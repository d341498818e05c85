"""Who waited for whom, for how long; traces of the steps that were asked for; the table."""

import collections
import re
import time

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.encoders import Encoders
from scav_jax.objectives import Sequential
from scav_jax.optimizer import make_optimizer
from scav_jax.sequences import AudioVisual, as_batch, sequences
from scav_jax.training import profiling, records
from scav_jax.training.records import InputWarning, Meter


class Clock:
    """Time that passes when it is told to: `sleep` for the loop, `end` for a step on the device."""

    def __init__(self, monkeypatch):
        self.now, self.device_free = 100.0, 0.0
        monkeypatch.setattr(records.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(records, "_Ends", lambda: self)
        self.running = collections.deque()

    def sleep(self, seconds):
        self.now += seconds

    def step(self, seconds):
        """Metrics of a step that takes so long, once the device is free."""
        self.device_free = max(self.now, self.device_free) + seconds
        return {"loss": self.device_free}

    def watch(self, metrics):
        self.running.append(metrics["loss"])

    def next(self):
        """As `_Ends.next`: waits for the step, and says when it ended."""
        end = self.running.popleft()
        self.now = max(self.now, end)
        return end


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def run(meter, clock, steps):
    """Each step is (how long its batch takes to come, how long the device takes)."""
    for input_s, device_s in steps:
        with meter.waiting():
            clock.sleep(input_s)
        meter.add(clock.step(device_s))


def summary(meter):
    """The summary, of metrics that are numbers."""
    numbers = {"skipped": np.int32(0), "skipped_in_row": np.int32(0)}
    meter._steps = [numbers for _ in meter._steps]
    return meter.summary()


def test_waiting_behind_a_busy_device_is_no_stall(clock):
    meter = Meter(batch_size=4)
    run(meter, clock, [(0.0, 8.0)] + [(3.0, 8.0)] * 5)
    values = summary(meter)
    assert values["input_share"] == 0
    assert values["input_ms"] == pytest.approx(1e3 * 15 / 6)


def test_a_device_without_a_batch_is_a_stall(clock):
    """The batch takes 9 s, the step 3: each time the device is idle for 6 s of 9."""
    meter = Meter(batch_size=4)
    run(meter, clock, [(0.0, 3.0)] + [(9.0, 3.0)] * 5)
    assert clock.now == 145.0
    values = summary(meter)
    assert values["input_share"] == pytest.approx(5 * 6 / 45)
    assert values["examples_per_s"] == pytest.approx(4 * 6 / 45)
    assert meter.totals["input"] == pytest.approx(30)


def test_one_step_at_a_time_is_accounted_as_well(clock):
    meter = Meter(batch_size=4, in_flight=0)
    run(meter, clock, [(1.0, 3.0)] * 4)
    assert meter.totals["input"] == pytest.approx(4)
    assert summary(meter)["input_share"] == pytest.approx(4 / 16)


def test_what_the_loop_does_itself_is_host_time(clock):
    meter = Meter(batch_size=4)
    for _ in range(5):
        run(meter, clock, [(1.0, 4.0)])
        clock.sleep(0.5)
        with meter.part("checkpoint"):
            clock.sleep(2.0)
    assert summary(meter)["host_ms"] == pytest.approx(500)


@pytest.mark.parametrize("in_flight", [0, 1])
def test_the_loop_runs_no_further_ahead_than_it_may(clock, in_flight):
    meter, ends = Meter(batch_size=4, in_flight=in_flight), []
    for number in range(4):
        metrics = clock.step(4.0)
        ends.append(metrics["loss"])
        with meter.waiting():
            pass
        meter.add(metrics)
        if number:
            assert clock.now == ends[number - in_flight]


def test_parts_of_the_run_add_up_to_its_time(clock):
    meter = Meter(batch_size=4)
    run(meter, clock, [(1.0, 3.0), (5.0, 2.0), (1.0, 4.0)])
    with meter.part("validation"):
        clock.sleep(7.0)
    run(meter, clock, [(1.0, 3.0)] * 3)
    with meter.part("checkpoint"):
        clock.sleep(2.0)
    assert meter.totals["validation"] == 7.0 and meter.totals["checkpoint"] == 2.0
    assert sum(meter.totals.values()) == pytest.approx(clock.now - 100.0)
    assert meter.totals["step"] > 0 and meter.steps == 6


def test_the_first_step_of_each_shape_of_batches_compiles(clock):
    meter, compiled = Meter(batch_size=4), 0.0
    for width, seconds in ((5, 9.0), (5, 0.0), (7, 30.0), (5, 0.0), (7, 0.0)):
        with meter.waiting():
            clock.sleep(0.5)
        clock.sleep(seconds)  # until the step is dispatched
        compiled += seconds
        meter.add(clock.step(1.0), {"visual": np.zeros((4, width))})
        assert meter.totals["compilation"] == pytest.approx(compiled)
    assert meter.totals["step"] < 5.0


class Failing:
    def block_until_ready(self):
        raise RuntimeError("the device is gone")


class Slow:
    def block_until_ready(self):
        time.sleep(0.05)
        return self


def test_a_thread_sees_when_steps_end():
    meter, begin = Meter(batch_size=4, in_flight=0), time.perf_counter()
    for _ in range(3):
        meter.add({"loss": Slow()})
    assert time.perf_counter() - begin >= 0.15
    meter, begin = Meter(batch_size=4, in_flight=1), time.perf_counter()
    meter.add({"loss": Slow()})
    assert time.perf_counter() - begin < 0.05


def test_what_a_step_raises_on_the_device_is_raised():
    meter = Meter(batch_size=4, in_flight=0)
    with pytest.raises(RuntimeError, match="the device is gone"):
        meter.add({"loss": Failing()})


def test_slow_input_is_said_once_in_a_while_with_what_to_do(clock):
    warning = InputWarning(read_threads=3)
    assert warning.words({"input_share": 0.05}) is None
    words = warning.words({"input_share": 0.437})
    assert "44% of the time" in words and "(3 now" in words
    for advice in ("data.read_threads", "resample", "faster disk", "input.py"):
        assert advice in words
    assert warning.words({"input_share": 0.9}) is None
    clock.sleep(records.SECONDS_BETWEEN_WORDS)
    assert warning.words({"input_share": 0.9}) is not None


@pytest.mark.parametrize("profile", ["5", "0:3", "4:4", "6:5", "2:12", "a:b", "-1:3", "1:2:3"])
def test_a_profile_that_cannot_be_is_refused(profile):
    with pytest.raises(InputError, match=r"train\.profile: expected start:stop"):
        profiling.steps_of(profile, 10)


def test_profiles():
    assert profiling.steps_of("", 10) is None
    assert list(profiling.steps_of("9:11", 10)) == [9, 10]


def test_a_trace_is_of_the_steps_asked_for(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with profiling.Trace(tmp_path, range(3, 5)) as trace:
        for step in range(1, 8):
            trace.before(step)
            calls.append(step)
            trace.after(step, jnp.zeros(()))
    assert calls == [1, 2, str(tmp_path / "profile"), 3, 4, "stop", 5, 6, 7]
    calls.clear()
    with pytest.raises(KeyError), profiling.Trace(tmp_path, range(1, 9)) as trace:
        trace.before(1)
        raise KeyError
    assert calls == [str(tmp_path / "profile"), "stop"]


def test_a_trace_is_written(tmp_path):
    with profiling.Trace(tmp_path, range(1, 2)) as trace:
        trace.before(1)
        trace.after(1, jnp.ones((4, 4)) @ jnp.ones((4, 4)))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("name, microbatch", [("sequence", 0), ("sequence+aggregation", 2)])
def test_every_part_of_a_step_is_timed(random, name, microbatch):
    encoders = Encoders(
        width=8, heads=2, visual_blocks=0, audio_blocks=0, visual_hidden=6, audio_hidden=6,
        feedforward=10,
    )  # fmt: skip
    objective = Sequential(name=name, distance="soft_dtw")  # compiles in a third of the time
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=5)
    streams = (
        sequences(jnp.asarray(random.normal(size=(4, steps, width)), jnp.float16))
        for steps, width in ((5, 7), (3, 9))
    )
    batch = as_batch(AudioVisual(*streams))
    state = drawn.state(encoders, objective, optimizer, batch)
    parts = profiling.parts_of_step(
        encoders, objective, optimizer, state, batch, memory_bytes=2**20, microbatch=microbatch
    )
    assert list(parts) == ["towers, forward", "towers, backward", "loss", "optimizer"]
    assert all(0 <= seconds < 1 for seconds in parts.values())
    assert parts["towers, forward"] > 0 and parts["loss"] > 0


def test_the_table_has_every_part_largest_first_and_shares_of_one():
    totals = {"compilation": 3.0, "input": 1.0, "step": 14.0, "validation": 2.0}
    lines = profiling.table(totals, 15, {"distance": 0.25, "loss": 0.75}).splitlines()
    shares = [float(s) for line in lines[1:5] for s in re.findall(r"([\d.]+)%", line)]
    assert shares == [70.0, 15.0, 10.0, 5.0]
    assert lines[1].split() == ["steps", "14.0", "70.0%"]
    assert lines[5].split() == ["a", "step", "1000.0", "ms"]
    assert lines[6].split() == ["distance", "250.0", "ms", "25.0%"]
    assert lines[8].endswith("1000.0 ms")


def test_memory_in_use_is_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    def local(*stats):
        monkeypatch.setattr(jax, "local_devices", lambda: [Device(one) for one in stats])
        return profiling.memory_in_use()

    assert local(None, {}) is None
    assert local({"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}, None) == 7
    assert "memory in use, at most         0.00 GiB on a device" in profiling.table(
        {"step": 1.0}, 2
    )
