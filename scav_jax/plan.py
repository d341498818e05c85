"""A plan before the run: `python -m scav_jax.plan --config configs/vggsound.py --device v100`.

Memory, FLOPs, time and input of a config by arithmetic from its modules: nothing is computed, no
data need be there. `memory` counts what the backward pass keeps as XLA keeps it (which is more than
the formulas need: dropout's random bits, LayerNorm's scale at full size), so other compilers and
fused kernels need less. `--compile` asks XLA itself, without running anything.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax import datasets, sharding
from scav_jax.batches import plan_training
from scav_jax.checkpoints import build, example_batch, parameter_shapes
from scav_jax.compiled import memory_of
from scav_jax.config import ArgumentParser, parse, unpack
from scav_jax.encoders import GATE_WIDTH, Encoders
from scav_jax.errors import InputError, did_you_mean, run_program
from scav_jax.files import write_json
from scav_jax.optimizer import make_optimizer
from scav_jax.sequences import AudioVisual, Sequences
from scav_jax.train_step import Objective, init_state, make_train_step, state_shardings

FLOAT = 4  # bytes
GIB, TERA = 2**30, 1e12


class Device(NamedTuple):
    """One accelerator: memory in bytes, dense peaks in FLOP/s by what products are computed in."""

    memory: float
    float32: float
    tensorfloat32: float
    bfloat16: float | None


# Dense peaks, and memory as the driver reports it. NVIDIA: data sheets of V100 SXM2 (2017), A100
# SXM (2020), H100 SXM and H200 SXM (2022, 2023; their figures "with sparsity" halved). A V100 has
# neither TF32 nor bfloat16. TPU: Google Cloud's pages "TPU v4" and "TPU v5e"; a float32 product
# (Precision.HIGHEST) is six bfloat16 passes of the matrix unit there, and the default is one.
DEVICES = {
    "v100": Device(32 * GIB, 15.7 * TERA, 15.7 * TERA, None),
    "a100": Device(80 * GIB, 19.5 * TERA, 156 * TERA, 312 * TERA),
    "h100": Device(80 * GIB, 66.9 * TERA, 494.7 * TERA, 989.4 * TERA),
    "h200": Device(140 * GIB, 66.9 * TERA, 494.7 * TERA, 989.4 * TERA),
    "tpu-v4": Device(32 * GIB, 275 / 6 * TERA, 275 * TERA, 275 * TERA),
    "tpu-v5e": Device(16 * GIB, 197 / 6 * TERA, 197 * TERA, 197 * TERA),
}
EFFICIENCY = 0.4  # of the peak, where nothing was measured

# VGGSound with the paper's features (section IV): 10 s at 25 frames a second, CLIP and BEATs.
PAPER = {"visual": (250, 768), "audio": (62, 6144)}
PAPER_CLIPS = 153_000


@dataclass(frozen=True)
class Workload:
    """One training step, as far as its cost goes.

    Attributes:
      encoders, objective: what is trained.
      batch: clips in a global batch.
      visual, audio: (steps, width) of the padded features.
      microbatch: clips encoded at a time, over all devices; 0 is all, without gradient caching.
      devices: over how many the batch is cut.
      feature_bytes: of one number of a batch on the device: 2 (as stored) or 4.
      batches: how many batches are on the devices at a time (2: double buffering).
      distance_bytes: at most this much working memory for distances.
      shard_params, shard_optimizer: cut over devices instead of replicated.
    """

    encoders: Encoders
    objective: Objective
    batch: int
    visual: tuple[int, int] = PAPER["visual"]
    audio: tuple[int, int] = PAPER["audio"]
    microbatch: int = 0
    devices: int = 1
    feature_bytes: int = FLOAT
    batches: int = 2
    distance_bytes: int = GIB
    shard_params: bool = False
    shard_optimizer: bool = False

    @property
    def tower_steps(self) -> dict[str, int]:
        """Steps that each tower sees: 'pre' resampling brings both streams to one length."""
        steps = {"visual": self.visual[0], "audio": self.audio[0]}
        to = {"visual_to_audio": "audio", "audio_to_visual": "visual"}
        target = to.get(self.encoders.pre_resample)
        return steps if target is None else dict.fromkeys(steps, steps[target])


def parameters(work: Workload) -> int:
    """How many numbers are learned, both towers and temperatures."""
    widths = {"visual": work.visual[1], "audio": work.audio[1]}
    shapes = parameter_shapes(work.encoders, work.objective, widths)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


# ---- floating point operations ------------------------------------------------------------------


class Flops(NamedTuple):
    """Of one step over all devices, a multiplication and an addition counted as two."""

    towers_forward: float
    towers_backward: float
    recomputed: float
    distance: float
    loss: float

    @property
    def total(self) -> float:
        return sum(self)


def _tower_products(encoders: Encoders, steps: int, feature_width: int, name: str):
    """Multiply-adds for one clip: of the tower, of its first layer, of one block."""
    width, hidden = encoders.width, getattr(encoders, f"{name}_hidden")
    block = (
        4 * width * width  # query, key, value, out
        + 2 * steps * width  # logits, and the mix of values
        + width * GATE_WIDTH  # each head's gates from its own part of the query
        + 2 * width * encoders.feedforward
    )
    first = feature_width * hidden
    position = 128 * width * width // 16 if encoders.conv_position else 0
    rest = hidden * width + position + getattr(encoders, f"{name}_blocks") * block
    return steps * (first + rest), steps * first, steps * block


def flops(work: Workload) -> Flops:
    """Products of matrices, which are nearly all; element by element it is 1-3 % more at width 512.

    Backward is two products for one of forward, less the gradient of the features, which nobody
    asks for. Gradient caching adds one forward pass, rematerialisation that of the blocks. The loss
    is counted as about 100 operations an entry of D.
    """
    forward = first = blocks = 0.0
    for name, (_, feature_width) in (("visual", work.visual), ("audio", work.audio)):
        steps = work.tower_steps[name]
        of_all, of_first, of_block = _tower_products(work.encoders, steps, feature_width, name)
        forward, first = forward + of_all, first + of_first
        blocks += getattr(work.encoders, f"{name}_blocks") * of_block
    scale = 2.0 * work.batch
    again = scale * (forward * bool(work.microbatch) + blocks * bool(work.encoders.remat))
    return Flops(
        towers_forward=scale * forward,
        towers_backward=scale * (2 * forward - first),
        recomputed=again,
        distance=_distance_flops(work),
        loss=100.0 * len(work.objective.losses) * work.batch**2,
    )


def _distance_flops(work: Workload) -> float:
    """Forward and backward of all pairs; for Wasserstein the products and its 50 iterations."""
    width, pairs = work.encoders.width, float(work.batch) ** 2
    n, m = work.tower_steps["visual"], work.tower_steps["audio"]
    total = 0.0
    if "aggregation" in work.objective.losses:
        total += 6.0 * pairs * width
    if "sequence" not in work.objective.losses:
        return total
    if work.objective.distance == "euclidean":
        target = work.objective.distance_options.get("resample", "visual_to_audio")
        steps = min(n, m) if target == "visual_to_audio" else n
        return total + 6.0 * pairs * steps * width
    per_cell = {"soft_dtw": 40.0, "dtw": 10.0}.get(work.objective.distance, 400.0)
    return total + pairs * n * m * (6.0 * width + per_cell)


# ---- memory -------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes on each device at the fullest moment of a step."""

    parameters: float
    optimizer: float
    gradients: float
    features: float
    activations: float
    latents: float
    loss: float

    @property
    def total(self) -> float:
        return sum(self)


