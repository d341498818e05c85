"""What a training step holds on each device, by arithmetic from its modules; nothing is computed.

A step has moments at which memory is full, one after the other, and XLA lays what lives at one over
what lived at another: what is needed is the largest of them, not their sum. Counts of arrays are
those of XLA's buffer assignment (jax 0.12, for a CPU and, where it differs, for an H200; see
`scripts/benchmarks/plan_memory.py`), which is more than the formulas need.
"""

import dataclasses
from typing import NamedTuple

from scav_jax.encoders import PatchEncoders, Towers
from scav_jax.encoders.precision import STEP_MULTIPLES
from scav_jax.plan.costs import (
    FLOAT,
    PATCH_NUMBERS,
    Workload,
    parameter_count,
    tokens_of,
    tower_passes,
)

HALF = 2  # bytes


class PlannedMemory(NamedTuple):
    """Bytes on each device at the fullest moment of a step.

    Attributes:
      parameters, optimizer: which stay.
      gradients: of parameters, their sum over microbatches, and kernels copied to bfloat16.
      features: of the batches there.
      activations: what the towers keep for their gradient, and what one block works with.
      latents: what the loss sees of all clips, and its gradient.
      loss: of distances, the loss and its gradient.
    """

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


class BlockArrays(NamedTuple):
    """How many arrays of each size, for one clip: [T, width], [T, feedforward], heads [T, T]."""

    width: int
    hidden: int
    maps: int


# What is kept of one block for its gradient, by `train.remat`.
KEPT = {
    "unrolled": BlockArrays(8, 2, 2),  # what norms, GELU and dropout give, too
    # Inputs of norms, q, k, v, mixed values; before GELU; weights before dropout.
    "none": BlockArrays(6, 1, 1),
    "blocks": BlockArrays(1, 0, 0),  # the input
}
# What one block's backward pass works with besides: what it computes again, or reads of what is
# kept, gradients, and both once more where a product wants another layout. So many [T, width] at
# any time, and hidden ones or maps, whichever are more: the feed-forward layer's turn comes first,
# then attention's.
WORKING_WIDTH, WORKING_HIDDEN = 16, 3
# Bytes for each entry of maps, by those of a number: weights, their gradient, the logits' and what
# was dropped. In bfloat16 two of them are float32 (the softmax's gradient is), and one is of bits.
WORKING_MAP = {FLOAT: 4 * FLOAT, HALF: 2 * FLOAT + HALF + 1}
# In bfloat16 gradients of norms, GELUs and sums are float32 before they are rounded: on a card in
# registers, within a kernel; on a CPU so many arrays of each of these sizes are float32.
WIDE_ON_CPU = 11, 1
PROJECTION_HIDDEN = 2  # of a projection: before GELU and after it


def _number(encoders: Towers) -> int:
    """Bytes of one number of activations."""
    return HALF if encoders.precision == "bfloat16" else FLOAT


def _array_bytes(encoders: Towers, arrays: BlockArrays, steps: int) -> float:
    """Of arrays of one block, for one sequence of so many steps."""
    of_step = arrays.width * encoders.width + arrays.hidden * encoders.feedforward
    of_step += encoders.heads * arrays.maps * steps
    return _number(encoders) * steps * of_step


