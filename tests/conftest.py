"""Strict JAX for every test: what a lenient setting would let pass is an error here.

The settings are made before any test module is imported, thus before any device exists. Shapes and
dtypes in signatures are checked by jaxtyping and beartype (`addopts` in pyproject.toml).
"""

import fcntl
import gc
import os
import signal
from importlib.metadata import version

# Programs that tests start inherit these. JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
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

DEVICES = 8

jaxtyping.jaxtyped = lean_checks.jaxtyped

jax.config.update("jax_num_cpu_devices", DEVICES)
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


@pytest.fixture
def random() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20240708)


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
