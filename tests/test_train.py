"""Training end to end on random features: resuming is exact, mistakes are one line."""

import contextlib
import dataclasses
import json
import os
import random as stdlib_random
import re
import shutil
import signal
import subprocess
import sys
import time

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import (
    FINGERPRINT,
    ROOT,
    SMALL,
    STEPS,
    assert_same_run,
    command,
    parameters,
    records,
    run,
    saved_steps,
    small_config,
    write_data,
)

from scav_jax.base import interrupts
from scav_jax.base.errors import EXIT_INPUT, InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.metrics import told_apart
from scav_jax.train import __main__ as train_program
from scav_jax.train import loop
from scav_jax.train.loop import train
from scav_jax.training import processes
from scav_jax.training.checkpoints import Checkpoints
from scav_jax.training.records import Records
from scav_jax.training.runs import example_batch, load_run, seen_by
from scav_jax.training.setup import set_up, widths


@pytest.fixture
def data(trained):
    return trained / "data"


@pytest.fixture
def uninterrupted(trained):
    return trained / "run"


def killed_at(step, data, workdir):
    """Runs the command in a process of its own, and kills it once a step is saved."""
    with subprocess.Popen(command(data, workdir), cwd=ROOT, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if max(saved_steps(workdir), default=0) >= step:
                break
            time.sleep(0.01)
        time.sleep(stdlib_random.Random(step).uniform(0.0, 0.05))
        process.kill()
        process.communicate(timeout=120)
    return process.returncode == -signal.SIGKILL


def at_step(step, monkeypatch, act):
    """Has the next training in this process do something before a step is over."""
    asked = processes.Preemption.__call__

    def ask(stop, now):
        if now == step:
            monkeypatch.setattr(processes.Preemption, "__call__", asked)
            act()
        return asked(stop, now)

    monkeypatch.setattr(processes.Preemption, "__call__", ask)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path, data, uninterrupted):
    """Twenty moments: scripts/benchmarks/killed_trainings.py."""
    assert killed_at(6, data, tmp_path / "run")
    assert max(saved_steps(tmp_path / "run")) < STEPS
    train(small_config(data), tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_run_that_needs_too_much_memory_goes_on_in_parts(tmp_path, data, uninterrupted):
    assert stopped_after(6, data, tmp_path / "run") is None
    run = stopped_after(0, data, tmp_path / "run", **{"train.microbatch": 4})
    theirs = parameters(uninterrupted)
    for name, value in parameters(tmp_path / "run").items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=2e-4, err_msg=name)
    assert run.config["train"]["microbatch"] == 4


def test_after_a_failure_the_same_process_goes_on_from_what_was_being_written(
    tmp_path, data, uninterrupted, monkeypatch
):
    """As in a notebook."""
    save = Checkpoints.save

    def save_and_fail(checkpoints, *args):
        save(checkpoints, *args)
        raise FloatingPointError("the step after it")

    with monkeypatch.context() as failing, pytest.raises(FloatingPointError):
        failing.setattr(Checkpoints, "save", save_and_fail)
        train(small_config(data), tmp_path / "run")
    assert len(saved_steps(tmp_path / "run")) == 1
    train(small_config(data), tmp_path / "run")
    assert_same_run(tmp_path / "run", uninterrupted)