# What the gradient of one block needs, in arrays of each size, as XLA keeps it.
BLOCK_WIDTH = 9  # both inputs and outputs of norms, q twice (in two layouts), k, v, mixed values
NORM_SCALES = 4  # both norms' scales at full size, twice; float32 in any precision
BLOCK_HIDDEN = 2  # before GELU and after it
BLOCK_MAPS = 1  # [T, T] for each head: weights after dropout
FLOAT_MAPS = 2  # logits and gains, float32 in any precision
DROPPED_BYTES = 8  # of every number that dropout sees: two words of random bits, not one bit


def _block_bytes(encoders: Encoders, steps: int) -> float:
    """What is kept of one block for one clip."""
    number = 2 if encoders.precision == "bfloat16" else FLOAT
    width, hidden = steps * encoders.width, steps * encoders.feedforward
    maps = encoders.heads * steps * steps
    dropped = (2 * width + maps) * DROPPED_BYTES if encoders.dropout else 0
    always_float32 = FLOAT * (NORM_SCALES * width + FLOAT_MAPS * maps)
    by_precision = number * (BLOCK_WIDTH * width + BLOCK_HIDDEN * hidden + BLOCK_MAPS * maps)
    return always_float32 + by_precision + dropped


def _tower_bytes(encoders: Encoders, steps: int, feature_width: int, name: str) -> float:
    """What is kept of one tower for one clip, at the fullest moment: when backward begins."""
    number = 2 if encoders.precision == "bfloat16" else FLOAT
    width, hidden = steps * encoders.width, steps * getattr(encoders, f"{name}_hidden")
    dropped = (width + hidden) * DROPPED_BYTES if encoders.dropout else 0
    projection = number * (BLOCK_HIDDEN * hidden + 2 * width + steps * feature_width) + dropped
    norm_and_latents = FLOAT * 5 * width
    blocks = getattr(encoders, f"{name}_blocks")
    block = _block_bytes(encoders, steps)
    kept = blocks * number * width + block if encoders.remat and blocks else blocks * block
    return projection + norm_and_latents + kept


