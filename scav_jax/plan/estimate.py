"""Memory, FLOPs, time and input of a config by arithmetic from its modules (`costs`): nothing is
computed, no data need be there.
"""

import contextlib
import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short  # of words, which may be of any length

import jax
import numpy as np

from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import MEL_BINS, STACKED_FRAMES
from scav_jax.base.ranges import read_number
from scav_jax.encoders import ENCODERS
from scav_jax.features import store
from scav_jax.features.batches import plan_training
from scav_jax.features.sides import playable
from scav_jax.objectives.objective import Material
from scav_jax.plan.costs import (
    FLOAT,
    GIB,
    PAPER,
    Workload,
    flops,
    parameter_count,
)
from scav_jax.plan.devices import TERA, Device
from scav_jax.plan.memory import largest_batch, planned_memory
from scav_jax.training.config import Config
from scav_jax.training.runs import build
from scav_jax.training.setup import material, with_data

TAKE_MORE = "XLA_CLIENT_MEM_FRACTION=.95"  # of a card, in JAX's environment
PAPER_CLIPS, PAPER_CLASSES, PAPER_CLIP_S = 153_000, 309, 10.0  # of VGGSound, for training

# ---- what a config asks for ---------------------------------------------------------------------


@dataclass(frozen=True)
class StoredFeatures:
    """The features that a config trains on.

    Attributes:
      clips: of the training split.
      clip_bytes: mean, as stored.
      visual, audio: (steps, width) of the largest padded shape.
      source: where these figures are from.
      bytes: of a number, by stream, as stored.
    """

    clips: int
    clip_bytes: float
    visual: tuple[int, int]
    audio: tuple[int, int]
    source: str
    bytes: tuple[int, int] = (2, 2)


def stored_features(config: Config) -> StoredFeatures:
    """Of the config's data set where it is on disk, else of VGGSound with the paper's features."""
    data = config.data
    if not (Path(data.path) / store.ABOUT).is_file():
        if ENCODERS[config.encoders.name].of_pixels:
            return _assumed_pixels(config)
        numbers = sum(steps * width for steps, width in PAPER.values())
        source = f"{data.path} is not there: the paper's VGGSound is assumed"
        return StoredFeatures(PAPER_CLIPS, 2.0 * numbers, *PAPER.values(), source)
    split = store.read(Path(data.path), data.train_split)
    widths = split.visual_width, split.audio_width
    plan = plan_training(
        split,
        batch_size=min(data.batch_size, len(split)),
        seed=config.seed,
        align=data.align,
        buckets=data.buckets,
    )
    largest = plan.paddings[-1]
    means = split.visual_lengths.mean(), split.audio_lengths.mean()
    sizes = split.visual_dtype.itemsize, split.audio_dtype.itemsize
    clip_bytes = float(np.dot(means, np.multiply(widths, sizes)))
    visual, audio = zip(largest, widths, strict=True)
    source = f"{data.path}, {len(split):,} clips"
    if len(split) < data.batch_size:
        source += ", fewer than a batch, which `scav train` refuses: lower data.batch_size"
    return StoredFeatures(len(split), clip_bytes, visual, audio, source, sizes)


def _assumed_pixels(config: Config) -> StoredFeatures:
    """Ten frames of the towers' side and the log-mel, a clip of 10 s."""
    sound = PAPER["audio"][0], STACKED_FRAMES * MEL_BINS
    shapes, sizes = ((10, 3 * config.encoders.side**2), sound), (1, 2)
    numbers = [steps * width for steps, width in shapes]
    source = f"{config.data.path} is not there: pixels of {PAPER_CLIPS:,} clips are assumed"
    return StoredFeatures(PAPER_CLIPS, float(np.dot(numbers, sizes)), *shapes, source, sizes)


def workload(config: Config, devices: int, stored: StoredFeatures) -> Workload:
    """The step that a config describes, on so many devices."""
    train, data = config.train, config.data
    number = 2 if data.features == "float16" else FLOAT
    encoders, objective = build(_with_data(config))
    work = Workload(
        encoders=encoders.clone(precision=train.precision, remat=train.remat),
        objective=objective,
        batch=data.batch_size,
        visual=stored.visual,
        audio=stored.audio,
        microbatch=train.microbatch,
        devices=devices,
        feature_bytes=tuple(1 if size == 1 else number for size in stored.bytes),
        batches=1 + data.prefetch,
        distance_bytes=train.distance_memory_bytes,
        shard_params=train.shard_params,
        shard_optimizer=train.shard_optimizer,
    )
    sharding.check_cuts(work.batch, work.microbatch, work.devices)
    return work


