"""Real processes on one machine: they train as one, agree, stop together; none is left behind."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_run import ROOT, STEPS, command, parameters, records, run, saved_steps, small_config

from scav_jax.base.commands import add_processes
from scav_jax.base.errors import EXIT_INPUT, InputError
from scav_jax.train.loop import train
from scav_jax.training import processes

# Processes that start, import and talk to each other take seconds each.
slow = pytest.mark.slow
# A program of several processes without a model: `python -c WORKER PLAN --coordinator ...`.
WORKER = """
import argparse, os, signal, sys, time
from scav_jax.training import processes
from scav_jax.base.commands import add_processes
from scav_jax.base.errors import InputError

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("plan")
    add_processes(parser)
    arguments = parser.parse_args()
    processes.start(arguments)
    own = arguments.process_id or 0
    def fail(message):
        raise InputError(message)
    def refused(work):
        try:
            work()
        except InputError as error:
            print(error, flush=True)
    if arguments.plan == "agree":
        refused(lambda: processes.check_same({"train": {"steps": 300 + own, "devices": 0}}))
        refused(lambda: processes.all_or_none(lambda: fail("no such folder") if own else 7))
        refused(lambda: processes.all_or_none(lambda: fail("use 4 or 6")))
    if arguments.plan == "raise" and own == 1:
        processes._goodbye = lambda shell: time.sleep(5)  # on a machine that is starved
        raise ZeroDivisionError("by zero")
    if arguments.plan == "deadline":
        stop = processes.Preemption(0.5, lambda: 7)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(8)
    print("value", processes.from_first(lambda: 40 + own + 1), flush=True)
    time.sleep(0 if arguments.plan == "agree" else 60)