def memory(work: Workload) -> Memory:
    """What each device holds at the fullest moment, by arithmetic (see the module).

    Without gradient caching that is when the backward pass begins: all activations are there, and
    gradients take the place of what they free. With it, the second pass over one microbatch,
    beside the latents of the whole batch and their gradients.
    """
    count = parameters(work)
    rows = work.batch / work.devices
    encoded = (work.microbatch or work.batch) / work.devices
    kept = lambda sharded: 1 / work.devices if sharded else 1.0  # noqa: E731
    streams = (("visual", work.visual), ("audio", work.audio))
    activations = encoded * sum(
        _tower_bytes(work.encoders, work.tower_steps[name], width, name)
        for name, (_, width) in streams
    )
    features = rows * sum(steps * width for _, (steps, width) in streams) * work.feature_bytes
    latents = {n: FLOAT * work.tower_steps[n] * work.encoders.width for n, _ in streams}
    whole_audio = latents["audio"] * work.batch if work.devices > 1 else 0.0
    both = rows * sum(latents.values())
    return Memory(
        parameters=FLOAT * count * kept(work.shard_params),
        optimizer=2 * FLOAT * count * kept(work.shard_optimizer),
        gradients=FLOAT * count * (2 if work.microbatch else 1),
        features=work.batches * features,
        activations=activations,
        latents=(3 if work.microbatch else 1) * both + 2 * whole_audio,
        loss=_loss_bytes(work, rows),
    )


LOSS_MATRICES = 11  # D, z-scores, logits, softmaxes, what metrics read: as XLA has them at B 2,048


def _loss_bytes(work: Workload, rows: float) -> float:
    """The `[rows, B]` matrices of the loss, and the distances' working memory."""
    matrices = FLOAT * LOSS_MATRICES * rows * work.batch * len(work.objective.losses)
    if "sequence" not in work.objective.losses or work.objective.distance == "euclidean":
        return matrices
    n, m = work.tower_steps["visual"], work.tower_steps["audio"]
    return matrices + min(work.distance_bytes, 8 * FLOAT * rows * work.batch * n * m)


def largest_batch(work: Workload, limit: float) -> int:
    """The largest multiple of devices (and of the microbatch) that fits in `limit` bytes; or 0."""
    unit = work.microbatch or work.devices

    def fits(units: int) -> bool:
        return memory(dataclasses.replace(work, batch=units * unit)).total <= limit

    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * unit