def _with_data(config: Config) -> Config:
    """With what the objective takes from the training clips, as their classes; or from VGGSound's.

    Raises:
      InputError: the clips of the data set cannot give that.
    """
    data = config.data
    if not (Path(data.path) / store.ABOUT).is_file():
        return with_data(config, _assumed_material(data.align))
    told = material(store.read(Path(data.path), data.train_split), data.align)
    found = with_data(config, told)
    if found is not config:
        build(found)[1].check(told)
    return found


def _assumed_material(align: str) -> Material:
    """A clip of every class of VGGSound, of features as the paper's."""
    classes = [str(number) for number in range(PAPER_CLASSES)]
    seconds = np.tile([0.0, PAPER_CLIP_S], (PAPER_CLASSES, 1))
    rates = np.tile([steps / PAPER_CLIP_S for steps, _ in PAPER.values()], (PAPER_CLASSES, 1))
    where = "the paper's VGGSound"
    return Material({}, align, where, classes, seconds, rates, playable({}), classes)


def step_seconds(work: Workload, device: Device, efficiency: float) -> float:
    """Time of a step at a share of the peaks; distances and loss are float32 in any precision."""
    peak = getattr(device, work.encoders.precision)
    if not peak:
        raise InputError(
            f"train.precision: expected one that the device computes in, {device.name} has no "
            f"{work.encoders.precision}; use float32, or name another --device"
        )
    count = flops(work)
    exact = count.distance + count.loss
    seconds = (count.total - exact) / peak + exact / device.float32
    return seconds / (work.devices * efficiency)


def ways(work: Workload) -> dict[str, Workload]:
    """The config's step with and without gradient caching and rematerialisation."""
    part = work.microbatch or min(work.batch, 32 * work.devices)
    part = math.gcd(work.batch, part) if work.batch % part else part

    def changed(microbatch: int, remat: str) -> Workload:
        encoders = work.encoders.clone(remat=remat)
        return dataclasses.replace(work, microbatch=microbatch, encoders=encoders)

    return {
        "plain": changed(0, "none"),
        "remat": changed(0, "blocks"),
        f"microbatch {part}": changed(part, "none"),
        f"microbatch {part}, remat": changed(part, "blocks"),
    }


def report(
    config: Config, work: Workload, stored: StoredFeatures, device: Device, efficiency: float
) -> dict:
    """Every figure of the plan, as a document."""
    seconds, held = step_seconds(work, device, efficiency), planned_memory(work)
    rows = {}
    for name, way in ways(work).items():
        rows[name] = {
            "memory_bytes": planned_memory(way).total,
            "largest_batch": largest_batch(way, device.memory),
            "flops": flops(way).total,
            "steps_per_s": 1 / step_seconds(way, device, efficiency),
        }
    return {
        "parameters": parameter_count(work),
        "batch": work.batch,
        "devices": work.devices,
        "device": device.name,
        "precision": work.encoders.precision,
        "features": dataclasses.asdict(stored),
        "memory_bytes": held._asdict() | {"total": held.total},
        "available_bytes": device.memory,
        "taken_bytes": device.share * device.memory,
        "peak_flops": getattr(device, work.encoders.precision) * work.devices,
        "flops": flops(work)._asdict() | {"total": flops(work).total},
        "efficiency": efficiency,
        "steps_per_s": 1 / seconds,
        "hours": config.train.steps * seconds / 3600,
        "steps": config.train.steps,
        "input": {
            "clips_per_s": work.batch / seconds,
            "disk_bytes": stored.clips * stored.clip_bytes,
            "bytes_per_s": work.batch * stored.clip_bytes / seconds,
            "epochs": config.train.steps * work.batch / stored.clips,
        },
        "ways": rows,
    }


# ---- the program --------------------------------------------------------------------------------


def bytes_of(text: str) -> float:
    """`"32GiB"`, `"16GB"` -> bytes.

    >>> bytes_of("2GiB"), bytes_of("1.5 GB")
    (2147483648.0, 1500000000.0)
    """
    match = re.fullmatch(r"([0-9.]+) *([KMGT]i?)B?", text.strip())
    with contextlib.suppress(ValueError):
        number, unit = (read_number(match[1]), match[2]) if match else (0.0, "K")
        base = 1024 if unit.endswith("i") else 1000
        size = number * base ** ("KMGT".index(unit[0]) + 1)
        if 0 < size <= 2**50:
            return size
    raise InputError(
        f"--memory: expected a size such as 32GiB or 16GB, at most 1024TiB, got {short(text)}"
    )


