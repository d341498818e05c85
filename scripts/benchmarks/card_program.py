"""What a card would be given: a training step and soft-DTW, compiled on a machine without one.

    pip install 'jax[cuda12]'
    python scripts/benchmarks/card_program.py [--card h200] [--batch 256] [--only WORD] [--out FILE]

XLA compiles for a described card (with JAX's CUDA plugin and ptxas; neither driver nor card). Read
off the optimized program, for the paper's model (62 x 62 steps, stored float16): kernels that are
written and launched in a step, the bytes that they read and write (loops by their trips, a
`dynamic-slice` by what it cuts), temporary memory, and seconds of compiling. Products go to cuBLAS:
to choose between kernels a card is needed, so nothing is chosen, and the seconds lack that. Then
the same of soft-DTW with its gradients, of pairs of latents of width 512, beside ott's.
"""

import argparse
import contextlib
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import soft_dtw
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from step_program import PAPER, paper_step

from scav_jax.base.errors import run_program
from scav_jax.base.files import write_json
from scav_jax.encoders import Encoders
from scav_jax.optimizer import make_optimizer
from scav_jax.plan import trial
from scav_jax.plan.costs import Workload

VARIANTS = {
    "bfloat16": PAPER.clone(precision="bfloat16"),
    "bfloat16, blocks": PAPER.clone(precision="bfloat16", remat="blocks"),
    "bfloat16, unrolled": PAPER.clone(precision="bfloat16", remat="unrolled"),
    "float32": PAPER,
    "float32, unrolled": PAPER.clone(remat="unrolled"),
}
# All pairs of so many clips of each stream, their visual and audio steps. ott has no tiles: of
# 16,384 pairs it would keep everything.
WARPINGS = {
    "soft-DTW 1,024 x 62 x 62": (soft_dtw.ours, 32, 62, 62),
    "soft-DTW 1,024 x 250 x 62": (soft_dtw.ours, 32, 250, 62),
    "soft-DTW 16,384 x 62 x 62": (soft_dtw.ours, 128, 62, 62),
    "ott 1,024 x 62 x 62": (soft_dtw.ott_on_latents, 32, 62, 62),
    "ott 1,024 x 250 x 62": (soft_dtw.ott_on_latents, 32, 250, 62),
}
# Of XLA's own descriptions of cards: name, cores, bytes a second, cache, clock in GHz, memory,
# shared memory of a core and of a block, compute capability.
CARDS = {
    "h200": ("H200", 132, 4.8e12, 50, 1.98, 141, 233472, 232448, "9 feature_extension: 2"),
    "v100": ("V100", 80, 0.9e12, 6, 1.53, 32, 98304, 98304, "7"),
}
FLAGS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"none": 0, "token": 0}
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
FREE |= {"fusion-done", "copy-done"}  # waiting for what is counted where it starts
WORKSPACE = "s8["  # of cuBLAS: memory, but no traffic
INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w-]+)\((.*)$")


def described(card: str) -> str:
    """The card as XLA's `GpuTargetConfigProto`."""
    name, cores, rate, cache, clock, memory, of_core, of_block, capability = CARDS[card]
    return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
        shared_memory_per_block: 49152 shared_memory_per_core: {of_core} core_count: {cores}
        threads_per_core_limit: 2048 fpus_per_core: 128 block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {rate:.0f}
        l2_cache_size: {cache * 2**20} clock_rate_ghz: {clock} device_address_bits: 64
        device_memory_size: {memory * 10**9} shared_memory_per_block_optin: {of_block}
        cuda_compute_capability {{ major: {capability} }} registers_per_core_limit: 65536
        registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
        thread_dim_limit_z: 64 name: "{name}" driver_version: "12.9.0" runtime_version: "12.9.0"
        compile_time_toolkit_version: "12.9.0" dnn_version: "9.10.2" }} platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 2 }} device_description_str: "{name}" """


def devices_of(card: str, count: int = 1) -> list[jax.Device]:
    """Devices to compile for; JAX has no public way to them without a driver."""
    from jax._src.lib import xla_client
    from jax.experimental.topologies import TopologyDescription
    from jax_plugins import xla_cuda12
    from jaxlib import _jax

    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    if not xla_client.pjrt_plugin_loaded("cuda"):
        path = Path(xla_cuda12.__file__).parent / "xla_cuda_plugin.so"
        xla_client.load_pjrt_plugin_dynamically("cuda", str(path))
        xla_client.initialize_pjrt_plugin("cuda")
    options = {"target_config": described(card), "topology": f"1x1x{count}"}
    topology = _jax.get_default_c_api_topology("cuda", "cuda", options)
    return TopologyDescription(topology._make_compile_only_devices()).devices


@contextlib.contextmanager
def for_a_card() -> Iterator[None]:
    """What is traced here has the forms that distances have on a GPU; nothing traced is kept."""
    jax.clear_caches()
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
        yield
    jax.clear_caches()


def lowered_step(work: Workload, devices: list[jax.Device]) -> jax.stages.Lowered:
    mesh = Mesh(np.array(devices), trial.sharding.make_mesh(1).axis_names)
    with for_a_card(), mock.patch.object(trial.sharding, "make_mesh", lambda _: mesh):
        return trial.lowered_step(work, make_optimizer(steps=10, warmup_steps=1))


def step(encoders: Encoders, batch: int, devices: list[jax.Device]) -> jax.stages.Lowered:
    return lowered_step(paper_step(encoders, batch, feature_bytes=(2, 2)), devices)


def lowered_warping(
    distances: Callable, clips: int, n: int, m: int, devices: list[jax.Device]
) -> jax.stages.Lowered:
    """All pairs and both gradients of their sum."""
    there = NamedSharding(Mesh(np.array(devices), ("card",)), PartitionSpec())
    latents = [
        jax.ShapeDtypeStruct((clips, steps, 512), jnp.float32, sharding=there) for steps in (n, m)
    ]
    with for_a_card():
        total = jax.value_and_grad(lambda v, a: jnp.sum(distances(v, a)), (0, 1))
        return jax.jit(total).lower(*latents)


# -- reading a program ----------------------------------------------------------------------------


def size(types: str) -> int:
    """Bytes of a type, or of all in a tuple."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", types.replace(WORKSPACE, "none["))
    shapes = ((BYTES[dtype], shape.split(",")) for dtype, shape in found)
    return sum(number * int(np.prod([int(n) for n in shape if n])) for number, shape in shapes)