# ---- what a config asks for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """The features that a config trains on.

    Attributes:
      clips: of the training split.
      clip_bytes: mean, float16 as stored.
      visual, audio: (steps, width) of the largest padded shape.
      source: where these figures are from.
    """

    clips: int
    clip_bytes: float
    visual: tuple[int, int]
    audio: tuple[int, int]
    source: str


def stored_features(config: Mapping) -> Stored:
    """Of the config's data set where it is on disk, else of VGGSound with the paper's features."""
    data = config["data"]
    if not (Path(data["path"]) / datasets.ABOUT).is_file():
        numbers = sum(steps * width for steps, width in PAPER.values())
        source = f"{data['path']} is not there: the paper's VGGSound is assumed"
        return Stored(PAPER_CLIPS, 2.0 * numbers, *PAPER.values(), source)
    split = datasets.read(Path(data["path"]), data["train_split"])
    widths = split.visual_width, split.audio_width
    plan = plan_training(
        split,
        batch_size=min(data["batch_size"], len(split)),
        seed=config["seed"],
        align=data["align"],
        buckets=data["buckets"],
    )
    largest = plan.paddings[-1]
    means = split.visual_lengths.mean(), split.audio_lengths.mean()
    clip_bytes = 2.0 * float(np.dot(means, widths))
    visual, audio = zip(largest, widths, strict=True)
    return Stored(len(split), clip_bytes, visual, audio, f"{data['path']}, {len(split):,} clips")


def workload(config: Mapping, devices: int, stored: Stored) -> Workload:
    """The step that a resolved config describes, on so many devices."""
    train, data = config["train"], config["data"]
    encoders, objective = build(config)
    settings = {key: train[key] for key in ("precision", "remat") if key in train}
    work = Workload(
        encoders=encoders.clone(**settings),
        objective=objective,
        batch=data["batch_size"],
        visual=stored.visual,
        audio=stored.audio,
        microbatch=train.get("microbatch", 0),
        devices=devices,
        feature_bytes=2 if data.get("features", "float32") == "float16" else FLOAT,
        batches=1 + data.get("prefetch", 1),
        distance_bytes=train["distance_memory_bytes"],
        shard_params=train.get("shard_params", False),
        shard_optimizer=train.get("shard_optimizer", False),
    )
    _check_divides(work)
    return work


def _check_divides(work: Workload) -> None:
    for name, size, unit in (
        ("data.batch_size", work.batch, work.microbatch or work.devices),
        ("train.microbatch", work.microbatch, work.devices),
    ):
        if size % unit:
            nearest = [s for s in (size // unit * unit, -(-size // unit) * unit) if s]
            raise InputError(
                f"{name}: expected a multiple of {unit} ({work.devices} devices, microbatch "
                f"{work.microbatch}), got {size}; use {' or '.join(map(str, nearest))}"
            )


def step_seconds(work: Workload, device: Device, efficiency: float) -> float:
    """Time of a step at a share of the peaks; distances and loss are float32 in any precision."""
    peak = getattr(device, work.encoders.precision)
    if not peak:
        raise InputError(
            f"train.precision: expected one that the device computes in, it has no "
            f"{work.encoders.precision}; use float32"
        )
    count = flops(work)
    exact = count.distance + count.loss
    seconds = (count.total - exact) / peak + exact / device.float32
    return seconds / (work.devices * efficiency)


def ways(work: Workload) -> dict[str, Workload]:
    """The config's step with and without gradient caching and rematerialisation."""
    part = work.microbatch or min(work.batch, 32 * work.devices)
    part = math.gcd(work.batch, part) if work.batch % part else part

    def changed(microbatch: int, remat: bool) -> Workload:
        encoders = work.encoders.clone(remat=remat)
        return dataclasses.replace(work, microbatch=microbatch, encoders=encoders)

    return {
        "plain": changed(0, False),
        "remat": changed(0, True),
        f"microbatch {part}": changed(part, False),
        f"microbatch {part}, remat": changed(part, True),
    }


