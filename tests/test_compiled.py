"""Memory and communication of compiled programs, against programs whose figures are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from communication import RING, communication_bytes
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scav_jax.plan.compiled import memory_of

DEVICES = 4
SIZE = 24  # floats on each device
BYTES = 4 * SIZE
ROWS = P("x")


@pytest.fixture(scope="module")
def mesh():
    if len(jax.devices()) < DEVICES:
        pytest.skip(f"needs {DEVICES} devices")
    return Mesh(np.asarray(jax.devices()[:DEVICES]), ("x",))


def compiled(mesh, function, out=ROWS, more=()):
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(P("x"), *(P() for _ in more)), out_specs=out, check_vma=False
    )
    x = jax.ShapeDtypeStruct((DEVICES * SIZE,), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    return jax.jit(mapped).lower(x, *more).compile()


def only(kind, size):
    return {name: size if name == kind else 0 for name in RING}


def permute(x):
    return jax.lax.ppermute(x, "x", [(i, (i + 1) % DEVICES) for i in range(DEVICES)])


COLLECTIVES = {
    "all-gather": (lambda x: jax.lax.all_gather(x, "x", tiled=True), P(), (DEVICES - 1) * BYTES),
    "all-reduce": (lambda x: jax.lax.psum(x, "x"), P(), 2 * BYTES * (DEVICES - 1) // DEVICES),
    "reduce-scatter": (
        lambda x: jax.lax.psum_scatter(x, "x", tiled=True),
        P("x"),
        BYTES * (DEVICES - 1) // DEVICES,
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True),
        P("x"),
        BYTES * (DEVICES - 1) // DEVICES,
    ),
    "collective-permute": (permute, P("x"), BYTES),
}


@pytest.mark.parametrize("kind", RING)
def test_a_collective_is_what_a_device_receives_in_a_ring(mesh, kind):
    function, out, expected = COLLECTIVES[kind]
    assert communication_bytes(compiled(mesh, function, out)) == only(kind, expected)


def test_a_loop_counts_as_often_as_it_runs(mesh):
    def five(x):
        return jax.lax.scan(lambda x, _: (permute(jnp.sin(x)), None), x, length=5)[0]

    assert communication_bytes(compiled(mesh, five)) == only("collective-permute", 5 * BYTES)

    def nested(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: five(x) + 1, x)

    assert communication_bytes(compiled(mesh, nested)) == only("collective-permute", 15 * BYTES)


def test_a_loop_whose_count_is_data_takes_what_is_given(mesh):
    def some(x, count):
        return jax.lax.fori_loop(0, count, lambda _, x: permute(jnp.sin(x)), x)

    program = compiled(mesh, some, more=(jax.ShapeDtypeStruct((), jnp.int32),))
    assert communication_bytes(program) == only("collective-permute", BYTES)
    assert communication_bytes(program, unknown_trips=7) == only("collective-permute", 7 * BYTES)


def test_of_branches_the_one_that_communicates_most_counts(mesh):
    def one(x, which):
        branches = [lambda x: x + 1, lambda x: permute(permute(x) * 2), permute]
        return jax.lax.switch(which, branches, x)

    program = compiled(mesh, one, more=(jax.ShapeDtypeStruct((), jnp.int32),))
    assert communication_bytes(program) == only("collective-permute", 2 * BYTES)


def test_no_devices_to_talk_to_is_no_communication():
    program = jax.jit(lambda x: jnp.sum(x * x)).lower(jnp.ones(SIZE)).compile()
    assert communication_bytes(program) == dict.fromkeys(RING, 0)


def test_groups_and_asynchronous_forms_are_read_in_every_notation():
    """As other versions and devices write the same; a pair of two devices each."""
    for groups in (
        "{{0,1},{2,3}}",
        "[2,2]<=[4]",
        "mesh['a'=2,'b'=2] {'b'}",
        "mesh['a'=4] {'a':(1)2}",
    ):
        text = f"""ENTRY %main (x: bf16[3,5]) -> bf16[6,5] {{
  %x = bf16[3,5]{{1,0}} parameter(0)
  %start = (bf16[3,5]{{1,0}}, bf16[6,5]{{1,0}}) all-gather-start(%x), replica_groups={groups}
  ROOT %done = bf16[6,5]{{1,0}} all-gather-done(%start)
}}"""
        assert communication_bytes(text) == only("all-gather", 2 * 15)


def test_memory_is_of_arguments_results_and_what_is_between():
    def function(x):
        return jnp.sort(x * 2.0) @ x

    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    memory = memory_of(jax.jit(function).lower(x).compile())
    assert memory.arguments == memory.results == 64 * 64 * 4
    assert memory.temporary >= 64 * 64 * 4
    assert memory.total == memory.arguments + memory.results + memory.temporary
    donated = memory_of(jax.jit(function, donate_argnums=0).lower(x).compile())
    assert donated.results == 0 or jax.default_backend() != "cpu"