def test_sigterm_saves_and_resumed_equals_uninterrupted(
    tmp_path, data, uninterrupted, monkeypatch, capsys
):
    words = command(data, tmp_path / "run")[3:]
    at_step(7, monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(train_program, "_silence_threads", lambda: None)
    assert train_program.main(words) == processes.EXIT_TERMINATED
    assert "terminated: saved step 7; the same command resumes" in capsys.readouterr().err
    assert train_program.main(words) == 0
    assert f"resuming at step 7 of {STEPS}" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_with_a_line_and_a_second_one_at_once(
    tmp_path, data, monkeypatch, capsys
):
    """From the middle of the steps; then a process is told twice while it compiles its step."""
    words = command(data, tmp_path / "run", **{"train.steps": 4_000, "train.checkpoint_every": 0})
    at_step(5, monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(train_program, "_silence_threads", lambda: None)
    assert train_program.main(words[3:]) == interrupts.EXIT_INTERRUPTED
    assert "interrupted: saved step 5; the same command resumes" in capsys.readouterr().err
    assert saved_steps(tmp_path / "run") == [5]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while "resuming" not in process.stderr.readline():
        assert process.poll() is None
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    begin = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == interrupts.EXIT_INTERRUPTED, said
    assert "Traceback" not in said and "terminate called" not in said
    lines = [line for line in said.splitlines() if "interrupted" in line]
    # Between two compilations the first one is answered before the second one comes, and on a
    # machine that is busy both are one.
    assert len(lines) == 1 and lines[0].startswith("interrupted"), said
    assert time.monotonic() - begin < 30  # XLA holds the lock


STUBBORN = """
import signal, time
from scav_jax.base import interrupts
with interrupts.second_ends():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:  # an orderly end that takes its time, and hears nothing
        signal.signal(signal.SIGINT, lambda *_: None)
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_ctrl_c_ends_what_the_first_one_could_not():
    words = [sys.executable, "-c", STUBBORN]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, text=True, **pipes) as process:
        for _ in range(2):
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert (process.returncode, said.strip()) == (130, interrupts.AT_ONCE)


TOLD = """
import atexit, gc, os, signal, time
from scav_jax.base.errors import run_program
def callback(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)
def collects():
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(60)
def traces():
    try:
        callback()
    except:
        pass
    time.sleep(60)
def ends():
    atexit.register(callback)
run_program({})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "code", "words"),
    [("collects", 130, interrupts.WORDS), ("traces", 130, interrupts.WORDS), ("ends", 0, "")],
)
def test_ctrl_c_is_heard_where_it_is_dropped(main, code, words):
    """As by JAX: where it collects garbage and where it traces. At exit nothing is interrupted."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-c", TOLD.format(main)]
    done = subprocess.run(command, cwd=ROOT, timeout=30, **pipes)
    assert (done.returncode, done.stdout.strip()) == (code, words)


IMPORTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt as error:
    raise ImportError("of an extension") from error
"""


