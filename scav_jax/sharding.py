"""The device mesh, and where arrays live on it. The only file that names a PartitionSpec.

One axis, "data": the batch is cut along it, parameters are on every device. The loss is written
for the global batch, so `jit` adds the communication that this needs and nothing else changes.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scav_jax.errors import InputError

DATA_AXIS = "data"


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices, or all of them."""
    available = jax.devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise InputError(
            f"devices: expected 1 to {len(available)} ({available[0].platform}), got {count}"
        )
    return Mesh(np.asarray(available[:count]), (DATA_AXIS,))


def local_mesh(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices of this process, or all of them."""
    available = jax.local_devices()
    count = len(available) if devices is None else devices
    if not 1 <= count <= len(available):
        raise InputError(
            f"devices: expected 1 to {len(available)} ({available[0].platform}) in this process, "
            f"got {count}"
        )
    return Mesh(np.asarray(available[:count]), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same whole array on every device: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis cut over the devices: every leaf of a batch."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises `InputError` unless every device gets the same number of clips."""
    devices = mesh.size
    if batch_size % devices:
        lower = batch_size // devices * devices
        nearest = " or ".join(str(size) for size in (lower, lower + devices) if size > 0)
        raise InputError(
            f"data.batch_size: expected a multiple of the {devices} devices, got {batch_size}; "
            f"use {nearest}"
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