def check_devices(work: Workload) -> None:
    here = len(jax.devices())
    if work.devices > here:
        raise InputError(
            f"--compile, --run: expected at most the {here} device(s) of this machine, got "
            f"--devices {work.devices}; the arithmetic alone needs none of them"
        )


def in_words(found: dict) -> str:
    """The report as a page for a terminal."""
    memory, count, reads = found["memory_bytes"], found["flops"], found["input"]
    hours = found["hours"]
    time = f"{hours:.1f} h" if hours >= 0.1 else f"{_short(3600 * hours)} s"
    lines = [
        f"parameters       {found['parameters'] / 1e6:.1f} M",
        f"features         {found['features']['source']}",
        f"batch            {found['batch']:,} on {found['devices']} device(s) "
        f"({found['device']}), {found['precision']}",
        f"memory           {_size(memory['total'])} on each device when it holds most, "
        f"{_fits(memory['total'], found['available_bytes'], found['taken_bytes'])}",
        *(f"  {name:<15}{_size(size)}" for name, size in memory.items() if name != "total"),
        f"FLOPs of a step  {count['total'] / TERA:.3g} T",
        *(
            f"  {name.replace('_', ' '):<17}{size / TERA:.3g} T, {size / count['total']:.1%}"
            for name, size in count.items()
            if name != "total"
        ),
        f"speed            {found['steps_per_s']:.3g} steps/s at "
        f"{100 * found['efficiency']:.3g}% of the peak ({found['efficiency_is']}); "
        f"{found['steps']:,} steps take {time}",
        f"input            {reads['clips_per_s']:,.0f} clips/s, "
        f"{reads['bytes_per_s'] / 1e9:.2f} GB/s; {_short(reads['disk_bytes'] / 1e9)} GB of "
        f"training clips on disk, {reads['epochs']:,.1f} epochs",
        "",
        f"{'':<24}{'memory':>12}{'largest batch':>15}{'TFLOP':>9}{'steps/s':>9}",
    ]
    for name, row in found["ways"].items():
        lines.append(
            f"{name:<24}{_size(row['memory_bytes']):>12}{row['largest_batch']:>15,}"
            f"{row['flops'] / TERA:>9.3g}{row['steps_per_s']:>9.3g}"
        )
    if "xla" in found:
        lines += ["", _xla_in_words(found["xla"])]
    if "run" in found:
        lines += _run_in_words(found["run"], found["peak_flops"], found["device"])
    return "\n".join(lines)


def _fits(needed: float, available: float, taken: float) -> str:
    """Whether a step fits in a device's memory, and in what JAX takes of it, in words."""
    if needed > available:
        return f"DOES NOT FIT in {_size(available)}"
    return f"fits in {_size(available)}" + f", with {TAKE_MORE}" * (needed > taken)


def _size(size: float) -> str:
    """Bytes in words.

    >>> _size(2**31), _size(5.3e6)
    ('2.00 GiB', '5.05 MiB')
    """
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"


def _short(figure: float) -> str:
    """Whole where it is large, two digits where it is small.

    >>> _short(18310.2), _short(0.0514)
    ('18,310', '0.051')
    """
    return f"{figure:,.0f}" if figure >= 9.5 else f"{figure:.2g}"


def _xla_in_words(xla: dict) -> str:
    """What XLA said of the step, as far as it said it."""
    held, count = xla["memory_bytes"], xla["flops"]
    memory = "memory unknown" if held is None else f"{_size(held['total'])} on each device"
    counted = "FLOPs unknown" if count is None else f"{count / TERA:.3g} TFLOP"
    return (
        f"XLA ({xla['platform']}): {memory} (planned with one batch there: "
        f"{_size(xla['planned_bytes'])}), {counted} "
        f"(planned {xla['planned_flops'] / TERA:.3g})"
    )


def _run_in_words(run: dict, peak: float, device: str) -> list[str]:
    """What running the step showed."""
    seconds, used = run["step_s"], run["memory_in_use_bytes"]
    memory = "" if used is None else f", {_size(used)} in use at most on each device"
    share = run["flops_per_s"] / peak
    return [
        f"run              {seconds:.3g} s a step, {run['flops_per_s'] / TERA:.3g} TFLOP/s: "
        f"{share:.1%} of the peak of {device}{memory}"
    ]
