"""Strict JAX for every test: what a lenient setting would let pass is an error here.

The settings are made before any test module is imported, thus before any device exists. Shapes and
dtypes in signatures are checked by jaxtyping and beartype (`addopts` in pyproject.toml).

With `JAX_PLATFORMS=cuda` the tests run on a GPU. What needs more devices than there are is left
out, with a reason that is counted at the end (`JAX_NUM_CPU_DEVICES=1` shows it on a CPU).
"""

import contextlib
import fcntl
import gc
import os
import re
import signal
from collections import Counter
from importlib.metadata import version

# Programs that tests start inherit these.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "cuda" in os.environ["JAX_PLATFORMS"].split(","):
    # Sums in one order and one way to multiply, or a resumed training is another one.
    deterministic = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{deterministic} {os.environ.get('XLA_FLAGS', '')}"
# Machine code that is made sooner and runs slower: most tests compile longer than they compute.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# One piece of machine code takes an eighth less time than many small ones, and XLA's older way to
# write fusions for a CPU three fifths of the newer one's; jaxlib 0.11 and later do not have that,
# and end at a flag that they do not know.
if version("jaxlib").startswith(("0.10.", "0.11.", "0.12.")):
    ours = "--xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10."):
        ours += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{ours} {os.environ.get('XLA_FLAGS', '')}"

import flax.struct
import jax
import jaxtyping
import lean_checks
import numpy as np
import pytest
from absl import flags

DEVICES = 8  # that tests of several devices want
LEFT_OUT = re.compile(r"Skipped: (needs \d+ devices)")  # why a test was left out
CARD_ROUNDING = 2e-5  # of float32, relative to the largest number, where no CPU multiplies

jaxtyping.jaxtyped = lean_checks.jaxtyped

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", DEVICES)))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The leaves of a pytree are not always arrays (but shapes under `eval_shape`, or shardings), and
# JAX builds the containers with those too. So the fields of `flax.struct` classes are not checked;
# the functions that take them are.
_struct_dataclass = flax.struct.dataclass


def _unchecked_dataclass(cls: type) -> type:
    cls.__no_type_check__ = True
    return _struct_dataclass(cls)


flax.struct.dataclass = _unchecked_dataclass

# A traced program is hundreds of thousands of objects that stay; looking through all of them again
# for each 700 new ones, as Python does unless told, takes a fifth of the suite's time.
gc.set_threshold(100_000, 20, 20)

# What a test writes need not outlive a power cut. Programs that tests start wait for the disk.
os.fsync = lambda handle: None

# A shell has what it starts in the background ignore Ctrl-C, and programs that tests start inherit
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Grain reads absl flags, which only `absl.app.run` parses.
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """With fewer devices than tests want, those that name eight or make a larger mesh are skipped.

    A mesh of more than `DEVICES` is a mistake that is tested everywhere.
    """
    if len(jax.devices()) >= DEVICES:
        return
    for item in items:
        if "eight_devices" in item.name:
            item.add_marker(pytest.mark.skip(reason=f"needs {DEVICES} devices"))
    from scav_jax import sharding  # late: jaxtyping changes what is imported from here on

    mesh_over = sharding._mesh_over

    def or_left_out(available, devices, where):
        if devices is not None and len(available) < devices <= DEVICES:
            pytest.skip(f"needs {devices} devices")
        return mesh_over(available, devices, where)

    sharding._mesh_over = or_left_out


def pytest_terminal_summary(terminalreporter):
    """One line on what was left out for want of devices."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = (LEFT_OUT.fullmatch(str(report.longrepr[-1])) for report in skipped)
    counts = sorted(Counter(found[1] for found in reasons if found).items())
    told = [f"{n} {why if n == 1 else why.replace('needs', 'need')}" for why, n in counts]
    if told:
        terminalreporter.write_line("left out: " + ", ".join(told))


def assert_equal_products(found, expected):
    """Products of one device by two programs, or in two shapes: equal to the bit on a CPU.

    Other devices choose by shape in which order they sum; what comes of it is near.
    """
    if jax.default_backend() == "cpu":
        np.testing.assert_array_equal(found, expected)
        return
    found, expected = np.asarray(found), np.asarray(expected)
    unit = max(CARD_ROUNDING, float(jax.numpy.finfo(expected.dtype).eps))
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=unit * largest)


@pytest.fixture
def random() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20240708)


@contextlib.contextmanager
def unchecked():
    """What signatures say is not looked at: a size that is not known yet is no `int`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def unchecked_shapes():
    """`unchecked`, for all of a test."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def optimized():
    """Machine code as users have it, for modules that ask how it rounds or what memory it needs."""
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def figures_only(monkeypatch):
    """Evaluations without report and timings, which cost most; `test_evaluate` has both."""
    from scav_jax import retrieve
    from scav_jax.report import page

    monkeypatch.setattr(page, "html", lambda *_: "")
    monkeypatch.setattr(retrieve, "_shortest", lambda _: 1.0)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of `small_run`'s data and of its finished run, for tests that only read it.

    The first worker that needs it trains; the others wait for it.
    """
    from small_run import train_once

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with open(folder / "trained.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return train_once(folder / "trained")


@pytest.fixture
def seal(monkeypatch):
    """Makes a file one that may not be read, though permissions do not bind an administrator.

    Libraries of other languages find it damaged, Python may not open it.
    """
    sealed, opened = set(), os.open

    def refuse(path, *arguments, **more):
        if str(path) in sealed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    def seal(file):
        file.write_bytes(bytes(file.stat().st_size))
        sealed.add(str(file))

    monkeypatch.setattr(os, "open", refuse)
    return seal
