"""Who waited for whom, for how long; traces of the steps that were asked for; the table."""

import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import profiling
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.optimizer import make_optimizer
from scav_jax.records import InputWarning, Meter
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.train_step import Objective, init_state


class Step:
    """The metrics of a step that a device is busy with until `seconds` after the one before."""

    def __init__(self, seconds, after=None):
        begin = max(time.perf_counter(), after.end if after else 0.0)
        self.end = begin + seconds

    def block_until_ready(self):
        time.sleep(max(0.0, self.end - time.perf_counter()))
        return self


def run(meter, steps):
    """Each step is (how long its batch takes to come, how long the device takes)."""
    before = None
    for input_s, device_s in steps:
        with meter.waiting():
            time.sleep(input_s)
        before = Step(device_s, before)
        meter.add({"loss": before})


def summary(meter):
    """The summary, of metrics that are numbers."""
    numbers = {"skipped": np.int32(0), "skipped_in_row": np.int32(0)}
    meter._steps = [numbers for _ in meter._steps]
    return meter.summary()


def test_waiting_behind_a_busy_device_is_no_stall():
    meter = Meter(batch_size=4)
    run(meter, [(0.0, 0.08)] + [(0.03, 0.08)] * 5)
    values = summary(meter)
    assert values["input_share"] < 0.02
    assert values["input_ms"] == pytest.approx(25, abs=8)  # five of six waited 30 ms


def test_a_device_without_a_batch_is_a_stall():
    """The batch takes 90 ms, the step 30: each time the device is idle for 60 ms of 90."""
    meter = Meter(batch_size=4)
    run(meter, [(0.0, 0.03)] + [(0.09, 0.03)] * 5)
    values = summary(meter)
    assert values["input_share"] == pytest.approx(0.66, abs=0.12)
    assert meter.totals["input"] == pytest.approx(5 * 0.06, rel=0.3)


@pytest.mark.parametrize("in_flight", [0, 1])
def test_the_loop_runs_no_further_ahead_than_it_may(in_flight):
    meter, before = Meter(batch_size=4, in_flight=in_flight), None
    for number in range(4):
        before, older = Step(0.04, before), before
        with meter.waiting():
            pass
        meter.add({"loss": before})
        ended = before if in_flight == 0 else older
        assert number == 0 or time.perf_counter() >= ended.end
        if in_flight and number:
            assert time.perf_counter() < before.end


def test_parts_of_the_run_add_up_to_its_time():
    begin, meter = time.perf_counter(), Meter(batch_size=4)
    run(meter, [(0.01, 0.03), (0.05, 0.02), (0.01, 0.04)])
    with meter.part("validation"):
        time.sleep(0.07)
    run(meter, [(0.01, 0.03)] * 3)
    with meter.part("checkpoint"):
        time.sleep(0.02)
    wall = time.perf_counter() - begin
    assert meter.totals["validation"] == pytest.approx(0.07, abs=0.01)
    assert meter.totals["checkpoint"] == pytest.approx(0.02, abs=0.01)
    assert sum(meter.totals.values()) == pytest.approx(wall, abs=0.05)
    assert all(seconds >= 0 for seconds in meter.totals.values())
    assert meter.steps == 6


def test_what_a_step_raises_on_the_device_is_raised():
    class Failed(Step):
        def block_until_ready(self):
            raise RuntimeError("the device is gone")

    meter = Meter(batch_size=4, in_flight=0)
    with pytest.raises(RuntimeError, match="the device is gone"):
        meter.add({"loss": Failed(0.0)})


def test_slow_input_is_said_once_in_a_while_with_what_to_do():
    warning = InputWarning(read_threads=3, every_s=0.1)
    assert warning.words({"input_share": 0.05}) is None
    words = warning.words({"input_share": 0.437})
    assert "44% of the time" in words and "(3 now" in words
    for advice in ("data.read_threads", "resample", "faster disk", "input.py"):
        assert advice in words
    assert warning.words({"input_share": 0.9}) is None
    time.sleep(0.11)
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
        width=8, heads=2, visual_blocks=1, audio_blocks=1, visual_hidden=6, audio_hidden=6,
        feedforward=10,
    )  # fmt: skip
    objective = Objective(name=name)
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=5)
    batch = AudioVisual(
        *(
            sequences(jnp.asarray(random.normal(size=(4, steps, width)), jnp.float16))
            for steps, width in ((5, 7), (3, 9))
        )
    )
    state = init_state(encoders, objective, optimizer, batch, 0)
    parts = profiling.parts_of_step(
        encoders, objective, optimizer, state, batch, memory_bytes=2**20, microbatch=microbatch
    )
    assert list(parts) == ["towers, forward", "towers, backward", "distance", "loss", "optimizer"]
    assert all(0 <= seconds < 1 for seconds in parts.values())
    assert parts["towers, forward"] > 0 and parts["distance"] > 0 and parts["loss"] > 0


def test_the_table_has_every_part_largest_first_and_shares_of_one():
    totals = {"compilation": 3.0, "input": 1.0, "step": 14.0, "validation": 2.0}
    lines = profiling.table(totals, 15, {"distance": 0.25, "loss": 0.75}).splitlines()
    shares = [float(s) for line in lines[1:5] for s in re.findall(r"([\d.]+)%", line)]
    assert shares == [70.0, 15.0, 10.0, 5.0]
    assert lines[1].split() == ["steps", "14.0", "70.0%"]
    assert lines[5].split() == ["a", "step", "1000.0", "ms"]
    assert lines[6].split() == ["distance", "250.0", "ms", "25.0%"]
    assert lines[8].endswith("1000.0 ms")
