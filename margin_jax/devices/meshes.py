"""Spreading work over devices: rows of a batch over a mesh, everything else on all of them.

One jitted program serves any number of devices and hosts. Images are sharded, so the compiler runs
the network on each device's rows, and makes a sum over the batch (BatchNorm, a gradient) one over
all devices, for any network and without an axis name in it. The loss, whose loops the compiler
would not share out, runs under ``shard_map`` (:func:`~margin_jax.make_train_step`).
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
T = TypeVar("T")


def check_devices() -> None:
    """Looks for the devices that ``JAX_PLATFORMS`` asks for.

    Raises:
        ValueError: if JAX finds none; its own error has sixty lines.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of CUDA it only says `assert`
        raise ValueError(
            f"JAX finds no device for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}; "
            f"JAX_PLATFORMS=cpu computes on the CPU. {error}".rstrip()
        ) from None


def make_mesh(devices: int | None, batch_size: int, *, what: str = "batch") -> Mesh:
    """A mesh of one axis, "data".

    Args:
        devices: how many; of a multi-host job all of them. Default: all accelerators, or as many of
            them as divide the batch; one CPU, whose virtual devices would share its cores.
        batch_size: rows of the global batch, or of what else is shared.
        what: its name, in what is said.

    Warns:
        UserWarning: if devices stay idle because they do not divide the batch.

    Raises:
        ValueError: if there are not as many, they do not divide the batch, or a job of several
            processes would not use all of its devices.
    """
    present = jax.devices()
    if jax.process_count() > 1 and devices not in (None, len(present)):
        raise ValueError(
            f"a job of {jax.process_count()} processes uses all of its {len(present)} devices; "
            f"got devices {devices}"
        )
    if devices is None:
        devices = len(present)
        if jax.process_count() == 1:
            limit = 1 if present[0].platform == "cpu" else devices
            devices = max(n for n in range(1, limit + 1) if batch_size % n == 0)
            if devices < limit:
                warnings.warn(
                    f"a {what} of {batch_size} rows is shared by {devices} of {limit} devices, as "
                    "more do not divide it",
                    stacklevel=2,
                )
    if devices < 1:
        raise ValueError(f"devices must be at least 1; got {devices}")
    if devices > len(present):
        raise ValueError(f"devices must be at most {len(present)}, all there are; got {devices}")
    if batch_size % devices:
        raise ValueError(
            f"a {what} of {batch_size} rows cannot be shared equally by {devices} devices"
        )
    return _mesh(present[:devices])


def local_mesh() -> Mesh:
    """One device of this process."""
    return _mesh(jax.local_devices()[:1])


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def gathered(array: Array) -> Array:
    """The same array, whole on every device where axes of the type Explicit had it in shares.

    On these, the default of ``jax.make_mesh``, JAX refuses to sort or to gather along what is
    shared, rather than choose where the result is to be. Its gradient comes back in shares.
    """
    mesh = jax.typeof(array).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return array
    whole: Array = jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec()))
    return whole


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int[n]: those rows of a global batch that lie on devices of this process, in order."""
    parts = NamedSharding(mesh, PartitionSpec(AXIS)).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.sort(np.concatenate([rows[index] for index in parts.values()]))


def place_rows(rows: np.ndarray, mesh: Mesh, batch_size: int | None = None) -> Array:
    """A global batch of which each device holds an equal part.

    Args:
        rows: the whole batch, whatever the process; with `batch_size`, :func:`own_rows` of it.
        mesh: of :func:`make_mesh`.
        batch_size: rows of the global batch.
    """
    size = len(rows) if batch_size is None else batch_size
    own = np.arange(size) if batch_size is None else own_rows(mesh, size)

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        wanted = np.arange(size)[index[0] if index else slice(None)]
        found: np.ndarray = rows[np.searchsorted(own, wanted)]
        return found

    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, part)


def place_copies(tree: T, mesh: Mesh) -> T:
    """The same arrays on every device of every host."""
    # Not `device_put`, which refuses to place random keys on the devices of other hosts.
    placed: T = _copy(mesh)(tree)
    return placed


@functools.cache
def _copy(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