def _sequences(encoders: Towers, steps: int, feature_width: int, name: str) -> tuple[int, int]:
    """How many sequences of how many steps the blocks see of a clip."""
    if not isinstance(encoders, PatchEncoders):
        return 1, steps + -steps % STEP_MULTIPLES[encoders.precision]
    tokens = tokens_of(encoders, steps, feature_width, name)
    return (steps, tokens // steps) if name == "visual" else (1, tokens)


def kept_bytes(encoders: Towers, steps: int, feature_width: int, name: str) -> float:
    """What one pass of one tower keeps of a clip until its gradient is taken."""
    count, length = _sequences(encoders, steps, feature_width, name)
    blocks = getattr(encoders, f"{name}_blocks")
    of_blocks = blocks * _array_bytes(encoders, KEPT[encoders.remat], length)
    if isinstance(encoders, PatchEncoders):
        numbers = PATCH_NUMBERS + encoders.width
    else:
        numbers = feature_width + PROJECTION_HIDDEN * getattr(encoders, f"{name}_hidden")
        numbers += (1 + 2 * encoders.conv_position) * encoders.width  # what the last norm reads
    return count * (of_blocks + _number(encoders) * length * numbers)


def working_bytes(
    encoders: Towers, steps: int, feature_width: int, name: str, *, on_cpu: bool
) -> float:
    """What the backward pass of one of its blocks, or of its projection, works with for a clip."""
    count, length = _sequences(encoders, steps, feature_width, name)
    number = _number(encoders)
    wider = FLOAT - number if on_cpu else 0
    of_width, of_hidden = (
        number * working + wider * wide
        for working, wide in zip((WORKING_WIDTH, WORKING_HIDDEN), WIDE_ON_CPU, strict=True)
    )
    if getattr(encoders, f"{name}_blocks"):
        hidden = of_hidden * encoders.feedforward + number * encoders.heads * length
        maps = WORKING_MAP[number] * encoders.heads * length
        return count * length * (of_width * encoders.width + max(hidden, maps))
    if isinstance(encoders, PatchEncoders):
        return 0.0
    hidden = getattr(encoders, f"{name}_hidden")
    return length * (of_hidden * hidden + number * feature_width)


def planned_memory(work: Workload, count: int | None = None) -> PlannedMemory:
    """What each device holds at the fullest moment, by arithmetic (see the module).

    Args:
      work: the step.
      count: its `parameter_count`, where they are known: to find them the towers are traced.
    """
    count = parameter_count(work) if count is None else count
    kept = lambda sharded: 1 / work.devices if sharded else 1.0  # noqa: E731
    numbers = zip((work.visual, work.audio), work.feature_bytes, strict=True)
    features = sum(steps * width * size for (steps, width), size in numbers)
    standing = {
        "parameters": FLOAT * count * kept(work.shard_params),
        "optimizer": 2 * FLOAT * count * kept(work.shard_optimizer),
        "features": work.batches * features * work.batch / work.devices,
    }
    rest = ("gradients", "activations", "latents", "loss")
    moments = (
        PlannedMemory(**standing, **dict(zip(rest, moment, strict=True)))
        for moment in _moments(work, float(count))
    )
    return max(moments, key=lambda moment: moment.total)


def _moments(work: Workload, count: float) -> list[tuple[float, float, float, float]]:
    """Bytes of parameters' gradients, of activations, of latents and of the loss, at each moment.

    They are: the loss; the gradient of what it sees, where distances compare steps; the backward
    pass of a block, of the whole batch or of one part. With gradient caching the first two hold no
    activations, but the sum of gradients, zero still; and the last one holds the latents' gradient.
    """
    cost, encoders, seen = work.loss_cost, work.encoders, tower_passes(work)
    rows, encoded = (n / work.devices for n in (work.batch, work.microbatch or work.batch))
    passes = [(steps, width, name) for name, (steps, width) in seen]
    activations = encoded * sum(kept_bytes(encoders, *one) for one in passes)
    working = encoded * max(working_bytes(encoders, *one, on_cpu=work.on_cpu) for one in passes)
    sizes = [FLOAT * _kept_numbers(work, *one) for one in passes]
    audio = sum(size for size, (*_, name) in zip(sizes, passes, strict=True) if name == "audio")
    # Where distances compare steps, each device has all devices' sounds.
    gathered = audio * work.batch if work.devices > 1 and cost.backward else 0.0
    latents = rows * sum(sizes)
    copies = HALF * count if encoders.precision == "bfloat16" else 0.0
    views = len(work.passes)
    gradients = copies + _number(encoders) * count * views
    ends = isinstance(encoders, PatchEncoders)
    if ends:  # in no norm: the objective's norms keep what they read, and its gradient is there
        ending = sum(tokens_of(encoders, *one) * encoders.width for one in passes)
        activations += 2 * FLOAT * encoded * ending
    if work.microbatch:
        before = FLOAT * count + copies, 0.0
        # Their sum, too; those of several views are added in float32.
        gradients += FLOAT * count * (1 + (views > 1))
        backward = gradients, activations + working, latents, 0.0
    else:
        before = copies, activations
        # Of the tower whose turn is later.
        later = 0.0 if ends else latents - rows * max(sizes)
        backward = gradients, activations + working, later, 0.0
    found = [(*before, latents + gathered, cost.memory), backward]
    if cost.backward:
        own = latents - rows * audio if gathered else latents  # what was gathered has its place
        found.append((*before, 2 * (own + gathered), cost.backward))
    return found


def _kept_numbers(work: Workload, steps: int, width: int, name: str) -> int:
    """What the loss sees of a clip's pass: latents, or what the objective makes of them alone."""
    if not work.objective.ranks_sequences and work.microbatch:
        return work.encoders.width
    return tokens_of(work.encoders, steps, width, name) * work.encoders.width


def largest_batch(work: Workload, limit: float) -> int:
    """The largest multiple of devices (and of the microbatch) that fits in `limit` bytes; or 0."""
    unit = work.microbatch or work.devices
    count = parameter_count(work)

    def fits(units: int) -> bool:
        return planned_memory(dataclasses.replace(work, batch=units * unit), count).total <= limit

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
