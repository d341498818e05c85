"""How sketches are learned: so that their cosines rank clips as the distance of sequences does.

The teacher is the distance D that the run ranks by, between training clips. For each clip the
sketch is to find likely what the distance finds near, in both directions:

    L = CE(softmax(-D / t), softmax(s / tau)),  t a share of the deviation of D, tau learned

Latents are computed once and do not change. The maps begin as the principal directions of all
latents, which keep most of what tells two clips apart, and of which few clips are enough.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from scav_jax import metrics
from scav_jax.base.errors import InputError
from scav_jax.base.progress import progress_bar
from scav_jax.features import store
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import Embedded, embed
from scav_jax.retrieval.model import Model
from scav_jax.retrieval.results import DIRECTIONS, aligned, percent
from scav_jax.retrieval.sketch import Sketch, on_grid, save_sketch
from scav_jax.retrieve import aggregation_similarities, queries_first, sequence_distances
from scav_jax.sequences import STREAMS
from scav_jax.training.runs import Run, load_run

LEAST, MOST = 16, 4096  # numbers of a sketch
KS = (10, 100, 1000)
STEPS_AT_ONCE = 25


@dataclass(frozen=True)
class Fitting:
    """How a sketch is learned.

    Attributes:
      steps, dims: cells of its grid, and numbers a cell.
      clips: of the training data that are used at most.
      rounds: steps of the optimizer.
      batch_size: clips that are compared in a step.
      rate: the learning rate at the start; it falls to 0 by a cosine.
      sharpness: of the teacher: t is the deviation of D by that.
      seed: of the clips and batches.
    """

    steps: int = 24
    dims: int = 8
    clips: int = 2048
    rounds: int = 600
    batch_size: int = 256
    rate: float = 3e-3
    sharpness: float = 8.0
    seed: int = 0

    def __post_init__(self):
        least = {"steps": 1, "dims": 1, "clips": 2, "rounds": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"--{name}: expected at least {value}, got {getattr(self, name)}")
        if not LEAST <= self.steps * self.dims <= MOST:
            raise InputError(
                f"--steps, --dims: expected {LEAST} to {MOST} numbers a sketch, got {self.steps} x "
                f"{self.dims} = {self.steps * self.dims}"
            )


def training_split(run: Run, fitting: Fitting) -> tuple[Split, Split]:
    """The clips that a sketch is learned of, and those of validation.

    Raises:
      InputError: the run ranks by no sequences, or its training data are not there.
    """
    if run.objective.classes or "sequence" not in run.objective.methods:
        raise InputError(
            f"{run.path}: expected a run that ranks by sequences, this one does not: its embedding "
            "is all that it has, and is the first stage"
        )
    data = run.config["data"]
    splits = [store.read(Path(data["path"]), data[f"{n}_split"]) for n in ("train", "validation")]
    chosen = np.random.default_rng(fitting.seed).permutation(len(splits[0]))[: fitting.clips]
    return splits[0].take(np.sort(chosen)), splits[1]


def sketch_run(path: Path, fitting: Fitting) -> tuple[Sketch, dict]:
    """`fit` of the run at a path, and writes what it finds there.

    Raises:
      InputError: no finished run, or see `fit`.
    """
    run = load_run(path)
    sketch, figures = fit(run, fitting)
    save_sketch(path, sketch, Model(run).identity, figures)
    return sketch, figures


def fit(run: Run, fitting: Fitting, *, progress: bool = True) -> tuple[Sketch, dict]:
    """Learns a sketch of a run.

    Returns:
      The sketch, and its figures: `fitting` (clips, seconds, loss) and `validation`, see `recalls`.

    Raises:
      InputError: see `training_split`.
    """
    train, validation = training_split(run, fitting)
    embedded = embed(run, train, progress=progress)
    checked = embed(run, validation, progress=progress)
    begin = time.perf_counter()
    sketch, loss = learn(embedded, run.objective.ranks_by(), fitting, progress=progress)
    seconds = time.perf_counter() - begin
    about = {"clips": len(train), "seconds": seconds, "loss": loss}
    return sketch, {"fitting": about, "validation": recalls(sketch, checked, run)}


def learn(
    embedded: Embedded, ranks_by: tuple[str, dict], fitting: Fitting, *, progress: bool = False
) -> tuple[Sketch, float]:
    """The same from latents of training clips; the loss at the end."""
    teacher = sequence_distances(embedded.latents, *ranks_by, progress=progress)
    teacher *= fitting.sharpness / max(float(teacher.std()), 1e-12)
    cells = {
        stream: on_grid(latents, fitting.steps)
        for stream, latents in zip(STREAMS, embedded.latents, strict=True)
    }
    params = _start(cells, fitting)
    optimizer = optax.adam(optax.cosine_decay_schedule(fitting.rate, fitting.rounds))
    state = params, optimizer.init(params)
    random, size = np.random.default_rng(fitting.seed), min(fitting.batch_size, len(teacher))
    on_device, loss = jax.device_put((cells, teacher)), float("nan")
    with progress_bar("sketch", fitting.rounds, "step", shown=progress) as bar:
        for first in range(0, fitting.rounds, STEPS_AT_ONCE):
            count = min(STEPS_AT_ONCE, fitting.rounds - first)
            batches = np.stack([random.permutation(len(teacher))[:size] for _ in range(count)])
            state, loss = _steps(optimizer, state, on_device, batches)
            bar.update(count)
            bar.set_postfix_str(f"loss {float(loss):.3f}")
    if not np.isfinite(float(loss)):
        raise InputError("sketch: expected a finite loss, got NaN; look at the run's training log")
    arrays = {name: np.asarray(one) for name, one in state[0].items() if name != "log_tau"}
    return Sketch(fitting.steps, arrays), float(loss)


def _start(cells: dict[str, np.ndarray], fitting: Fitting) -> dict[str, np.ndarray]:
    """Principal directions of all latents less their mean, the same for both streams."""
    flat = np.concatenate([one.reshape(-1, one.shape[2]) for one in cells.values()])
    mean = flat.mean(axis=0, dtype=np.float64)
    centred = (flat - mean).astype(np.float32)
    values, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(flat))
    dims = min(fitting.dims, len(mean))
    maps = np.zeros((len(mean), fitting.dims), np.float32)
    maps[:, :dims] = directions[:, ::-1][:, :dims] / np.sqrt(max(values[-1], 1e-12))
    bias = (-mean @ maps).astype(np.float32)
    found = {f"{stream}_{n}": v for stream in STREAMS for n, v in (("map", maps), ("bias", bias))}
    return found | {"log_tau": np.log(np.float32(0.07))}


@functools.partial(jax.jit, static_argnums=0)
def _steps(optimizer, state: PyTree, data: PyTree, batches: Int[Array, "steps B"]) -> PyTree:
    cells, teacher = data

    def step(state, batch):
        params, of_optimizer = state
        some = {stream: one[batch] for stream, one in cells.items()}
        loss, gradients = jax.value_and_grad(_loss)(params, some, teacher[batch][:, batch])
        with jax.numpy_dtype_promotion("standard"):  # as in `train_step`
            updates, of_optimizer = optimizer.update(gradients, of_optimizer, params)
        return (optax.apply_updates(params, updates), of_optimizer), loss

    state, losses = jax.lax.scan(step, state, batches)
    return state, losses[-1]


def _loss(params: PyTree, cells: dict[str, Array], teacher: Float[Array, "B B"]) -> Array:
    """Cross entropy of what the sketch finds likely, in both directions."""
    sketches = []
    for stream in STREAMS:
        one = cells[stream] @ params[f"{stream}_map"] + params[f"{stream}_bias"][None, None]
        flat = one.reshape(len(one), -1)
        sketches.append(flat * jax.lax.rsqrt(jnp.sum(flat**2, axis=1, keepdims=True) + 1e-12))
    logits = sketches[0] @ sketches[1].T / jnp.exp(params["log_tau"])
    total = jnp.zeros(())
    for axis in (0, 1):
        wanted = jax.nn.softmax(-teacher, axis=axis)
        total -= jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits, axis=axis), axis=axis))
    return total


# ---- what it is worth ------------------------------------------------------------------------


def recalls(sketch: Sketch, embedded: Embedded, run: Run, ks: Sequence[int] = KS) -> list[dict]:
    """How often a first stage keeps what the sequences find first.

    Args:
      sketch: one of both first stages; the other is the embedding, the mean over time.
      embedded: the clips, all of which ask.
      run: which distance ranks them.
      ks: candidates that are kept; those that are fewer than the clips.

    Returns:
      A row for each `first_stage`, "embedding" and "sketch", of so many `numbers`: `n`, and for
      `a2v` and `v2a` the recall by k, a share in 0..1.
    """
    distances = sequence_distances(embedded.latents, *run.objective.ranks_by())
    vectors = {
        "embedding": (embedded.visual_embeddings, embedded.audio_embeddings),
        "sketch": tuple(sketch.of(s, getattr(embedded, s)) for s in STREAMS),
    }
    rows = []
    for name, (visual, audio) in vectors.items():
        row: dict = {"first_stage": name, "numbers": visual.shape[1], "n": len(visual)}
        similar = aggregation_similarities(visual, audio)
        for direction in DIRECTIONS:
            first = queries_first(distances, direction).argmin(axis=1)
            ranks = metrics.ranks(-queries_first(similar, direction), first)
            kept = [k for k in ks if k < len(visual)]
            row[direction] = {str(k): metrics.recall_at_k(ranks, k) for k in kept}
        rows.append(row)
    return rows


def table(rows: Sequence[dict]) -> str:
    """The same for people."""
    ks = list(rows[0]["a2v"])
    heads = [f"{arrow} @{k}" for arrow in DIRECTIONS.values() for k in ks]
    lines = [["first stage", "numbers", *heads]]
    for row in rows:
        shares = [percent(row[direction][k]) for direction in DIRECTIONS for k in ks]
        lines.append([row["first_stage"], f"{row['numbers']}", *shares])
    note = f"N = {rows[0]['n']:,}: % of queries whose first by sequence is among so many candidates"
    word = metrics.few_queries(rows[0]["n"], "recall")
    return "\n".join([*aligned(lines, 1), "", note, *([f"CAUTION: {word}"] if word else [])])