processes.run_program(main)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def joined(words, count=2, alone=None, **options):
    """Starts `count` processes of a command, or only the one of them that is named."""
    options = {"coordinator": f"127.0.0.1:{free_port()}", "num-processes": count} | options
    started = []
    for index in range(count) if alone is None else [alone]:
        given = options | {"process-id": index}
        own = words(index) if callable(words) else words
        own = own + [word for name, value in given.items() for word in (f"--{name}", str(value))]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(own, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
    return started


def worker(plan):
    return [sys.executable, "-c", WORKER, plan]


def ended(process, seconds):
    """The exit code and what was said, or a failure if the process hangs."""
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said, errors


@pytest.fixture
def data(trained):
    return trained / "data"


@pytest.fixture(scope="module", autouse=True)
def small_environment():
    """Every process has one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


# ---- training --------------------------------------------------------------------------------


def wait_for_step(workdir, step, started):
    deadline = time.monotonic() + 200
    while max(saved_steps(workdir), default=0) < step:
        assert all(process.poll() is None for process in started), started[0].communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_close(workdir, expected, atol):
    """Equal parameters, but for the keys' biases: attention does not depend on them (the softmax
    takes a constant away), so their gradient is rounding alone, which Adam brings to full steps."""
    ours, theirs = parameters(workdir), parameters(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        if "['key']['bias']" not in name:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)


@slow
def test_two_processes_terminated_and_killed_then_one_equal_one_uninterrupted(
    tmp_path, trained, capsys
):
    workdir = tmp_path / "two"
    words = command(trained / "data", workdir, **{"train.devices": 0})

    started = joined(words)
    wait_for_step(workdir, 3, started)
    started[1].send_signal(signal.SIGTERM)  # to one of them is enough
    (code, _, said), (other_code, _, other_said) = (ended(p, 60) for p in started)
    assert code == other_code == processes.EXIT_TERMINATED, said + other_said
    assert "2 cpu device(s) of 2 processes" in said and "R@1" not in other_said
    stopped = max(saved_steps(workdir))
    assert f"terminated: saved step {stopped}; the same command resumes" in said
    assert 3 <= stopped < STEPS - 10

    # Where process 0 does not wait for the other one, only its silence tells.
    started = joined(words, **{"heartbeat-timeout-seconds": 15})
    wait_for_step(workdir, stopped + 3, started)
    started[1].kill()
    code, _, said = ended(started[0], 90)
    ended(started[1], 10)
    assert code == processes.EXIT_LOST and "Traceback" not in said, said
    assert f"resuming at step {stopped} of {STEPS}" in said
    assert "error: process 0 of 2: another process was lost" in said
    assert max(saved_steps(workdir)) < STEPS

    train(small_config(trained / "data"), workdir)
    assert "resuming at step" in capsys.readouterr().err
    assert_close(workdir, trained / "run", 1e-5)
    mine, reference = records(workdir), records(trained / "run")
    assert [line["step"] for line in mine] == [line["step"] for line in reference]
    for line, expected in zip(mine, reference, strict=True):  # each batch has the same clips
        if line["kind"] == "train":
            np.testing.assert_allclose(line["loss"], expected["loss"], rtol=1e-5)
            np.testing.assert_allclose(line["distance_mean"], expected["distance_mean"], rtol=1e-5)


@slow
def test_processes_that_differ_all_end_and_say_in_what(tmp_path, data):
    def words(index):
        return command(data, tmp_path / "run", **{"train.steps": 40 + index, "train.devices": 0})

    for process in joined(words):
        code, _, said = ended(process, 60)
        assert code == EXIT_INPUT and "Traceback" not in said
        assert "process 1: has another set-up than process 0" in said
        assert "train.steps: expected 40, got 41" in said
    assert not (tmp_path / "run").exists()


class StopAfter(processes.Preemption):
    """A preemption after a step that the test chooses."""

    step = 0

    def __call__(self, step: int) -> bool:
        return step == StopAfter.step


@slow
def test_other_devices_at_every_resume_change_nothing(tmp_path, trained, monkeypatch):
    """Eight and one of them, against the run on one; two: two processes, above."""
    monkeypatch.setattr(processes, "Preemption", StopAfter)
    for devices, stop in ((8, 3), (1, 0)):
        StopAfter.step = stop
        config = small_config(trained / "data", **{"train.devices": devices})
        assert (train(config, tmp_path / "many") is None) == bool(stop)
    assert_close(tmp_path / "many", trained / "run", 1e-5)
    losses = [
        [r["loss"] for r in records(w) if r["kind"] == "train"]
        for w in (tmp_path / "many", trained / "run")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


# ---- without a model -------------------------------------------------------------------------


@slow
def test_processes_agree_on_documents_mistakes_and_values():
    for process in joined(worker("agree")):
        code, said, errors = ended(process, 60)
        assert code == 0, errors
        differ, mistake, mistake_of_all, value = said.splitlines()
        assert "process 1: has another set-up than process 0 (" in differ
        assert "(train.steps: expected 300, got 301)" in differ and "devices" not in differ
        assert mistake == "process 1: no such folder" and mistake_of_all == "use 4 or 6"
        assert value == "value 41"


@slow
def test_a_crash_of_one_ends_the_other_with_its_words():
    first, second = (ended(process, 60) for process in joined(worker("raise")))
    assert second[0] == 1 and "ZeroDivisionError" in second[2]
    assert first[0] == processes.EXIT_LOST
    assert "another process was lost: process 1 ended: by zero" in first[2]


@slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_silent_process_ends_the_other(lost):
    started = joined(worker("sleep"), **{"heartbeat-timeout-seconds": 2})
    assert "value 41" in started[1].stdout.readline()
    time.sleep(1.5)  # some heartbeats
    started[lost].send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    code, _, errors = ended(started[1 - lost], 60)
    started[lost].kill()
    started[lost].communicate()
    assert code == processes.EXIT_LOST, errors
    assert f"another process was lost: process {lost}" in errors and "silent for 2 s" in errors
    assert time.monotonic() - begin < 20


@slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_other_with_a_word(lost):
    started = joined(worker("sleep"), **{"heartbeat-timeout-seconds": 2})
    assert "value 41" in started[1].stdout.readline()
    time.sleep(1.5)
    started[lost].kill()
    code, _, errors = ended(started[1 - lost], 60)
    _, _, own = ended(started[lost], 10)
    assert code not in (0, None)
    assert "another process was lost" in errors and "the same command" in errors
    assert f"error: process {lost} of 2 ended without a word" in own


@slow
@pytest.mark.parametrize("alone", [0, 1])
def test_a_coordinator_that_does_not_answer_is_one_line(alone):
    begin = time.monotonic()
    options = {"coordinator-timeout-seconds": 2}
    (process,) = joined(worker("agree"), alone=alone, **options)
    code, _, errors = ended(process, 60)
    assert code == EXIT_INPUT and len(errors.strip().splitlines()) == 1, errors
    assert "within 2 s" in errors and "coordinator" in errors
    assert time.monotonic() - begin < 30


@slow
def test_a_deadline_that_passes_says_what_is_kept():
    done = run(worker("deadline"))
    assert done.returncode == processes.EXIT_TERMINATED
    assert "within the 0.5 s" in done.stderr and "step 7 is the last one saved" in done.stderr


def test_a_deadline_that_is_met_ends_nothing():
    stop = processes.Preemption(0.2, lambda: 7)
    assert not stop(7)
    signal.raise_signal(signal.SIGTERM)
    assert stop(8)
    stop.close()
    time.sleep(0.4)


# ---- the command line and clusters -----------------------------------------------------------


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_processes(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words, says",
    [
        (("--coordinator", "host"), "HOST:PORT, as in .* got 'host'"),
        (("--coordinator", "host:99999"), "HOST:PORT"),
        (("--coordinator", "host:²"), "HOST:PORT"),
        (("--coordinator-timeout-seconds", "1e9"), "more than 0, at most 604800"),
        (("--coordinator", "host:1"), "expected --num-processes and --process-id"),
        (("--num-processes", "2"), "expected --coordinator"),
        (("--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"), "0 to 1, got 2"),
        (("--coordinator", "h:1", "--num-processes", "0", "--process-id", "0"), "at least 1"),
        (("--coordinator-timeout-seconds", "0"), "more than 0"),
        (("--heartbeat-timeout-seconds", "1e9"), "more than 0, at most 604800"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(words, says):
    with pytest.raises(InputError, match=says):
        processes.start(arguments(*words))


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "environment, starts",
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # a batch script, not srun
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook in a pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
    ],
)
def test_jax_is_asked_to_join_where_a_cluster_says_so(environment, starts, monkeypatch):
    for variable in [
        name for name in os.environ if name.startswith(("SLURM", "TPU_", "OMPI", "KUBER"))
    ]:
        monkeypatch.delenv(variable)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    before = jax.config.jax_cpu_collectives_implementation
    processes.start(arguments())
    jax.config.update("jax_cpu_collectives_implementation", before)
    assert bool(asked) == starts
    assert all("coordinator_address" not in given for given in asked)


def test_one_process_alone_does_everything_itself():
    assert not processes.many() and processes.is_first()
    assert processes.from_first(lambda: 3) == 3 and processes.all_or_none(lambda: 4) == 4
    processes.check_same({"a": 1})
    processes.check_devices(3)
