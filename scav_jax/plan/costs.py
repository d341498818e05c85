"""A training step as work: what it consists of, and its FLOPs, by arithmetic from its modules."""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scav_jax.encoders import GATE_WIDTH, PatchEncoders, Towers
from scav_jax.objectives import Objective
from scav_jax.objectives.objective import Cost, Work
from scav_jax.sequences import STREAMS, AudioVisual, Batch
from scav_jax.training.runs import example_batch, parameter_shapes

FLOAT = 4  # bytes
GIB = 2**30

# VGGSound with the paper's features (section IV): 10 s at 25 frames a second, CLIP and BEATs.
PATCH_NUMBERS = 16 * 16 * 3
PAPER = {"visual": (250, 768), "audio": (62, 6144)}


@dataclass(frozen=True)
class Workload:
    """One training step, as far as its cost goes.

    Attributes:
      encoders, objective: what is trained.
      batch: clips in a global batch.
      visual, audio: (steps, width) of the padded features.
      microbatch: clips encoded at a time, over all devices; 0 is all, without gradient caching.
      devices: over how many the batch is cut.
      feature_bytes: of one number of a batch on the device, by stream: 2 (as stored) or 4; 1 of
        pixels.
      batches: how many batches are on the devices at a time (2: double buffering).
      distance_bytes: at most this much working memory for distances.
      shard_params, shard_optimizer: cut over devices instead of replicated.
      on_cpu: whether it is compiled for a CPU, where distances take one step at a time.
    """

    encoders: Towers
    objective: Objective
    batch: int
    visual: tuple[int, int] = PAPER["visual"]
    audio: tuple[int, int] = PAPER["audio"]
    microbatch: int = 0
    devices: int = 1
    feature_bytes: tuple[int, int] = (FLOAT, FLOAT)
    batches: int = 2
    distance_bytes: int = GIB
    shard_params: bool = False
    shard_optimizer: bool = False
    on_cpu: bool = False

    @property
    def passes(self) -> tuple[dict[str, tuple[int, int]], ...]:
        """(steps, width) that each tower sees in every pass: the objective's views of a clip.

        'pre' resampling brings both streams to one length.
        """
        return _view_shapes(self.encoders, self.objective, self.visual, self.audio)

    @property
    def loss_cost(self) -> Cost:
        """What the objective says of its loss."""
        first = self.passes[0]
        steps = first["visual"][0], first["audio"][0]
        rows, width = self.batch / self.devices, self.encoders.width
        return self.objective.cost(
            Work(self.batch, rows, steps, width, self.distance_bytes, self.on_cpu)
        )


@functools.cache  # a search for the largest batch asks again and again
def _view_shapes(
    encoders: Towers, objective: Objective, visual: tuple[int, int], audio: tuple[int, int]
) -> tuple[dict[str, tuple[int, int]], ...]:
    """(steps, width) of both streams in every view of a clip, as the towers read it."""
    batch = example_batch({"visual": visual[1], "audio": audio[1]})
    features = [
        stream.replace(values=jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        for stream, shape in zip(batch.features, (visual, audio), strict=True)
    ]
    batch = batch._replace(features=AudioVisual(*features))

    def read(batch: Batch) -> list[AudioVisual]:
        views = objective.views(batch, jax.random.key(0))
        return [encoders.read(view) for view in views.features.values()]

    return tuple(
        {name: getattr(view, name).values.shape[1:] for name in STREAMS}
        for view in jax.eval_shape(read, batch)
    )


def parameter_count(work: Workload) -> int:
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


def _tower_products(encoders: Towers, steps: int, feature_width: int, name: str):
    """Multiply-adds for one clip: of the tower, of its first layer, of one block."""
    if isinstance(encoders, PatchEncoders):
        return _patch_products(encoders, steps, feature_width, name)
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


def _patch_products(encoders: PatchEncoders, steps: int, feature_width: int, name: str):
    """The same for towers of patches: a picture's tokens attend to each other, and so do a sound's.

    Of a log-mel, three equal channels are multiplied.
    """
    width, tokens = encoders.width, tokens_of(encoders, steps, feature_width, name)
    attended = tokens if name == "audio" else tokens // steps
    block = 4 * width**2 + 2 * attended * width + 2 * width * encoders.feedforward
    first = tokens * PATCH_NUMBERS * width
    blocks = getattr(encoders, f"{name}_blocks")
    return first + tokens * blocks * block, first, tokens * block


def tokens_of(encoders: Towers, steps: int, feature_width: int, name: str) -> int:
    """Steps of a tower's latents."""
    if not isinstance(encoders, PatchEncoders):
        return steps
    channels = 3 if name == "visual" else 1
    return steps * (feature_width * 3 // (channels * PATCH_NUMBERS))


def flops(work: Workload) -> Flops:
    """Products of matrices, which are nearly all; element by element it is 1-3 % more at width 512.

    Backward is two products for one of forward, less the gradient of the features, which nobody
    asks for. Gradient caching adds one forward pass, `remat="blocks"` that of the blocks. The loss
    is counted as about 100 operations an entry of D.
    """
    forward = first = blocks = 0.0
    for name, (steps, feature_width) in tower_passes(work):
        of_all, of_first, of_block = _tower_products(work.encoders, steps, feature_width, name)
        forward, first = forward + of_all, first + of_first
        blocks += getattr(work.encoders, f"{name}_blocks") * of_block
    scale = 2.0 * work.batch
    again = scale * (forward * bool(work.microbatch) + blocks * (work.encoders.remat == "blocks"))
    return Flops(
        towers_forward=scale * forward,
        towers_backward=scale * (2 * forward - first),
        recomputed=again,
        distance=work.loss_cost.distance,
        loss=work.loss_cost.loss,
    )


def tower_passes(work: Workload) -> list[tuple[str, tuple[int, int]]]:
    """Every pass of every tower, with (steps, width) of what it sees."""
    return [item for view in work.passes for item in view.items()]