@pytest.mark.slow
def test_ctrl_c_while_a_module_is_imported_is_a_line(tmp_path):
    """Jaxlib's start makes an ImportError of it, or crashes."""
    (tmp_path / "imported.py").write_text(IMPORTED)
    program = (
        "from scav_jax.base.errors import run_program; run_program(lambda: __import__('imported'))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, timeout=30, **pipes)
    assert (done.returncode, done.stdout.strip()) == (130, interrupts.WORDS)


# What `only_trainer` holds, without the seconds of its imports.
OTHER_PROCESS = """
import pathlib, sys
from scav_jax.base import errors, locks

def hold():
    with locks.only_one(pathlib.Path(sys.argv[1]), "another is at work"):
        pass

errors.run_program(hold)
"""


def test_of_two_trainers_in_one_directory_the_second_says_so(
    tmp_path, data, uninterrupted, monkeypatch
):
    refused = []

    def second():
        with pytest.raises(InputError, match=r"another `scav train` is at work in it"):
            train(small_config(data), tmp_path / "run")
        words = [sys.executable, "-c", OTHER_PROCESS, tmp_path / "run"]
        refused.append(subprocess.run(words, cwd=ROOT, capture_output=True).returncode)

    at_step(4, monkeypatch, second)
    train(small_config(data), tmp_path / "run")
    assert refused == [EXIT_INPUT]
    assert_same_run(tmp_path / "run", uninterrupted)
    with pytest.raises(InputError, match=r"config\.json: expected a folder, it is a file"):
        train(small_config(data), tmp_path / "run" / "config.json")


def stopped_after(step, data, workdir, **changes):
    """Trains in this process, and is told to stop after a step; 0 trains to the end."""
    with pytest.MonkeyPatch.context() as patch:
        if step:
            patch.setattr(processes.Preemption, "__call__", lambda _, now: now == step)
        return train(small_config(data, **changes), workdir)


def test_what_makes_a_run_the_same_is_its_content(tmp_path, data, monkeypatch):
    """Another path to the same clips resumes, other clips behind the same path do not."""
    short = {"train.steps": 10, "train.validate_every": 5, "train.log_every": 4}
    short |= {"train.checkpoint_every": 0}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopped_after(0, data, whole, **short)
    stopped_after(2, data, parts, **short)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(data, elsewhere)
    monkeypatch.chdir(tmp_path)
    (parts / "metrics.jsonl").write_bytes(b"\xff{\n" + b'{"kind": "train"\n' * 2)
    (parts / "config.json").unlink()  # the checkpoints know which run it is
    stopped_after(7, "elsewhere", parts, **short)
    stopped_after(0, elsewhere, parts, **short)
    assert records(parts) == records(whole)  # means over the steps before a stop, too
    assert json.loads((parts / "config.json").read_text())["data"]["path"] == str(elsewhere)

    shutil.rmtree(elsewhere)
    write_data(elsewhere, scale=2.0)  # the same names and lengths
    with pytest.raises(InputError, match=r"features\.content.*are not those that it was started"):
        train(small_config(elsewhere, **short), parts)
    (parts / "config.json").unlink()
    with pytest.raises(InputError, match=r"checkpoints are of another run"):
        train(small_config(elsewhere, **short), parts)
    train(small_config(data, **short), parts)


def test_a_run_starts_from_the_weights_of_another(tmp_path, data, uninterrupted):
    source = {"train.init_from": str(uninterrupted), "train.validate_every": 3}
    source |= {"train.steps": 6, "train.checkpoint_every": 0, "optimizer.learning_rate": 0.0}
    with pytest.raises(InputError, match=r"train\.steps: .*--config\.train\.init_from="):
        train(small_config(data, **{"train.steps": 40}), uninterrupted)
    assert stopped_after(3, data, tmp_path / "on", **source) is None
    # Without a learning rate the weights stay: those of the average, and not those of a seed.
    on = stopped_after(0, data, tmp_path / "on", **source)
    theirs = parameters(uninterrupted)
    for name, value in parameters(tmp_path / "on").items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-6, err_msg=name)
    assert on.config["start"]["weights"].startswith("averaged over steps")
    assert on.config["train"]["init_from"] == str(uninterrupted)
    own, before = seen_by(on.config)  # in the words of a model's card and of an evaluation
    assert own == before and own.endswith(" clips") and "data" in own
    # An unfinished run gives its latest checkpoint.
    stopped_after(2, data, tmp_path / "part", **{"train.checkpoint_every": 0})
    last = source | {"train.init_from": str(tmp_path / "part")}
    from_part = stopped_after(0, data, tmp_path / "from part", **last)
    assert from_part.config["start"]["weights"].startswith("of step 2")
    with pytest.raises(InputError, match=r"holds another run \(start"):
        train(small_config(data, **last), tmp_path / "on")
    for changes, words in (
        ({"encoders.width": 16}, r"has other towers: encoders/\S+ has the shape .* there"),
        ({"train.init_from": str(tmp_path / "none")}, r"train\.init_from: .*found none"),
    ):
        with pytest.raises(InputError, match=words):
            train(small_config(data, **source | changes), tmp_path / "new")


def test_a_finished_run_is_left_alone(data, uninterrupted, capsys, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in sorted(uninterrupted.rglob("*")) if p.is_file()}
    monkeypatch.setattr(train_program, "_silence_threads", lambda: None)
    assert train_program.main(command(data, uninterrupted)[3:]) == 0
    assert "finished" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in sorted(uninterrupted.rglob("*")) if p.is_file()}
    assert before == after