class Program:
    """An optimized program, as computations of (name, type, operation, the rest, is root)."""

    def __init__(self, text: str):
        self.parts, part = {}, None
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if head := re.match(r"^(ENTRY )?%?(\S+) \(.*\{$", line):
                part = self.parts[head[2]] = []
                self.entry = head[2] if head[1] else getattr(self, "entry", "")
            elif part is not None and (found := INSTRUCTION.match(line)):
                root, *rest = found.groups()
                part.append((*rest, bool(root)))

    def kernels(self, part: str = "", trips: int = 1) -> Iterator[tuple[int, int]]:
        """(times that it is launched in a step, bytes at a time) of each kernel."""
        part = part or self.entry
        types = {name: kind for name, kind, *_ in self.parts[part]}
        for _, kind, operation, rest, _ in self.parts[part]:
            if operation == "while":
                count = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
                body = re.search(r"body=%([\w.-]+)", rest)[1]
                yield from self.kernels(body, trips * int(count[1] if count else 1))
            elif operation == "conditional":  # the first: clips of one duration
                first = re.search(r"(?:branch_computations=\{|true_computation=)%([\w.-]+)", rest)
                yield from self.kernels(first[1], trips)
            elif operation == "call":
                yield from self.kernels(re.search(r"to_apply=%([\w.-]+)", rest)[1], trips)
            elif operation in ("fusion", "fusion-start"):  # beside others, in jax 0.12
                yield trips, self.of_fusion(re.search(r"calls=%([\w.-]+)", rest)[1])
            elif operation not in FREE:
                yield trips, size(kind) + sum(size(types.get(name, "")) for name in operands(rest))

    def of_fusion(self, part: str) -> int:
        """Bytes that a fused kernel reads and writes."""
        rows = {row[0]: row for row in self.parts[part]}
        uses: dict[str, list] = {name: [] for name in rows}
        for row in rows.values():
            for place, name in enumerate(operands(row[3])):
                if name in uses:
                    uses[name].append((row, place))

        def reached(name: str) -> Iterator[tuple]:
            for row, place in uses[name]:
                yield from reached(row[0]) if row[2] == "bitcast" else [(row, place)]

        def read(name: str) -> int:
            rows_of = list(reached(name))
            cuts = all(r[2] in ("dynamic-slice", "slice") and p == 0 for r, p in rows_of)
            if rows_of and cuts:
                return min(size(rows[name][1]), sum(size(r[1]) for r, _ in rows_of))
            if rows_of and all(r[2] == "dynamic-update-slice" and p == 0 for r, p in rows_of):
                return 0
            return size(rows[name][1])

        def written(name: str) -> int:
            _, kind, operation, rest, _ = rows[name]
            if operation == "dynamic-update-slice":
                return size(rows[operands(rest)[1]][1])
            if operation in ("tuple", "bitcast"):
                return sum(written(one) for one in operands(rest))
            return size(kind)

        given = sum(read(row[0]) for row in rows.values() if row[2] == "parameter")
        return given + sum(written(row[0]) for row in rows.values() if row[4])


def operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.-]+)", rest.split("), ")[0])


def measured(lowered: Callable[[], jax.stages.Lowered]) -> dict:
    begin = time.process_time()
    compiled = lowered().compile(compiler_options=FLAGS)
    took = time.process_time() - begin
    kernels = list(Program(compiled.as_text()).kernels())
    return {
        "kernels": len(kernels),
        "launches": sum(trips for trips, _ in kernels),
        "bytes_moved": sum(trips * each for trips, each in kernels),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_cpu_s": took,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--only", default="", help="rows whose name begins with this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    devices, found = devices_of(options.card), {}
    rows = {name: partial(step, one, options.batch) for name, one in VARIANTS.items()}
    rows |= {name: partial(lowered_warping, *how) for name, how in WARPINGS.items()}
    for name, lowered in rows.items():
        if not name.startswith(options.only):
            continue
        row = found[name] = measured(partial(lowered, devices))
        print(f"{name:<26}" + ", ".join(f"{key} {value:,.4g}" for key, value in row.items()))
        if options.out:
            write_json(options.out, vars(options) | {"out": str(options.out), "rows": found})


if __name__ == "__main__":
    run_program(main)
