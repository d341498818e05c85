"""Accelerators: memory and peaks, as their makers publish them."""

from typing import NamedTuple

GIB = 2**30
TERA = 1e12


class Device(NamedTuple):
    """One accelerator: memory in bytes, dense peaks in FLOP/s by what products are computed in.

    JAX takes a share of its memory, on an NVIDIA card three quarters unless it is told otherwise.
    """

    name: str
    memory: float
    float32: float
    tensorfloat32: float
    bfloat16: float | None
    share: float = 0.75


# Dense peaks, and memory as the driver reports it. NVIDIA: data sheets of V100 SXM2 (2017), A100
# SXM (2020), H100 SXM and H200 SXM (2022, 2023; their figures "with sparsity" halved). A V100 has
# neither TF32 nor bfloat16. TPU: Google Cloud's pages "TPU v4" and "TPU v5e"; a float32 product
# (Precision.HIGHEST) is six bfloat16 passes of the matrix unit there, and the default is one.
_KNOWN = (
    Device("v100", 32 * GIB, 15.7 * TERA, 15.7 * TERA, None),
    Device("a100", 80 * GIB, 19.5 * TERA, 156 * TERA, 312 * TERA),
    Device("h100", 80 * GIB, 66.9 * TERA, 494.7 * TERA, 989.4 * TERA),
    Device("h200", 140 * GIB, 66.9 * TERA, 494.7 * TERA, 989.4 * TERA),
    Device("tpu-v4", 32 * GIB, 275 / 6 * TERA, 275 * TERA, 275 * TERA, share=1.0),
    Device("tpu-v5e", 16 * GIB, 197 / 6 * TERA, 197 * TERA, 197 * TERA, share=1.0),
)
DEVICES = {device.name: device for device in _KNOWN}
EFFICIENCY = 0.4  # of the peak, where nothing was measured
# What was: the paper's model, batch 256 in float32, 1,024 in bfloat16, by code that had its blocks
# one after the other, and so many more kernels a step than there are now (docs/results.md).
MEASURED = {("h200", "float32"): 0.52, ("h200", "bfloat16"): 0.19}
STALE = "measured with an earlier step, before its blocks were a loop, and not since"
ASSUMED = "assumed: nothing was measured on it"
GIVEN = "as given"


def efficiency_of(name: str, precision: str) -> tuple[float, str]:
    """The share of a device's peak that a step is planned with, and where it is from."""
    if (name, precision) in MEASURED:
        return MEASURED[name, precision], STALE
    return EFFICIENCY, ASSUMED
