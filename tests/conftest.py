"""Strict JAX for every test: what a lenient setting would let pass is an error here.

The settings are made before any test module is imported, thus before any device exists. Shapes and
dtypes in signatures are checked by jaxtyping and beartype (`addopts` in pyproject.toml).
"""

import os

# Programs that tests start inherit this. JAX_PLATFORMS=cuda runs the tests on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.struct
import jax
import numpy as np
import pytest
from absl import flags

DEVICES = 8

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

# Grain reads absl flags, which only `absl.app.run` parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture
def random() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20240708)


@pytest.fixture(scope="module")
def compiled_sooner():
    """Machine code that is made sooner and runs slower, here and in the programs that tests start.

    For modules that compare the numbers of large programs with those of others, which then are
    compiled so too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # the next module's code is optimized
