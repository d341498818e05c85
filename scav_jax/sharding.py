"""The device mesh, and where arrays live on it. The only file that names a PartitionSpec.

One axis, "data": the batch is cut along it; parameters and the optimizer's state are on every
device, or cut along it as well. The loss is written for the global batch, so `jit` adds the
communication that this needs and nothing else changes.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from scav_jax.base.errors import InputError
from scav_jax.base.ranges import check_multiple, divisors

DATA_AXIS = "data"


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices, or all of them."""
    return _mesh_over(jax.devices(), devices, "")


def local_mesh(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices of this process, or all of them."""
    return _mesh_over(jax.local_devices(), devices, " in this process")


def _mesh_over(available: list[jax.Device], devices: int | None, where: str) -> Mesh:
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise InputError(
            f"devices: expected 1 to {len(available)} ({available[0].platform}){where}, got {count}"
        )
    return Mesh(np.asarray(available[:count]), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis cut over the devices: every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def all_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """For each leaf of a tree of arrays or shapes: whole on every device."""
    return jax.tree.map(lambda _: replicated(mesh), tree)


def cut_along_largest(tree: PyTree, mesh: Mesh) -> PyTree:
    """For each leaf of a tree of arrays or shapes: its largest axis cut over the devices.

    An axis must be a multiple of the devices to be cut; a leaf that has no such axis is replicated.
    """

    def place(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        if not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, DATA_AXIS))

    return jax.tree.map(place, tree)


def on_own_rows(
    function: Callable[[PyTree, PyTree], PyTree], mesh: Mesh | None, *, summed: bool = False
) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(whole, rows)`, run by every device on its own rows, without communication.

    Args:
      function: of a tree that every device has as a whole, and a tree whose leaves are cut along
        their first axis; returns rows, or with `summed` what is to be added up over devices.
      mesh: the devices; None calls the function as it is.
      summed: whether results are sums over rows; one communication at the end adds them up.
    """
    if mesh is None or mesh.size == 1:
        return function

    def run(whole, rows):
        result = function(whole, rows)
        return jax.lax.psum(result, DATA_AXIS) if summed else result

    # Without check_vma the gradient inside is the device's own; with it, JAX adds one up over the
    # devices wherever it is computed, thus once a microbatch.
    whole, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(whole, rows),
        out_specs=whole if summed else rows,
        check_vma=False,
    )


def against_all(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], mesh: Mesh | None
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """`function(rows, others)`, run by every device for its own rows against all of the others.

    The others are gathered once, and their gradient is summed and cut once, whatever loops and
    branches the function has.

    Args:
      function: of two trees whose leaves have the batch first; returns what has the rows first, and
        what follows from all of the others only.
      mesh: over which the batch is cut; None calls the function as it is.
    """
    if mesh is None or mesh.size == 1:
        return function

    def run(rows, others):
        gather = lambda x: jax.lax.all_gather(x, DATA_AXIS, tiled=True)  # noqa: E731
        return function(rows, jax.tree.map(gather, others))

    whole, rows = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.shard_map(
        run, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, whole), check_vma=False
    )


def check_cuts(batch_size: int, microbatch: int, devices: int) -> None:
    """Raises `InputError` unless batch and microbatches give every device as many clips.

    Args:
      batch_size: clips in a global batch.
      microbatch: clips that are encoded at a time, over all devices; 0 is off.
      devices: how many.
    """
    check_multiple("data.batch_size", batch_size, devices, "devices")
    valid = [size for size in divisors(batch_size) if size % devices == 0]
    if microbatch == 0 or microbatch in valid:
        return
    below = [size for size in valid if size < microbatch][-1:]
    above = [size for size in valid if size > microbatch][:1]
    nearest = " or ".join(str(size) for size in below + above)
    raise InputError(
        f"train.microbatch: expected 0 or a divisor of data.batch_size {batch_size} that is a "
        f"multiple of the {devices} devices, got {microbatch}; use {nearest}"
    )


def put_batch(batch, mesh: Mesh):
    """This process's rows of a batch as global arrays on the mesh."""
    sharding = batch_sharded(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_replicated(tree, mesh: Mesh):
    """A tree of arrays on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def map_shards(function: Callable, mesh: Mesh, shared: int, cut: int) -> Callable:
    """`function` on each device's own rows; its results `[rows, n]` side by side, `[rows, all n]`.

    Args:
      function: of arrays that every device has whole, then of arrays cut along the leading axis.
      mesh: the devices.
      shared: how many of the former there are.
      cut: how many of the latter.
    """
    specs = (PartitionSpec(),) * shared + (PartitionSpec(DATA_AXIS),) * cut
    out = PartitionSpec(None, DATA_AXIS)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