def report(
    config: Mapping, work: Workload, stored: Stored, device: Device, efficiency: float
) -> dict:
    """Every figure of the plan, as a document."""
    seconds, held = step_seconds(work, device, efficiency), memory(work)
    rows = {}
    for name, way in ways(work).items():
        rows[name] = {
            "memory_bytes": memory(way).total,
            "largest_batch": largest_batch(way, device.memory),
            "flops": flops(way).total,
            "steps_per_s": 1 / step_seconds(way, device, efficiency),
        }
    return {
        "parameters": parameters(work),
        "batch": work.batch,
        "devices": work.devices,
        "precision": work.encoders.precision,
        "features": dataclasses.asdict(stored),
        "memory_bytes": held._asdict() | {"total": held.total},
        "available_bytes": device.memory,
        "flops": flops(work)._asdict() | {"total": flops(work).total},
        "efficiency": efficiency,
        "steps_per_s": 1 / seconds,
        "hours": config["train"]["steps"] * seconds / 3600,
        "steps": config["train"]["steps"],
        "input": {
            "clips_per_s": work.batch / seconds,
            "disk_bytes": stored.clips * stored.clip_bytes,
            "bytes_per_s": work.batch * stored.clip_bytes / seconds,
            "epochs": config["train"]["steps"] * work.batch / stored.clips,
        },
        "ways": rows,
    }


# ---- what XLA says, and what is used ------------------------------------------------------------


def _shapes(work: Workload, optimizer, seed: int):
    """State and batch as shapes with the shardings that training gives them; and the mesh."""
    mesh = sharding.make_mesh(work.devices)
    example = example_batch({"visual": work.visual[1], "audio": work.audio[1]})
    state = jax.eval_shape(
        lambda: init_state(work.encoders, work.objective, optimizer, example, seed)
    )
    places = state_shardings(
        state, mesh, shard_params=work.shard_params, shard_optimizer=work.shard_optimizer
    )
    shaped = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    dtype = jnp.float16 if work.feature_bytes == 2 else jnp.float32
    rows = sharding.batch_sharded(mesh)

    def stream(steps: int, width: int) -> Sequences:
        return Sequences(
            jax.ShapeDtypeStruct((work.batch, steps, width), dtype, sharding=rows),
            jax.ShapeDtypeStruct((work.batch,), jnp.int32, sharding=rows),
            jax.ShapeDtypeStruct((work.batch, 2), jnp.float32, sharding=rows),
        )

    batch = AudioVisual(stream(*work.visual), stream(*work.audio))
    return jax.tree.map(shaped, state, places), batch, places, mesh


def lowered_step(work: Workload, optimizer, seed: int = 0):
    """The training step as JAX hands it to XLA; nothing is computed."""
    state, batch, places, mesh = _shapes(work, optimizer, seed)
    step = make_train_step(
        work.encoders,
        work.objective,
        optimizer,
        seed,
        memory_bytes=work.distance_bytes,
        microbatch=work.microbatch,
        mesh=mesh,
    )
    everywhere = sharding.replicated(mesh)
    jitted = jax.jit(step, out_shardings=(places, everywhere), donate_argnums=0)
    return jitted.lower(state, batch)


def compared(work: Workload, optimizer, seed: int = 0) -> dict:
    """What XLA says of the step, beside the plan (one batch on the devices, as XLA sees it).

    XLA counts what is in a loop once, so FLOPs with gradient caching are not its strength; and on
    the CPU it undoes rematerialisation (it merges what is computed twice).
    """
    compiled = lowered_step(work, optimizer, seed).compile()
    found = memory_of(compiled)
    one = dataclasses.replace(work, batches=1)
    return {
        "memory_bytes": found._asdict() | {"total": found.total},
        "planned_bytes": memory(one).total,
        "flops": float(compiled.cost_analysis()["flops"]) * work.devices,
        "planned_flops": flops(work).total,
        "platform": jax.devices()[0].platform,
    }


# ---- the program --------------------------------------------------------------------------------


def bytes_of(text: str) -> float:
    """`"32GiB"`, `"16GB"` -> bytes.

    >>> bytes_of("2GiB"), bytes_of("1.5 GB")
    (2147483648.0, 1500000000.0)
    """
    match = re.fullmatch(r"([\d.]+) *([KMGT]i?)?B?", text.strip())
    if not match or match[1].count(".") > 1 or match[1] == ".":
        raise InputError(f"--memory: expected a size such as 32GiB or 16GB, got {text!r}")
    number, unit = float(match[1]), match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return number * base ** ("KMGT".index(unit[0]) + 1 if unit else 0)