def test_the_best_checkpoints_are_averaged_and_only_they_and_the_latest_two_are_kept(uninterrupted):
    validations = [line for line in records(uninterrupted) if line["kind"] == "validation"]
    assert {v["n"] for v in validations} == {5.0}
    scores = {
        v["step"]: told_apart(0.5 * (v["sequence_v2a"] + v["sequence_a2v"]), 5)
        for v in validations
        if v["step"] > SMALL["optimizer.warmup_steps"]
    }
    best = sorted(sorted(scores, key=lambda step: (scores[step], step))[-2:])
    assert load_run(uninterrupted).steps == tuple(best)
    kept = {int(p.name) for p in (uninterrupted / "checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {*best, STEPS - 3, STEPS}  # the latest two: one to go back to


def test_no_checkpoint_of_the_warm_up_is_among_the_best():
    """However well it scores; and one query of five makes no checkpoint better than a later one."""
    score = loop._score_among_best
    assert score(1, 3, 0.9, 5) is None and score(3, 3, 0.9, 5) is None
    assert score(4, 3, 0.5, 5) == score(4, 3, 0.6, 5) > score(4, 3, 0.4, 5)
    assert score(4, 3, 0.501, 550) > score(4, 3, 0.5, 550)  # as it is


def test_a_damaged_latest_checkpoint_changes_nothing(tmp_path, data, uninterrupted, capsys):
    """The run goes on from the one before it, and ends as if nothing had happened."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "averaged")
    for file in (workdir / "checkpoints" / str(STEPS) / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    train(small_config(data), workdir)
    said = capsys.readouterr().err
    assert f"checkpoint of step {STEPS} is broken" in said
    assert f"resuming at step {STEPS - 3} of {STEPS}" in said
    assert_same_run(workdir, uninterrupted)


def test_records_hold_what_the_issue_names(uninterrupted):
    lines = [line for line in records(uninterrupted) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    raw = json.loads((uninterrupted / "metrics.jsonl").read_text().splitlines()[0])
    expected = {"loss", "temperature", "distance_spread", "recall_v2a", "recall_a2v"}
    expected |= {"gradient_norm", "learning_rate", "examples_per_s", "input_share", "skipped"}
    assert expected <= raw.keys()
    assert lines[0]["loss"] > 0 and np.isfinite([line["loss"] for line in lines]).all()
    assert list((uninterrupted / "tensorboard").glob("events*"))


def test_a_step_that_is_skipped_takes_none_of_the_schedule(
    tmp_path, data, uninterrupted, monkeypatch
):
    step_on = loop._step_on

    def skipping(*arguments):
        step, told = step_on(*arguments), []

        def second_skipped(state, batch):
            if len(told) == 1:
                ones = {name: jnp.ones((), jnp.int32) for name in ("skipped", "skipped_in_row")}
                told.append(told[0] | ones)
                return state.replace(step=state.step + 1, **ones), told[1]
            state, values = step(state, batch)
            told.append(values)
            return state, values

        return second_skipped

    monkeypatch.setattr(loop, "_step_on", skipping)
    train(small_config(data), tmp_path / "run")
    rates, usual = (
        [line["learning_rate"] for line in records(of) if line["kind"] == "train"]
        for of in (tmp_path / "run", uninterrupted)
    )
    assert rates == [usual[0], *usual[:-1]]


def test_features_that_overflow_end_the_run_with_a_diagnosis(tmp_path, data):
    changes = {"optimizer.learning_rate": 1e30, "train.log_every": 10, "train.validate_every": 20}
    changes |= {"data.buckets": 1, "train.steps": 40}
    with pytest.raises(InputError, match=r"steps in a row .* optimizer\.learning_rate"):
        train(small_config(data, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        (4, {"skipped_in_row": 4}, "error: step 4: 4 steps in a row .* fewer .*, and than all"),
        (4, {"skipped_in_row": 3}, ""),
        (2, {"weights_gradient_norm": 0.0}, r"step 2: no gradient: .* \(sequence\) .* \(dtw\)"),
        (4, {"weights_gradient_norm": 0.0}, ""),  # said once
    ],
)
def test_a_run_that_learns_nothing_says_so(step, values, words, tmp_path, capsys):
    """Of four steps with a log line every two."""
    changes = {"train.steps": 4, "train.log_every": 2, "distance.name": "dtw"}
    setup = set_up(small_config(write_data(tmp_path / "data"), **changes))
    values = {"loss": 1.0, "examples_per_s": 2.0, "skipped_in_row": 0} | values
    batch = example_batch(widths(setup))
    state = drawn.state(setup.encoders, setup.objective, optax.identity(), batch)
    with progress_bar("train", 4, "step") as bar, contextlib.closing(Records(tmp_path, 0)) as to:
        try:
            loop._log(step, values, setup, to, bar, batch, state)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
    said = [line for line in capsys.readouterr().err.splitlines() if "step " in line]
    assert re.search(words, "".join(said)) and bool(said) == bool(words)


def mistakes(tmp_path, data):
    """(what is wrong, the settings, what the one line has to say)."""
    yield "batch larger than data", {"data.batch_size": 64}, ("24 clips", "got 64")
    yield "batch not divisible", {"data.batch_size": 6, "train.devices": 4}, ("4 or 8", "got 6")
    yield "no data", {"data.path": str(tmp_path / "none")}, ("none",)
    yield "unknown split", {"data.train_split": "trian"}, ("Did you mean 'train'",)
    yield "too many devices", {"train.devices": 9}, (f"1 to {len(jax.devices())}", "got 9")
    how = {"direction": "visual_to_audio", "align": "time", "points": 1, "rise": 0.0}
    copy = write_data(tmp_path / "copy", fingerprint=FINGERPRINT | {"resampled": how})
    changes = {"data.path": str(copy), "encoders.pre_resample": None}
    yield "a copy that was resampled", changes, ("direction", "got None", "original features")
    changes = {"data.path": str(copy), "encoders.pre_points": 4}
    yield "a copy that was read at one point", changes, ("points", "got 4", "original features")
    changes = {"encoders.pre_points": 2, "encoders.pre_resample": None}
    yield "points of nothing", changes, ("pre_points", "encoders.pre_resample")
    yield "nothing is free", {"data.augment": 0.5}, ("data.augment", "got 0.5", "plain")
    yield "a share", {"data.augment": 2.0}, ("data.augment", "0 to 1", "got 2")
    yield "heads", {"encoders.heads": 5}, ("divisible by heads", "5 heads")
    yield "warm-up", {"optimizer.warmup_steps": 99}, ("warmup_steps", "got 99")


def test_mistakes_are_one_line_and_make_no_run(tmp_path, data):
    for name, changes, words in mistakes(tmp_path, data):
        with pytest.raises(InputError) as caught:
            train(small_config(data, **changes), tmp_path / "run")
        assert "\n" not in str(caught.value), name
        for word in words:
            assert word in str(caught.value), (name, str(caught.value))
        assert not (tmp_path / "run" / "checkpoints").exists(), name


def test_another_config_or_extractor_in_the_same_workdir_is_refused(tmp_path, data, uninterrupted):
    with pytest.raises(InputError, match=r"another run .*learning_rate"):
        train(small_config(data, **{"optimizer.learning_rate": 5e-4}), uninterrupted)
    other = write_data(tmp_path / "other", fingerprint={"backbone": "other", "rate_hz": 16000})
    with pytest.raises(InputError, match="backbone: expected 'random', got 'other'"):
        train(small_config(other), uninterrupted)


def test_a_nan_in_a_feature_file_names_the_clip(tmp_path, monkeypatch):
    folder = write_data(tmp_path / "data")
    # The writer refuses such a clip, so the record is spoilt as a broken disk would: on reading.
    read = store.Split.__getitem__

    def spoilt(self, index):
        from scav_jax.features.clip import check_clip

        clip = read(self, index)
        if clip.id == "clip 3":
            visual = clip.visual.copy()
            visual[1, 2] = np.nan
            check_clip(dataclasses.replace(clip, visual=visual))
        return clip

    monkeypatch.setattr(store.Split, "__getitem__", spoilt)
    with pytest.raises(InputError, match=r"clip 3.*finite.*NaN"):
        train(small_config(folder), tmp_path / "run")


@pytest.mark.slow
def test_the_program_prints_one_line_and_exits_with_2(data, tmp_path):
    done = run([*command(data, tmp_path / "run"), "--config.train.stepz=3"])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Did you mean 'steps'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved(data, tmp_path):
    """A small file system fills up during training; with more room the same command goes on."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=450k", "tmpfs", disk]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = run(command(data, disk / "run", **{"train.keep_best": 10}))
        assert done.returncode == 3, done.stderr
        assert "disk is full" in done.stderr and "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        train(small_config(data, **{"train.keep_best": 10}), disk / "run")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)  # this process may still hold a file