def _device(arguments) -> Device:
    if arguments.device not in DEVICES:
        raise InputError(
            f"--device: expected one of {', '.join(DEVICES)}, got {arguments.device!r}."
            + did_you_mean(arguments.device, list(DEVICES))
        )
    device = DEVICES[arguments.device]
    if arguments.memory:
        device = device._replace(memory=bytes_of(arguments.memory))
    if arguments.peak_tflops is not None:
        peak = arguments.peak_tflops * TERA
        device = device._replace(float32=peak, tensorfloat32=peak, bfloat16=peak)
    if device.float32 <= 0 or not 0 < arguments.efficiency <= 1 or arguments.devices < 1:
        raise InputError(
            "expected --peak-tflops above 0, --efficiency in (0, 1] and --devices of at least 1, "
            f"got {arguments.peak_tflops}, {arguments.efficiency:g} and {arguments.devices}"
        )
    return device


def in_words(found: dict) -> str:
    """The report as a page for a terminal."""
    gib = lambda x: f"{x / GIB:.2f} GiB"  # noqa: E731
    memory, count, reads = found["memory_bytes"], found["flops"], found["input"]
    fits = "fits in" if memory["total"] <= found["available_bytes"] else "DOES NOT FIT in"
    lines = [
        f"parameters       {found['parameters'] / 1e6:.1f} M",
        f"features         {found['features']['source']}",
        f"batch            {found['batch']:,} on {found['devices']} device(s), "
        f"{found['precision']}",
        f"memory           {gib(memory['total'])} on each device, {fits} "
        f"{gib(found['available_bytes'])}",
        *(f"  {name:<15}{gib(size)}" for name, size in memory.items() if name != "total"),
        f"FLOPs of a step  {count['total'] / TERA:.3g} T",
        *(
            f"  {name.replace('_', ' '):<17}{size / TERA:.3g} T, {size / count['total']:.1%}"
            for name, size in count.items()
            if name != "total"
        ),
        f"speed            {found['steps_per_s']:.3g} steps/s at {found['efficiency']:.0%} of the "
        f"peak; {found['steps']:,} steps take {found['hours']:.1f} h",
        f"input            {reads['clips_per_s']:,.0f} clips/s, "
        f"{reads['bytes_per_s'] / 1e9:.2f} GB/s; {reads['disk_bytes'] / 1e9:,.0f} GB on disk, "
        f"{reads['epochs']:.1f} epochs",
        "",
        f"{'':<24}{'memory':>12}{'largest batch':>15}{'TFLOP':>9}{'steps/s':>9}",
    ]
    for name, row in found["ways"].items():
        lines.append(
            f"{name:<24}{gib(row['memory_bytes']):>12}{row['largest_batch']:>15,}"
            f"{row['flops'] / TERA:>9.3g}{row['steps_per_s']:>9.3g}"
        )
    if "xla" in found:
        xla = found["xla"]
        lines += [
            "",
            f"XLA ({xla['platform']}): {gib(xla['memory_bytes']['total'])} on each device (planned "
            f"with one batch there: {gib(xla['planned_bytes'])}), {xla['flops'] / TERA:.3g} TFLOP "
            f"(planned {xla['planned_flops'] / TERA:.3g})",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("Memory, FLOPs, time and input of a config, before it runs.")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--device", default="v100", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--memory", help="of each device, such as 32GiB; else the device's")
    parser.add_argument("--peak-tflops", type=float, help="of each device; else the device's")
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY, help="share of the peak")
    parser.add_argument("--compile", action="store_true", help="asks XLA too, on this machine")
    parser.add_argument("--json", type=Path, help="writes every figure there")
    document, arguments = parse(parser, argv)
    config = document.to_dict()
    device = _device(arguments)
    stored = stored_features(config)
    work = workload(config, arguments.devices, stored)
    found = report(config, work, stored, device, arguments.efficiency)
    if arguments.compile:
        steps = config["train"]["steps"]
        optimizer = unpack("optimizer", config["optimizer"], make_optimizer, steps=steps)
        found["xla"] = compared(work, optimizer)
    print(in_words(found))
    if arguments.json:
        write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    run_program(main)
